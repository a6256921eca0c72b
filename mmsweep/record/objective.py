"""The direction of metrics and the ranking of trials; no other file compares scores."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from mmsweep.tasks.task import Metric

Mode = Literal["max", "min"]


def metric_of(name: str) -> Metric | None:
    """The metric with a name such as `mae` or `val/complete/mae`; None if no task reports it."""
    from mmsweep.tasks.task import TASKS  # lazy: the controller's process needs no metric and starts without NumPy

    last = name.rsplit("/", 1)[-1]
    return next((task.reported[last] for task in TASKS.values() if last in task.reported), None)


def direction(name: str) -> Mode:
    """Whether larger or smaller values are better; "max" for a name that no task reports (studies reject those)."""
    metric = metric_of(name)
    return "max" if metric is None else metric.mode


def is_better(value: float, best: float, mode: Mode) -> bool:
    """Whether a value beats the best so far. NaN never does, and every number beats NaN."""
    if math.isnan(value) or math.isnan(best):
        return not math.isnan(value)
    return value > best if mode == "max" else value < best


def best_of(values: Iterable[float], mode: Mode) -> float:
    """The best value, ignoring NaN; NaN if nothing else is left."""
    numbers = [value for value in values if not math.isnan(value)]
    if not numbers:
        return math.nan
    return max(numbers) if mode == "max" else min(numbers)


def worst_of(values: Iterable[float], mode: Mode) -> float:
    """The worst value, ignoring NaN like `best_of`: the largest error or the smallest accuracy."""
    return best_of(values, "min" if mode == "max" else "max")


@dataclass(frozen=True)
class Objective:
    """What trials are ranked by.

    Args:
        metric: `val/scenario/metric`.
        mode: its direction.
        scope: whether a trial is scored by its best epoch or by its last one.
    """

    metric: str
    mode: Mode
    scope: Literal["best", "last"] = "best"

    def better(self, value: float, best: float) -> bool:
        """Whether a score beats the best so far; NaN as in `is_better`."""
        return is_better(value, best, self.mode)

    def rank(self, value: float) -> float:
        """Sort key that puts the best score first."""
        return -value if self.mode == "max" else value

    def score(self, epochs: Sequence[Mapping[str, float]]) -> float:
        """A trial's score after at least one epoch; NaN if the deciding values are NaN.

        Args:
            epochs: the metrics of each epoch.

        Raises:
            KeyError: an epoch lacks the metric.
        """
        values = [metrics[self.metric] for metrics in epochs]
        return values[-1] if self.scope == "last" else best_of(values, self.mode)
