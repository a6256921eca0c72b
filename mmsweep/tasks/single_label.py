"""Classification with one class a sample: cross entropy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mmsweep.components import register
from mmsweep.tasks.classes import ACCURACY, F1_MACRO, F1_MICRO, balanced_classes, count, f1
from mmsweep.tasks.task import Array, Target, Task, mean, namespace, resident

if TYPE_CHECKING:
    from torch import Tensor


@register("single_label")
class SingleLabel(Task):
    """Cross entropy, optionally weighted by class.

    Macro F1 is the mean over the classes that occur in truth or prediction. With one label per sample, micro F1 equals
    accuracy.

    Args:
        target: the classes.
        class_weights: [C], with a mean of 1 over the samples; None: all 1.
    """

    reported: ClassVar = {"accuracy": ACCURACY, "f1_macro": F1_MACRO, "f1_micro": F1_MICRO}
    class_metric = ("f1", "F1")
    target_kind = "class"
    constant_words = "the most frequent class"
    reads = ("train.class_weights",)

    def __init__(self, target: Target, class_weights: Tensor | None = None) -> None:
        super().__init__(target)
        self.class_weights = class_weights
        self._weights = resident(class_weights)

    @classmethod
    def of(cls, target: Target, targets: np.ndarray, options: Mapping[str, Any]) -> Task:
        if options["train.class_weights"] == "none":
            return cls(target)
        import torch

        return cls(target, torch.from_numpy(balanced_classes(targets, target.width)))

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        import torch.nn.functional as F

        return F.cross_entropy(prediction.float(), target, self._weights(prediction.device), reduction="none")

    def statistics(self, prediction: Tensor, target: Tensor) -> Tensor:
        return prediction.float().softmax(-1)

    def constant(self, targets: np.ndarray) -> Tensor:
        """The most frequent class, one-hot [C]; ties go to the first."""
        import torch

        return torch.eye(self.outputs)[np.bincount(np.asarray(targets, np.int64), minlength=self.outputs).argmax()]

    def measure(self, statistics: Array, target: Array, weights_RN: Array | None) -> dict[str, Array]:
        predicted_N, right_N = statistics.argmax(-1), statistics.argmax(-1) == target
        C = statistics.shape[-1]
        both = count(namespace(predicted_N).where(right_N, predicted_N, C), C, weights_RN)
        marks = count(predicted_N, C, weights_RN) + count(target, C, weights_RN)
        each, occurs = f1(both, marks), marks > 0
        accuracy = mean(right_N, weights_RN)
        macro = (each * occurs / occurs.sum(-1)[..., None]).sum(-1)
        return {"accuracy": accuracy, "f1_macro": macro, "f1_micro": accuracy, "f1": each}
