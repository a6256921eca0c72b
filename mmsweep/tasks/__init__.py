"""The tasks, by the dataset's target."""

from __future__ import annotations

from torch import Tensor

from mmsweep.data.dataset import Target
from mmsweep.tasks.classification import MultiLabel, SingleLabel, balanced_weights
from mmsweep.tasks.regression import Regression
from mmsweep.tasks.task import Task

__all__ = ["MultiLabel", "Regression", "SingleLabel", "Task", "make_task"]


def make_task(target: Target, train_targets: Tensor | None = None) -> Task:
    """The task for a target; with `train_targets`, classes are weighted so that each counts alike."""
    if target.task == "regression":
        return Regression(target)
    weights = None if train_targets is None else balanced_weights(target, train_targets)
    if target.task == "single_label":
        return SingleLabel(target, weights)
    return MultiLabel(target, label_weights=weights)
