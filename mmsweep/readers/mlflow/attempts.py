"""Calls to a store; a failure does not stop the sweep, and each kind of failure is reported once."""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Callable
from typing import TypeVar

from mlflow.exceptions import MlflowException

from mmsweep.errors import masked

log = logging.getLogger("mmsweep.mlflow")

T = TypeVar("T")
_PERMANENT = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"}  # a retry cannot help
_VARYING = re.compile(r"/api/\S+|\b[0-9a-f]{32}\b|\b0x[0-9a-f]+\b")  # the call's path, a run's id, an object's address


class UnavailableError(Exception):
    """The store does not answer."""


class Attempts:
    """Makes calls to one store.

    Args:
        uri: the store's URI, for the warnings.

    Attributes:
        warnings: failures so far, each kind once; passwords are masked.
        until: time (`time.monotonic`) after which no call is made.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.warnings: list[str] = []
        self.until = math.inf
        self._warned: set[str] = set()

    def call(self, what: str, operation: Callable[[], T]) -> T | None:
        """The operation's result; None if MLflow refuses it permanently. Raises UnavailableError if it fails."""
        if time.monotonic() > self.until:
            raise UnavailableError
        try:
            return operation()
        except Exception as error:  # whatever MLflow, a database driver or the network raises
            refused = isinstance(error, MlflowException) and error.error_code in _PERMANENT
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            verdict = "was refused" if refused else "will be retried"
            self.warn(f"MLflow at {self.uri}: {what} {verdict}: {reason[:200]}", _VARYING.sub("", reason))
            if refused:
                return None
            raise UnavailableError from error

    def succeeds(self, what: str, operation: Callable[[], object]) -> bool:
        """Whether the operation succeeds; for artifacts, whose failure must not delay other calls."""
        try:
            self.call(what, operation)
        except UnavailableError:
            return False
        return True

    def warn(self, message: str, kind: str | None = None) -> None:
        """Record and log the first message of each kind."""
        if (kind or message) not in self._warned:
            self._warned.add(kind or message)
            self.warnings.append(masked(message))
            log.warning("%s", self.warnings[-1])
