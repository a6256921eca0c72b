"""What a study tells a dataset: the typed options that builders read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mmsweep.data.dataset import MODALITY_KINDS
from mmsweep.data.modality_names import misnamed
from mmsweep.errors import UserError
from mmsweep.tasks.task import TASKS, TargetKind


@dataclass(frozen=True)
class ModalityColumn:
    """A modality of the user's file.

    Args:
        kind: what it is: image, text, audio, video or sequence.
        column: the column that holds it.
        length, width: of a sequence: most steps, and features a step.
    """

    kind: str
    column: str
    length: int | None = None
    width: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in MODALITY_KINDS:
            raise UserError("unknown kind of modality", key="kind", found=self.kind, expected=", ".join(MODALITY_KINDS))
        if (self.kind == "sequence") != (self.length is not None and self.width is not None):
            raise UserError(
                "a sequence, and nothing else, has a length and a width",
                key="kind",
                found=self.kind,
                expected=f"both, or another kind than sequence; they are {self.length} and {self.width}",
            )


@dataclass(frozen=True)
class TargetColumn:
    """The target of the user's file.

    Args:
        task: single_label (a class), multi_label (labels), regression (a number).
        column: the column that holds it.
        separator: between the labels of a multi_label cell (lists of JSONL and Parquet need none).
        classes: names in the order of the outputs; None: those that occur in the file, sorted.
        signed: regression: the number's sign means something (Target.signed).
    """

    task: str
    column: str
    separator: str = "|"
    classes: tuple[str, ...] | None = None
    signed: bool = False

    def __post_init__(self) -> None:
        if not self.separator:
            raise UserError("the separator of labels is empty", key="data.target.separator", found=self.separator)

    @property
    def kind(self) -> TargetKind:
        """What one cell holds, as `Target.kind`."""
        kind: TargetKind = TASKS[self.task].target_kind
        return kind


@dataclass(frozen=True)
class SplitRule:
    """Where a row belongs: a column that says so, or shares that are carved by hash.

    Args:
        column: holds train, val (valid, validation, dev) or test.
        train, val, test: shares that sum to 1, without a column.
        seed: of the carving; also of validation carved from training when the column names none.
        stratify: whether carved splits keep the shares within every class; None: for single_label.
    """

    column: str | None = None
    train: float = 0.8
    val: float = 0.1
    test: float = 0.1
    seed: int = 0
    stratify: bool | None = None

    def __post_init__(self) -> None:
        shares = (self.train, self.val, self.test)
        if self.column is None and (min(shares) <= 0 or not math.isclose(sum(shares), 1.0, abs_tol=1e-6)):
            raise UserError(
                "the shares of train, val and test must be positive and sum to 1", key="data.split", found=shares
            )


@dataclass(frozen=True)
class ManifestOptions:
    """The user's own data: one file with a row per sample.

    Args:
        path: CSV (.csv, .tsv), JSONL (.jsonl, .ndjson) or Parquet (.parquet); file names in it
            are relative to its folder.
        modalities: name -> column, in order.
        target: what is predicted.
        split: which rows train, validate and test.
        group: a column whose equal values never stand in two splits.
        id: a column that names each row; carved splits follow it instead of the row's content.
    """

    path: Path
    modalities: Mapping[str, ModalityColumn]
    target: TargetColumn
    split: SplitRule = SplitRule()
    group: str | None = None
    id: str | None = None

    def __post_init__(self) -> None:
        if not self.modalities:
            raise UserError("at least one modality is needed", key="data.modalities")
        if problem := misnamed(list(self.modalities)):
            raise UserError(problem.why, key="data.modalities", found=problem.name, expected=problem.expected)
        if self.split.stratify and self.target.kind != "class":
            raise UserError("only single_label has classes to stratify by", key="data.split.stratify",
                            found=self.target.task, expected="stratify: false, or task: single_label")  # fmt: skip
        clashes = [name for name, modality in self.modalities.items() if modality.column == self.target.column]
        if clashes:
            raise UserError("the target's column is also an input", key=f"data.modalities.{clashes[0]}.column",
                            found=self.target.column)  # fmt: skip


@dataclass(frozen=True)
class DatasetOptions:
    """The part of a study's `data` that builders read.

    Args:
        root: where the raw data lies (datasets on disk).
        task: for datasets with several tasks; None: the dataset's own.
        text_field: for datasets with several texts a row; None: the dataset's own.
        split_seed: for splits that are carved here.
        manifest: the user's own file (dataset "manifest" only).
        language: for datasets spoken in several languages; None: the dataset's own.
    """

    root: Path | None = None
    task: str | None = None
    text_field: str | None = None
    split_seed: int = 0
    manifest: ManifestOptions | None = None
    language: str | None = None
