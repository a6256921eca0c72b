"""Hosts: Ray Train worker groups that stay warm and serve trials; starting them, watching them, ending them.

A host is one run of Ray Train's whose train function is `train_function.serve`. Ray Train restarts its worker group
when a rank dies; this file restarts the run when it ends otherwise, and gives up when a host only ever starts and never
finishes an epoch. The supervisor imports it before a rank can start, so it imports little.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import ray
from ray import PlacementGroupID, train
from ray.train import UserCallback
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

from mmsweep.environment_faults import EnvironmentFaultError
from mmsweep.errors import UserError
from mmsweep.sweep.board import Board
from mmsweep.sweep.cluster import ClusterGoneError, Liveness, left_behind, logged_to, sole_user  # sets Ray's switches
from mmsweep.sweep.lean_train import host_trainer
from mmsweep.sweep.place import Place
from mmsweep.sweep.train_function import serve

# Hosts may fill a node, and every slot's light trial must run beside them (reports wait for its word), so each worker
# asks for a little less than its CPUs: 200 times the least that Ray counts.
LIGHT_TRIAL = {"CPU": 0.0001}
CPU_FOR_TRIALS = 0.02
MAX_RUNS = 20  # of Ray Train for one host under one supervisor; and supervisors
PLAIN = "MMSWEEP_PLAIN_TRAINER"  # set in the environment: no lean trainers

log = logging.getLogger("mmsweep.hosts")


@dataclass(frozen=True)
class HostSize:
    """What one host takes: `workers` ranks with `cpus` and `gpus` each."""

    workers: int
    cpus: float
    gpus: float

    @property
    def per_worker(self) -> dict[str, float]:
        request = {"CPU": round(self.cpus - min(CPU_FOR_TRIALS, 0.1 * self.cpus), 4)}
        return {**request, "GPU": self.gpus} if self.gpus else request


def capacity(size: HostSize, nodes: list[dict[str, Any]]) -> int:
    """How many hosts of a size fit on the nodes (as `ray.nodes()` gives them); a rank never spans two nodes."""
    ranks = 0
    for node in nodes:
        if not node["Alive"]:
            continue
        resources = node["Resources"]
        fits = [resources.get("CPU", 0) / size.cpus]
        if size.gpus:
            # Ranks that share a GPU cannot be split over two: 0.4 fits twice, not 2.5 times, on one.
            fits.append(
                resources.get("GPU", 0) * math.floor(1 / size.gpus)
                if size.gpus < 1
                else resources.get("GPU", 0) / size.gpus
            )
        ranks += math.floor(min(fits) + 1e-9)
    return ranks // size.workers


def count_hosts(size: HostSize, wanted: int | str, trials: int, nodes: list[dict[str, Any]]) -> int:
    """The number of hosts to start: what fits ("auto"), never more than there are trials.

    Raises:
        UserError: the cluster lacks the resources; says what it has.
    """
    fit = capacity(size, nodes)
    needed = 1 if wanted == "auto" else int(wanted)
    if fit < needed:
        has = "; ".join(
            f"{n['Resources'].get('CPU', 0):g} CPUs, {n['Resources'].get('GPU', 0):g} GPUs" for n in nodes if n["Alive"]
        )
        lacks_gpus = size.gpus > 0 and all(n["Resources"].get("GPU", 0) < size.gpus for n in nodes if n["Alive"])
        raise UserError(
            f"the cluster lacks the resources for {needed} host{'s' if needed > 1 else ''}",
            key="resources.gpus" if lacks_gpus else "resources",
            found=f"{size.workers} worker(s) a host with {size.cpus:g} CPUs and {size.gpus:g} GPUs each",
            expected=f"at most what there is (nodes: {has})",
            hint="resources.gpus=0 trains on CPUs." if lacks_gpus else None,
        )
    return max(1, min(fit if wanted == "auto" else needed, trials))


def open_board(name: str) -> Any:
    """Start a board on this node. It ends with this process's connection to Ray."""
    return _on_this_node(Board, 1000).options(name=name, namespace="mmsweep").remote()


def _on_this_node(actor: type, concurrency: int) -> Any:
    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    options: dict[str, Any] = {"num_cpus": 0, "max_concurrency": concurrency, "label_selector": here}
    return ray.remote(**options)(actor)


class _Failures(UserCallback):
    """Reports to the board why ranks died, from Ray Train's controller."""

    def __init__(self, board: Any, host: str) -> None:
        self.board, self.host = board, host

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        text = "; ".join(f"rank {rank}: {_last_line(error)}" for rank, error in sorted(worker_exceptions.items()))
        self.board.failed.remote(self.host, text)


class HostPool:
    """All hosts of a sweep, as the driver sees them; a `Supervisor` runs them.

    Args:
        board: the board's actor.
        size: what one host takes.
        count: how many hosts.
        warm: import path "module:Class" of what hosts keep warm.
        storage: folder for Ray Train's own files.
        logs: folder for the ranks' logs.
        liveness: of the cluster.
    """

    def __init__(
        self, board: Any, size: HostSize, count: int, warm: str, storage: Path, logs: Path, liveness: Liveness
    ) -> None:
        self.board, self.storage, self.logs, self._liveness = board, storage, logs, liveness
        self.names = [f"host-{i}" for i in range(count)]
        self._arguments = (board, size, self.names, warm, storage, logs, sole_user(), PLAIN not in os.environ)
        self._supervisor: Any = None
        self._supervision: Any = None  # the call that ends with it
        self._supervisors = 0
        self._ending: list[Any] = []  # the calls that end the hosts, once they were made
        self._fatal: str | None = None
        self._gone: str | None = None
        self.status: dict[str, Any] = {}  # what the board said last
        self._status: Any = None
        self._asked = 0.0

    def start(self) -> None:
        self._supervisor = _on_this_node(Supervisor, 2).remote(*self._arguments)
        self._supervision = self._supervisor.supervise.remote()
        self._supervisors += 1

    def _start_again(self, error: Exception) -> None:
        """Start another supervisor, and with it the hosts: this one was killed, or cannot be reached.

        Ray's own `max_restarts` would make it the first that Ray kills where memory runs out.
        """
        log.warning("the hosts' supervisor: %s", error)
        ray.kill(self._supervisor)  # it may only have been out of reach
        for name in self.names:
            self.board.failed.remote(name, "the process that runs the hosts was killed or out of reach")
        _free(self.board, self.names, sole_user())
        self.start()

    def check(self) -> None:
        """Cheap; to be called often.

        Raises:
            EnvironmentFaultError: the environment gave out under a host.
            ClusterGoneError: a process that the sweep cannot do without is gone.
            UserError: the hosts cannot work, and why.
        """
        if self._gone is None and self._fatal is None and time.monotonic() - self._asked > 1.0:
            self._asked = time.monotonic()
            try:
                if ray.wait([self._supervision], timeout=0)[0]:
                    try:
                        self._fatal = ray.get(self._supervision)
                    except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError) as error:
                        if self._supervisors >= MAX_RUNS:
                            raise
                        if not self._ending:
                            self._start_again(error)
                if self._status is not None and ray.wait([self._status], timeout=0)[0]:
                    self.status, self._status = ray.get(self._status), None
                    self._fatal = self._fatal or self.status["fatal"]
                if self._status is None:
                    self._status = self.board.status.remote()
            except ray.exceptions.RayError as error:
                self._gone = self._missing(error)
        if self._gone is not None:
            raise ClusterGoneError(self._gone)
        if outage := self.status.get("outage"):
            raise EnvironmentFaultError(outage)
        if self._fatal is not None:
            raise UserError(
                f"the hosts cannot go on: {self._fatal}", file=self.logs, hint="The log files in this folder say more."
            )

    def gone(self) -> str | None:
        """What became of the cluster, or of the sweep's own processes on it; None while all is there. Cheap."""
        return self._liveness.gone() or self._gone

    def blame(self, error: Exception) -> None:
        """A call to Ray failed: find out whether that was because a process is gone (`gone` then says so)."""
        try:
            ray.get(self.board.status.remote(), timeout=5)
        except ray.exceptions.RayError:
            self._gone = self._gone or self._missing(error)

    def _missing(self, error: Exception) -> str:
        log.warning("a process of the sweep's is gone: %s", error)
        return "the process that holds the sweep's queue, or the one that runs its hosts, ended"

    def end(self) -> None:
        """Tell the hosts to end."""
        if not self._ending:
            self._ending = [self._supervisor.close.remote(), self.board.close.remote()]

    def close(self, seconds: float) -> None:
        """Tell the hosts to end, wait so long for those that do so at once, and end the others."""
        if left_behind() or self.gone():
            return
        try:
            self.end()
            ray.get(self._ending, timeout=5)
            ray.wait([self._supervision], timeout=seconds)
        except Exception as error:  # they are gone already
            log.info("closing the hosts: %s", error)
        try:
            ray.kill(self._supervisor)
            _free(self.board, self.names, sole_user())  # where Ray itself goes on, it would be reserved for ever
        except Exception as error:
            log.info("ending the hosts: %s", error)


class Supervisor:
    """Runs Ray Train, its controllers included, for every host of a sweep, as one 0-CPU actor on the driver's node.

    A trainer's `fit` blocks until a host ends, which after a sweep takes Ray Train seconds or for ever. In threads of
    the driver that cannot be waited for: one that still uses Ray when `ray.shutdown` was called ends the whole process
    ("The core worker has already been shutdown"), before reports are written. This process ends with Ray; where it dies
    before, its hosts do too, and `HostPool` starts another.

    Args: as HostPool's; names: of the hosts; sole: see `_free`; lean: see `host_trainer`.
    """

    def __init__(
        self, board: Any, size: HostSize, names: list[str], warm: str, storage: Path, logs: Path, sole: bool, lean: bool
    ) -> None:
        self.board, self.size, self.names, self.warm, self.storage, self.logs = board, size, names, warm, storage, logs
        self.sole, self.lean = sole, lean
        self._closing = threading.Event()
        self._fatal: str | None = None

    def supervise(self) -> str | None:
        """Run the hosts, and start them again, until `close`; returns what is wrong if that is of no use."""
        with logged_to(self.logs / "supervisor.log"):
            logging.getLogger("ray.train").setLevel(logging.WARNING)
            threads = [threading.Thread(target=self._supervise, args=(n,), name=n, daemon=True) for n in self.names]
            for thread in threads:
                thread.start()
            while self._fatal is None and any(thread.is_alive() for thread in threads):
                time.sleep(0.2)
        return self._fatal

    def close(self) -> None:
        """Start no host again."""
        self._closing.set()

    def _supervise(self, name: str) -> None:
        for _ in range(MAX_RUNS):
            try:
                self._fit(name)
            except Exception as error:
                log.warning("%s: Ray Train's run ended: %s", name, error)
                if self.lean:  # a name may mean something else in this Ray
                    log.warning("hosts that start from now on are plain TorchTrainer runs")
                    self.lean = False
                self.board.failed.remote(name, _last_line(error))
                if not self._closing.is_set():
                    _free(self.board, [name], self.sole)
            if self._closing.is_set():
                return
            time.sleep(1.0)
        self._fatal = f"{name}: Ray Train's run ended {MAX_RUNS} times"

    def _fit(self, name: str) -> None:
        place = Place(self.board, name, self.warm, math.floor(self.size.cpus), self.size.gpus, str(self.logs))
        api: Any = train  # whose stubs still show the classes of Train V1
        config = api.RunConfig(
            name=f"{name}-{uuid4().hex[:6]}",  # a name that was used before would make Ray Train resume that run
            storage_path=str(self.storage),
            failure_config=api.FailureConfig(max_failures=-1),  # the board counts, and knows about progress
            callbacks=[_Failures(self.board, name)],
            logging_config=api.LoggingConfig(log_level="WARNING"),  # of the ranks; this process: `supervise`
        )
        host_trainer(
            self.lean,
            self.size.workers > 1 or self.size.gpus > 0,
            train_loop_per_worker=serve,
            train_loop_config={"place": place},
            scaling_config=api.ScalingConfig(
                num_workers=self.size.workers, use_gpu=self.size.gpus > 0, resources_per_worker=self.size.per_worker
            ),
            run_config=config,
        ).fit()


def _free(board: Any, names: Sequence[str], sole: bool) -> None:
    """Remove the placement groups of hosts whose runs are over, or the next ones would wait for ever.

    Ray's own cleaner cannot be relied on: it asks the State API, which fails without the dashboard, and where two
    Rays run on a machine ("Found multiple active Ray instances").

    Args:
        sole: nobody but the sweep uses this Ray: groups that no host has reported belong to one that died starting.
    """
    try:
        reported = ray.get(board.placement_groups.remote(), timeout=5)
        unreported = {*placement_group_table()} - {*reported.values()} if sole else set()
        for id in {*(id for name, id in reported.items() if name in names), *unreported}:
            remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(id))))
    except ray.exceptions.RayError as error:
        log.warning("%s: placement groups: %s", ", ".join(names), error)


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
