"""Regression of one number: L1 loss, mean absolute error and Pearson correlation."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mmsweep.data.dataset import Target
from mmsweep.tasks.task import Task


class Regression(Task):
    """The prediction is [B, 1]."""

    metric_names = ("mae", "correlation")
    smaller_is_better = frozenset({"mae"})

    def __init__(self, target: Target) -> None:
        self.target = target

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        return (prediction[:, 0].float() - target).abs()

    def statistics(self, prediction: Tensor, target: Tensor) -> Tensor:
        return prediction.float()

    def metrics(self, statistics: Tensor, target: Tensor) -> dict[str, float]:
        if len(target) == 0:
            return dict.fromkeys(self.metric_names, math.nan)
        value, truth = statistics[:, 0].double(), target.double()
        both = torch.stack([value, truth])
        constant = len(truth) < 2 or both.std(1).min() == 0
        # A constant predictor has no correlation; 0 keeps it comparable instead of spoiling every mean.
        correlation = 0.0 if constant else torch.corrcoef(both)[0, 1].item()
        return {"mae": (value - truth).abs().mean().item(), "correlation": correlation}
