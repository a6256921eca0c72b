"""The contract of a task: the target, the loss, the statistics that evaluation stores, and the metrics.

A task is one class in one file. Its metrics are written once for both PyTorch and NumPy: training passes tensors, the
report passes arrays with the weights of its resamples. The report must not wait for torch, so a task's file imports
torch only inside the functions that need it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from mmsweep.components import Registry
from mmsweep.errors import UserError, nearest

if TYPE_CHECKING:
    import torch
    from torch import Tensor

TASKS = Registry("task", "mmsweep.tasks")
"""The tasks, each in the file of its name."""
IGNORE = 255
"""The value of pixels without a class in a label map; the loss and the metrics leave them out."""
TargetKind = Literal["class", "labels", "number", "map"]
Array = Any
"""A torch tensor or a NumPy array."""

_LARGEST = float(np.finfo(np.float32).max)
"""Largest target of a regression; anything larger becomes infinite in float32."""


@dataclass(frozen=True)
class Metric:
    """One metric.

    Args:
        label: its name in tables, figures and sentences.
        mode: whether the largest ("max") or the smallest ("min") value is the best.
        share: whether it is a proportion between 0 and 1, shown in percent; other metrics keep their own unit.
    """

    label: str
    mode: Literal["max", "min"] = "max"
    share: bool = True


@dataclass(frozen=True)
class Target:
    """What a model predicts.

    Args:
        task: one of TASKS.
        classes: names in the order of the outputs; empty for a number.
        label_values: for label maps, pairs of (value in the label files, class index or IGNORE); values that are not
            listed are refused. Empty: the values are the class indices, and IGNORE stands for itself.
        signed: for a number, whether its sign has a meaning, as in sentiment from -3 to 3; the metrics of the sign are
            then reported.
    """

    task: str
    classes: tuple[str, ...] = ()
    label_values: tuple[tuple[int, int], ...] = ()
    signed: bool = False

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise UserError("unknown task", key="task", found=self.task, expected=", ".join(TASKS))
        if self.kind == "map" and len(self.classes) > IGNORE:
            raise UserError(f"a label map holds at most {IGNORE} classes", key="classes", found=len(self.classes))
        if self.signed and self.kind != "number":
            raise UserError("only a number has a sign", key="signed", found=self.task, expected="regression")
        if len(set(self.classes)) != len(self.classes):
            twice = sorted({name for name in self.classes if self.classes.count(name) > 1})
            raise UserError("a class is listed twice", key="classes", found=twice)

    @property
    def kind(self) -> TargetKind:
        """The form of one row's target."""
        kind: TargetKind = TASKS[self.task].target_kind
        return kind

    @property
    def width(self) -> int:
        """Number of outputs that a head needs."""
        return 1 if self.kind == "number" else len(self.classes)

    def encode(self, value: Any) -> Any:
        """Class name -> index; list of labels -> multi-hot float32 [C]; number -> float.

        A label map is returned unchanged; it is decoded with its rasters (`data/kinds/raster.py`).

        Raises:
            UserError: an unknown label (with the nearest spelling), a value of the wrong type, or a number that is not
                finite.
        """
        if self.kind == "map":
            return value
        if self.kind == "class":
            return self._index(value)
        if self.kind == "labels":
            if isinstance(value, str) or not isinstance(value, (list, tuple, set, frozenset)):
                raise UserError("the target must be a list of labels", found=value)
            hot_C = np.zeros(len(self.classes), np.float32)
            for label in value:
                hot_C[self._index(label)] = 1.0
            return hot_C
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            raise UserError("the target is not a number", found=value) from None
        if not abs(number) <= _LARGEST:  # NaN too
            raise UserError("the target must be a finite number of 32 bits", found=value)
        return number

    def array(self, encoded: list[Any]) -> np.ndarray:
        """Encoded values as an array: int64 [N], float32 [N, C] or float32 [N]."""
        shape = (len(encoded), len(self.classes)) if self.kind == "labels" else (len(encoded),)
        return np.array(encoded, np.int64 if self.kind == "class" else np.float32).reshape(shape)

    def _index(self, label: Any) -> int:
        indices = _class_indices(self.classes)
        if not isinstance(label, str) or label not in indices:
            rest = f", … ({len(self.classes)} in all)" if len(self.classes) > 10 else ""
            shown = ", ".join(self.classes[:10]) + rest
            raise UserError(
                "the label is not in the list of classes",
                found=label,
                expected=f"one of {shown}",
                hint=nearest(label, self.classes),
            )
        return indices[label]


@cache
def _class_indices(classes: tuple[str, ...]) -> dict[str, int]:
    return {name: index for index, name in enumerate(classes)}


class Task(ABC):
    """The loss that training minimises and the metrics that evaluation reports.

    Attributes:
        reported: the metrics by name, in the order of reports.
        class_metric: name and label of the score of each class; None without classes.
        target_kind: the form of one row's target: a class, any number of labels, a number, or a map of classes.
        dense: whether the prediction is a map [B, C, H, W]; evaluation then holds the maps of one pattern at a time.
        constant_words: what the constant predictor predicts, in words.
        reads: the study's keys on which this task's loss and metrics depend.
        target: what is predicted.
    """

    registry: ClassVar[Registry] = TASKS
    reported: ClassVar[Mapping[str, Metric]]
    class_metric: ClassVar[tuple[str, str] | None] = None
    target_kind: ClassVar[TargetKind]
    dense: ClassVar[bool] = False
    constant_words: ClassVar[str] = "the same value for every row"
    reads: ClassVar[tuple[str, ...]] = ()
    target: Target

    def __init__(self, target: Target) -> None:
        self.target = target

    @classmethod
    def of(cls, target: Target, targets: np.ndarray, options: Mapping[str, Any]) -> Task:
        """The task of a run.

        Args:
            targets: the training rows' targets [N, ...], as a prepared split holds them.
            options: the study's values of the `train` keys in `reads`.

        Raises:
            UserError: no model can learn from these targets.
        """
        return cls(target)

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The metrics reported for this target."""
        return tuple(self.reported)

    @property
    def outputs(self) -> int:
        """C, the width of the prediction."""
        return self.target.width

    @abstractmethod
    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The loss of each sample: [B]."""

    @abstractmethod
    def statistics(self, prediction: Tensor, target: Tensor) -> Tensor:
        """What evaluation stores of each sample's prediction: [B, ...]; metrics of any subset of rows need no more.

        Axes of the prediction before B (patterns) stay in front.
        """

    @property
    def statistics_shape(self) -> tuple[int, ...]:
        """Shape of one sample's statistics."""
        return (self.outputs,)

    @property
    def statistics_dtype(self) -> torch.dtype:
        import torch

        return torch.float32

    def truth(self, targets: np.ndarray) -> Tensor:
        """The part of the rows' targets that metrics need beside the statistics: [N, ...]."""
        import torch

        return torch.from_numpy(np.array(targets))

    def state(self) -> dict[str, Tensor]:
        """The tensors that a checkpoint needs beside the weights to predict the same; names start with `task.`."""
        return {}

    def restored(self, state: Mapping[str, Tensor]) -> Task:
        """This task with the `state` of a checkpoint."""
        return self

    def started_from(self, state: Mapping[str, Tensor]) -> Task:
        """This task for a run that starts from the weights of another run, whose predictions keep their meaning.

        Raises:
            UserError: the other run predicts a different quantity (key train.init_from).
        """
        return self.restored(state)

    def tuned(self, statistics: Tensor, target: Tensor) -> Task:
        """This task with its thresholds tuned on these validation rows (`scenarios.thresholds: tuned`)."""
        return self

    def settings(self) -> dict[str, Any]:
        """Plain data for evaluation.json, from which `from_settings` makes a task with the same metrics."""
        return {}

    @classmethod
    def from_settings(cls, target: Target, settings: Mapping[str, Any]) -> Task:
        """The task of an evaluation; `settings` may hold keys of other tasks."""
        return cls(target)

    @abstractmethod
    def constant(self, targets: np.ndarray) -> Tensor:
        """One row's statistics by the constant predictor, which ignores its input.

        Args:
            targets: the training rows' targets [N, ...], as a prepared split holds them.
        """

    def constant_statistics(self, statistics: Tensor, targets: np.ndarray) -> Tensor:
        """The constant predictor's statistics for the rows of `statistics` [..., *statistics_shape]."""
        return self.constant(targets).to(statistics).expand(statistics.shape)

    @abstractmethod
    def measure(self, statistics: Array, target: Array, weights_RN: Array | None) -> dict[str, Array]:
        """Every metric, and each class's score under the name of `class_metric`, for at least one row.

        Args:
            statistics, target: the rows' values [N, ...], both tensors or both NumPy arrays.
            weights_RN: weight of each row in each of R resamples (NumPy); None: 1 each. A row of weight k counts as k
                equal rows.

        Returns:
            Metrics [R], class scores [R, C]; without weights scalars and [C].
        """

    def metrics(self, statistics: Array, target: Array, weights: Array | None = None) -> dict[str, Any]:
        """Scores of a set of rows by metric; NaN for an empty set.

        Args:
            weights: the rows' weights [N], as in `measure`, or those of several resamples [R, N].

        Returns:
            Numbers, or arrays [R] for resamples.
        """
        scores = self._measured(statistics, target, weights)
        return {name: scores[name] for name in self.metric_names}

    def per_class(self, statistics: Array, target: Array, weights: Array | None = None) -> dict[str, Any]:
        """Each class's score as a list [C], or an array [R, C] for resamples; empty without classes."""
        if self.class_metric is None:
            return {}
        return {self.class_metric[0]: self._measured(statistics, target, weights)[self.class_metric[0]]}

    def _measured(self, statistics: Array, target: Array, weights: Array | None) -> dict[str, Any]:
        rows, weights_RN = len(statistics), None
        leading: tuple[int, ...] = ()
        if weights is not None:
            statistics, target = np.asarray(statistics), np.asarray(target)
            weights = np.asarray(weights, np.result_type(weights, np.float32))
            leading, weights_RN = weights.shape[:-1], weights.reshape(-1, rows)
        if rows:
            with np.errstate(invalid="ignore", divide="ignore"):  # a division by 0 gives NaN, as in torch
                scores = self.measure(statistics, target, weights_RN)
        else:
            each = {self.class_metric[0]: np.full((*leading, self.outputs), math.nan)} if self.class_metric else {}
            scores = {name: np.full(leading, math.nan) for name in self.reported} | each
        if weights_RN is not None and rows:
            for values in scores.values():
                values[~weights_RN.any(1)] = math.nan
            scores = {name: values.reshape((*leading, *values.shape[1:])) for name, values in scores.items()}
        return scores if leading else {name: values.tolist() for name, values in scores.items()}


def task_of(target: Target) -> Task:
    """The task of a target with default training options, for its metrics."""
    task: Task = TASKS[target.task](target)
    return task


def resident(weights: Tensor | None) -> Callable[[torch.device], Tensor | None]:
    """A function that returns the loss weights on a given device."""
    if weights is None:
        return lambda device: None
    from mmsweep.transfer import Resident

    return Resident(weights).on


# ---- functions of metrics for both torch and NumPy -------------------------------------------------------------------


def namespace(x: Array) -> Any:
    """The module of an array, NumPy or torch; both use the same names for the functions that metrics need."""
    if isinstance(x, np.ndarray | np.generic):
        return np
    import torch

    return torch


def doubles(x: Array) -> Array:
    """The values in double precision."""
    xp = namespace(x)
    return xp.asarray(x, dtype=xp.float64)


def total(x_N: Array, weights_RN: Array | None = None) -> Array:
    """The sum over rows: [N, ...] -> [...], or with weights -> [R, ...]."""
    if weights_RN is None:
        return x_N.sum(0)
    # Sums of 0 and 1 are exact in single precision up to 2^24, and much faster.
    dtype = weights_RN.dtype if x_N.dtype == bool else np.float64
    sums = weights_RN.astype(dtype, copy=False) @ x_N.reshape(len(x_N), math.prod(x_N.shape[1:])).astype(dtype)
    return sums.astype(np.float64).reshape(len(weights_RN), *x_N.shape[1:])


def mean(x_N: Array, weights_RN: Array | None = None) -> Array:
    """The mean over rows [N], in double precision; NaN without rows."""
    if weights_RN is None:
        return doubles(x_N).sum(0) / len(x_N)
    return total(x_N, weights_RN) / weights_RN.sum(1, dtype=np.float64)
