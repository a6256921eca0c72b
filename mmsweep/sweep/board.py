"""The board between trials and hosts: which trials wait, which host trains which, what was reported, who shall stop.

One 0-CPU actor on the driver's node, which lives as long as the driver. It holds nothing that the trials' folders
do not hold too: if it dies, a resumed sweep builds a new one. Every call may be repeated (its caller may have been
killed before the answer came).

    driver   submit ──►┌───────┐◄── register, next_job, report, over    rank 0 of a host (worker.py)
    driver   stop ────►│ board │
    trial    follow ──►└───────┘◄── judged                              light Tune trial (trial.py)

A report waits on the board until Tune has judged it, so that a stopped trial trains no epoch more than Tune
allowed: what a trial computed never depends on how fast the driver was.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

MAX_PASSED_OVER = (
    4  # a trial that needs another frozen backbone goes first after it was passed over so often: nobody starves
)
MAX_CRASHES = (
    3  # a trial whose host dies under it so often without a new report is failed, instead of sinking the sweep
)
MAX_FRUITLESS_STARTS = 6  # starts of one host in a row without one report: the sweep gives up
JUDGEMENT_SECONDS = (
    1500.0  # a host waits so long for Tune's word; longer, and the other ranks would give up (gloo: 1800 s)
)


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
        epochs: how many epochs it has; the last one's report waits for nobody.
        judged: whether a Tune trial follows it and may stop it.
    """

    id: str
    kind: Literal["trial", "final"]
    folder: str
    study: dict[str, Any]
    key: str
    epochs: int
    judged: bool


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
    timeline: dict[str, float] = field(default_factory=dict)

    @property
    def last_epoch(self) -> int:
        return self.reports[-1]["epoch"] if self.reports else 0

    def add(self, reports: list[dict[str, Any]]) -> bool:
        """Adds those that are new, in epoch order; whether there were any."""
        fresh = [r for r in reports if r["epoch"] > self.last_epoch]
        self.reports += sorted(fresh, key=lambda r: int(r["epoch"]))
        return bool(fresh)


@dataclass
class _Host:
    token: int = 0
    placement_group: str = ""
    key: str | None = None
    job: str | None = None
    fruitless_starts: int = 0  # since the last report
    troubles: int = 0  # since the last report; counts worker groups that died before they could register
    error: str | None = None


class Board:
    """See the top of this file. All methods are coroutines of one event loop."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self._queue: list[str] = []  # ids of waiting postings, first come first
        self._hosts: dict[str, _Host] = {}
        self._changed = asyncio.Condition()
        self._closed = False

    async def _wait(self, ready: Callable[[], bool], seconds: float) -> None:
        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait_for(ready), seconds)
            except asyncio.TimeoutError:
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
        """{"placement_groups": {host: id}, "waiting": n, "fatal": reason or None}, for the driver."""
        groups = {name: host.placement_group for name, host in self._hosts.items()}
        fatal = None
        for name, host in self._hosts.items():
            if max(host.fruitless_starts, host.troubles) > MAX_FRUITLESS_STARTS:
                fatal = (
                    f"{name} died again and again without finishing one epoch; last error: {host.error or 'none seen'}"
                )
        return {"placement_groups": groups, "waiting": len(self._queue), "fatal": fatal}

    # ------------------------------------------------------------------ a host's rank 0

    async def register(self, name: str, placement_group: str) -> int:
        """A host's worker group (re)started. Its unfinished trial goes back to the front of the queue.

        Args:
            name: the host.
            placement_group: id of what Ray reserved for the group.

        Returns:
            A token for the other calls; it makes those of the replaced group fail.
        """
        host = self._hosts.setdefault(name, _Host())
        host.token += 1
        host.placement_group = placement_group
        host.fruitless_starts += 1
        host.key = None
        if host.job is not None:
            entry = self._entries[host.job]
            if entry.state == "running" and entry.stop:
                entry.state = "over"
            elif entry.state == "running":
                entry.crashes += 1
                if entry.crashes >= MAX_CRASHES:
                    entry.state, entry.error = (
                        "over",
                        f"its host died {entry.crashes} times in a row: {host.error or 'no message'}",
                    )
                else:
                    entry.state = "waiting"
                    self._queue.insert(0, host.job)
            host.job = None
        await self._notify()
        return host.token

    async def next_job(
        self, name: str, token: int, key: str | None, seconds: float
    ) -> Posting | Literal["idle", "closed"]:
        """The next trial for a host, "idle" where none came within `seconds`, or "closed".

        Of the waiting trials the first that needs what the host holds (`key`) is preferred, unless one was passed
        over too often.
        """
        host = self._host(name, token)
        host.key = key
        if host.job is not None and self._entries[host.job].state == "running":
            return self._entries[host.job].posting  # the answer to an earlier, identical call was lost
        await self._wait(lambda: bool(self._queue) or self._closed, seconds)
        self._host(name, token)
        if self._closed:
            return "closed"
        if not self._queue:
            return "idle"
        entry = self._entries[self._choose(key)]
        entry.state = "running"
        entry.timeline["taken"] = time.time()
        host.job = entry.posting.id
        return entry.posting

    def _choose(self, key: str | None) -> str:
        starved = next((i for i in self._queue if self._entries[i].passed_over >= MAX_PASSED_OVER), None)
        same_key = next((i for i in self._queue if self._entries[i].posting.key == key), None)
        chosen = starved or same_key or self._queue[0]
        for id in self._queue[: self._queue.index(chosen)]:
            self._entries[id].passed_over += 1
        self._queue.remove(chosen)
        return chosen

    async def replay(self, name: str, token: int, id: str, reports: list[dict[str, Any]]) -> None:
        """What the folder holds when the host starts the trial: it may be ahead of the board after a kill."""
        self._host(name, token)
        entry = self._entries[id]
        entry.timeline["started"] = time.time()
        if entry.add(reports):
            await self._notify()

    async def report(self, name: str, token: int, id: str, report: dict[str, Any]) -> bool:
        """An epoch ended. Returns, once Tune has judged it, whether the trial shall stop here."""
        host, entry = self._host(name, token), self._entries[id]
        host.fruitless_starts = host.troubles = entry.crashes = 0
        entry.timeline.setdefault("first_report", time.time())
        if entry.add([report]):
            await self._notify()
        epoch = int(report["epoch"])
        if epoch >= entry.posting.epochs:
            return False  # nothing is left to stop: the trial ends as finished
        if entry.posting.judged:
            await self._wait(lambda: entry.judged_epoch >= epoch or entry.stop or self._closed, JUDGEMENT_SECONDS)
            self._host(name, token)
        return entry.stop or self._closed

    async def over(self, name: str, token: int, id: str, error: str | None = None) -> None:
        """The host is done with the trial: finished, stopped, or failed with `error`."""
        host, entry = self._host(name, token), self._entries[id]
        entry.state, entry.error = "over", entry.error or error
        entry.timeline.setdefault("over", time.time())
        host.job = None
        host.fruitless_starts = host.troubles = 0
        await self._notify()

    async def trouble(self, name: str, error: str) -> None:
        """Remember why a host's worker group died (called by Ray Train's controller, and by ranks that die)."""
        host = self._hosts.setdefault(name, _Host())
        host.error = error
        host.troubles += 1

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
