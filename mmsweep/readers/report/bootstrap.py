"""Paired bootstrap: confidence intervals of scores and of differences between groups of finals.

`over` names what a resample draws with replacement: `rows`, N of the N test rows; `groups`, whole groups of test rows;
both, groups and then rows within each drawn group; `seeds`, also the finals of each group. All groups and scenarios are
scored on the same rows (paired), the seeds of a group are averaged, and the interval is the middle 95 % of 2,000
resamples. Resampling rows covers the choice of test rows only; the SD over seeds shows the variation of training.

A resample is a weight for each row; the task's metrics (`mmsweep/tasks/`) score the weighted rows.
"""

from __future__ import annotations

import math
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
MOST_RESAMPLES = 10_000
OVER = ("rows", "groups", "seeds")
LEVEL = 0.05
"""Significance level of Holm's correction."""
Array = NDArray[Any]


@dataclass(frozen=True)
class Interval:
    """A value on the real rows with its 95 % interval.

    Args:
        p: two-sided p-value for a true value of 0: the share of resamples at least as far from the value as 0 is; the
            real rows count as one more resample.
    """

    value: float
    low: float
    high: float
    p: float = math.nan


@dataclass(frozen=True)
class Predicted:
    """`predictions.npz` of one final run.

    Args:
        statistics_PN: the task's statistics of each row under every pattern [P, N, ...]: scores [C], or the confusion
            matrix [C, C] of a map.
        targets: the task's `truth` of each row [N, ...].
        natural_NM: which modalities the data has.
        ids: the rows' ids.
        groups_N: index of each row's group; None if the data has no groups or an older version wrote the file.
    """

    statistics_PN: Array
    targets: Array
    natural_NM: BoolArray
    ids: tuple[str, ...]
    groups_N: Array | None = None

    @classmethod
    def read(cls, path: Path) -> Predicted:
        """Read the file. Raises UserError if it is missing or damaged."""
        file = read_arrays(path, ("ids", "targets", "natural_NM"))
        name = "confusions_PNCC" if "confusions_PNCC" in file else "scores_PNC"
        if name not in file:
            raise UserError("the file lacks arrays", file=path, found=sorted(file), expected=name)
        natural_NM, statistics_PN = file["natural_NM"], file[name]
        rows, modalities = natural_NM.shape if natural_NM.ndim == 2 else (0, 0)
        counts = (len(file["ids"]), len(file["targets"])) if file["ids"].ndim and file["targets"].ndim else ()
        if natural_NM.dtype != bool or statistics_PN.shape[:2] != (2**modalities - 1, rows) or counts != (rows, rows):
            raise UserError(
                "the shapes of the arrays do not match", file=path, found={key: a.shape for key, a in file.items()},
                expected="one row for each id in every array",
            )  # fmt: skip
        groups_N = file.get("groups_N")
        if groups_N is not None and (groups_N.shape != (rows,) or groups_N.dtype.kind != "i"):
            raise UserError("groups_N must hold one integer for each row", file=path, found=groups_N.shape)
        return cls(statistics_PN, file["targets"], natural_NM, tuple(map(str, file["ids"])), groups_N)

    @property
    def maps(self) -> bool:
        """Whether the predictions are maps."""
        return self.statistics_PN.ndim == 4

    def under(self, table_NM: BoolArray) -> tuple[Array, Array, Array]:
        """The E rows with a modality left under a table: statistics and targets [E, ...], and their indices [E]."""
        M = table_NM.shape[1]
        weights_M = 1 << np.arange(M)
        index = np.full(2**M, -1)
        rows_PM = pattern_rows([str(m) for m in range(M)])
        index[rows_PM @ weights_M] = np.arange(len(rows_PM))
        pattern_N = index[(table_NM & self.natural_NM) @ weights_M]
        rows_E = np.flatnonzero(pattern_N >= 0)
        return self.statistics_PN[pattern_N[rows_E], rows_E], self.targets[rows_E], rows_E


class Bootstrap:
    """Scores of groups of finals under several scenarios, on the real rows and on resamples that all of them share.

    Args:
        groups: name -> (predictions, task) of each seed; all on the same rows.
        tables: scenario -> availability [N, M].
        means: names of means over scenarios, taken within each resample: `{"mean_missing": [...]}`.
        over: what is resampled, names from OVER.
        seed: seed of the resamples.

    Raises:
        UserError: groups or seeds were evaluated on different rows, or `over` names what cannot be resampled.
    """

    def __init__(
        self,
        groups: Mapping[str, Sequence[tuple[Predicted, Task]]],
        tables: Mapping[str, BoolArray],
        means: Mapping[str, Sequence[str]] | None = None,
        *,
        over: Sequence[str] = ("rows",),
        resamples: int = RESAMPLES,
        seed: int = 0,
    ) -> None:
        self.groups, self.tables, self.means = groups, tables, means or {}
        self.over, self.resamples, self.seed = over, resamples, seed
        first, _ = next(iter(groups.values()))[0]
        self.rows = len(first.ids)
        if any(predicted.ids != first.ids for members in groups.values() for predicted, _ in members):
            raise UserError(
                "the finals were evaluated on different test rows", expected="one test split for all groups"
            )
        if "groups" in over and first.groups_N is None:
            raise UserError(
                "groups of rows cannot be resampled: predictions.npz holds none", key="bootstrap.over",
                found=list(over), expected="rows or seeds; groups needs data.group and finals of this version",
            )  # fmt: skip
        if "seeds" in over and (single := [name for name, members in groups.items() if len(members) < 2]):
            raise UserError(
                f"seeds cannot be resampled: {', '.join(single)} has one final", key="bootstrap.over",
                found=list(over), expected="rows or groups, or sweep.final.seeds of at least 2",
            )  # fmt: skip
        self._groups_N: Array = np.arange(self.rows) if first.groups_N is None else first.groups_N

    def interval(self, group: str, scenario: str, metric: str) -> Interval:
        """A group's score, averaged over its seeds."""
        return _interval(self._samples(group, scenario, metric))

    def difference(self, a: str, b: str, scenario: str, metric: str) -> Interval:
        """Score of `a` minus score of `b` on the same rows."""
        return _interval(self._samples(a, scenario, metric) - self._samples(b, scenario, metric))

    def _samples(self, group: str, scenario: str, metric: str) -> Array:
        """Scores [1 + resamples]; the first one is that of the real rows."""
        if scenario in self.means:
            return np.mean([self._samples(group, s, metric) for s in self.means[scenario]], axis=0)
        scores_SR = self._all[group, scenario][metric]
        if "seeds" not in self.over:
            return np.asarray(scores_SR.mean(0))
        seeds = len(scores_SR)
        generator = np.random.default_rng([self.seed, list(self.groups).index(group)])
        drawn_RS = generator.multinomial(seeds, np.full(seeds, 1 / seeds), self.resamples)
        return np.concatenate([scores_SR[:, :1].mean(0), (scores_SR[:, 1:] * drawn_RS.T).sum(0) / seeds])

    @cached_property
    def _all(self) -> dict[tuple[str, str], dict[str, Array]]:
        """(group, scenario) -> metric -> [seeds, 1 + resamples]."""
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
                parts[key].append({name: np.stack([seed[name] for seed in seeds]) for name in seeds[0]})
        return {
            key: {name: np.concatenate([piece[name] for piece in pieces], axis=1) for name in pieces[0]}
            for key, pieces in parts.items()
        }

    def _weights(self) -> Iterator[Array]:
        """Weights of the rows, in pieces of r resamples [r, N]; the first piece is the real data."""
        generator = np.random.Generator(np.random.PCG64(self.seed))
        yield np.ones((1, self.rows), dtype=np.float32)
        piece = max(1, min(250, 4_000_000 // max(self.rows, 1)))
        for start in range(0, self.resamples, piece):
            count = min(piece, self.resamples - start)
            yield self._drawn(generator, count).astype(np.float32)  # counts are small, so float32 is exact

    def _drawn(self, generator: np.random.Generator, count: int) -> Array:
        """How often each row is drawn in `count` resamples [count, N]."""
        if "groups" not in self.over:
            if "rows" not in self.over:
                return np.ones((count, self.rows))
            return _counts(generator.integers(0, self.rows, (count, self.rows)), self.rows)
        _, groups_N, sizes_G = np.unique(self._groups_N, return_inverse=True, return_counts=True)
        drawn_RG = generator.integers(0, len(sizes_G), (count, len(sizes_G)))
        if "rows" not in self.over:
            return _counts(drawn_RG, len(sizes_G))[:, groups_N]
        # A drawn group contributes as many rows as it has, drawn from its own; `order` holds the rows group by group.
        order, starts_G = np.argsort(groups_N, kind="stable"), np.cumsum(sizes_G) - sizes_G
        sizes, starts = (np.repeat(of_G[drawn_RG], sizes_G[drawn_RG].ravel()) for of_G in (sizes_G, starts_G))
        rows = order[starts + (generator.random(len(sizes)) * sizes).astype(np.int64)]
        resample = np.repeat(np.arange(count), sizes_G[drawn_RG].sum(1))
        return np.bincount(resample * self.rows + rows, minlength=count * self.rows).reshape(count, self.rows)


def holm(p_values: Sequence[float], level: float = LEVEL) -> list[bool]:
    """Which hypotheses are rejected at a familywise level (Holm 1979, step-down)."""
    rejected = [False] * len(p_values)
    for step, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        if not p_values[index] <= level / (len(p_values) - step):  # true for NaN too
            break
        rejected[index] = True
    return rejected


def resamples_for(comparisons: int) -> int:
    """Number of resamples, at most MOST_RESAMPLES, at which a p-value can pass Holm's correction."""
    return min(max(RESAMPLES, round(comparisons / LEVEL)), MOST_RESAMPLES)


def _counts(drawn_RN: Array, values: int) -> Array:
    """Count of each value from 0 to `values` - 1 in each row [R, values]."""
    cells = drawn_RN + values * np.arange(len(drawn_RN))[:, None]
    return np.bincount(cells.ravel(), minlength=len(drawn_RN) * values).reshape(len(drawn_RN), values)


def _interval(samples: Array) -> Interval:
    value, drawn = samples[0], samples[1:]
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    as_far = int((~(abs(drawn - value) < abs(value))).sum())  # a NaN counts as evidence against a difference
    return Interval(float(value), float(low), float(high), (as_far + 1) / (len(drawn) + 1))
