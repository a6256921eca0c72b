"""Paired bootstrap over test rows: how sure a score is, and whether one method beats another on the same rows.

Every resample draws N of the N test rows with replacement. All groups, seeds and scenarios are scored on that same
draw (paired), a group's seeds are averaged inside it, and the interval is the middle 95 % of 2,000 draws. It speaks
about the test rows; how much training varies is told by the SD over seeds beside it.

Maps are scored by the sum of their confusion matrices (`mmsweep/tasks/segmentation.py`).
F1 follows `mmsweep/tasks/classification.py`: for one label a sample, macro F1 is the mean over the classes that occur
in truth or prediction of the draw; for several labels it is over all labels, and a label that never occurs counts as 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmsweep.availability import BoolArray, pattern_rows
from mmsweep.errors import UserError
from mmsweep.readers.report.arrays import read_arrays

METRICS = ("f1_macro", "f1_micro", "accuracy")
MAP_METRICS = ("miou", "miou_present", "pixel_accuracy")
RESAMPLES = 2000
Array = NDArray[Any]


@dataclass(frozen=True)
class Interval:
    """A value on the real rows with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Predicted:
    """`predictions.npz` of one final run.

    Args:
        scores_PNC: class probabilities under every pattern; of maps confusion matrices [P, N, C, C].
        targets: class of each row [N], or its labels [N, C]; of maps nothing [N, 0].
        natural_NM: what the data has.
        ids: of the rows.
        thresholds_C: from which probability a label counts as predicted; empty: .5.
    """

    scores_PNC: Array
    targets: Array
    natural_NM: BoolArray
    ids: tuple[str, ...]
    thresholds_C: tuple[float, ...] = ()

    @classmethod
    def read(cls, path: Path, thresholds_C: tuple[float, ...] = ()) -> Predicted:
        """Raises UserError where the file is missing or damaged."""
        file = read_arrays(path, ("ids", "targets", "natural_NM"))
        kept = "confusions_PNCC" if "confusions_PNCC" in file else "scores_PNC"
        if kept not in file:
            raise UserError("the file lacks arrays", file=path, found=sorted(file), expected=kept)
        natural_NM, scores = file["natural_NM"], file[kept]
        rows, modalities = natural_NM.shape if natural_NM.ndim == 2 else (0, 0)
        counts = (len(file["ids"]), len(file["targets"])) if file["ids"].ndim and file["targets"].ndim else ()
        if natural_NM.dtype != bool or scores.shape[:2] != (2**modalities - 1, rows) or counts != (rows, rows):
            raise UserError(
                "the arrays do not belong together", file=path, found={name: a.shape for name, a in file.items()},
                expected="as many rows in each as there are ids",
            )  # fmt: skip
        return cls(file[kept], file["targets"], file["natural_NM"], tuple(map(str, file["ids"])), thresholds_C)

    @property
    def maps(self) -> bool:
        return self.scores_PNC.ndim == 4

    @property
    def metrics(self) -> tuple[str, ...]:
        return MAP_METRICS if self.maps else METRICS

    def decided(self, table_NM: BoolArray) -> tuple[Array, Array, Array]:
        """Of the rows that a table leaves something: predicted and true labels, bool [E, C] both, and the rows [E].

        Of maps the matrices [E, C * C] stand for both.
        """
        M = table_NM.shape[1]
        weights_M = 1 << np.arange(M)
        place = np.full(2**M, -1)
        rows_PM = pattern_rows([str(m) for m in range(M)])
        place[rows_PM @ weights_M] = np.arange(len(rows_PM))
        pattern_N = place[(table_NM & self.natural_NM) @ weights_M]
        rows_E = np.flatnonzero(pattern_N >= 0)
        scores_EC = self.scores_PNC[pattern_N[rows_E], rows_E]
        if self.maps:
            flat_EK = scores_EC.reshape(len(rows_E), -1).astype(np.float64)
            return flat_EK, flat_EK, rows_E
        C = scores_EC.shape[1]
        if self.targets.ndim == 1:
            truth_EC = np.arange(C) == self.targets[rows_E, None]
            return np.arange(C) == scores_EC.argmax(1)[:, None], truth_EC, rows_E
        return scores_EC > (np.array(self.thresholds_C or [0.5])), self.targets[rows_E] > 0.5, rows_E


class Bootstrap:
    """Scores of several groups under several scenarios, on the real rows and on the same resamples of them.

    Args:
        groups: name -> predictions, one a seed; all on the same rows.
        tables: scenario -> availability [N, M].
        means: further names for the mean over some scenarios, taken inside each resample: `{"mean_missing": [...]}`.
        seed: of the resamples.

    Raises:
        UserError: groups or seeds were evaluated on different rows.
    """

    def __init__(
        self,
        groups: Mapping[str, Sequence[Predicted]],
        tables: Mapping[str, BoolArray],
        means: Mapping[str, Sequence[str]] | None = None,
        *,
        resamples: int = RESAMPLES,
        seed: int = 0,
    ) -> None:
        self.groups, self.tables, self.means = groups, tables, means or {}
        self.resamples, self.seed = resamples, seed
        first = next(iter(groups.values()))[0]
        self.rows, self.single_label = len(first.ids), first.targets.ndim == 1
        self.metrics, self.maps = first.metrics, first.maps
        if any(predicted.ids != first.ids for members in groups.values() for predicted in members):
            raise UserError(
                "the finals were evaluated on different test rows", expected="one test split for all groups"
            )

    def interval(self, group: str, scenario: str, metric: str) -> Interval:
        """A group's score, its seeds averaged."""
        return _interval(self._samples(group, scenario, metric))

    def difference(self, a: str, b: str, scenario: str, metric: str) -> Interval:
        """Score of `a` minus score of `b` on the same rows."""
        return _interval(self._samples(a, scenario, metric) - self._samples(b, scenario, metric))

    def _samples(self, group: str, scenario: str, metric: str) -> Array:
        """[1 + resamples]; the first value is that of the real rows."""
        if scenario in self.means:
            return np.mean([self._samples(group, s, metric) for s in self.means[scenario]], axis=0)
        return self._all[group, scenario][self.metrics.index(metric)]

    @cached_property
    def _all(self) -> dict[tuple[str, str], Array]:
        """(group, scenario) -> [metric, 1 + resamples], averaged over the group's seeds."""
        decisions = {
            (group, scenario): [predicted.decided(table_NM) for predicted in members]
            for group, members in self.groups.items()
            for scenario, table_NM in self.tables.items()
        }
        parts: dict[tuple[str, str], list[Array]] = {key: [] for key in decisions}
        for weights_RN in self._weights():
            for key, members in decisions.items():
                seeds = [
                    _map_scores(weights_RN[:, rows_E], hit)
                    if self.maps
                    else _scores(weights_RN[:, rows_E], hit, truth, self.single_label)
                    for hit, truth, rows_E in members
                ]
                parts[key].append(np.mean(seeds, axis=0))
        return {key: np.concatenate(found, axis=1) for key, found in parts.items()}

    def _weights(self) -> Iterator[Array]:
        """How often each row is drawn, [r, N] a piece; the first row of all is the real data."""
        generator = np.random.Generator(np.random.PCG64(self.seed))
        yield np.ones((1, self.rows), dtype=np.float32)
        piece = max(1, min(250, 4_000_000 // max(self.rows, 1)))
        for start in range(0, self.resamples, piece):
            count = min(piece, self.resamples - start)
            drawn = generator.integers(0, self.rows, (count, self.rows)) + self.rows * np.arange(count)[:, None]
            weights = np.bincount(drawn.ravel(), minlength=count * self.rows)
            yield weights.reshape(count, self.rows).astype(np.float32)  # counts are small: exact


def _scores(weights_RE: Array, hit_EC: Array, truth_EC: Array, single_label: bool) -> Array:
    """[metric, R] in the order of METRICS. Products of counts and 0/1 are exact in float32 up to 2^24 rows."""
    both_RC = (weights_RE @ (hit_EC & truth_EC).astype(np.float32)).astype(np.float64)
    marks_RC = (weights_RE @ (hit_EC.astype(np.float32) + truth_EC.astype(np.float32))).astype(np.float64)
    f1_RC = np.divide(2 * both_RC, marks_RC, out=np.zeros_like(both_RC), where=marks_RC > 0)
    counted_R = (marks_RC > 0).sum(1) if single_label else np.full(len(f1_RC), f1_RC.shape[1])
    total_R = weights_RE.sum(1, dtype=np.float64)
    right_R = weights_RE.astype(np.float64) @ (hit_EC == truth_EC).all(1)
    with np.errstate(invalid="ignore", divide="ignore"):  # a draw without an eligible row has no score: NaN
        macro_R = f1_RC.sum(1) / counted_R
        micro_R = 2 * both_RC.sum(1) / marks_RC.sum(1)
        accuracy_R = right_R / total_R
    return np.stack([macro_R, micro_R, accuracy_R])


def _map_scores(weights_RE: Array, matrices_EK: Array) -> Array:
    """[metric, R] in the order of MAP_METRICS, of the matrices' weighted sums; counts are exact in float64."""
    C = round(matrices_EK.shape[1] ** 0.5)
    sum_RCC = (weights_RE.astype(np.float64) @ matrices_EK).reshape(-1, C, C)
    hits_RC = np.diagonal(sum_RCC, axis1=1, axis2=2)
    union_RC = sum_RCC.sum(1) + sum_RCC.sum(2) - hits_RC
    iou_RC = np.divide(hits_RC, union_RC, out=np.zeros_like(hits_RC), where=union_RC > 0)
    with np.errstate(invalid="ignore", divide="ignore"):  # a draw without a labelled pixel has no score: NaN
        present_R = iou_RC.sum(1) / (union_RC > 0).sum(1)
        accuracy_R = hits_RC.sum(1) / sum_RCC.sum((1, 2))
    return np.stack([iou_RC.mean(1), present_R, accuracy_R])


def _interval(samples: Array) -> Interval:
    low, high = np.nanpercentile(samples[1:], [2.5, 97.5])
    return Interval(float(samples[0]), float(low), float(high))
