"""How numbers, metrics, scenarios and parameters are written in tables, figures and sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mmsweep.record.objective import metric_of
from mmsweep.record.results import Cell
from mmsweep.tasks.task import TASKS, Task

SCENARIOS = {"mean_missing": "mean of missing", "worst_missing": "worst of missing"}
STATES = {"stopped": "stopped early"}


def constant_words(task: str) -> str:
    """What a task's constant predictor predicts, in words; it ignores its input and knows only the training rows."""
    return TASKS[task].constant_words if task in TASKS else Task.constant_words


def metric_name(metric: str) -> str:
    """The metric's label, or its name if it is unknown."""
    known = metric_of(metric)
    return metric if known is None else known.label


def is_share(metric: str) -> bool:
    """Whether a metric is a proportion, which is shown in percent as in the papers."""
    known = metric_of(metric)
    return known is not None and known.share


def metric_label(metric: str) -> str:
    """The metric with its unit: "F1-macro (%)"."""
    return metric_name(metric) + (" (%)" if is_share(metric) else "")


def scenario_label(scenario: str) -> str:
    """A readable name: "missing audio + text" for `missing-audio-text`, "image 100 %" for `image-100`."""
    if scenario in SCENARIOS:
        return SCENARIOS[scenario]
    for kind in ("missing-rate-", "missing-", "only-"):
        if scenario.startswith(kind):
            rest = scenario.removeprefix(kind)
            if kind == "missing-rate-":
                rate, _, which = rest.partition("_")
                return f"missing rate {rate} % ({which})"
            return f"{kind[:-1]} {rest.replace('-', ' + ')}"
    parts = [part.rpartition("-") for part in scenario.split("_")]
    if all(name and share.replace(".", "").isdigit() for name, _, share in parts):
        return ", ".join(f"{name} {share} %" for name, _, share in parts)
    return scenario


def scaled(metric: str, value: float) -> float:
    """A score in the unit of `metric_label`."""
    return 100 * value if is_share(metric) else value


def number(metric: str, value: float | None, digits: int | None = None) -> str:
    """A score in its unit: "75.1" for a proportion, "0.402" for other metrics."""
    if value is None or math.isnan(value):
        return "–"
    places = digits if digits is not None else (1 if is_share(metric) else 3)
    return f"{scaled(metric, value):.{places}f}"


def score(metric: str, value: float) -> str:
    """Number, unit and metric: "75.1 % F1-macro", "MAE 0.402"."""
    if is_share(metric):
        return f"{number(metric, value)} % {metric_name(metric)}"
    return f"{metric_name(metric)} {number(metric, value)}"


def cell(metric: str, value: Cell | None, digits: int | None = None) -> str:
    """Mean ± SD, or the mean alone for one seed."""
    if value is None:
        return "–"
    spread = f" ± {number(metric, value.sd, digits)}" if value.sd is not None else ""
    return number(metric, value.mean, digits) + spread


def param_value(value: Any) -> str:
    """Four significant digits; small numbers as 1.2e-04."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.2e}" if value and (abs(value) < 1e-3 or abs(value) >= 1e5) else f"{value:.4g}"


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Dotted keys without their section if that stays unique ("lora.rank"); a `name` becomes its section ("method")."""
    short = {}
    for key in keys:
        parts = key.split(".")
        if parts[-1] == "name":
            parts = parts[:-1]
        short[key] = ".".join(parts[1:] or parts)
    return {key: name if list(short.values()).count(name) == 1 else key for key, name in short.items()}


def joined(words: Sequence[str]) -> str:
    """Words listed as in prose: "a, b and c"."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def duration(seconds: float) -> str:
    """A time span in seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
