"""The constant predictor: what it says by task, and that it stands beside every score that somebody reads."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mmsweep.availability import Scenario
from mmsweep.readers import tables
from mmsweep.readers.mlflow.content import scores_on_test
from mmsweep.readers.report.page import write_report
from mmsweep.readers.report.sentences import group_means, headline, shortfall
from mmsweep.record.evaluation import Evaluation
from mmsweep.record.sweep import SweepRecord
from mmsweep.record.trial import Report, TrialFolder
from mmsweep.tasks.multi_label import MultiLabel
from mmsweep.tasks.regression import Regression
from mmsweep.tasks.segmentation import Segmentation
from mmsweep.tasks.single_label import SingleLabel
from mmsweep.tasks.task import IGNORE, Target
from mmsweep.training.evaluation import Predictions, evaluation_record
from tests.unit import report_factory as factory

LETTERS = ("a", "b", "c")


def scores(task, train, truth):
    """Metrics of the constant predictor on rows with this truth."""
    truth = torch.as_tensor(truth)
    empty = torch.zeros(len(truth), *task.statistics_shape, dtype=task.statistics_dtype)
    return task.metrics(task.constant_statistics(empty, np.asarray(train)), truth)


def test_one_class_is_the_most_frequent_of_the_training_rows() -> None:
    task = SingleLabel(Target("single_label", LETTERS))
    found = scores(task, [2, 1, 2, 0, 1], [0, 1, 1, 2])  # 1 and 2 are equally frequent: the first
    assert found["accuracy"] == found["f1_micro"] == 0.5
    assert found["f1_macro"] == pytest.approx((2 / 3) / 3)


def test_labels_are_their_shares_by_the_model_s_thresholds() -> None:
    train = np.array([[1, 0, 0], [1, 1, 0], [1, 0, 0], [0, 0, 0]], np.float32)  # 3/4, 1/4, 0
    truth = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    target = Target("multi_label", LETTERS)
    half = scores(MultiLabel(target), train, truth)  # a, never b or c
    assert half["f1_macro"] == pytest.approx((2 / 3) / 3) and half["accuracy"] == 0.0
    tuned = scores(MultiLabel(target, torch.tensor([0.9, 0.2, 0.5])), train, truth)  # b alone
    assert tuned["f1_macro"] == pytest.approx(1 / 3) and tuned["accuracy"] == 0.5


def test_a_number_is_the_median() -> None:
    found = scores(Regression(Target("regression")), [1.0, 2.0, 4.0, 100.0], [3.0, 5.0])
    assert found == {"mae": 1.0, "correlation": 0.0}


@pytest.mark.parametrize(
    ("train", "has0", "non0"),
    [
        ([3.0, 2.0, -1.0], 0.5, 1 / 3),  # positive
        ([-3.0, -2.0, 1.0], 0.5, 2 / 3),  # negative
        ([0.0, 0.0, 0.0, 2.0, 3.0, -1.0], 0.5, 1 / 3),  # a median of 0, more positive than negative ones
        ([0.0, 0.0, 0.0, -2.0, -3.0, 1.0], 0.5, 2 / 3),
    ],
)
def test_a_sign_is_the_majority_s(train: list[float], has0: float, non0: float) -> None:
    found = scores(Regression(Target("regression", signed=True)), train, [1.0, 0.0, -1.0, -2.0])
    assert found["has0_accuracy"] == has0 and found["non0_accuracy"] == pytest.approx(non0)
    assert found["mae"] == pytest.approx(np.abs(np.array([1.0, 0.0, -1.0, -2.0]) - np.median(train)).mean())


def test_pixels_are_the_most_frequent_class_of_labelled_ones() -> None:
    task = Segmentation(Target("segmentation", LETTERS))
    train = np.array([[[1, 1], [0, IGNORE]], [[IGNORE, IGNORE], [IGNORE, 2]]], np.uint8)
    truth = torch.tensor([[[1, 0], [0, IGNORE]], [[1, 1], [2, 2]]])
    said = torch.zeros(2, 3, 2, 2)
    statistics = task.statistics(said, truth)
    found = task.metrics(task.constant_statistics(statistics, train), torch.zeros(2, 0))
    assert found["pixel_accuracy"] == pytest.approx(3 / 7) and found["miou"] == pytest.approx((3 / 7) / 3)


def test_it_is_scored_on_the_rows_that_the_model_is_scored_on() -> None:
    """Rows without a picture are not eligible where the text is missing: the median is judged by the others alone."""
    truth = torch.tensor([0.0, 10.0, 20.0, 30.0])
    natural = np.array([[True, True], [True, True], [False, True], [False, True]])
    predictions = Predictions(truth.expand(3, 4)[..., None], truth, natural, ("image", "text"), tuple("abcd"))
    scenarios = [Scenario.parse(spec, predictions.modalities) for spec in ("complete", "missing-text")]
    task = Regression(Target("regression"))
    record = evaluation_record(predictions, task, scenarios, 0, "test", 1, np.array([9.0, 10.0, 50.0]))
    constant = record["constant"]
    assert constant["scenarios"]["complete"]["mae"] == pytest.approx(10.0)
    assert constant["scenarios"]["missing-text"]["mae"] == constant["patterns"]["missing-text"]["mae"] == 5.0
    assert constant["worst_missing"]["mae"] == 10.0 and constant["mean_missing"]["mae"] == 7.5
    assert record["scenarios"]["complete"]["metrics"]["mae"] == 0.0  # the model's own


# ---- readers


@pytest.fixture(params=[True, False], ids=["known", "an earlier version's file"])
def sweep(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Three seeds of a model that is right less often than the most frequent class where the image is missing."""
    objective = {"metric": "val/mean_missing/accuracy"}
    made = factory.study(sweep={"trials": 2, "objective": objective, "final": {"seeds": 3}})
    folder = factory.make_sweep(tmp_path / "demo", made, trials=2, finals=False)
    train = np.array([6] * 3 + [0, 1, 2, 3, 4, 5])
    for seed in (101, 102, 103):
        said, task = factory.invent((0.6, 0.02), seed)
        final = folder / f"final/best/seed-{seed}"
        factory.write_final(final, made, seed, said, task, train_targets=train)
        if not request.param:
            raw = json.loads((final / "evaluation.json").read_text())
            del raw["constant"]
            (final / "evaluation.json").write_text(json.dumps(raw))
    folder.joinpath("known").touch() if request.param else None
    return folder


def test_the_report_says_where_a_model_does_not_beat_it(sweep: Path) -> None:
    record, known = SweepRecord.load(sweep), (sweep / "known").exists()
    group = record.best_group
    assert group is not None
    said = shortfall(record, group)
    assert bool(said) == known and (said in headline(record))
    cell = group.cell("missing-image", "accuracy")
    assert cell is not None and cell.beats_constant("accuracy") == (False if known else None)
    table = tables.scenario_table(group)
    assert ("constant" in table.columns) == known and len({len(table.columns), *map(len, table.rows)}) == 1
    shown = record.to_json()["final"]["missing-image"]["accuracy"]
    assert set(shown) == {"mean", "sd", "seeds", "rows"} | ({"constant"} if known else set())
    page = write_report(sweep).read_text()
    assert ("does not beat the constant predictor" in page) == known
    if known:
        assert "which always predicts the most frequent class, in every scenario" in said
        assert "missing image" in said and "complete" not in said
        truth = factory.invent((0.6, 0.02), 101)[0].target_N
        assert shown["constant"] == pytest.approx((truth == 6).double().mean().item())
        assert str(shown["constant"]) in (sweep / "report/tables/scenarios.csv").read_text()


def test_mlflow_gets_it(sweep: Path) -> None:
    found = scores_on_test(Evaluation.read(sweep / "final/best/seed-101/evaluation.json"))
    constant = {name: value for name, value in found.items() if name.startswith("test/constant/")}
    own = {name for name in found if name not in constant}
    if not (sweep / "known").exists():
        assert not constant
        return
    assert {name.replace("test/constant/", "test/") for name in constant} == own
    assert constant["test/constant/mean_missing/accuracy"] == constant["test/constant/complete/accuracy"]


def test_a_model_that_is_nowhere_better_is_told_so_in_the_headline(tmp_path: Path) -> None:
    study = factory.study(sweep={"trials": 2, "objective": {"metric": "val/mean_missing/mae"}, "final": {"seeds": 1}})
    folder = factory.make_sweep(tmp_path / "demo", study, trials=2, finals=False)
    truth = torch.tensor([60_000.0, 70_000.0, 80_000.0])
    said = Predictions(torch.zeros(3, 3, 1), truth, np.ones((3, 2), bool), factory.MODALITIES, ("a", "b", "c"))
    task = Regression(Target("regression"))
    final = folder / "final/best/seed-101"
    factory.write_final(final, study, 101, said, task, train_targets=np.array([65_000.0, 70_000.0]))
    record = SweepRecord.load(folder)
    text = headline(record)
    assert "It does not beat the constant predictor, which always predicts the median, in any scenario: " in text
    assert "complete (70000.000 against 7500.000)" in text
    near = replace(said, statistics_PN=truth.expand(3, 3)[..., None] + 1)
    factory.write_final(final, study, 101, near, task, train_targets=np.array([65_000.0, 70_000.0]))
    assert "constant" not in headline(SweepRecord.load(folder))


@pytest.mark.parametrize("score", [5.0, 13.0])
def test_a_sweep_without_finals_is_judged_on_validation(score: float, tmp_path: Path) -> None:
    metric = "mean_missing/mae"
    sweep = {"trials": 1, "objective": {"metric": f"val/{metric}"}, "final": None}
    study = factory.study(train={"epochs": 2}, sweep=sweep)
    folder = factory.make_sweep(tmp_path / "demo", study, trials=0, finals=False)
    trial = TrialFolder(folder / "trials/0000")
    params = {"method.align_weight": 0.1}
    trial.create({"id": "0000", "number": 0, "params": params, "seed": 0, "kind": "trial"}, study.to_yaml())
    trial.append(Report(1, {f"val/{metric}": score + 1, f"val/constant/{metric}": 12.5}))
    trial.append(Report(2, {f"val/{metric}": score}))
    trial.mark_done("finished")
    record = SweepRecord.load(folder)
    assert record.to_json()["trials"][0]["constant"] == 12.5
    assert ("It does not beat the constant predictor (12.500)." in headline(record)) == (score > 12.5)
    assert "constant predictor 12.500" in tables.trials_table(record).title


def test_group_means_have_it_beside_them(tmp_path: Path) -> None:
    made = factory.per_method()
    folder = factory.make_sweep(tmp_path / "demo", made, trials=2, finals=False)
    for method, strengths in factory.GROUPS.items():
        said, task = factory.invent(strengths, 101)
        params = {"method.name": method}
        final = folder / f"final/{method}/seed-101"
        factory.write_final(final, made, 101, said, task, params, np.array([6, 6, 0]))
    record = SweepRecord.load(folder)
    table = tables.groups_table(record)
    assert table.columns[-1] == "constant" and len({len(table.columns), *map(len, table.rows)}) == 1
    assert "The constant predictor has " in group_means(record)
