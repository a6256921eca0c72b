"""The train function of a host: every rank of a Ray Train worker group runs `serve` until the board closes.

Rank 0 talks to the board and tells the other ranks; all ranks train every trial together. What is warm (prepared
data, frozen backbone) is kept from trial to trial as long as the trials' keys are equal.

What can go wrong, and what then happens
    A trial raises: it is marked failed with the message, the host goes on with the next. With several ranks, an
    exception may also be the echo of another rank's death, so only a `UserError` is taken as the trial's own;
    anything else ends the worker group, Ray Train starts it again, and the board gives the trial back (and fails it
    when that happens again and again).
    A rank or the worker group is killed: likewise; the trial goes on from its last checkpoint.
    The board is gone: the driver is; end.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import logging
import math
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
import torch
import torch.distributed as dist

from mmsweep.errors import UserError
from mmsweep.study import Study
from mmsweep.sweep.board import Posting, StaleHost
from mmsweep.training.checkpoint import Report, TrialFolder
from mmsweep.training.world import World

POLL_SECONDS = 1.0
LOCK_SECONDS = 60.0

log = logging.getLogger("mmsweep.host")


@dataclass(frozen=True)
class Place:
    """Where a host's ranks find things.

    Args:
        board: handle of the board's actor.
        host: the host's name, "host-0".
        warm: import path "module:Class" of what is kept warm; the module also holds `Job` and `warm_key`.
        threads: CPU threads a rank.
        gpus: GPUs a rank; 0: the CPU, also where there is a GPU.
        logs: folder for the ranks' log files.
    """

    board: Any
    host: str
    warm: str
    threads: int
    gpus: float
    logs: str


def serve(config: dict[str, Any]) -> None:
    """Train what the board gives out until it closes. `config` is {"place": Place} (Ray Train passes mappings)."""
    place: Place = config["place"]
    world = World.current()
    with _log_file(Path(place.logs) / f"{place.host}-rank-{world.rank}.log"):
        torch.set_num_threads(max(1, place.threads))
        _Host(place, world).run()


class _Host:
    def __init__(self, place: Place, world: World) -> None:
        self.place, self.world, self.board = place, world, place.board
        self.module: Any = None
        # Objects are broadcast on the CPU even where gradients travel by NCCL.
        self.control: Any = dist.new_group(backend="gloo") if world.size > 1 else None
        self.device = _device() if place.gpus else "cpu"
        self.warm: Any = None
        self.key: str | None = None
        self.token = 0

    def run(self) -> None:
        self.token = self._share(self._register() if self.world.first else None)
        self.module = importlib.import_module(
            self.place.warm.split(":")[0]
        )  # after registering, which counts vain starts
        while True:
            word = self._share(self._next() if self.world.first else None)
            if word == "closed":
                break
            if isinstance(word, Posting):
                self._train(word)

    def _register(self) -> Any:
        group = ray.get_runtime_context().get_placement_group_id() or ""
        return self._ask(self.board.register, self.place.host, group)

    def _next(self) -> Any:
        return self._ask(self.board.next_job, self.place.host, self.token, self.key, POLL_SECONDS)

    def _ask(self, method: Any, *args: Any) -> Any:
        return ray.get(method.remote(*args))

    def _share(self, word: Any) -> Any:
        """Rank 0's word, on every rank."""
        if self.control is None:
            return word
        words = [word]
        dist.broadcast_object_list(words, src=0, group=self.control)
        return words[0]

    def _train(self, posting: Posting) -> None:
        folder, error = TrialFolder(posting.folder), None
        log.info("%s starts on %s", posting.id, self.device)
        with _alone(folder) if self.world.first else contextlib.nullcontext():
            if self.world.first:
                recorded = [asdict(r) for r in folder.reports()]
                self._ask(self.board.replay, self.place.host, self.token, posting.id, recorded)
            try:
                self._warm(posting.key).run(self._job(posting), self._reporter(posting))
            except (ray.exceptions.RayError, StaleHost):
                raise  # the board is gone, or this group was replaced: not the trial's doing
            except Exception as problem:
                error = self._failed(posting, folder, problem)
        if self.world.first:
            done = folder.done() or {}
            self._ask(self.board.over, self.place.host, self.token, posting.id, error or done.get("error"))
        log.info("%s ends%s", posting.id, f": {error}" if error else "")

    def _failed(self, posting: Posting, folder: TrialFolder, problem: Exception) -> str:
        """The message of a trial that failed by itself; raises where the worker group must start anew."""
        own = isinstance(problem, UserError)
        text = str(problem) if own else f"{type(problem).__name__}: {problem}"
        log.error("%s: %s\n%s", posting.id, text, traceback.format_exc())
        if self.world.size > 1 and not own:
            self._ask(self.board.trouble, self.place.host, f"rank {self.world.rank}: {text}")
            raise problem
        folder.mark_done("failed", text)
        if self.world.size > 1 or "CUDA error" in text:
            # It may have struck one rank alone while the others wait for it, and a process whose CUDA context broke
            # can train nothing more: only a new group is surely sound.
            self._ask(self.board.over, self.place.host, self.token, posting.id, text)
            raise problem
        self.warm = self.key = None  # its state is unknown after an exception
        return text

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

    def _job(self, posting: Posting) -> Any:
        return self.module.Job(
            id=posting.id, kind=posting.kind, folder=posting.folder, study=dict(posting.study), key=posting.key
        )

    def _reporter(self, posting: Posting) -> Any:
        objectives = Study.parse(posting.study).sweep.objectives

        def report(report: Report) -> bool:
            stop = False
            if self.world.first:
                for objective in objectives if posting.judged else []:
                    _check_objective(report, objective.metric)
                stop = self._ask(self.board.report, self.place.host, self.token, posting.id, asdict(report))
            return bool(self._share(stop))

        return report


def _check_objective(report: Report, metric: str) -> None:
    if metric not in report.metrics:
        known = ", ".join(sorted(m for m in report.metrics if m.startswith("val/")))
        raise UserError(
            "no such metric is computed", key="sweep.objective.metric", found=metric, expected=f"one of {known}"
        )
    if math.isnan(report.metrics[metric]):
        raise UserError(f"{metric} is not a number at epoch {report.epoch}")


@contextlib.contextmanager
def _alone(folder: TrialFolder) -> Iterator[None]:
    """Hold the trial's folder alone: a worker that was replaced, or left behind by a killed driver, may still live."""
    folder.path.mkdir(parents=True, exist_ok=True)
    with open(folder.path / ".lock", "w") as file:
        until = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise UserError("another process trains this trial", file=folder.path) from None
                time.sleep(0.2)
        yield


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
