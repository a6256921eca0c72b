"""Sequences of features: .npy files of [steps, features], or derived from texts, recordings and pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from mmsweep.components import register
from mmsweep.data.derived import (
    PICTURE_WIDTH,
    RATE,
    SOUND_WIDTH,
    STEP,
    picture_features,
    sound_features,
    word_features,
)
from mmsweep.data.files import Undecodable, load_array, name_of
from mmsweep.data.kinds.kind import Column, Format, Input, Layout, Parts, Rows, Varied
from mmsweep.errors import UserError
from mmsweep.transfer import Resident


@register("sequence")
@dataclass(frozen=True)
class SequenceFormat(Format):
    """Sequences of features: columns float32 [N, length, width] and lengths int32 [N].

    The batch is dict(values float32 [B, length, width], mask bool [B, length]), never cut to its longest row: a
    sequence's place in a network may count from its end, and a row must not depend on its batch mates.

    Args:
        length: T, steps; shorter sequences are padded with zeros, longer ones cut.
        width: F, features a step.
        recipe: "stored": the value is a .npy file of [t, F]; else the features are derived from the value, a text
            ("words"), a recording ("sound") or a picture ("picture"), as data/derived.py says.
    """

    length: int
    width: int
    recipe: Literal["stored", "words", "sound", "picture"] = "stored"

    kind: ClassVar[str] = "sequence"
    word: ClassVar[str] = "sequence"
    axes: ClassVar[tuple[str, ...]] = ("step", "column")

    class Options(Column):
        length: int = Field(ge=1, description="Most steps of a sequence; longer ones are cut.")
        width: int = Field(ge=1, description="Features a step.")

        def format(self) -> SequenceFormat:
            return SequenceFormat(self.length, self.width)

    @property
    def from_files(self) -> bool:  # type: ignore[override]  # of the others every value is alike
        return self.recipe != "words"

    def __post_init__(self) -> None:
        if self.length < 1 or self.width < 1:
            raise UserError(
                "a sequence needs at least one step and one feature", key="length", found=(self.length, self.width)
            )

    def key(self) -> dict[str, Any]:
        return {"kind": self.kind, **dataclasses.asdict(self)}

    def columns(self) -> Layout:
        return [("", np.float32, (self.length, self.width)), (".length", np.int32, ())]

    def decoder(self, varied: bool) -> Callable[[Any], Parts]:
        decode = sequence_decoder(self)

        def parts(value: Any) -> Parts:
            values = decode(value)
            return {"": values, ".length": np.array(len(values))}

        return parts

    def read(self, rows: Rows) -> dict[str, Tensor]:
        length_B = np.where(rows.present_B, rows.columns[".length"][rows.index_B], 0)
        mask_BT = np.arange(self.length) < length_B[:, None]
        return {"values": torch.from_numpy(rows.columns[""][rows.index_B]), "mask": torch.from_numpy(mask_BT)}

    def placeholder(self, fill: str, statistics: Mapping[str, Any]) -> Input:
        """The fill value at every step."""
        values = super().placeholder(fill, statistics)
        assert isinstance(values, Tensor)
        return {"values": values, "mask": torch.ones((), dtype=torch.bool)}

    def input(
        self, parts: dict[str, Tensor], placeholder: Any, absent: Tensor | None, rows: int, varied: Varied | None,
        constants: tuple[Resident, ...],
    ) -> Input:  # fmt: skip
        if absent is not None:
            parts["values"][absent] = placeholder["values"]
        return parts


def sequence_decoder(format: SequenceFormat) -> Callable[[Any], np.ndarray]:
    """A function from a raw value to float32 [t, width], 1 <= t <= length. Raises UserError where widths differ."""
    if format.recipe == "stored":
        return lambda value: decode_sequence(value, format)
    if format.recipe == "words":
        return lambda value: word_features(str(value), format.width)[: format.length]
    width = {"sound": SOUND_WIDTH, "picture": PICTURE_WIDTH}[format.recipe]
    if format.width != width:
        raise UserError(
            f"the recipe {format.recipe} gives another width", key="width", found=format.width, expected=str(width)
        )
    if format.recipe == "picture":
        return lambda value: picture_features(value)[: format.length]
    seconds = format.length * STEP / RATE + 1
    return lambda value: sound_features(value, seconds)[: format.length]


def decode_sequence(value: str | Path | bytes, format: SequenceFormat) -> np.ndarray:
    """float32 [t, width] of a .npy file (or its bytes), t at least 1 and at most `length`: what is longer is cut."""
    array = load_array(value, "sequence")
    if array.ndim != 2 or array.shape[1] != format.width or len(array) == 0:
        raise Undecodable(f"the sequence {name_of(value)} is not [steps, {format.width}]; found {list(array.shape)}")
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(array[: format.length], np.float32)
