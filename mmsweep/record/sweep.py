"""A sweep read from its folder: trials, the best one, final runs. Reads files only and does not contact MLflow.

sweep.json      SweepFile        summary.json    summary.Summary      packing.json    packing.Packing
tracking.json   TrackingFile     trials/0003/    trial.TrialFolder    final/best/seed-101/    trial.TrialFolder
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

from annotated_types import Interval
from typing_extensions import TypedDict

from mmsweep.errors import UserError
from mmsweep.record.files import OPEN, read_record
from mmsweep.record.objective import Objective
from mmsweep.record.packing import Packing
from mmsweep.record.results import FinalGroup, TrialRecord
from mmsweep.record.summary import Summary, holds_sweep
from mmsweep.record.trial import TrialFolder

SUPERSEDED = "superseded"  # folder of final runs whose trial is no longer the best
_LONGEST_GROUP = 50  # characters of a group's name before its digest: file names are limited to 255 bytes


class SweepFile(TypedDict, total=False):
    """`sweep.json`: a sweep's state."""

    __pydantic_config__ = OPEN  # type: ignore[misc]
    name: str
    state: Literal["running", "finished", "interrupted", "failed"]
    created: Annotated[float, Interval(ge=0, lt=1e11)]  # seconds since 1970
    mmsweep: str
    trials: Annotated[int, Interval(ge=0, lt=10**9)]
    mlflow: dict[str, str]
    data: dict[str, str]
    overrides: list[str]  # keys overridden on the command line of the first start


class TrackingFile(TypedDict):
    """`tracking.json`: the MLflow store and experiment of a sweep, and the run of each trial."""

    __pydantic_config__ = OPEN  # type: ignore[misc]
    id: str
    uri: NotRequired[str]
    experiment: NotRequired[str]
    run_id: NotRequired[str]
    runs: NotRequired[dict[str, str]]
    tags: NotRequired[dict[str, str]]


@dataclass(frozen=True)
class SweepRecord:
    """One sweep.

    Args:
        state: running | finished | interrupted | failed.
        summary: summary of its study.
        trials: trials by number.
        groups: final runs, in the study's order of `sweep.final.per`.
        tracking: content of `tracking.json`: uri, experiment, run_id, tags; empty if the sweep was not tracked.
        meta: content of `sweep.json`.
    """

    folder: Path
    name: str
    state: str
    summary: Summary
    trials: tuple[TrialRecord, ...]
    groups: tuple[FinalGroup, ...]
    tracking: Mapping[str, Any]
    meta: Mapping[str, Any]

    @classmethod
    def load(cls, folder: str | Path) -> SweepRecord:
        """Read a sweep's folder, finished or not.

        Raises:
            UserError: the folder holds no sweep, or a file in it is damaged; names the file.
        """
        root = Path(folder)
        if not holds_sweep(root):
            expected = "a sweep's folder, with study.yaml, sweep.json and trials/ in it"
            raise UserError("no sweep lies here", file=root, expected=expected, hint=_neighbours(root))
        summary = Summary.load(root)
        meta: Mapping[str, Any] = read_record(root / "sweep.json", SweepFile) or {}
        tracking: Mapping[str, Any] = read_record(root / "tracking.json", TrackingFile) or {}
        state, runs = str(meta.get("state", "interrupted")), tracking.get("runs") or {}
        trials = []
        for trial in map(TrialFolder, sorted((root / "trials").glob("*"))):
            if trial.exists():
                trials.append(TrialRecord.load(trial, summary, state, runs))
                _check_complete(trial, summary)
        groups = _groups(root / "final", summary, state, runs)
        return cls(root, str(meta.get("name", summary.name)), state, summary, tuple(trials), groups, tracking, meta)

    @cached_property
    def packing(self) -> Packing:
        """Slot occupancy of its packs."""
        return Packing.load(self.folder)

    @property
    def objective(self) -> Objective:
        """The first objective, which ranks the trials."""
        return self.summary.objectives[0]

    @property
    def metric(self) -> str:
        """The objective's metric without split and scenario: `f1_macro`."""
        return self.objective.metric.rsplit("/", 1)[-1]

    @cached_property
    def ranking(self) -> list[TrialRecord]:
        """Trials with a score, best first; ties in the order of their numbers."""
        scored = [(trial.objective, trial) for trial in self.trials if trial.objective is not None]
        scored.sort(key=lambda pair: (self.objective.rank(pair[0]), pair[1].id))
        return [trial for _, trial in scored]

    @property
    def best(self) -> TrialRecord | None:
        """The best finished trial; without one, the best of those stopped early or unfinished. Never a failed one."""
        for states in (("finished",), ("stopped", "running", "interrupted")):
            best = next((trial for trial in self.ranking if trial.state in states), None)
            if best:
                return best
        return None

    @property
    def best_group(self) -> FinalGroup | None:
        """The group selected on validation: the one with the best trial's value of `sweep.final.per`."""
        evaluated = [group for group in self.groups if group.evaluations]
        keys = self.summary.final.per if self.summary.final else []
        wanted = group_name(self.best.params, keys) if keys and self.best else None
        return min(evaluated, key=lambda group: group.name != wanted, default=None)

    @property
    def planned(self) -> int:
        """Number of trials that the sweep will have; a grid or `--extend` may differ from `sweep.trials`."""
        return max(int(self.meta.get("trials", self.summary.trials)), len(self.trials))

    def count(self, state: str) -> int:
        return sum(trial.state == state for trial in self.trials)

    def best_study_yaml(self) -> str | None:
        """The best trial's resolved study, as `mmsweep best` prints it."""
        return TrialFolder(self.best.folder).study_yaml() if self.best else None

    def to_json(self) -> dict[str, Any]:
        """The output of `mmsweep show --json` (DESIGN §6); with `sweep.final.per` it lists every group in "groups"."""
        chosen = self.best_group
        shown = {
            "name": self.name,
            "state": self.state,
            "trials": [trial.to_json() for trial in self.trials],
            "best": self.best.to_json() if self.best else None,
            "final": _cells(chosen) if chosen else {},
            "packing": self.packing.to_json(),
        }
        if self.summary.final and self.summary.final.per:
            shown["groups"] = {group.name: _cells(group) for group in self.groups}
        return shown


def trial_folders(root: Path) -> list[TrialFolder]:
    """A sweep's trials, its final runs, and its superseded final runs."""
    paths = [*sorted((root / "trials").glob("[0-9]*")), *sorted((root / "final").glob("*/seed-*"))]
    return [*map(TrialFolder, paths), *superseded_folders(root)]


def superseded_folders(root: Path) -> list[TrialFolder]:
    """Final runs that were moved aside because their trial is no longer the best."""
    return [TrialFolder(path) for path in sorted((root / SUPERSEDED).glob("*/seed-*"))]


def group_name(params: Mapping[str, Any], keys: Sequence[str]) -> str:
    """Folder name of the final runs for one value of `sweep.final.per`; the values of several keys are joined.

    Different values never share a name: where the text is ambiguous (it was cleaned or shortened, `"4"` and 4, `a-b`
    and `a` with `b`), a digest of the exact values is appended.
    """
    values = {key: params[key] for key in keys if key in params}
    parts = [str(value) for value in values.values()]
    text = "-".join(parts) if values else "None"
    name = re.sub(r"[^\w.-]+", "-", unicodedata.normalize("NFC", text))[-_LONGEST_GROUP:].strip(".-")
    exact = (
        "" != name == text
        and list(values) == list(keys[: len(values)])
        and all(_unambiguous(value) for value in values.values())
        and (len(keys) == 1 or not any("-" in part for part in parts))
    )
    if exact:
        return name
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]
    return f"{name}-{digest}".lstrip("-")


def _unambiguous(value: Any) -> bool:
    """Whether no other value has the same plain text, unlike a text that reads as a number, a boolean or None."""
    if not isinstance(value, str):
        return value is not None  # "None" names the group of trials that have none of the keys
    try:
        ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return True
    return False


def _check_complete(folder: TrialFolder, summary: Summary) -> None:
    """Refuse a finished trial whose reports were lost, which would silently drop out of the ranking."""
    about, reports, done = folder.trial(), folder.reports(), folder.done()
    if done is None or done["state"] != "finished":
        return
    epochs = about["params"].get("train.epochs", summary.epochs)
    if not isinstance(epochs, int):
        raise UserError("not a number of epochs", file=folder.path / "trial.json", key="train.epochs", found=epochs)
    if not reports or reports[-1].epoch < epochs:
        raise UserError(
            "reports are missing: the trial is marked as finished", file=folder.path / "reports.jsonl",
            found=f"{len(reports)} epochs", expected=f"{epochs} epochs",
            hint="Delete done.json beside it, and --resume completes the trial.",
        )  # fmt: skip


def _groups(root: Path, summary: Summary, sweep_state: str, runs: Mapping[str, str]) -> tuple[FinalGroup, ...]:
    groups = []
    for path in sorted(path for path in root.glob("*") if path.is_dir()):
        folders = map(TrialFolder, sorted(path.glob("seed-*"), key=lambda p: (len(p.name), p.name)))
        records = [TrialRecord.load(folder, summary, sweep_state, runs) for folder in folders if folder.exists()]
        groups.append(FinalGroup(path.name, tuple(records)))
    groups.sort(key=lambda group: (_place(group, summary), group.name))
    return tuple(groups)


def _place(group: FinalGroup, summary: Summary) -> tuple[int, ...]:
    """Positions of a group's values of `sweep.final.per` among the study's choices; unknown values come last."""
    params = group.runs[0].params if group.runs else {}
    places = []
    for key in summary.final.per if summary.final else []:
        choices = summary.search[key].choices
        places.append(choices.index(params[key]) if params.get(key) in choices else len(choices))
    return tuple(places)


def _cells(group: FinalGroup) -> dict[str, Any]:
    return {s: {m: cell.to_json() for m, cell in row.items()} for s, row in group.table().items()}


def _neighbours(root: Path) -> str | None:
    """A hint that lists sweeps near a mistyped path."""
    places = [root, root.parent] if root.parent != root else [root]
    near = sorted(str(p.parent) for place in places if place.is_dir() for p in place.glob("*/study.yaml"))[:5]
    return f"Sweeps near it: {', '.join(near)}" if near else None
