"""Classification with any number of labels a sample: binary cross entropy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mmsweep.components import register
from mmsweep.tasks.classes import ACCURACY, F1_MACRO, F1_MICRO, f1
from mmsweep.tasks.task import Array, Target, Task, mean, namespace, resident, total

if TYPE_CHECKING:
    from torch import Tensor


@register("multi_label")
class MultiLabel(Task):
    """Binary cross entropy with logits (B16); a label is predicted above 0.5 or above its own threshold (B17).

    Macro F1 is the mean over all labels; a label that never occurs counts as 0. Accuracy is the share of samples with
    all labels right (subset accuracy).

    Args:
        target: the labels.
        thresholds: [C]; None: 0.5 for all.
        label_weights: [C], weight of a positive in the loss; None: 1.
    """

    reported: ClassVar = {"f1_macro": F1_MACRO, "f1_micro": F1_MICRO, "accuracy": ACCURACY}
    class_metric = ("f1", "F1")
    target_kind = "labels"
    constant_words = "each label's share of the rows"
    reads = ("data.target.separator", "train.class_weights", "scenarios.thresholds")

    def __init__(self, target: Target, thresholds: Array | None = None, label_weights: Tensor | None = None) -> None:
        super().__init__(target)
        self.thresholds = thresholds
        self.label_weights = label_weights
        self._weights = resident(label_weights)

    @classmethod
    def of(cls, target: Target, targets: np.ndarray, options: Mapping[str, Any]) -> Task:
        if options["train.class_weights"] == "none":
            return cls(target)
        import torch

        positives_C = np.asarray(targets, np.float64).sum(0)
        weights_C = ((len(targets) - positives_C) / np.maximum(positives_C, 1)).clip(max=20)
        return cls(target, label_weights=torch.from_numpy(weights_C.astype(np.float32)))

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        import torch.nn.functional as F

        weights = self._weights(prediction.device)
        loss = F.binary_cross_entropy_with_logits(prediction.float(), target, pos_weight=weights, reduction="none")
        return loss.mean(-1)

    def statistics(self, prediction: Tensor, target: Tensor) -> Tensor:
        return prediction.float().sigmoid()

    def constant(self, targets: np.ndarray) -> Tensor:
        """Each label's share of the training rows [C]; metrics apply the same thresholds to it as to predictions."""
        import torch

        return torch.from_numpy(np.asarray(targets, np.float64).mean(0) if len(targets) else np.zeros(self.outputs))

    def measure(self, statistics: Array, target: Array, weights_RN: Array | None) -> dict[str, Array]:
        xp = namespace(statistics)
        predicted_NC = statistics > (0.5 if self.thresholds is None else xp.asarray(self.thresholds))
        truth_NC = target > 0
        both = total(predicted_NC & truth_NC, weights_RN)
        marks = total(predicted_NC, weights_RN) + total(truth_NC, weights_RN)
        each = f1(both, marks)
        return {
            "f1_macro": (each / each.shape[-1]).sum(-1),
            "f1_micro": f1(both.sum(-1), marks.sum(-1)),
            "accuracy": mean((predicted_NC == truth_NC).all(1), weights_RN),
            "f1": each,
        }

    def tuned(self, statistics: Tensor, target: Tensor) -> MultiLabel:
        """This task with the threshold of best F1 for each label on these validation rows; ties go nearest to 0.5."""
        import torch

        grid_G = torch.linspace(0.05, 0.95, 19, device=statistics.device)
        hit_GNC = statistics[None] > grid_G[:, None, None]
        truth_NC = target.bool()
        hits_GC = (hit_GNC & truth_NC).sum(1).double()
        f1_GC = 2 * hits_GC / (hit_GNC.sum(1) + truth_NC.sum(0)).clamp(min=1)
        best_C = (f1_GC - 1e-6 * (grid_G - 0.5).abs()[:, None]).argmax(0)
        return MultiLabel(self.target, grid_G[best_C], self.label_weights)

    def settings(self) -> dict[str, Any]:
        """Each label's threshold if they were tuned; recomputing scores from stored predictions needs them."""
        return {"thresholds": [] if self.thresholds is None else [float(value) for value in self.thresholds]}

    @classmethod
    def from_settings(cls, target: Target, settings: Mapping[str, Any]) -> Task:
        thresholds = settings.get("thresholds") or None
        return cls(target, None if thresholds is None else np.array(thresholds, np.float64))
