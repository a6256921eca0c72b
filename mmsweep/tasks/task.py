"""The contract of a task: what is predicted, its loss, what evaluation keeps of a prediction, and its metrics.

A task is one class in one file. Its metrics are written once, against what PyTorch and NumPy have in common: training
hands them tensors, the report arrays and the weights of its resamples. A report waits for no torch, so a task's file
imports torch only inside the functions that need it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
"""The value of a label map that stands for no class: such pixels count neither in the loss nor in a metric."""
TargetKind = Literal["class", "labels", "number", "map"]
Array = Any
"""A torch tensor or a NumPy array."""

_LARGEST = float(np.finfo(np.float32).max)
"""Of a number that is predicted: what is larger would be infinite where it is stored."""


@dataclass(frozen=True)
class Metric:
    """One metric.

    Args:
        label: its name in tables, figures and sentences.
        mode: whether the largest ("max") or the smallest ("min") value is the best.
        share: it is a share of right answers between 0 and 1, written in percent; others keep their own unit.
    """

    label: str
    mode: Literal["max", "min"] = "max"
    share: bool = True


@dataclass(frozen=True)
class Target:
    """What is to be predicted.

    Args:
        task: one of TASKS.
        classes: names in the order of the outputs; empty for a number.
        label_values: of label maps: (value in the label files, class index or IGNORE) pairs; a value that is not listed
            is refused. Empty: the values are the indices, and IGNORE is itself.
        signed: of a number: its sign means something, as in sentiment from -3 to 3 (its metrics are reported).
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
        """What the target of one row is."""
        kind: TargetKind = TASKS[self.task].target_kind
        return kind

    @property
    def width(self) -> int:
        """Number of outputs that a head needs."""
        return 1 if self.kind == "number" else len(self.classes)

    def encode(self, value: Any) -> Any:
        """Class name -> index; list of labels -> multi-hot float32 [C]; number -> float.

        A label map is decoded with the rasters that it lies on (`data/kinds/raster.py`); here it stays what it is.

        Raises:
            UserError: a label that is not in the list (with the nearest spelling), a value of the wrong type,
                a number that is not finite.
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
        """Encoded values as they are kept: int64 [N], float32 [N, C] or float32 [N]."""
        shape = (len(encoded), len(self.classes)) if self.kind == "labels" else (len(encoded),)
        return np.array(encoded, np.int64 if self.kind == "class" else np.float32).reshape(shape)

    def encode_all(self, values: list[Any]) -> np.ndarray:
        """int64 [N], float32 [N, C] or float32 [N]."""
        return self.array([self.encode(value) for value in values])

    def _index(self, label: Any) -> int:
        lookup = _lookup(self.classes)
        if not isinstance(label, str) or label not in lookup:
            rest = f", … ({len(self.classes)} in all)" if len(self.classes) > 10 else ""
            shown = ", ".join(self.classes[:10]) + rest
            raise UserError(
                "the label is not in the list of classes",
                found=label,
                expected=f"one of {shown}",
                hint=nearest(label, self.classes),
            )
        return lookup[label]


_LOOKUPS: dict[tuple[str, ...], dict[str, int]] = {}


def _lookup(classes: tuple[str, ...]) -> dict[str, int]:
    if classes not in _LOOKUPS:
        _LOOKUPS[classes] = {name: index for index, name in enumerate(classes)}
    return _LOOKUPS[classes]


class Task(ABC):
    """What is minimised and what is measured.

    Attributes:
        reported: its metrics by name, in the order of reports.
        class_metric: name and label of the score that each class has; None where there are no classes.
        target_kind: what the target of one row is: a class, any number of labels, a number, or a map of classes.
        dense: the prediction is a map [B, C, H, W]; evaluation then holds one pattern's at a time.
        constant_words: what the constant predictor says, for people.
        reads: keys of the study that say how this task is learned and scored.
        target: what is predicted.
    """

    registry: ClassVar[Registry] = TASKS
    reported: ClassVar[Mapping[str, Metric]]
    class_metric: ClassVar[tuple[str, str] | None] = None
    target_kind: ClassVar[TargetKind]
    dense: ClassVar[bool] = False
    constant_words: ClassVar[str] = "the same of every row"
    reads: ClassVar[tuple[str, ...]] = ()
    target: Target

    def __init__(self, target: Target) -> None:
        self.target = target

    @classmethod
    def of(cls, target: Target, targets: np.ndarray, options: Mapping[str, Any]) -> Task:
        """The task of a run.

        Args:
            targets: of the training rows [N, ...], as a prepared split holds them.
            options: the study's values of those of `reads` that stand in its section `train`.

        Raises:
            UserError: the targets leave nothing to learn.
        """
        return cls(target)

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The metrics that are reported of this target."""
        return tuple(self.reported)

    @property
    def outputs(self) -> int:
        """C, the width of the prediction."""
        return self.target.width

    @abstractmethod
    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Per sample: [B]."""

    @abstractmethod
    def statistics(self, prediction: Tensor, target: Tensor) -> Tensor:
        """What is kept of each sample's prediction: [B, ...]; metrics of any subset of rows come from it.

        Leading axes of the prediction before B (patterns) are kept.
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
        """What metrics need of the rows' targets beside the statistics: [N, ...]."""
        import torch

        return torch.from_numpy(np.array(targets))

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must keep beside the weights to give the same predictions; names start with `task.`."""
        return {}

    def restored(self, kept: Mapping[str, Tensor]) -> Task:
        """This task as a checkpoint with the tensors `kept` was trained."""
        return self

    def started_from(self, kept: Mapping[str, Tensor]) -> Task:
        """This task for a run that starts from another run's weights: what they predict keeps its meaning.

        Raises:
            UserError: they predict something else (key train.init_from).
        """
        return self.restored(kept)

    def tuned(self, statistics: Tensor, target: Tensor) -> Task:
        """This task with what it decides by (`scenarios.thresholds: tuned`) set on these validation rows."""
        return self

    def settings(self) -> dict[str, Any]:
        """What evaluation.json keeps of the task, as plain data: from it `recalled` makes the same metrics."""
        return {}

    @classmethod
    def recalled(cls, target: Target, settings: Mapping[str, Any]) -> Task:
        """The task that an evaluation was made with; `settings` may hold more than this task's own."""
        return cls(target)

    @abstractmethod
    def constant(self, targets: np.ndarray) -> Tensor:
        """The statistics of one row by the constant predictor, which says the same of every row whatever is shown.

        Args:
            targets: of the training rows [N, ...], as a prepared split holds them.
        """

    def constant_statistics(self, statistics: Tensor, targets: np.ndarray) -> Tensor:
        """What `statistics` [..., *statistics_shape] of some rows would be, had the constant predictor made them."""
        return self.constant(targets).to(statistics).expand(statistics.shape)

    @abstractmethod
    def measure(self, statistics: Array, target: Array, weights_RN: Array | None) -> dict[str, Array]:
        """Every metric, and the score of each class under the name of `class_metric`, of one row or more.

        Args:
            statistics, target: of the rows [N, ...], both tensors or both NumPy arrays.
            weights_RN: how much each row counts in each of R resamples (NumPy); None: once. A row of weight k counts
                like k equal rows.

        Returns:
            Metrics [R], class scores [R, C]; without weights scalars and [C].
        """

    def metrics(self, statistics: Array, target: Array, weights: Array | None = None) -> dict[str, Any]:
        """Named scores of some rows; NaN where there are none.

        Args:
            weights: of the rows, [N], as of `measure`; or of several resamples at once, [R, N].

        Returns:
            Numbers; arrays [R] of resamples.
        """
        found = self._measured(statistics, target, weights)
        return {name: found[name] for name in self.metric_names}

    def per_class(self, statistics: Array, target: Array, weights: Array | None = None) -> dict[str, Any]:
        """Scores of each class as lists [C], or arrays [R, C] of resamples, where the task has classes."""
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
            with np.errstate(invalid="ignore", divide="ignore"):  # nothing to divide by: NaN, as torch says it
                found = self.measure(statistics, target, weights_RN)
        else:
            each = {self.class_metric[0]: np.full((*leading, self.outputs), math.nan)} if self.class_metric else {}
            found = {name: np.full(leading, math.nan) for name in self.reported} | each
        if weights_RN is not None and rows:
            for values in found.values():
                values[~weights_RN.any(1)] = math.nan
            found = {name: values.reshape((*leading, *values.shape[1:])) for name, values in found.items()}
        return found if leading else {name: values.tolist() for name, values in found.items()}


def task_of(target: Target) -> Task:
    """The task of a target, for its metrics: without what only training reads."""
    task: Task = TASKS[target.task](target)
    return task


def resident(weights: Tensor | None) -> Callable[[torch.device], Tensor | None]:
    """Weights of a loss, on whichever device asks for them."""
    if weights is None:
        return lambda device: None
    from mmsweep.transfer import Resident

    return Resident(weights).on


# ---- for metrics: torch and NumPy under one name ---------------------------------------------------------------------


def namespace(x: Array) -> Any:
    """The module whose functions take this array: NumPy or torch, which name what metrics need alike."""
    if isinstance(x, np.ndarray | np.generic):
        return np
    import torch

    return torch


def doubles(x: Array) -> Array:
    """The values in double precision."""
    xp = namespace(x)
    return xp.asarray(x, dtype=xp.float64)


def total(x_N: Array, weights_RN: Array | None = None) -> Array:
    """The sum of rows [N, ...] -> [...], or with weights -> [R, ...]."""
    if weights_RN is None:
        return x_N.sum(0)
    # Sums of 0 and 1 are exact in single precision as far as 2^24, and much faster.
    dtype = weights_RN.dtype if x_N.dtype == bool else np.float64
    sums = weights_RN.astype(dtype, copy=False) @ x_N.reshape(len(x_N), math.prod(x_N.shape[1:])).astype(dtype)
    return sums.astype(np.float64).reshape(len(weights_RN), *x_N.shape[1:])


def mean(x_N: Array, weights_RN: Array | None = None) -> Array:
    """The mean of rows [N], in double precision; NaN where there are none."""
    if weights_RN is None:
        return doubles(x_N).sum(0) / len(x_N)
    return total(x_N, weights_RN) / weights_RN.sum(1, dtype=np.float64)
