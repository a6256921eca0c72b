"""A stand-in for `mmsweep.assembly`: epochs that sleep, with metrics that follow exactly from the parameters.

It keeps the real contract (checkpoints, durable reports, exact resume, collectives between ranks), so that sweeps,
kills and resumes can be tested by the dozen. Every epoch that was really trained leaves a line in the trial's
`trained.log`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmsweep.errors import UserError
from mmsweep.study import Study
from mmsweep.training.checkpoint import Report, TrialFolder, load_checkpoint
from mmsweep.training.world import World

METRIC = "val/mean_missing/f1_macro"


@dataclass(frozen=True)
class Job:
    id: str
    kind: str
    folder: str
    study: dict[str, Any]
    key: str


def warm_key(study: Study) -> str:
    return study.data.dataset + study.model.encoders["image"].name


def sleep_seconds() -> float:
    return float(os.environ.get("SLEEPING_EPOCH", "0.1"))


class SleepingWarm:
    """Trains by sleeping. align_weight > 9 raises, 8 < align_weight <= 9 gives NaN; small values score high."""

    def __init__(self, device: str, world: World) -> None:
        self.world = world

    def run(self, job: Job, report: Callable[[Report], bool]) -> None:
        study, folder = Study.parse(job.study), TrialFolder(job.folder)
        weight, state, first = study.method.alignment, torch.zeros(1), 1
        if weight > 9:
            raise UserError("this configuration cannot be trained", key="method.align_weight", found=weight)
        if last := folder.last_checkpoint():
            weights, _, resume = load_checkpoint(last)
            state, first = weights["state"], int(resume["epoch"]) + 1
        for epoch in range(first, study.train.epochs + 1):
            for step in range(4):
                time.sleep(sleep_seconds() / 4)
                gradient = torch.full((1,), 1.0 / (1 + step + self.world.rank * 0 + study.train.seed))
                state = state + self.world.all_reduce_sum_(gradient) / self.world.size
            score = float(epoch / study.train.epochs - abs(weight - 0.3) + 1e-3 * state.item())
            if weight > 8:
                if self.world.first:
                    folder.mark_done("failed", f"the loss is not a number at epoch {epoch}")
                return
            said = Report(epoch, {METRIC: score, "train/loss": -score}, seconds=sleep_seconds())
            if self.world.first:
                checkpoint = folder.save_checkpoint(epoch, {"state": state}, {}, {"epoch": epoch})
                said = Report(epoch, said.metrics, checkpoint, said.seconds)
                with open(Path(job.folder) / "trained.log", "a") as file:
                    file.write(f"{epoch} {os.getpid()} {time.time()}\n")
                folder.append(said)  # after the log: tests kill as soon as they see a report
            if report(said):
                return
        if self.world.first:
            folder.mark_done("finished")


def study(name: str = "sleeping", **values: Any) -> Study:
    """A study for SleepingWarm; `values` are dotted keys with `__` for the dot."""
    base = {
        "name": name,
        "data": {"dataset": "openclipart"},
        "model": {
            "encoders": {"image": {"source": "mmsweep", "name": "vit"}, "text": {"source": "mmsweep", "name": "bert"}}
        },
        "method": {"name": "cmpt", "align_weight": 0.2},
        "train": {"epochs": 4},
        "search": {"method.align_weight": {"uniform": [0.0, 1.0]}},
        "sweep": {"trials": 6, "sampler": {"name": "random"}, "scheduler": {"name": "asha", "grace_epochs": 1}},
        "resources": {"hosts": 1, "workers": 1, "cpus": 1},
    }
    return Study.parse(base).with_values({k.replace("__", "."): v for k, v in values.items()})
