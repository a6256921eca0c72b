"""The tasks, by the dataset's target."""

from __future__ import annotations

from torch import Tensor

from mmsweep.data.dataset import Target
from mmsweep.tasks.classification import MultiLabel, SingleLabel, balanced_weights
from mmsweep.tasks.regression import Loss, Regression, TargetScale
from mmsweep.tasks.segmentation import Segmentation
from mmsweep.tasks.task import Task

__all__ = ["MultiLabel", "Regression", "Segmentation", "SingleLabel", "TargetScale", "Task", "make_task"]


def make_task(
    target: Target,
    train_targets: Tensor | None = None,
    regression_loss: Loss = "l1",
    *,
    hard_pixels: bool = False,
    scale: TargetScale | None = None,
) -> Task:
    """The task for a target.

    Args:
        train_targets: with them, classes are weighted so that each counts alike.
        regression_loss: what a regression minimises: l1, mse or smooth_l1.
        hard_pixels: segmentation learns from the hard pixels only (OHEM).
        scale: of a regression's target; None: it is learned as it is.
    """
    if target.task == "regression":
        return Regression(target, regression_loss, scale)
    weights = None if train_targets is None else balanced_weights(target, train_targets)
    if target.task == "segmentation":
        return Segmentation(target, weights, hard_pixels=hard_pixels)
    if target.task == "single_label":
        return SingleLabel(target, weights)
    return MultiLabel(target, label_weights=weights)
