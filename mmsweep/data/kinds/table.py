"""Tables: numbers and categories in columns of the user's own file, as one modality with a token for each column.

What a format of this kind holds is learned from the training rows: the mean and SD of every numeric column, and the
categories of every categorical one. It is part of the format's key, and so of the prepared data's name and record.
Networks keep it beside their weights, so that a run reads new rows as it read its own.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from mmsweep.components import misfit, register
from mmsweep.data.cells import class_name, number_of
from mmsweep.data.files import Undecodable, natural_key
from mmsweep.data.kinds.kind import Columns, Format, Layout, Parts
from mmsweep.errors import UserError

EMPTY, UNKNOWN = 0, 1
"""Codes of an empty cell and of a category that no training row has; the training rows' categories follow."""
_FIRST = 2
_SHOWN, _MANY = 5, 20

TableRow = tuple[Any, ...]
"""Cells of a row, numeric ones first, in the order of the study: floats, category names, None where a cell is empty."""


class NumericColumn(NamedTuple):
    """A column of numbers; mean and SD (above 0) of the training rows' filled cells."""

    name: str
    mean: float
    deviation: float


class CategoricalColumn(NamedTuple):
    """A column of categories; those of the training rows, sorted, numbers by their value."""

    name: str
    categories: tuple[str, ...]


@register("table")
@dataclass(frozen=True)
class TableFormat(Format):
    """Rows of F numbers and C categories: column float32 [N, 2F + C]; the batch is float32 [B, 2F + C].

    The first F values are the numbers, standardised as the training rows are, 0 where a cell is empty; the next F are
    1 where that cell is filled, else 0; the last C are codes: EMPTY, UNKNOWN, or 2 + the category's place. A row of
    zeros is hence one whose cells are all empty. It stands for an absent table, whatever the fill; NaN, for tests,
    stays NaN.
    """

    numeric: tuple[NumericColumn, ...]
    categorical: tuple[CategoricalColumn, ...]

    kind: ClassVar[str] = "table"
    word: ClassVar[str] = "row"
    axes: ClassVar[tuple[str, ...]] = ("value",)
    from_files: ClassVar[bool] = False
    has_black: ClassVar[bool] = True  # an absent table is the empty row, whatever the fill
    learned: ClassVar[bool] = True

    class Options(Columns):
        numeric: list[str] = Field(
            default_factory=list,
            description="Names of the columns with finite numbers. They are standardised with mean and SD of the "
            "training rows. An empty cell gets a learned token of its column; any other text makes the row a bad one.",
        )
        categorical: list[str] = Field(
            default_factory=list,
            description="Names of the columns with categories: texts or numbers, where 1 and 1.0 are one category and "
            "the text `01` is another. Categories that no training row has share a token, empty cells have another. "
            "A row whose cells are all empty lacks the modality.",
        )

        @model_validator(mode="after")
        def _columns_stand_once(self) -> Self:
            names = [*self.numeric, *self.categorical]
            if not names:
                raise misfit("a table needs columns", "names of columns in numeric, categorical or both", "numeric", [])
            for option, own in (("numeric", self.numeric), ("categorical", self.categorical)):
                if twice := [name for name in own if names.count(name) > 1]:
                    raise misfit("a column is named twice", "each column once", option, twice[0])
            return self

        def columns(self) -> list[tuple[str, str]]:
            return [("numeric", name) for name in self.numeric] + [("categorical", name) for name in self.categorical]

        def readers(self, folder: Path) -> dict[str, Callable[[Any], Any]]:
            number = partial(number_of, what="the cell")
            return dict.fromkeys(self.numeric, number) | dict.fromkeys(self.categorical, class_name)

        def joined(self, cells: Sequence[Any]) -> TableRow | None:
            return None if all(cell is None for cell in cells) else tuple(cells)

        def learned(self, rows: Sequence[Any]) -> TableFormat:
            return learn(self.numeric, self.categorical, rows)

    def key(self) -> dict[str, Any]:
        columns = {"numeric": self.numeric, "categorical": self.categorical}
        return {"kind": self.kind, **{name: [list(column) for column in own] for name, own in columns.items()}}

    @classmethod
    def of_key(cls, key: Mapping[str, Any]) -> TableFormat:
        """The format of a `key()`, also of one that was written as JSON."""
        numeric = tuple(NumericColumn(*column) for column in key["numeric"])
        return cls(numeric, tuple(CategoricalColumn(name, tuple(own)) for name, own in key["categorical"]))

    def stored(self) -> Tensor:
        """The key as uint8 [n], as networks keep it; `restored` reads it."""
        return torch.frombuffer(bytearray(json.dumps(self.key()).encode()), dtype=torch.uint8)

    @classmethod
    def restored(cls, stored: Tensor) -> TableFormat:
        return cls.of_key(json.loads(bytes(stored.cpu().numpy())))

    @property
    def names(self) -> list[str]:
        """Of the columns, in the order of a row's cells."""
        return [column.name for column in self.numeric] + [column.name for column in self.categorical]

    @property
    def codes(self) -> tuple[int, ...]:
        """Of each categorical column, how many codes it has."""
        return tuple(_FIRST + len(column.categories) for column in self.categorical)

    def columns(self) -> Layout:
        return [("", np.float32, (2 * len(self.numeric) + len(self.categorical),))]

    def decoder(self, varied: bool) -> Callable[[Any], Parts]:
        return lambda row: {"": self.values(row)}

    def values(self, row: TableRow) -> np.ndarray:
        """float32 [2F + C]. Raises Undecodable where a number is too large to be standardised."""
        numbers, filled = [], []
        for column, cell in zip(self.numeric, row, strict=False):
            value = 0.0 if cell is None else (cell - column.mean) / column.deviation
            if not abs(value) <= _LARGEST:
                raise Undecodable(
                    f"{column.name}: {cell:g} is too far from the training rows' mean, {column.mean:g}, to be "
                    f"standardised with their SD, {column.deviation:g}"
                )
            numbers.append(value)
            filled.append(float(cell is not None))
        cells = zip(self._codes, row[len(self.numeric) :], strict=True)
        codes = [EMPTY if cell is None else codes.get(cell, UNKNOWN) for codes, cell in cells]
        return np.array([*numbers, *filled, *codes], np.float32)

    @cached_property
    def _codes(self) -> list[dict[str, int]]:
        return [{name: code for code, name in enumerate(c.categories, _FIRST)} for c in self.categorical]

    def placeholder(self, fill: str, statistics: Mapping[str, Any]) -> Tensor:
        return torch.tensor(float("nan") if fill == "nan" else 0.0)

    def findings(self, rows: Mapping[str, Sequence[Any]]) -> Iterator[tuple[str, Literal["note", "warning"]]]:
        numbers = ", ".join(column.name for column in self.numeric)
        categories = ", ".join(f"{column.name} ({len(column.categories):,})" for column in self.categorical)
        parts = [numbers and f"numbers {numbers}", categories and f"categories {categories}"]
        yield "; ".join(filter(None, parts)), "note"
        present = {split: [row for row in own if row is not None] for split, own in rows.items()}
        for split, own in present.items():
            gaps = {name: sum(row[place] is None for row in own) for place, name in enumerate(self.names)}
            if shown := ", ".join(f"{name} {count:,}" for name, count in gaps.items() if count):
                yield f"{split}: empty cells in rows that have others: {shown}", "note"
        count = len(present["train"])
        for place, column in enumerate(self.categorical, len(self.numeric)):
            known = set(column.categories)
            if len(known) > max(_MANY, count / 2):
                yield f"{column.name} has {len(known):,} categories in {count:,} training rows", "warning"
            for split, own in present.items():
                new = Counter(row[place] for row in own if row[place] is not None and row[place] not in known)
                if new:
                    few = ", ".join(repr(name) for name in sorted(new, key=natural_key)[:_SHOWN])
                    more = ", …" if len(new) > _SHOWN else ""
                    rows_of_it = f"{new.total():,} of {len(own):,} rows"
                    text = f"{split}: {column.name} is a category that no training row has in {rows_of_it}: {few}{more}"
                    yield text, "warning"


_LARGEST = float(np.finfo(np.float32).max)


def learn(numeric: Sequence[str], categorical: Sequence[str], rows: Sequence[TableRow | None]) -> TableFormat:
    """The format of a table: what standardises its numbers, and which categories it knows.

    Sums are exact, so neither the order of rows nor the machine changes a mean.

    Args:
        numeric, categorical: names of the columns, in the order of the cells.
        rows: of the training split; None where a row lacks the table.

    Raises:
        UserError: a column without a value, or with the same one in every row; its key is `numeric` or `categorical`.
    """
    there = [row for row in rows if row is not None]
    cells = {name: [row[place] for row in there] for place, name in enumerate([*numeric, *categorical])}
    for name, own in cells.items():
        distinct, key = set(own), "numeric" if name in numeric else "categorical"
        if distinct <= {None}:
            raise UserError("no training row has a value in this column", key=key, found=name, hint=_LEAVE_OUT)
        if len(distinct) == 1:
            problem = f"this column is constant: every training row has {own[0]!r} there"
            raise UserError(problem, key=key, found=name, hint=_LEAVE_OUT)
    numbers = tuple(NumericColumn(name, *_moments(name, cells[name])) for name in numeric)
    names = {name: sorted({cell for cell in cells[name] if cell is not None}, key=natural_key) for name in categorical}
    return TableFormat(numbers, tuple(CategoricalColumn(name, tuple(own)) for name, own in names.items()))


_LEAVE_OUT = "Leave it out of the study"


def _moments(name: str, cells: Sequence[float | None]) -> tuple[float, float]:
    """(mean, SD) of the filled cells; an SD of 1 where they are all equal, and only the gaps say something."""
    filled = [cell for cell in cells if cell is not None]
    try:
        mean = math.fsum(filled) / len(filled)
        deviation = math.sqrt(math.fsum((cell - mean) ** 2 for cell in filled) / len(filled))
    except OverflowError:
        deviation = math.inf
    if len(set(filled)) == 1:
        return filled[0], 1.0
    if not 0 < deviation < math.inf:
        largest = max(filled, key=abs)
        raise UserError("the numbers of this column are too large or too close to be standardised", key="numeric",
                        found=name, hint=f"The largest is {largest:g}")  # fmt: skip
    return mean, deviation
