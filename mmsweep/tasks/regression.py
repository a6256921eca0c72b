"""Regression of one number: L1 (or squared, or smooth L1) loss, mean absolute error, Pearson correlation.

The network predicts the target standardised by the training rows' mean and SD, and the loss is on that scale; metrics
are in the target's own unit. The two numbers belong to the run: its checkpoints hold them, and whoever reads a
checkpoint takes them from there and not from the data at hand.

Where the number's sign means something (sentiment from -3 to 3) there are four more metrics, of two conventions that
papers report under one name ("Acc-2", "F1") and that must not be mixed up (research/methods.md §5.3, §5.4):

    has0_*  all rows; is the number at least 0?             (truth >= 0 against prediction >= 0)
    non0_*  rows whose truth is not 0; is it above 0?       (truth > 0 against prediction > 0)

F1 is weighted by how often each sign occurs in the *truth*; weighting by the prediction, as swapped arguments do,
inflates it: for the constant positive predictor on 277 positive and 379 negative rows .59378 instead of .25073.
MMP's sentiment table is non0.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmsweep.data.dataset import Target
from mmsweep.errors import UserError
from mmsweep.tasks.task import Task

Loss = Literal["l1", "mse", "smooth_l1"]
SIGN_METRICS = ("has0_accuracy", "has0_f1_weighted", "non0_accuracy", "non0_f1_weighted")


SCALE = "task.target_scale"
"""The checkpoint's tensor [2] of mean and SD."""

FAR = 10
"""A first stage whose SD is so many times ours, or whose mean is so many SDs away, predicts another quantity."""


@dataclass(frozen=True)
class TargetScale:
    """Mean and SD of the training rows' targets; the defaults leave a target as it is."""

    mean: float = 0.0
    sd: float = 1.0

    @classmethod
    def of(cls, targets: Any) -> TargetScale:
        """The scale of training targets [N].

        Raises:
            UserError: all targets are equal, or differ by less than single precision resolves.
        """
        values_N = np.asarray(targets, np.float64)
        if not len(values_N):
            return cls()
        low, high = float(values_N.min()), float(values_N.max())
        if low == high:
            raise UserError("every training row has the same target: there is nothing to learn", found=low)
        size = max(abs(low), abs(high))
        # Divided by their size first: the squares of numbers near the largest float would overflow.
        mean, sd = size * float((values_N / size).mean()), size * float((values_N / size).std())
        if np.spacing(np.float32(size)) > sd / 1000:
            raise UserError(
                "the targets differ by less than single precision resolves",
                found=f"{low:g} to {high:g}, SD {sd:g}",
                expected="an SD of at least a ten-thousandth of the largest target",
                hint="Subtract a constant from the target column.",
            )
        return cls(mean, sd)

    def __str__(self) -> str:
        return f"mean {self.mean:g}, SD {self.sd:g}"


class Regression(Task):
    """The prediction is [B, 1], in SDs from the mean of `scale`.

    Args:
        target: a number; with `signed` the metrics of its sign are reported too.
        loss: what is minimised.
        scale: what the network's output means.
    """

    def __init__(self, target: Target, loss: Loss = "l1", scale: TargetScale | None = None) -> None:
        self.target = target
        self.scale = scale or TargetScale()
        self.metric_names = ("mae", "correlation", *(SIGN_METRICS if target.signed else ()))
        self._loss = {"l1": F.l1_loss, "mse": F.mse_loss, "smooth_l1": F.smooth_l1_loss}[loss]

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        standardised = (target - self.scale.mean) / self.scale.sd
        return self._loss(prediction[:, 0].float(), standardised, reduction="none")

    def statistics(self, prediction: Tensor, target: Tensor) -> Tensor:
        """In the target's own unit."""
        return prediction.float() * self.scale.sd + self.scale.mean

    def state(self) -> dict[str, Tensor]:
        return {SCALE: torch.tensor([self.scale.mean, self.scale.sd], dtype=torch.float64)}

    def restored(self, kept: Mapping[str, Tensor]) -> Regression:
        """With the scale that a checkpoint was trained with; one without a scale was trained on the target itself."""
        task = copy.copy(self)
        task.scale = TargetScale(*kept[SCALE].tolist()) if SCALE in kept else TargetScale()
        return task

    def started_from(self, kept: Mapping[str, Tensor]) -> Regression:
        first, own = self.restored(kept), self.scale
        theirs = first.scale
        same = 1 / FAR <= own.sd / theirs.sd <= FAR and abs(own.mean - theirs.mean) <= FAR * max(own.sd, theirs.sd)
        if TargetScale() not in (own, theirs) and not same:
            raise UserError(
                "the first stage predicts numbers of another scale",
                key="train.init_from",
                found=str(theirs),
                expected=f"near this study's training rows ({own})",
            )
        return first

    def constant(self, targets: np.ndarray) -> Tensor:
        """The median [1]. A median of 0 is put just above 0 where more rows are positive than negative.

        That changes no other metric and makes it the majority's sign in both conventions.
        """
        values_N = np.asarray(targets, np.float64)
        median = float(np.median(values_N)) if len(values_N) else 0.0
        if median == 0 and (values_N > 0).sum() > (values_N < 0).sum():
            median = float(np.finfo(np.float32).tiny)
        return torch.tensor([median], dtype=torch.float32)

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
