"""Regression learns the target on the training rows' scale, and the two numbers stay with the run."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mmsweep.assembly.checks import check
from mmsweep.assembly.host import Warm, evaluate_run
from mmsweep.errors import UserError
from mmsweep.record.trial import TrialFolder
from mmsweep.study import Study
from mmsweep.study.packs import Job
from mmsweep.tasks.regression import SCALE, Regression, TargetScale
from mmsweep.tasks.single_label import SingleLabel
from mmsweep.tasks.task import Target, task_of
from mmsweep.training.checkpoint import load_checkpoint
from mmsweep.training.world import World


def test_the_scale_is_mean_and_sd_of_the_rows() -> None:
    scale = TargetScale.of(np.array([1.0, 3.0, 5.0], np.float32))
    assert scale == TargetScale(3.0, np.sqrt(8 / 3))
    values = [60_000.0, 70_000.0, 80_000.0]
    task = Regression(Target("regression"), "mse", TargetScale.of(values))
    target = torch.tensor(values)
    prediction = (target[:, None] - 70_000) / np.std(values)
    assert task.loss(prediction, target).tolist() == pytest.approx([0.0] * 3, abs=1e-6)
    assert task.loss(torch.zeros(3, 1), target).tolist() == pytest.approx([1.5, 0.0, 1.5])
    assert task.statistics(prediction, target)[:, 0].tolist() == pytest.approx(values)
    assert task.metrics(task.statistics(torch.zeros(3, 1), target), target)["mae"] == pytest.approx(20_000 / 3)


@pytest.mark.parametrize("values", [[5.0, 5.0, 5.0], [67_630.0], [0.0, 0.0], [1e9, 1e9 + 1, 1e9 + 2]])
def test_targets_without_a_scale_are_refused(values: list[float]) -> None:
    with pytest.raises(UserError, match=r"same target|single precision"):
        TargetScale.of(values)


@pytest.mark.parametrize("values", [[1e-30, 2e-30], [-3e38, 3e38], [0.0, 1e-5], [2015.0, 2016.0], [1e6, 1e6 + 1000]])
def test_small_and_large_targets_have_one(values: list[float]) -> None:
    scale = TargetScale.of(np.array(values, np.float32))
    task = Regression(Target("regression"), "l1", scale)
    target = torch.tensor(values)
    assert task.loss(torch.zeros(2, 1), target).tolist() == pytest.approx([1.0, 1.0], rel=1e-3)


def test_without_a_scale_everything_is_as_it_was() -> None:
    plain, task = task_of(Target("regression")), Regression(Target("regression"), "l1", TargetScale())
    prediction, target = torch.randn(9, 1), torch.randn(9)
    assert torch.equal(plain.loss(prediction, target), (prediction[:, 0] - target).abs())
    assert torch.equal(task.statistics(prediction, target), prediction)
    single = SingleLabel(Target("single_label", ("a", "b")))
    assert single.state() == {} and single.restored({SCALE: torch.ones(2)}) is single


# ---- in a run


def study_of(tiny_tasks: dict[str, Study], tiny_table: Path, folder: Path, factor: float, shift: float) -> Study:
    """The regression study on the tiny table, its targets multiplied and moved."""
    shutil.copytree(tiny_table, folder)
    with open(tiny_table / "whole.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    with open(folder / "whole.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows({**row, "score": f"{float(row['score']) * factor + shift:.6f}"} for row in rows)
    return tiny_tasks["regression"].with_values({"data.path": str(folder / "whole.csv"), "model.lora.dropout": 0.0})


def run(study: Study, path: Path, kind: str = "trial", epochs: int | None = None) -> TrialFolder:
    folder = TrialFolder(path)
    folder.create({"id": "0", "params": {}}, study.to_yaml())
    job = Job("0", kind, str(path), study)
    Warm("cpu", World()).run(job, lambda report: report.epoch == epochs)
    return folder


@pytest.fixture()
def near(tiny_tasks, tiny_table, tmp_path):
    return study_of(tiny_tasks, tiny_table, tmp_path / "near", 1.0, 0.0)


@pytest.fixture()
def prices(tiny_tasks, tiny_table, tmp_path):
    return study_of(tiny_tasks, tiny_table, tmp_path / "prices", 20_000.0, 67_630.0)


def test_a_price_is_learned_as_well_as_a_score(near, prices, tmp_path) -> None:
    """Another unit and another zero change no loss, and errors by the unit alone."""
    one, other = run(near, tmp_path / "a", "final"), run(prices, tmp_path / "b", "final")
    for mine, theirs in zip(one.reports(), other.reports(), strict=True):
        assert theirs.metrics["train/loss"] == pytest.approx(mine.metrics["train/loss"], rel=1e-3)
        assert theirs.metrics["val/complete/mae"] == pytest.approx(20_000 * mine.metrics["val/complete/mae"], rel=1e-3)
    data = Warm("cpu", World()).ready(prices)[0].splits
    median = np.median(data["train"].targets)
    said = [report.metrics.get("val/constant/complete/mae") for report in other.reports()]
    assert said == [pytest.approx(np.abs(data["val"].targets - median).mean()), None]  # beside the model's first scores
    assert other.reports()[-1].metrics["val/complete/mae"] < 67_630 / 2  # learned in its own unit it stays at the mean


def test_the_two_numbers_stay_with_the_run(near, prices, tmp_path) -> None:
    folder = run(prices, tmp_path / "run", "final")
    stored = load_checkpoint(folder.last_checkpoint())[0][SCALE].tolist()
    train = Warm("cpu", World()).ready(prices)[0].splits["train"].targets.astype(float)
    assert stored == pytest.approx([train.mean(), train.std()])
    before = evaluate_run(folder.path, "test", "cpu")
    assert before["target_scale"] == {"mean": stored[0], "sd": stored[1]}
    (folder.path / "study.yaml").write_text(near.to_yaml())  # the checkpoint is moved to other data
    after = evaluate_run(folder.path, "test", "cpu")
    assert after["target_scale"] == before["target_scale"]
    assert after["scenarios"]["complete"]["metrics"]["mae"] > 30_000  # it still predicts prices


def test_a_run_goes_on_with_its_own_numbers(prices, tmp_path) -> None:
    whole, halted = run(prices, tmp_path / "whole"), run(prices, tmp_path / "halted", epochs=1)
    assert halted.done() is None
    run(prices, halted.path)
    assert [r.metrics for r in halted.reports()] == [r.metrics for r in whole.reports()]


def test_a_checkpoint_without_the_numbers_was_trained_on_the_target_itself(near, tmp_path) -> None:
    folder = run(near, tmp_path / "run", "final")
    file = folder.last_checkpoint() / "weights.safetensors"
    own = near.with_values({"train.standardize_target": False})
    assert load_file(run(own, tmp_path / "own").last_checkpoint() / "weights.safetensors")[SCALE].tolist() == [0, 1]
    task = Regression(Target("regression"), "l1", TargetScale(5.0, 2.0))
    kept = {name: value for name, value in load_file(file).items() if name != SCALE}
    assert task.restored(kept).scale == TargetScale() and task.scale == TargetScale(5.0, 2.0)


def test_a_second_stage_takes_the_first_stage_s_numbers(near, prices, tmp_path) -> None:
    first = run(near, tmp_path / "first")
    second = near.with_values({"train.init_from": str(first.path), "train.epochs": 1})
    other = run(second, tmp_path / "second")
    scale = load_checkpoint(first.last_checkpoint())[0][SCALE]
    assert torch.equal(load_checkpoint(other.last_checkpoint())[0][SCALE], scale)
    far = prices.with_values({"train.init_from": str(first.path)})
    with pytest.raises(UserError, match="another scale") as refused:
        check(far)
    assert refused.value.key == "train.init_from"
    bare = tmp_path / "bare.safetensors"  # tensors that nobody knows the scale of are taken as they are
    save_file({n: v for n, v in load_checkpoint(first.last_checkpoint())[0].items() if n != SCALE}, bare)
    check(prices.with_values({"train.init_from": str(bare)}))


def test_a_constant_target_is_refused_before_anything_starts(tiny_tasks, tiny_table, tmp_path) -> None:
    study = study_of(tiny_tasks, tiny_table, tmp_path / "constant", 0.0, 3.0)
    with pytest.raises(UserError, match="every training row has the same target") as refused:
        check(study)
    assert refused.value.key == "data.target.column" and refused.value.found == 3.0
    check(study.with_values({"train.standardize_target": False}))
