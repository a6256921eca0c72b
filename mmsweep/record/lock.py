"""Lock files, which one process at a time can hold. A lock is released when its process ends."""

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
    """The file system does not support locks, like some network drives."""


@contextlib.contextmanager
def held(path: Path, seconds: float = 0.0) -> Iterator[None]:
    """Hold an exclusive lock.

    Args:
        path: the lock file, which is created if needed and never deleted.
        seconds: how long to wait for another process to release it; `math.inf` waits for ever.

    Raises:
        HeldError: another process still holds it after that time.
        NoLocksError: the file system does not support locks.
        OSError: the file cannot be opened.
    """
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        until = time.monotonic() + seconds
        while not _acquire(lock, path):
            if time.monotonic() >= until:
                raise HeldError(f"another process holds {path}")
            time.sleep(POLL_SECONDS)
        yield
    finally:
        os.close(lock)


def _acquire(lock: int, path: Path) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise NoLocksError(error.errno, error.strerror, str(path)) from error
    return True
