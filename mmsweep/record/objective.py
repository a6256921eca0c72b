"""Every metric that a task reports (how it is written, its unit, its direction), and what trials are ranked by.

This is the only place that knows which of two scores is the better one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Mode = Literal["max", "min"]


@dataclass(frozen=True)
class Metric:
    """One metric.

    Args:
        label: its name in tables, figures and sentences.
        mode: whether the largest ("max") or the smallest ("min") value is the best.
        share: it is a share of right answers between 0 and 1, written in percent; others keep their own unit.
    """

    label: str
    mode: Mode = "max"
    share: bool = True


METRICS = {
    "accuracy": Metric("accuracy"),
    "f1_macro": Metric("F1-macro"),
    "f1_micro": Metric("F1-micro"),
    "miou": Metric("mIoU"),
    "miou_present": Metric("mIoU of present classes"),
    "pixel_accuracy": Metric("pixel accuracy"),
    "mae": Metric("MAE", "min", share=False),
    "correlation": Metric("correlation", share=False),
    "has0_accuracy": Metric("Has0 accuracy"),
    "has0_f1_weighted": Metric("Has0 F1"),
    "non0_accuracy": Metric("Non0 accuracy"),
    "non0_f1_weighted": Metric("Non0 F1"),
}


def metric_of(name: str) -> Metric | None:
    """The metric of a name, `mae` or `val/complete/mae`; None for a name that no task reports."""
    return METRICS.get(name.rsplit("/", 1)[-1])


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
