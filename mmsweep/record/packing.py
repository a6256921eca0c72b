"""How full a sweep's packs were: `packing.json` in its folder, which the driver writes and everyone else reads; and how
many slots were measured on this machine before, in the cache.

Imported by the board, whose process is to start fast: no torch here.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from mmsweep.errors import UserError
from mmsweep.record.files import read_record, write_whole

FILE = "packing.json"


@dataclass(frozen=True)
class Capacity:
    """How many slots a host has for the packs of a key.

    Args:
        pack: their `study.packs.pack_key`.
        on: the kind of host: device, ranks, and what `resources.slots` asked for.
        slots: how many.
        reason: why it is one, or why no more were tried.
        most: no more could be of use where this was found.
    """

    pack: str
    on: str
    slots: int
    reason: str | None = None
    most: int = 64

    def holds(self, most: int) -> bool:
        """Whether it says enough for where up to `most` could be of use: it was not that use that ended the search."""
        return 2 * self.slots <= self.most or most <= self.most


@dataclass(frozen=True)
class _Measurement:
    """A file of `MeasuredCapacities`."""

    machine: dict[str, str]
    capacity: Capacity


class MeasuredCapacities:
    """Slot counts that were measured on a machine, one file in the cache for each kind of pack and host.

    Nothing rests on these files: one that is damaged, or of another machine, counts as none, and one that cannot be
    written is not.

    Args:
        cache: the cache folder.
        machine: what a count depends on beside pack and host.
    """

    def __init__(self, cache: Path, machine: Mapping[str, str]) -> None:
        self._folder, self._machine = cache / "slots", dict(machine)

    def _path(self, pack: str, on: str) -> Path:
        key = json.dumps([self._machine, pack, on], sort_keys=True)
        return self._folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"

    def get(self, pack: str, on: str, most: int) -> Capacity | None:
        """What is known for packs of a key on hosts of a kind, where up to `most` slots could be of use."""
        found = None
        with contextlib.suppress(UserError):
            found = read_record(self._path(pack, on), _Measurement)
        if found is None or found != _Measurement(self._machine, replace(found.capacity, pack=pack, on=on)):
            return None
        return found.capacity if found.capacity.slots > 0 and found.capacity.holds(most) else None

    def put(self, capacity: Capacity) -> None:
        with contextlib.suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            text = json.dumps(asdict(_Measurement(self._machine, capacity)), indent=1)
            write_whole(self._path(capacity.pack, capacity.on), text)

    def forget(self, pack: str, on: str) -> None:
        with contextlib.suppress(OSError):
            self._path(pack, on).unlink()


@dataclass(frozen=True)
class PackEpoch:
    """One epoch of a pack.

    Args:
        host, pack: who trained what.
        kind: `trial` or `final`.
        ended: when (seconds since 1970).
        seconds: training and validation.
        width: slots that reported.
        slots: how many the host has for this pack.
        tail: nothing was left to give when it ended: no posting of this pack waited, and the search had given out all.
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
    """Capacities found, and every epoch that a pack trained."""

    capacities: list[Capacity] = field(default_factory=list)
    epochs: list[PackEpoch] = field(default_factory=list)

    @classmethod
    def load(cls, folder: Path) -> Packing:
        """What a sweep's folder holds; empty where there is nothing. Raises UserError where the file is damaged."""
        problem, hint = "not what mmsweep wrote", "It may be deleted: capacities are measured anew."
        return read_record(folder / FILE, cls, problem=problem, hint=hint) or cls()

    def text(self) -> str:
        """The file's text."""
        return json.dumps(asdict(self), indent=1)

    def width(self) -> tuple[float, float] | None:
        """Mean (width, slots) of the search's epochs until the tail, weighted by their seconds; None without any."""
        return _mean([e for e in self.epochs if e.kind == "trial" and not e.tail])

    def to_json(self) -> dict[str, float] | None:
        """{width: mean trials a pack, slots: mean slots}, as `width`; None without any epoch before the tail."""
        until = self.width()
        return None if until is None else {"width": until[0], "slots": until[1]}

    def shared(self) -> float:
        """Of the seconds that trials' epochs took, the share that passed on hosts: those of a pack pass at once."""
        epochs = [e for e in self.epochs if e.kind == "trial"]
        own = sum(e.width * e.seconds for e in epochs)
        return sum(e.seconds for e in epochs) / own if own else 1.0

    def sentence(self) -> str | None:
        """What is said of packs; None where there is nothing to say."""
        if all(epoch.slots == 1 for epoch in self.epochs):
            reasons = dict.fromkeys(c.reason for c in self.capacities if c.slots == 1 and c.reason)
            return f"one slot a host: {'; '.join(reasons)}" if self.epochs and reasons else None
        until = self.width()
        if until is None:  # there was nothing to wait for
            widest = max(self.epochs, key=lambda e: e.width)
            return f"all trials were given out at once, up to {widest.width} in {widest.slots} slots"
        return f"{until[0]:.1f} of {until[1]:g} slots filled while there were trials to fill them with"


def _mean(epochs: Sequence[PackEpoch]) -> tuple[float, float] | None:
    seconds = sum(e.seconds for e in epochs)
    if not seconds:
        return None
    width, slots = (sum(n * e.seconds for n, e in zip(ns, epochs, strict=True)) / seconds for ns in
                    ([e.width for e in epochs], [e.slots for e in epochs]))  # fmt: skip
    return width, round(slots, 1)
