"""Classification: one class a sample, or any number of labels."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmsweep.data.dataset import Target
from mmsweep.tasks.task import Task
from mmsweep.transfer import Resident


class SingleLabel(Task):
    """Cross entropy, optionally weighted by class.

    Macro F1 is the mean over the classes that occur in truth or prediction; with one label a
    sample micro F1 equals accuracy.

    Args:
        target: the classes.
        class_weights: [C], mean 1 over samples; None: all 1.
    """

    metric_names = ("accuracy", "f1_macro", "f1_micro")

    def __init__(self, target: Target, class_weights: Tensor | None = None) -> None:
        self.target = target
        self.class_weights = class_weights
        self._weights = None if class_weights is None else Resident(class_weights)

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        weights = None if self._weights is None else self._weights.on(prediction.device)
        return F.cross_entropy(prediction.float(), target, weight=weights, reduction="none")

    def statistics(self, prediction: Tensor, target: Tensor) -> Tensor:
        return prediction.float().softmax(-1)

    def constant(self, targets: np.ndarray) -> Tensor:
        """The most frequent class, of several the first: [C]."""
        counts_C = torch.from_numpy(np.bincount(np.asarray(targets, np.int64), minlength=self.outputs))
        return F.one_hot(counts_C.argmax(), self.outputs).float()

    def metrics(self, statistics: Tensor, target: Tensor) -> dict[str, float]:
        if len(target) == 0:
            return dict.fromkeys(self.metric_names, math.nan)
        accuracy = (statistics.argmax(-1) == target).double().mean().item()
        macro = _f1("multiclass", statistics.argmax(-1), target, self.outputs, "macro").item()
        return {"accuracy": accuracy, "f1_macro": macro, "f1_micro": accuracy}

    def per_class(self, statistics: Tensor, target: Tensor) -> dict[str, list[float]]:
        if len(target) == 0:
            return {"f1": [math.nan] * self.outputs}
        return {"f1": _f1("multiclass", statistics.argmax(-1), target, self.outputs, "none").tolist()}


class MultiLabel(Task):
    """Binary cross entropy with logits (B16), a label predicted at 0.5 or at its own threshold (B17).

    Args:
        target: the labels.
        thresholds: [C]; None: 0.5 for all.
    """

    metric_names = ("f1_macro", "f1_micro", "accuracy")

    def __init__(self, target: Target, thresholds: Tensor | None = None, label_weights: Tensor | None = None) -> None:
        self.target = target
        self.thresholds = thresholds
        self.label_weights = label_weights
        self._weights = None if label_weights is None else Resident(label_weights)

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        weights = None if self._weights is None else self._weights.on(prediction.device)
        return F.binary_cross_entropy_with_logits(
            prediction.float(), target, pos_weight=weights, reduction="none"
        ).mean(-1)

    def statistics(self, prediction: Tensor, target: Tensor) -> Tensor:
        return prediction.float().sigmoid()

    def constant(self, targets: np.ndarray) -> Tensor:
        """Each label's share of the training rows [C], decided by the same thresholds as a prediction."""
        return torch.from_numpy(np.asarray(targets, np.float64).mean(0) if len(targets) else np.zeros(self.outputs))

    def metrics(self, statistics: Tensor, target: Tensor) -> dict[str, float]:
        """Accuracy is the share of samples whose labels are all right (subset accuracy)."""
        if len(target) == 0:
            return dict.fromkeys(self.metric_names, math.nan)
        hit_NC, truth_NC = self._decide(statistics), target.long()
        return {
            "f1_macro": _f1("multilabel", hit_NC, truth_NC, self.outputs, "macro").item(),
            "f1_micro": _f1("multilabel", hit_NC, truth_NC, self.outputs, "micro").item(),
            "accuracy": (hit_NC == truth_NC).all(1).double().mean().item(),
        }

    def per_class(self, statistics: Tensor, target: Tensor) -> dict[str, list[float]]:
        if len(target) == 0:
            return {"f1": [math.nan] * self.outputs}
        return {"f1": _f1("multilabel", self._decide(statistics), target.long(), self.outputs, "none").tolist()}

    def tuned(self, statistics: Tensor, target: Tensor) -> MultiLabel:
        """This task with each label's threshold at its best F1 on these validation rows; ties: nearest to 0.5."""
        grid_G = torch.linspace(0.05, 0.95, 19, device=statistics.device)
        hit_GNC = statistics[None] > grid_G[:, None, None]
        truth_NC = target.bool()
        hits_GC = (hit_GNC & truth_NC).sum(1).double()
        f1_GC = 2 * hits_GC / (hit_GNC.sum(1) + truth_NC.sum(0)).clamp(min=1)
        best_C = (f1_GC - 1e-6 * (grid_G - 0.5).abs()[:, None]).argmax(0)
        return MultiLabel(self.target, grid_G[best_C], self.label_weights)

    def _decide(self, statistics: Tensor) -> Tensor:
        cut = 0.5 if self.thresholds is None else self.thresholds.to(statistics.device)
        return (statistics > cut).long()


def balanced_weights(target: Target, values: Tensor) -> Tensor:
    """Weights that make every class count alike in the loss: N / (C n_c), 1 for classes that do not occur.

    N counts rows, or the pixels that have a class. For labels: how much a positive weighs, (N - n_c) / n_c, at most 20.
    """
    if target.task in ("single_label", "segmentation"):
        values = values.flatten()
        values = values[values < target.width].long()
        counts_C = values.bincount(minlength=target.width).double()
        return torch.where(counts_C > 0, len(values) / (target.width * counts_C.clamp(min=1)), 1.0).float()
    positives_C = values.double().sum(0)
    return ((len(values) - positives_C) / positives_C.clamp(min=1)).clamp(max=20).float()


def _f1(
    task: Literal["multiclass", "multilabel"],
    hit: Tensor,
    truth: Tensor,
    classes: int,
    average: Literal["macro", "micro", "none"],
) -> Tensor:
    # Seconds to import, and who only checks a study needs no score.
    from torchmetrics.functional.classification import multiclass_f1_score, multilabel_f1_score

    score = multiclass_f1_score if task == "multiclass" else multilabel_f1_score
    return score(hit, truth, classes, average=average)
