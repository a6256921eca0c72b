"""The training loop: epochs and steps over slots, plain PyTorch; what Ray or a notebook needs comes in as `report`.

Everything random is drawn from generators that (train.seed, purpose, epoch) alone decide, so a trial's result depends
neither on what ran before it in this process nor on where it was interrupted: resuming at an epoch's end needs the
weights, the optimiser's state and the epoch's number.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from mmsweep.availability import BoolArray, Scenario
from mmsweep.data.augmentation import Augmentation
from mmsweep.data.dataset import Batch
from mmsweep.data.prepared import PreparedData
from mmsweep.errors import UserError
from mmsweep.methods.method import Method, Term
from mmsweep.study import Train
from mmsweep.tasks.task import Task
from mmsweep.training.checkpoint import Report, TrialFolder, load_checkpoint
from mmsweep.training.evaluation import autocast, predict, scenario_metrics
from mmsweep.training.optimization import lr_factor, make_optimizer
from mmsweep.training.world import World


class Diverged(Exception):
    """The mean loss of an epoch is not a finite number."""


@dataclass
class Slot:
    """One trial in the engine.

    Args:
        folder: where it is recorded.
        method, task, train: what is trained, and how.
        table_NM: which modalities of each training row may be read (`scenarios.train`).
        better: (new, best so far) -> whether new metrics are better: that epoch's checkpoint is kept.
        augmentation: on the batch; None: off.
    """

    folder: TrialFolder
    method: Method
    task: Task
    train: Train
    table_NM: BoolArray
    better: Callable[[dict[str, float], dict[str, float]], bool]
    augmentation: Augmentation | None = None


@dataclass(frozen=True)
class EvaluationPlan:
    """What is measured on validation after every epoch."""

    scenarios: Sequence[Scenario]
    seed: int


def generator(seed: int, purpose: str, epoch: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A random generator that these four values alone decide."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{epoch}".encode()).digest()
    return torch.Generator(device=device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def fit(
    slots: Sequence[Slot],
    data: PreparedData,
    plan: EvaluationPlan,
    report: Callable[[Slot, Report], bool],
    device: torch.device,
    world: World | None = None,
) -> None:
    """Train every slot to its end, or until `report` answers True for it; continue from its last checkpoint.

    `report` is called on every rank after the epoch's checkpoint and report line are on disk. All ranks must get the
    same answer.

    Raises:
        Diverged: a slot's loss is no longer finite.
    """
    world = world or World.current()
    active = [_Fit(slot, data, plan, device, world) for slot in slots]
    while active:
        for running in list(active):
            if running.over:
                active.remove(running)
                continue
            record = running.epoch()
            if report(running.slot, record):
                active.remove(running)


class _Fit:
    """A slot under way."""

    def __init__(
        self, slot: Slot, data: PreparedData, plan: EvaluationPlan, device: torch.device, world: World
    ) -> None:
        self.slot, self.data, self.plan, self.device, self.world = slot, data, plan, device, world
        self.split = data.splits["train"]
        self.rows = np.flatnonzero(slot.table_NM.any(1))  # a row with nothing to read teaches nothing
        if not len(self.rows):
            raise UserError("no training row has a modality left under this scenario", key="scenarios.train")
        self.parameters = {n: p for n, p in slot.method.named_parameters() if p.requires_grad}
        self.optimizer = make_optimizer(slot.train.optimizer, self.parameters.items())
        self.steps_per_epoch = math.ceil(len(self.rows) / slot.train.batch_size)
        self.done = 0
        self.best: Report | None = None
        self._resume()

    @property
    def over(self) -> bool:
        return self.done >= self.slot.train.epochs

    def epoch(self) -> Report:
        """Train and evaluate one epoch, write checkpoint and report, and return the report."""
        started, train = time.monotonic(), self.slot.train
        losses = self._train_epoch(self.done + 1)
        if not all(math.isfinite(value) for value in losses.values()):
            raise Diverged(f"the loss is {losses['loss']} in epoch {self.done + 1}")
        predictions = predict(
            self.slot.method,
            self.slot.task,
            self.data.splits["val"],
            train.rows_at_once,
            self.device,
            self.world,
            train.precision,
        )
        scores = scenario_metrics(predictions, self.slot.task, self.plan.scenarios, self.plan.seed)
        self.done += 1
        metrics = {f"train/{name}": value for name, value in losses.items()} | {
            f"val/{k}": v for k, v in scores.items()
        }
        metrics["epoch"] = float(self.done)
        if self.best is None or self.slot.better(metrics, self.best.metrics):
            self.best = Report(self.done, metrics)
        name = str(self.slot.folder.checkpoint(self.done).relative_to(self.slot.folder.path))
        record = Report(self.done, metrics, name, time.monotonic() - started)
        if self.world.first:
            self._save()
            self.slot.folder.append(record)
            self.slot.folder.keep_checkpoints({self.done, self.best.epoch})
        self.world.barrier()
        return record

    def _train_epoch(self, epoch: int) -> dict[str, float]:
        slot, train, seed = self.slot, self.slot.train, self.slot.train.seed
        order = self.rows[torch.randperm(len(self.rows), generator=generator(seed, "order", epoch)).numpy()]
        masking = generator(seed, "masking", epoch)
        augmentation = generator(seed, "augmentation", epoch)
        dropout = generator(seed, "dropout", epoch, self.device)
        slot.method.train()
        sums: dict[str, Tensor] = {}
        for step in range(self.steps_per_epoch):
            index = order[step * train.batch_size : (step + 1) * train.batch_size]
            batch = self.split.batch(
                index, self.device, augmentation=slot.augmentation, generator=augmentation, present=slot.table_NM[index]
            )
            used_BM = batch.present_BM
            if slot.method.masking is not None:
                used_BM = slot.method.masking.draw(used_BM, masking)
            for name, value in self._step(batch, used_BM, dropout, (epoch - 1) * self.steps_per_epoch + step).items():
                sums[name] = sums[name] + value if name in sums else value
        slot.method.noise.off()
        means = {name: float(value) / self.steps_per_epoch for name, value in sums.items()}
        return means | {"lr": float(self.optimizer.param_groups[0]["lr"])}

    def _step(self, batch: Batch, used_BM: Tensor, dropout: torch.Generator, step: int) -> dict[str, Tensor]:
        slot, noise, share = self.slot, self.slot.method.noise, self.world.rows(len(batch))
        factor = lr_factor(slot.train.schedule, step, slot.train.epochs * self.steps_per_epoch, self.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = slot.train.optimizer.lr * factor
        noise.generator, noise.total, noise.rows = dropout, len(batch), share
        noise.missing_M = (~used_BM).any(0)
        self.optimizer.zero_grad(set_to_none=True)
        weights = {"task": 1.0} | slot.method.weights
        sums = {name: torch.zeros((), device=self.device) for name in weights}
        counts = torch.zeros(len(weights), device=self.device)
        if share.stop > share.start:
            with autocast(slot.train.precision, self.device):
                output = slot.method(_rows(batch, share), used_BM[share])
            values_B = slot.task.loss(output.prediction, batch.target[share])
            terms = {"task": Term(values_B, torch.ones_like(values_B, dtype=torch.bool))} | output.losses
            for place, name in enumerate(weights):
                counted_B = terms[name].counted_B
                sums[name] = torch.where(counted_B, terms[name].values_B.float(), 0.0).sum()
                counts[place] = counted_B.sum()
        # Every rank divides by the whole batch's count, so summed gradients are those of the whole batch's means.
        self.world.all_reduce_sum_(counts)
        means = {name: sums[name] / counts[place].clamp(min=1) for place, name in enumerate(weights)}
        loss = torch.stack([weights[name] * means[name] for name in weights]).sum()
        if loss.requires_grad:
            loss.backward()
        self._share_gradients()
        if slot.train.clip_norm is not None:
            nn.utils.clip_grad_norm_(list(self.parameters.values()), slot.train.clip_norm)
        self.optimizer.step()
        shown = torch.stack([loss.detach(), *(means[name].detach() for name in weights)])
        self.world.all_reduce_sum_(shown)
        return dict(zip(["loss", *(f"loss_{name}" for name in weights)], shown, strict=True))

    def _share_gradients(self) -> None:
        # What a batch did not need (a projector where nothing is masked) has no gradient on some ranks, or on none: a
        # zero one, so that the optimiser steps alike however many ranks there are.
        for parameter in self.parameters.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if self.world.size == 1:
            return
        flat = torch.cat([p.grad.flatten() for p in self.parameters.values() if p.grad is not None])
        self.world.all_reduce_sum_(flat)
        start = 0
        for parameter in self.parameters.values():
            if parameter.grad is not None:
                parameter.grad.copy_(flat[start : start + parameter.numel()].view_as(parameter))
            start += parameter.numel()

    def _save(self) -> None:
        state = self.optimizer.state_dict()["state"]
        resume = {f"{i}.{k}": torch.as_tensor(v) for i, entry in state.items() for k, v in entry.items()}
        assert self.best is not None
        best = {"epoch": self.best.epoch, "metrics": self.best.metrics}
        self.slot.folder.save_checkpoint(self.done, dict(self.parameters), resume, {"epoch": self.done, "best": best})

    def _resume(self) -> None:
        folder = self.slot.folder.last_checkpoint()
        if folder is None:
            return
        weights, resume, state = load_checkpoint(folder)
        load_weights(self.slot.method, weights, folder)
        entries: dict[int, dict[str, Tensor]] = {}
        for key, value in resume.items():
            index, _, name = key.partition(".")
            entries.setdefault(int(index), {})[name] = value
        whole = self.optimizer.state_dict()
        whole["state"] = entries
        self.optimizer.load_state_dict(whole)
        self.done = int(state["epoch"])
        self.best = Report(int(state["best"]["epoch"]), dict(state["best"]["metrics"]))


def load_weights(method: Method, weights: dict[str, Tensor], where: object) -> None:
    """Put a checkpoint's trained tensors into a method.

    Raises:
        UserError: the checkpoint is of another architecture; names the first tensor that does not fit.
    """
    own = {n: p for n, p in method.named_parameters() if p.requires_grad}
    for name in sorted(own.keys() ^ weights.keys()):
        side = "lacks" if name in own else "holds an unknown"
        raise UserError(
            f"a checkpoint of another architecture: it {side} tensor",
            file=where,
            key=name,
            expected="the tensors that its study.yaml trains",
        )
    for name, parameter in own.items():
        if parameter.shape != weights[name].shape:
            raise UserError(
                "a checkpoint of another architecture",
                file=where,
                key=name,
                found=tuple(weights[name].shape),
                expected=str(tuple(parameter.shape)),
            )
        with torch.no_grad():
            parameter.copy_(weights[name])


def _rows(batch: Batch, share: slice) -> Batch:
    if share == slice(0, len(batch)):
        return batch
    inputs: dict[str, Tensor | dict[str, Tensor]] = {
        m: {k: v[share] for k, v in x.items()} if isinstance(x, dict) else x[share] for m, x in batch.inputs.items()
    }
    return Batch(inputs, batch.present_BM[share], batch.target[share], batch.index[share])
