"""Segmentation: a class for every pixel, with cross entropy over all labelled pixels or over the hard ones (OHEM).

Evaluation stores a confusion matrix for each sample; a scenario's matrix is their sum. Two definitions of mean IoU are
in use. They differ for a class that occurs in neither truth nor prediction:

    miou            the class counts as 0; the mean is over all C classes (DELIVER, and so the numbers of both papers)
    miou_present    the class is left out of the mean
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mmsweep.components import register
from mmsweep.tasks.classes import balanced_classes
from mmsweep.tasks.task import IGNORE, Array, Metric, Target, Task, doubles, namespace, resident, total

if TYPE_CHECKING:
    import torch
    from torch import Tensor

HARD_LOSS = -math.log(0.7)
"""OHEM: a pixel is hard if its class has a predicted probability below 0.7 (methods.md §5.2)."""

LEAST_SHARE = 16
"""OHEM: the loss averages at least 1/16 of the labelled pixels, the hardest first."""


@register("segmentation")
class Segmentation(Task):
    """Predictions [B, C, H, W], label maps [B, H, W] with IGNORE where a pixel has no class.

    A sample's loss is the mean over its own labelled pixels, or 0 if it has none. Every sample therefore has the same
    weight, and its loss does not depend on the rest of the batch. (The reference code averages over the batch's pixels,
    and with OHEM selects among them.)

    Args:
        target: the classes.
        class_weights: [C]; None: all 1.
        hard_pixels: use OHEM cross entropy instead of the mean over all labelled pixels.
    """

    reported: ClassVar = {
        "miou": Metric("mIoU"),
        "miou_present": Metric("mIoU of present classes"),
        "pixel_accuracy": Metric("pixel accuracy"),
    }
    class_metric = ("iou", "IoU")
    target_kind = "map"
    dense = True
    constant_words = "the most frequent class at every pixel"
    reads = ("train.class_weights", "train.hard_pixels", "inference")

    def __init__(self, target: Target, class_weights: Tensor | None = None, *, hard_pixels: bool = False) -> None:
        super().__init__(target)
        self.class_weights = class_weights
        self.hard_pixels = hard_pixels
        self._weights = resident(class_weights)

    @classmethod
    def of(cls, target: Target, targets: np.ndarray, options: Mapping[str, Any]) -> Task:
        import torch

        balanced = options["train.class_weights"] == "balanced"
        weights = torch.from_numpy(balanced_classes(targets, target.width)) if balanced else None
        return cls(target, weights, hard_pixels=options["train.hard_pixels"])

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        import torch.nn.functional as F

        weights = self._weights(prediction.device)
        loss_BHW = F.cross_entropy(prediction.float(), target, weight=weights, ignore_index=IGNORE, reduction="none")
        if self.hard_pixels:
            return hard_mean(loss_BHW, target != IGNORE)
        return loss_BHW.flatten(1).sum(1) / (target != IGNORE).flatten(1).sum(1).clamp(min=1)

    def statistics(self, prediction: Tensor, target: Tensor) -> Tensor:
        """int32 [..., B, C, C], truth x prediction."""
        predicted = prediction.argmax(-3)
        return confusion(predicted, target.expand(predicted.shape), self.outputs)

    def constant(self, targets: np.ndarray) -> Tensor:
        """The most frequent class of all labelled pixels, one-hot [C]; ties go to the first."""
        import torch

        counts_C = np.zeros(self.outputs, np.int64)
        for map_HW in targets:  # one at a time: all maps of a split may not fit into memory
            counts_C += np.bincount(map_HW.ravel(), minlength=IGNORE + 1)[: self.outputs]
        return torch.eye(self.outputs)[counts_C.argmax()]

    def constant_statistics(self, statistics: Tensor, targets: np.ndarray) -> Tensor:
        """Confusion matrices of the same truth with one predicted class."""
        truth_C1 = statistics.sum(-1, keepdim=True, dtype=statistics.dtype)
        return truth_C1 * self.constant(targets).to(statistics)

    @property
    def statistics_shape(self) -> tuple[int, ...]:
        return (self.outputs, self.outputs)

    @property
    def statistics_dtype(self) -> torch.dtype:
        import torch

        return torch.int32

    def truth(self, targets: np.ndarray) -> Tensor:
        """Empty, since the confusion matrices hold the truth: [N, 0]."""
        import torch

        return torch.zeros(len(targets), 0)

    def measure(self, statistics: Array, target: Array, weights_RN: Array | None) -> dict[str, Array]:
        whole_CC = total(statistics, weights_RN)
        hits_C = whole_CC.diagonal(0, -2, -1)
        iou_C, present_C = intersection_over_union(whole_CC)
        return {
            "miou": iou_C.mean(-1),
            "miou_present": _present_mean(iou_C, present_C),
            "pixel_accuracy": doubles(hits_C.sum(-1)) / whole_CC.sum((-2, -1)),
            "iou": iou_C,
        }


def hard_mean(loss_BHW: Tensor, labelled_BHW: Tensor) -> Tensor:
    """OHEM loss of each sample [B]; 0 without labelled pixels.

    It is the mean over the labelled pixels whose loss exceeds -log 0.7, or over the hardest sixteenth of the labelled
    pixels if these are more. Both means are computed for every sample: selecting pixels first would need their number,
    and the step would wait for the device.
    """
    import torch

    loss_BL, labelled_BL = loss_BHW.flatten(1), labelled_BHW.flatten(1)
    hard_BL = labelled_BL & (loss_BL > HARD_LOSS)
    hard_B, labels_B = hard_BL.sum(1), labelled_BL.sum(1)
    above_B = torch.where(hard_BL, loss_BL, 0.0).sum(1) / hard_B.clamp(min=1)
    least_B = (labels_B // LEAST_SHARE).clamp(min=1)
    # Losses are not negative, so pixels without a label (0 here) come last.
    top_BK = torch.where(labelled_BL, loss_BL, 0.0).topk(max(loss_BL.shape[1] // LEAST_SHARE, 1), 1).values
    taken_BK = torch.arange(top_BK.shape[1], device=top_BK.device) < least_B[:, None]
    hardest_B = torch.where(taken_BK, top_BK, 0.0).sum(1) / least_B
    return torch.where(hard_B >= least_B, above_B, hardest_B)


def confusion(predicted: Tensor, target: Tensor, classes: int) -> Tensor:
    """Pixel counts of truth x prediction, without IGNORE: [..., H, W] twice -> int32 [..., C, C]."""
    import torch

    shape = predicted.shape[:-2]
    predicted, target = predicted.reshape(-1, *predicted.shape[-2:]), target.reshape(-1, *target.shape[-2:])
    cells = classes * classes
    # One bincount for all maps: each map has its own range of cells, and ignored pixels go to one last cell.
    row = torch.arange(len(target), device=target.device)[:, None, None] * cells
    place = torch.where(target == IGNORE, len(target) * cells, row + target * classes + predicted)
    counts = place.flatten().bincount(minlength=len(target) * cells + 1)[:-1]
    return counts.to(torch.int32).reshape(*shape, classes, classes)


def intersection_over_union(whole_CC: Array) -> tuple[Array, Array]:
    """Each class's IoU (0 if it does not occur), and whether it occurs in truth or prediction."""
    hits_C = whole_CC.diagonal(0, -2, -1)
    union_C = whole_CC.sum(-2) + whole_CC.sum(-1) - hits_C
    return doubles(hits_C) / namespace(union_C).where(union_C > 0, union_C, 1), union_C > 0


def _present_mean(iou_C: Array, present_C: Array) -> Array:
    """The mean IoU of the classes that occur; NaN if no pixel is labelled."""
    if present_C.all():
        return iou_C.mean(-1)
    rows = zip(iou_C.reshape(-1, iou_C.shape[-1]), present_C.reshape(-1, iou_C.shape[-1]), strict=True)
    means = [each[present].sum() / present.sum() for each, present in rows]
    return namespace(iou_C).stack(means).reshape(iou_C.shape[:-1])
