"""The paired bootstrap, against a slow loop that scores every resample with the task's own metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mmsweep.availability import BoolArray, Scenario, availability_table
from mmsweep.errors import UserError
from mmsweep.readers.report.bootstrap import Bootstrap, Predicted, _interval, holm, resamples_for
from mmsweep.readers.report.leaderboard import Leaderboard
from mmsweep.readers.report.sentences import bootstrap_part
from mmsweep.readers.tables import comparison_table
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


# ---- what is resampled

GROUPS_N = np.arange(ROWS) // 4


def bootstrap_over(over: Sequence[str], seeds: int = 2) -> Bootstrap:
    groups, tables = invented(SINGLE, None)
    read = {
        name: [(replace(one, groups_N=GROUPS_N), task) for one, task in map(predicted, made[:seeds])]
        for name, made in groups.items()
    }
    return Bootstrap(read, tables, over=over, resamples=300)


def test_whole_groups_are_drawn() -> None:
    weights_RN = np.concatenate(list(bootstrap_over(["groups"])._weights()))[1:]
    by_group = weights_RN.reshape(300, ROWS // 4, 4)
    assert (by_group == by_group[:, :, :1]).all() and (weights_RN.sum(1) == ROWS).all()
    assert (by_group[:, :, 0] == 0).any() and by_group.mean((0, 2)) == pytest.approx(np.ones(ROWS // 4), abs=0.25)


def test_rows_are_drawn_within_the_groups_drawn() -> None:
    bootstrap = bootstrap_over(["rows", "groups"])
    bootstrap._groups_N = np.array([0] * 30 + [1] * 8 + [2, 3])
    weights_RN = np.concatenate(list(bootstrap._weights()))[1:]
    sums_RG = np.stack([weights_RN[:, bootstrap._groups_N == g].sum(1) for g in range(4)], 1)
    assert (sums_RG % [30, 8, 1, 1] == 0).all()  # a group drawn brings as many rows as it has
    assert ((sums_RG / [30, 8, 1, 1]).sum(1) == 4).all() and (weights_RN[:, :30].max(1) > sums_RG[:, 0] / 30).any()


def test_seeds_are_drawn() -> None:
    bootstrap = bootstrap_over(["seeds"])
    accuracies = [task.metrics(one.statistics_PN[0], one.targets)["accuracy"] for one, task in bootstrap.groups["a"]]
    mean, drawn = np.mean(accuracies), bootstrap._samples("a", "complete", "accuracy")
    assert drawn[0] == pytest.approx(mean)
    assert set(drawn[1:].round(9)) == {round(value, 9) for value in (*accuracies, mean)}
    both, rows = (bootstrap_over(over).interval("a", "complete", "accuracy") for over in (["rows", "seeds"], ["rows"]))
    assert both.value == rows.value and both.high - both.low >= rows.high - rows.low


def test_what_cannot_be_resampled_is_refused() -> None:
    with pytest.raises(UserError, match=r"bootstrap.over: seeds cannot be resampled: a, b has one final"):
        bootstrap_over(["seeds"], seeds=1)
    groups, tables = invented(SINGLE, None)
    with pytest.raises(UserError, match=r"bootstrap.over: groups of rows cannot be resampled: predictions.npz holds"):
        Bootstrap({"a": [predicted(groups["a"][0])]}, tables, over=["groups"])


# ---- p-values and Holm's correction


def test_p_values_count_resamples_as_far_as_zero() -> None:
    assert _interval(np.array([0.5, 0.4, 0.6, 0.9, -0.1])).p == 2 / 5  # -0.1 alone is as far from 0.5 as 0 is
    assert _interval(np.array([-0.5, -0.4, -0.6, -0.9, -1.2])).p == 2 / 5  # on the far side as well
    assert _interval(np.array([0.0, 0.1, 0.2, -0.1])).p == 1.0
    assert _interval(np.array([0.5, 0.4, np.nan, 0.6])).p == 2 / 4


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == [True, False, False, True]  # .005 <= .05/4, .01 <= .05/3, .03 > .05/2
    assert holm([0.02, 0.02, 0.02]) == [False] * 3 and holm([0.04]) == [True] and holm([]) == []
    assert holm([0.025, 0.001]) == [True, True] and holm([0.06, 0.001]) == [False, True]
    assert [resamples_for(m) for m in (1, 100, 300, 9999)] == [2000, 2000, 6000, 10_000]


def test_leaderboard_of_a_sweep(tmp_path: Path) -> None:
    record = SweepRecord.load(factory.make_sweep(tmp_path / "s", factory.per_method(), trials=4))
    board = Leaderboard.of(record)
    assert board.note == ""
    found = {(c.a, c.b, c.scenario): c for c in board.comparisons}
    better = found["plain", "cmpt", "missing-text"]
    assert better.difference.high < 0 and better.significant and better.rows == 300
    assert ("plain", "cmpt", "mean_missing") in found
    table, held = comparison_table(board), sum(comparison.significant for comparison in board.comparisons)
    assert f"2,000 resamples of test rows; {held} of {len(board.comparisons)} comparisons" in table.title
    assert len(table.strong) == held > 0 and {row[-2] for row in table.rows} <= {"yes", "no"}
    seeds = Leaderboard.of(record, over=["rows", "seeds"])
    assert "the middle 95 % of 2,000 resamples of test rows and seeds;" in bootstrap_part(seeds)
    with pytest.raises(UserError, match=r"groups of rows cannot be resampled"):  # nor in a sweep of an older version
        Leaderboard.of(record, over=["groups"])
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
    assert not board.comparisons and "does not give evaluation.json's score" in board.note
    whole = path.read_bytes()
    for damaged in (b"nonsense", whole[: len(whole) // 2], b""):
        path.write_bytes(damaged)
        assert "predictions" in Leaderboard.of(SweepRecord.load(folder)).note
