"""Rasters of a scene (colour, height, near infrared …) and its label map: read as they are, never resized.

All of a sample's rasters lie pixel on pixel, so a file of another size, channel count or depth is refused with its
name. A value is a path, the bytes of a file, or a `Window` of a larger raster.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmsweep.components import register
from mmsweep.data.files import Undecodable, name_of, opened, reading
from mmsweep.data.kinds.kind import Format, Layout, Parts, Rows, Varied, per_channel
from mmsweep.errors import UserError
from mmsweep.tasks.task import IGNORE, Target
from mmsweep.transfer import Resident

IMAGENET_MEAN = tuple(255 * level for level in (0.485, 0.456, 0.406))
IMAGENET_STD = tuple(255 * level for level in (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Window:
    """A part of a larger raster: rows top to top + height, columns left to left + width."""

    path: Path
    top: int
    left: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.path} (rows from {self.top}, columns from {self.left})"


RasterValue = str | Path | bytes | Window

_MODES = ("L", "LA", "RGB", "RGBA", "I", "F", "I;16", "I;16B", "I;16L", "I;16N")
"""Modes of Pillow's whose channels are grey or RGB as they are; CMYK's four, say, are no colour and transparency."""


@register("raster")
@dataclass(frozen=True)
class RasterFormat(Format):
    """Rasters of a scene that lie pixel on pixel: column [N,C,H,W] in the file's own type; batch float32 [B,C,H,W].

    Nothing is resized: a file of another size is refused, since it would no longer lie on the others. The batch is
    (x - mean) / std, in the file's own units.

    Args:
        size: (H, W) of the files.
        channels: 3, or 1 for heights, temperatures and the like.
        dtype: uint8, or uint16 (16-bit heights stay so on disk).
        mean, std: per channel, in the file's units.
    """

    size: tuple[int, int]
    channels: int = 3
    dtype: Literal["uint8", "uint16"] = "uint8"
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (255.0, 255.0, 255.0)

    kind: ClassVar[str] = "raster"
    word: ClassVar[str] = "raster"
    has_black: ClassVar[bool] = True

    Options: ClassVar[None] = None  # a manifest has no rasters: it cannot say their size and units

    @property
    def map_size(self) -> tuple[int, int]:
        return self.size

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise UserError("a raster has one channel or three", key="channels", found=self.channels)
        if len(self.mean) != self.channels or len(self.std) != self.channels or min(self.std) <= 0:
            raise UserError(
                f"mean and std must have an entry for each of {self.channels} channels, std above 0",
                found=(self.mean, self.std),
            )

    def key(self) -> dict[str, Any]:
        return {"kind": self.kind, "size": list(self.size), "channels": self.channels, "dtype": self.dtype}

    def columns(self) -> Layout:
        return [("", np.dtype(self.dtype), (self.channels, *self.size))]

    def decoder(self, varied: bool) -> Callable[[Any], Parts]:
        return lambda value: {"": decode_raster(value, self)}

    def read(self, rows: Rows) -> dict[str, Tensor]:
        return {"values": torch.from_numpy(rows.columns[""][rows.index_B])}

    def constants(self) -> tuple[Resident, ...]:
        return Resident(per_channel(self.mean)), Resident(per_channel(self.std))

    def shown(self, parts: dict[str, Tensor], varied: Varied | None, constants: tuple[Resident, ...]) -> Tensor:
        values = parts["values"]
        mean, std = (constant.on(values.device) for constant in constants)
        # Cast on the device: float32 holds 16 bits exactly, and integers of 16 bits have few operations in torch.
        values = values.to(torch.float32).sub_(mean).div_(std)
        return values if varied is None else varied.augmentation.rasters(values, varied.draws)

    def level(self, values: Sequence[float]) -> Tensor:
        levels = [*values] * self.channels if len(values) == 1 else values
        return per_channel([(v - m) / s for v, m, s in zip(levels, self.mean, self.std, strict=True)])


def decode_raster(value: RasterValue, format: RasterFormat) -> np.ndarray:
    """[C, H, W] in the format's type.

    Raises:
        Undecodable: unreadable, or of another size, channel count or depth.
    """
    return np.ascontiguousarray(_fitting(_pixels(value), value, format).transpose(2, 0, 1))


def _fitting(pixels: np.ndarray, value: RasterValue, format: RasterFormat) -> np.ndarray:
    """[H, W, C] as the format says. Raises Undecodable where the raster is another."""
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    pixels = pixels[..., :3] if pixels.shape[-1] == 4 else pixels  # an alpha channel says nothing of the scene
    if pixels.shape[-1] == 2:
        pixels = pixels[..., :1]
    found, wanted = (*pixels.shape[:2], pixels.shape[-1]), (*format.size, format.channels)
    if format.channels == 1 and pixels.shape[-1] == 3 and (pixels == pixels[..., :1]).all():
        pixels, found = pixels[..., :1], (*found[:2], 1)  # grey saved as colour
    if found != wanted:
        raise Undecodable(
            f"the raster {name_of(value)} is {_shape(found)}; expected {_shape(wanted)}, as the others are"
        )
    if pixels.dtype != np.dtype(format.dtype):
        raise Undecodable(f"the raster {name_of(value)} holds {pixels.dtype} values; expected {format.dtype}")
    return pixels


def decode_labels(value: RasterValue, target: Target, size: tuple[int, int]) -> np.ndarray:
    """uint8 [H, W]: class indices, IGNORE where there is no class.

    Raises:
        Undecodable: unreadable, of another size than the rasters, or a value that stands for no class.
    """
    pixels = _one_channel(_pixels(value), value)
    if pixels.shape != size:
        raise Undecodable(
            f"the label map {name_of(value)} is {_shape(pixels.shape)}; expected {_shape(size)}, as the rasters are"
        )
    pairs = target.label_values or (*((c, c) for c in range(target.width)), (IGNORE, IGNORE))
    table = np.full(65536, -1, np.int16)
    for raw, index in pairs:
        table[raw] = index
    values = pixels.astype(np.int64)
    indices = np.where((values >= 0) & (values < 65536), table[values.clip(0, 65535)], -1)
    if (indices < 0).any():
        row, column = np.argwhere(indices < 0)[0]
        known = sorted(raw for raw, index in pairs if index != IGNORE)
        ignored = ", ".join(str(raw) for raw, index in sorted(pairs) if index == IGNORE)
        raise Undecodable(
            f"the label map {name_of(value)} holds the value {values[row, column]} (row {row}, column {column}), which "
            f"stands for no class; expected {known[0]} to {known[-1]}"
            + (f", or {ignored} (no class)" if ignored else "")
        )
    return indices.astype(np.uint8)


def _one_channel(pixels: np.ndarray, value: RasterValue) -> np.ndarray:
    """[H, W] of a label map, grey saved as colour too. Raises Undecodable where its channels differ."""
    if pixels.ndim == 3 and pixels.shape[-1] in (3, 4) and (pixels[..., :3] == pixels[..., :1]).all():
        pixels = pixels[..., 0]
    if pixels.ndim != 2:
        raise Undecodable(f"the label map {name_of(value)} has {pixels.shape[-1]} channels; expected one")
    return pixels


def raster_format(value: RasterValue) -> RasterFormat:
    """How files like this one are read: its size, channels and depth; colour as ImageNet's networks want it, all else
    from 0 to 1 (methods.md §A.6, §A.7).

    Raises:
        Undecodable: the file cannot be read.
    """
    pixels = _pixels(value)
    channels = 1 if pixels.ndim == 2 or pixels.shape[-1] <= 2 else 3
    if pixels.dtype not in (np.uint8, np.uint16):
        raise Undecodable(f"the raster {name_of(value)} holds {pixels.dtype} values; expected uint8 or uint16")
    size, dtype = (pixels.shape[0], pixels.shape[1]), "uint16" if pixels.dtype == np.uint16 else "uint8"
    if channels == 3 and dtype == "uint8":
        return RasterFormat(size, 3, "uint8", IMAGENET_MEAN, IMAGENET_STD)
    top = 65535.0 if dtype == "uint16" else 255.0
    return RasterFormat(size, channels, dtype, (0.0,) * channels, (top,) * channels)  # type: ignore[arg-type]


def window_of(path: Path, size: tuple[int, int], format: RasterFormat | None = None) -> np.ndarray:
    """The whole raster of a file that windows are cut from: [H, W, C]; without a format a label map's [H, W].

    Raises:
        UserError: absent, unreadable, or of another size, channel count or depth: once, not for every window.
    """
    try:
        pixels = _whole(path, *_stamp(path))
        if pixels.shape[:2] != size:
            raise UserError("the raster is of another size than the others", file=path, found=_shape(pixels.shape[:2]),
                            expected=_shape(size))  # fmt: skip
        return _one_channel(pixels, path) if format is None else _fitting(pixels, path, replace(format, size=size))
    except Undecodable as problem:
        raise UserError(str(problem), file=path) from None


def _pixels(value: RasterValue) -> np.ndarray:
    if not isinstance(value, Window):
        return _decode(value)
    whole = _whole(value.path, *_stamp(value.path))
    part = whole[value.top : value.top + value.height, value.left : value.left + value.width]
    if value.top < 0 or value.left < 0 or part.shape[:2] != (value.height, value.width):
        raise Undecodable(f"the window {value} reaches beyond the raster's {_shape(whole.shape[:2])}")
    return part


@lru_cache(maxsize=8)
def _whole(path: Path, size: int, changed: int) -> np.ndarray:
    """A large raster, decoded once for all its windows; `size` and `changed` tell one file from its successor."""
    return _decode(path)


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        raise Undecodable(f"the file {path} does not exist") from None
    return found.st_size, found.st_mtime_ns


def _decode(value: str | Path | bytes) -> np.ndarray:
    with reading("raster", value), opened(value) as file, Image.open(file) as picture:
        if picture.mode == "P":
            # A palette's indices are the labels of most label maps; its colours are only for people.
            return np.asarray(picture)
        if picture.mode == "1":
            return np.asarray(picture, np.uint8)
        if picture.mode not in _MODES:
            raise Undecodable(f"the raster {name_of(value)} is a picture of mode {picture.mode}; expected grey or RGB")
        pixels = np.asarray(picture)
    if pixels.dtype == np.int32 and pixels.size and pixels.min() >= 0 and pixels.max() <= 65535:
        return pixels.astype(np.uint16)  # some versions of Pillow open 16-bit greys as 32-bit
    return pixels


def _shape(shape: tuple[int, ...]) -> str:
    text = " x ".join(map(str, shape[:2]))
    return text + (f" with {shape[2]} channel{'s' if shape[2] > 1 else ''}" if len(shape) > 2 else "")
