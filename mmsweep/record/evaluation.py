"""A final run's test results: `evaluation.json` read into types."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmsweep.availability import pattern_name, patterns
from mmsweep.errors import UserError
from mmsweep.record.files import read_content

SUMMARIES = ("mean_missing", "worst_missing")


@dataclass(frozen=True)
class Score:
    """The result of one scenario or pattern.

    Args:
        rows: number of eligible rows.
        table: digest of the availability table.
        shares: number of rows by pattern.
        metrics: metric name to value.
        class_C: score of each class (`Task.class_metric`), where the task has classes.
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
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The whole file, which includes the task's own entries (`Task.settings`)."""
    constants: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Metrics of the constant predictor by scenario, pattern and summary; empty in files of earlier versions."""

    @classmethod
    def read(cls, path: Path) -> Evaluation:
        """Read one file.

        Raises:
            UserError: the file is not an evaluation record.
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
                settings=raw,
                constants=_constants(raw.get("constant") or {}),
            )
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise UserError(
                "not an evaluation", file=path, found=reason, expected="the file that evaluation wrote"
            ) from error

    def score(self, scenario: str) -> Score | None:
        """The score of a summary (`mean_missing`, `worst_missing`), of a scenario, or else of a pattern."""
        if scenario in self.summaries:
            return Score(self.rows, "", {}, self.summaries[scenario])
        return self.scenarios.get(scenario) or self.patterns.get(scenario)

    def missing_patterns(self) -> list[str]:
        """Names of the patterns that lack something, those with the fewest missing modalities first."""
        return [pattern_name(pattern, self.modalities) for pattern in patterns(self.modalities)[1:]]


def _constants(raw: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    by_name = {**(raw.get("patterns") or {}), **(raw.get("scenarios") or {})}
    by_name |= {name: raw[name] for name in SUMMARIES if raw.get(name)}
    return {name: _numbers(metrics) for name, metrics in by_name.items()}


def _score(raw: Mapping[str, Any]) -> Score:
    class_C = next(iter((raw.get("per_class") or {}).values()), ())
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
