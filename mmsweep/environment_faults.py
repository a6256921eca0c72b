"""Faults of the environment, which no configuration causes.

A full disk, a lost mount, too little memory or a dead network interrupts a sweep, which continues with `--resume`. It
never makes a trial fail: the trial would be missing from the ranking, and another one might win.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator

from mmsweep.errors import UserError

_ERRNOS = frozenset(
    number
    for name in (
        *("ENOSPC", "EDQUOT", "EFBIG", "EIO", "EROFS", "EACCES", "EPERM", "EREMOTEIO", "EUCLEAN"),  # the disk
        *("ESTALE", "ENOTCONN", "ENODEV", "ENXIO", "ENOMEDIUM", "EMEDIUMTYPE"),  # a lost mount
        *("EMFILE", "ENFILE", "ENOMEM", "EAGAIN", "ENOBUFS", "ENOLCK"),  # limits of a process or a machine
        *("ETIMEDOUT", "ECONNRESET", "ECONNREFUSED", "ECONNABORTED", "EPIPE"),  # the network
        *("EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH"),
    )
    if (number := getattr(errno, name, None)) is not None
)
# How libraries write OS errors into their own messages, and Ray Tune into the text of all errors.
_OS_ERROR = re.compile(r"\(os error (\d+)\)|\[errno (\d+)\]", re.IGNORECASE)
_OTHERS = re.compile(
    r"database or disk is full|disk I/O error|database is locked|readonly database"
    r"|can't allocate memory|not enough memory|std::bad_alloc|can't start new thread"
)


class EnvironmentFaultError(UserError):
    """An environment fault on a host; its message is the line that `environment_fault` returned there."""


def environment_fault(problem: BaseException) -> str | None:
    """The environment fault behind a problem, in one line; None if there is none.

    The exception's causes are checked too: a `UserError` may come from a full disk.
    """
    for error in _causes(problem):
        if isinstance(error, EnvironmentFaultError):
            return error.problem
        if isinstance(error, OSError) and error.errno in _ERRNOS:
            names = " -> ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
            return os.strerror(error.errno or 0) + (f": {names}" if names else "")
        lines = [line.strip()[:300] for line in str(error).splitlines() if line.strip()]
        if isinstance(error, MemoryError):
            return f"out of memory ({lines[0]})" if lines else "out of memory"
        for line in lines:
            numbers = [int(a or b) for a, b in _OS_ERROR.findall(line)]
            if any(number in _ERRNOS for number in numbers) or _OTHERS.search(line):
                return line
    return None


def _causes(problem: BaseException) -> Iterator[BaseException]:
    """The exception, then its causes and contexts."""
    seen: list[BaseException] = []
    error: BaseException | None = problem
    while error is not None and error not in seen:
        seen.append(error)
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
