"""What the driver holds while it works on a sweep, and the one place where it shows progress.

with starting_hosts(...) as hosts:               Ray is up, hosts are starting, the board is open
    with Session.open(study, hosts, ...) as session:
        session.submit(folder, study, ...)   a trial or final run goes to the hosts
        session.epoch(id, report)            what it reported reaches the table
        session.ended(id, folder)            how it ended, too
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal
from uuid import uuid4

import ray

from mmsweep.ending import Interrupt, Interrupted
from mmsweep.errors import UserError
from mmsweep.record.files import write_atomically
from mmsweep.record.packing import FILE, Packing
from mmsweep.record.trial import TrialFolder
from mmsweep.study import Study
from mmsweep.study.sections import Resources
from mmsweep.sweep.board import Request
from mmsweep.sweep.cluster import ClusterGoneError, Liveness, attended, check_attended, connect
from mmsweep.sweep.hosts import HostPool, HostSize, count_hosts, open_board
from mmsweep.sweep.progress import Progress

log = logging.getLogger("mmsweep.sweep")


@contextlib.contextmanager
def starting_hosts(
    resources: Resources,
    trials: int,
    warm: str,
    storage: Path,
    logs: Path,
    progress: Progress,
    interrupt: Interrupt,
) -> Iterator[HostPool]:
    """Connect to Ray and start hosts for so many trials; at the end, see that they end, and disconnect.

    Args:
        storage: for Ray's own files.

    Raises:
        UserError: Ray cannot be reached, or lacks the resources.
        Interrupted: a signal came before Ray was there.
    """
    with connect(interrupt):
        liveness = Liveness()

        def start() -> HostPool:
            size = HostSize(resources.workers, resources.cpus, resources.gpus)
            count = count_hosts(size, resources.hosts, trials, ray.nodes())
            board = open_board(f"board-{uuid4().hex[:8]}")
            pool = HostPool(board, size, count, warm, storage, logs, liveness)
            pool.start()
            return pool

        pool = attended(start, interrupt, liveness.gone)
        count = len(pool.names)
        progress.phase(f"{count} host{'s' if count > 1 else ''} starting, logs in {logs}")
        if exposed := liveness.exposed():
            progress.line(exposed)
        try:
            yield pool
        finally:
            with contextlib.suppress(ClusterGoneError, Interrupted):
                attended(lambda: pool.close(1.0 if interrupt.requested else 5.0), interrupt, pool.gone)


class Session:
    """See the top of this file; made by `open`."""

    def __init__(
        self,
        study: Study,
        pool: HostPool,
        warm: str,
        folder: Path,
        progress: Progress,
        interrupt: Interrupt,
    ) -> None:
        self.study, self.board, self.pool, self.progress = study, pool.board, pool, progress
        self.interrupt = interrupt
        self.problem: UserError | None = None
        self._keys = importlib.import_module(warm.split(":")[0])
        self._folder, self._packing = folder, Packing.load(folder)
        self._expected, self._written = True, 0
        self._slots: dict[str, int] = {}
        self._reports: dict[str, list[Mapping[str, float]]] = {}

    @classmethod
    @contextlib.contextmanager
    def open(
        cls,
        study: Study,
        pool: HostPool,
        warm: str,
        folder: Path,
        progress: Progress,
        interrupt: Interrupt,
    ) -> Iterator[Session]:
        """Work with hosts; at the end, tell them to end.

        Args:
            warm: import path of what hosts keep warm.
            folder: the sweep's; what hosts find out about their slots is written there.
        """
        session = cls(study, pool, warm, folder, progress, interrupt)
        ray.get(pool.board.recall.remote(session._packing.capacities))
        try:
            yield session
        finally:
            session._write_packing()
            pool.end()

    @property
    def hosts(self) -> int:
        return len(self.pool.names)

    def room(self) -> int:
        """How many trials may be open: one for each slot. A host whose number is not known yet gets what the study asks
        for, or one."""
        asked, slots = self.study.resources.slots, self.pool.status.get("slots", {})
        return sum(slots.get(name, 1 if asked == "auto" else asked) for name in self.pool.names)

    def expect(self, more: bool) -> None:
        """Tell the hosts whether it pays to wait for further trials. Cheap."""
        if more != self._expected:
            self._expected = more
            self.board.expect.remote(more)

    def _notice(self) -> None:
        """Show and save slots and capacities as soon as hosts know them."""
        status = self.pool.status
        if status.get("slots", {}) != self._slots:
            self._slots = status["slots"]
            self.progress.slots(self._slots)
        if status.get("capacities", 0) != self._written:
            self._written = status["capacities"]
            self._write_packing()

    def _write_packing(self) -> None:
        try:
            new = ray.get(self.board.packing.remote(), timeout=10)
        except ray.exceptions.RayError as error:
            log.warning("how full the packs were is not known: %s", error)
            return
        try:
            write_atomically(self._folder / FILE, Packing(new.capacities, self._packing.epochs + new.epochs).text())
        except OSError as error:  # nothing rests on it, and a full disk is said where something does
            log.warning("%s: %s", FILE, error)
        self.progress.reasons([c.reason for c in new.capacities if c.slots == 1 and c.reason])

    def must_end(self) -> bool:
        """Whether a signal came or the hosts cannot go on (`problem`). Cheap."""
        if self.interrupt.requested:  # the hosts may have got the signal too, so their state does not matter any more
            self.progress.phase("stopping cleanly, what is unfinished goes on with --resume (Ctrl-C again: at once)")
            return True
        try:
            self.pool.check()
            self._notice()
        except UserError as problem:
            self.problem = problem
        return self.problem is not None

    def submit(self, folder: TrialFolder, study: Study | None, *, pack_limit: int, judged: Sequence[int]) -> None:
        """Hand a trial to the hosts; one that is done (or has no study) only replays what it recorded.

        Args:
            pack_limit: how many requests of its pack there may be in all.
            judged: epochs at which a scheduler may stop it.
        """
        check_attended()
        about, reports, done = folder.trial(), folder.reports(), folder.done() is not None
        id, resolved = about["id"], study or self.study
        for sentence in [] if done else folder.damage():
            self.progress.line(f"{id}: {sentence}; it goes on from an earlier epoch, or anew")
        self.progress.trial(id, about["params"], resolved.train.epochs, replayed=done and bool(reports))
        self._reports[id] = []
        kind: Literal["trial", "final"] = "final" if about["kind"] == "final" else "trial"
        request = Request(
            id,
            kind,
            str(folder.path.absolute()),
            resolved.resolved(),
            self._keys.warm_key(resolved),
            self._keys.pack_key(resolved),
            pack_limit,
            resolved.train.epochs,
            tuple(judged),
        )
        ray.get(self.board.submit.remote(request, [asdict(r) for r in reports], done))

    def submitted(self, folder: TrialFolder) -> bool:
        """Whether a trial was handed to the hosts in this session."""
        return folder.trial()["id"] in self._reports

    def epoch(self, id: str, epoch: int, metrics: Mapping[str, float]) -> None:
        """An epoch's report reached the driver."""
        check_attended()
        reports = self._reports[id]
        reports.append(metrics)
        objective = self.study.sweep.objectives[0]
        value = objective.score(reports) if all(objective.metric in m for m in reports) else math.nan
        self.progress.epoch(id, epoch, None if math.isnan(value) else value)

    def ended(self, id: str, folder: TrialFolder) -> None:
        """The trial is over, or was stopped: mark its folder, stop its host, write it down."""
        check_attended()
        if folder.done() is None:
            outcome = ray.get(self.board.outcome.remote(id))
            if outcome["error"] or outcome["state"] == "over":
                folder.mark_done("failed", outcome["error"] or "it ended without finishing; its host's log says why")
            else:
                folder.mark_done("stopped")
        self.board.stop.remote(id)
        done = folder.done() or {}
        self.progress.ended(id, done["state"], done["error"])
