"""The training loop of a pack of slots in plain PyTorch; callbacks connect it to Ray or a notebook.

A pack trains S trials in one pass (models/packing.py); a single trial is a pack of one. All random generators are
seeded from a trial's (train.seed, purpose, epoch), and no slot reads another slot's rows. A trial's result therefore
depends neither on other trials nor on interruptions: resuming after an epoch needs only the weights, the optimiser's
state and the epoch's number.
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
from mmsweep.models.packing import merge, select, single_slot_reason, values_of
from mmsweep.record.trial import Report
from mmsweep.training.batches import Share, depth, gather_share, made_ahead
from mmsweep.training.checkpoint import learned_formats, running_statistics
from mmsweep.training.evaluation import autocast, constant_metrics, predict_slots, scenario_metrics
from mmsweep.training.optimization import PackedAdamW
from mmsweep.training.slot import Member, Slot, make_optimizer, memory_of
from mmsweep.training.world import World

log = logging.getLogger("mmsweep.training")

Answer = bool | UserError
"""The answer to a report: whether the slot stops, or the error that it failed with."""


class Diverged(Exception):
    """The mean loss of an epoch is not a finite number."""


@dataclass(frozen=True)
class Ending:
    """Why a slot has left its pack.

    Args:
        how: `finished` all epochs, `stopped` by `report`, `diverged`, or `failed` with an error of its own.
        problem: the error, if it diverged or failed.
    """

    how: Literal["finished", "stopped", "diverged", "failed"]
    problem: Exception | None = None


@dataclass(frozen=True)
class EvaluationPlan:
    """The scenarios to evaluate on validation after every epoch, and their seed."""

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
    """Train every slot to its end or until `report` stops it, starting from its last checkpoint.

    Callbacks run on every rank, and all ranks must get the same answers. A damaged checkpoint is skipped for the one
    before it, and the epochs after that one are trained again.

    Args:
        slots: slots of one pack: their studies differ only in keys that a pack allows (`study.packs.pack_key`).
        report: called after each epoch with all slots' reports, once their checkpoints and report lines are on disk;
            returns for each whether the slot stops, or the error that ends it.
        refill: called after every epoch; returns slots that join the pack.
        ended: called when a slot has left, also if its checkpoint could not be loaded; the others continue.

    Raises:
        ValueError: the slots cannot share a pack.
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
    """Make all ranks continue from the same intact checkpoint."""
    for slot in slots if world.first else ():
        with contextlib.suppress(UserError):  # `Member` raises on every rank if nothing can be read
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
    full_batches = max(1, len(pack.members[0].rows) // slots[0].train.batch_size)
    try:
        with made_ahead(lambda step: pack._share(step % full_batches), sys.maxsize, depth(device)) as shares:
            for step, share in enumerate(shares):
                pack._step(step % full_batches, share)
                yield
    finally:
        pack.method.noise.off()
        pack.method.phases_S = ()


class _Pack:
    """The slots that train together, in the order of their rows in a batch."""

    method: Method
    optimizer: PackedAdamW

    def __init__(self, data: PreparedData, plan: EvaluationPlan, device: torch.device, world: World) -> None:
        self.data, self.plan, self.device, self.world = data, plan, device, world
        self.members: list[Member] = []

    def join(self, joining: Sequence[Member]) -> None:
        """Add members between two epochs."""
        for member in (*self.members, *joining):
            _check_pair((self.members or joining)[0], member)
        packs = [self.method] if self.members else []
        merged = merge([*packs, *(m.slot.method for m in joining)])
        states = [(self.optimizer, s) for s in range(len(self.members))] + [(m.hand_over(), 0) for m in joining]
        self._set([*self.members, *joining], merged, states)

    def drop(self, leaving: Sequence[Member]) -> None:
        """Remove members and copy their trained values back into their own methods."""
        for slot, member in enumerate(self.members):
            if member in leaving and member.slot.method is not self.method:
                values = values_of(member.slot.method)
                for name, value in values_of(self.method, slot).items():
                    values[name].copy_(value)
        staying = [s for s, member in enumerate(self.members) if member not in leaving]
        members = [self.members[s] for s in staying]
        if members and leaving:
            self._set(members, select(self.method, staying), [(self.optimizer, s) for s in staying])
        self.members = members

    def _set(self, members: list[Member], method: Method, states: Sequence[tuple[PackedAdamW, int]]) -> None:
        self.members, self.method = members, method
        self.statistics = running_statistics(method)
        if members[0].slot.method is method:  # a pack of one already has its optimiser
            self.optimizer = states[0][0]
        else:
            self.optimizer = make_optimizer(method, [m.slot.train for m in members])
            for slot, (optimizer, source) in enumerate(states):
                self.optimizer.take(slot, optimizer, source)
        # On a CPU, exp and log round differently at the end of a vector, so each slot's loss is a separate call. Slots
        # initialised from runs on other data may scale their targets differently.
        alike = all(_same(m.slot.task.state(), members[0].slot.task.state()) for m in members)
        self.pieces = 1 if alike and self.device.type != "cpu" else len(members)
        weights = [{"task": 1.0} | m.slot.method.weights for m in members]
        self.terms = list(weights[0])
        self.weights_SK = torch.tensor([[w[name] for name in self.terms] for w in weights], device=self.device)

    def epoch(self, report: Callable[[Sequence[tuple[Slot, Report]]], Sequence[Answer]]) -> list[tuple[Member, Ending]]:
        """Train and evaluate an epoch, write checkpoints and reports; returns the members that leave, and why."""
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
        slot_predictions = predict_slots(
            self.method,
            [m.slot.task for m in self.members],
            self.data.splits["val"],
            first.train.rows_at_once,
            self.device,
            self.world,
            first.train.precision,
        )
        records = []
        for slot, (member, predictions) in enumerate(zip(self.members, slot_predictions, strict=True)):
            about = (member.slot.task, self.plan.scenarios, self.plan.seed)
            scores = scenario_metrics(predictions, *about)
            if not member.done:  # the same in every epoch, so only the first report has it
                scores |= constant_metrics(predictions, *about, self.data.splits["train"].targets)
            records.append(member.record(losses[member], scores, time.monotonic() - started))
            if self.world.first:
                weights = values_of(self.method, slot) | self.statistics | member.slot.task.state()
                weights |= learned_formats(self.method)
                member.write(records[-1], weights, self.optimizer.state(slot) | memory_of(self.method, slot))
        self.world.barrier()
        answers = report([(m.slot, r) for m, r in zip(self.members, records, strict=True)])
        ended = [(m, e) for m, answer in zip(self.members, answers, strict=True) if (e := _ending(m, answer))]
        self.drop([member for member, _ in ended])
        return leaving + ended

    def _begin(self) -> None:
        """Begin an epoch: each slot draws its order of rows and enters the phase of this epoch."""
        for slot, member in enumerate(self.members):
            member.begin(self.device)
            if member.phase[1] == member.done > 0:  # each phase starts with a new optimiser
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
        """This rank's share of a step's batch. All random draws on the host happen here, in the order of the steps."""
        members = self.members
        augmentation, generators = members[0].slot.augmentation, [m.augmentation for m in members]
        drawn = [member.draw(step) for member in members]
        return gather_share(drawn, self.data.splits["train"], augmentation, generators, self.world, self.device)

    def _step(self, step: int, share: Share) -> Tensor:
        """Train every slot on a batch; returns its loss and loss terms [S, 1 + K], means over the batch's updates.

        The host never waits for the device here.
        """
        noise, method = self.method.noise, self.method
        noise.generators, noise.total, noise.rows = [m.dropout for m in self.members], share.size, share.rows
        noise.missing_M = torch.ones(share.used_RM.shape[1], dtype=torch.bool)  # else lengths depend on other slots
        batch = None if share.raw is None else self.data.splits["train"].batch_of(share.raw, self.device)
        outputs = None if batch is None else method.steps(batch, share.used_RM)
        shown = [self._update(step, number, batch, outputs) for number in range(method.updates)]
        return shown[0] if len(shown) == 1 else torch.stack(shown).mean(0)

    def _update(self, step: int, number: int, batch: Batch | None, outputs: Iterator[Output] | None) -> Tensor:
        """One optimiser update; returns the loss and its terms [S, 1 + K].

        Args:
            number: index of the update within the batch.
            batch, outputs: this rank's rows and the method's outputs for them; None if it has no rows.
        """
        begin_step(self.members[0].slot.train.compile)
        sums_SK = torch.zeros_like(self.weights_SK)
        counts_SK = torch.zeros_like(self.weights_SK)
        if batch is not None and outputs is not None:
            with autocast(self.members[0].slot.train.precision, self.device):
                output = next(outputs)
            sums_SK, counts_SK = self._losses(batch, output)
        # Every rank divides by the count over all ranks, so the summed gradients are those of the mean over the batch.
        self.world.all_reduce_sum_(counts_SK)
        means_SK = sums_SK / counts_SK.clamp(min=1)
        loss_S = (self.weights_SK * means_SK).sum(1)
        if loss_S.requires_grad:
            loss_S.sum().backward()  # a slot's parameters get the gradient of its own loss
        step_trains = self.method.step_trains(number)
        self.optimizer.move([_both(member.phase[0].trains, step_trains) for member in self.members])
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
        """Sums of every slot's loss terms over the counted rows, and the numbers of these rows: [S, K] each."""
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
        """Average batch norm statistics over the ranks, which saw different rows, for evaluation and checkpoints."""
        if self.world.size > 1:
            for values in self.statistics.values():
                if values.is_floating_point():
                    self.world.all_reduce_sum_(values).div_(self.world.size)


def _both(one: Callable[[str], bool] | None, other: Callable[[str], bool] | None) -> Callable[[str], bool] | None:
    """A filter for names that pass both filters; None passes all."""
    if one is None or other is None:
        return one or other
    return lambda name: one(name) and other(name)


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def _check_pair(one: Member, other: Member) -> None:
    """Raises ValueError where two members cannot share a pack."""
    if one is other:
        return
    if reason := single_slot_reason(one.slot.method):
        raise ValueError(reason)
    a, b = one.slot.train, other.slot.train
    same = (a.batch_size, a.rows_at_once, a.precision) == (b.batch_size, b.rows_at_once, b.precision)
    if not same or not np.array_equal(one.rows, other.rows):
        raise ValueError("slots of one pack have the same rows, batch sizes and precision")


def _ending(member: Member, answer: Answer) -> Ending | None:
    """Why a slot ends after a report's answer; None if it continues."""
    if isinstance(answer, UserError):
        return Ending("failed", answer)
    if member.over:
        return Ending("finished")
    return Ending("stopped") if answer else None
