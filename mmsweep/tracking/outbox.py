"""Writes that may fail without harm: kept in order, tried again, named at the end."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from mlflow.exceptions import MlflowException

from mmsweep.errors import masked
from mmsweep.tracking.store import impatient

log = logging.getLogger("mmsweep.tracking")

RETRY_SECONDS = 30.0  # a dead server costs the trials one short attempt in this time, not one for each report
_PERMANENT = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"}  # trying again cannot help

Operation = Callable[[], None]


class Outbox:
    """A queue of writes to one store. Nothing overtakes: epoch 4 must not stand before epoch 3 is written.

    Args:
        where: the store's URI, for the warnings.

    Attributes:
        warnings: what went wrong so far, each kind once, in words; passwords are masked.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self.warnings: list[str] = []
        self._queue: deque[tuple[str, Operation]] = deque()
        self._late: list[tuple[str, Operation]] = []
        self._retry_at = 0.0
        self._seen: set[str] = set()
        self._lock = threading.RLock()

    def write(self, what: str, operation: Operation) -> None:
        """Does `operation` now, or keeps it while the store does not answer. Never raises an `Exception`."""
        with self._lock:
            self._queue.append((what, operation))
            if time.monotonic() >= self._retry_at:
                self._flush()

    def write_unordered(self, what: str, operation: Operation) -> None:
        """Like `write`, but a failure holds up nothing behind it (artifacts); it is tried once more by `finish`."""

        def attempt() -> None:
            if not self._attempt(what, operation):
                self._late.append((what, operation))

        self.write(what, attempt)

    def finish(self) -> None:
        """Tries everything that is left once more and says what could not be written."""
        with self._lock:
            self._retry_at = 0.0
            self._flush()
            late, self._late = self._late, []
            lost = [what for what, operation in late if not self._attempt(what, operation)]
            lost += [what for what, _ in self._queue]
            self._queue.clear()
            if lost:
                named = ", ".join(dict.fromkeys(lost))[:300]
                self._warn(
                    f"{len(lost)} entries never reached MLflow at {self.where} (the sweep folder has them): {named}"
                )

    def _flush(self) -> None:
        while self._queue:
            if not self._attempt(*self._queue[0]):
                self._retry_at = time.monotonic() + RETRY_SECONDS
                return
            self._queue.popleft()

    def _attempt(self, what: str, operation: Operation) -> bool:
        """True when done with: written, or refused for good."""
        try:
            with impatient():
                operation()
            return True
        except Exception as error:  # whatever MLflow, a database driver or the network raises
            refused = isinstance(error, MlflowException) and error.error_code in _PERMANENT
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            verdict = "was refused" if refused else "is kept for later"
            self._warn(f"MLflow at {self.where}: {what} {verdict}: {reason}", reason)
            return refused

    def _warn(self, message: str, kind: str | None = None) -> None:
        """Keep and log one message of each kind, not one for each epoch."""
        if (kind or message) not in self._seen:
            self._seen.add(kind or message)
            self.warnings.append(masked(message))
            log.warning("%s", self.warnings[-1])
