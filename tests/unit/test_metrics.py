"""The direction of a metric decides what is best, worst and kept, wherever somebody asks."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from mmsweep.availability import Scenario, pattern_rows
from mmsweep.errors import UserError
from mmsweep.readers.report.sentences import headline, selection
from mmsweep.record.objective import Objective, best_of, direction, is_better, worst_of
from mmsweep.record.sweep import SweepRecord
from mmsweep.record.trial import Report, TrialFolder
from mmsweep.study import Study
from mmsweep.sweep.progress import Progress
from mmsweep.sweep.summary import summary_of
from mmsweep.tasks.regression import Regression
from mmsweep.tasks.task import TASKS, Target
from mmsweep.training.evaluation import Predictions, missing_summary, scenario_metrics
from tests.unit import report_factory as factory

MAE = "val/mean_missing/mae"
ERRORS = factory.study(
    train={"epochs": 3},
    search={"train.optimizer.lr": {"log_uniform": [1e-4, 1e-2]}},
    sweep={"trials": 2, "objective": {"metric": MAE}, "final": {"seeds": 1}},
)


METRICS = sorted({name for task in TASKS.values() for name in task.reported})


def written(tmp_path: Path, objective: Any) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({**factory.STUDY, "sweep": {"trials": 2, "objective": objective}}, sort_keys=False))
    return path


@pytest.mark.parametrize("name", METRICS)
def test_a_study_without_a_mode_takes_the_metric_s(name: str, tmp_path: Path) -> None:
    study = Study.load(written(tmp_path, {"metric": f"val/worst_missing/{name}"}))
    assert study.sweep.objectives[0].mode == ("min" if name == "mae" else "max") == direction(name)
    assert Study.parse(study.resolved()) == study


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("several", [False, True])
def test_a_mode_that_contradicts_is_refused_in_its_line(name: str, several: bool, tmp_path: Path) -> None:
    wrong = {"metric": f"val/complete/{name}", "mode": "max" if direction(name) == "min" else "min"}
    path = written(tmp_path, [{"metric": "val/complete/accuracy"}, wrong] if several else wrong)
    line = 1 + next(i for i, text in enumerate(path.read_text().splitlines()) if "mode:" in text)
    with pytest.raises(UserError) as refused:
        Study.load(path)
    key = "sweep.objective.1.mode" if several else "sweep.objective.mode"
    assert (refused.value.file, refused.value.line, refused.value.key) == (path, line, key)
    assert refused.value.found == wrong["mode"] and direction(name) in str(refused.value.expected)
    right = written(tmp_path, {**wrong, "mode": direction(name)})
    assert Study.load(right).sweep.objectives[0].mode == direction(name)


def test_on_the_command_line_too(tmp_path: Path) -> None:
    path = written(tmp_path, {"metric": "val/complete/accuracy"})
    assert Study.load(path, [f"sweep.objective.metric={MAE}"]).sweep.objectives[0].mode == "min"
    with pytest.raises(UserError, match=r"sweep\.objective\.mode"):
        Study.load(path, [f"sweep.objective.metric={MAE}", "sweep.objective.mode=max"])


def test_nan_is_neither_best_nor_worst() -> None:
    for mode, best, worst in (("min", 1.0, 3.0), ("max", 3.0, 1.0)):
        values = [math.nan, 3.0, 1.0, math.nan]
        assert best_of(values, mode) == best and worst_of(values, mode) == worst  # type: ignore[arg-type]
    assert math.isnan(best_of([], "max")) and math.isnan(worst_of([math.nan], "min"))
    assert is_better(1.0, math.nan, "min") and not is_better(math.nan, 1.0, "min") and is_better(1.0, 2.0, "min")


def test_the_worst_error_is_the_largest() -> None:
    truth = torch.arange(4.0)
    statistics_PN1 = torch.stack([truth + shift for shift in (0.0, 1.0, -5.0)])[..., None]
    predictions = Predictions(statistics_PN1, truth, np.ones((4, 2), bool), ("image", "text"), tuple("abcd"))
    assert len(pattern_rows(predictions.modalities)) == 3
    task = Regression(Target("regression"))
    mean, worst = missing_summary(predictions, task)
    assert mean["mae"] == 3.0 and worst["mae"] == 5.0
    scores = scenario_metrics(predictions, task, [Scenario.parse("complete", ("image", "text"))], 0)
    assert scores["worst_missing/mae"] == 5.0 and scores["complete/mae"] == 0.0


@pytest.fixture()
def sweep(tmp_path: Path) -> Path:
    """Trial 0001 has half the error of 0000; the final is 2.083 complete, 1.961 without text and 2.5 without image."""
    folder = tmp_path / "errors"
    folder.mkdir()
    (folder / "study.yaml").write_text(ERRORS.to_yaml())
    summary_of(ERRORS).write(folder)
    (folder / "sweep.json").write_text('{"name": "errors", "state": "finished", "trials": 2}')
    for number, error in enumerate((2.0, 1.0)):
        trial = TrialFolder(folder / "trials" / f"{number:04d}")
        params = {"train.optimizer.lr": 1e-3 * (1 + number)}
        trial.create({"id": f"{number:04d}", "number": number, "params": params, "seed": 0}, ERRORS.to_yaml())
        for epoch, more in enumerate((0.5, 0.0, 0.25), 1):
            trial.append(Report(epoch, {MAE: error + more}, None, 1.0))
        trial.mark_done("finished")
    truth = torch.linspace(-1, 1, 40)
    errors_P = torch.tensor([2.083, 1.961, 2.5])
    predictions = Predictions(
        (truth + errors_P[:, None])[..., None],
        truth,
        np.ones((40, 2), bool),
        factory.MODALITIES,
        tuple(map(str, range(40))),
    )
    factory.write_final(folder / "final/best/seed-101", ERRORS, 101, predictions, Regression(Target("regression")))
    return folder


def test_the_smallest_error_wins(sweep: Path) -> None:
    record = SweepRecord.load(sweep)
    assert [trial.id for trial in record.ranking] == ["0001", "0000"]
    assert record.best is not None and record.best.id == "0001"
    assert (record.best.objective, record.best.epoch) == (1.0, 2)
    assert record.to_json()["final"]["worst_missing"]["mae"]["mean"] == pytest.approx(2.5)


def test_sentences_know_that_an_error_is_not_kept(sweep: Path) -> None:
    record = SweepRecord.load(sweep)
    said = headline(record)
    assert "keeps" not in said and said == (
        "With image missing, the best configuration has MAE 2.500 instead of 2.083; with text missing, 1.961."
    )
    assert any(f"{MAE}; smaller is better" in line for line in selection(record))


def test_readers_know_it_where_the_file_does_not_say() -> None:
    declared = [{"metric": MAE}, {"metric": "val/complete/accuracy", "scope": "last"}]
    made = factory.study(sweep={"trials": 2, "objective": declared})
    assert summary_of(made).objectives == [Objective(MAE, "min"), Objective("val/complete/accuracy", "max", "last")]


def test_the_live_table_marks_the_best(capsys: pytest.CaptureFixture[str]) -> None:
    for mode, best in (("min", "0001"), ("max", "0000")):
        progress = Progress("demo", 3, Objective(MAE, mode), live=False)
        for id, value in (("0000", 2.0), ("0001", 1.0), ("0002", 1.0 if mode == "min" else 2.0)):
            progress.trial(id, {}, 1)
            progress.epoch(id, 1, value)
            progress.ended(id, "finished", None)
        assert progress._best() == best  # of equals the first, as in the ranking
    capsys.readouterr()


def test_the_module_needs_no_torch() -> None:
    code = "import sys, mmsweep.record.objective; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
