"""Paired bootstrap over test rows: how sure a score is, and whether one method beats another on the same rows.

Every resample draws N of the N test rows with replacement. All groups, seeds and scenarios are scored on that same
draw (paired), a group's seeds are averaged inside it, and the interval is the middle 95 % of 2,000 draws. It speaks
about the test rows; how much training varies is told by the SD over seeds beside it.

A resample is a weight for each row, and the task's own metrics (`mmsweep/tasks/`) score the rows so weighted.
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
from mmsweep.tasks.task import Task

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
        statistics_PN: what the task keeps of each row under every pattern [P, N, ...]: scores [C], or of a map its
            confusion matrix [C, C].
        targets: what the task keeps of each row's truth [N, ...].
        natural_NM: what the data has.
        ids: of the rows.
    """

    statistics_PN: Array
    targets: Array
    natural_NM: BoolArray
    ids: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> Predicted:
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
        return cls(file[kept], file["targets"], file["natural_NM"], tuple(map(str, file["ids"])))

    @property
    def maps(self) -> bool:
        return self.statistics_PN.ndim == 4

    def under(self, table_NM: BoolArray) -> tuple[Array, Array, Array]:
        """Of the rows that a table leaves something: statistics and targets [E, ...], and which rows they are [E]."""
        M = table_NM.shape[1]
        weights_M = 1 << np.arange(M)
        place = np.full(2**M, -1)
        rows_PM = pattern_rows([str(m) for m in range(M)])
        place[rows_PM @ weights_M] = np.arange(len(rows_PM))
        pattern_N = place[(table_NM & self.natural_NM) @ weights_M]
        rows_E = np.flatnonzero(pattern_N >= 0)
        return self.statistics_PN[pattern_N[rows_E], rows_E], self.targets[rows_E], rows_E


class Bootstrap:
    """Scores of several groups under several scenarios, on the real rows and on the same resamples of them.

    Args:
        groups: name -> predictions, one a seed, with the task that scores them; all on the same rows.
        tables: scenario -> availability [N, M].
        means: further names for the mean over some scenarios, taken inside each resample: `{"mean_missing": [...]}`.
        seed: of the resamples.

    Raises:
        UserError: groups or seeds were evaluated on different rows.
    """

    def __init__(
        self,
        groups: Mapping[str, Sequence[tuple[Predicted, Task]]],
        tables: Mapping[str, BoolArray],
        means: Mapping[str, Sequence[str]] | None = None,
        *,
        resamples: int = RESAMPLES,
        seed: int = 0,
    ) -> None:
        self.groups, self.tables, self.means = groups, tables, means or {}
        self.resamples, self.seed = resamples, seed
        first, _ = next(iter(groups.values()))[0]
        self.rows = len(first.ids)
        if any(predicted.ids != first.ids for members in groups.values() for predicted, _ in members):
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
        return self._all[group, scenario][metric]

    @cached_property
    def _all(self) -> dict[tuple[str, str], dict[str, Array]]:
        """(group, scenario) -> metric -> [1 + resamples], averaged over the group's seeds."""
        rows = {
            (group, scenario): [(task, *predicted.under(table_NM)) for predicted, task in members]
            for group, members in self.groups.items()
            for scenario, table_NM in self.tables.items()
        }
        parts: dict[tuple[str, str], list[dict[str, Array]]] = {key: [] for key in rows}
        for weights_RN in self._weights():
            for key, members in rows.items():
                seeds = [
                    task.metrics(statistics, targets, weights_RN[:, rows_E])
                    for task, statistics, targets, rows_E in members
                ]
                parts[key].append({name: np.mean([seed[name] for seed in seeds], axis=0) for name in seeds[0]})
        return {key: {m: np.concatenate([part[m] for part in found]) for m in found[0]} for key, found in parts.items()}

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


def _interval(samples: Array) -> Interval:
    low, high = np.nanpercentile(samples[1:], [2.5, 97.5])
    return Interval(float(samples[0]), float(low), float(high))
