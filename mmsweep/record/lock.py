"""Lock files: one process at a time does what a file stands for. The lock ends with the process that holds it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

POLL_SECONDS = 0.2


class HeldError(Exception):
    """Another process holds the lock."""


class NoLocksError(OSError):
    """The file system has no locks, as some network drives."""


@contextlib.contextmanager
def held(path: Path, seconds: float = 0.0) -> Iterator[None]:
    """Hold a lock alone.

    Args:
        path: the lock's file, which is made where there is none and stays.
        seconds: how long to wait for another holder; `math.inf` waits for ever.

    Raises:
        HeldError: another process holds it for longer.
        NoLocksError: the file system has no locks.
        OSError: the file cannot be opened.
    """
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        until = time.monotonic() + seconds
        while not _taken(lock, path):
            if time.monotonic() >= until:
                raise HeldError(f"another process holds {path}")
            time.sleep(POLL_SECONDS)
        yield
    finally:
        os.close(lock)


def _taken(lock: int, path: Path) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise NoLocksError(error.errno, error.strerror, str(path)) from error
    return True
