"""A task is one file, and so is a metric: it is then known to the checks, the objective, evaluation and the report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmsweep.assembly.checks import check
from mmsweep.components import register
from mmsweep.errors import UserError
from mmsweep.readers import tables, wording
from mmsweep.readers.report.leaderboard import Leaderboard
from mmsweep.record.sweep import SweepRecord
from mmsweep.study import Study
from mmsweep.tasks.task import TASKS, Array, Metric, Target, Task, doubles, mean
from mmsweep.training.evaluation import Predictions
from tests.unit import report_factory as factory

METRIC = "val/mean_missing/off_by_one"


@pytest.fixture()
def counts() -> Iterator[type[Task]]:
    @register("toy_counts")
    class Counts(Task):
        """A number of things: Poisson loss."""

        reported: ClassVar = {
            "off_by_one": Metric("off by one or less"),
            "deviance": Metric("deviance", "min", share=False),
        }
        target_kind = "number"
        constant_words = "the mean"
        reads = ("train.hard_pixels",)

        def __init__(self, target: Target, margin: float = 1.0) -> None:
            super().__init__(target)
            self.margin = margin

        @classmethod
        def of(cls, target: Target, targets: np.ndarray, options: Mapping[str, Any]) -> Task:
            return cls(target, 2.0 if options["train.hard_pixels"] else 1.0)

        def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
            return F.poisson_nll_loss(prediction[:, 0], target, reduction="none")

        def statistics(self, prediction: Tensor, target: Tensor) -> Tensor:
            return prediction.exp()

        def settings(self) -> dict[str, Any]:
            return {"margin": self.margin}

        @classmethod
        def recalled(cls, target: Target, settings: Mapping[str, Any]) -> Task:
            return cls(target, settings["margin"])

        def constant(self, targets: np.ndarray) -> Tensor:
            return torch.tensor([float(np.mean(targets))])

        def measure(self, statistics: Array, target: Array, weights_RN: Array | None) -> dict[str, Array]:
            said_N, truth_N = doubles(statistics[:, 0]), doubles(target)
            near = mean(abs(said_N - truth_N) <= self.margin, weights_RN)
            return {"off_by_one": near, "deviance": mean((said_N - truth_N) ** 2 / said_N, weights_RN)}

    yield Counts
    del TASKS._components["toy_counts"]


def test_the_checks_and_the_objective_know_a_new_task(counts: type[Task], tiny_tasks: dict[str, Study]) -> None:
    study = tiny_tasks["regression"].with_values(
        {"data.target.task": "toy_counts", "sweep.objective": {"metric": METRIC}, "train.hard_pixels": True}
    )
    check(study)
    assert study.sweep.objectives[0].mode == "max"
    deviance = study.with_values({"sweep.objective": {"metric": "val/complete/deviance"}})
    assert deviance.sweep.objectives[0].mode == "min"
    with pytest.raises(UserError, match=r"no such metric; found '.*Did you mean 'val/complete/deviance'"):
        check(study.with_values({"sweep.objective": {"metric": "val/complete/devience"}}))
    with pytest.raises(UserError, match=r"standardize_target.*or a dataset whose task is regression"):
        check(study.with_values({"train.standardize_target": False}))
    with pytest.raises(UserError, match=r"hard_pixels.*whose task is segmentation or toy_counts"):
        check(tiny_tasks["regression"].with_values({"train.hard_pixels": True}))
    with pytest.raises(UserError, match=r"backbone cmnext does not predict toy_counts"):
        backbone = {"name": "cmnext", "size": "nano", "pretrained": False, "trainable": True}
        check(study.with_values({"model.encoders": {}, "model.backbone": backbone, "search": {}}))
    with pytest.raises(UserError, match=r"toy_counts has no classes"):
        study.with_values({"data.target.classes": ["a", "b"]})
    with pytest.raises(UserError, match=r"data.target.task: wrong value; found 'counts'; expected one of .*toy_counts"):
        study.with_values({"data.target.task": "counts"})


def test_evaluation_and_the_report_s_intervals_know_it(counts: type[Task], tmp_path: Path) -> None:
    made = factory.study(sweep={"trials": 1, "objective": {"metric": METRIC}, "final": {"seeds": 2}})
    folder = factory.make_sweep(tmp_path / "s", made, trials=1, finals=False)
    truth = torch.arange(1.0, 61.0)
    for group, error in (("near", 0.8), ("far", 1.6)):
        for seed in (1, 2):
            noise_PN = torch.randn(3, 60, generator=torch.Generator().manual_seed(seed)) * error
            predictions = Predictions(
                (truth + noise_PN).clamp(min=0.1)[..., None], truth, np.ones((60, 2), bool), factory.MODALITIES,
                tuple(map(str, range(60))),
            )  # fmt: skip
            task = counts(Target("toy_counts"))
            factory.write_final(folder / f"final/{group}/seed-{seed}", made, seed, predictions, task)
    record = SweepRecord.load(folder)
    cell = record.groups[0].cell("complete", "off_by_one")
    assert cell is not None and wording.cell("off_by_one", cell, 0) and cell.mean > 0
    board = Leaderboard.of(record)
    interval = board.scores[record.groups[0].name, "complete"]
    assert board.note == "" and interval.value == pytest.approx(cell.mean) and interval.low < cell.mean < interval.high
    assert tables.comparison_table(board).title.startswith("Differences in off by one or less (%)")
    assert wording.constant_words("toy_counts") == "the mean"
