"""The parts of a sweep's study that readers need, as plain data: `summary.json`, written when a sweep begins.

Tables, the report and MLflow read this instead of the study, so they need neither the schema nor torch.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from mmsweep.errors import UserError
from mmsweep.record.files import read_record, write_atomically
from mmsweep.record.objective import Objective

FILE = "summary.json"


def holds_sweep(folder: Path) -> bool:
    """Whether a folder holds a sweep; a trial's folder has a study too."""
    return (folder / "study.yaml").is_file() and not (folder / "trial.json").exists()


def lacks_summary(folder: Path) -> bool:
    """Whether a folder holds a sweep without a summary, as older versions of mmsweep wrote it."""
    return holds_sweep(folder) and not (folder / FILE).exists()


@dataclass(frozen=True)
class Searched:
    """One searched key.

    Args:
        kind: distribution of its values.
        low, high: bounds; 0 for a choice.
        choices: values of a choice.
    """

    kind: Literal["uniform", "log_uniform", "int", "log_int", "choice"]
    low: float
    high: float
    choices: list[Any]


@dataclass(frozen=True)
class Final:
    """The final runs after the search.

    Args:
        seeds: number of training seeds.
        per: keys; the best trial for each of their values is retrained. Empty: only the best trial of all.
    """

    seeds: int
    per: list[str]


@dataclass(frozen=True)
class Splits:
    """Where the validation split comes from.

    Args:
        column: manifest column that names the splits; None if rows are drawn by share or the dataset brings splits.
        seed: seed with which rows are drawn.
        groups: whether all rows of a group go to the same split.
        validation_rows: size of the dataset's own validation split, if it has one.
    """

    column: str | None
    seed: int
    groups: bool
    validation_rows: int | None


@dataclass(frozen=True)
class Scenarios:
    """The study's scenarios in its own notation, and the seed of their availability tables."""

    seed: int
    train: str | dict[str, Any]
    evaluate: list[str | dict[str, Any]]


@dataclass(frozen=True)
class Summary:
    """The summary of a sweep's study.

    Args:
        name: name of the sweep.
        digest: digest of the resolved study.
        dataset, task: the dataset, and its task if the dataset offers several.
        modalities: modalities that have an encoder; empty if one network reads all of them.
        epochs: epochs per trial, unless searched.
        seeds: seeds of split, scenarios, training and sampler.
        search: searched keys by dotted name.
        trials: number of trials that the study asks for.
        objectives: objectives; the first ranks the trials.
        scheduler: rule that stops weak trials, none before `grace_epochs`.
        final: final runs; None if there are none.
        over: what the report's intervals resample: some of rows, groups and seeds.
        published: dataset whose published scores the report shows, if not those of `dataset`.
    """

    name: str
    digest: str
    dataset: str
    task: str | None
    modalities: list[str]
    splits: Splits
    scenarios: Scenarios
    epochs: int
    seeds: dict[str, int]
    search: dict[str, Searched]
    trials: int
    objectives: list[Objective]
    scheduler: Literal["asha", "median", "none"]
    grace_epochs: int
    final: Final | None
    over: list[str] = field(default_factory=lambda: ["rows"])
    published: str | None = None

    @classmethod
    def load(cls, folder: Path) -> Summary:
        """Read the summary in a sweep's folder. Raises UserError if it is missing or damaged."""
        file = folder / FILE
        hint = "Delete it, and it is made again from study.yaml."
        summary = read_record(file, cls, problem="not what mmsweep wrote", hint=hint)
        if summary is None:
            raise UserError(
                "the file is missing", file=file, hint="A verb that may write here makes it from study.yaml."
            )
        return summary

    def write(self, folder: Path) -> None:
        """Write the summary into a sweep's folder."""
        write_atomically(folder / FILE, json.dumps(asdict(self), indent=1, default=str))
