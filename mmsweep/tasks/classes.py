"""Shared by the tasks with classes: metrics, F1, and weights that balance the classes in the loss."""

from __future__ import annotations

import numpy as np

from mmsweep.tasks.task import Array, Metric, namespace, total

ACCURACY, F1_MACRO, F1_MICRO = Metric("accuracy"), Metric("F1-macro"), Metric("F1-micro")


def f1(both: Array, marks: Array) -> Array:
    """F1 of a class; 0 where it occurs in neither truth nor prediction.

    Args:
        both: number of rows that have the class in truth and prediction.
        marks: number of rows that have it in truth, plus the number that have it in the prediction.
    """
    return 2 * both / namespace(marks).where(marks > 0, marks, 1)


def count(labels_N: Array, classes: int, weights_RN: Array | None = None) -> Array:
    """Number of rows of each class: [C], or with weights [R, C]. The label `classes` means no class."""
    xp = namespace(labels_N)
    if weights_RN is None:
        return xp.bincount(labels_N, minlength=classes)[:classes]
    return total(labels_N[:, None] == xp.arange(classes), weights_RN)


def balanced_classes(values: np.ndarray, classes: int) -> np.ndarray:
    """Weights [C] that balance the classes: N / (C n_c), 1 for classes that do not occur.

    Args:
        values: the class of each of N rows or pixels; numbers of `classes` or more mean no class.
    """
    counts_C = np.bincount(values[values < classes].astype(np.int64), minlength=classes)
    weights_C = counts_C.sum() / (classes * np.maximum(counts_C, 1))
    return np.where(counts_C > 0, weights_C, 1.0).astype(np.float32)
