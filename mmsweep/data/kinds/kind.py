"""The contract of a kind of modality: from a raw value to a column on disk, and from a column to a network's input.

A kind is one class in one file, a *format*: how values of that kind are read for one network. It says what stands on
disk (the *columns*: native type, smallest size that loses nothing) and what a network gets (the *input*: float,
normalised, on the device). Encoders make formats, since they know what they were trained on; where the data says it
(rasters, sequences), the dataset or the manifest's column does. Formats are plain values: equal formats mean equal
columns, and their `key()` is part of the name of the prepared data.

    @register("image")
    @dataclass(frozen=True)
    class ImageFormat(Format):
        kind: ClassVar[str] = "image"
        class Options(Column): …      # of a manifest's column
        class Reading(Section): …     # `data.image` of the study
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from mmsweep.components import Options, Registry, Section
from mmsweep.data.augmentation import Augmentation, Draws
from mmsweep.data.cells import file_of
from mmsweep.data.options import KINDS
from mmsweep.transfer import Resident

FILLS: Mapping[str, float | None] = {"zeros": 0.0, "ones": 1.0, "black": None, "mean": None, "nan": float("nan")}
"""What stands in for an absent input, after normalisation: zeros | ones | a black picture | the training set's mean |
NaN (tests: nothing absent may be read). An absent text is always the empty text."""

Layout = list[tuple[str, Any, tuple[int, ...]]]
"""Columns: (name after the modality's, dtype, shape of a row). The column of the values themselves is called ""."""

Parts = dict[str, np.ndarray]
"""What a value becomes: an array for each column, by name."""

Input = Tensor | dict[str, Tensor]
"""Of a network; also what stands for it, broadcastable over a row of it."""


class Columns(Options):
    """A modality's columns in the user's own file."""

    kind: str = Field(description="What the column holds.")

    def columns(self) -> list[tuple[str, str]]:
        """(option that names it, name) of each column."""
        raise NotImplementedError(type(self).__name__)

    def readers(self, folder: Path) -> dict[str, Callable[[Any], Any]]:
        """Column -> what reads a cell of it that is not empty; raises BadCell.

        Args:
            folder: of the user's file.
        """
        raise NotImplementedError(type(self).__name__)

    def joined(self, cells: Sequence[Any]) -> Any:
        """A row's raw value, of what its cells were read as (None: empty); None where it lacks the modality."""
        raise NotImplementedError(type(self).__name__)

    def format(self) -> Format | None:
        """How the columns are read, where the study says it; None where the encoder or the file does."""
        return None

    def learned(self, rows: Sequence[Any]) -> Format | None:
        """`format`, for kinds that learn it from the training rows' raw values.

        Raises:
            UserError: they do not suffice; its key is the option that names the column.
        """
        return self.format()


class Column(Columns):
    """A modality's column in the user's own file."""

    column: str = Field(
        description="Name of the column, with file names relative to the manifest, the file's bytes, or the records "
        "{bytes, path} of Hugging Face datasets. A cell that is blank, null or an empty list is an absent modality; "
        "any other list or mapping makes the row a bad one."
    )

    def value(self, cell: Any, folder: Path) -> Any:
        """The raw value of a cell that is not empty. Raises BadCell."""
        value = file_of(cell)
        return folder / value if isinstance(value, str) and value else value

    def columns(self) -> list[tuple[str, str]]:
        return [("column", self.column)]

    def readers(self, folder: Path) -> dict[str, Callable[[Any], Any]]:
        return {self.column: partial(self.value, folder=folder)}

    def joined(self, cells: Sequence[Any]) -> Any:
        return cells[0]


class Varied(NamedTuple):
    """How a batch is varied."""

    augmentation: Augmentation
    draws: Draws


class Rows(NamedTuple):
    """Rows of a modality that are read from a split.

    Args:
        columns: name -> mapped column [N, …].
        index_B: which rows.
        present_B: bool, whose values may be read.
        varied: how they are varied; None: they are shown as in evaluation.
        placeholder: of an absent one, on the host.
        longest: as `Format.longest`, where all batches are to have one length; None: as long as the batch asks for.
    """

    columns: Mapping[str, np.ndarray]
    index_B: np.ndarray
    present_B: np.ndarray
    varied: Varied | None
    placeholder: Input
    longest: int | None
    modality: str


@dataclass(frozen=True)
class Format(ABC):
    """How values of one kind are read.

    Attributes:
        Options: what a manifest says of columns of the kind; None: it has no such columns.
        Reading: the section of `data` about the kind; None: there is none.
        also_read_by: kinds whose section of `data` says more about this one's.
        kind: the name of the kind.
        word: a value, in messages.
        axes: what the axes of a column of floats count, in messages.
        size_key: the key of the study that says how large an input is.
        from_files: raw values are files or their bytes.
        from_folders: a folder of files may be one value.
        has_black: `fill: black` has a meaning.
        learned: it is learned from the training rows or their files, so that only the data can tell it.
        filled_on_host: `read` puts the placeholder where a row has nothing; others get it on the device.
        map_size: (H, W) of label maps that lie on values of the kind; None: they lie on none.
        resizes_maps: label maps of another size are resized to it; otherwise they are refused.
    """

    registry: ClassVar[Registry] = KINDS
    Options: ClassVar[type[Columns] | None] = Column
    Reading: ClassVar[type[Section] | None] = None
    also_read_by: ClassVar[tuple[str, ...]] = ()
    kind: ClassVar[str]
    word: ClassVar[str]
    axes: ClassVar[tuple[str, ...]] = ("row", "column")
    size_key: ClassVar[str] = "data"
    from_files: ClassVar[bool] = True
    from_folders: ClassVar[bool] = False
    has_black: ClassVar[bool] = False
    learned: ClassVar[bool] = False
    filled_on_host: ClassVar[bool] = False

    @property
    def map_size(self) -> tuple[int, int] | None:
        return None

    @property
    def resizes_maps(self) -> bool:
        return False

    def read_as(self, reading: Any) -> Format:
        """This format, which the data gives, as the study's section about the kind (`Reading`) changes it."""
        return self

    # ---- columns ----

    @abstractmethod
    def key(self) -> dict[str, Any]:
        """What decides the columns' content, as plain data."""

    @abstractmethod
    def columns(self) -> Layout:
        """What evaluation sees."""

    def varied_columns(self) -> Layout:
        """Of the training split: what augmentation draws from; none where nothing more is kept."""
        return []

    def kept(self, augmentation: Augmentation) -> Format:
        """This format with room for what an augmentation draws from."""
        return self

    def decoder(self, varied: bool) -> Callable[[Any], Parts] | None:
        """A function from a raw value to a row's arrays, which may be shorter than their columns.

        Args:
            varied: `varied_columns` are wanted too.

        Returns:
            None where values are decoded many at once (`decoder_of_many`).
        """
        return None

    def decoder_of_many(self) -> Callable[[Sequence[Any]], Parts] | None:
        """A function from raw values, None where a row has none, to their columns; None where there is a `decoder`."""
        return None

    def findings(self, rows: Mapping[str, Sequence[Any]]) -> Iterator[tuple[str, Literal["note", "warning"]]]:
        """(text, grade) of what `data check` says about the raw values of each split."""
        yield from ()

    def statistics(self) -> dict[str, Any]:
        """What is kept beside the columns, and does not depend on the rows."""
        return {}

    def measured(self, column: np.ndarray, present_N: np.ndarray) -> dict[str, Any]:
        """What is kept beside the columns of the training rows that have a value; `fitted` reads it."""
        return {}

    def fitted(self, statistics: Mapping[str, Any]) -> Format:
        """This format with what the training rows say, such as the mean that is subtracted.

        Raises:
            UserError: no training row has a value.
        """
        return self

    # ---- batches ----

    @property
    def draws(self) -> int | None:
        """How many random numbers of its own a row draws when it is varied; None: none."""
        return None

    def drawn_from(self, columns: Mapping[str, np.ndarray]) -> tuple[int, int] | None:
        """(most frames of a row that random ones are drawn from, frames shown); None where none are drawn."""
        return None

    def longest(self, columns: Mapping[str, np.ndarray], placeholder: Input) -> int:
        """Length of the longest row, of kinds whose batches may be shorter than the columns."""
        return 0

    def read(self, rows: Rows) -> dict[str, Tensor]:
        """Rows as they are stored, on the host; nothing where none is present."""
        return {"values": torch.from_numpy(rows.columns[""][rows.index_B])} if rows.present_B.any() else {}

    def placeholder(self, fill: str, statistics: Mapping[str, Any]) -> Input:
        """What stands for an absent input, without the batch axis.

        Args:
            fill: one of FILLS.
            statistics: of the training rows; holds "mean" where that is asked for.
        """
        value = FILLS[fill]
        return self.level([0.0] if fill == "black" else statistics["mean"]) if value is None else torch.tensor(value)

    def level(self, values: Sequence[float]) -> Tensor:
        """Stored values (of channels, mel bins, features; one: of all channels) as an input shows them."""
        return torch.tensor(values, dtype=torch.float32)

    def constants(self) -> tuple[Resident, ...]:
        """What `shown` needs on the device."""
        return ()

    def input(
        self, parts: dict[str, Tensor], placeholder: Any, absent: Tensor | None, rows: int, varied: Varied | None,
        constants: tuple[Resident, ...],
    ) -> Input:  # fmt: skip
        """The network's input of what `read` gave, on the device; `absent` are the rows that hold the placeholder."""
        if not parts:
            whole: Tensor = placeholder.expand(rows, *self.shape).contiguous()
            return whole
        values = self.shown(parts, varied, constants)
        if absent is not None:
            values[absent] = placeholder
        return values

    def shown(self, parts: dict[str, Tensor], varied: Varied | None, constants: tuple[Resident, ...]) -> Tensor:
        """Float32, normalised; fresh or the host's own: may be written to."""
        return parts["values"]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an input, without the batch axis."""
        return self.columns()[0][2]


def per_channel(values: Sequence[float]) -> Tensor:
    """float32 [C,1,1]."""
    return torch.tensor(values, dtype=torch.float32)[:, None, None]
