"""What a host does: every rank of its Ray Train worker group runs `train_at` until the board closes.

Rank 0 talks to the board and tells the other ranks; all ranks train every pack together. What is warm (prepared data,
frozen backbone) is kept from pack to pack as long as the trials' keys are equal.

    next_request ─► how many slots? ─► fill ─► run_pack ─┬─► report, after every epoch of the pack
                                                         ├─► fill, where slots have become free
                                                         └─► over, for each trial

What can go wrong, and what then happens
    A trial raises: it is marked failed with the message, the others of its pack go on.
    The pack raises: with one trial in it, the trial is marked failed and the host goes on with the next. With several,
    one of them may be to blame: all are queued again, and each goes on alone until it has reported. With several ranks,
    an exception may also be the echo of another rank's death, so only a `UserError` is taken as a trial's own;
    anything else ends the worker group, Ray Train starts it again, and the board queues the trials again (and fails one
    with which that happens again and again).
    The environment gives out (a full disk, a lost mount, too little memory): no trial fails of it. The pack is queued
    again, the board tells the driver, and the sweep ends as interrupted.
    The device's memory does not suffice for a pack: it has half as many slots from then on. Where it does not suffice
    for a single trial, that trial fails, unless other processes hold memory of the device.
    A rank or the worker group is killed: Ray Train starts it again; the trials go on from their last checkpoints.
    The board is gone: the driver is; end.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import logging
import math
import threading
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import ray
import torch
import torch.distributed as dist

from mmsweep.environment_faults import environment_fault
from mmsweep.errors import UserError
from mmsweep.record.files import cache_folder
from mmsweep.record.lock import HeldError, held
from mmsweep.record.packing import Capacity, MeasuredCapacities
from mmsweep.record.trial import Report, TrialFolder
from mmsweep.study import Study
from mmsweep.study.packs import Job
from mmsweep.study.sections import MOST_SLOTS
from mmsweep.sweep.board import Request, StaleHost
from mmsweep.sweep.place import Place
from mmsweep.training.capacity import machine
from mmsweep.training.engine import Answer
from mmsweep.training.world import World

POLL_SECONDS = 1.0
LOCK_SECONDS = 60.0
GATHER_SECONDS = 5.0  # a pack waits so long for its slots to fill, if the driver has more trials
OTHERS_SHARE = 0.1  # of a device's memory: more than its driver and this process's context hold themselves
PATIENCE = 0.5  # of an epoch's seconds: what waiting may cost the slots at work, for each that is free

log = logging.getLogger("mmsweep.host")


class BrokenDeviceError(Exception):
    """A CUDA context broke before a trial had begun."""


# The board is gone, this group was replaced, an older one lives on, or its device broke: the worker group ends.
NOT_A_TRIALS = (ray.exceptions.RayError, StaleHost, HeldError, BrokenDeviceError)


def train_at(place: Place) -> None:
    """Train what the board gives out until it closes, as one rank of a host."""
    world = World.current()
    with _log_file(Path(place.logs) / f"{place.host}-rank-{world.rank}.log"):
        torch.set_num_threads(max(1, place.threads))
        _Host(place, world).run()


class _Host:
    def __init__(self, place: Place, world: World) -> None:
        self.place, self.world, self.board = place, world, place.board
        self.connected = ray.is_initialized()
        self.module: Any = None
        # Objects are broadcast on the CPU even where gradients travel by NCCL.
        self.control: Any = dist.new_group(backend="gloo") if world.size > 1 else None
        self.device = _device() if place.gpus else "cpu"
        self.warm: Any = None
        self.key: str | None = None
        self.token = 0
        self.capacity = Capacity("", "", 1)
        self.measured = MeasuredCapacities(cache_folder(), machine(torch.device(self.device)))
        self.pack: dict[str, Request] = {}  # that train now
        self.studies: dict[str, Study] = {}  # theirs
        self.metrics: dict[str, list[str]] = {}  # that must be in their reports
        self.locks: dict[str, contextlib.ExitStack] = {}  # on rank 0
        self.epoch_seconds = 0.0

    def run(self) -> None:
        self.token = self._share(self._register() if self.world.first else None)
        self.module = importlib.import_module(
            self.place.warm.split(":")[0]
        )  # after registering, which counts failed starts
        while True:
            word = self._share(self._next() if self.world.first else None)
            if word == "closed":
                break
            if isinstance(word, Request):
                self._train(word)

    def _register(self) -> Any:
        group = ray.get_runtime_context().get_placement_group_id()
        return ray.get(self.board.register.remote(self.place.host, group))

    def _next(self) -> Any:
        return self._ask(self.board.next_request, self.key, POLL_SECONDS)

    def _ask(self, method: Any, *args: Any) -> Any:
        return ray.get(method.remote(self.place.host, self.token, *args))

    def _share(self, word: Any) -> Any:
        """Rank 0's word, on every rank."""
        if self.control is None:
            return word
        words = [word]
        dist.broadcast_object_list(words, src=0, group=self.control)
        return words[0]

    # ------------------------------------------------------------------ a pack

    def _train(self, first: Request) -> None:
        self.pack, self.studies, self.metrics = {first.id: first}, {}, {}
        try:
            self.capacity = self._capacity(first)
            jobs = self._joined([first], GATHER_SECONDS)
            self._warm(first.key).run_pack(jobs, self._report, self._refill, self._over)
        except NOT_A_TRIALS:
            raise
        except Exception as problem:
            if self._process_ends():
                raise
            self._broke_off(problem)

    def _joined(self, requests: Sequence[Request], seconds: float) -> list[Job]:
        """Requests and as many more as there are slots for, as jobs whose folders are locked."""
        if self.world.first:
            free = self.capacity.slots - len(self.pack)
            more = self._ask(self.board.fill, list(self.pack), free, seconds) if free > 0 else []
            requests = [*requests, *more]
            self.pack |= {request.id: request for request in requests}  # all, before one's folder turns out damaged
            for request in requests:
                self._lock(request)
        jobs = []
        for request in self._share(list(requests)):
            log.info("%s starts on %s", request.id, self.device)
            self.pack[request.id] = request
            job = self._job(request)
            objectives = job.study.sweep.objectives if request.kind == "trial" else []
            self.metrics[request.id] = [objective.metric for objective in objectives]
            jobs.append(job)
        return jobs

    def _lock(self, request: Request) -> None:
        folder, lock = TrialFolder(request.folder), contextlib.ExitStack()
        folder.path.mkdir(parents=True, exist_ok=True)
        # A worker that was replaced, or left behind by a killed driver, may still live.
        lock.enter_context(held(folder.path / ".lock", LOCK_SECONDS))
        self.locks[request.id] = lock
        self._ask(self.board.replay, request.id, [asdict(r) for r in folder.reports()])

    def _refill(self) -> Sequence[Job]:
        """Trials for the slots that are free. A pack that is empty ends: the next one may be of another kind."""
        busy = len(self.pack)
        free = self.capacity.slots - busy
        if not busy or free <= 0:
            return ()
        # A trial that stops reaches Tune, which asks for the next one: that takes a moment. Waiting costs the slots at
        # work what an epoch without the free ones would cost those.
        patience = self.epoch_seconds * max(0.1, PATIENCE * free / busy)
        return self._joined([], min(patience, GATHER_SECONDS))

    def _report(self, reports: Sequence[tuple[Job, Report]]) -> Sequence[Answer]:
        self.epoch_seconds = max(record.seconds for _, record in reports)
        answers: dict[str, Answer] = {}
        if self.world.first:
            for job, record in reports:
                problems = [_objective_problem(record, metric) for metric in self.metrics[job.id]]
                if problem := next(filter(None, problems), None):
                    answers[job.id] = problem
            good = {job.id: asdict(record) for job, record in reports if job.id not in answers}
            answers |= self._ask(self.board.report, good) if good else {}
        answers = self._share(answers)  # an error too: all ranks must part with the trial
        return [answers[job.id] for job, _ in reports]

    def _over(self, job: Job, problem: Exception | None) -> None:
        if problem is not None and _environment_fault(problem, [job.folder]):
            raise problem  # the pack breaks off
        error = str(problem) if problem is not None else None
        del self.pack[job.id]
        if self.world.first:
            folder = TrialFolder(job.folder)
            if error is not None:
                folder.mark_done("failed", error)
            self._ask(self.board.over, job.id, error or (folder.done() or {}).get("error"))
            self.locks.pop(job.id).close()
        log.info("%s ends%s", job.id, f": {error}" if error else "")

    def _process_ends(self) -> bool:
        """Whether this process was told to end (SIGTERM), in whose course anything may fail."""
        return not threading.main_thread().is_alive() or (self.connected and not ray.is_initialized())

    def _broke_off(self, problem: Exception) -> None:
        """A pack ended by an exception; raises where the worker group must start anew."""
        expected = isinstance(problem, UserError)
        text = str(problem) if expected else f"{type(problem).__name__}: {problem}"
        log.error("%s: %s\n%s", ", ".join(self.pack), text, traceback.format_exc())
        ids = list(self.pack)
        fault = _environment_fault(problem, [request.folder for request in self.pack.values()])
        if fault:
            ray.get(self.board.outage.remote(f"{self.place.host}: {fault}"))
        short = isinstance(problem, torch.OutOfMemoryError) and len(ids) > 1
        if short:
            known = self.capacity
            reason = "the memory did not suffice for more"
            self.measured.forget(known.pack, known.on)
            self._ask(self.board.capacity, replace(known, slots=max(1, len(ids) // 2), reason=reason, most=MOST_SLOTS))
        if self.world.size > 1 and (fault or not expected):
            ray.get(self.board.failed.remote(self.place.host, f"rank {self.world.rank}: {text}"))
            raise problem
        if len(ids) == 1 and not fault:
            request = self.pack[ids[0]]
            TrialFolder(request.folder).mark_done("failed", text)
            self._ask(self.board.over, request.id, text)
        else:
            self._ask(self.board.requeue, ids, not short and not fault)
        for lock in self.locks.values():
            lock.close()
        self.pack, self.locks = {}, {}
        if self.world.size > 1 or "CUDA error" in text:
            # It may have struck one rank alone while the others wait for it, and a process whose CUDA context broke
            # can train nothing more: only a new group is surely sound.
            raise problem
        self.warm = self.key = None  # its state is unknown after an exception

    # ------------------------------------------------------------------ what is warm, and how much of it

    def _warm(self, key: str) -> Any:
        if self.warm is None or self.key != key:
            self.warm = None
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            started = time.time()
            self.warm = getattr(self.module, self.place.warm.split(":")[1])(self.device, self.world)
            self.key = key
            log.info("warm for %s after %.1f s", key, time.time() - started)
        return self.warm

    def _capacity(self, first: Request) -> Capacity:
        """How many slots there are for packs of a trial's kind; measured once for all, and for later sweeps."""
        asked = self._job(first).study.resources.slots
        name = torch.cuda.get_device_name(self.device) if self.device != "cpu" else f"cpu, {self.place.threads} threads"
        on = f"{name}, {self.world.size} ranks, slots {asked}"
        known = self._share(self._known(first, on) if self.world.first else None)
        if known is None:
            try:
                known = self._measured(first, on)
            except NOT_A_TRIALS:
                raise
            except Exception as problem:
                if self.world.size > 1:
                    raise
                if "CUDA error" in str(problem):  # nothing can be trained in this process any more
                    raise BrokenDeviceError(f"while slots were counted: {problem}") from problem
                # If it is the trial's own, training it will say so; if not, a single slot is what is known to work.
                log.warning("%s: slots could not be counted: %s", first.id, problem, exc_info=True)
                self._ask(self.board.probing, None)
                return Capacity(first.pack, on, 1)
            log.info("%d slots on %s%s", known.slots, on, f": {known.reason}" if known.reason else "")
        if self.world.first:
            self._ask(self.board.capacity, known)
        return known

    def _known(self, first: Request, on: str) -> Capacity | None:
        if known := self._ask(self.board.known_capacity, first.pack, on, first.pack_limit):
            return known
        if known := self.measured.get(first.pack, on, first.pack_limit):
            log.info("%d slots on %s, as measured in an earlier sweep: %s", known.slots, on, known.reason)
        return known

    def _measured(self, first: Request, on: str) -> Capacity:
        tried: list[int] = []

        def reached(slots: int) -> None:
            """Tell the board, before the next size is tried: that may be the end of this process."""
            tried.append(slots)
            if self.world.first:
                reason = f"a host died when it tried {max(1, 2 * slots)} slots"
                self._ask(self.board.probing, Capacity(first.pack, on, max(1, slots), reason))

        warm = self._warm(first.key)
        slots, reason = warm.slots_for(self._job(first), first.pack_limit, self._share, reached)
        capacity = Capacity(first.pack, on, slots, reason, first.pack_limit)
        if tried and self.world.first:
            self.measured.put(capacity)
        return capacity

    def _job(self, request: Request) -> Job:
        if request.id not in self.studies:
            self.studies[request.id] = Study.parse(request.study)
        return Job(request.id, request.kind, request.folder, self.studies[request.id])


def _environment_fault(problem: Exception, folders: Sequence[str]) -> str | None:
    """What of the environment gave out, in a line; None where the problem may be a trial's own."""
    if fault := environment_fault(problem):
        return fault
    if gone := next((folder for folder in folders if not Path(folder, "trial.json").exists()), None):
        return f"a trial's folder is gone: {gone}"
    if isinstance(problem, torch.OutOfMemoryError) and len(folders) == 1 and torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        others = total - free - torch.cuda.memory_reserved()
        if others > OTHERS_SHARE * total:
            return f"the device's memory does not suffice while others hold {others / 2**30:.1f} GiB of it"
    return None


def _objective_problem(report: Report, metric: str) -> UserError | None:
    if metric not in report.metrics:
        known = ", ".join(sorted(m for m in report.metrics if m.startswith("val/")))
        return UserError(
            "no such metric is computed", key="sweep.objective.metric", found=metric, expected=f"one of {known}"
        )
    if math.isnan(report.metrics[metric]):
        return UserError(f"{metric} is not a number at epoch {report.epoch}")
    return None


def _device() -> str:
    if not torch.cuda.is_available():
        return "cpu"
    from ray.train.torch import get_device

    return str(get_device())


@contextlib.contextmanager
def _log_file(path: Path) -> Iterator[None]:
    """Everything that this rank logs, prints or warns of goes to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", buffering=1, encoding="utf-8") as file:
        handler = logging.StreamHandler(file)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        loggers = [logging.getLogger(name) for name in ("mmsweep", "py.warnings")]
        for logger in loggers:
            logger.addHandler(handler)
            logger.setLevel(logging.INFO)
            logger.propagate = False  # Ray's own handler would write every line a second time
        logging.captureWarnings(True)
        warnings.simplefilter("default")
        try:
            with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
                yield
        except BaseException:
            log.error("the rank ends by an exception\n%s", traceback.format_exc())
            raise
        finally:
            for logger in loggers:
                logger.removeHandler(handler)
