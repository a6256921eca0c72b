"""Rasters of a scene (colour, height, near infrared …) and its label map, which lie pixel on pixel.

They are read as they are: a file of another size, channel count or depth is refused with its name. Only where the study
names a size (`data.raster.size`) are rasters resized bilinearly and label maps to the nearest pixel. A value is a path,
the bytes of a file, a `Window` of a larger raster, or a `Stack` of files that hold a raster's channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from mmsweep.components import Section, misfit, register
from mmsweep.data.files import Undecodable, name_of
from mmsweep.data.kinds.kind import Column, Format, Layout, Parts, Rows, Varied, per_channel
from mmsweep.data.raster_files import RasterValue, read_pixels, shape_text, whole_raster
from mmsweep.errors import UserError
from mmsweep.tasks.task import IGNORE, Target
from mmsweep.transfer import Resident

IMAGENET_MEAN = tuple(255 * level for level in (0.485, 0.456, 0.406))
IMAGENET_STD = tuple(255 * level for level in (0.229, 0.224, 0.225))

_STORED = ("uint8", "uint16", "int16", "float32")


@register("raster")
@dataclass(frozen=True)
class RasterFormat(Format):
    """Rasters of a scene that lie pixel on pixel: column [N,C,H,W] in the file's own type; batch float32 [B,C,H,W].

    The batch is (x - mean) / std, in the file's own units.

    Args:
        size: (H, W).
        channels: C of the column and the batch.
        dtype: of the column. float32 also takes integers and floats of other widths; the others take their own type.
        mean, std: per channel, in the file's units; None: those of the training rows.
        bands: which channels of a file are read, counted from 0, in this order; None: all.
        resize: files of another size are resized; otherwise they are refused.
        repeat: a file of one channel fills all channels, as grey shown in colour.
        full_scale: 8-bit files stand for the same levels as 16-bit ones: 255 becomes 65535.
    """

    size: tuple[int, int]
    channels: int = 3
    dtype: Literal["uint8", "uint16", "int16", "float32"] = "uint8"
    mean: tuple[float, ...] | None = (0.0, 0.0, 0.0)
    std: tuple[float, ...] | None = (255.0, 255.0, 255.0)
    bands: tuple[int, ...] | None = None
    resize: bool = False
    repeat: bool = False
    full_scale: bool = False

    kind: ClassVar[str] = "raster"
    word: ClassVar[str] = "raster"
    axes: ClassVar[tuple[str, ...]] = ("channel", "row", "column")
    size_key: ClassVar[str] = "data.raster.size"
    has_black: ClassVar[bool] = True
    learned: ClassVar[bool] = True

    class Reading(Section):
        """How rasters and label maps are read."""

        size: tuple[int, int] | None = Field(
            None,
            description="Height and width in pixels that rasters (bilinearly) and label maps (to the nearest pixel) "
            "are resized to. null reads them as they are; all of them must then have one size",
        )

        @model_validator(mode="after")
        def _size_is_positive(self) -> RasterFormat.Reading:
            if self.size is not None and min(self.size) < 1:
                raise misfit("a raster has no such size", "a height and a width of at least 1", "size", self.size)
            return self

    class Options(Column):
        channels: list[int] | None = Field(
            None,
            min_length=1,
            description="Channels of the files that are read, counted from 0, in this order; null reads all of them.",
        )
        mean: list[float] | None = Field(
            None,
            description="Mean of each channel that is read, in the files' units, which is subtracted; null takes that "
            "of the training rows. mean and std are given together.",
        )
        std: list[float] | None = Field(
            None, description="Standard deviation of each channel that is read, by which it is divided; as mean."
        )

        @model_validator(mode="after")
        def _statistics_fit(self) -> RasterFormat.Options:
            if self.channels is not None and min(self.channels) < 0:
                raise misfit("channels count from 0", "0 or more", "channels", self.channels)
            if (self.mean is None) != (self.std is None):
                raise misfit("mean and std are given together", "both, or neither")
            if self.mean is not None and self.std is not None:
                counts = {len(self.mean), len(self.std), len(self.channels or self.mean)}
                if len(counts) > 1 or min(self.std) <= 0:
                    raise misfit("mean and std do not fit", "an entry for each channel, std above 0")
            return self

        def learned(self, rows: Sequence[Any]) -> RasterFormat:
            """The format of the first training file that can be read."""
            problem = None
            for value in rows:
                if value is not None:
                    try:
                        return raster_format(value, self.channels, self.mean, self.std)
                    except Undecodable as reason:
                        problem = problem or reason
            why = problem or "no training row has it"
            raise UserError(f"no training file says how the raster is read ({why})", key="column", found=self.column)

    @property
    def map_size(self) -> tuple[int, int]:
        return self.size

    @property
    def resizes_maps(self) -> bool:
        return self.resize

    def __post_init__(self) -> None:
        if self.channels < 1:
            raise UserError("a raster has at least one channel", key="channels", found=self.channels)
        if (self.mean is None) != (self.std is None):
            raise UserError("mean and std are known together", found=(self.mean, self.std))
        if self.std is not None and ({len(self.mean or ()), len(self.std)} != {self.channels} or min(self.std) <= 0):
            raise UserError(
                f"mean and std must have an entry for each of {self.channels} channels, std above 0",
                found=(self.mean, self.std),
            )

    def key(self) -> dict[str, Any]:
        key = {"kind": self.kind, "size": list(self.size), "channels": self.channels, "dtype": self.dtype}
        # Only where they say something: what was prepared before they existed keeps its name.
        if self.bands is not None:
            key["bands"] = list(self.bands)
        if self.mean is None:
            key["statistics"] = "training rows"
        return key | {name: True for name in ("resize", "repeat", "full_scale") if getattr(self, name)}

    def read_as(self, reading: Any) -> RasterFormat:
        return self if reading.size is None else replace(self, size=tuple(reading.size), resize=True)

    def columns(self) -> Layout:
        return [("", np.dtype(self.dtype), (self.channels, *self.size))]

    def decoder(self, varied: bool) -> Callable[[Any], Parts]:
        return lambda value: {"": decode_raster(value, self)}

    def measured(self, column: np.ndarray, present_N: np.ndarray) -> dict[str, Any]:
        """Mean and standard deviation of each channel; nothing where the format knows its own."""
        rows = np.flatnonzero(present_N)
        if self.mean is not None or not len(rows):
            return {}
        count = len(rows) * self.size[0] * self.size[1]
        mean_C = np.sum([column[row].sum((1, 2), dtype=np.float64) for row in rows], 0) / count
        squares = [((column[row] - mean_C[:, None, None]) ** 2).sum((1, 2)) for row in rows]
        return {"mean": mean_C.tolist(), "std": np.sqrt(np.sum(squares, 0) / count).tolist()}

    def fitted(self, statistics: Mapping[str, Any]) -> RasterFormat:
        if self.mean is not None:
            return self
        if "std" not in statistics:
            raise UserError(
                "no training row has this raster, so its mean and standard deviation are not known",
                expected="mean and std, or training rows that have it",
            )
        # A channel of one value has nothing to be divided by.
        return replace(self, mean=tuple(statistics["mean"]), std=tuple(std or 1.0 for std in statistics["std"]))

    def read(self, rows: Rows) -> dict[str, Tensor]:
        return {"values": torch.from_numpy(rows.columns[""][rows.index_B])}

    def constants(self) -> tuple[Resident, ...]:
        assert self.mean is not None and self.std is not None
        return Resident(per_channel(self.mean)), Resident(per_channel(self.std))

    def shown(self, parts: dict[str, Tensor], varied: Varied | None, constants: tuple[Resident, ...]) -> Tensor:
        values = parts["values"]
        mean, std = (constant.on(values.device) for constant in constants)
        # Cast on the device: float32 holds 16 bits exactly, and integers of 16 bits have few operations in torch.
        values = values.to(torch.float32).sub_(mean).div_(std)
        return values if varied is None else varied.augmentation.rasters(values, varied.draws)

    def level(self, values: Sequence[float]) -> Tensor:
        assert self.mean is not None and self.std is not None
        levels = [*values] * self.channels if len(values) == 1 else values
        return per_channel([(v - m) / s for v, m, s in zip(levels, self.mean, self.std, strict=True)])


def decode_raster(value: RasterValue, format: RasterFormat) -> np.ndarray:
    """[C, H, W] in the format's type.

    Raises:
        Undecodable: unreadable, or of another size, channel count or depth.
    """
    return np.ascontiguousarray(_fitting(read_pixels(value), value, format).transpose(2, 0, 1))


def _fitting(pixels: np.ndarray, value: RasterValue, format: RasterFormat) -> np.ndarray:
    """[H, W, C] as the format says. Raises Undecodable where the raster is another."""
    pixels = np.atleast_3d(pixels)
    if format.bands is not None:
        if max(format.bands) >= pixels.shape[2]:
            raise Undecodable(
                f"the raster {name_of(value)} is {shape_text(pixels.shape)}; expected channel {max(format.bands)} "
                "(counted from 0)"
            )
        pixels = pixels[..., list(format.bands)]
    elif format.channels == 1 and pixels.shape[2] == 3 and (pixels == pixels[..., :1]).all():
        pixels = pixels[..., :1]  # grey saved as colour
    if format.repeat and pixels.shape[2] == 1:
        pixels = np.repeat(pixels, format.channels, 2)
    size = pixels.shape[:2] if format.resize else format.size
    if pixels.shape != (*size, format.channels):
        found, wanted = shape_text(pixels.shape), shape_text((*size, format.channels))
        raise Undecodable(f"the raster {name_of(value)} is {found}; expected {wanted}, as the others are")
    if format.full_scale and (pixels.dtype, format.dtype) == (np.uint8, "uint16"):
        pixels = pixels.astype(np.uint16) * 257
    if format.dtype != "float32" and pixels.dtype != np.dtype(format.dtype):
        raise Undecodable(f"the raster {name_of(value)} holds {pixels.dtype} values; expected {format.dtype}")
    with np.errstate(over="ignore"):  # what is too large for 32 bits is refused as infinite
        return _resized(pixels.astype(format.dtype, copy=False), format.size)


def _resized(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[H, W, C] at another size, bilinearly; smaller ones are averages, not samples. Integers are rounded."""
    if pixels.shape[:2] == size:
        return pixels
    values = torch.from_numpy(pixels.astype(np.float32).transpose(2, 0, 1)[None])
    scaled = torch.nn.functional.interpolate(values, size, mode="bilinear", antialias=True)
    out: np.ndarray = scaled[0].numpy().transpose(1, 2, 0)
    return out if pixels.dtype == np.float32 else out.round().astype(pixels.dtype)


def decode_labels(value: RasterValue, target: Target, size: tuple[int, int], resize: bool = False) -> np.ndarray:
    """uint8 [H, W]: class indices, IGNORE where there is no class.

    Args:
        size: (H, W) of the rasters.
        resize: a map of another size takes the class of the nearest pixel; otherwise it is refused.

    Raises:
        Undecodable: unreadable, of another size than the rasters, or values that stand for no class.
    """
    pixels = _one_channel(read_pixels(value, labels=True), value)
    if pixels.shape != size and not resize:
        raise Undecodable(
            f"the label map {name_of(value)} is {shape_text(pixels.shape)}; expected {shape_text(size)}, as the "
            "rasters are"
        )
    pairs = target.label_values or (*((c, c) for c in range(target.width)), (IGNORE, IGNORE))
    table = np.full(65536, -1, np.int16)
    for raw, index in pairs:
        table[raw] = index
    values = pixels.astype(np.int64)
    whole = (values == pixels) & (values >= 0) & (values < 65536)
    indices = np.where(whole, table[values.clip(0, 65535)], -1)
    if (indices < 0).any():
        row, column = np.argwhere(indices < 0)[0]
        wrong = [f"{raw:g}" if pixels.dtype.kind == "f" else str(raw) for raw in np.unique(pixels[indices < 0])]
        several, first = len(wrong) > 1, "first at " if len(wrong) > 1 else ""
        shown = ", ".join(wrong[:_SHOWN_VALUES]) + (f", … ({len(wrong)} in all)" if wrong[_SHOWN_VALUES:] else "")
        known = sorted(raw for raw, index in pairs if index != IGNORE)
        ignored = " or ".join(str(raw) for raw, index in sorted(pairs) if index == IGNORE)
        raise Undecodable(
            f"the label map {name_of(value)} holds the value{'s' if several else ''} {shown} ({first}row {row}, column "
            f"{column}), which stand{'' if several else 's'} for no class; expected {known[0]} to {known[-1]}"
            + (f", or {ignored} (no class)" if ignored else "")
        )
    if indices.shape != size:
        down, right = (((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(size, indices.shape, strict=True))
        indices = indices[down][:, right]
    return indices.astype(np.uint8)


_SHOWN_VALUES = 10


def _one_channel(pixels: np.ndarray, value: RasterValue) -> np.ndarray:
    """[H, W] of a label map, grey saved as colour too. Raises Undecodable where its channels differ."""
    if pixels.ndim == 3 and pixels.shape[-1] == 3 and (pixels == pixels[..., :1]).all():
        pixels = pixels[..., 0]
    if pixels.ndim != 2:
        raise Undecodable(f"the label map {name_of(value)} has {pixels.shape[-1]} channels; expected one")
    return pixels


def raster_format(
    value: RasterValue,
    bands: Sequence[int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> RasterFormat:
    """How files like this one are read: of its size, channel count and type; arguments as the format's.

    Raises:
        Undecodable: the file cannot be read, or has no such bands; mean and std do not fit its channels.
    """
    pixels = np.atleast_3d(read_pixels(value))
    channels = pixels.shape[2] if bands is None else len(bands)
    if mean is not None and len(mean) != channels:
        raise Undecodable(
            f"the raster {name_of(value)} is {shape_text(pixels.shape)}; mean and std are of {len(mean)} channels"
        )
    dtype: Any = str(pixels.dtype) if str(pixels.dtype) in _STORED else "float32"
    size = (pixels.shape[0], pixels.shape[1])
    given = None if bands is None else tuple(bands)
    levels = [None if level is None else tuple(level) for level in (mean, std)]
    format = RasterFormat(size, channels, dtype, levels[0], levels[1], given)
    _fitting(pixels, value, format)
    return format


def window_of(path: Path, size: tuple[int, int], format: RasterFormat | None = None) -> np.ndarray:
    """The whole raster of a file that windows are cut from: [H, W, C]; without a format a label map's [H, W].

    Raises:
        UserError: absent, unreadable, or of another size, channel count or depth: once, not for every window.
    """
    try:
        pixels = whole_raster(path, labels=format is None)
        if pixels.shape[:2] != size:
            raise UserError("the raster is of another size than the others", file=path,
                            found=shape_text(pixels.shape[:2]), expected=shape_text(size))  # fmt: skip
        if format is None:
            return _one_channel(pixels, path)
        return _fitting(pixels, path, replace(format, size=size, resize=False))
    except Undecodable as problem:
        raise UserError(str(problem), file=path) from None
