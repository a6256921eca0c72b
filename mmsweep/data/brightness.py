"""Any picture becomes 8-bit RGB, its values scaled by the range that its file states.

Pictures of 8 bits a channel need no more than Pillow. Deeper ones state their range by their type (16-bit integers:
0 to 65535; floats: 0 to 1) or by TIFF's tags BitsPerSample and MaxSampleValue. Values that do not fit what is stated
are refused: a picture of 12 bits in a 16-bit file, or floats up to 4095, would turn black or white without a word.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from mmsweep.data.files import Undecodable, name_of

_BITS, _PHOTOMETRIC, _MOST, _MOST_SIGNED = 258, 262, 281, 341
"""TIFF's tags BitsPerSample, PhotometricInterpretation, MaxSampleValue and SMaxSampleValue."""

_DARK = 4096
"""A 16-bit picture without a value as large as this holds 12 bits or fewer, or is all but black."""


def stated_top(opened: Image.Image) -> float | None:
    """The value that stands for white where a file states one; asked before the picture is loaded or turned."""
    tags = getattr(opened, "tag_v2", {})
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


def is_deep_colour(opened: Image.Image) -> bool:
    """Whether a colour picture has 16 bits a channel, of which Pillow keeps the upper eight; asked before loading."""
    return opened.mode in ("RGB", "RGBA", "LA", "CMYK") and any(";16" in str(t) for t in getattr(opened, "tile", ()))


def to_rgb(picture: Image.Image, top: float | None, deep: bool, value: object) -> Image.Image:
    """8-bit RGB, transparency on white.

    Args:
        top: `stated_top` of the file.
        deep: `is_deep_colour` of the file.
        value: the file, for messages.

    Raises:
        Undecodable: values outside the range that the file states, or of an unknown range.
    """
    if picture.mode in ("I;16", "I;16B", "I;16L", "I;16N", "I", "F"):
        return Image.fromarray(_grey(picture, top, value)).convert("RGB")
    if picture.has_transparency_data:
        # Clip art and icons are drawn for a page: what shows through is white, not the black that convert("RGB") gives.
        layers = picture.convert("RGBA")
        page = Image.new("RGBA", layers.size, (255, 255, 255, 255))
        return Image.alpha_composite(page, layers).convert("RGB")
    picture = picture if picture.mode == "RGB" else picture.convert("RGB")
    if deep and max(high for _, high in picture.getextrema()) < _DARK // 256:  # type: ignore[misc, union-attr]
        raise Undecodable(
            f"the picture {name_of(value)} has 16 bits a channel, but no value of {_DARK} or more; expected values "
            "up to 65535 (it may hold 12 bits or fewer)"
        )
    return picture


def _grey(picture: Image.Image, top: float | None, value: object) -> np.ndarray:
    """uint8 [H, W] of a deep grey picture."""
    values = np.asarray(picture)
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
    return np.rint(values * (255 / top)).astype(np.uint8)
