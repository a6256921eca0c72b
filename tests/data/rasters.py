"""Writes raster files in true formats: 16-bit colour PNG, which Pillow does not write, JPEG, .npy and label maps."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def blocks(size: tuple[int, int], channels: int, top: int, seed: int, side: int = 40) -> np.ndarray:
    """int64 [H, W, C] of random levels in squares, which compress well."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, top + 1, (size[0] // side + 1, size[1] // side + 1, channels))
    return coarse.repeat(side, 0).repeat(side, 1)[: size[0], : size[1]]


def png16(values: np.ndarray) -> bytes:
    """A PNG of 16 bits: [H, W] grey, or [H, W, C] with 2 channels (grey and alpha), 3, or 4 (RGB and alpha)."""
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[1 if values.ndim == 2 else values.shape[2]]
    rows = values.astype(">u2").reshape(len(values), -1).view(np.uint8)
    raw = np.concatenate([np.zeros((len(rows), 1), np.uint8), rows], 1).tobytes()  # filter 0 before every row

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw, 1)) + chunk(b"IEND", b"")


def save(path: Path, values: np.ndarray) -> Path:
    """Values as the suffix says: .npy, .jpg, or .png of 8 or 16 bits by their type."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, values)
    elif values.dtype == np.uint16:
        path.write_bytes(png16(values))
    else:
        Image.fromarray(values.astype(np.uint8)).save(path, **({"quality": 95} if path.suffix == ".jpg" else {}))
    return path
