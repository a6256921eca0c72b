"""How full a sweep's packs were: `packing.json` in its folder, which the driver writes and everyone else reads.

Imported by the board, whose process is to start fast: no torch here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mmsweep.record.files import read_record

FILE = "packing.json"


@dataclass(frozen=True)
class Capacity:
    """How many slots a host has for the packs of a key.

    Args:
        pack: their `jobs.pack_key`.
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
