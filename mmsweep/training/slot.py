"""A trial in the engine: its random draws, progress, checkpoints and resume."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mmsweep.availability import BoolArray
from mmsweep.data.augmentation import Augmentation
from mmsweep.data.prepared import PreparedData
from mmsweep.errors import UserError
from mmsweep.methods.method import Method, Phase
from mmsweep.models.packing import trained
from mmsweep.record.trial import Report, TrialFolder
from mmsweep.study.sections import Train
from mmsweep.tasks.task import Task
from mmsweep.training.batches import Drawn
from mmsweep.training.checkpoint import load_checkpoint, load_weights, save_checkpoint
from mmsweep.training.optimization import PackedAdamW, lr_factor


@dataclass
class Slot:
    """One trial in the engine.

    Args:
        folder: the trial's folder.
        method, task, train: what is trained, and how. The method is a pack of one; it holds the trained values of the
            last epoch once the slot has left its pack.
        table_NM: which modalities of each training row may be read (`scenarios.train`).
        better: (new, best so far) -> whether the new metrics are better; the best epoch's checkpoint is kept.
        augmentation: augmentation of batches; None for none.
    """

    folder: TrialFolder
    method: Method
    task: Task
    train: Train
    table_NM: BoolArray
    better: Callable[[dict[str, float], dict[str, float]], bool]
    augmentation: Augmentation | None = None


def generator(seed: int, purpose: str, epoch: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A random generator seeded by these values alone."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{epoch}".encode()).digest()
    return torch.Generator(device=device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)


class Member:
    """A slot in training, with its progress."""

    def __init__(self, slot: Slot, data: PreparedData) -> None:
        self.slot = slot
        self.rows = np.flatnonzero(slot.table_NM.any(1))  # rows without any modality are not trained on
        if not len(self.rows):
            raise UserError("no training row has a modality left under this scenario", key="scenarios.train")
        self.natural_NM = data.splits["train"].natural_NM
        self.steps_per_epoch = math.ceil(len(self.rows) / slot.train.batch_size)
        self.done = 0
        self.best: Report | None = None
        self.optimizer: PackedAdamW | None = make_optimizer(slot.method, [slot.train])
        phases = slot.method.phases(slot.train.epochs)
        self.phases = [(phase, sum(p.epochs for p in phases[:i])) for i, phase in enumerate(phases)]
        self._resume(self.optimizer)

    @property
    def over(self) -> bool:
        return self.done >= self.slot.train.epochs

    @property
    def phase(self) -> tuple[Phase, int]:
        """The phase of the next epoch, and the number of epochs before that phase."""
        return next((p, start) for p, start in reversed(self.phases) if start <= self.done)

    def hand_over(self) -> PackedAdamW:
        """Release its optimiser, whose state the pack takes over."""
        assert self.optimizer is not None
        optimizer, self.optimizer = self.optimizer, None
        return optimizer

    def begin(self, device: torch.device) -> None:
        """Draw the next epoch's order of rows and create its generators."""
        seed, epoch = self.slot.train.seed, self.done + 1
        self.order = self.rows[torch.randperm(len(self.rows), generator=generator(seed, "order", epoch)).numpy()]
        self.masking = generator(seed, "masking", epoch)
        self.augmentation = generator(seed, "augmentation", epoch)
        self.dropout = generator(seed, "dropout", epoch, device)
        self.modulation = generator(seed, "modulation", epoch, device)

    def draw(self, step: int) -> Drawn:
        """The batch of a step of this epoch: (rows [B], modalities present [B, M], modalities used [B, M])."""
        size = self.slot.train.batch_size
        index_B = self.order[step * size : (step + 1) * size]
        present_BM = self.slot.table_NM[index_B] & self.natural_NM[index_B]
        used_BM = torch.from_numpy(present_BM)
        if self.slot.method.masking is not None:
            used_BM = self.slot.method.masking.draw(used_BM, self.masking)
        return index_B, present_BM, used_BM

    def lr(self, step: int) -> float:
        """The learning rate of a step of this epoch; each phase restarts the schedule."""
        train, n, (phase, start) = self.slot.train, self.steps_per_epoch, self.phase
        return train.optimizer.lr * lr_factor(train.schedule, (self.done - start) * n + step, phase.epochs * n, n)

    def record(self, losses: dict[str, float], scores: dict[str, float], seconds: float) -> Report:
        """Count the finished epoch and make its report."""
        self.done += 1
        metrics = {f"train/{name}": value for name, value in losses.items()} | {
            f"val/{name}": value for name, value in scores.items()
        }
        metrics["epoch"] = float(self.done)
        if self.best is None or self.slot.better(metrics, self.best.metrics):
            self.best = Report(self.done, metrics)
        name = str(self.slot.folder.checkpoint(self.done).relative_to(self.slot.folder.path))
        return Report(self.done, metrics, name, seconds)

    def write(self, record: Report, weights: dict[str, Tensor], resume: dict[str, Tensor]) -> None:
        """Write the checkpoint, then the report line that names it."""
        assert self.best is not None
        best = {"epoch": self.best.epoch, "metrics": self.best.metrics}
        folder = self.slot.folder
        save_checkpoint(folder, self.done, weights, resume, {"epoch": self.done, "best": best})
        folder.append(record)
        folder.keep_checkpoints({self.done, self.best.epoch})

    def _resume(self, optimizer: PackedAdamW) -> None:
        folder = self.slot.folder.last_checkpoint()
        if folder is None:
            return
        weights, resume, state = load_checkpoint(folder)
        load_weights(self.slot.method, weights, folder)
        self.slot.task = self.slot.task.restored(weights)
        optimizer.load(0, resume)
        for name, value in memory_of(self.slot.method).items():
            value.copy_(resume[name])
        self.done = int(state["epoch"])
        self.best = Report(int(state["best"]["epoch"]), dict(state["best"]["metrics"]))


def make_optimizer(method: Method, trains: Sequence[Train]) -> PackedAdamW:
    """The optimiser of a pack, from the training options of its slots."""
    return PackedAdamW(trained(method), [train.optimizer for train in trains], method.undecayed)


def memory_of(method: Method, slot: int = 0) -> dict[str, Tensor]:
    """Views of a slot's parameters that change in training without being trained, by name."""
    tensors = trained(method, frozen=True) if method.memory else ()
    return {t.name: t.slot_view(t.parameter.detach(), slot) for t in tensors if t.name in method.memory}
