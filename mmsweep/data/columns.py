"""Which columns prepared data has: names, types and shapes of a row."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmsweep.data.formats import (
    AudioFormat,
    Format,
    ImageFormat,
    RasterFormat,
    SequenceFormat,
    TextFormat,
    VideoFormat,
)
from mmsweep.errors import UserError

TARGETS = "targets"
"""The column of targets; no modality may have this name."""

Layout = list[tuple[str, Any, tuple[int, ...]]]
"""Columns: (name, dtype, shape of a row)."""


def column_layout(modality: str, format: Format) -> Layout:
    """Columns of a modality: what evaluation sees."""
    if isinstance(format, TextFormat):
        return [(f"{modality}.ids", np.int32, (format.length,)), (f"{modality}.mask", np.bool_, (format.length,))]
    if isinstance(format, AudioFormat):
        return [(modality, np.float32, (format.frames, format.mel_bins))]
    if isinstance(format, SequenceFormat):
        return [(modality, np.float32, (format.length, format.width)), (f"{modality}.length", np.int32, ())]
    if isinstance(format, VideoFormat):
        return [(modality, np.uint8, (format.frames, 3, format.image.size, format.image.size))]
    if isinstance(format, RasterFormat):
        return [(modality, np.dtype(format.dtype), (format.channels, *format.size))]
    return [(modality, np.uint8, (3, format.size, format.size))]


def training_layout(modality: str, format: Format) -> Layout:
    """Columns of the training split that augmentation draws from; none where the format asks for none.

    `.varied` holds whole pictures or more frames of a clip, `.aspect` their log(width / height), and `.varied.length`
    how many distinct frames a clip has there.
    """
    picture = format.image if isinstance(format, VideoFormat) else format
    kept = format.kept if isinstance(format, VideoFormat) else None
    if not isinstance(picture, ImageFormat) or (picture.whole is None and kept is None):
        return []
    side = picture.whole or picture.size
    frames = (kept or format.frames,) if isinstance(format, VideoFormat) else ()
    columns: Layout = [
        (f"{modality}.varied", np.uint8, (*frames, 3, side, side)),
        (f"{modality}.aspect", np.float32, ()),
    ]
    return columns + ([(f"{modality}.varied.length", np.int32, ())] if kept else [])


def check_names(formats: Mapping[str, Format]) -> None:
    """Raises UserError where a modality's name would make another file than one of its own in the split's folder."""
    taken = {TARGETS, "natural"}
    for modality, format in formats.items():
        stems = {name for name, _, _ in column_layout(modality, format) + training_layout(modality, format)}
        if (
            Path(modality).name != modality
            or not modality.strip(".")
            or "\0" in modality
            or "\\" in modality
            or stems & taken
        ):
            raise UserError(
                "the name of this modality cannot be that of a file of prepared data",
                key=f"data.modalities.{modality}", expected="letters, digits and _, and no name that is taken",
            )  # fmt: skip
        taken |= stems


def map_size(formats: Mapping[str, Format]) -> tuple[int, int]:
    """(H, W) of the rasters, and so of the label maps.

    Raises:
        UserError: no raster, or rasters of several sizes.
    """
    sizes = {modality: format.size for modality, format in formats.items() if isinstance(format, RasterFormat)}
    if len(set(sizes.values())) != 1:
        raise UserError(
            "a label map needs rasters, all of one size",
            key="data.modalities",
            found={m: f"{h} x {w}" for m, (h, w) in sizes.items()},
        )
    return next(iter(sizes.values()))
