"""Comparison of groups of finals on the same test rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from mmsweep.availability import BoolArray, Scenario, availability_table, table_digest
from mmsweep.errors import UserError
from mmsweep.readers.report.bootstrap import OVER, RESAMPLES, Bootstrap, Interval, Predicted, holm, resamples_for
from mmsweep.readers.wording import joined
from mmsweep.record.evaluation import Evaluation
from mmsweep.record.sweep import SweepRecord
from mmsweep.tasks.task import TASKS, Target, Task


@dataclass(frozen=True)
class Comparison:
    """Difference of group `a` minus group `b` in one scenario, on `rows` test rows.

    Args:
        significant: whether it is significant at 5 % after Holm's correction for all comparisons of the sweep.
    """

    a: str
    b: str
    scenario: str
    difference: Interval
    rows: int
    significant: bool


@dataclass(frozen=True)
class Leaderboard:
    """Intervals of each group's scores and of each pair's differences, for one metric.

    Args:
        over: what was resampled (bootstrap.OVER), `resamples` times.
        note: why there are no intervals; empty if there are.
    """

    metric: str
    scores: Mapping[tuple[str, str], Interval]
    comparisons: tuple[Comparison, ...]
    note: str = ""
    over: tuple[str, ...] = ("rows",)
    resamples: int = RESAMPLES

    @classmethod
    def of(cls, record: SweepRecord, over: Sequence[str] = ()) -> Leaderboard:
        """Compute the intervals from the finals' `predictions.npz`; `note` says why if that is impossible.

        Args:
            over: replaces the study's `bootstrap.over`.

        Raises:
            UserError: the finals cannot be resampled as an explicit `over` asks.
        """
        name = record.metric
        names = [group.name for group in record.groups if group.evaluations]
        if not names:
            return cls(name, {}, (), "no final run has ended")
        try:
            bootstrap, rows = _bootstrap(record, over or record.summary.over)
        except UserError as error:
            if over:
                raise
            return cls(name, {}, (), str(error))
        scores = {(g, s): bootstrap.interval(g, s, name) for g in names for s in rows}
        compared = [(a, b, s) for a, b in combinations(names, 2) for s in rows]
        differences = [bootstrap.difference(a, b, s, name) for a, b, s in compared]
        comparisons = tuple(
            Comparison(a, b, s, difference, rows[s], significant)
            for (a, b, s), difference, significant in zip(
                compared, differences, holm([difference.p for difference in differences]), strict=True
            )
        )
        return cls(name, scores, comparisons, "", tuple(bootstrap.over), bootstrap.resamples)

    @property
    def resampled(self) -> str:
        """How the intervals were computed, in words."""
        words = {"rows": "test rows", "groups": "groups of test rows", "seeds": "seeds"}
        return f"{self.resamples:,} resamples of {joined([words[name] for name in OVER if name in self.over])}"


def _bootstrap(record: SweepRecord, over: Sequence[str]) -> tuple[Bootstrap, dict[str, int]]:
    """The bootstrap over all groups, and the number of rows by scenario.

    Raises:
        UserError: predictions are missing, or they do not give the scores in the evaluation.
    """
    groups: dict[str, list[tuple[Predicted, Task]]] = {}
    for group in record.groups:
        for run in group.runs:
            if run.evaluation is not None:
                read = Predicted.read(run.folder / "predictions.npz")
                groups.setdefault(group.name, []).append((read, _task(run.evaluation)))
    evaluation = next(group.evaluations[0] for group in record.groups if group.evaluations)
    modalities, natural_NM = evaluation.modalities, next(iter(groups.values()))[0][0].natural_NM
    missing = evaluation.missing_patterns()
    listed = [Scenario.parse(spec, modalities) for spec in record.summary.scenarios.evaluate]
    scenarios = {s.name: s for s in listed if s.name in evaluation.scenarios}
    scenarios |= {name: Scenario.parse(name, modalities) for name in missing if name not in scenarios}
    tables: dict[str, BoolArray] = {}
    for name, scenario in scenarios.items():
        table = availability_table(scenario, len(natural_NM), modalities, record.summary.scenarios.seed, natural_NM)
        score = evaluation.score(name)
        if score is not None and score.table in ("", table_digest(table)):
            tables[name] = table
    means = {"mean_missing": missing} if all(name in tables for name in missing) else {}
    compared = math.comb(len(groups), 2) * (len(tables) + len(means))
    bootstrap = Bootstrap(groups, tables, means, over=over, resamples=resamples_for(compared))
    _check(record, bootstrap)
    rows = {name: int(table.any(1).sum()) for name, table in tables.items()} | dict.fromkeys(means, evaluation.rows)
    return bootstrap, {name: rows[name] for name in [*evaluation.scenarios, *means] if name in rows}


def _task(evaluation: Evaluation) -> Task:
    """The task of an evaluation, for its metrics. Raises UserError if its settings are damaged."""
    target = Target(evaluation.task, evaluation.classes)
    try:
        task: Task = TASKS[evaluation.task].from_settings(target, evaluation.settings)
    except (TypeError, ValueError) as error:
        raise UserError(f"evaluation.json holds no valid settings of task {evaluation.task} ({error})") from error
    return task


def _check(record: SweepRecord, bootstrap: Bootstrap) -> None:
    for group in record.groups:
        for scenario in bootstrap.tables if group.name in bootstrap.groups else ():
            for metric in group.metrics():
                cell = group.cell(scenario, metric)
                if cell is None or math.isnan(cell.mean):
                    continue
                score = bootstrap.interval(group.name, scenario, metric).value
                if abs(score - cell.mean) > 1e-5:
                    raise UserError(
                        f"predictions.npz does not give evaluation.json's score of {group.name}, {scenario}, {metric}",
                        found=round(score, 5),
                        expected=f"{cell.mean:.5f}",
                    )
