"""The queue between trials and hosts: which trials wait, which host trains which, what was reported, who shall stop.

One 0-CPU actor on the driver's node, which lives as long as the driver. It holds nothing that the trials' folders
do not hold too: if it dies, a resumed sweep builds a new one. Every call may be repeated (its caller may have been
killed before the answer came).

    driver   submit ──►┌───────┐◄── register, next_request, fill, report, over    rank 0 of a host (worker.py)
    driver   stop ────►│ board │
    trial    follow ──►└───────┘◄── judged                                        light Tune trial (trial.py)

A host trains a pack: the request that it takes first (`next_request`), and as many of the same pack as it has slots
for (`fill`). A report of an epoch at which Tune's scheduler may stop the trial waits here for Tune's judgement: what a
trial computes never depends on how fast the driver is.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from mmsweep.record.packing import Capacity, PackEpoch, Packing

MAX_SKIPS = 4  # a request that needs another frozen backbone goes first after so many others: nobody starves
MAX_CRASHES = 3  # a trial whose host dies so often without a new report fails, instead of ending the sweep
MAX_SHARED_CRASHES = 2  # after so many it is trained without neighbours, which may have been the ones to blame
MAX_FAILED_STARTS = 6  # of one host in a row without one report: the sweep gives up
# A host waits so long for Tune's judgement; longer, and the other ranks would give up (gloo: 1800 s).
JUDGEMENT_SECONDS = 1500.0


class StaleHost(Exception):
    """A worker group that was replaced meanwhile called: it must end."""


@dataclass(frozen=True)
class Request:
    """A trial or final run that is to be trained.

    Args:
        id: "0003", or "final/best/seed-101".
        kind: a trial of the search, or a final run.
        folder: the TrialFolder's absolute path.
        study: the resolved study.
        key: requests with equal keys can use what a host keeps warm as it is.
        pack: requests with equal packs may train in one pass.
        pack_limit: how many requests of this pack there may be in all; no host needs more slots.
        epochs: how many epochs it has.
        judged: epochs at which a scheduler may stop it; a report waits for the judgement of the last that it reached.
    """

    id: str
    kind: Literal["trial", "final"]
    folder: str
    study: dict[str, Any]
    key: str
    pack: str
    pack_limit: int
    epochs: int
    judged: tuple[int, ...]


@dataclass
class _Entry:
    request: Request
    state: Literal["waiting", "running", "over"] = "waiting"
    reports: list[dict[str, Any]] = field(default_factory=list)
    judged_epoch: int = 0
    stop: bool = False
    error: str | None = None
    skips: int = 0  # later requests that were taken before it
    crashes: int = 0
    suspected: bool = False

    @property
    def last_epoch(self) -> int:
        return self.reports[-1]["epoch"] if self.reports else 0

    @property
    def alone(self) -> bool:
        """Whether it is trained without neighbours: it may be what ended their host."""
        return self.suspected or self.crashes >= MAX_SHARED_CRASHES

    def add(self, reports: Sequence[dict[str, Any]]) -> bool:
        """Adds new reports in epoch order; whether there were any."""
        new = [r for r in reports if r["epoch"] > self.last_epoch]
        self.reports += sorted(new, key=lambda r: int(r["epoch"]))
        return bool(new)

    def unjudged(self, epoch: int) -> bool:
        """Whether a report of `epoch` has to wait for Tune's judgement."""
        last = max((at for at in self.request.judged if at <= epoch), default=0)
        return epoch < self.request.epochs and last > self.judged_epoch and not self.stop


@dataclass
class _Host:
    token: int = 0
    placement_group: str | None = None
    running: list[str] = field(default_factory=list)  # ids of the requests that it trains
    slots: int | None = None  # for its last pack; None: not known yet
    free: int = 0  # slots that it waits to fill
    idle: bool = False  # waits for a first request
    probing: Capacity | None = None  # its capacity, should it die in the throughput probe that it runs
    failed_probes: int = 0
    failed_starts: int = 0  # since the last report
    failures: int = 0  # since the last report; counts worker groups that died before they could register
    error: str | None = None


class Board:
    """See the top of this file. All methods are coroutines of one event loop."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self._queue: list[str] = []  # ids of waiting requests, first come first served
        self._hosts: dict[str, _Host] = {}
        self._packing = Packing()
        self._changed = asyncio.Condition()
        self._outage: str | None = None
        self._closed, self._more_to_come = False, True

    async def _wait(self, ready: Callable[[], bool], seconds: float) -> None:
        async with self._changed:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait_for(ready), seconds)

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def submit(self, request: Request, reports: list[dict[str, Any]], done: bool) -> None:
        """Queue a request with the reports in its folder; one that is done only replays them."""
        if request.id not in self._entries:
            self._entries[request.id] = entry = _Entry(request, state="over" if done else "waiting")
            entry.add(reports)
            self._queue += [] if done else [request.id]
            await self._notify()

    async def expect(self, more: bool) -> None:
        """Whether further requests will follow; if not, hosts do not wait for them."""
        self._more_to_come = more
        await self._notify()

    async def stop(self, id: str) -> None:
        """The trial shall train no further epoch."""
        if entry := self._entries.get(id):
            entry.stop = True
            if entry.state == "waiting":
                self._queue.remove(id)
                entry.state = "over"
            await self._notify()

    async def close(self) -> None:
        """Hosts that ask for work from now on hear "closed"; those that train end with their epoch."""
        self._closed = True
        await self._notify()

    async def outcome(self, id: str) -> dict[str, Any]:
        """{"state", "error"} of a request."""
        return {"state": self._entries[id].state, "error": self._entries[id].error}

    async def status(self) -> dict[str, Any]:
        """What the driver polls: {"fatal": reason or None, "outage": see `outage`, "slots": {host: slots, where known},
        "capacities": how many were found}."""
        fatal = None
        for name, host in self._hosts.items():
            if max(host.failed_starts, host.failures) > MAX_FAILED_STARTS:
                error = host.error or "none seen"
                fatal = f"{name} died again and again without finishing one epoch; last error: {error}"
        slots = {name: host.slots for name, host in self._hosts.items() if host.slots is not None}
        capacities = len(self._packing.capacities)
        return {"fatal": fatal, "outage": self._outage, "slots": slots, "capacities": capacities}

    async def packing(self) -> Packing:
        """Capacities of hosts, and how full their packs were."""
        return self._packing

    async def recall(self, capacities: Sequence[Capacity]) -> None:
        """Add what the board of an earlier driver knew."""
        self._packing.capacities += capacities

    async def register(self, name: str, placement_group: str | None = None) -> int:
        """A host's worker group (re)started. Its unfinished trials go back to the front of the queue.

        Each of them may be what ended it. One that was there too often goes on without neighbours, and fails if the
        host dies then too: a trial never takes others down with it. Returns a token for the other calls, which makes
        those of the replaced group fail.
        """
        host = self._hosts.setdefault(name, _Host())
        host.placement_group = placement_group
        host.token += 1
        host.failed_starts += 1
        if host.probing is not None:  # the probe ended it, not its trial
            host.failed_probes += 1
            if host.failed_probes > 1:  # once may be anything, twice is the memory
                self._packing.capacities.append(host.probing)
        else:
            for entry in (e for e in map(self._entries.__getitem__, host.running) if e.state == "running"):
                entry.crashes += 1
                if entry.crashes >= MAX_CRASHES and not entry.stop:
                    entry.state = "over"
                    entry.error = f"its host died {entry.crashes} times in a row: {host.error or 'no message'}"
        self._requeue(host, host.running)
        host.probing, host.free, host.idle = None, 0, False
        await self._notify()
        return host.token

    def _requeue(self, host: _Host, ids: Sequence[str]) -> None:
        unfinished = [id for id in ids if id in host.running and self._entries[id].state == "running"]
        for id in unfinished:
            self._entries[id].state = "over" if self._entries[id].stop else "waiting"
        self._queue[:0] = [id for id in unfinished if self._entries[id].state == "waiting"]
        host.running = [id for id in host.running if id not in ids]

    async def requeue(self, name: str, token: int, ids: Sequence[str], suspected: bool) -> None:
        """A pack broke off, and the host goes on. Where one of its trials may be to blame, each goes on alone."""
        host = self._host(name, token)
        for id in set(ids) & set(host.running):  # what a repeated call names may be another host's by now
            self._entries[id].suspected |= suspected and self._entries[id].state == "running"
        self._requeue(host, ids)
        await self._notify()

    async def next_request(
        self, name: str, token: int, key: str | None, seconds: float
    ) -> Request | Literal["idle", "closed"]:
        """The first request of a host's next pack, "idle" where none came within `seconds`, or "closed".

        The first that needs what the host keeps warm (`key`) is preferred, unless another was skipped too often.
        """
        host = self._host(name, token)
        for id in host.running:  # the answer to an earlier, identical call was lost
            return self._entries[id].request
        host.idle = True
        await self._wait(lambda: bool(self._queue and not self._outage) or self._closed, seconds)
        self._host(name, token)
        if self._closed or not self._queue or self._outage:
            return "closed" if self._closed else "idle"
        same_key = next((i for i in self._queue if self._entries[i].request.key == key), None)
        return self._take(host, [self._starved() or same_key or self._queue[0]])[0]

    async def fill(self, name: str, token: int, running: Sequence[str], free: int, seconds: float) -> list[Request]:
        """Up to `free` further requests for the pack that a host trains.

        It waits up to `seconds` for them: not once there are enough for all, nor once the driver can submit no more.
        Hosts that wait for a first request, and others that fill the same pack, get their share. A trial that has to be
        alone gets no neighbours. If a request of another pack was skipped too often, there are none either: the pack
        drains, and that request goes first.

        Args:
            running: ids that the host knows of; what an earlier call gave it beside them is given again.
        """
        host = self._host(name, token)
        if lost := [id for id in host.running if id not in running]:
            return [self._entries[id].request for id in lost]
        if free <= 0 or not host.running or any(self._entries[id].alone for id in host.running):
            return []
        pack = self._pack(host)

        def rivals() -> int:
            """Slots that other hosts want to fill with the same pack, or will want to once they know their number."""
            others = [h for h in self._hosts.values() if h is not host and h.running and self._pack(h) == pack]
            return sum(free if h.slots is None else h.free for h in others)

        def drains() -> bool:
            return bool(self._closed or self._outage or self._starved(but=pack))

        host.free = free
        await self._wait(lambda: drains() or not self._may_come() or self._fitting(pack) >= free + rivals(), seconds)
        self._host(name, token).free = 0
        if drains():
            return []
        share = -(-self._fitting(pack) * free // (free + rivals()))
        chosen = [i for i in self._queue if self._joins(i, pack)][: min(free, share)]
        return self._take(host, chosen) if chosen else []

    def _pack(self, host: _Host) -> str:
        return self._entries[host.running[0]].request.pack

    def _joins(self, id: str, pack: str) -> bool:
        return self._entries[id].request.pack == pack and not self._entries[id].alone

    def _fitting(self, pack: str) -> int:
        """Waiting requests that may join a pack, less those that idle hosts will take first."""
        idle = sum(host.idle for host in self._hosts.values())
        return max(0, sum(self._joins(i, pack) for i in self._queue) - idle)

    def _may_come(self) -> bool:
        """Whether the driver may submit more before an open one ends: it keeps as many open as hosts have slots."""
        running = sum(entry.state == "running" for entry in self._entries.values())
        return self._more_to_come and running + len(self._queue) < sum(h.slots or 1 for h in self._hosts.values())

    def _starved(self, but: str | None = None) -> str | None:
        """The first that was skipped too often; those that may join the pack `but` are not counted."""
        late = (i for i in self._queue if self._entries[i].skips >= MAX_SKIPS)
        return next((i for i in late if but is None or not self._joins(i, but)), None)

    def _take(self, host: _Host, ids: Sequence[str]) -> list[Request]:
        for id in self._queue[: self._queue.index(ids[-1])]:
            self._entries[id].skips += id not in ids
        for id in ids:
            self._entries[id].state = "running"
        self._queue = [id for id in self._queue if id not in ids]
        host.running += ids
        host.idle = False
        return [self._entries[id].request for id in ids]

    async def replay(self, name: str, token: int, id: str, reports: list[dict[str, Any]]) -> None:
        """What the folder holds when the host starts the trial: it may be ahead of the board after a kill."""
        self._host(name, token)
        if self._entries[id].add(reports):
            await self._notify()

    async def report(self, name: str, token: int, reports: Mapping[str, dict[str, Any]]) -> dict[str, bool]:
        """An epoch of a pack ended. Returns, once Tune has judged all that it may stop, which of them stop here."""
        host, entries = self._host(name, token), {id: self._entries[id] for id in reports}
        epochs = {id: int(report["epoch"]) for id, report in reports.items()}
        host.failed_starts = host.failures = 0
        for entry in entries.values():
            entry.crashes, entry.suspected = 0, False
        if any([entry.add([reports[id]]) for id, entry in entries.items()]):
            self._count(name, host, reports)
            await self._notify()

        def judged() -> bool:
            return self._closed or not any(entry.unjudged(epochs[id]) for id, entry in entries.items())

        await self._wait(judged, JUDGEMENT_SECONDS)
        self._host(name, token)
        # One that has reached its last epoch ends as finished: nothing is left to stop.
        return {id: epochs[id] < e.request.epochs and (e.stop or self._closed) for id, e in entries.items()}

    def _count(self, name: str, host: _Host, reports: Mapping[str, dict[str, Any]]) -> None:
        """Write down how full an epoch was."""
        request = self._entries[next(iter(reports))].request
        left = self._more_to_come or any(self._joins(i, request.pack) for i in self._queue)
        seconds = max(float(r.get("seconds") or 0.0) for r in reports.values())
        about = (name, request.pack, request.kind, time.time(), seconds, len(reports), host.slots or 1, not left)
        self._packing.epochs.append(PackEpoch(*about))

    async def over(self, name: str, token: int, id: str, error: str | None = None) -> None:
        """The host is done with the trial: finished, stopped, or failed with `error`."""
        host, entry = self._host(name, token), self._entries[id]
        entry.state, entry.error = "over", entry.error or error
        host.running = [other for other in host.running if other != id]
        host.failed_starts = host.failures = 0
        await self._notify()

    async def known_capacity(self, name: str, token: int, pack: str, on: str, most: int) -> Capacity | None:
        """The smallest measured for packs of a key on hosts of a kind; None: none that holds for up to `most` slots."""
        self._host(name, token)
        known = [c for c in self._packing.capacities if (c.pack, c.on) == (pack, on) and c.holds(most)]
        return min(known, key=lambda c: c.slots, default=None)

    async def probing(self, name: str, token: int, capacity: Capacity | None) -> None:
        """A host probes its throughput: this is its capacity if it dies now. None: it gave up."""
        self._host(name, token).probing = capacity

    async def capacity(self, name: str, token: int, capacity: Capacity) -> None:
        """How many slots a host has for what it trains now."""
        host = self._host(name, token)
        host.probing, host.slots, host.failed_probes = None, capacity.slots, 0
        if capacity not in self._packing.capacities:
            self._packing.capacities.append(capacity)
        await self._notify()

    async def failed(self, name: str, error: str) -> None:
        """Remember why a host's worker group died (called by controllers, the driver, and ranks that die)."""
        host = self._hosts.setdefault(name, _Host())
        host.error = error
        host.failures += 1

    async def outage(self, reason: str) -> None:
        """The environment gave out under a host: no request is given out any more, and the driver ends the sweep."""
        self._outage = self._outage or reason
        await self._notify()

    async def placement_groups(self) -> dict[str, str]:
        """The ids of those that Ray reserved for hosts, by host."""
        return {name: host.placement_group for name, host in self._hosts.items() if host.placement_group}

    def _host(self, name: str, token: int) -> _Host:
        if self._hosts[name].token != token:
            raise StaleHost(name)
        return self._hosts[name]

    async def follow(self, id: str, after_epoch: int, seconds: float) -> tuple[list[dict[str, Any]], bool]:
        """Reports later than `after_epoch` (waiting up to `seconds` for one), and whether the trial is over."""
        entry = self._entries[id]
        await self._wait(lambda: entry.last_epoch > after_epoch or entry.state == "over", seconds)
        return [r for r in entry.reports if r["epoch"] > after_epoch], entry.state == "over"

    async def judged(self, id: str, epoch: int) -> None:
        """Tune lets the trial go on after `epoch`."""
        self._entries[id].judged_epoch = max(self._entries[id].judged_epoch, epoch)
        await self._notify()
