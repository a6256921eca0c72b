"""Training steps of the engine, one at a time, for benchmarks that look into an epoch.

The only place in benchmarks/ that knows the engine's insides; nothing is written to disk, nothing is evaluated.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import numpy as np
import torch

from mmsweep.assembly.host import Warm
from mmsweep.data.dataset import Batch
from mmsweep.record.trial import TrialFolder
from mmsweep.study import Study
from mmsweep.training.engine import EvaluationPlan, _Pack
from mmsweep.training.slot import Member
from mmsweep.training.world import World


def slot_studies(study: Study, slots: int) -> list[Study]:
    """Trials of one pack that differ as a sweep's do: in the learning rate, λ, the masking and the seed."""
    changes = [
        {
            "train.optimizer.lr": study.train.optimizer.lr * (1 + s / 10),
            "method.align_weight": study.value("method.align_weight") * (1 + s / 10),
            "method.masking.probability": 0.2 + 0.6 * s / max(slots - 1, 1),
            "train.seed": s,
        }
        for s in range(slots)
    ]
    return [study.with_values(values) for values in changes]


class PackSteps:
    """A pack of S slots, ready to be moved step by step, over the training rows again and again."""

    def __init__(self, warm: Warm, studies: Sequence[Study]) -> None:
        data, _ = warm.ready(studies[0])
        nowhere = Path("/nonexistent")
        members = [Member(warm.slot(s, TrialFolder(nowhere / str(i))), data) for i, s in enumerate(studies)]
        self.device, self.slots = warm.device, len(studies)
        self._pack = _Pack(data, EvaluationPlan((), 0), warm.device, World())
        self._pack.join(members)
        self._train = data.splits["train"]
        self._whole = max(len(members[0].rows) // studies[0].train.batch_size, 1)  # steps of full batches
        self._at = 0
        self._begin()

    @property
    def rows(self) -> int:
        """Of a step, over all slots."""
        return self.slots * self._pack.members[0].slot.train.batch_size

    def step(self) -> torch.Tensor:
        """Move every slot once: what its loss and the loss's terms were [S, 1 + K]."""
        self._next()
        at = self._at - 1
        return self._pack._step(at, self._pack._share(at))

    def next_rows(self) -> np.ndarray:
        """Which training rows the next step of a pack of one will see [B]."""
        member, at = self._pack.members[0], 0 if self._at == self._whole else self._at
        size = member.slot.train.batch_size
        return member.order[at * size : (at + 1) * size]

    def batch(self) -> Batch:
        """What a step does before the network: draw rows and masks, read them, bring them to the device."""
        self._next()
        drawn = [member.draw(self._at - 1) for member in self._pack.members]
        return self._train.batch(
            np.concatenate([index_B for index_B, _, _ in drawn]),
            self.device,
            augmentation=self._pack.members[0].slot.augmentation,
            generator=[member.augmentation for member in self._pack.members],
            present=np.concatenate([present_BM for _, present_BM, _ in drawn]),
            one_length=True,
        )

    def _next(self) -> None:
        if self._at == self._whole:
            self._at = 0
            self._begin()
        self._at += 1

    def _begin(self) -> None:
        for member in self._pack.members:
            member.begin(self.device)
        self._pack.method.train()


def seconds_of(work: Callable[[], object], device: torch.device, at_least: float, blocks: int) -> list[float]:
    """Seconds of one call, measured in blocks of calls that take `at_least` seconds each; the first call is not timed.

    On CUDA the device is waited for at a block's ends, never within.
    """
    for _ in range(2):  # the first may load and compile what later ones have
        started = time.perf_counter()
        work()
        _wait(device)
        once = time.perf_counter() - started
        if once > 10 * at_least:
            break  # long enough to be its own estimate
    count, found = max(1, round(at_least / max(once, 1e-6))), []
    for _ in range(blocks):
        started = time.perf_counter()
        for _ in range(count):
            work()
        _wait(device)
        found.append((time.perf_counter() - started) / count)
    return found


def product_rate(device: torch.device, precision: str, sides: Sequence[int] = ()) -> float:
    """FLOP/s of the best square matrix product: what the device does at most when it does nothing else."""
    dtype = torch.bfloat16 if precision == "bf16" and device.type == "cuda" else torch.float32
    best = 0.0
    for side in sides or ((4096, 8192) if device.type == "cuda" else (1024, 2048)):
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        out = torch.empty(side, side, device=device, dtype=dtype)
        times = seconds_of(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), device, 0.2, 5)
        best = max(best, 2 * side**3 / median(times))
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
