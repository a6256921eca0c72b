"""What the final runs of a sweep found on test: `evaluation.json` read into types, and its mean and SD over seeds."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmsweep.availability import pattern_name, patterns
from mmsweep.errors import UserError
from mmsweep.metrics import direction, is_better
from mmsweep.record.files import read_content

SUMMARIES = ("mean_missing", "worst_missing")


@dataclass(frozen=True)
class Score:
    """One scenario or pattern of one evaluation.

    Args:
        rows: how many rows were eligible.
        table: digest of the availability table.
        shares: rows by pattern.
        metrics: metric name to value.
        class_C: score of each class (F1; IoU of maps), where the task has classes.
    """

    rows: int
    table: str
    shares: Mapping[str, int]
    metrics: Mapping[str, float]
    class_C: tuple[float, ...] = ()


@dataclass(frozen=True)
class CurvePoint:
    """Metrics where `share` of the rows have one modality and all others are complete."""

    share: float
    rows: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Evaluation:
    """`evaluation.json` (written by training/evaluation.py)."""

    split: str
    task: str
    modalities: tuple[str, ...]
    classes: tuple[str, ...]
    rows: int
    epoch: int
    scenarios: Mapping[str, Score]
    patterns: Mapping[str, Score]
    summaries: Mapping[str, Mapping[str, float]]
    curves: Mapping[str, tuple[CurvePoint, ...]]
    thresholds_C: tuple[float, ...] = ()
    constants: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Metrics of the constant predictor by scenario, pattern and summary; empty in files of earlier versions."""

    @classmethod
    def read(cls, path: Path) -> Evaluation:
        """Reads one file.

        Raises:
            UserError: the file is not what evaluation writes.
        """
        try:
            raw = json.loads(read_content(path) or b"")
            return cls(
                split=str(raw["split"]),
                task=str(raw["task"]),
                modalities=tuple(map(str, raw["modalities"])),
                classes=tuple(map(str, raw.get("classes") or ())),
                rows=int(raw["rows"]),
                epoch=int(raw.get("epoch") or 0),
                scenarios={name: _score(value) for name, value in raw["scenarios"].items()},
                patterns={name: _score(value) for name, value in raw.get("patterns", {}).items()},
                summaries={name: _numbers(raw[name]) for name in SUMMARIES if raw.get(name)},
                curves={m: tuple(map(_point, points)) for m, points in (raw.get("curves") or {}).items()},
                thresholds_C=tuple(map(float, raw.get("thresholds") or ())),
                constants=_constants(raw.get("constant") or {}),
            )
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise UserError(
                "not an evaluation", file=path, found=reason, expected="the file that evaluation wrote"
            ) from error

    def score(self, scenario: str) -> Score | None:
        """A scenario's score; a pattern's where the study lists no such scenario; the mean or worst missing."""
        if scenario in self.summaries:
            return Score(self.rows, "", {}, self.summaries[scenario])
        return self.scenarios.get(scenario) or self.patterns.get(scenario)

    def missing_patterns(self) -> list[str]:
        """Names of the proper patterns, the ones that lack least first."""
        return [pattern_name(pattern, self.modalities) for pattern in patterns(self.modalities)[1:]]


@dataclass(frozen=True)
class Cell:
    """One value of a results table.

    Args:
        mean: over seeds.
        sd: sample standard deviation; None for a single seed.
        seeds: how many.
        rows: eligible rows of the scenario.
        constant: the constant predictor's score on these rows, mean over seeds; None where it is not known.
    """

    mean: float
    sd: float | None
    seeds: int
    rows: int
    constant: float | None = None

    @classmethod
    def of(cls, values: Iterable[float], rows: int, constants: Sequence[float] = ()) -> Cell:
        found = list(values)
        sd = statistics.stdev(found) if len(found) > 1 and all(map(math.isfinite, found)) else None
        constant = math.fsum(constants) / len(constants) if constants else None
        return cls(math.fsum(found) / len(found), sd, len(found), rows, constant)

    def beats_constant(self, metric: str) -> bool | None:
        """Whether it is better than the constant predictor; None where that cannot be said."""
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
class FinalRun:
    """One seed of one group: its folder, its mark, its evaluation where it has ended."""

    group: str
    seed: int
    folder: Path
    state: str
    error: str | None
    evaluation: Evaluation | None


@dataclass(frozen=True)
class FinalGroup:
    """All seeds of the winner ("best"), or of the best configuration with one value of `sweep.final.per`."""

    name: str
    runs: tuple[FinalRun, ...]

    @property
    def evaluations(self) -> list[Evaluation]:
        return [run.evaluation for run in self.runs if run.evaluation is not None]

    def first(self) -> Evaluation | None:
        """Any evaluation, for what is the same in all: modalities, classes, rows."""
        return next(iter(self.evaluations), None)

    def metrics(self) -> list[str]:
        found = self.first()
        return list(next(iter(found.scenarios.values())).metrics) if found and found.scenarios else []

    def scenarios(self) -> list[str]:
        """As the study lists them, then the means over the missing patterns."""
        found = self.first()
        return [*found.scenarios, *found.summaries] if found else []

    def cell(self, scenario: str, metric: str) -> Cell | None:
        """Mean and SD over seeds; None where no seed has the value."""
        scores = [
            score for e in self.evaluations if (score := e.score(scenario)) is not None and metric in score.metrics
        ]
        constants = [e.constants[scenario][metric] for e in self.evaluations if metric in e.constants.get(scenario, {})]
        return Cell.of((score.metrics[metric] for score in scores), scores[0].rows, constants) if scores else None

    def per_class(self, scenario: str) -> list[Cell]:
        """Score of each class, over seeds."""
        scores = [score for e in self.evaluations if (score := e.score(scenario)) is not None and score.class_C]
        return [Cell.of(values, scores[0].rows) for values in zip(*(score.class_C for score in scores), strict=True)]

    def curve(self, modality: str, metric: str) -> list[tuple[float, Cell]]:
        """(share available, cell) by rising share."""
        lines = [e.curves[modality] for e in self.evaluations if modality in e.curves]
        points = [(p[0].share, Cell.of((q.metrics[metric] for q in p), p[0].rows)) for p in zip(*lines, strict=False)]
        return sorted(points, key=lambda point: point[0])

    def table(self) -> dict[str, dict[str, Cell]]:
        """scenario -> metric -> cell."""
        cells = {s: {m: self.cell(s, m) for m in self.metrics()} for s in self.scenarios()}
        return {s: {m: cell for m, cell in row.items() if cell is not None} for s, row in cells.items()}


def _constants(raw: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    by_name = {**(raw.get("patterns") or {}), **(raw.get("scenarios") or {})}
    by_name |= {name: raw[name] for name in SUMMARIES if raw.get(name)}
    return {name: _numbers(metrics) for name, metrics in by_name.items()}


def _score(raw: Mapping[str, Any]) -> Score:
    each = raw.get("per_class") or {}
    class_C = each.get("f1") or each.get("iou") or ()
    shares = {str(name): int(count) for name, count in (raw.get("shares") or {}).items()}
    return Score(
        int(raw["rows"]), str(raw.get("table") or ""), shares, _numbers(raw["metrics"]), tuple(map(_number, class_C))
    )


def _point(raw: Mapping[str, Any]) -> CurvePoint:
    return CurvePoint(float(raw["share"]), int(raw["rows"]), _numbers(raw["metrics"]))


def _numbers(raw: Mapping[str, Any]) -> dict[str, float]:
    return {name: _number(value) for name, value in raw.items()}


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)  # JSON has no NaN
