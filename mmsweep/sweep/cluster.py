"""Connecting to Ray quietly: a Ray of its own on this machine, or the cluster that RAY_ADDRESS (or a Ray job) names."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import mmsweep
from mmsweep.ending import Interrupt, Interrupted
from mmsweep.environment_faults import EnvironmentFaultError
from mmsweep.errors import UserError

JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # is set inside of a submitted Ray job


def own_ray() -> bool:
    """Whether a Ray is started here, rather than a cluster joined."""
    return os.environ.get("RAY_ADDRESS", "") in ("", "local") and JOB not in os.environ


SWITCHES = {  # of Ray's, read when it is imported; what the user's environment says wins
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",  # how soon the controller sees that a rank died
    # Controllers share a process: the logging that each would set up there would lock the others'.
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # results are in the trials' folders and in MLflow
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is ours, see Interrupt
    "TUNE_WARN_THRESHOLD_S": "30",
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "30",  # on a busy machine 2 s are too few to end a light trial
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial may fail in its first epoch
    "RAY_AIR_NEW_OUTPUT": "0",
    # For laptops: a Ray that is started here listens on 127.0.0.1. A cluster ("1") has its own addresses.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0" if own_ray() else "1",
}
os.environ.update({**SWITCHES, **os.environ})

import ray  # noqa: E402

QUIET: Any = {"log_to_driver": False, "logging_level": logging.ERROR}
OBJECT_STORE = 200_000_000  # bytes; nothing large goes through it, and Ray's default is 30 % of the memory
START_SECONDS = 50.0  # Ray has so long to start or to answer,
STALL_SECONDS = 30.0  # and longer where its processes appear one after the other, at least one in this time
PROBE_SECONDS = 3.0  # between two looks at the cluster; so long it may take to accept a connection
GONE_SECONDS = 3.0  # work that uses Ray has so long to end by itself once the cluster is gone,
STOP_SECONDS = 15.0  # and so long once a signal came: SLURM kills 30 s after its SIGTERM

T = TypeVar("T")
log = logging.getLogger("mmsweep.sweep")


def sole_user() -> bool:
    """Whether nobody else uses the Ray that this process is connected to: `connecting` has started it."""
    return own_ray() and _begun is not None


@dataclass(frozen=True)
class _Process:
    pid: int
    started: str  # a pid that is used again has another starting time
    parent: int = field(compare=False)
    name: str = field(compare=False)


_begun: Future[None] | None = None  # what `connect` waits for; None outside of `connecting`
_until = 0.0  # when (of `time.monotonic`) it is given up
_left_behind = False
_beside: set[_Process] = set()  # of a Ray of our own: what its raylet has started


class ClusterGoneError(EnvironmentFaultError):
    """The Ray that a sweep ran on is gone. What was computed is in the trials' folders."""


@contextlib.contextmanager
def connecting() -> Iterator[None]:
    """Begin to connect to Ray in the background, for `connect` within; at the end, disconnect.

    Ray's processes take seconds to start, and the driver's own imports leave them a core. A connection that exists
    already is used and left open.
    """
    global _begun, _until
    if ray.is_initialized():
        yield
        return
    over = threading.Event()  # Ray's processes die with the thread that started them (PR_SET_PDEATHSIG)
    _until = time.monotonic() + START_SECONDS
    begun = _begun = _in_thread("ray.init", _start, over.wait)
    try:
        yield
    finally:
        _begun = None
        try:
            wait([begun], max(0.0, _until - time.monotonic()))
        finally:
            if begun.done() and not _left_behind:
                _let_ray_print(False)
                ray.shutdown()
                _let_ray_print(True)
                _end_beside()
                over.set()
            else:
                _leave_ray()


def _in_thread(name: str, work: Callable[[], T], then: Callable[[], object] = lambda: None) -> Future[T]:
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as problem:
            done.set_exception(problem)
        then()

    threading.Thread(target=run, name=name, daemon=True).start()
    return done


@contextlib.contextmanager
def connect(interrupt: Interrupt | None = None) -> Iterator[None]:
    """Be connected to Ray; a connection that exists already is used and left open.

    Raises:
        UserError: the cluster that RAY_ADDRESS names does not answer, or Ray does not start.
        Interrupted: `interrupt` heard a signal.
    """
    global _until
    with connecting() if _begun is None else contextlib.nullcontext():
        if _begun is not None:
            known, up = -1, False
            while not up:
                up = bool(wait([_begun], 0.2).done)
                if interrupt is not None and interrupt.number is not None:
                    raise Interrupted(interrupt.number)
                if own_ray() and (children := len(_children({os.getpid()}))) != known:  # a busy machine is slow
                    known, _until = children, max(_until, time.monotonic() + STALL_SECONDS)
                if not up and time.monotonic() > _until:
                    what = "Ray did not start" if own_ray() else "the Ray cluster did not answer"
                    raise _unreachable(f"{what} within {START_SECONDS:.0f} s")
            _begun.result()
            _beside.update(_under_raylet())
        if interrupt is not None:
            interrupt.listen_again()
        yield


def _start() -> None:
    # Workers must find mmsweep also where it is run from a checkout that is not installed.
    paths = [str(Path(mmsweep.__file__).parents[1]), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    place = None if own_ray() else _place(os.environ.get("RAY_ADDRESS", ""))
    if place and (problem := _probe(place, 10.0)):  # Ray itself tries for minutes
        raise _unreachable(problem)
    try:
        if own_ray():
            # Nobody takes this machine's node away from under the hosts: no process has to watch for it.
            os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
            # "local": never a cluster that somebody else, or a killed run, left on this machine. The dashboard is eight
            # processes; only Ray Train's cleaner of placement groups would ask it (hosts.py, `_free`).
            ray.init("local", include_dashboard=False, object_store_memory=OBJECT_STORE, **QUIET)
            _end_log_monitor()
        else:
            ray.init(**QUIET)
    except Exception as error:  # Ray raises a plain one where its processes do not start in time
        raise _unreachable((str(error).splitlines() or [type(error).__name__])[0]) from error


def _unreachable(problem: str) -> UserError:
    address = os.environ.get("RAY_ADDRESS")
    given: Any = {"key": "RAY_ADDRESS", "found": address} if address else {}
    return UserError(f"Ray cannot be reached ({problem})", **given)


def _place(address: str) -> tuple[str, int] | None:
    """Host and port of an address as RAY_ADDRESS holds it; None where it names none ("auto")."""
    try:
        parts = urlsplit(address if "://" in address else f"ray://{address}")
        return (parts.hostname, parts.port) if parts.hostname and parts.port else None
    except ValueError:  # Ray says what is wrong with it
        return None


def _probe(place: tuple[str, int], seconds: float) -> str | None:
    """Why nobody can be reached at a host and port; None where somebody listens."""
    host, port = place
    try:
        with socket.create_connection(place, seconds):
            return None
    except socket.gaierror:
        return f"there is no host {host}"
    except TimeoutError:
        return f"{host}:{port} does not answer"
    except OSError as error:
        return f"nothing listens at {host}:{port}: {error.strerror or error}"


class Liveness:
    """Whether the Ray that this process is connected to is there; made once it is."""

    def __init__(self) -> None:
        known = _place("" if own_ray() else os.environ.get("RAY_ADDRESS", ""))
        self._place = known or _place(str(ray.get_runtime_context().gcs_address))
        self._probed, self._missed = time.monotonic(), 0
        self._servers = _ray_servers()

    def exposed(self) -> str | None:
        """What to say where a Ray of our own can be reached from other machines; None where it cannot."""
        sentence = "Ray listens on all network interfaces of this machine: it was imported before mmsweep"
        return sentence if own_ray() and ray.util.get_node_ip_address() != "127.0.0.1" else None

    def gone(self) -> str | None:
        """What became of it; None while it is there. Cheap."""
        if ended := next((server for server in self._servers if _running(server.pid) != server), None):
            return f"Ray's process {ended.name} ended"
        if self._place and time.monotonic() - self._probed > PROBE_SECONDS:
            problem = _probe(self._place, PROBE_SECONDS)
            self._missed = self._missed + 1 if problem else 0
            self._probed = time.monotonic()
            if problem and self._missed > 1:
                return f"the Ray cluster is gone: {problem}"
        return None


def attended(work: Callable[[], T], interrupt: Interrupt, gone: Callable[[], str | None]) -> T:
    """Do `work`, which uses Ray, in a thread of its own, and leave it behind if it cannot come to an end.

    Many calls of Ray's wait for ever for a cluster that is gone, and no signal gets through to some of them.

    Raises:
        ClusterGoneError: the cluster is gone, as `gone` said.
        Interrupted: `interrupt` heard a second signal, or `work` did not end after the first one.
    """
    done = _in_thread("sweep", work)
    until = float("inf")
    reason: str | None = None
    try:
        while not wait([done], 0.2).done and time.monotonic() < until:
            reason = reason or gone()
            if reason or interrupt.requested:
                until = min(until, time.monotonic() + (GONE_SECONDS if reason else STOP_SECONDS))
    finally:
        if not done.done():
            _leave_ray()
    if done.done() and done.exception() is None:
        return done.result()
    problem, reason = done.exception() if done.done() else None, reason or gone()
    if problem is not None:
        if reason is None:
            raise problem
        log.error("when the cluster was gone", exc_info=problem)
    if interrupt.number is not None:
        raise Interrupted(interrupt.number)
    raise ClusterGoneError(str(reason)) from problem


def left_behind() -> bool:
    """Whether a thread is inside of Ray for good, so that no call of Ray's can be relied on."""
    return _left_behind


def check_attended() -> None:
    """Raises ClusterGoneError if `attended` has left its caller behind: it may write nothing any more."""
    if _left_behind:
        raise ClusterGoneError("the sweep has ended meanwhile")


def _leave_ray() -> None:
    """A thread is inside of Ray: shutting it down would wait for that thread, or abort the process."""
    global _left_behind
    if not _left_behind:
        _left_behind = True
        _let_ray_print(False)
        atexit.unregister(ray.shutdown)
        with contextlib.suppress(Exception):  # asks the cluster, and has no public name; without it the exit may wait
            atexit.unregister(sys.modules["ray.tune.registry"]._unregister_all)
        atexit.register(_end_own_ray)


def _let_ray_print(on: bool) -> None:
    # Ray prints, on stdout, why its processes ended. At the end that would stand among our last words, and no public
    # switch stops a thread that prints later on. Where Ray names it otherwise, the lines are shown.
    with contextlib.suppress(AttributeError):
        module: Any = ray._private.worker
        module._worker_logs_enabled = on


def _running(pid: int | str) -> _Process | None:
    """A process (on Linux); None where it has ended."""
    with contextlib.suppress(OSError):
        before, _, after = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
        state, parent, *fields = after.split()
        return None if state in "ZX" else _Process(int(pid), fields[17], int(parent), before.partition("(")[2])
    return None


def _children(parents: Collection[int]) -> set[_Process]:
    running = (_running(path.name) for path in Path("/proc").glob("[0-9]*"))
    return {process for process in running if process and process.parent in parents}


def _ray_servers() -> set[_Process]:
    """The raylet and the GCS of a Ray that this process has started."""
    return {child for child in _children({os.getpid()}) if child.name in ("raylet", "gcs_server")}


def _under_raylet() -> set[_Process]:
    return _children({server.pid for server in _ray_servers() if server.name == "raylet"})


def _end_own_ray() -> None:
    """End a Ray of our own, in place of `ray.shutdown`, as the last thing that this process does.

    Its processes die with this one, but not what its raylet started. Nothing is killed from here: Ray's library ends
    this process, with a status of its own, as soon as it sees that the raylet is gone.
    """
    if ending := _beside | _under_raylet():
        command = f"sleep 1; kill -9 {' '.join(str(process.pid) for process in ending)}"
        quiet = subprocess.DEVNULL
        subprocess.Popen(["sh", "-c", command], stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)


def _end_beside() -> None:
    """End what a raylet of our own has left: its agents stay for a minute where it was killed."""
    while _beside:
        process = _beside.pop()
        with contextlib.suppress(OSError):
            if _running(process.pid) == process:
                os.kill(process.pid, signal.SIGKILL)


def _end_log_monitor() -> None:
    # It would show the workers' output here, and takes more than 1 % of a core. Only `ray start` has an option for it.
    for process in _children({os.getpid()}):
        with contextlib.suppress(OSError):
            if b"log_monitor.py" in Path(f"/proc/{process.pid}/cmdline").read_bytes():
                os.kill(process.pid, signal.SIGKILL)


@contextlib.contextmanager
def logged_to(path: Path) -> Iterator[None]:
    """Send everything that is logged, warned of or printed on the driver to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115
    handler = logging.StreamHandler(file)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root, ours, of_ray = loggers = [logging.getLogger(name) for name in ("", "mmsweep", "ray")]
    before = [(logger.handlers, logger.level) for logger in loggers]
    root.handlers = of_ray.handlers = [handler]  # Ray's passes nothing on to the root
    root.setLevel(logging.WARNING)
    ours.setLevel(logging.INFO)
    with warnings.catch_warnings(), contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        logging.captureWarnings(True)
        try:
            yield
        finally:
            logging.captureWarnings(False)
            if not _left_behind:  # what was left behind goes on logging
                for logger, (handlers, level) in zip(loggers, before, strict=True):
                    logger.handlers = handlers
                    logger.setLevel(level)
                with contextlib.suppress(OSError):  # the disk is full: a line is lost, but not how the sweep ended
                    file.close()


@contextlib.contextmanager
def ray_lines_to(path: Path) -> Iterator[None]:
    """Send what libraries write to the descriptor of stderr, past Python, to a file; Python's own stderr stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stack = contextlib.ExitStack()
    file = stack.enter_context(open(path, "a", buffering=1, encoding="utf-8"))  # noqa: SIM115
    python = sys.stderr
    python.flush()
    kept = os.dup(2)
    stack.callback(os.close, kept)
    with contextlib.suppress(OSError, ValueError):  # a test's stderr, or a notebook's, has no descriptor
        if python.fileno() == 2:
            shown = open(kept, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
            stack.enter_context(contextlib.redirect_stderr(stack.enter_context(shown)))
    os.dup2(file.fileno(), 2)
    stack.callback(os.dup2, kept, 2)
    try:
        yield
    finally:
        if not _left_behind:  # Ray goes on writing
            stack.close()
