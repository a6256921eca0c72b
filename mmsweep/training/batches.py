"""Loads training batches on the CPU; for a GPU, a thread prefetches them."""

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
"""A slot's batch: (rows of the split [B], modalities present [B, M], modalities used [B, M])."""

WAIT_S = 0.1
"""How often a thread with a full queue checks whether it should stop."""


@dataclass(frozen=True)
class Share:
    """A rank's share of a step's batch, on the host.

    Args:
        raw: the rank's rows, ordered by slot; None if it has none.
        used_RM: modalities used in each row.
        size: B, rows of a slot's batch over all ranks.
        rows: the rank's slice of those rows.
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
    """Load this rank's share of the batches drawn by the slots, in pinned memory for a GPU. Does not wait for it."""
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
    with torch.cuda.device(device):  # the current device is per thread, and pinning depends on it
        return Share(raw.pinned(device), pinned(used_RM, device), B, share)


def depth(device: torch.device) -> int:
    """Number of batches to prefetch; 0 on a CPU, where loading would compete with training."""
    return 2 if device.type == "cuda" else 0


@contextmanager
def made_ahead(make: Callable[[int], Item], count: int, ahead: int) -> Iterator[Iterator[Item]]:
    """Iterate over make(0), make(1), … make(count - 1), prefetching at most `ahead` of them.

    A positive `ahead` starts one thread, which ends with the context. Errors of `make` are raised to the consumer at
    the same position. With 0, items are made when the consumer asks for them.
    """
    if ahead < 1:
        yield map(make, range(count))
        return
    ready: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(ahead)
    stop = threading.Event()

    def put(item: Item | None, problem: BaseException | None = None) -> None:
        while not stop.is_set():
            try:
                ready.put((item, problem), timeout=WAIT_S)
                return
            except queue.Full:
                continue

    def work() -> None:
        try:
            for number in range(count):
                if stop.is_set():
                    return
                put(make(number))
        except BaseException as problem:  # raised by the consumer
            put(None, problem)

    def consume() -> Iterator[Item]:
        for _ in range(count):
            item, problem = ready.get()
            if problem is not None:
                raise problem
            yield item  # type: ignore[misc]

    thread = threading.Thread(target=work, name="mmsweep-batches", daemon=True)
    thread.start()
    try:
        yield consume()
    finally:
        stop.set()
        thread.join()
