"""Preparing data with Ray: shards are decoded by tasks, on this machine's cores or on those of a cluster."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import ray
from ray.exceptions import RayTaskError

from mmsweep.data.shards import Decoded, Shard, decode, in_threads
from mmsweep.errors import UserError
from mmsweep.sweep.cluster import connect, own_ray

LONG_SECONDS = 15.0
"""Work that is expected to take longer is given to Ray, whose workers take seconds to start."""


def with_ray(shards: Sequence[Shard]) -> Iterator[Decoded]:
    """Decode shards; a `Runner`. It begins in this process, and Ray gets the rest where that is long.

    On a cluster every node must see the raw data and the cache under the same paths.

    Raises:
        UserError: the cluster that RAY_ADDRESS names cannot be reached; a node does not see the cache.
    """
    begun = time.monotonic()
    for done, decoded in enumerate(in_threads(shards), start=1):
        yield decoded
        if (time.monotonic() - begun) / done * (len(shards) - done) > LONG_SECONDS:
            break
    else:
        return
    with contextlib.ExitStack() as connection:
        try:
            connection.enter_context(connect())
        except UserError:
            if not own_ray():
                raise
            yield from in_threads(shards[done:])  # a busy machine may fail to start Ray in time
        else:
            yield from _in_tasks(iter(shards[done:]))


def _in_tasks(shards: Iterator[Shard]) -> Iterator[Decoded]:
    task: Any = ray.remote(num_cpus=1)(decode)
    most = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))  # a shard waits for each that is decoded
    running: list[Any] = []
    try:
        while True:
            running += [task.remote(shard) for shard in islice(shards, most - len(running))]
            if not running:
                return
            (first, *_), running = ray.wait(running)
            yield ray.get(first)
    except RayTaskError as error:  # says where it was raised; its cause is for people
        raise error.cause from None
    finally:
        for reference in running:
            ray.cancel(reference)
