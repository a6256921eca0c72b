"""The training loop: epochs and steps of a pack of slots, plain PyTorch; what Ray or a notebook needs comes in.

A pack trains S trials in one pass (models/packing.py); a single trial is a pack of one. Everything random is drawn from
generators that a trial's (train.seed, purpose, epoch) alone decide, and nothing that a slot computes looks at another's
rows, so a trial's result depends neither on what trains beside it or ran before it, nor on where it was interrupted:
resuming at an epoch's end needs the weights, the optimiser's state and the epoch's number.
"""

from __future__ import annotations

import contextlib
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

from mmsweep.availability import Scenario
from mmsweep.data.dataset import Batch
from mmsweep.data.prepared import PreparedData
from mmsweep.errors import UserError
from mmsweep.methods.method import Method, Output, Term, Update
from mmsweep.models.compilation import begin_step
from mmsweep.models.packing import alone, merge, select, values_of
from mmsweep.record.trial import Report
from mmsweep.training.batches import Share, depth, gather_share, made_ahead
from mmsweep.training.checkpoint import running_statistics
from mmsweep.training.evaluation import autocast, constant_metrics, predict_slots, scenario_metrics
from mmsweep.training.optimization import PackedAdamW
from mmsweep.training.slot import Member, Slot, make_optimizer, memory_of
from mmsweep.training.world import World

log = logging.getLogger("mmsweep.training")

Answer = bool | UserError
"""To a report: True where the slot stops, an error where it has failed."""


class Diverged(Exception):
    """The mean loss of an epoch is not a finite number."""


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
        slots: of one pack: their studies may differ in what a pack allows (`study.packs.pack_key`) and in nothing else.
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
                member = Member(slot, data)
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


def probe_steps(slots: Sequence[Slot], data: PreparedData, device: torch.device, world: World) -> Iterator[None]:
    """Train slots for as many steps as are asked for, and write nothing: the steps of a throughput probe.

    Raises:
        UserError: a slot cannot be trained.
    """
    pack = _Pack(data, EvaluationPlan((), 0), device, world)
    pack.join([Member(slot, data) for slot in slots])
    for member in pack.members:
        member.done = member.phases[-1][1]  # the last phase trains the most
    pack._begin()
    whole = max(1, len(pack.members[0].rows) // slots[0].train.batch_size)
    try:
        with made_ahead(lambda step: pack._share(step % whole), sys.maxsize, depth(device)) as shares:
            for step, share in enumerate(shares):
                pack._step(step % whole, share)
                yield
    finally:
        pack.method.noise.off()
        pack.method.phases_S = ()


class _Pack:
    """The slots that train together, in the order of their rows."""

    method: Method
    optimizer: PackedAdamW

    def __init__(self, data: PreparedData, plan: EvaluationPlan, device: torch.device, world: World) -> None:
        self.data, self.plan, self.device, self.world = data, plan, device, world
        self.members: list[Member] = []

    def join(self, joining: Sequence[Member]) -> None:
        """Take members in, at an epoch's end."""
        for member in (*self.members, *joining):
            _check_pair((self.members or joining)[0], member)
        packs = [self.method] if self.members else []
        whole = merge([*packs, *(m.slot.method for m in joining)])
        states = [(self.optimizer, s) for s in range(len(self.members))] + [(m.hand_over(), 0) for m in joining]
        self._set([*self.members, *joining], whole, states)

    def drop(self, leaving: Sequence[Member]) -> None:
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

    def _set(self, members: list[Member], method: Method, states: Sequence[tuple[PackedAdamW, int]]) -> None:
        self.members, self.method = members, method
        self.statistics = running_statistics(method)
        if members[0].slot.method is method:  # a pack of one, whose tensors its own optimiser holds already
            self.optimizer = states[0][0]
        else:
            self.optimizer = make_optimizer(method, [m.slot.train for m in members])
            for slot, (optimizer, theirs) in enumerate(states):
                self.optimizer.take(slot, optimizer, theirs)
        # On a CPU exp and log round otherwise at a vector's end than in its middle: there each slot's loss is one call.
        # Slots that started from runs on other data may scale their targets differently.
        alike = all(_same(m.slot.task.state(), members[0].slot.task.state()) for m in members)
        self.pieces = 1 if alike and self.device.type != "cpu" else len(members)
        own = [{"task": 1.0} | m.slot.method.weights for m in members]
        self.terms = list(own[0])
        self.weights_SK = torch.tensor([[w[name] for name in self.terms] for w in own], device=self.device)

    def epoch(self, report: Callable[[Sequence[tuple[Slot, Report]]], Sequence[Answer]]) -> list[tuple[Member, Ending]]:
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
                member.write(records[-1], weights, self.optimizer.state(slot) | memory_of(self.method, slot))
        self.world.barrier()
        answers = report([(m.slot, r) for m, r in zip(self.members, records, strict=True)])
        gone = [(m, e) for m, answer in zip(self.members, answers, strict=True) if (e := _ending(m, answer))]
        self.drop([member for member, _ in gone])
        return leaving + gone

    def _begin(self) -> None:
        """Begin an epoch: each slot draws its order and is in the phase that its epoch's number says."""
        for slot, member in enumerate(self.members):
            member.begin(self.device)
            if member.phase[1] == member.done > 0:  # a phase is a training of its own
                self.optimizer.restart(slot)
        self.method.phases_S = [member.phase[0] for member in self.members]
        self.method.train()

    def _train_epoch(self) -> list[dict[str, float]]:
        self._begin()
        steps = self.members[0].steps_per_epoch
        sums_SK: Tensor | None = None
        with made_ahead(self._share, steps, depth(self.device)) as shares:
            for step, share in enumerate(shares):
                shown_SK = self._step(step, share)
                sums_SK = shown_SK if sums_SK is None else sums_SK + shown_SK
        self.method.noise.off()
        self.method.phases_S = ()
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
        """Move every slot by a batch; what its loss and its terms were [S, 1 + K], the mean over the batch's updates.

        The host waits for the device nowhere.
        """
        noise, method = self.method.noise, self.method
        noise.generators, noise.total, noise.rows = [m.dropout for m in self.members], share.size, share.rows
        noise.missing_M = torch.ones(share.used_RM.shape[1], dtype=torch.bool)  # or lengths would be neighbours'
        batch = None if share.raw is None else self.data.splits["train"].batch_of(share.raw, self.device)
        outputs = None if batch is None else method.steps(batch, share.used_RM)
        shown = [self._update(step, number, batch, outputs) for number in range(method.updates)]
        return shown[0] if len(shown) == 1 else torch.stack(shown).mean(0)

    def _update(self, step: int, number: int, batch: Batch | None, outputs: Iterator[Output] | None) -> Tensor:
        """One update: what the loss and its terms were [S, 1 + K].

        Args:
            number: of the update among those of the batch.
            batch, outputs: this rank's rows and what the method makes of them; None where it has no rows.
        """
        begin_step(self.members[0].slot.train.compile)
        sums_SK = torch.zeros_like(self.weights_SK)
        counts_SK = torch.zeros_like(self.weights_SK)
        if batch is not None and outputs is not None:
            with autocast(self.members[0].slot.train.precision, self.device):
                output = next(outputs)
            sums_SK, counts_SK = self._losses(batch, output)
        # Every rank divides by the whole batch's count, so summed gradients are those of the whole batch's means.
        self.world.all_reduce_sum_(counts_SK)
        means_SK = sums_SK / counts_SK.clamp(min=1)
        loss_S = (self.weights_SK * means_SK).sum(1)
        if loss_S.requires_grad:
            loss_S.sum().backward()  # a slot's parameters get the gradient of its own loss
        here = self.method.step_trains(number)
        self.optimizer.move([_both(member.phase[0].trains, here) for member in self.members])
        self.world.all_reduce_sum_(self.optimizer.gather())
        updates = [
            Update(self.optimizer.gradients[slot], member.done, member.modulation)
            for slot, member in enumerate(self.members)
        ]
        self.method.after_backward(updates, self.world.all_reduce_sum_)
        self.optimizer.clip([m.slot.train.clip_norm for m in self.members])
        self.optimizer.step([m.lr(step) for m in self.members])
        return self.world.all_reduce_sum_(torch.cat([loss_S.detach()[:, None], means_SK.detach()], 1))

    def _losses(self, batch: Batch, output: Output) -> tuple[Tensor, Tensor]:
        """Sums of every slot's loss terms over the rows that count, and how many those are: [S, K] each."""
        pairs = zip(*(x.chunk(self.pieces) for x in (output.prediction, batch.target)), strict=True)
        tasks = [m.slot.task for m in self.members[: self.pieces]]
        values_R = torch.cat([task.loss(*pair) for task, pair in zip(tasks, pairs, strict=True)])
        counted_R = torch.ones_like(values_R, dtype=torch.bool) if output.counted_B is None else output.counted_B
        terms = {"task": Term(values_R, counted_R)} | output.losses
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


def _both(one: Callable[[str], bool] | None, other: Callable[[str], bool] | None) -> Callable[[str], bool] | None:
    """The names that both choose; None chooses all."""
    if one is None or other is None:
        return one or other
    return lambda name: one(name) and other(name)


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def _check_pair(one: Member, other: Member) -> None:
    """Raises ValueError where two members cannot share a pack."""
    if one is other:
        return
    if reason := alone(one.slot.method):
        raise ValueError(reason)
    a, b = one.slot.train, other.slot.train
    same = (a.batch_size, a.rows_at_once, a.precision) == (b.batch_size, b.rows_at_once, b.precision)
    if not same or not np.array_equal(one.rows, other.rows):
        raise ValueError("slots of one pack have the same rows, batch sizes and precision")


def _ending(member: Member, answer: Answer) -> Ending | None:
    """What a report's answer means; None where the slot goes on."""
    if isinstance(answer, UserError):
        return Ending("failed", answer)
    if member.over:
        return Ending("finished")
    return Ending("stopped") if answer else None
