"""Connecting to Ray quietly: a Ray of its own on this machine, or the cluster that RAY_ADDRESS (or a Ray job) names."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

import mmsweep
from mmsweep.errors import UserError

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "1")  # how soon the controller sees that a rank died
# Controllers share a process: the logging that each would set up there locks the others' (logging.config.dictConfig).
os.environ.setdefault("RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # results are in the trials' folders and in MLflow
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Ctrl-C is ours, see Interrupt
os.environ.setdefault("TUNE_WARN_THRESHOLD_S", "30")
os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", "30")  # on a busy machine 2 s are too few to end a light trial
os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")  # a trial may fail in its first epoch
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")

import ray

OBJECT_STORE = 200_000_000  # bytes; nothing large goes through it, and Ray's default is 30 % of the memory


_begun: Future[None] | None = None
"""What `connect` waits for; None outside of `connecting`."""


@contextlib.contextmanager
def connecting() -> Iterator[None]:
    """Begin to connect to Ray in the background, for `connect` within; at the end, disconnect.

    Ray's processes take seconds to start, and the driver's own imports leave them a core. A connection that exists
    already is used and left open.
    """
    global _begun
    if ray.is_initialized():
        yield
        return
    # Not a thread that ends once Ray is up: Ray's processes die with the thread that started them (PR_SET_PDEATHSIG).
    with ThreadPoolExecutor(1, thread_name_prefix="ray.init") as background:
        _begun = begun = background.submit(_start)
        try:
            yield
        finally:
            _begun = None
            try:
                wait([begun])
            finally:
                ray.shutdown()


@contextlib.contextmanager
def connect() -> Iterator[None]:
    """Be connected to Ray; a connection that exists already is used and left open.

    Raises:
        UserError: the cluster that RAY_ADDRESS names does not answer.
    """
    with connecting() if _begun is None else contextlib.nullcontext():
        if _begun is not None:
            _begun.result()
        yield


def _start() -> None:
    # Workers must find mmsweep also where it is run from a checkout that is not installed.
    home = str(Path(mmsweep.__file__).parents[1])
    known = os.environ.get("PYTHONPATH", "")
    if home not in known.split(os.pathsep):
        os.environ["PYTHONPATH"] = os.pathsep.join(part for part in (home, known) if part)
    address = os.environ.get("RAY_ADDRESS")
    try:
        if address or "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
        else:
            # Nobody takes this machine's node away from under the hosts: no process has to watch for it.
            os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
            # "local": never a cluster that somebody else, or a killed run, left on this machine. No dashboard: it is
            # eight processes, and the one thing that must ask it, Ray Train's cleaner of placement groups, is not used
            # (hosts.py).
            ray.init(
                address="local",
                include_dashboard=False,
                object_store_memory=OBJECT_STORE,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
            _end_log_monitor()
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"Ray cannot be reached ({str(error).splitlines()[0]})", key="RAY_ADDRESS", found=address
        ) from error


def _end_log_monitor() -> None:
    """End the process that would show the workers' output here (`log_to_driver` is off), for more than 1 % of a core.

    `ray start` has an option for it, `ray.init` does not. Where Ray names this otherwise, the process stays.
    """
    with contextlib.suppress(Exception):
        node: Any = ray._private.worker._global_node
        node.kill_log_monitor(check_alive=False)


class Interrupt:
    """The first Ctrl-C (or SIGTERM) asks for a clean stop, the second one ends at once."""

    def __init__(self) -> None:
        self.asked = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[Interrupt]:
        """Catches the signals within; elsewhere than on the main thread there are none to catch."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {s: signal.signal(s, self._caught) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _caught(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


@contextlib.contextmanager
def logged_to(path: Path) -> Iterator[None]:
    """Send everything that is logged, warned of or printed on the driver to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as closing:
        file = open(path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115
        closing.callback(_close, file)
        handler = logging.StreamHandler(file)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        root, ours, ray_own = logging.getLogger(), logging.getLogger("mmsweep"), logging.getLogger("ray")
        kept, root.handlers = root.handlers, [handler]
        ray_kept, ray_own.handlers = ray_own.handlers, [handler]  # it passes nothing on to the root
        level, ours_level = root.level, ours.level
        root.setLevel(logging.WARNING)
        ours.setLevel(logging.INFO)
        with warnings.catch_warnings(), contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            logging.captureWarnings(True)
            try:
                yield
            finally:
                logging.captureWarnings(False)
                root.handlers, ray_own.handlers = kept, ray_kept
                root.setLevel(level)
                ours.setLevel(ours_level)


def _close(file: TextIO) -> None:
    with contextlib.suppress(OSError):  # the disk is full: a line is lost, and how the sweep ended must not be
        file.close()
