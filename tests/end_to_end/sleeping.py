"""A stand-in for `mmsweep.assembly`: epochs that sleep, with metrics that follow exactly from the parameters.

It keeps the real contract (checkpoints, durable reports, exact resume, collectives between ranks), so that sweeps,
kills and resumes can be tested by the dozen. Every epoch that was really trained leaves a line in the trial's
`trained.log`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from mmsweep.errors import UserError
from mmsweep.record.files import write_atomically
from mmsweep.record.trial import Report, TrialFolder
from mmsweep.study import Study
from mmsweep.study.packs import Job
from mmsweep.training.checkpoint import load_checkpoint, save_checkpoint
from mmsweep.training.world import World

METRIC = "val/mean_missing/f1_macro"
HOLD = "hold"  # a file beside a sweep's folder, with an epoch in it


def warm_key(study: Study) -> str:
    return study.data.dataset + study.model.encoders["image"].name


pack_key = warm_key


def sleep_seconds() -> float:
    return float(os.environ.get("SLEEPING_EPOCH", "0.1"))


@contextlib.contextmanager
def held(place: Path) -> Iterator[Callable[[int], None]]:
    """Packs of the sweep in this place stop once all their trials have reported as many epochs as was told last: 1 at
    first, any number after this."""

    def at(epoch: int) -> None:
        write_atomically(place / HOLD, str(epoch))

    at(1)
    try:
        yield at
    finally:
        (place / HOLD).unlink()


class SleepingWarm:
    """Trains by sleeping, all slots at once. Small values of align_weight score high; 8 to 9 gives NaN, 9 to 10 is
    refused, 10 to 11 raises in its second epoch, and more kills the process then."""

    def __init__(self, device: str, world: World) -> None:
        self.world = world

    def slots_for(
        self, job: Job, most: int, agree: Callable[[Any], Any], reached: Callable[[int], None]
    ) -> tuple[int, str | None]:
        asked = job.study.resources.slots
        if asked != "auto":
            return asked, None
        reached(1)
        return min(2, most), "sleeping measures nothing"

    def run_pack(
        self,
        jobs: Sequence[Job],
        report: Callable[[Sequence[tuple[Job, Report]]], Sequence[bool | UserError]],
        refill: Callable[[], Sequence[Job]],
        over: Callable[[Job, Exception | None], None],
    ) -> None:
        pack: list[_Slot] = []
        while jobs or pack:
            for job in jobs if self.world.first else ():
                TrialFolder(job.folder).settle()
            if jobs:
                self.world.barrier()
            for job in jobs:
                slot = _Slot(job)
                if slot.weight > 9 and slot.weight <= 10:
                    found = slot.weight
                    over(job, UserError("this configuration cannot be trained", key="method.align_weight", found=found))
                elif slot.epoch >= slot.study.train.epochs:
                    self._end(slot, over)
                else:
                    pack.append(slot)
            told = self._epoch(pack)
            for slot in [slot for slot in pack if slot.job.id not in {job.id for job, _ in told}]:
                pack.remove(slot)
                over(slot.job, None)
            answers = dict(zip([job.id for job, _ in told], report(told) if told else [], strict=True))
            for slot in list(pack):
                answer = answers[slot.job.id]
                if isinstance(answer, UserError) or answer:
                    pack.remove(slot)
                    over(slot.job, answer if isinstance(answer, UserError) else None)
                elif slot.epoch >= slot.study.train.epochs:
                    pack.remove(slot)
                    self._end(slot, over)
            jobs = list(refill())
            while not jobs and self._held(pack):
                time.sleep(0.02)
                jobs = list(refill())

    def _held(self, pack: Sequence[_Slot]) -> bool:
        """Whether all have come as far as they may; only without other ranks, who would have to agree."""
        if not pack or self.world.size > 1:
            return False
        try:
            epoch = int((pack[0].folder.path.parents[2] / HOLD).read_text())
        except FileNotFoundError:
            return False
        return all(slot.epoch >= epoch for slot in pack)

    def _end(self, slot: _Slot, over: Callable[[Job, Exception | None], None]) -> None:
        if self.world.first:
            slot.folder.mark_done("finished")
        over(slot.job, None)

    def _epoch(self, pack: Sequence[_Slot]) -> list[tuple[Job, Report]]:
        for step in range(4 if pack else 0):
            time.sleep(sleep_seconds() / 4)
            for slot in pack:
                gradient = torch.full((1,), 1.0 / (1 + step + self.world.rank * 0 + slot.study.train.seed))
                slot.state = slot.state + self.world.all_reduce_sum_(gradient) / self.world.size
        told = []
        for slot in pack:
            slot.epoch += 1
            epoch, weight, folder = slot.epoch, slot.weight, slot.folder
            if weight > 10 and epoch == 2:
                if weight > 11:
                    os.kill(os.getpid(), signal.SIGKILL)
                raise RuntimeError(f"{weight:.1f} is too much")
            score = float(epoch / slot.study.train.epochs - abs(weight - 0.3) + 1e-3 * slot.state.item())
            if 8 < weight <= 9:
                if self.world.first:
                    folder.mark_done("failed", f"the loss is not a number at epoch {epoch}")
                continue
            said = Report(epoch, {METRIC: score, "train/loss": -score}, seconds=sleep_seconds())
            if self.world.first:
                checkpoint = save_checkpoint(folder, epoch, {"state": slot.state}, {}, {"epoch": epoch})
                said = Report(epoch, said.metrics, checkpoint, said.seconds)
                with open(folder.path / "trained.log", "a") as file:
                    file.write(f"{epoch} {os.getpid()} {time.time()}\n")
                folder.append(said)  # after the log: tests kill as soon as they see a report
            told.append((slot.job, said))
        return told


class _Slot:
    def __init__(self, job: Job) -> None:
        self.job, self.study, self.folder = job, job.study, TrialFolder(job.folder)
        self.weight, self.state, self.epoch = self.study.value("method.align_weight"), torch.zeros(1), 0
        if last := self.folder.last_checkpoint():
            weights, _, resume = load_checkpoint(last)
            self.state, self.epoch = weights["state"], int(resume["epoch"])


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
