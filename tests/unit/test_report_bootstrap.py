"""The paired bootstrap, against a slow loop that scores every resample with the task's own metrics."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from mmsweep.availability import BoolArray, Scenario, availability_table
from mmsweep.errors import UserError
from mmsweep.readers.report.bootstrap import Bootstrap, Predicted
from mmsweep.readers.report.leaderboard import Leaderboard
from mmsweep.record.sweep import SweepRecord
from mmsweep.tasks.multi_label import MultiLabel
from mmsweep.tasks.single_label import SingleLabel
from mmsweep.tasks.task import Target, Task
from mmsweep.training.evaluation import Predictions
from tests.unit import report_factory as factory

ROWS = 40
SINGLE = SingleLabel(Target("single_label", factory.CLASSES))
MULTI = MultiLabel(Target("multi_label", factory.CLASSES))


def invented(
    task: Task, natural: Mapping[str, float] | None
) -> tuple[dict[str, list[Predictions]], dict[str, BoolArray]]:
    groups = {
        name: [factory.invent(strengths, seed, task=task, rows=ROWS, natural=natural)[0] for seed in (1, 2)]
        for name, strengths in (("a", (0.4, 0.6)), ("b", (0.6, 0.7)))
    }
    natural_NM = groups["a"][0].natural_NM
    scenarios = [Scenario.parse(spec, factory.MODALITIES) for spec in factory.EVALUATE]
    tables = {s.name: availability_table(s, ROWS, factory.MODALITIES, 0, natural_NM) for s in scenarios}
    return groups, tables


def predicted(made: Predictions, task: Task = SINGLE) -> tuple[Predicted, Task]:
    return Predicted(made.statistics_PN.numpy(), made.target_N.numpy(), made.natural_NM, made.ids), task


@pytest.mark.parametrize("task", [SINGLE, MULTI], ids=["single_label", "multi_label"])
@pytest.mark.parametrize("natural", [None, {"text": 0.3}], ids=["whole", "gaps"])
def test_equals_a_loop_over_resamples(task: Task, natural: Mapping[str, float] | None) -> None:
    groups, tables = invented(task, natural)
    read = {name: [predicted(p, task) for p in made] for name, made in groups.items()}
    bootstrap = Bootstrap(read, tables, resamples=60)
    weights_RN = np.concatenate(list(bootstrap._weights()))[1:].astype(int)
    assert (weights_RN.sum(1) == ROWS).all()
    for scenario, table in tables.items():
        for metric in task.metric_names:
            draws: dict[str, list[float]] = {"a": [], "b": []}
            for weights_N in weights_RN:
                drawn = np.repeat(np.arange(ROWS), weights_N)
                for name, made in groups.items():
                    scores = []
                    for one in made:
                        statistics, target, eligible_N = one.under(table)
                        place = np.cumsum(eligible_N) - 1
                        index = torch.from_numpy(place[drawn[eligible_N[drawn]]])
                        scores.append(task.metrics(statistics[index], target[index])[metric])
                    draws[name].append(float(np.mean(scores)))
            low, high = np.percentile(np.subtract(draws["a"], draws["b"]), [2.5, 97.5])
            found = bootstrap.difference("a", "b", scenario, metric)
            assert (found.low, found.high) == pytest.approx((low, high), abs=1e-6)
            whole = np.mean([task.metrics(*one.under(table)[:2])[metric] for one in groups["a"]])
            assert bootstrap.interval("a", scenario, metric).value == pytest.approx(whole, abs=1e-6)


def test_means_are_taken_inside_each_resample() -> None:
    groups, tables = invented(SINGLE, None)
    missing = ["missing-text", "missing-image"]
    read = {name: [predicted(p) for p in made] for name, made in groups.items()}
    bootstrap = Bootstrap(read, tables, {"mean_missing": missing}, resamples=200)
    parts = [bootstrap.interval("a", scenario, "f1_macro") for scenario in missing]
    mean = bootstrap.interval("a", "mean_missing", "f1_macro")
    assert mean.value == pytest.approx(sum(part.value for part in parts) / 2)
    assert mean.high - mean.low < sum(part.high - part.low for part in parts) / 2


def test_same_seed_same_intervals_and_a_group_equals_itself() -> None:
    groups, tables = invented(SINGLE, None)
    read = {name: [predicted(p) for p in made] for name, made in groups.items()}
    first, second = (Bootstrap(read, tables, resamples=50) for _ in range(2))
    assert first.interval("a", "complete", "f1_macro") == second.interval("a", "complete", "f1_macro")
    nothing = first.difference("a", "a", "complete", "accuracy")
    assert (nothing.value, nothing.low, nothing.high) == (0.0, 0.0, 0.0)


def test_other_rows_are_refused() -> None:
    groups, tables = invented(SINGLE, None)
    one, (other, task) = predicted(groups["a"][0]), predicted(groups["b"][0])
    shifted = Predicted(other.statistics_PN, other.targets, other.natural_NM, other.ids[::-1]), task
    with pytest.raises(UserError, match="different test rows"):
        Bootstrap({"a": [one], "b": [shifted]}, tables)


def test_leaderboard_of_a_sweep(tmp_path: Path) -> None:
    record = SweepRecord.load(factory.make_sweep(tmp_path / "s", factory.per_method(), trials=4))
    board = Leaderboard.of(record)
    assert board.note == ""
    found = {(c.a, c.b, c.scenario): c for c in board.comparisons}
    better = found["plain", "cmpt", "missing-text"]
    assert better.difference.value < 0 and better.difference.excludes_zero and better.rows == 300
    assert ("plain", "cmpt", "mean_missing") in found
    cell = record.groups[0].cell("missing-text", "f1_macro")
    assert cell is not None
    assert board.scores["plain", "missing-text"].value == pytest.approx(cell.mean, abs=1e-6)


def test_predictions_of_another_version_give_no_intervals(tmp_path: Path) -> None:
    folder = factory.make_sweep(tmp_path / "s", trials=2)
    path = folder / "final/best/seed-101/predictions.npz"
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    arrays["scores_PNC"] = arrays["scores_PNC"][:, ::-1]
    np.savez_compressed(path, **arrays)
    board = Leaderboard.of(SweepRecord.load(folder))
    assert not board.comparisons and "does not give the written score" in board.note
    whole = path.read_bytes()
    for damaged in (b"nonsense", whole[: len(whole) // 2], b""):
        path.write_bytes(damaged)
        assert "predictions" in Leaderboard.of(SweepRecord.load(folder)).note
