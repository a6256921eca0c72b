"""What readers need of a sweep's study, as plain data: `summary.json`, written beside the study when a sweep begins.

Whoever shows a sweep reads this and no study: tables, the report and MLflow need no schema and no torch.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from mmsweep.errors import UserError
from mmsweep.record.files import read_record, write_whole
from mmsweep.record.objective import Objective

FILE = "summary.json"


def holds_sweep(folder: Path) -> bool:
    """Whether a sweep lies in a folder; a trial's folder has a study too."""
    return (folder / "study.yaml").is_file() and not (folder / "trial.json").exists()


def lacks_summary(folder: Path) -> bool:
    """Whether a sweep lies in a folder and no summary beside it, as an older mmsweep left it."""
    return holds_sweep(folder) and not (folder / FILE).exists()


@dataclass(frozen=True)
class Searched:
    """One searched key.

    Args:
        kind: how its values are spread.
        low, high: the bounds; 0 for a choice.
        choices: the values of a choice.
    """

    kind: Literal["uniform", "log_uniform", "int", "log_int", "choice"]
    low: float
    high: float
    choices: list[Any]


@dataclass(frozen=True)
class Final:
    """What is trained again after the search.

    Args:
        seeds: how often.
        per: keys; the best trial for each of their values is trained again. Empty: the best of all.
    """

    seeds: int
    per: list[str]


@dataclass(frozen=True)
class Splits:
    """Where the validation part comes from.

    Args:
        column: of a manifest that names the splits; None: they are carved by shares, or come with the dataset.
        seed: with which rows are drawn.
        groups: whether groups of rows stay whole.
        validation_rows: of a dataset that comes with a validation part.
    """

    column: str | None
    seed: int
    groups: bool
    validation_rows: int | None


@dataclass(frozen=True)
class Scenarios:
    """The scenarios as the study writes them, and the seed of their availability tables."""

    seed: int
    train: str | dict[str, Any]
    evaluate: list[str | dict[str, Any]]


@dataclass(frozen=True)
class Summary:
    """One sweep's study.

    Args:
        name: the sweep's.
        digest: of the resolved study.
        dataset, task: what is learned from; the task where the dataset offers several.
        modalities: those with an encoder; empty where one network reads all of them.
        epochs: of a trial, unless they are searched.
        seeds: of everything that is drawn: split, scenarios, training, sampler.
        search: by dotted key.
        trials: how many are asked for.
        objectives: the first ranks the trials.
        scheduler: what stops weak trials, none before `grace_epochs`.
        final: None: nothing is trained again.
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

    @classmethod
    def load(cls, folder: Path) -> Summary:
        """The summary in a sweep's folder. Raises UserError where there is none, or it is damaged."""
        file = folder / FILE
        hint = "Delete it, and it is made again from study.yaml."
        found = read_record(file, cls, problem="not what mmsweep wrote", hint=hint)
        if found is None:
            raise UserError(
                "the file is missing", file=file, hint="A verb that may write here makes it from study.yaml."
            )
        return found

    def write(self, folder: Path) -> None:
        """Write it into a sweep's folder."""
        write_whole(folder / FILE, json.dumps(asdict(self), indent=1, default=str))
