"""Pixels of raster files, as the files have them: PNG and JPEG, TIFF of any number of channels, and .npy arrays.

Pillow reads 16-bit colour as 8 bits and leaves out the channels of a TIFF that it does not know, without a word. Here
16-bit colour is read by torchvision, and TIFF by tifffile (`mmsweep[tiff]`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from mmsweep.data.files import Segment, Undecodable, load_array, name_of, opened, reading
from mmsweep.errors import UserError


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


@dataclass(frozen=True)
class Stack:
    """One raster whose channels stand in several files: those of the first part, then those of the next, and so on."""

    parts: tuple[str | Path | bytes | Window, ...]

    def __str__(self) -> str:
        return " + ".join(name_of(part) for part in self.parts)


RasterValue = str | Path | bytes | Window | Stack

MOST_PIXELS = 2**26
"""A larger raster is refused: 256 MiB as RGB."""

_MODES = ("L", "LA", "RGB", "RGBA", "I", "F", "I;16", "I;16B", "I;16L", "I;16N")
"""Pillow's modes of grey and RGB; the four channels of CMYK, for example, are no colour and transparency."""

_PNG, _NPY = b"\x89PNG\r\n\x1a\n", b"\x93NUMPY"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def files_of(value: Any) -> tuple[Path, ...]:
    """The files that a raw value is read from; none where it is held in memory."""
    if isinstance(value, Stack):
        return tuple(file for part in value.parts for file in files_of(part))
    value = value.path if isinstance(value, Window | Segment) else value
    return (Path(value),) if isinstance(value, str | Path) else ()


def read_pixels(value: RasterValue, labels: bool = False) -> np.ndarray:
    """[H, W] or [H, W, C] in the file's own type, without transparency.

    Args:
        labels: a picture with a palette gives its indices, not its colours: label maps are saved so.

    Raises:
        Undecodable: unreadable, or a kind of picture whose values have no plain meaning.
        UserError: a TIFF file, where tifffile is not installed.
    """
    if isinstance(value, Stack):
        return _stacked(value, labels)
    if not isinstance(value, Window):
        return _decode(value, labels)
    whole = whole_raster(value.path, labels)
    part = whole[value.top : value.top + value.height, value.left : value.left + value.width]
    if value.top < 0 or value.left < 0 or part.shape[:2] != (value.height, value.width):
        raise Undecodable(f"the window {value} reaches beyond the raster's {shape_text(whole.shape[:2])}")
    return part


def whole_raster(path: Path, labels: bool = False) -> np.ndarray:
    """The raster that windows are cut from, decoded once for all of them. Raises as `read_pixels`."""
    try:
        found = path.stat()
    except OSError:
        raise Undecodable(f"the file {path} does not exist") from None
    return _whole(path, found.st_size, found.st_mtime_ns, labels)


def shape_text(shape: tuple[int, ...]) -> str:
    """`480 x 640 with 3 channels`."""
    text = " x ".join(map(str, shape[:2]))
    return text + (f" with {shape[2]} channel{'s' if shape[2] > 1 else ''}" if len(shape) > 2 else "")


@lru_cache(maxsize=8)
def _whole(path: Path, size: int, changed: int, labels: bool) -> np.ndarray:
    """`size` and `changed` tell one file from its successor."""
    return _decode(path, labels)


def _stacked(value: Stack, labels: bool) -> np.ndarray:
    parts = [np.atleast_3d(read_pixels(part, labels)) for part in value.parts]
    if len({part.shape[:2] for part in parts}) > 1:
        raise Undecodable(
            f"the files of one raster are of different sizes: {value}; found "
            + ", ".join(shape_text(part.shape[:2]) for part in parts)
        )
    types = {part.dtype for part in parts}
    if len(types) > 1 and any(dtype.kind != "f" for dtype in types):
        raise Undecodable(
            f"the files of one raster hold different types of numbers: {value}; found "
            + ", ".join(str(part.dtype) for part in parts)
        )
    return np.concatenate(parts, 2)


def _decode(value: str | Path | bytes, labels: bool) -> np.ndarray:
    with reading("label map" if labels else "raster", value), opened(value) as file:
        head = file.read(26)
        file.seek(0)
        if head.startswith(_NPY):
            return _array(value)
        if head.startswith(_TIFF):
            return _tiff(file, value, labels)
        if head.startswith(_PNG) and len(head) == 26:
            bits, colour = head[24], head[25]
            if bits == 16 and colour:
                return _deep_png(file, value)
            if bits in (2, 4) and not colour:  # Pillow spreads such greys over 0 to 255
                return _picture(file, value, labels) // (255 // (2**bits - 1))
        return _picture(file, value, labels)


def _picture(file: IO[bytes], value: Any, labels: bool) -> np.ndarray:
    with Image.open(file) as picture:
        _refuse_size((picture.height, picture.width), value)
        if picture.mode == "P":
            return np.asarray(picture if labels else picture.convert("RGB"))
        if picture.mode == "1":
            return np.asarray(picture, np.uint8)
        if picture.mode not in _MODES:
            raise Undecodable(f"the raster {name_of(value)} is a picture of mode {picture.mode}; expected grey or RGB")
        pixels = np.asarray(picture)
    pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    if pixels.dtype == np.int32 and pixels.size and pixels.min() >= 0 and pixels.max() <= 65535:
        pixels = pixels.astype(np.uint16)  # some versions of Pillow open 16-bit greys as 32-bit
    return _opaque(pixels)


def _deep_png(file: IO[bytes], value: Any) -> np.ndarray:
    """16-bit colour, or grey with transparency."""
    import torch
    from torchvision.io import ImageReadMode, decode_png

    with Image.open(file) as picture:  # reads the header only
        _refuse_size((picture.height, picture.width), value)
    file.seek(0)
    encoded = torch.frombuffer(bytearray(file.read()), dtype=torch.uint8)
    pixels: np.ndarray = decode_png(encoded, ImageReadMode.UNCHANGED).numpy().transpose(1, 2, 0)
    if pixels.dtype != np.uint16:
        raise Undecodable(f"the raster {name_of(value)} has 16 bits a channel, which this torchvision does not read")
    return _opaque(pixels)


def _opaque(pixels: np.ndarray) -> np.ndarray:
    """Without the transparency of a picture, which says nothing of the scene."""
    if pixels.ndim == 3 and pixels.shape[2] in (2, 4):
        pixels = pixels[..., :-1]
    return pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels


def _array(value: str | Path | bytes) -> np.ndarray:
    """Of .npy: [H, W], [H, W, C] or [C, H, W]. Equal neighbours are H and W; otherwise the shorter of first and
    last axis is C."""
    array = load_array(value, "raster")
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise Undecodable(f"the raster {name_of(value)} is not [H, W], [H, W, C] or [C, H, W]; found {array.shape}")
    if array.ndim == 3:
        first, middle, last = array.shape
        if first < last if (first == middle) == (middle == last) else middle == last:
            array = array.transpose(1, 2, 0)
    _refuse_size(array.shape[:2], value)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _tiff(file: IO[bytes], value: Any, labels: bool) -> np.ndarray:
    """Every channel of the first raster in the file, one that is marked as transparency included."""
    try:
        import tifffile
    except ImportError:
        raise UserError(
            "TIFF rasters need the package tifffile", file=name_of(value), hint="pip install 'mmsweep[tiff]'"
        ) from None
    with tifffile.TiffFile(file) as tiff:
        series = tiff.series[0]
        axes = "".join(axis for axis, length in zip(series.axes, series.shape, strict=True) if length > 1)
        others = axes.replace("Y", "").replace("X", "")
        if len(others) > 1 or not {"Y", "X"} <= set(series.axes):
            raise Undecodable(
                f"the raster {name_of(value)} has the axes {series.axes}; expected rows (Y), columns (X) and at most "
                "one axis of channels"
            )
        shape = dict(zip(series.axes, series.shape, strict=True))
        _refuse_size((shape["Y"], shape["X"]), value)
        pixels = series.asarray()
        channels = [axis for axis in series.axes if axis not in "YX"]
        # Axes of length 1 are kept until all are in order.
        pixels = pixels.transpose([series.axes.index(axis) for axis in ("Y", "X", *channels)])
        pixels = pixels.reshape(*pixels.shape[:2], -1)
        empty = None if labels else tiff.pages[0].tags.get("GDAL_NODATA")  # type: ignore[union-attr]
        if empty is not None and pixels.dtype.kind in "if" and (gaps := (pixels == float(str(empty.value))).sum()):
            raise Undecodable(
                f"the raster {name_of(value)} has no data in {gaps:,} places (its file says that {empty.value} means "
                "no data); fill them first"
            )
    return pixels[..., 0] if pixels.shape[2] == 1 else pixels


def _refuse_size(size: tuple[int, ...], value: Any) -> None:
    if size[0] * size[1] > MOST_PIXELS:
        raise Undecodable(
            f"the raster {name_of(value)} is too large to be decoded: {size[0]:,} x {size[1]:,} pixels; expected at "
            f"most {MOST_PIXELS:,} pixels in all"
        )
