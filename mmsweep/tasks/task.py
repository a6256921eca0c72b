"""The contract of a task: its loss, what evaluation keeps of a prediction, and the metrics made of that."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from mmsweep.data.dataset import Target


class Task(ABC):
    """What is minimised and what is measured.

    Attributes:
        target: what is predicted.
        metric_names: in the order of reports; `metrics.METRICS` knows each one's unit and direction.
        dense: the prediction is a map [B, C, H, W]; evaluation then holds one pattern's at a time.
    """

    target: Target
    metric_names: tuple[str, ...]
    dense: bool = False

    @property
    def outputs(self) -> int:
        """C, the width of the prediction."""
        return self.target.width

    @abstractmethod
    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Per sample: [B]."""

    @abstractmethod
    def statistics(self, prediction: Tensor, target: Tensor) -> Tensor:
        """What is kept of each sample's prediction: [B, ...]; metrics of any subset of rows come from it.

        Leading axes of the prediction before B (patterns) are kept.
        """

    @property
    def statistics_shape(self) -> tuple[int, ...]:
        """Shape of one sample's statistics."""
        return (self.outputs,)

    @property
    def statistics_dtype(self) -> torch.dtype:
        return torch.float32

    def truth(self, targets: np.ndarray) -> Tensor:
        """What metrics need of the rows' targets beside the statistics: [N, ...]."""
        return torch.from_numpy(np.array(targets))

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must keep beside the weights to give the same predictions; names start with `task.`."""
        return {}

    def restored(self, kept: Mapping[str, Tensor]) -> Task:
        """This task as a checkpoint with the tensors `kept` was trained."""
        return self

    def started_from(self, kept: Mapping[str, Tensor]) -> Task:
        """This task for a run that starts from another run's weights: what they predict keeps its meaning.

        Raises:
            UserError: they predict something else (key train.init_from).
        """
        return self.restored(kept)

    @abstractmethod
    def constant(self, targets: np.ndarray) -> Tensor:
        """The statistics of one row by the constant predictor, which says the same of every row whatever is shown.

        Args:
            targets: of the training rows [N, ...], as a prepared split holds them.
        """

    def constant_statistics(self, statistics: Tensor, targets: np.ndarray) -> Tensor:
        """What `statistics` [..., *statistics_shape] of some rows would be, had the constant predictor made them."""
        return self.constant(targets).to(statistics).expand(statistics.shape)

    @abstractmethod
    def metrics(self, statistics: Tensor, target: Tensor) -> dict[str, float]:
        """Named scores of some rows. No rows: NaN."""

    def per_class(self, statistics: Tensor, target: Tensor) -> dict[str, list[float]]:
        """Scores of each class, where the task has classes."""
        return {}
