"""The contract of a task: its loss, what evaluation keeps of a prediction, and the metrics made of that."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from mmsweep.data.dataset import Target


class Task(ABC):
    """Attributes: `target`; `metric_names`, in the order of reports; `smaller_is_better`, those that are errors."""

    target: Target
    metric_names: tuple[str, ...]
    smaller_is_better: frozenset[str] = frozenset()

    @property
    def outputs(self) -> int:
        """C, the width of the prediction."""
        return self.target.width

    @abstractmethod
    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Per sample: [B]."""

    @abstractmethod
    def statistics(self, prediction: Tensor) -> Tensor:
        """What is kept of each sample's prediction: [B, ...]; metrics of any subset of rows come from it."""

    @abstractmethod
    def metrics(self, statistics: Tensor, target: Tensor) -> dict[str, float]:
        """Named scores of some rows. No rows: NaN."""

    def per_class(self, statistics: Tensor, target: Tensor) -> dict[str, list[float]]:
        """Scores of each class, where the task has classes."""
        return {}
