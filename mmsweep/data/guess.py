"""Guesses what the columns of a user's file hold: inputs, target, split, group and id, for `mmsweep init`.

Every guess carries its reason, and nothing is guessed that the cells do not show. What stays unclear is left out and
said so: the user edits the study that comes out.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mmsweep.data.cells import BadCell, class_name, file_of, labels_of, number_of
from mmsweep.data.modality_names import misnamed
from mmsweep.data.sets.manifest import SPLIT_NAMES
from mmsweep.data.tables import read_table
from mmsweep.errors import UserError

T = TypeVar("T")

SUFFIXES = {
    "image": (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".svg"),
    "audio": (".wav", ".flac", ".mp3", ".ogg", ".aiff", ".aif"),
    "video": (".mp4", ".avi", ".mkv", ".mov", ".webm", ".flv", ".m4v"),
}
TARGET_NAMES = (
    "label", "labels", "target", "class", "category", "kind", "tags", "genres", "genre", "score", "rating", "sentiment",
    "emotion", "diagnosis", "outcome", "y",
)  # fmt: skip
GROUP_NAMES = ("group", "speaker", "subject", "patient", "user", "movie", "actor", "session", "concept", "family")
ID_NAMES = ("id", "uid", "uuid", "key", "index")
SEPARATORS = ("|", ";", ",")

_MOST_CLASSES = 100
_REPEATED = 5
"""Categories of a table's column stand in at least so many rows on average."""
_VARIED = 5
"""At least so many training rows differ from the most frequent value; a constant column is refused."""
_SAME = 0.9999
"""Correlation with the target from which on a column is taken for the target."""
_ID_NAME = re.compile(r"(?i:(^|[\W_])(id|uid|uuid)$|^id[\W_])|[a-z]I[Dd]$")
_LEADING_ZERO = re.compile(r"\s*0\d")
_WORDS = 3
"""Texts have at least so many words on average; names of classes have fewer."""


@dataclass(frozen=True)
class Modality:
    """An input.

    Args:
        options: what the study says of its columns beside the kind: column, or numeric and categorical of a table.
        why: why the columns are taken for this kind.
    """

    name: str
    kind: str
    options: Mapping[str, Any]
    why: str

    @property
    def columns(self) -> list[str]:
        return [name for own in self.options.values() for name in ([own] if isinstance(own, str) else own)]


@dataclass(frozen=True)
class Guesses:
    """What a file's columns hold.

    Args:
        modalities: the inputs, in the order of the columns; the table last.
        target: its column; task: what is predicted; separator: between the labels of a multi_label cell.
        split, group, id: columns, where there are such.
        notes: a sentence for each guess that is no modality, and for each column that is left out.
    """

    modalities: list[Modality]
    target: str
    task: str
    separator: str | None = None
    split: str | None = None
    group: str | None = None
    id: str | None = None
    notes: dict[str, str] = field(default_factory=dict)


def guess(path: Path, target: str | None = None) -> Guesses:
    """Look at all rows of a manifest: files are often sorted by split or class.

    Args:
        target: the column of the target; None: it is guessed as well.

    Raises:
        UserError: the file cannot be read; fewer than two columns are inputs; no column looks like a target.
    """
    rows = [row.cells for row in read_table(path, None)]
    if not rows:
        raise UserError("the manifest has no rows", file=path)
    columns: dict[str, list[Any]] = {name: [] for row in rows for name in row}
    for row in rows:
        for name, cell in row.items():
            if cell is not None:
                columns[name].append(cell)
    notes = {name: "every cell is empty" for name, cells in columns.items() if not cells}
    columns = {name: cells for name, cells in columns.items() if cells}
    if target is not None and target not in columns:
        raise UserError(
            "there is no such column with values", key="--target", found=target, expected=f"one of {', '.join(columns)}"
        )
    split = next((name for name, cells in columns.items() if name != target and _splits(cells)), None)
    modalities = [m for name, cells in columns.items() if name not in (target, split) and (m := _file(name, cells))]
    taken = {split, *(column for m in modalities for column in m.columns)}
    wanted = target or _target({name: cells for name, cells in columns.items() if name not in taken})
    for name, cells in columns.items():
        if name not in taken and name != wanted and (mean := _mean_words(cells)) >= _WORDS:
            modalities.append(Modality(_name(name), "text", {"column": name}, f"texts of {mean:.0f} words on average"))
    modalities.sort(key=lambda m: list(columns).index(m.columns[0]))
    taken |= {wanted, *(column for m in modalities for column in m.columns)}
    rest = [name for name in columns if name not in taken]
    id = next((n for n in rest if n.lower() in ID_NAMES and len(set(map(str, columns[n]))) == len(rows)), None)
    group = next((n for n in rest if _stem(n) in GROUP_NAMES and len(set(map(str, columns[n]))) < len(rows)), None)
    if modalities and wanted is not None:
        training = [r for r in rows if split is None or SPLIT_NAMES.get(str(r.get(split)).strip()) == "train"]
        left = {name: columns[name] for name in rest if name not in (id, group)}
        table, unused = _table(left, training, wanted, {m.name for m in modalities})
        modalities += [table] if table else []
        notes |= unused
    if len(modalities) < 2 or wanted is None:
        seen = "".join(f"\n  {name}: {_described(name, cells)}" for name, cells in columns.items())
        kinds = "two at least, one of them pictures, sounds, videos or texts"
        lacks = "no column looks like a target" if wanted is None else f"{len(modalities)} of its columns are inputs"
        raise UserError(
            f"{lacks}; the columns hold:{seen}\n", file=path, key="--target" if wanted is None else None,
            expected="--target COLUMN" if wanted is None else kinds,
        )  # fmt: skip
    task, separator, why = _task(columns[wanted])
    notes[wanted] = why
    return Guesses(modalities, wanted, task, separator, split, group, id, notes)


def _splits(cells: Sequence[Any]) -> bool:
    names = {str(cell).strip().lower() for cell in cells}
    return (
        names <= set(SPLIT_NAMES) and {"train", "test"} <= names and all(str(c).strip() in SPLIT_NAMES for c in cells)
    )


def _file(name: str, cells: Sequence[Any]) -> Modality | None:
    """The column as files of one kind, by their suffixes."""
    files = list(_file_names(cells))
    for kind, suffixes in SUFFIXES.items():
        count = sum(file.lower().endswith(suffixes) for file in files)
        if count and count == len(files) == len(cells):
            why = f"all {count:,} cells name files such as {Path(files[0]).name!r}"
            return Modality(_name(name), kind, {"column": name}, why)
    return None


def _file_names(cells: Sequence[Any]) -> Iterator[str]:
    for cell in cells:
        try:
            file = cell.get("path") if isinstance(cell, dict) else file_of(cell)
        except BadCell:
            continue
        if isinstance(file, str):
            yield file


def _table(
    columns: Mapping[str, Sequence[Any]], rows: Sequence[Mapping[str, Any]], target: str, names: Container[str]
) -> tuple[Modality | None, dict[str, str]]:
    """The columns that no other input, id or group takes, as one table, and why each other one is left out.

    Args:
        columns: their cells, in all rows.
        rows: training rows, from which a table learns.
        names: of the other modalities.
    """
    options: dict[str, list[str]] = {"numeric": [], "categorical": []}
    notes = {}
    for column, cells in columns.items():
        codes = any(isinstance(cell, str) and _LEADING_ZERO.match(cell) for cell in cells)
        kind, read = ("categorical", _class_names) if codes or not _numbers(cells) else ("numeric", _numbers)
        filled = [row for row in rows if row.get(column) is not None and row.get(target) is not None]
        values = read([row[column] for row in filled] if read(cells) else [])
        if reason := _unfit(column, values) or _reveals(values, [row[target] for row in filled]):
            notes[column] = reason
        else:
            options[kind].append(column)
    options = {kind: own for kind, own in options.items() if own}
    what = {"numeric": "numbers", "categorical": "categories that repeat"}
    why = ", ".join(f"{what[kind]} in {len(own)} column{'s' if len(own) > 1 else ''}" for kind, own in options.items())
    name = "table"
    while name in names:
        name += "_"
    return (Modality(name, "table", options, why) if options else None), notes


def _unfit(name: str, values: Sequence[Any]) -> str | None:
    """Why a column of these training values, numbers or names, is no column of a table."""
    if name.lower() in ID_NAMES or _ID_NAME.search(name) or _stem(name) in GROUP_NAMES:
        return "its name is that of an id or a group"
    if not values:
        return "neither numbers nor names of categories in the training rows"
    counts, number = Counter(values), isinstance(values[0], float)
    if len(values) - counts.most_common(1)[0][1] < _VARIED:
        return f"fewer than {_VARIED} training rows differ from its most frequent value"
    if number and len(counts) == len(values) and all(value.is_integer() for value in values):
        return "whole numbers that never repeat, as ids"
    if not number and len(counts) > min(_MOST_CLASSES, len(values) // _REPEATED):
        return f"{len(counts):,} different texts in {len(values):,} rows"
    return None


def _reveals(values: Sequence[Any], targets: Sequence[Any]) -> str | None:
    """Why a column is taken for the target itself under another name, or for a finer version of it."""
    pairs = {(value, str(target).strip()) for value, target in zip(values, targets, strict=True)}
    if len(pairs) == len(set(values)) <= len(values) // _REPEATED:
        return "each of its values stands beside a single target: it would give the target away"
    numbers = _numbers(targets)
    if len(set(numbers)) > 1 and isinstance(values[0], float):
        with np.errstate(all="ignore"):  # a correlation that overflows is NaN
            if abs(np.corrcoef(values, numbers)[0, 1]) > _SAME:
                return "it is the target on another scale: it would give the target away"
    return None


def _target(columns: Mapping[str, Sequence[Any]]) -> str | None:
    named = sorted((TARGET_NAMES.index(name.lower()), name) for name in columns if name.lower() in TARGET_NAMES)
    if named:
        return named[0][1]
    classes = [name for name, cells in columns.items() if _mean_words(cells) < _WORDS and _is_class(name, cells)]
    return classes[-1] if len(classes) == 1 else None


def _is_class(name: str, cells: Sequence[Any]) -> bool:
    names = _class_names(cells)
    return 2 <= len(set(names)) <= min(_MOST_CLASSES, len(names) // 2) and _stem(name) not in GROUP_NAMES


def _class_names(cells: Sequence[Any]) -> list[str]:
    """The cells as names of classes; none where one is no name."""
    return _each(class_name, cells)


def _task(cells: Sequence[Any]) -> tuple[str, str | None, str]:
    """(task, separator, why) of a target's column."""
    if any(isinstance(cell, list | tuple) for cell in cells):
        return "multi_label", None, "its cells are lists"
    numbers = _numbers(cells)
    if numbers and (len(set(numbers)) > _MOST_CLASSES or any(not number.is_integer() for number in numbers)):
        return "regression", None, f"numbers from {min(numbers):g} to {max(numbers):g}"
    for separator in SEPARATORS:
        try:
            labels = [labels_of(cell, separator) for cell in cells]
        except BadCell:
            continue
        distinct = {label for row in labels for label in row}
        if any(len(row) > 1 for row in labels) and len(distinct) <= min(_MOST_CLASSES, len(cells)):
            return "multi_label", separator, f"up to {max(map(len, labels))} of {len(distinct)} labels in a cell"
    return "single_label", None, f"{len(set(_class_names(cells)))} classes"


def _numbers(cells: Sequence[Any]) -> list[float]:
    """The cells as numbers; none where one is no number."""
    return _each(number_of, cells)


def _each(read: Callable[[Any], T], cells: Sequence[Any]) -> list[T]:
    try:
        return [read(cell) for cell in cells]
    except BadCell:
        return []


def _mean_words(cells: Sequence[Any]) -> float:
    texts = [cell for cell in cells if isinstance(cell, str)]
    if len(texts) < len(cells) or _numbers(cells):
        return 0.0
    return sum(len(text.split()) for text in texts) / len(texts)


def _stem(name: str) -> str:
    return re.sub(r"_?id$", "", name.lower())


def _name(column: str) -> str:
    """A modality's name made from its column's."""
    name = re.sub(r"\W+", "_", column, flags=re.ASCII).strip("_") or "input"
    name = name if name[0].isalpha() else f"input_{name}"
    return f"{name}_input" if misnamed([name]) else name


def _described(name: str, cells: Sequence[Any]) -> str:
    if file := _file(name, cells):
        return f"{file.kind} files"
    if numbers := _numbers(cells):
        return f"numbers from {min(numbers):g} to {max(numbers):g}"
    if (mean := _mean_words(cells)) >= _WORDS:
        return f"texts of {mean:.0f} words on average"
    return f"{len(set(map(str, cells))):,} different values in {len(cells):,} cells, such as {str(cells[0])[:40]!r}"
