"""GPU slot occupancy of a sweep (`packing.json`, written by the driver), and slot counts measured earlier (cache).

The controller's process imports this file and has to start fast: no torch here.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from mmsweep.errors import UserError
from mmsweep.record.files import read_record, write_atomically

FILE = "packing.json"


@dataclass(frozen=True)
class Capacity:
    """Number of slots that a host has for packs with one key.

    Args:
        pack: the `study.packs.pack_key` of the packs.
        on: the kind of host: device, ranks, and the value of `resources.slots`.
        slots: number of slots.
        reason: why there is one slot, or why no more were tried.
        most: upper limit of the measurement: the sweep could not use more.
    """

    pack: str
    on: str
    slots: int
    reason: str | None = None
    most: int = 64

    def holds(self, most: int) -> bool:
        """Whether the measurement also holds for a limit of `most`: its own limit is as high, or did not end it."""
        return 2 * self.slots <= self.most or most <= self.most


@dataclass(frozen=True)
class _Measurement:
    """The content of a file of `MeasuredCapacities`."""

    machine: dict[str, str]
    capacity: Capacity


class MeasuredCapacities:
    """Slot counts measured on a machine: one cache file for each kind of pack and host.

    The files are optional: a damaged one, or one of another machine, is ignored, and a failed write too.

    Args:
        cache: the cache folder.
        machine: what a count depends on besides pack and host.
    """

    def __init__(self, cache: Path, machine: Mapping[str, str]) -> None:
        self._folder, self._machine = cache / "slots", dict(machine)

    def _path(self, pack: str, on: str) -> Path:
        key = json.dumps([self._machine, pack, on], sort_keys=True)
        return self._folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"

    def get(self, pack: str, on: str, most: int) -> Capacity | None:
        """The cached capacity for a kind of pack on a kind of host; None if none covers a limit of `most` slots."""
        cached = None
        with contextlib.suppress(UserError):
            cached = read_record(self._path(pack, on), _Measurement)
        if cached is None or cached != _Measurement(self._machine, replace(cached.capacity, pack=pack, on=on)):
            return None
        return cached.capacity if cached.capacity.slots > 0 and cached.capacity.holds(most) else None

    def put(self, capacity: Capacity) -> None:
        with contextlib.suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            text = json.dumps(asdict(_Measurement(self._machine, capacity)), indent=1)
            write_atomically(self._path(capacity.pack, capacity.on), text)

    def forget(self, pack: str, on: str) -> None:
        with contextlib.suppress(OSError):
            self._path(pack, on).unlink()


@dataclass(frozen=True)
class PackEpoch:
    """One epoch of a pack.

    Args:
        host, pack: id of the host and key of the pack.
        kind: `trial` or `final`.
        ended: when it ended (seconds since 1970).
        seconds: duration of training and validation.
        width: number of slots that reported.
        slots: number of slots that the host has for this pack.
        tail: whether the queue was drained when it ended: the search had submitted all trials and none was pending.
    """

    host: str
    pack: str
    kind: str
    ended: float
    seconds: float
    width: int
    slots: int
    tail: bool


@dataclass
class Packing:
    """The measured capacities, and every epoch that a pack trained."""

    capacities: list[Capacity] = field(default_factory=list)
    epochs: list[PackEpoch] = field(default_factory=list)

    @classmethod
    def load(cls, folder: Path) -> Packing:
        """Read a sweep's `packing.json`; empty if there is none. Raises UserError if the file is damaged."""
        problem, hint = "not what mmsweep wrote", "It may be deleted: capacities are measured anew."
        return read_record(folder / FILE, cls, problem=problem, hint=hint) or cls()

    def text(self) -> str:
        """The JSON text of the file."""
        return json.dumps(asdict(self), indent=1)

    def width(self) -> tuple[float, float] | None:
        """Mean (width, slots) of the search's epochs before the queue drained, weighted by seconds; None if none."""
        return _mean([e for e in self.epochs if e.kind == "trial" and not e.tail])

    def to_json(self) -> dict[str, float] | None:
        """{width: mean trials per pack, slots: mean slots}, see `width`."""
        mean = self.width()
        return None if mean is None else {"width": mean[0], "slots": mean[1]}

    def shared(self) -> float:
        """Host seconds per trial second, at most 1: the trials of a pack share their host's time."""
        epochs = [e for e in self.epochs if e.kind == "trial"]
        trial_seconds = sum(e.width * e.seconds for e in epochs)
        return sum(e.seconds for e in epochs) / trial_seconds if trial_seconds else 1.0

    def sentence(self) -> str | None:
        """The report's sentence on packs; None if there is nothing to say."""
        if all(epoch.slots == 1 for epoch in self.epochs):
            reasons = dict.fromkeys(c.reason for c in self.capacities if c.slots == 1 and c.reason)
            return f"one slot a host: {'; '.join(reasons)}" if self.epochs and reasons else None
        mean = self.width()
        if mean is None:  # the queue was drained from the start
            widest = max(self.epochs, key=lambda e: e.width)
            return f"all trials were assigned at once, up to {widest.width} in {widest.slots} slots"
        return f"{mean[0]:.1f} of {mean[1]:g} slots were occupied on average while trials were pending"


def _mean(epochs: Sequence[PackEpoch]) -> tuple[float, float] | None:
    seconds = sum(e.seconds for e in epochs)
    if not seconds:
        return None
    width, slots = (sum(n * e.seconds for n, e in zip(ns, epochs, strict=True)) / seconds for ns in
                    ([e.width for e in epochs], [e.slots for e in epochs]))  # fmt: skip
    return width, round(slots, 1)
