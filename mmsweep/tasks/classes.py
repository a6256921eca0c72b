"""What tasks with classes share: their metrics' names, F1, and weights that make classes count alike in the loss."""

from __future__ import annotations

import numpy as np

from mmsweep.tasks.task import Array, Metric, namespace, total

ACCURACY, F1_MACRO, F1_MICRO = Metric("accuracy"), Metric("F1-macro"), Metric("F1-micro")


def f1(both: Array, marks: Array) -> Array:
    """F1 of a class that truth and prediction mark so often, `both` of it at the same row; 0 where neither does."""
    return 2 * both / namespace(marks).where(marks > 0, marks, 1)


def count(labels_N: Array, classes: int, weights_RN: Array | None = None) -> Array:
    """How often each class stands in labels [N], in which `classes` stands for none: [C], or with weights [R, C]."""
    xp = namespace(labels_N)
    if weights_RN is None:
        return xp.bincount(labels_N, minlength=classes)[:classes]
    return total(labels_N[:, None] == xp.arange(classes), weights_RN)


def balanced_classes(values: np.ndarray, classes: int) -> np.ndarray:
    """Weights [C] that make every class count alike: N / (C n_c), 1 for classes that do not occur.

    Args:
        values: the class of each of N rows or pixels; larger numbers are none.
    """
    counts_C = np.bincount(values[values < classes].astype(np.int64), minlength=classes)
    weights_C = counts_C.sum() / (classes * np.maximum(counts_C, 1))
    return np.where(counts_C > 0, weights_C, 1.0).astype(np.float32)
