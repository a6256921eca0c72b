"""Any picture becomes 8-bit RGB, its values scaled by the range that its file states.

Pictures of 8 bits a channel need no more than Pillow. Deeper ones state their range by their type (16-bit integers:
0 to 65535; floats: 0 to 1) or by TIFF's tags BitsPerSample and MaxSampleValue. Values that do not fit what is stated
are refused: a picture of 12 bits in a 16-bit file, or floats up to 4095, would turn black or white without a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from mmsweep.data.files import Undecodable, name_of

_BITS, _PHOTOMETRIC, _MOST, _MOST_SIGNED = 258, 262, 281, 341
"""TIFF's tags BitsPerSample, PhotometricInterpretation, MaxSampleValue and SMaxSampleValue."""

_DEEP_GREY = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")

_DARK = 4096
"""A 16-bit picture without a value as large as this holds 12 bits or fewer, or is all but black."""


class Stated(NamedTuple):
    """What a file says of its values, asked before the picture is loaded or turned.

    Args:
        top: the value that stands for white; None where the file does not say.
        negative: 0 stands for white, and Pillow does not turn it round (it does for 8 bits or fewer).
        deep: a colour picture, or grey with transparency, of 16 bits a channel, of which Pillow keeps the upper eight.
    """

    top: float | None
    negative: bool
    deep: bool


def stated(opened: Image.Image) -> Stated:
    """What an opened file says of its values."""
    grey, tags = opened.mode in _DEEP_GREY, getattr(opened, "tag_v2", {})
    deep = not grey and any(";16" in str(tile) for tile in getattr(opened, "tile", ()))
    return Stated(_top(opened, tags), grey and tags.get(_PHOTOMETRIC) == 0, deep)


def _top(opened: Image.Image, tags: Mapping[int, Any]) -> float | None:
    for tag in (_MOST_SIGNED, _MOST):
        most = tags.get(tag)
        most = most[0] if isinstance(most, tuple) else most
        if isinstance(most, int | float) and most > 0:
            return float(most)
    if opened.mode == "I;16" and (bits := tags.get(_BITS, (16,))[0]) < 16:
        return 2.0**bits - 1
    if opened.mode == "I" and opened.format in ("PNG", "PPM"):
        return 65535.0  # Pillow scales the latter itself
    return None


def to_rgb(picture: Image.Image, scale: Stated, value: object) -> Image.Image:
    """8-bit RGB, transparency on white.

    Args:
        scale: `stated` of the file.
        value: the file, for messages.

    Raises:
        Undecodable: values outside the range that the file states, or of an unknown range.
    """
    if picture.mode in _DEEP_GREY:
        return Image.fromarray(_grey(picture, scale, value)).convert("RGB")
    if scale.deep:
        _check_deep(picture, scale.top, value)
    if picture.has_transparency_data:
        # Clip art and icons are drawn for a page: what shows through is white, not the black that convert("RGB") gives.
        layers = picture.convert("RGBA")
        page = Image.new("RGBA", layers.size, (255, 255, 255, 255))
        return Image.alpha_composite(page, layers).convert("RGB")
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _check_deep(picture: Image.Image, top: float | None, value: object) -> None:
    """Raises Undecodable where the upper eight bits of 16 are not what the picture shows."""
    named = f"the picture {name_of(value)} has 16 bits a channel"
    if top is not None and top < 65535:
        raise Undecodable(f"{named}, and its file states {top:g} as white; expected values up to 65535")
    colours = [band for band in picture.getbands() if band != "A"]
    if 0 < max(int(np.asarray(picture.getchannel(band)).max()) for band in colours) < _DARK // 256:
        raise Undecodable(
            f"{named}, but no value of {_DARK} or more; expected values up to 65535 (it may hold 12 bits or fewer)"
        )


def _grey(picture: Image.Image, scale: Stated, value: object) -> np.ndarray:
    """uint8 [H, W] of a deep grey picture."""
    values, top = np.asarray(picture), scale.top
    low, high = float(values.min()), float(values.max())
    kind = "float" if picture.mode == "F" else "16-bit" if picture.mode.startswith("I;16") else "32-bit"
    found = f"the picture {name_of(value)} holds {kind} values from {low:g} to {high:g}"
    if not np.isfinite(values).all():
        raise Undecodable(f"the picture {name_of(value)} holds values that are not finite")
    if top is None and kind == "32-bit":
        raise Undecodable(f"{found}, and its file does not state their range; expected 8 or 16 bits, or floats 0 to 1")
    if top is None and kind == "16-bit" and 0 < high < _DARK:
        raise Undecodable(
            f"{found}; expected values up to 65535, or a TIFF whose tag BitsPerSample or MaxSampleValue states it"
        )
    top = top or {"float": 1.0, "16-bit": 65535.0}[kind]
    if low < 0 or high > top:
        raise Undecodable(f"{found}; expected 0 to {top:g}")
    shares = values * (255 / top)
    return np.rint(255 - shares if scale.negative else shares).astype(np.uint8)
