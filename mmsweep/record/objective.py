"""Which of two scores is the better one, and what trials are ranked by: the only place that knows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from mmsweep.tasks.task import Metric

Mode = Literal["max", "min"]


def metric_of(name: str) -> Metric | None:
    """The metric of a name, `mae` or `val/complete/mae`; None for a name that no task reports."""
    from mmsweep.tasks.task import TASKS  # the board's process, which asks for no metric, starts without NumPy

    own = name.rsplit("/", 1)[-1]
    return next((task.reported[own] for task in TASKS.values() if own in task.reported), None)


def direction(name: str) -> Mode:
    """Which direction of a metric is better; "max" for a name that no task reports (a study with one is refused)."""
    metric = metric_of(name)
    return "max" if metric is None else metric.mode


def is_better(value: float, best: float, mode: Mode) -> bool:
    """Whether a value beats the best so far; NaN never does, and anything beats NaN."""
    if math.isnan(value) or math.isnan(best):
        return not math.isnan(value)
    return value > best if mode == "max" else value < best


def best_of(values: Iterable[float], mode: Mode) -> float:
    """The best value; NaN values are left out, and NaN is the answer where nothing is left."""
    found = [value for value in values if not math.isnan(value)]
    if not found:
        return math.nan
    return max(found) if mode == "max" else min(found)


def worst_of(values: Iterable[float], mode: Mode) -> float:
    """The worst value, as `best_of`: the largest error, the smallest share of right answers."""
    return best_of(values, "min" if mode == "max" else "max")


@dataclass(frozen=True)
class Objective:
    """What trials are ranked by.

    Args:
        metric: `val/scenario/metric`.
        mode: its direction.
        scope: whether a trial's score is that of its best epoch, or of its last one.
    """

    metric: str
    mode: Mode
    scope: Literal["best", "last"] = "best"

    def better(self, value: float, best: float) -> bool:
        """Whether a score beats the best so far, as `is_better`."""
        return is_better(value, best, self.mode)

    def rank(self, value: float) -> float:
        """A key that sorts scores with the best first."""
        return -value if self.mode == "max" else value

    def score(self, epochs: Sequence[Mapping[str, float]]) -> float:
        """A trial's score after some epochs, at least one; NaN where there is none.

        Args:
            epochs: the metrics of each.

        Raises:
            KeyError: an epoch lacks the metric.
        """
        values = [metrics[self.metric] for metrics in epochs]
        return values[-1] if self.scope == "last" else best_of(values, self.mode)
