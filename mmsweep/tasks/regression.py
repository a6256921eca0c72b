"""Regression of one number: L1 (or squared, or smooth L1) loss, mean absolute error, Pearson correlation.

Where the number's sign means something (sentiment from -3 to 3) there are four more metrics, of two conventions that
papers report under one name ("Acc-2", "F1") and that must not be mixed up (research/methods.md §5.3, §5.4):

    has0_*  all rows; is the number at least 0?             (truth >= 0 against prediction >= 0)
    non0_*  rows whose truth is not 0; is it above 0?       (truth > 0 against prediction > 0)

F1 is weighted by how often each sign occurs in the *truth*; weighting by the prediction, as swapped arguments do,
inflates it: for the constant positive predictor on 277 positive and 379 negative rows .59378 instead of .25073.
MMP's sentiment table is non0.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mmsweep.data.dataset import Target
from mmsweep.tasks.task import Task

Loss = Literal["l1", "mse", "smooth_l1"]
SIGN_METRICS = ("has0_accuracy", "has0_f1_weighted", "non0_accuracy", "non0_f1_weighted")


class Regression(Task):
    """The prediction is [B, 1].

    Args:
        target: a number; with `signed` the metrics of its sign are reported too.
        loss: what is minimised.
    """

    def __init__(self, target: Target, loss: Loss = "l1") -> None:
        self.target = target
        self.metric_names = ("mae", "correlation", *(SIGN_METRICS if target.signed else ()))
        self._loss = {"l1": F.l1_loss, "mse": F.mse_loss, "smooth_l1": F.smooth_l1_loss}[loss]

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        return self._loss(prediction[:, 0].float(), target, reduction="none")

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
        found = {"mae": (value - truth).abs().mean().item(), "correlation": correlation}
        if self.target.signed:
            polar = truth != 0
            found["has0_accuracy"], found["has0_f1_weighted"] = _binary(truth >= 0, value >= 0)
            found["non0_accuracy"], found["non0_f1_weighted"] = _binary(truth[polar] > 0, value[polar] > 0)
        return found


def _binary(truth_N: Tensor, said_N: Tensor) -> tuple[float, float]:
    """Accuracy, and F1 of both answers weighted by how often the truth gives each. No rows: NaN."""
    if len(truth_N) == 0:
        return math.nan, math.nan
    weighted = 0.0
    for answer in (True, False):
        is_N, said_so_N = truth_N == answer, said_N == answer
        hits, either = (is_N & said_so_N).sum().item(), (is_N.sum() + said_so_N.sum()).item()
        weighted += is_N.double().mean().item() * (2 * hits / either if either else 0.0)
    return (truth_N == said_N).double().mean().item(), weighted
