"""Regression of one number: L1 (or squared, or smooth L1) loss, mean absolute error, Pearson correlation.

The network predicts the target standardised by the training rows' mean and SD. The loss is on that scale; metrics are
in the target's own unit. Checkpoints store mean and SD, and a run that loads a checkpoint uses these, not its data's.

If the number's sign has a meaning (sentiment from -3 to 3), there are four more metrics. They follow two conventions
that papers report under the same names ("Acc-2", "F1") and that must not be mixed up (research/methods.md §5.3, §5.4):

    has0_*  all rows; is the number at least 0?             (truth >= 0 against prediction >= 0)
    non0_*  rows whose truth is not 0; is it above 0?       (truth > 0 against prediction > 0)

F1 is weighted by the frequency of each sign in the *truth*. Weighting by the prediction, which swapped arguments do,
inflates it: a constant positive predictor on 277 positive and 379 negative rows has .59378 instead of .25073.
MMP's sentiment table uses non0.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from mmsweep.components import register
from mmsweep.errors import UserError
from mmsweep.tasks.classes import f1
from mmsweep.tasks.task import Array, Metric, Target, Task, doubles, mean, namespace, total

if TYPE_CHECKING:
    from torch import Tensor

Loss = Literal["l1", "mse", "smooth_l1"]
SIGN_METRICS = {
    "has0_accuracy": Metric("Has0 accuracy"),
    "has0_f1_weighted": Metric("Has0 F1"),
    "non0_accuracy": Metric("Non0 accuracy"),
    "non0_f1_weighted": Metric("Non0 F1"),
}

SCALE = "task.target_scale"
"""Name of the checkpoint's tensor [2] of mean and SD."""

FAR = 10
"""Largest ratio of two stages' SDs, and largest distance of their means in SDs, at which both predict one quantity."""


@dataclass(frozen=True)
class TargetScale:
    """Mean and SD of the training rows' targets; the defaults leave a target as it is."""

    mean: float = 0.0
    sd: float = 1.0

    @classmethod
    def of(cls, targets: Any) -> TargetScale:
        """The scale of training targets [N].

        Raises:
            UserError: all targets are equal, or they differ by less than single precision resolves.
        """
        values_N = np.asarray(targets, np.float64)
        if not len(values_N):
            return cls()
        low, high = float(values_N.min()), float(values_N.max())
        if low == high:
            raise UserError("every training row has the same target; a model cannot learn from it", found=low)
        size = max(abs(low), abs(high))
        # Dividing by the size first keeps the squares of very large numbers from overflowing.
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


@register("regression")
class Regression(Task):
    """The prediction is [B, 1], in SDs from the mean of `scale`.

    Args:
        target: a number; if it is `signed`, the metrics of the sign are reported too.
        loss: the loss on the standardised target.
        scale: mean and SD by which the target is standardised.
    """

    reported: ClassVar = {
        "mae": Metric("MAE", "min", share=False),
        "correlation": Metric("correlation", share=False),
        **SIGN_METRICS,
    }
    target_kind = "number"
    constant_words = "the median"
    reads = ("train.regression_loss", "train.standardize_target")

    def __init__(self, target: Target, loss: Loss = "l1", scale: TargetScale | None = None) -> None:
        super().__init__(target)
        self.scale = scale or TargetScale()
        self._loss = loss

    @classmethod
    def of(cls, target: Target, targets: np.ndarray, options: Mapping[str, Any]) -> Task:
        scale = TargetScale.of(targets) if options["train.standardize_target"] else None
        return cls(target, options["train.regression_loss"], scale)

    @property
    def metric_names(self) -> tuple[str, ...]:
        return tuple(name for name in self.reported if self.target.signed or name not in SIGN_METRICS)

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        import torch.nn.functional as F

        standardised = (target - self.scale.mean) / self.scale.sd
        loss = {"l1": F.l1_loss, "mse": F.mse_loss, "smooth_l1": F.smooth_l1_loss}[self._loss]
        return loss(prediction[:, 0].float(), standardised, reduction="none")

    def statistics(self, prediction: Tensor, target: Tensor) -> Tensor:
        """In the target's own unit."""
        return prediction.float() * self.scale.sd + self.scale.mean

    def settings(self) -> dict[str, Any]:
        return {"target_scale": asdict(self.scale), "signed": self.target.signed}

    @classmethod
    def from_settings(cls, target: Target, settings: Mapping[str, Any]) -> Task:
        # Older versions did not store `signed`; the presence of sign metrics shows it.
        signed = settings.get("signed", "has0_accuracy" in (settings.get("mean_missing") or ()))
        return cls(replace(target, signed=bool(signed)))

    def state(self) -> dict[str, Tensor]:
        import torch

        return {SCALE: torch.tensor([self.scale.mean, self.scale.sd], dtype=torch.float64)}

    def restored(self, state: Mapping[str, Tensor]) -> Regression:
        """This task with a checkpoint's scale; without a stored scale, the checkpoint was trained on raw targets."""
        task = copy.copy(self)
        task.scale = TargetScale(*state[SCALE].tolist()) if SCALE in state else TargetScale()
        return task

    def started_from(self, state: Mapping[str, Tensor]) -> Regression:
        task = self.restored(state)
        old, new = task.scale, self.scale
        same = 1 / FAR <= new.sd / old.sd <= FAR and abs(new.mean - old.mean) <= FAR * max(new.sd, old.sd)
        if TargetScale() not in (old, new) and not same:
            raise UserError(
                "the first stage predicts numbers on another scale",
                key="train.init_from",
                found=str(old),
                expected=f"about the scale of this study's training rows ({new})",
            )
        return task

    def constant(self, targets: np.ndarray) -> Tensor:
        """The median [1].

        A median of 0 is moved just above 0 if more rows are positive than negative: it then has the majority's sign in
        both conventions, and no other metric changes.
        """
        import torch

        values_N = np.asarray(targets, np.float64)
        median = float(np.median(values_N)) if len(values_N) else 0.0
        if median == 0 and (values_N > 0).sum() > (values_N < 0).sum():
            median = float(np.finfo(np.float32).tiny)
        return torch.tensor([median], dtype=torch.float32)

    def measure(self, statistics: Array, target: Array, weights_RN: Array | None) -> dict[str, Array]:
        value_N, truth_N = doubles(statistics[:, 0]), doubles(target)
        has0 = sign_scores(truth_N >= 0, value_N >= 0, weights_RN)
        polar_N = truth_N != 0
        polar_RN = None if weights_RN is None else weights_RN[:, polar_N]
        non0 = sign_scores(truth_N[polar_N] > 0, value_N[polar_N] > 0, polar_RN)
        scores = (mean(abs(value_N - truth_N), weights_RN), correlation(value_N, truth_N, weights_RN), *has0, *non0)
        return dict(zip(self.reported, scores, strict=True))


def correlation(value_N: Array, truth_N: Array, weights_RN: Array | None = None) -> Array:
    """Pearson's correlation, computed as `corrcoef` does.

    It is undefined for a constant prediction; 0 then avoids NaN in every mean.
    """
    xp = namespace(value_N)
    both_2N = xp.stack([value_N, truth_N])
    weights_N = xp.ones_like(value_N) if weights_RN is None else doubles(weights_RN)[:, None]  # [R, 1, N]
    n = weights_N.sum(-1)
    centred_2N = both_2N - ((both_2N * weights_N).sum(-1) / n)[..., None]
    covariance_22 = (centred_2N * weights_N) @ centred_2N.swapaxes(-1, -2) / (n - 1)[..., None]
    sd_2 = covariance_22.diagonal(0, -2, -1) ** 0.5
    pearson = (covariance_22[..., 0, 1] / sd_2[..., 0] / sd_2[..., 1]).clip(-1, 1)
    low_2 = xp.amin(xp.where(weights_N > 0, both_2N, xp.inf), -1)
    high_2 = xp.amax(xp.where(weights_N > 0, both_2N, -xp.inf), -1)
    return xp.where((low_2 == high_2).any(-1), 0.0, pearson)


def sign_scores(truth_N: Array, predicted_N: Array, weights_RN: Array | None = None) -> tuple[Array, Array]:
    """Accuracy, and the F1 of both answers weighted by their frequency in the truth; NaN without rows."""
    weighted = 0.0
    for answer in (True, False):
        true_N, positive_N = truth_N == answer, predicted_N == answer
        both = doubles(total(true_N & positive_N, weights_RN))
        marks = total(true_N, weights_RN) + total(positive_N, weights_RN)
        weighted = weighted + mean(true_N, weights_RN) * f1(both, marks)
    return mean(truth_N == predicted_N, weights_RN), weighted
