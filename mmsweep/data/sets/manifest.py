"""The user's own data: a CSV, TSV, JSONL or Parquet file with a row per sample.

A modality is a column of file names (relative to the file) or of texts, or the columns of a table; where it is empty,
of a table all of its columns, the sample does not have this modality, in whatever split. The target is a class, a list
of labels, a number or the file of a label map. What cells may hold says `cells.py`. Splits come from a column, or are
carved by the hash of a row's group, its declared id, or the whole row as the file has it, so that neither the order of
rows nor what a study names of the file moves a row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field, SerializeAsAny, field_validator, model_validator

from mmsweep.components import Choice, Section, misfit, register
from mmsweep.data.cells import BadCell, class_name, shown
from mmsweep.data.dataset import SPLITS, BadRow, DatasetBuilder, DatasetCard, Sample, refusal
from mmsweep.data.files import first_line, natural_key
from mmsweep.data.kinds.kind import Columns, Format
from mmsweep.data.modality_names import misnamed
from mmsweep.data.options import DATASETS, KINDS, DatasetOptions
from mmsweep.data.splitting import CARVED_VALIDATION, carve, carve_stratified, repeated
from mmsweep.data.tables import Row, read_table
from mmsweep.data.target_column import TargetColumn
from mmsweep.errors import UNSET, UserError, nearest
from mmsweep.tasks.task import Target

SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val", "test": "test"}


class Split(Section):
    column: str | None = Field(
        None,
        description="Name of the column that says train, val (valid, validation, dev) or test. Where it names no "
        "validation rows, a tenth of the training rows is carved off. null: the shares below are carved.",
    )
    train: float | None = Field(None, gt=0, lt=1, description="Share of the rows that train.")
    val: float | None = Field(None, gt=0, lt=1, description="Share of the rows that validate.")
    test: float | None = Field(None, gt=0, lt=1, description="Share of the rows that test; the three sum to 1.")
    seed: int | None = Field(None, ge=0, description="Seed of the carving; null: data.split_seed.")
    stratify: bool | None = Field(
        None,
        description="Whether carved splits keep the shares within every class; null: yes for single_label, no "
        "otherwise. Where it is on, the splits follow the target as well: another target column moves some rows.",
    )

    @model_validator(mode="after")
    def _whole(self) -> Split:
        shares = [share for share in (self.train, self.val, self.test) if share is not None]
        if self.column is not None and shares:
            raise misfit("the splits come from a column or from shares", "column, or train, val and test")
        if self.column is None and shares and (len(shares) < 3 or not math.isclose(sum(shares), 1.0, abs_tol=1e-6)):
            raise misfit("the shares of train, val and test must sum to 1", "all three, with the sum 1")
        return self

    @property
    def shares(self) -> tuple[float, float, float]:
        """Of train, val and test."""
        return self.train or 0.8, self.val or 0.1, self.test or 0.1


class GroupColumn(Section):
    column: str = Field(description="Name of the column; rows with equal values never stand in two splits.")


class IdColumn(Section):
    column: str = Field(
        description="Name of the column with a text or a number that no other row has. Splits that are carved follow "
        "it, and rows are known by it."
    )


class ManifestOptions(DatasetOptions):
    read_with = {"split_seed": ("split.seed", None)}
    path: str = Field(
        description="The CSV, TSV, JSONL or Parquet file with a row per sample; a folder that `datasets` saved "
        "(save_to_disk), or a folder of WebDataset's .tar files."
    )
    modalities: dict[str, Annotated[SerializeAsAny[Columns], Choice(KINDS, "data.modalities.<modality>")]] = Field(
        min_length=1,
        description="The columns that are inputs, by name, in order. A name is a letter followed by letters, digits or "
        "_, and no word that PyTorch or mmsweep uses itself, such as type, targets or both.",
    )
    target: TargetColumn = Field(description="What is predicted.")
    split: Split | None = Field(
        None, description="Where a row belongs; null carves 0.8, 0.1 and 0.1 of the rows by hash."
    )
    published: str | None = Field(
        None,
        description="Name of a dataset, such as food101, whose published scores the report shows beside yours: for a "
        "copy of it in a layout of your own. Modalities need the dataset's names.",
    )
    split_seed: int = Field(0, ge=0, description="Seed of the splits that are carved here.")
    group: GroupColumn | None = Field(None, description="What must not be cut by the splits.")
    id: IdColumn | None = Field(
        None,
        description="What names a row. null: the row's whole content, columns that the study does not use included, so "
        "that carved splits stay as they are when a modality is added to the study; a changed file moves the rows that "
        "changed.",
    )

    @field_validator("published")
    @classmethod
    def _is_a_dataset(cls, name: str | None) -> str | None:
        if name is not None and name not in DATASETS:
            raise misfit("no such dataset", f"one of {', '.join(DATASETS)}", hint=nearest(name, DATASETS) or "")
        return name

    @model_validator(mode="before")
    @classmethod
    def _modalities_have_names(cls, values: Any) -> Any:
        modalities = values.get("modalities") if isinstance(values, dict) else None
        if isinstance(modalities, dict) and (problem := misnamed(list(modalities))):
            raise misfit(problem.why, problem.expected, "modalities", problem.name)
        return values

    @model_validator(mode="after")
    def _fits_together(self) -> ManifestOptions:
        if self.split and self.split.stratify and self.target.kind != "class":
            problem = f"{self.target.task} has no classes to stratify by"
            raise misfit(problem, "stratify: false, or task: single_label", "split.stratify", True)
        named = {"split": self.split, "group": self.group, "id": self.id}
        taken = {section.column: f"the column of data.{key}" for key, section in named.items() if section is not None}
        for name, modality in self.modalities.items():
            for option, column in modality.columns():
                key = f"modalities.{name}.{option}"
                if column == self.target.column:
                    raise misfit("the target's column is also an input", "another column", key, column)
                if option != "column":  # of a table
                    if column in taken:
                        raise misfit(f"a column of a table is also {taken[column]}", "another column", key, column)
                    taken[column] = f"one of data.modalities.{name}"
        return self

    @property
    def seed(self) -> int:
        """Seed of carved splits in force."""
        return self.split_seed if self.split is None or self.split.seed is None else self.split.seed

    @property
    def declared_target(self) -> Target | None:
        """The target, where the study says enough; None where the file tells the classes."""
        return self.target.declared


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


@register("manifest")
class Manifest(DatasetBuilder):
    """Reads the file when made (not the pictures), so that classes are known at once.

    Whatever is wrong with a row makes it a bad row, kept apart in `bad_rows`.

    Raises:
        UserError: absent or malformed file, absent column, a group in two splits; too few classes or no rows in a
            split, after the bad rows that led to it.
    """

    Options = ManifestOptions
    name = "manifest"
    title = "your own data: a CSV, TSV, JSONL or Parquet file with a row per sample"
    get = "data.path names the file"
    layout = "a column per modality (file names relative to the file, or texts), a target; optional split, group, id"
    options: ManifestOptions

    @classmethod
    def card(cls, options: ManifestOptions | None = None) -> DatasetCard:
        card = super().card(options)
        if options is None:
            return card
        kinds = {name: column.kind for name, column in options.modalities.items()}
        formats = {n: f for n, column in options.modalities.items() if (f := column.format()) is not None}
        return replace(card, modalities=kinds, target=options.declared_target, formats=formats)

    def __init__(self, options: ManifestOptions) -> None:
        super().__init__(options)
        self.path = Path(options.path)
        self._column = options.split.column if options.split else None
        self._group = options.group.column if options.group else None
        self._id = options.id.column if options.id else None
        self._folder = (self.path if self.path.is_dir() else self.path.parent).absolute()
        self._declared = options.declared_target
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
        self._splits = self._by_column(members) if self._column else self._by_share(members)
        self.formats = self._learned_formats()

    def splits(self) -> dict[str, list[Sample]]:
        return {name: list(rows) for name, rows in self._splits.items()}

    def provenance(self) -> str:
        counts = ", ".join(f"{len(self._splits[name])} {name}" for name in SPLITS)
        twice = sum(1 for _ in repeated(self._splits))
        leak = f" The same inputs stand in more than one split {twice} times." if twice else ""
        return f"{self.path.name}: {counts} rows. {self._carved}{leak}"

    def _learned_formats(self) -> dict[str, Format]:
        """How modalities are read, where the study or the training rows say it."""
        formats = {}
        for name, modality in self.options.modalities.items():
            try:
                format = modality.learned([sample.values[name] for sample in self._splits["train"]])
            except UserError as problem:
                key = f"data.modalities.{name}.{problem.key}"
                raise self._too_little(problem.problem, key, problem.found, problem.hint) from None
            if format is not None:
                formats[name] = format.read_as(self.options.reading(modality.kind))
        return formats

    # ---- rows ------------------------------------------------------------------------------------------------------

    def _columns(self) -> list[tuple[str, str]]:
        options = self.options
        columns = [
            (f"data.modalities.{name}.{option}", column)
            for name, modality in options.modalities.items()
            for option, column in modality.columns()
        ]
        columns.append(("data.target.column", options.target.column))
        named = {"split": self._column, "group": self._group, "id": self._id}
        return columns + [(f"data.{key}.column", column) for key, column in named.items() if column]

    def _origin(self, line: int) -> str:
        return f"{self.path.name}:{line}"

    def _member(self, row: Row) -> _Member:
        """Raises BadCell for what is wrong with the row, naming the column."""
        options = self.options
        values = {
            name: modality.joined([_cell(row, *reader) for reader in modality.readers(self._folder).items()])
            for name, modality in options.modalities.items()
        }
        if all(value is None for value in values.values()):
            columns = ", ".join(column for own in options.modalities.values() for _, column in own.columns())
            raise BadCell(f"nothing to learn from: every modality is empty ({columns})")
        target = self._target(row)
        group = _cell(row, self._group, class_name) if self._group else None
        split = self._split(row, self._column) if self._column else None
        id = self._declared_id(row, self._id) if self._id else row.content
        equal = self._lines.setdefault(id, [])  # rows of equal content are counted; a declared id stands once
        equal.append(row.line)
        own = id if len(equal) == 1 else f"{id}-{len(equal)}"
        key = f"row {id}" if group is None else f"group {group}"
        return _Member(Sample(own, values, target, group, self._origin(row.line)), row.line, split, key)

    def _target(self, row: Row) -> Any:
        target = self.options.target
        value = _cell(row, target.column, partial(target.value, folder=self._folder))
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

    @staticmethod
    def _split(row: Row, column: str) -> str:
        name = SPLIT_NAMES.get((_cell(row, column, class_name) or "").lower())
        if name is None:
            raise BadCell(
                f"{column}: unknown split; found {shown(row.cells[column] or '')}; expected train, val (valid, "
                "validation, dev) or test"
            )
        return name

    def _declared_id(self, row: Row, column: str) -> str:
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
        homes: dict[str, tuple[str, int]] = {}
        parts: dict[str, list[_Member]] = {name: [] for name in SPLITS}
        for member in members:
            assert member.split is not None
            if (group := member.sample.group) is not None:
                home, line = homes.setdefault(group, (member.split, member.line))
                if home != member.split:
                    raise UserError(
                        f"a group stands in two splits: in {home} on line {line} and in {member.split} here",
                        file=self.path, line=member.line, key=self._group, found=group,
                    )  # fmt: skip
            parts[member.split].append(member)
        self._carved = f"Splits are those of the column {self._column}."
        splits = {name: [member.sample for member in part] for name, part in parts.items()}
        if not splits["val"] and splits["train"]:
            splits["val"], splits["train"] = self._carve(parts["train"], [CARVED_VALIDATION])
            self._carved = (
                f"The column {self._column} names no validation rows: {CARVED_VALIDATION:.0%} of the training rows "
                f"were carved off by hash{self._within} (seed {self.options.seed})."
            )
        return self._whole(splits)

    def _by_share(self, members: Sequence[_Member]) -> dict[str, list[Sample]]:
        sizes = (self.options.split or Split()).shares
        test, val, train = self._carve(members, [sizes[2], sizes[1]])
        by = "rows"
        if self._id:
            by = f"ids of the column {self._id}"
        if self._group:
            by = f"groups of the column {self._group}"
        shares = "/".join(f"{size:g}" for size in sizes)
        self._carved = f"Carved by hash of {by}{self._within} into {shares} (seed {self.options.seed})."
        return self._whole({"train": train, "val": val, "test": test})

    @property
    def _stratified(self) -> bool:
        asked = self.options.split.stratify if self.options.split else None
        return self.options.target.kind == "class" if asked is None else asked

    @property
    def _within(self) -> str:
        return " within each class" if self._stratified else ""

    def _carve(self, members: Sequence[_Member], shares: Sequence[float]) -> list[list[Sample]]:
        way = carve_stratified if self._stratified else carve
        return way([m.sample for m in members], [m.key for m in members], shares, self.options.seed)

    def _whole(self, splits: dict[str, list[Sample]]) -> dict[str, list[Sample]]:
        column = self._column
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
