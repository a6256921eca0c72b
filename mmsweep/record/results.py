"""Trials and final runs read from their folders, and the scores of final runs over their seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmsweep.record.evaluation import Evaluation
from mmsweep.record.objective import Objective, direction, is_better
from mmsweep.record.summary import Summary
from mmsweep.record.trial import Report, TrialFolder, deciding_report


@dataclass(frozen=True)
class TrialRecord:
    """One trial of the search, or one final run, read from its folder.

    Args:
        id: "0003", or "final/best/seed-101".
        state: finished | stopped (early) | failed | running | interrupted.
        params: values of the searched keys.
        metrics: metrics of the deciding epoch: the best by the first objective, or the last with scope `last`.
        objective: the first objective's value at that epoch; None without one (no report yet, or NaN).
        epoch: the deciding epoch.
        seed: training seed.
        curve: (epoch, first objective) of every report.
        seconds: training and validation, all epochs.
        constant: the first objective of the constant predictor on validation; None if unknown.
        evaluation: the test results of a finished final run.
    """

    id: str
    state: str
    params: Mapping[str, Any]
    metrics: Mapping[str, float]
    objective: float | None
    epoch: int | None
    seed: int
    curve: tuple[tuple[int, float], ...]
    seconds: float
    mlflow_run_id: str | None
    error: str | None
    folder: Path
    constant: float | None = None
    evaluation: Evaluation | None = None

    @classmethod
    def load(cls, folder: TrialFolder, summary: Summary, sweep_state: str, runs: Mapping[str, str]) -> TrialRecord:
        """Read a trial's folder.

        Args:
            sweep_state: an unfinished trial of a running sweep is running, otherwise interrupted.
            runs: MLflow run ids by trial.

        Raises:
            UserError: a file is damaged.
        """
        about, done, reports = folder.trial(), folder.done(), folder.reports()
        objective = summary.objectives[0]
        decided = deciding_report(reports, objective)
        unfinished = "running" if sweep_state == "running" else "interrupted"
        state = str(done["state"]) if done else unfinished
        id = str(about.get("id", folder.path.name))
        evaluation = folder.path / "evaluation.json"
        return cls(
            id=id,
            state=state,
            params=about.get("params") or {},
            metrics=decided.metrics if decided else {},
            objective=decided.metrics[objective.metric] if decided else None,
            epoch=decided.epoch if decided else None,
            seed=int(about.get("seed") or 0),
            curve=tuple((r.epoch, r.metrics[objective.metric]) for r in reports if objective.metric in r.metrics),
            seconds=math.fsum(r.seconds for r in reports),
            mlflow_run_id=runs.get(id),
            error=done.get("error") if done else None,
            folder=folder.path,
            constant=_constant(reports, objective),
            evaluation=Evaluation.read(evaluation) if state == "finished" and evaluation.exists() else None,
        )

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
class Cell:
    """One value of a results table.

    Args:
        mean: mean over seeds.
        sd: sample standard deviation; None for a single seed.
        seeds: number of seeds.
        rows: eligible rows of the scenario.
        constant: the constant predictor's score on these rows, mean over seeds; None if unknown.
    """

    mean: float
    sd: float | None
    seeds: int
    rows: int
    constant: float | None = None

    @classmethod
    def of(cls, values: Iterable[float], rows: int, constants: Sequence[float] = ()) -> Cell:
        scores = list(values)
        sd = statistics.stdev(scores) if len(scores) > 1 and all(map(math.isfinite, scores)) else None
        constant = math.fsum(constants) / len(constants) if constants else None
        return cls(math.fsum(scores) / len(scores), sd, len(scores), rows, constant)

    def beats_constant(self, metric: str) -> bool | None:
        """Whether it is better than the constant predictor; None if either score is unknown."""
        if self.constant is None or math.isnan(self.constant) or math.isnan(self.mean):
            return None
        return is_better(self.mean, self.constant, direction(metric))

    def to_json(self) -> dict[str, Any]:
        mean = None if math.isnan(self.mean) else self.mean
        shown: dict[str, Any] = {"mean": mean, "sd": self.sd, "seeds": self.seeds, "rows": self.rows}
        if self.constant is not None:
            shown["constant"] = None if math.isnan(self.constant) else self.constant
        return shown


@dataclass(frozen=True)
class FinalGroup:
    """All seeds of the best configuration ("best"), or of the best configuration per value of `sweep.final.per`."""

    name: str
    runs: tuple[TrialRecord, ...]

    @property
    def evaluations(self) -> list[Evaluation]:
        return [run.evaluation for run in self.runs if run.evaluation is not None]

    def first(self) -> Evaluation | None:
        """One evaluation, to read what is the same in all: modalities, classes, rows."""
        return next(iter(self.evaluations), None)

    def metrics(self) -> list[str]:
        first = self.first()
        return list(next(iter(first.scenarios.values())).metrics) if first and first.scenarios else []

    def scenarios(self) -> list[str]:
        """The study's scenarios in order, then `mean_missing` and `worst_missing`."""
        first = self.first()
        return [*first.scenarios, *first.summaries] if first else []

    def cell(self, scenario: str, metric: str) -> Cell | None:
        """Mean and SD over seeds; None if no seed has the value."""
        scores = [
            score for e in self.evaluations if (score := e.score(scenario)) is not None and metric in score.metrics
        ]
        constants = [e.constants[scenario][metric] for e in self.evaluations if metric in e.constants.get(scenario, {})]
        return Cell.of((score.metrics[metric] for score in scores), scores[0].rows, constants) if scores else None

    def per_class(self, scenario: str) -> list[Cell]:
        """Score of each class, aggregated over seeds."""
        scores = [score for e in self.evaluations if (score := e.score(scenario)) is not None and score.class_C]
        return [Cell.of(values, scores[0].rows) for values in zip(*(score.class_C for score in scores), strict=True)]

    def curve(self, modality: str, metric: str) -> list[tuple[float, Cell]]:
        """(share of rows with the modality, cell), by increasing share."""
        lines = [e.curves[modality] for e in self.evaluations if modality in e.curves]
        points = [(p[0].share, Cell.of((q.metrics[metric] for q in p), p[0].rows)) for p in zip(*lines, strict=False)]
        return sorted(points, key=lambda point: point[0])

    def table(self) -> dict[str, dict[str, Cell]]:
        """scenario -> metric -> cell."""
        cells = {s: {m: self.cell(s, m) for m in self.metrics()} for s in self.scenarios()}
        return {s: {m: cell for m, cell in row.items() if cell is not None} for s, row in cells.items()}


def _constant(reports: Sequence[Report], objective: Objective) -> float | None:
    value = reports[0].metrics.get(f"val/constant/{objective.metric.removeprefix('val/')}") if reports else None
    return None if value is None or math.isnan(value) else value
