"""Pictures: any file that Pillow reads, and SVG drawings. They are stored as bytes at the size that the network sees.

Every function raises `Undecodable`, with a reason that users can act on, when a value cannot be read; preparation turns
it into a bad row with its file and line.
"""

from __future__ import annotations

import io
import math
import re
import threading
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, ClassVar, Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from pydantic import Field
from torch import Tensor

from mmsweep.components import Section, register
from mmsweep.data.augmentation import Augmentation
from mmsweep.data.brightness import stated, to_rgb
from mmsweep.data.files import Undecodable, first_line, name_of, opened, reading
from mmsweep.data.kinds.kind import Format, Layout, Parts, Rows, Varied, per_channel
from mmsweep.errors import UserError
from mmsweep.transfer import Resident

Resample = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]

MOST_PIXELS = 2**26
"""Pixels of the largest picture that is decoded, 256 MiB as RGB. Larger JPEGs are read at a fraction of their size."""

_LARGE_PIXELS = 2**24
_LARGE = threading.Lock()
"""Held while a picture of more than `_LARGE_PIXELS` is decoded, so that only one thread decodes one at a time."""

_MOST_SVG_BYTES = 2**26

# Pictures of 89 to 179 million pixels are refused or reduced here; Pillow refuses what is larger by itself.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


@register("image")
@dataclass(frozen=True)
class ImageFormat(Format):
    """Pictures: column uint8 [N,3,size,size]; batch float32 [B,3,size,size], (x/255 - mean) / std.

    Args:
        size: side of the square that the network sees.
        mean, std: per channel, in 0..1.
        resize: shorter side before the centre crop; None means `size` (no margin).
        fit: what happens to a picture that is not square: `crop` shows its middle, `pad` shows all of it on white.
        resample: Pillow's filter for resizing.
        whole: side of the squares in a second column, which holds the whole training pictures, stretched, for random
            crops. None keeps no such column.
    """

    size: int
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    resize: int | None = None
    fit: Literal["crop", "pad"] = "crop"
    resample: Resample = "bicubic"
    whole: int | None = None

    kind: ClassVar[str] = "image"
    word: ClassVar[str] = "image"
    size_key: ClassVar[str] = "data.image.size"
    has_black: ClassVar[bool] = True

    class Reading(Section):
        """How pictures are read."""

        size: int | None = Field(
            None, ge=8, description="Pixels a side; null takes the size that the encoder was trained with."
        )
        fit: Literal["crop", "pad"] = Field(
            "crop",
            description="What happens to a picture that is not square. crop shows its middle, pad all of it on white.",
        )

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UserError("the image size must be positive", key="size", found=self.size)
        if self.resize is not None and self.resize < self.size:
            raise UserError(
                "a picture cannot be cropped to more than it was resized to",
                key="resize",
                found=self.resize,
                expected=f"at least size = {self.size}",
            )
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise UserError("mean and std must have three entries, std above 0", found=(self.mean, self.std))

    @property
    def resized_side(self) -> int:
        return self.resize or self.size

    def key(self) -> dict[str, Any]:
        # mean and std act on the device, after the column: pictures prepared for one encoder serve another.
        key: dict[str, Any] = {"kind": self.kind, "stored": self.size, "resize": self.resized_side}
        usual = {"fit": "crop", "resample": "bicubic", "whole": None}
        return key | {name: getattr(self, name) for name in usual if getattr(self, name) != usual[name]}

    def columns(self) -> Layout:
        return [("", np.uint8, (3, self.size, self.size))]

    def varied_columns(self) -> Layout:
        """`.varied` holds whole pictures, `.aspect` their log(width / height)."""
        if self.whole is None:
            return []
        return [(".varied", np.uint8, (3, self.whole, self.whole)), (".aspect", np.float32, ())]

    def kept(self, augmentation: Augmentation) -> ImageFormat:
        return replace(self, whole=None if augmentation.crop is None else math.ceil(self.size * math.sqrt(2)))

    def decoder(self, varied: bool) -> Callable[[Any], Parts]:
        def decode(value: Any) -> Parts:
            parts = {"": decode_image(value, self)}
            if varied and self.whole is not None:
                parts[".varied"], aspect = whole_square(open_picture(value, self.whole), self)
                parts[".aspect"] = np.array(aspect)
            return parts

        return decode

    def read(self, rows: Rows) -> dict[str, Tensor]:
        if rows.varied is None or ".varied" not in rows.columns or not rows.present_B.any():
            return super().read(rows)
        columns = {"values": ".varied", "aspect": ".aspect"}
        return {part: torch.from_numpy(rows.columns[name][rows.index_B]) for part, name in columns.items()}

    def constants(self) -> tuple[Resident, ...]:
        """(x / 255 - mean) / std as x * factor + shift."""
        std = per_channel(self.std)
        return Resident(1 / (255 * std)), Resident(-per_channel(self.mean) / std)

    def shown(self, parts: dict[str, Tensor], varied: Varied | None, constants: tuple[Resident, ...]) -> Tensor:
        values = parts["values"]
        if varied is not None and varied.augmentation.changes_pictures:
            values = varied.augmentation.pictures(values, varied.draws, self.size, parts.get("aspect"))
        factor, shift = (constant.on(values.device) for constant in constants)
        # In place on the fresh float copy: ten times as fast on a CPU as mixed-type or out-of-place arithmetic.
        return values.float().mul_(factor).add_(shift)

    def level(self, values: Sequence[float]) -> Tensor:
        levels = [*values] * 3 if len(values) == 1 else values
        return per_channel([(v / 255 - m) / s for v, m, s in zip(levels, self.mean, self.std, strict=True)])


def decode_image(value: str | Path | bytes, format: ImageFormat) -> np.ndarray:
    """uint8 [3, size, size]: turned by EXIF, transparency on white, shorter side resized, centre crop.

    SVG drawings are rendered first, by resvg (`mmsweep[svg]`).
    """
    return fit_square(open_picture(value, format.resized_side), format)


def open_picture(value: str | Path | bytes, side: int) -> Image.Image:
    """An RGB picture, turned by EXIF, transparency on white; a drawing's shorter side has at least `side` pixels.

    Of a large picture it is a reduced copy, its shorter side at least twice `side`.
    """
    with reading("picture", value), opened(value) as file:
        if _is_svg(file):
            with io.BytesIO(_rendered(file, value, side)) as rendered:
                return _read_picture(rendered, value, 2 * side)
        return _read_picture(file, value, 2 * side)


def _read_picture(file: IO[bytes], value: Any, wanted: int) -> Image.Image:
    with Image.open(file) as picture:
        width, height = picture.size
        if width * height > MOST_PIXELS and not picture.info.get("progressive"):
            picture.draft(None, (wanted, wanted))  # JPEG alone; a progressive one is held whole in any case
        check_size(picture.size, "picture", value)
        with _LARGE if width * height > _LARGE_PIXELS else nullcontext():
            scale = stated(picture)
            ImageOps.exif_transpose(picture, in_place=True)
            return to_rgb(_reduced(picture, wanted), scale, value)


def check_size(size: tuple[int, int], what: str, value: Any) -> None:
    """Raises Undecodable where decoding would take too much memory."""
    if size[0] * size[1] > MOST_PIXELS:
        raise Undecodable(
            f"the {what} {name_of(value)} is too large to be decoded: {size[0]:,} x {size[1]:,} pixels; expected "
            f"at most {MOST_PIXELS:,} pixels in all"
        )


def _reduced(picture: Image.Image, wanted: int) -> Image.Image:
    """A smaller copy of a large picture, its shorter side at least `wanted`: conversions then cost little memory."""
    factor = min(picture.size) // wanted
    if picture.size[0] * picture.size[1] <= _LARGE_PIXELS or factor < 2:
        return picture
    if picture.mode in ("1", "P"):  # indices have no mean
        picture = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    return picture if picture.mode.startswith("I;16") else picture.reduce(factor)


def fit_square(picture: Image.Image, format: ImageFormat) -> np.ndarray:
    """uint8 [3, size, size] of an RGB picture: what evaluation shows."""
    side, picture = format.resized_side, _padded(picture, format)
    width, height = picture.size
    short = min(width, height)
    if short != side:
        # The longer side is truncated as torchvision's Resize does: columns equal the encoders' own processing.
        resized = side * width // short if width > height else side, side * height // short if height > width else side
        if resized[0] * resized[1] > MOST_PIXELS:
            raise Undecodable(
                f"a picture of {width:,} x {height:,} pixels is too long to be cropped to its middle; expected at most "
                f"{MOST_PIXELS:,} pixels once its shorter side is {side}"
            )
        picture = picture.resize(resized, Image.Resampling[format.resample.upper()])
    left, top = (picture.size[0] - format.size) // 2, (picture.size[1] - format.size) // 2
    return _channels_first(picture.crop((left, top, left + format.size, top + format.size)))


def whole_square(picture: Image.Image, format: ImageFormat) -> tuple[np.ndarray, float]:
    """uint8 [3, whole, whole] of an RGB picture, stretched; and log(width / height), which the stretching hides."""
    assert format.whole is not None
    picture = _padded(picture, format)
    stretched = picture.resize((format.whole, format.whole), Image.Resampling[format.resample.upper()])
    return _channels_first(stretched), math.log(picture.size[0] / picture.size[1])


def _padded(picture: Image.Image, format: ImageFormat) -> Image.Image:
    if format.fit != "pad" or picture.size[0] == picture.size[1]:
        return picture
    longer, wanted = max(picture.size), 2 * max(format.resized_side, format.whole or 0)
    if longer**2 > _LARGE_PIXELS and longer // wanted > 1:
        picture = picture.reduce(longer // wanted)  # the square around a long picture may be vast
    return ImageOps.pad(picture, (max(picture.size),) * 2, color=(255, 255, 255))


def _channels_first(picture: Image.Image) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(picture, np.uint8).transpose(2, 0, 1))


_SVG_TAG = re.compile(rb"<svg\b[^>]*>")
_SVG_UNITS = {"": 1.0, "px": 1.0, "pt": 96 / 72, "pc": 16.0, "mm": 96 / 25.4, "cm": 96 / 2.54, "in": 96.0}


def _is_svg(file: IO[bytes]) -> bool:
    head = file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")
    file.seek(0)
    if not head.startswith(b"<"):
        return False
    found = b"<svg" in file.read(_MOST_SVG_BYTES)
    file.seek(0)
    return found


def _rendered(file: IO[bytes], value: Any, side: int) -> bytes:
    """A drawing as PNG, its shorter side at least `side` pixels where it has a size."""
    try:
        import resvg_py
    except ImportError:
        raise UserError(
            "SVG drawings need the package resvg-py", file=name_of(value), hint="pip install 'mmsweep[svg]'"
        ) from None
    data = file.read(_MOST_SVG_BYTES + 1)
    if len(data) > _MOST_SVG_BYTES:
        raise Undecodable(f"the drawing {name_of(value)} is larger than {_MOST_SVG_BYTES:,} bytes")
    check_size(_svg_size(data), "drawing", value)
    try:
        # Fonts differ from machine to machine: only outlined letters are drawn. 96 dots an inch is CSS's.
        options: dict[str, Any] = {"svg_string": data.decode("utf-8-sig"), "skip_system_fonts": True, "dpi": 96.0}
        png = bytes(resvg_py.svg_to_bytes(**options))
        with Image.open(io.BytesIO(png)) as own:
            size, short = own.size, min(own.size)
        if short >= side:
            return png
        check_size((side * size[0] // short, side * size[1] // short), "drawing", value)
        return bytes(resvg_py.svg_to_bytes(**options, zoom=side / short))
    except Exception as error:
        if isinstance(error, Undecodable):
            raise
        raise Undecodable(f"the drawing {name_of(value)} cannot be rendered ({first_line(error)})") from None
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # Rust's, which is no Exception
            raise
        raise Undecodable(f"the drawing {name_of(value)} cannot be rendered ({first_line(error)})") from None


def _svg_size(data: bytes) -> tuple[int, int]:
    """(width, height) in pixels as the root element states them; zeros where it does not."""
    root = _SVG_TAG.search(data)
    tag = root.group().decode("utf-8", "replace") if root else ""
    sides = [
        re.search(rf"""\s{name}\s*=\s*["']\s*([0-9.eE+]+)\s*([a-z]*)\s*["']""", tag) for name in ("width", "height")
    ]
    try:
        if all(side and side[2] in _SVG_UNITS for side in sides):
            return tuple(int(float(side[1]) * _SVG_UNITS[side[2]]) for side in sides)  # type: ignore[index, return-value]
        box = re.search(r"""\sviewBox\s*=\s*["']([^"']*)["']""", tag)
        _, _, width, height = (float(part) for part in re.split(r"[\s,]+", box[1].strip())) if box else (0.0,) * 4
        return int(width), int(height)
    except (ValueError, OverflowError):
        return 0, 0
