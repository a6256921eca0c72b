"""The training loop: epochs and steps of a pack of slots, plain PyTorch; what Ray or a notebook needs comes in.

A pack trains S trials in one pass (models/packing.py); a single trial is a pack of one. Everything random is drawn from
generators that a trial's (train.seed, purpose, epoch) alone decide, and nothing that a slot computes looks at another's
rows, so a trial's result depends neither on what trains beside it or ran before it, nor on where it was interrupted:
resuming at an epoch's end needs the weights, the optimiser's state and the epoch's number.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mmsweep.availability import BoolArray, Scenario
from mmsweep.data.augmentation import Augmentation
from mmsweep.data.dataset import Batch
from mmsweep.data.prepared import PreparedData
from mmsweep.errors import UserError
from mmsweep.methods.method import Method, Term
from mmsweep.models.compilation import begin_step
from mmsweep.models.packing import alone, merge, select, trained, values_of
from mmsweep.record.trial import Report, TrialFolder
from mmsweep.study.sections import Train
from mmsweep.tasks.task import Task
from mmsweep.training.batches import Drawn, Share, depth, gather_share, made_ahead
from mmsweep.training.checkpoint import load_checkpoint, load_weights, running_statistics, save_checkpoint
from mmsweep.training.evaluation import autocast, constant_metrics, predict_slots, scenario_metrics
from mmsweep.training.optimization import PackedAdamW, lr_factor
from mmsweep.training.world import World

log = logging.getLogger("mmsweep.training")

Answer = bool | UserError
"""To a report: True where the slot stops, an error where it has failed."""


class Diverged(Exception):
    """The mean loss of an epoch is not a finite number."""


@dataclass
class Slot:
    """One trial in the engine.

    Args:
        folder: where it is recorded.
        method, task, train: what is trained, and how. The method is a pack of one; the trial's values of the last epoch
            are in it when the slot has left.
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
class Ending:
    """Why a slot has left.

    Args:
        how: `finished` its epochs, `stopped` by `report`, `diverged`, or `failed` by an error that is its own.
        problem: of the last two.
    """

    how: Literal["finished", "stopped", "diverged", "failed"]
    problem: Exception | None = None


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
    report: Callable[[Sequence[tuple[Slot, Report]]], Sequence[Answer]],
    device: torch.device,
    world: World | None = None,
    *,
    refill: Callable[[], Sequence[Slot]] = tuple,
    ended: Callable[[Slot, Ending], None] = lambda slot, ending: None,
) -> None:
    """Train every slot to its end, or until `report` answers that it ends; continue from its last checkpoint.

    All calls are made on every rank, and all ranks must get the same answers. A damaged checkpoint is passed over for
    the one before it, and the epochs between are trained again.

    Args:
        slots: of one pack: their studies may differ in what a pack allows (`assembly.pack_key`) and in nothing else.
        report: called after each epoch with all slots' reports, when their checkpoints and report lines are on disk;
            gives an answer to each: whether the slot stops, or the error that ends it, as one does that its checkpoint
            raises when it joins.
        refill: asked at every epoch's end for slots that are to join the pack.
        ended: called when a slot has left; the others go on.

    Raises:
        ValueError: slots that cannot share a pack.
    """
    world = world or World.current()
    pack = _Pack(data, plan, device, world)
    waiting = list(slots)
    while True:
        _settle(waiting, world)
        joining = []
        for slot in waiting:
            try:
                member = _Member(slot, data)
            except UserError as problem:
                ended(slot, Ending("failed", problem))
                continue
            if member.over:
                ended(slot, Ending("finished"))
            else:
                joining.append(member)
        if joining:
            pack.join(joining)
        if pack.members:
            for member, ending in pack.epoch(report):
                ended(member.slot, ending)
        waiting = list(refill())
        if not waiting and not pack.members:
            return


def _settle(slots: Sequence[Slot], world: World) -> None:
    """Make sure that all ranks go on from the same whole checkpoint."""
    for slot in slots if world.first else ():
        with contextlib.suppress(UserError):  # what cannot be read at all is said on every rank, by its member
            for sentence in slot.folder.settle():
                log.warning("%s: %s", slot.folder.path, sentence)
    if slots:
        world.barrier()


def rehearse(slots: Sequence[Slot], data: PreparedData, device: torch.device, world: World) -> Iterator[None]:
    """Train slots for as many steps as are asked for, and write nothing: what a step costs is what there is to see.

    Raises:
        UserError: a slot cannot be trained.
    """
    pack = _Pack(data, EvaluationPlan((), 0), device, world)
    pack.join([_Member(slot, data) for slot in slots])
    for member in pack.members:
        member.begin(device)
    pack.method.train()
    whole = max(1, len(pack.members[0].rows) // slots[0].train.batch_size)
    try:
        with made_ahead(lambda step: pack._share(step % whole), sys.maxsize, depth(device)) as shares:
            for step, share in enumerate(shares):
                pack._step(step % whole, share)
                yield
    finally:
        pack.method.noise.off()


class _Member:
    """A slot under way: where it stands and what it has to show."""

    def __init__(self, slot: Slot, data: PreparedData) -> None:
        self.slot = slot
        self.rows = np.flatnonzero(slot.table_NM.any(1))  # a row with nothing to read teaches nothing
        if not len(self.rows):
            raise UserError("no training row has a modality left under this scenario", key="scenarios.train")
        self.natural_NM = data.splits["train"].natural_NM
        self.steps_per_epoch = math.ceil(len(self.rows) / slot.train.batch_size)
        self.done = 0
        self.best: Report | None = None
        self.optimizer: PackedAdamW | None = _optimizer(slot.method, [slot])
        self._resume(self.optimizer)

    @property
    def over(self) -> bool:
        return self.done >= self.slot.train.epochs

    def hand_over(self) -> PackedAdamW:
        """Its optimiser's state, which is the pack's from now on."""
        assert self.optimizer is not None
        given, self.optimizer = self.optimizer, None
        return given

    def begin(self, device: torch.device) -> None:
        """Draw the next epoch's order and make its generators."""
        seed, epoch = self.slot.train.seed, self.done + 1
        self.order = self.rows[torch.randperm(len(self.rows), generator=generator(seed, "order", epoch)).numpy()]
        self.masking = generator(seed, "masking", epoch)
        self.augmentation = generator(seed, "augmentation", epoch)
        self.dropout = generator(seed, "dropout", epoch, device)

    def draw(self, step: int) -> Drawn:
        """The batch of a step of this epoch: (rows [B], what may be read [B, M], what is used of it [B, M])."""
        size = self.slot.train.batch_size
        index_B = self.order[step * size : (step + 1) * size]
        present_BM = self.slot.table_NM[index_B] & self.natural_NM[index_B]
        used_BM = torch.from_numpy(present_BM)
        if self.slot.method.masking is not None:
            used_BM = self.slot.method.masking.draw(used_BM, self.masking)
        return index_B, present_BM, used_BM

    def lr(self, step: int) -> float:
        """The learning rate of a step of this epoch."""
        train, n = self.slot.train, self.steps_per_epoch
        return train.optimizer.lr * lr_factor(train.schedule, self.done * n + step, train.epochs * n, n)

    def record(self, losses: dict[str, float], scores: dict[str, float], seconds: float) -> Report:
        """Count the epoch and say what it brought."""
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
        """Checkpoint first, then the report line that vouches for it."""
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
        self.done = int(state["epoch"])
        self.best = Report(int(state["best"]["epoch"]), dict(state["best"]["metrics"]))


class _Pack:
    """The slots that train together, in the order of their rows."""

    method: Method
    optimizer: PackedAdamW

    def __init__(self, data: PreparedData, plan: EvaluationPlan, device: torch.device, world: World) -> None:
        self.data, self.plan, self.device, self.world = data, plan, device, world
        self.members: list[_Member] = []

    def join(self, joining: Sequence[_Member]) -> None:
        """Take members in, at an epoch's end."""
        for member in (*self.members, *joining):
            _check_pair((self.members or joining)[0], member)
        packs = [self.method] if self.members else []
        whole = merge([*packs, *(m.slot.method for m in joining)])
        states = [(self.optimizer, s) for s in range(len(self.members))] + [(m.hand_over(), 0) for m in joining]
        self._set([*self.members, *joining], whole, states)

    def drop(self, leaving: Sequence[_Member]) -> None:
        """Let members go; their values go with them."""
        for slot, member in enumerate(self.members):
            if member in leaving and member.slot.method is not self.method:
                own = values_of(member.slot.method)
                for name, value in values_of(self.method, slot).items():
                    own[name].copy_(value)
        staying = [s for s, member in enumerate(self.members) if member not in leaving]
        members = [self.members[s] for s in staying]
        if members and leaving:
            self._set(members, select(self.method, staying), [(self.optimizer, s) for s in staying])
        self.members = members

    def _set(self, members: list[_Member], method: Method, states: Sequence[tuple[PackedAdamW, int]]) -> None:
        self.members, self.method = members, method
        self.statistics = running_statistics(method)
        if members[0].slot.method is method:  # a pack of one, whose tensors its own optimiser holds already
            self.optimizer = states[0][0]
        else:
            self.optimizer = _optimizer(method, [m.slot for m in members])
            for slot, (optimizer, theirs) in enumerate(states):
                self.optimizer.take(slot, optimizer, theirs)
        # On a CPU exp and log round otherwise at a vector's end than in its middle: there each slot's loss is one call.
        # Slots that started from runs on other data may scale their targets differently.
        alike = all(_same(m.slot.task.state(), members[0].slot.task.state()) for m in members)
        self.pieces = 1 if alike and self.device.type != "cpu" else len(members)
        own = [{"task": 1.0} | m.slot.method.weights for m in members]
        self.terms = list(own[0])
        self.weights_SK = torch.tensor([[w[name] for name in self.terms] for w in own], device=self.device)

    def epoch(
        self, report: Callable[[Sequence[tuple[Slot, Report]]], Sequence[Answer]]
    ) -> list[tuple[_Member, Ending]]:
        """Train and evaluate an epoch, write checkpoints and reports; who leaves, and why."""
        started, leaving = time.monotonic(), []
        losses = dict(zip(self.members, self._train_epoch(), strict=True))
        for member, means in losses.items():
            if not all(math.isfinite(value) for value in means.values()):
                problem = Diverged(f"the loss is {means['loss']} in epoch {member.done + 1}")
                leaving.append((member, Ending("diverged", problem)))
        self.drop([member for member, _ in leaving])
        if not self.members:
            return leaving
        first = self.members[0].slot
        found = predict_slots(
            self.method,
            [m.slot.task for m in self.members],
            self.data.splits["val"],
            first.train.rows_at_once,
            self.device,
            self.world,
            first.train.precision,
        )
        records = []
        for slot, (member, predictions) in enumerate(zip(self.members, found, strict=True)):
            about = (member.slot.task, self.plan.scenarios, self.plan.seed)
            scores = scenario_metrics(predictions, *about)
            if not member.done:  # the same in every epoch: the first report holds it
                scores |= constant_metrics(predictions, *about, self.data.splits["train"].targets)
            records.append(member.record(losses[member], scores, time.monotonic() - started))
            if self.world.first:
                weights = values_of(self.method, slot) | self.statistics | member.slot.task.state()
                member.write(records[-1], weights, self.optimizer.state(slot))
        self.world.barrier()
        answers = report([(m.slot, r) for m, r in zip(self.members, records, strict=True)])
        gone = [(m, e) for m, answer in zip(self.members, answers, strict=True) if (e := _ending(m, answer))]
        self.drop([member for member, _ in gone])
        return leaving + gone

    def _train_epoch(self) -> list[dict[str, float]]:
        for member in self.members:
            member.begin(self.device)
        self.method.train()
        steps = self.members[0].steps_per_epoch
        sums_SK: Tensor | None = None
        with made_ahead(self._share, steps, depth(self.device)) as shares:
            for step, share in enumerate(shares):
                shown_SK = self._step(step, share)
                sums_SK = shown_SK if sums_SK is None else sums_SK + shown_SK
        self.method.noise.off()
        self._share_statistics()
        assert sums_SK is not None
        names = ["loss", *(f"loss_{name}" for name in self.terms)]
        means = [{n: v / steps for n, v in zip(names, row, strict=True)} for row in sums_SK.tolist()]
        return [m | {"lr": member.lr(steps - 1)} for m, member in zip(means, self.members, strict=True)]

    def _share(self, step: int) -> Share:
        """What a step of this epoch reads: the only place that draws on the host, in the order of the steps."""
        members = self.members
        augmentation, generators = members[0].slot.augmentation, [m.augmentation for m in members]
        drawn = [member.draw(step) for member in members]
        return gather_share(drawn, self.data.splits["train"], augmentation, generators, self.world, self.device)

    def _step(self, step: int, share: Share) -> Tensor:
        """Move every slot once; what its loss and its terms were [S, 1 + K]. The host waits for the device nowhere."""
        begin_step(self.members[0].slot.train.compile)
        noise = self.method.noise
        noise.generators, noise.total, noise.rows = [m.dropout for m in self.members], share.size, share.rows
        noise.missing_M = torch.ones(share.used_RM.shape[1], dtype=torch.bool)  # or lengths would be neighbours'
        sums_SK = torch.zeros_like(self.weights_SK)
        counts_SK = torch.zeros_like(self.weights_SK)
        if share.raw is not None:
            batch = self.data.splits["train"].batch_of(share.raw, self.device)
            sums_SK, counts_SK = self._losses(batch, share.used_RM, self.members[0].slot.train.precision)
        # Every rank divides by the whole batch's count, so summed gradients are those of the whole batch's means.
        self.world.all_reduce_sum_(counts_SK)
        means_SK = sums_SK / counts_SK.clamp(min=1)
        loss_S = (self.weights_SK * means_SK).sum(1)
        if loss_S.requires_grad:
            loss_S.sum().backward()  # a slot's parameters get the gradient of its own loss
        self.world.all_reduce_sum_(self.optimizer.gather())
        self.optimizer.clip([m.slot.train.clip_norm for m in self.members])
        self.optimizer.step([m.lr(step) for m in self.members])
        return self.world.all_reduce_sum_(torch.cat([loss_S.detach()[:, None], means_SK.detach()], 1))

    def _losses(self, batch: Batch, used_RM: Tensor, precision: str) -> tuple[Tensor, Tensor]:
        """Sums of every slot's loss terms over the rows that count, and how many those are: [S, K] each."""
        with autocast(precision, self.device):
            output = self.method(batch, used_RM)
        pairs = zip(*(x.chunk(self.pieces) for x in (output.prediction, batch.target)), strict=True)
        tasks = [m.slot.task for m in self.members[: self.pieces]]
        values_R = torch.cat([task.loss(*pair) for task, pair in zip(tasks, pairs, strict=True)])
        terms = {"task": Term(values_R, torch.ones_like(values_R, dtype=torch.bool))} | output.losses
        sums, counts = [], []
        for name in self.terms:
            counted_SB = terms[name].counted_B.view(len(self.members), -1)
            values_SB = terms[name].values_B.float().view(counted_SB.shape)
            sums.append(torch.where(counted_SB, values_SB, 0.0).sum(1))
            counts.append(counted_SB.sum(1))
        return torch.stack(sums, 1), torch.stack(counts, 1).to(self.weights_SK.dtype)

    def _share_statistics(self) -> None:
        """Ranks saw different rows: their mean is what all evaluate with, and what is saved."""
        if self.world.size > 1:
            for values in self.statistics.values():
                if values.is_floating_point():
                    self.world.all_reduce_sum_(values).div_(self.world.size)


def _optimizer(method: Method, slots: Sequence[Slot]) -> PackedAdamW:
    return PackedAdamW(trained(method), [slot.train.optimizer for slot in slots], method.undecayed)


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def _check_pair(one: _Member, other: _Member) -> None:
    """Raises ValueError where two members cannot share a pack."""
    if one is other:
        return
    if reason := alone(one.slot.method):
        raise ValueError(reason)
    a, b = one.slot.train, other.slot.train
    same = (a.batch_size, a.rows_at_once, a.precision) == (b.batch_size, b.rows_at_once, b.precision)
    if not same or not np.array_equal(one.rows, other.rows):
        raise ValueError("slots of one pack have the same rows, batch sizes and precision")


def _ending(member: _Member, answer: Answer) -> Ending | None:
    """What a report's answer means; None where the slot goes on."""
    if isinstance(answer, UserError):
        return Ending("failed", answer)
    if member.over:
        return Ending("finished")
    return Ending("stopped") if answer else None
