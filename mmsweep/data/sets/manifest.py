"""The user's own data: a CSV, TSV, JSONL or Parquet file with a row per sample.

A modality is a column of file names (relative to the file) or of texts; an empty cell is a modality that the sample
does not have, in whatever split. The target is a class, a list of labels or a number. What cells may hold says
`cells.py`. Splits come from a column, or are carved by the hash of a row's group, its declared id, or the whole row as
the file has it, so that neither the order of rows nor what a study names of the file moves a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from mmsweep.data.cells import BadCell, class_name, file_of, labels_of, number_of, shown, text_of
from mmsweep.data.clips import natural_key
from mmsweep.data.dataset import SPLITS, BadRow, DatasetBuilder, Sample, refusal
from mmsweep.data.decoding import first_line
from mmsweep.data.formats import SequenceFormat
from mmsweep.data.options import DatasetOptions, ManifestOptions
from mmsweep.data.registry import DatasetCard, register_dataset
from mmsweep.data.splitting import carve, carve_stratified, repeated
from mmsweep.data.tables import Row, read_table
from mmsweep.errors import UNSET, UserError
from mmsweep.tasks.task import Target

SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val", "test": "test"}
CARVED_VALIDATION = 0.1
"""Share of the training rows that validate where a split column names no validation rows."""


class _Member(NamedTuple):
    """A row that can be used.

    Args:
        split: what the split column says.
        key: what decides the split of a row that is carved: rows of equal keys stay together.
    """

    sample: Sample
    line: int
    split: str | None
    key: str


class Manifest(DatasetBuilder):
    """Reads the file when made (not the pictures), so that classes are known at once.

    Whatever is wrong with a row makes it a bad row, kept apart in `bad_rows`.

    Raises:
        UserError: absent or malformed file, absent column, a group in two splits; too few classes or no rows in a
            split, after the bad rows that led to it.
    """

    name = "manifest"

    def __init__(self, options: ManifestOptions) -> None:
        self.options, self.path = options, Path(options.path)
        self.modalities = {name: modality.kind for name, modality in options.modalities.items()}
        self.sequences = sequence_formats(options)
        self._folder = self.path.parent.absolute()
        self._declared = _declared_target(options)
        self._lines: dict[str, list[int]] = {}
        members: list[_Member] = []
        bad: list[BadRow] = []
        for row in read_table(self.path, self._columns()):
            try:
                members.append(self._member(row))
            except Exception as error:  # a row that cannot be read is a bad row, whatever raised
                bad.append(BadRow(self._origin(row.line), _reason(error)))
        self.bad_rows = tuple(bad)
        if not members and not bad:
            raise UserError("the manifest has no rows", file=self.path)
        self.target = self._declared or self._found_target(member.sample.target for member in members)
        self._splits = self._by_column(members) if options.split.column else self._by_share(members)

    def splits(self) -> dict[str, list[Sample]]:
        return {name: list(rows) for name, rows in self._splits.items()}

    def provenance(self) -> str:
        counts = ", ".join(f"{len(self._splits[name])} {name}" for name in SPLITS)
        twice = sum(1 for _ in repeated(self._splits))
        leak = f" The same inputs stand in more than one split {twice} times." if twice else ""
        return f"{self.path.name}: {counts} rows. {self._carved}{leak}"

    # ---- rows ------------------------------------------------------------------------------------------------------

    def _columns(self) -> list[tuple[str, str]]:
        options = self.options
        columns = [(f"data.modalities.{name}.column", m.column) for name, m in options.modalities.items()]
        columns.append(("data.target.column", options.target.column))
        named = {"split": options.split.column, "group": options.group, "id": options.id}
        return columns + [(f"data.{key}.column", column) for key, column in named.items() if column]

    def _origin(self, line: int) -> str:
        return f"{self.path.name}:{line}"

    def _member(self, row: Row) -> _Member:
        """Raises BadCell for what is wrong with the row, naming the column."""
        options = self.options
        values = {
            name: _cell(row, modality.column, partial(self._value, modality.kind))
            for name, modality in options.modalities.items()
        }
        if all(value is None for value in values.values()):
            columns = ", ".join(modality.column for modality in options.modalities.values())
            raise BadCell(f"nothing to learn from: every modality is empty ({columns})")
        target = self._target(row)
        group = _cell(row, options.group, class_name) if options.group else None
        split = self._split(row) if options.split.column else None
        id = self._declared_id(row) if options.id else row.content
        equal = self._lines.setdefault(id, [])  # rows of equal content are counted; a declared id stands once
        equal.append(row.line)
        own = id if len(equal) == 1 else f"{id}-{len(equal)}"
        key = f"row {id}" if group is None else f"group {group}"
        return _Member(Sample(own, values, target, group, self._origin(row.line)), row.line, split, key)

    def _value(self, kind: str, cell: Any) -> Any:
        if kind == "text":
            return text_of(cell)
        value = file_of(cell)
        if isinstance(value, bytes):
            if kind == "video":
                raise BadCell("a clip must be a file name; found bytes")
            return value
        return self._folder / value if value else None

    def _target(self, row: Row) -> Any:
        target = self.options.target
        readers: dict[str, Callable[[Any], Any]] = {
            "class": class_name,
            "labels": partial(labels_of, separator=target.separator),
            "number": number_of,
        }
        value = _cell(row, target.column, readers[target.kind])
        if value is None and target.kind == "labels":
            value = []  # no label at all is a legitimate answer: the row counts as negative for every class
        if value is None:
            raise BadCell(f"{target.column}: the target is empty")
        try:
            if self._declared:
                self._declared.encode(value)
        except UserError as error:
            raise BadCell(f"{target.column}: {error}") from None
        return value

    def _split(self, row: Row) -> str:
        column = self.options.split.column
        assert column is not None
        name = SPLIT_NAMES.get((_cell(row, column, class_name) or "").lower())
        if name is None:
            raise BadCell(
                f"{column}: unknown split; found {shown(row.cells[column] or '')}; expected train, val (valid, "
                "validation, dev) or test"
            )
        return name

    def _declared_id(self, row: Row) -> str:
        column = self.options.id
        assert column is not None
        id: str | None = _cell(row, column, class_name)
        if id is None:
            raise BadCell(f"{column}: the id is empty")
        if id in self._lines:
            raise BadCell(f"{column}: an id stands for one row; {id!r} is also on line {self._lines[id][0]}")
        return id

    def _found_target(self, targets: Iterable[Any]) -> Target:
        own = self.options.target
        names = {name for target in targets for name in (target if isinstance(target, list) else [target])}
        if len(names) < (2 if own.kind == "class" else 1):
            raise self._too_little("the target column holds too few classes", own.column, sorted(names))
        return Target(own.task, tuple(sorted(names, key=natural_key)))

    def _too_little(self, problem: str, key: str | None, found: Any = UNSET, hint: str | None = None) -> UserError:
        """A refusal that may follow from bad rows, which are then told first."""
        if self.bad_rows:
            return refusal(self.bad_rows, problem)
        return UserError(problem, file=self.path, key=key, found=found, hint=hint)

    # ---- splits ----------------------------------------------------------------------------------------------------

    def _by_column(self, members: Sequence[_Member]) -> dict[str, list[Sample]]:
        rule = self.options.split
        homes: dict[str, tuple[str, int]] = {}
        parts: dict[str, list[_Member]] = {name: [] for name in SPLITS}
        for member in members:
            assert member.split is not None
            if (group := member.sample.group) is not None:
                home, line = homes.setdefault(group, (member.split, member.line))
                if home != member.split:
                    raise UserError(
                        f"a group stands in two splits: in {home} on line {line} and in {member.split} here",
                        file=self.path, line=member.line, key=self.options.group, found=group,
                    )  # fmt: skip
            parts[member.split].append(member)
        self._carved = f"Splits are those of the column {rule.column}."
        splits = {name: [member.sample for member in part] for name, part in parts.items()}
        if not splits["val"] and splits["train"]:
            splits["val"], splits["train"] = self._carve(parts["train"], [CARVED_VALIDATION])
            self._carved = (
                f"The column {rule.column} names no validation rows: {CARVED_VALIDATION:.0%} of the training rows were "
                f"carved off by hash{self._within} (seed {rule.seed})."
            )
        return self._whole(splits)

    def _by_share(self, members: Sequence[_Member]) -> dict[str, list[Sample]]:
        rule, options = self.options.split, self.options
        test, val, train = self._carve(members, [rule.test, rule.val])
        by = "rows"
        if options.id:
            by = f"ids of the column {options.id}"
        if options.group:
            by = f"groups of the column {options.group}"
        shares = f"{rule.train:g}/{rule.val:g}/{rule.test:g}"
        self._carved = f"Carved by hash of {by}{self._within} into {shares} (seed {rule.seed})."
        return self._whole({"train": train, "val": val, "test": test})

    @property
    def _stratified(self) -> bool:
        stratify = self.options.split.stratify
        return self.options.target.kind == "class" if stratify is None else stratify

    @property
    def _within(self) -> str:
        return " within each class" if self._stratified else ""

    def _carve(self, members: Sequence[_Member], shares: Sequence[float]) -> list[list[Sample]]:
        way = carve_stratified if self._stratified else carve
        return way([m.sample for m in members], [m.key for m in members], shares, self.options.split.seed)

    def _whole(self, splits: dict[str, list[Sample]]) -> dict[str, list[Sample]]:
        column = self.options.split.column
        for name in ("train", "test", "val"):  # validation last: it may be empty only because training is small
            if not splits[name]:
                hint = "Give it rows" if column else "Give it a larger share, or more rows"
                raise self._too_little(f"no row of the manifest belongs to {name}", column, hint=hint)
        return splits


def _cell(row: Row, column: str, read: Callable[[Any], Any]) -> Any:
    """What a cell says; None where it is empty. Raises BadCell, naming the column, whatever reading it raises."""
    cell = row.cells[column]
    if cell is None:
        return None
    try:
        value = read(cell)
    except Exception as error:
        raise BadCell(f"{column}: {_reason(error)}") from None
    return None if isinstance(value, str) and not value.strip() else value


def _reason(error: Exception) -> str:
    if isinstance(error, BadCell | UserError):
        return str(error)
    return f"the cell cannot be read ({type(error).__name__}: {first_line(error)})"


def _declared_target(options: ManifestOptions) -> Target | None:
    """The target, where the study says enough; None where the file tells the classes."""
    own = options.target
    if own.kind == "number":
        return Target(own.task, signed=own.signed)
    return Target(own.task, tuple(own.classes)) if own.classes is not None else None


def sequence_formats(options: ManifestOptions) -> dict[str, SequenceFormat]:
    """How the modalities of kind "sequence" are read."""
    return {
        name: SequenceFormat(column.length, column.width)
        for name, column in options.modalities.items()
        if column.length is not None and column.width is not None
    }


def _card(options: DatasetOptions) -> DatasetCard:
    own = options.manifest
    return DatasetCard(
        name="manifest",
        title="your own data: a CSV, TSV, JSONL or Parquet file with a row per sample",
        modalities={name: column.kind for name, column in own.modalities.items()} if own else {},
        target=_declared_target(own) if own else None,
        sequences=sequence_formats(own) if own else {},
        get="data.path names the file",
        layout="a column per modality (file names relative to the file, or texts), a target; optional split, group, id",
        reads=("data.split_seed",),
    )


@register_dataset("manifest", card=_card)
def manifest(options: DatasetOptions) -> DatasetBuilder:
    if options.manifest is None:
        raise UserError("the manifest needs its file and columns", key="data", expected="path, modalities and target")
    return Manifest(options.manifest)
