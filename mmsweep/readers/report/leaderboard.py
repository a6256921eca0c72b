"""Groups of finals against each other on the same test rows."""

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
    """`a` minus `b` in one scenario, on `rows` test rows.

    Args:
        holds: whether it is significant at 5 % after Holm's correction for all comparisons of the sweep.
    """

    a: str
    b: str
    scenario: str
    difference: Interval
    rows: int
    holds: bool


@dataclass(frozen=True)
class Leaderboard:
    """Intervals of every group's scores and of every pair's differences, for one metric.

    Args:
        over: what was resampled (bootstrap.OVER), `resamples` times.
        note: why there are none, in words; empty where there are some.
    """

    metric: str
    scores: Mapping[tuple[str, str], Interval]
    comparisons: tuple[Comparison, ...]
    note: str = ""
    over: tuple[str, ...] = ("rows",)
    resamples: int = RESAMPLES

    @classmethod
    def of(cls, record: SweepRecord, metric: str | None = None, over: Sequence[str] = ()) -> Leaderboard:
        """Computes it from the finals' `predictions.npz`; what cannot be computed is said in `note`.

        Args:
            over: what is resampled, instead of the study's `bootstrap.over`.

        Raises:
            UserError: `over` is given, and cannot be followed.
        """
        name = metric or record.metric
        groups = [group for group in record.groups if group.evaluations]
        if not groups:
            return cls(name, {}, (), "no final run has ended")
        try:
            bootstrap, rows = _bootstrap(record, over or record.summary.over)
        except UserError as error:
            if over:
                raise
            return cls(name, {}, (), str(error))
        names = [group.name for group in groups]
        scenarios = list(rows)
        scores = {(g, s): bootstrap.interval(g, s, name) for g in names for s in scenarios}
        compared = [(a, b, s) for a, b in combinations(names, 2) for s in scenarios]
        found = [bootstrap.difference(a, b, s, name) for a, b, s in compared]
        hold = holm([difference.p for difference in found])
        comparisons = tuple(
            Comparison(a, b, s, difference, rows[s], holds)
            for (a, b, s), difference, holds in zip(compared, found, hold, strict=True)
        )
        return cls(name, scores, comparisons, "", tuple(bootstrap.over), bootstrap.resamples)

    @property
    def resampled(self) -> str:
        """How the intervals were made, for people."""
        words = {"rows": "test rows", "groups": "groups of test rows", "seeds": "seeds"}
        return f"{self.resamples:,} resamples of {joined([words[name] for name in OVER if name in self.over])}"


def _bootstrap(record: SweepRecord, over: Sequence[str]) -> tuple[Bootstrap, dict[str, int]]:
    """The bootstrap over all groups, and rows by scenario.

    Raises:
        UserError: predictions are missing, or do not give the scores that the evaluation wrote.
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
    """The task that an evaluation was made with, for its metrics. Raises UserError where there is no such task."""
    target = Target(evaluation.task, evaluation.classes)
    try:
        task: Task = TASKS[evaluation.task].from_settings(target, evaluation.settings)
    except (TypeError, ValueError) as error:
        raise UserError(f"evaluation.json does not say how its task {evaluation.task} decides ({error})") from error
    return task


def _check(record: SweepRecord, bootstrap: Bootstrap) -> None:
    for group in record.groups:
        for scenario in bootstrap.tables if group.name in bootstrap.groups else ():
            for metric in group.metrics():
                written = group.cell(scenario, metric)
                if written is None or math.isnan(written.mean):
                    continue
                found = bootstrap.interval(group.name, scenario, metric).value
                if abs(found - written.mean) > 1e-5:
                    raise UserError(
                        f"predictions.npz does not give the written score of {group.name}, {scenario}, {metric}",
                        found=round(found, 5),
                        expected=f"{written.mean:.5f}",
                    )
