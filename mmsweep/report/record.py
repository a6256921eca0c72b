"""A sweep as its folder tells it: trials, the best, the finals. Reads files only, starts nothing, asks no MLflow."""

from __future__ import annotations

import ast
import hashlib
import json
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mmsweep.errors import UserError
from mmsweep.record.files import SweepFile, TrackingFile, read_record
from mmsweep.report.finals import Evaluation, FinalGroup, FinalRun
from mmsweep.report.packing import Packing
from mmsweep.study import Study
from mmsweep.study_search import Objective
from mmsweep.training.checkpoint import TrialFolder

_LONGEST_GROUP = 50  # characters of a group's name before its digest: file names end at 255 bytes


@dataclass(frozen=True)
class TrialRecord:
    """One trial.

    Args:
        id: its folder's name, "0003".
        state: finished | stopped (early) | failed | running | interrupted.
        params: what varies.
        metrics: of the epoch that counts: the best by the first objective, or the last where its scope says so.
        objective: the first objective's value at that epoch; None where there is none (no report yet, or NaN).
        epoch: that epoch.
        curve: (epoch, first objective) of every report.
        seconds: training and validation, all epochs.
        constant: the first objective of the constant predictor on validation; None where it is not known.
    """

    id: str
    state: str
    params: Mapping[str, Any]
    metrics: Mapping[str, float]
    objective: float | None
    epoch: int | None
    curve: tuple[tuple[int, float], ...]
    seconds: float
    mlflow_run_id: str | None
    error: str | None
    folder: Path
    constant: float | None = None

    @property
    def number(self) -> int | str:
        return int(self.id) if self.id.isdigit() else self.id

    def to_json(self) -> dict[str, Any]:
        shown = {
            "id": self.id,
            "state": self.state,
            "params": dict(self.params),
            "metrics": {name: None if math.isnan(value) else value for name, value in self.metrics.items()},
            "objective": self.objective,
            "epoch": self.epoch,
            "mlflow_run_id": self.mlflow_run_id,
        }
        return shown if self.constant is None else {**shown, "constant": self.constant}


@dataclass(frozen=True)
class SweepRecord:
    """One sweep.

    Args:
        state: running | finished | interrupted | failed.
        study: as it was asked for.
        trials: by number.
        groups: finals, in the study's order of `sweep.final.per`.
        tracking: what was told to MLflow: uri, experiment, run_id, tags; empty where the sweep was not tracked.
        meta: `sweep.json`.
    """

    folder: Path
    name: str
    state: str
    study: Study
    trials: tuple[TrialRecord, ...]
    groups: tuple[FinalGroup, ...]
    tracking: Mapping[str, Any]
    meta: Mapping[str, Any]

    @classmethod
    def load(cls, folder: str | Path) -> SweepRecord:
        """Reads a sweep's folder, finished or not.

        Raises:
            UserError: no sweep lies there, or a file in it is damaged (named).
        """
        root = Path(folder)
        if not (root / "study.yaml").is_file():
            expected = "a sweep's folder, with study.yaml, sweep.json and trials/ in it"
            raise UserError("no sweep lies here", file=root, expected=expected, hint=_neighbours(root))
        study = Study.load(root / "study.yaml")
        meta: Mapping[str, Any] = read_record(root / "sweep.json", SweepFile) or {}
        tracking: Mapping[str, Any] = read_record(root / "tracking.json", TrackingFile) or {}
        state = str(meta.get("state", "interrupted"))
        runs = tracking.get("runs") or {}
        folders = [TrialFolder(path) for path in sorted((root / "trials").glob("*"))]
        trials = [_trial(folder, study, state, runs) for folder in folders if folder.exists()]
        groups = _groups(root / "final", study, state)
        return cls(root, str(meta.get("name", study.name)), state, study, tuple(trials), groups, tracking, meta)

    @cached_property
    def packing(self) -> Packing:
        """How full its packs were."""
        return Packing.load(self.folder)

    @property
    def objective(self) -> Objective:
        """The first objective; rankings are by it."""
        return self.study.sweep.objectives[0]

    @property
    def metric(self) -> str:
        """The objective's metric without split and scenario: `f1_macro`."""
        return self.objective.metric.rsplit("/", 1)[-1]

    @cached_property
    def ranking(self) -> list[TrialRecord]:
        """Trials with a score, best first; equal scores in the order of their numbers."""
        sign = -1 if self.objective.mode == "max" else 1
        scored = [trial for trial in self.trials if trial.objective is not None]
        return sorted(scored, key=lambda trial: (sign * (trial.objective or 0.0), trial.id))

    @property
    def best(self) -> TrialRecord | None:
        """The best trial that ran to its end; while there is none, the best of those stopped early or still running.

        Failed trials are never best.
        """
        for states in (("finished",), ("stopped", "running", "interrupted")):
            found = next((trial for trial in self.ranking if trial.state in states), None)
            if found:
                return found
        return None

    @property
    def best_group(self) -> FinalGroup | None:
        """The group that validation chose: the one with the best trial's value of `sweep.final.per`."""
        evaluated = [group for group in self.groups if group.evaluations]
        keys = self.study.sweep.final.keys if self.study.sweep.final else []
        wanted = group_name(self.best.params, keys) if keys and self.best else None
        return min(evaluated, key=lambda group: group.name != wanted, default=None)

    @property
    def planned(self) -> int:
        """How many trials the sweep is to have (a grid or `--extend` may differ from `sweep.trials`)."""
        return max(int(self.meta.get("trials", self.study.sweep.trials)), len(self.trials))

    def count(self, state: str) -> int:
        return sum(trial.state == state for trial in self.trials)

    def best_study_yaml(self) -> str | None:
        """The best trial's resolved study, as `mmsweep best` prints it."""
        return Study.load(self.best.folder / "study.yaml").to_yaml() if self.best else None

    def to_json(self) -> dict[str, Any]:
        """The shape of `mmsweep show --json` (DESIGN §6), and how full packs were; with `sweep.final.per` every group
        under "groups"."""
        chosen = self.best_group
        shown = {
            "name": self.name,
            "state": self.state,
            "trials": [trial.to_json() for trial in self.trials],
            "best": self.best.to_json() if self.best else None,
            "final": _cells(chosen) if chosen else {},
            "packing": self.packing.to_json(),
        }
        if self.study.sweep.final and self.study.sweep.final.keys:
            shown["groups"] = {group.name: _cells(group) for group in self.groups}
        return shown


def group_name(params: Mapping[str, Any], keys: Sequence[str]) -> str:
    """The folder of the final runs of one value of `sweep.final.per`; of several keys, the trial's values joined.

    Different values never share a name: wherever the plain text could stand for another value too (it was cleaned or
    shortened, `"4"` beside 4, `a-b` beside `a` and `b`), a digest of the exact values follows it.
    """
    found = {key: params[key] for key in keys if key in params}
    parts = [str(value) for value in found.values()]
    text = "-".join(parts) if found else "None"
    name = re.sub(r"[^\w.-]+", "-", unicodedata.normalize("NFC", text))[-_LONGEST_GROUP:].strip(".-")
    exact = (
        "" != name == text
        and list(found) == list(keys[: len(found)])
        and all(_unmistakable(value) for value in found.values())
        and (len(keys) == 1 or not any("-" in part for part in parts))
    )
    if exact:
        return name
    digest = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:8]
    return f"{name}-{digest}".lstrip("-")


def _unmistakable(value: Any) -> bool:
    """Whether no other value has the same plain text: a text that reads as a number, a truth value or None has."""
    if not isinstance(value, str):
        return value is not None  # "None" is the group of the trials that have none of the keys
    try:
        ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return True
    return False


def _trial(folder: TrialFolder, study: Study, sweep_state: str, runs: Mapping[str, str]) -> TrialRecord:
    about, done, reports = folder.trial(), folder.done(), folder.reports()
    objective = study.sweep.objectives[0]
    _check_complete(folder, study)
    curve = [(r.epoch, r.metrics[objective.metric]) for r in reports if objective.metric in r.metrics]
    valid = [point for point in curve if not math.isnan(point[1])]
    chosen = None
    if valid:
        sign = -1 if objective.mode == "max" else 1
        chosen = valid[-1] if objective.scope == "last" else min(valid, key=lambda p: (sign * p[1], p[0]))
    metrics = next((r.metrics for r in reports if chosen and r.epoch == chosen[0]), {})
    constant = reports[0].metrics.get(f"val/constant/{objective.metric.removeprefix('val/')}") if reports else None
    unfinished = "running" if sweep_state == "running" else "interrupted"
    trial_id = str(about.get("id", folder.path.name))
    return TrialRecord(
        id=trial_id,
        state=str(done["state"]) if done else unfinished,
        params=about.get("params") or {},
        metrics=metrics,
        objective=chosen[1] if chosen else None,
        epoch=chosen[0] if chosen else None,
        curve=tuple(curve),
        seconds=math.fsum(r.seconds for r in reports),
        mlflow_run_id=runs.get(trial_id),
        error=done.get("error") if done else None,
        folder=folder.path,
        constant=None if constant is None or math.isnan(constant) else constant,
    )


def _check_complete(folder: TrialFolder, study: Study) -> None:
    """Refuse a finished trial whose reports were lost: it would silently drop out of the ranking."""
    about, reports, done = folder.trial(), folder.reports(), folder.done()
    if done is None or done["state"] != "finished":
        return
    searched = {key: value for key, value in about["params"].items() if key == "train.epochs"}
    try:
        epochs = (study.with_values(searched) if searched else study).train.epochs
    except UserError as problem:
        raise problem.placed(file=folder.path / "trial.json", line=None) from problem
    if not reports or reports[-1].epoch < epochs:
        raise UserError(
            "reports are missing: the trial is marked as finished", file=folder.path / "reports.jsonl",
            found=f"{len(reports)} epochs", expected=f"{epochs} epochs",
            hint="Delete done.json beside it, and --resume completes the trial.",
        )  # fmt: skip


def _groups(root: Path, study: Study, sweep_state: str) -> tuple[FinalGroup, ...]:
    groups = []
    for group in sorted(path for path in root.glob("*") if path.is_dir()):
        runs = []
        for path in sorted(group.glob("seed-*"), key=lambda p: (len(p.name), p.name)):
            folder = TrialFolder(path)
            if not folder.exists():
                continue
            done, evaluation = folder.done(), path / "evaluation.json"
            state = str(done["state"]) if done else ("running" if sweep_state == "running" else "interrupted")
            found = Evaluation.read(evaluation) if state == "finished" and evaluation.exists() else None
            seed = int(folder.trial().get("seed") or path.name.removeprefix("seed-"))
            runs.append(FinalRun(group.name, seed, path, state, done.get("error") if done else None, found))
        groups.append(FinalGroup(group.name, tuple(runs)))
    groups.sort(key=lambda group: (_place(group, study), group.name))
    return tuple(groups)


def _place(group: FinalGroup, study: Study) -> tuple[int, ...]:
    """Where a group's values of `sweep.final.per` stand among the study's choices; values of no choice come last."""
    params = TrialFolder(group.runs[0].folder).trial().get("params") or {} if group.runs else {}
    places = []
    for key in study.sweep.final.keys if study.sweep.final else []:
        choices = study.search[key].choices
        places.append(choices.index(params[key]) if params.get(key) in choices else len(choices))
    return tuple(places)


def _cells(group: FinalGroup) -> dict[str, Any]:
    return {s: {m: cell.to_json() for m, cell in row.items()} for s, row in group.table().items()}


def _neighbours(root: Path) -> str | None:
    """What sweeps lie near a mistyped path."""
    places = [root, root.parent] if root.parent != root else [root]
    near = sorted(str(p.parent) for place in places if place.is_dir() for p in place.glob("*/study.yaml"))[:5]
    return f"Sweeps near it: {', '.join(near)}" if near else None
