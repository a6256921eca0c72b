"""Signal handling: SIGINT (Ctrl-C), SIGTERM (`kill`, SLURM) and SIGHUP (the terminal was closed).

During training, the first signal asks for a clean stop (`Interrupt`); a second one, or any signal elsewhere, raises
`Interrupted`. This file is imported first and must import fast.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
TERMINALS = {4, 5, *range(136, 144)}  # major device numbers on Linux


class Interrupted(KeyboardInterrupt):
    """A signal interrupted the command.

    Args:
        number: number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def exit_code(end: BaseException) -> int:
    """The exit status for a signal: 130 for SIGINT, 143 for SIGTERM, 129 for SIGHUP."""
    return 128 + (end.number if isinstance(end, Interrupted) else signal.SIGINT)


def resume_command(arguments: Sequence[str]) -> str:
    """The command that resumes a sweep or a training.

    Args:
        arguments: command line without `mmsweep`, such as `tune study.yaml train.epochs=2`.
    """
    repeated, skip = [], False
    for argument in arguments:
        if not skip and argument != "--resume" and not argument.startswith("--extend"):
            repeated.append(argument)
        skip = argument == "--extend"  # its number follows
    return shlex.join(["mmsweep", *repeated, "--resume"])


def print_interrupted(arguments: Sequence[str], reason: str | None = None) -> None:
    """Print to stderr that a command was interrupted and how to resume it.

    Args:
        arguments: command line without `mmsweep`.
        reason: what interrupted it, unless it was a signal.
    """
    text = "mmsweep: interrupted"
    if arguments and arguments[0] in ("tune", "train") and "--dry-run" not in arguments:
        why = f" ({reason})" if reason else ""
        text = f"The sweep was interrupted{why}; nothing is lost. Resume it with: {resume_command(arguments)}"
    with contextlib.suppress(OSError):  # the terminal is gone
        print(text, file=sys.stderr, flush=True)


def raise_on_signals() -> None:
    """Make each of the signals raise `Interrupted` in the main thread. Under `nohup`, SIGHUP stays ignored."""

    def handle(number: int, frame: FrameType | None) -> None:
        _prepare(number)
        raise Interrupted(number)

    for number in SIGNALS:
        _install(number, handle)


class Interrupt:
    """The first signal requests a clean stop, the second one raises `Interrupted`.

    Attributes:
        number: number of the first signal; None before it.
        at_once: whether a signal has raised `Interrupted`; the command then skips optional work.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.at_once = False
        self._raise_first = False

    @property
    def requested(self) -> bool:
        """Whether a signal has requested a stop."""
        return self.number is not None

    @contextlib.contextmanager
    def listening(self) -> Iterator[Interrupt]:
        """Handle signals within the context; does nothing outside the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {number: signal.getsignal(number) for number in SIGNALS}
        self.listen_again()
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def listen_again(self) -> None:
        """Install the handlers again: Ray installs its own for SIGTERM when it starts."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                _install(number, self._handle)

    @contextlib.contextmanager
    def raising(self) -> Iterator[None]:
        """Within the context, the first signal raises too."""
        self._raise_first = True
        try:
            yield
        finally:
            self._raise_first = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        _prepare(number)
        again, self.number = self.requested, self.number or number
        if again or self._raise_first:
            self.at_once = True
            raise Interrupted(self.number)


def _install(number: int, handler: object) -> None:
    if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
        signal.signal(number, handler)  # type: ignore[arg-type]


def _prepare(number: int) -> None:
    """Cancel what would break the cleanup after a signal: Ray's alarm, and a closed terminal."""
    # Ray's SIGTERM handler may have run first; it sets an alarm that aborts this process after three seconds.
    signal.alarm(0)
    if number != signal.SIGHUP:
        return
    for descriptor in range(64):  # writing to a closed terminal would fail and stop the cleanup
        with contextlib.suppress(OSError):
            if os.major(os.fstat(descriptor).st_rdev) in TERMINALS and not os.isatty(descriptor):
                os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
