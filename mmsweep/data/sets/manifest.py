"""The user's own data: a CSV, JSONL or Parquet file with a row per sample.

A modality is a column of file names (relative to the file) or of texts; an empty cell is a modality that the sample
does not have, in whatever split. The target is a class, a list of labels or a number. Splits come from a column, or are
carved by the hash of a row's group, so that neither the order of rows nor other columns move a row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mmsweep.data.clips import natural_key
from mmsweep.data.dataset import SPLITS, BadRow, DatasetBuilder, Sample, Target
from mmsweep.data.formats import SequenceFormat
from mmsweep.data.options import DatasetOptions, ManifestOptions
from mmsweep.data.registry import DatasetCard, register_dataset
from mmsweep.data.splitting import carve
from mmsweep.data.tables import read_table
from mmsweep.errors import UserError

SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val", "test": "test"}
CARVED_VALIDATION = 0.1
"""Share of the training rows that validate where a split column names no validation rows."""

REMOTE = ("http://", "https://", "s3://", "gs://")


class Manifest(DatasetBuilder):
    """Reads the file when made (not the pictures), so that classes are known at once.

    Raises:
        UserError: absent or malformed file, absent column, unknown name of a split, a group in two splits,
            no rows in a split.
    """

    name = "manifest"

    def __init__(self, options: ManifestOptions) -> None:
        self.options, self.path = options, Path(options.path)
        self.modalities = {name: modality.kind for name, modality in options.modalities.items()}
        self.sequences = sequence_formats(options)
        rows = list(read_table(self.path, self._columns()))
        if not rows:
            raise UserError("the manifest has no rows", file=self.path)
        bad: list[BadRow] = []
        labels = {line: self._labels(line, row[options.target.column], bad) for line, row in rows}
        self.target = self._target(label for label in labels.values() if label is not None)
        samples = [sample for line, row in rows if (sample := self._sample(line, row, labels[line], bad)) is not None]
        # Bad rows are told in the order of lines, whichever check found them.
        self.bad_rows = tuple(sorted(bad, key=lambda row: int(row.origin.rsplit(":", 1)[1])))
        self._lines = {line: row for line, row in rows}
        self._carved = ""
        self._splits = self._by_column(samples) if options.split.column else self._by_share(samples)
        del self._lines

    def splits(self) -> dict[str, list[Sample]]:
        return {name: list(rows) for name, rows in self._splits.items()}

    def provenance(self) -> str:
        counts = ", ".join(f"{len(self._splits[name])} {name}" for name in SPLITS)
        return f"{self.path.name}: {counts} rows. {self._carved}".strip()

    # ---- rows ------------------------------------------------------------------------------------------------------

    def _columns(self) -> list[tuple[str, str]]:
        options = self.options
        columns = [(f"data.modalities.{name}.column", m.column) for name, m in options.modalities.items()]
        columns.append(("data.target.column", options.target.column))
        if options.split.column:
            columns.append(("data.split.column", options.split.column))
        if options.group:
            columns.append(("data.group.column", options.group))
        return columns

    def _sample(self, line: int, row: dict[str, Any], label: Any, bad: list[BadRow]) -> Sample | None:
        if label is None:
            return None  # already told
        origin = f"{self.path.name}:{line}"
        values: dict[str, Any] = {}
        for name, modality in self.options.modalities.items():
            value, problem = self._value(modality.kind, row.get(modality.column))
            if problem:
                bad.append(BadRow(origin, f"{modality.column}: {problem}"))
                return None
            values[name] = value
        if all(value is None for value in values.values()):
            columns = ", ".join(modality.column for modality in self.options.modalities.values())
            bad.append(BadRow(origin, f"nothing to learn from: every modality is empty ({columns})"))
            return None
        try:
            self.target.encode(label)
        except UserError as error:
            bad.append(BadRow(origin, f"{self.options.target.column}: {error}"))
            return None
        group = row.get(self.options.group) if self.options.group else None
        return Sample(str(line), values, label, None if group is None else str(group), origin)

    def _value(self, kind: str, cell: Any) -> tuple[Any, str | None]:
        """(raw value, what is wrong with it)."""
        if cell is None:
            return None, None
        if kind == "text":
            return (cell, None) if isinstance(cell, str) else (str(cell), None)
        if isinstance(cell, dict) and isinstance(cell.get("bytes"), bytes):
            cell = cell["bytes"]  # how the datasets library keeps pictures in Parquet
        if isinstance(cell, bytes):
            return (cell, None) if kind != "video" else (None, "a clip must be a file name; found bytes")
        if not isinstance(cell, str):
            return None, f"expected a file name; found {cell!r}"
        if cell.strip().startswith(REMOTE):
            return (
                None,
                f"files on a network are not read; found {cell!r}; expected a file name relative to the manifest",
            )
        return self.path.parent.absolute() / cell.strip(), None

    def _labels(self, line: int, cell: Any, bad: list[BadRow]) -> Any:
        """The target as the task wants it, or None and a bad row."""
        target = self.options.target
        problem = None
        if target.task == "multi_label":
            # No label at all is a legitimate answer: the row counts as negative for every class.
            parts = cell.split(target.separator) if isinstance(cell, str) else [] if cell is None else cell
            if isinstance(parts, (list, tuple)):
                return [str(part).strip() for part in parts if part is not None and str(part).strip()]
            problem = f"expected a list of labels; found {cell!r}"
        elif cell is None:
            problem = "the target is empty"
        elif target.task == "regression":
            return cell
        elif isinstance(cell, (list, dict, bytes)):
            problem = f"expected one class; found {cell!r}"
        else:
            return str(cell).strip()
        bad.append(BadRow(f"{self.path.name}:{line}", f"{target.column}: {problem}"))
        return None

    def _target(self, labels: Iterable[Any]) -> Target:
        target = self.options.target
        if target.task == "regression":
            return Target("regression", signed=target.signed)
        if target.classes is not None:
            return Target(target.task, tuple(target.classes))
        found = {name for label in labels for name in (label if isinstance(label, list) else [label])}
        if len(found) < (2 if target.task == "single_label" else 1):
            raise UserError(
                "the target column holds too few classes", file=self.path, key=target.column, found=sorted(found)
            )
        return Target(target.task, tuple(sorted(found, key=natural_key)))

    # ---- splits ----------------------------------------------------------------------------------------------------

    def _by_column(self, samples: list[Sample]) -> dict[str, list[Sample]]:
        column = self.options.split.column
        assert column is not None
        splits: dict[str, list[Sample]] = {name: [] for name in SPLITS}
        homes: dict[str, tuple[str, str]] = {}
        for sample in samples:
            cell = self._lines[int(sample.id)][column]
            name = SPLIT_NAMES.get(str(cell).strip().lower())
            if name is None:
                raise UserError(
                    "unknown split", file=self.path, line=int(sample.id), key=column, found=cell or "",
                    expected="train, val (valid, validation, dev) or test",
                )  # fmt: skip
            if sample.group is not None:
                home, line = homes.setdefault(sample.group, (name, sample.id))
                if home != name:
                    raise UserError(
                        f"a group stands in two splits: in {home} on line {line} and in {name} here",
                        file=self.path, line=int(sample.id), key=self.options.group, found=sample.group,
                    )  # fmt: skip
            splits[name].append(sample)
        if not splits["val"] and splits["train"]:
            parts = carve(splits["train"], self._keys(splits["train"]), [CARVED_VALIDATION], self.options.split.seed)
            splits["val"], splits["train"] = parts
            self._carved = (
                f"The column {column} names no validation rows: {CARVED_VALIDATION:.0%} of the training rows were "
                f"carved off by hash (seed {self.options.split.seed})."
            )
        else:
            self._carved = f"Splits are those of the column {column}."
        return self._numbered(splits)

    def _by_share(self, samples: list[Sample]) -> dict[str, list[Sample]]:
        rule = self.options.split
        test, val, train = carve(samples, self._keys(samples), [rule.test, rule.val], rule.seed)
        by = f"groups of the column {self.options.group}" if self.options.group else "rows"
        self._carved = f"Carved by hash of {by} into {rule.train:g}/{rule.val:g}/{rule.test:g} (seed {rule.seed})."
        return self._numbered({"train": train, "val": val, "test": test})

    def _keys(self, samples: list[Sample]) -> list[str]:
        """What decides a row's split: its group, else its own cells (equal rows stay together)."""
        return [self._content(sample) if s is None else f"group {s}" for sample in samples for s in [sample.group]]

    def _content(self, sample: Sample) -> str:
        columns = [modality.column for modality in self.options.modalities.values()] + [self.options.target.column]
        row = self._lines[int(sample.id)]
        cells = [hashlib.sha256(c).hexdigest() if isinstance(c, bytes) else c for c in (row.get(n) for n in columns)]
        return hashlib.sha256(json.dumps(cells, default=_plain).encode()).hexdigest()[:16]

    def _numbered(self, splits: dict[str, list[Sample]]) -> dict[str, list[Sample]]:
        """Ids from the cells, so that a row keeps its id when lines are added above it; equal rows are counted."""
        seen: dict[str, int] = {}
        for name in ("train", "test", "val"):  # validation last: it may be empty only because training is small
            if not splits[name]:
                raise UserError(
                    f"no row of the manifest belongs to {name}", file=self.path, key=self.options.split.column,
                    hint="Give it rows" if self.options.split.column else "Give it a larger share, or more rows",
                )  # fmt: skip
        for name in SPLITS:
            for index, sample in enumerate(splits[name]):
                content = self._content(sample)
                seen[content] = seen.get(content, 0) + 1
                own = content if seen[content] == 1 else f"{content}-{seen[content]}"
                splits[name][index] = Sample(own, sample.values, sample.target, sample.group, sample.origin)
        return splits


def sequence_formats(options: ManifestOptions) -> dict[str, SequenceFormat]:
    """How the modalities of kind "sequence" are read."""
    return {
        name: SequenceFormat(column.length, column.width)
        for name, column in options.modalities.items()
        if column.length is not None and column.width is not None
    }


def _plain(value: Any) -> str:
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    return str(value)


def _card(options: DatasetOptions) -> DatasetCard:
    own = options.manifest
    target = None
    if own is not None and (own.target.classes is not None or own.target.task == "regression"):
        target = Target(own.target.task, tuple(own.target.classes or ()), signed=own.target.signed)
    return DatasetCard(
        name="manifest",
        title="your own data: a CSV, JSONL or Parquet file with a row per sample",
        modalities={name: column.kind for name, column in own.modalities.items()} if own else {},
        target=target,
        sequences=sequence_formats(own) if own else {},
        get="data.path names the file",
        layout="a column per modality (file names relative to the file, or texts), a target; optional split and group",
    )


@register_dataset("manifest", card=_card)
def manifest(options: DatasetOptions) -> DatasetBuilder:
    if options.manifest is None:
        raise UserError("the manifest needs its file and columns", key="data", expected="path, modalities and target")
    return Manifest(options.manifest)
