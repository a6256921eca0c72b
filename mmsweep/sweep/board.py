"""The board between trials and hosts: which trials wait, which host trains which, what was reported, who shall stop.

One 0-CPU actor on the driver's node, which lives as long as the driver. It holds nothing that the trials' folders
do not hold too: if it dies, a resumed sweep builds a new one. Every call may be repeated (its caller may have been
killed before the answer came).

    driver   submit ──►┌───────┐◄── register, next_job, more, report, over    rank 0 of a host (worker.py)
    driver   stop ────►│ board │
    trial    follow ──►└───────┘◄── judged                                    light Tune trial (trial.py)

A host trains a pack: a first trial that it takes (`next_job`), and as many of the same pack as it has slots for
(`more`). A report of an epoch at which Tune's scheduler may stop the trial waits on the board until Tune has judged it,
so that a stopped trial trains no epoch more than Tune allowed: what a trial computed never depends on how fast the
driver was.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from mmsweep.record.packing import Capacity, PackEpoch, Packing

# A trial that needs another frozen backbone goes first after it was passed over so often: nobody starves.
MAX_PASSED_OVER = 4
# A trial whose host dies under it so often without a new report is failed, instead of sinking the sweep.
MAX_CRASHES = 3
MAX_SHARED_CRASHES = 2  # after so many it is trained without neighbours, which may have been the ones to blame
MAX_FRUITLESS_STARTS = 6  # starts of one host in a row without one report: the sweep gives up
# A host waits so long for Tune's word; longer, and the other ranks would give up (gloo: 1800 s).
JUDGEMENT_SECONDS = 1500.0


class StaleHost(Exception):
    """A worker group that was replaced meanwhile spoke: it must end."""


@dataclass(frozen=True)
class Posting:
    """A trial or final run as the board knows it.

    Args:
        id: "0003", or "final/best/seed-101".
        kind: a trial of the search, or a final run.
        folder: the TrialFolder's absolute path.
        study: the resolved study.
        key: postings with equal keys share a warm host as it is.
        pack: postings with equal packs may train in one pass.
        company: how many of one pack there may be in all, itself included: no host needs more slots.
        epochs: how many epochs it has; the last one's report waits for nobody.
        judged: epochs at which a scheduler may stop it, in order; a report waits for the judgement of the last of these
            that it has reached.
    """

    id: str
    kind: Literal["trial", "final"]
    folder: str
    study: dict[str, Any]
    key: str
    pack: str
    company: int
    epochs: int
    judged: tuple[int, ...]


@dataclass
class _Entry:
    posting: Posting
    state: Literal["waiting", "running", "over"] = "waiting"
    reports: list[dict[str, Any]] = field(default_factory=list)
    judged_epoch: int = 0
    stop: bool = False
    error: str | None = None
    passed_over: int = 0
    crashes: int = 0
    suspected: bool = False
    timeline: dict[str, float] = field(default_factory=dict)

    @property
    def last_epoch(self) -> int:
        return self.reports[-1]["epoch"] if self.reports else 0

    @property
    def alone(self) -> bool:
        """Whether it must not have neighbours: it may be what ended their host."""
        return self.suspected or self.crashes >= MAX_SHARED_CRASHES

    def add(self, reports: Sequence[dict[str, Any]]) -> bool:
        """Adds those that are new, in epoch order; whether there were any."""
        fresh = [r for r in reports if r["epoch"] > self.last_epoch]
        self.reports += sorted(fresh, key=lambda r: int(r["epoch"]))
        return bool(fresh)


@dataclass
class _Host:
    token: int = 0
    placement_group: str | None = None
    key: str | None = None
    jobs: list[str] = field(default_factory=list)
    slots: int | None = None  # of the pack that it trains or trained last; None: it has not found that out yet
    trying: Capacity | None = None  # what it was measuring with when it was heard of last, and came through
    measured_in_vain: int = 0
    free: int = 0  # slots that it waits to fill
    idle: bool = False  # waits for a first trial
    fruitless_starts: int = 0  # since the last report
    troubles: int = 0  # since the last report; counts worker groups that died before they could register
    error: str | None = None


class Board:
    """See the top of this file. All methods are coroutines of one event loop."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self._queue: list[str] = []  # ids of waiting postings, first come first
        self._hosts: dict[str, _Host] = {}
        self._packing = Packing()
        self._changed = asyncio.Condition()
        self._closed = False
        self._outage: str | None = None
        self._more_to_come = True

    async def _wait(self, ready: Callable[[], bool], seconds: float) -> None:
        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait_for(ready), seconds)
            except TimeoutError:
                return

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    # ------------------------------------------------------------------ the driver

    async def submit(self, posting: Posting, reports: list[dict[str, Any]], done: bool) -> None:
        """Post a trial with what its folder holds already; one that is done only replays its reports."""
        if posting.id in self._entries:
            return
        entry = _Entry(posting, state="over" if done else "waiting", timeline={"submitted": time.time()})
        entry.add(reports)
        self._entries[posting.id] = entry
        if not done:
            self._queue.append(posting.id)
        await self._notify()

    async def expect(self, more: bool) -> None:
        """Whether postings are to follow; hosts wait for no others."""
        self._more_to_come = more
        await self._notify()

    async def stop(self, id: str) -> None:
        """The trial shall train no further epoch."""
        entry = self._entries.get(id)
        if entry is None:
            return
        entry.stop = True
        if entry.state == "waiting":
            self._queue.remove(id)
            entry.state = "over"
        await self._notify()

    async def close(self) -> None:
        """Hosts that ask for work from now on are told to end; those that train end with their epoch."""
        self._closed = True
        await self._notify()

    async def outcome(self, id: str) -> dict[str, Any]:
        """{"state", "error", "timeline"} of a posting."""
        entry = self._entries[id]
        return {"state": entry.state, "error": entry.error, "timeline": dict(entry.timeline)}

    async def status(self) -> dict[str, Any]:
        """What the driver looks at: {"waiting": n, "fatal": reason or None, "outage": see `outage`, "slots": {host:
        slots, where it knows}, "capacities": how many were found}."""
        slots = {name: host.slots for name, host in self._hosts.items() if host.slots is not None}
        fatal = None
        for name, host in self._hosts.items():
            if max(host.fruitless_starts, host.troubles) > MAX_FRUITLESS_STARTS:
                fatal = (
                    f"{name} died again and again without finishing one epoch; last error: {host.error or 'none seen'}"
                )
        told = {"waiting": len(self._queue), "fatal": fatal, "outage": self._outage, "slots": slots}
        return {**told, "capacities": len(self._packing.capacities)}

    async def packing(self) -> Packing:
        """Capacities that hosts found, and how full their packs were."""
        return self._packing

    async def recall(self, capacities: Sequence[Capacity]) -> None:
        """What an earlier driver's board knew."""
        self._packing.capacities += capacities

    # ------------------------------------------------------------------ a host's rank 0

    async def register(self, name: str, placement_group: str | None = None) -> int:
        """A host's worker group (re)started. Its unfinished trials go back to the front of the queue.

        Each of them may be what ended it. One that was there too often goes on without neighbours, and is failed where
        the host dies then too: a trial never takes others down with it.

        Args:
            name: the host.
            placement_group: the id of Ray's, in which the worker group runs.

        Returns:
            A token for the other calls; it makes those of the replaced group fail.
        """
        host = self._hosts.setdefault(name, _Host())
        host.placement_group = placement_group
        host.token += 1
        host.fruitless_starts += 1
        if host.trying is not None:  # it was measuring: its trial did not end it
            host.measured_in_vain += 1
            if host.measured_in_vain > 1:  # once may be anything, twice is the memory
                self._packing.capacities.append(host.trying)
        else:
            for entry in map(self._entries.__getitem__, host.jobs):
                entry.crashes += entry.state == "running"
                if entry.state == "running" and entry.crashes >= MAX_CRASHES and not entry.stop:
                    entry.state = "over"
                    entry.error = f"its host died {entry.crashes} times in a row: {host.error or 'no message'}"
        self._give_back(host, host.jobs)
        host.key, host.trying, host.free, host.idle = None, None, 0, False
        await self._notify()
        return host.token

    def _give_back(self, host: _Host, ids: Sequence[str]) -> None:
        back = [id for id in ids if id in host.jobs and self._entries[id].state == "running"]
        for id in back:
            self._entries[id].state = "over" if self._entries[id].stop else "waiting"
        self._queue[:0] = [id for id in back if self._entries[id].state == "waiting"]
        host.jobs = [id for id in host.jobs if id not in ids]

    async def give_back(self, name: str, token: int, ids: Sequence[str], suspected: bool) -> None:
        """A pack broke off, and the host goes on. Where one of its trials may be to blame, each goes on alone."""
        host = self._host(name, token)
        for id in set(ids) & set(host.jobs):  # what a repeated call names may be another host's by now
            self._entries[id].suspected |= suspected and self._entries[id].state == "running"
        self._give_back(host, ids)
        await self._notify()

    async def next_job(
        self, name: str, token: int, key: str | None, seconds: float
    ) -> Posting | Literal["idle", "closed"]:
        """The first trial of a host's next pack, "idle" where none came within `seconds`, or "closed".

        Of the waiting trials the first that needs what the host holds (`key`) is preferred, unless one was passed
        over too often.
        """
        host = self._host(name, token)
        host.key = key
        for id in host.jobs:  # the answer to an earlier, identical call was lost
            return self._entries[id].posting
        host.idle = True
        await self._wait(lambda: bool(self._queue and not self._outage) or self._closed, seconds)
        self._host(name, token)
        if self._closed:
            return "closed"
        if not self._queue or self._outage:
            return "idle"
        same_key = next((i for i in self._queue if self._entries[i].posting.key == key), None)
        return self._take(host, [self._starved() or same_key or self._queue[0]])[0]

    async def more(self, name: str, token: int, have: Sequence[str], free: int, seconds: float) -> list[Posting]:
        """Up to `free` further trials for the pack that a host trains.

        It waits for them up to `seconds`, and no longer than they can come: not when enough are there, and not when
        the driver has posted all that it may. Hosts that wait for a first trial, and others that fill the same pack,
        get their share. There are none beside a trial that has to be alone, nor while one that needs something else
        was passed over too often: the pack then drains, and that one goes first.

        Args:
            have: ids of those that the host has; what an earlier call gave it beside them is given again.
        """
        host = self._host(name, token)
        if lost := [id for id in host.jobs if id not in have]:
            return [self._entries[id].posting for id in lost]
        if free <= 0 or not host.jobs or any(self._entries[id].alone for id in host.jobs):
            return []
        pack = self._entries[host.jobs[0]].posting.pack

        def rivals() -> int:
            """Slots of others that want to be filled from the same postings, or will when they have counted them."""
            others = [h for h in self._hosts.values() if h is not host and self._pack_of(h) == pack]
            return sum(free if h.slots is None else h.free for h in others)

        def ready() -> bool:
            if self._closed or self._outage or self._starved(but=pack) or not self._may_come():
                return True
            return self._fitting(pack) >= free + rivals()

        host.free = free
        await self._wait(ready, seconds)
        self._host(name, token).free = 0
        if self._closed or self._outage or self._starved(but=pack):
            return []
        share = -(-self._fitting(pack) * free // (free + rivals()))
        chosen = [i for i in self._queue if self._joins(i, pack)][: min(free, share)]
        return self._take(host, chosen) if chosen else []

    def _pack_of(self, host: _Host) -> str | None:
        return self._entries[host.jobs[0]].posting.pack if host.jobs else None

    def _joins(self, id: str, pack: str) -> bool:
        return self._entries[id].posting.pack == pack and not self._entries[id].alone

    def _fitting(self, pack: str) -> int:
        """Waiting trials that may join a pack, less those that hosts without any will take first."""
        idle = sum(host.idle for host in self._hosts.values())
        return max(0, sum(self._joins(i, pack) for i in self._queue) - idle)

    def _may_come(self) -> bool:
        """Whether the driver will post more before one that is open ends: it posts as many as hosts have slots."""
        running = sum(entry.state == "running" for entry in self._entries.values())
        return self._more_to_come and running + len(self._queue) < sum(h.slots or 1 for h in self._hosts.values())

    def _starved(self, but: str | None = None) -> str | None:
        """The first that was passed over too often; those that may join the pack `but` are not counted."""
        late = (i for i in self._queue if self._entries[i].passed_over >= MAX_PASSED_OVER)
        return next((i for i in late if but is None or not self._joins(i, but)), None)

    def _take(self, host: _Host, ids: Sequence[str]) -> list[Posting]:
        for id in self._queue[: self._queue.index(ids[-1])]:
            self._entries[id].passed_over += id not in ids
        for id in ids:
            self._queue.remove(id)
            self._entries[id].state = "running"
            self._entries[id].timeline["taken"] = time.time()
        host.jobs += ids
        host.idle = False
        return [self._entries[id].posting for id in ids]

    async def replay(self, name: str, token: int, id: str, reports: list[dict[str, Any]]) -> None:
        """What the folder holds when the host starts the trial: it may be ahead of the board after a kill."""
        self._host(name, token)
        entry = self._entries[id]
        entry.timeline["started"] = time.time()
        if entry.add(reports):
            await self._notify()

    async def report(self, name: str, token: int, reports: Mapping[str, dict[str, Any]]) -> dict[str, bool]:
        """An epoch of a pack ended. Returns, once Tune has judged all that it may stop, which of them stop here."""
        host, entries = self._host(name, token), {id: self._entries[id] for id in reports}
        host.fruitless_starts = host.troubles = 0
        fresh = False
        for id, entry in entries.items():
            entry.crashes, entry.suspected = 0, False
            entry.timeline.setdefault("first_report", time.time())
            fresh |= entry.add([reports[id]])
        if fresh:
            self._count(name, host, reports)
            await self._notify()
        # Nothing is left to stop of those that reached their last epoch: they end as finished.
        asked = {id: e for id, e in entries.items() if int(reports[id]["epoch"]) < e.posting.epochs}
        awaited = [
            (e, max((j for j in e.posting.judged if j <= int(reports[id]["epoch"])), default=0))
            for id, e in asked.items()
        ]
        if any(epoch > e.judged_epoch for e, epoch in awaited):
            await self._wait(
                lambda: self._closed or all(e.judged_epoch >= epoch or e.stop for e, epoch in awaited),
                JUDGEMENT_SECONDS,
            )
            self._host(name, token)
        return {id: id in asked and (entries[id].stop or self._closed) for id in entries}

    def _count(self, name: str, host: _Host, reports: Mapping[str, dict[str, Any]]) -> None:
        """Write down how full an epoch was."""
        posting = self._entries[next(iter(reports))].posting
        left = self._more_to_come or any(self._joins(i, posting.pack) for i in self._queue)
        seconds = max(float(r.get("seconds") or 0.0) for r in reports.values())
        slots = host.slots or 1
        self._packing.epochs.append(
            PackEpoch(name, posting.pack, posting.kind, time.time(), seconds, len(reports), slots, not left)
        )

    async def over(self, name: str, token: int, id: str, error: str | None = None) -> None:
        """The host is done with the trial: finished, stopped, or failed with `error`."""
        host, entry = self._host(name, token), self._entries[id]
        entry.state, entry.error = "over", entry.error or error
        entry.timeline.setdefault("over", time.time())
        host.jobs = [other for other in host.jobs if other != id]
        host.fruitless_starts = host.troubles = 0
        await self._notify()

    async def known_capacity(self, name: str, token: int, pack: str, on: str, most: int) -> Capacity | None:
        """What was found for packs of a key on hosts of a kind, the smallest where several measured; None: nothing that
        says enough for where up to `most` slots could be of use."""
        self._host(name, token)
        found = [c for c in self._packing.capacities if (c.pack, c.on) == (pack, on) and c.holds(most)]
        return min(found, key=lambda c: c.slots, default=None)

    async def trying(self, name: str, token: int, capacity: Capacity | None) -> None:
        """A host measures, and came so far: this is its capacity if it dies now. None: it gave up."""
        self._host(name, token).trying = capacity

    async def capacity(self, name: str, token: int, capacity: Capacity) -> None:
        """A host has so many slots for what it trains now."""
        host = self._host(name, token)
        host.trying, host.slots, host.measured_in_vain = None, capacity.slots, 0
        if capacity not in self._packing.capacities:
            self._packing.capacities.append(capacity)
        await self._notify()

    async def trouble(self, name: str, error: str) -> None:
        """Remember why a host's worker group died (called by controllers, the driver, and ranks that die)."""
        host = self._hosts.setdefault(name, _Host())
        host.error = error
        host.troubles += 1

    async def outage(self, reason: str) -> None:
        """The environment gave out under a host: nothing more is given out, and the driver ends the sweep."""
        self._outage = self._outage or reason
        await self._notify()

    async def placement_groups(self) -> dict[str, str]:
        """The ids of those that Ray reserved for hosts, by host."""
        return {name: host.placement_group for name, host in self._hosts.items() if host.placement_group is not None}

    def _host(self, name: str, token: int) -> _Host:
        host = self._hosts[name]
        if host.token != token:
            raise StaleHost(name)
        return host

    # ------------------------------------------------------------------ followers: light Tune trials, or the driver

    async def follow(self, id: str, after_epoch: int, seconds: float) -> tuple[list[dict[str, Any]], bool]:
        """Reports later than `after_epoch` (waiting up to `seconds` for one), and whether the trial is over."""
        entry = self._entries[id]
        await self._wait(lambda: entry.last_epoch > after_epoch or entry.state == "over", seconds)
        return [r for r in entry.reports if r["epoch"] > after_epoch], entry.state == "over"

    async def judged(self, id: str, epoch: int) -> None:
        """Tune lets the trial go on after `epoch`."""
        entry = self._entries[id]
        entry.judged_epoch = max(entry.judged_epoch, epoch)
        await self._notify()
