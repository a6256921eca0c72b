"""What a step reads: drawn and gathered on the host, by one thread that is a batch ahead where there is a device."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from mmsweep.availability import BoolArray
from mmsweep.data.augmentation import Augmentation
from mmsweep.data.prepared_split import PreparedSplit
from mmsweep.data.raw_batch import RawBatch
from mmsweep.training.world import World
from mmsweep.transfer import pinned

Item = TypeVar("Item")
Drawn = tuple[np.ndarray, BoolArray, Tensor]
"""A slot's batch: (rows of the split [B], what may be read [B, M], what is used of it [B, M])."""

WAIT_S = 0.1
"""How often a thread with a full queue looks whether it is still wanted."""


@dataclass(frozen=True)
class Share:
    """A rank's share of a step's batch, on the host.

    Args:
        raw: its rows, ordered by slot; None: it has none.
        used_RM: what is used of them.
        size: B, rows of a slot's batch over all ranks.
        rows: this rank's of them.
    """

    raw: RawBatch | None
    used_RM: Tensor
    size: int
    rows: slice


def gather_share(
    drawn: Sequence[Drawn],
    split: PreparedSplit,
    augmentation: Augmentation | None,
    generators: Sequence[torch.Generator],
    world: World,
    device: torch.device,
) -> Share:
    """What this rank reads of the batches that the slots have drawn, ready to be sent to a device. Asks no device."""
    S, B = len(drawn), len(drawn[0][0])
    share = world.rows(B)
    used_RM = torch.cat([used_BM[share] for _, _, used_BM in drawn])
    if share.stop == share.start:
        return Share(None, used_RM, B, share)
    raw = split.raw(
        np.concatenate([index_B for index_B, _, _ in drawn]),
        augmentation,
        generators,
        np.concatenate([present_BM for _, present_BM, _ in drawn]),
        rows=(np.arange(S)[:, None] * B + np.arange(B)[share]).reshape(-1),
        one_length=True,
    )
    if device.type != "cuda":
        return Share(raw, used_RM, B, share)
    with torch.cuda.device(device):  # a thread's own setting; pinning looks at it
        return Share(raw.pinned(device), pinned(used_RM, device), B, share)


def depth(device: torch.device) -> int:
    """How many batches are made ahead. None on a CPU, where who makes them takes the time from who uses them."""
    return 2 if device.type == "cuda" else 0


@contextmanager
def made_ahead(make: Callable[[int], Item], count: int, ahead: int) -> Iterator[Iterator[Item]]:
    """make(0), make(1), … make(count - 1), in this order, each called once, at most `ahead` of them before its turn.

    With `ahead` they are made by one thread, which has ended when the context is left, however it is left; what `make`
    raises there is raised here, in its turn. Without, they are made when they are asked for.
    """
    if ahead < 1:
        yield map(make, range(count))
        return
    ready: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(ahead)
    over = threading.Event()

    def put(item: Item | None, problem: BaseException | None = None) -> None:
        while not over.is_set():
            try:
                ready.put((item, problem), timeout=WAIT_S)
                return
            except queue.Full:
                continue

    def work() -> None:
        try:
            for number in range(count):
                if over.is_set():
                    return
                put(make(number))
        except BaseException as problem:  # the step's to raise
            put(None, problem)

    def taken() -> Iterator[Item]:
        for _ in range(count):
            item, problem = ready.get()
            if problem is not None:
                raise problem
            yield item  # type: ignore[misc]

    thread = threading.Thread(target=work, name="mmsweep-batches", daemon=True)
    thread.start()
    try:
        yield taken()
    finally:
        over.set()
        thread.join()
