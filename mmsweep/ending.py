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


def resume_command(words: Sequence[str]) -> str:
    """The command that resumes a sweep or a training.

    Args:
        words: command line without `mmsweep`, such as `tune study.yaml train.epochs=2`.
    """
    kept, skip = [], False
    for word in words:
        if not skip and word != "--resume" and not word.startswith("--extend"):
            kept.append(word)
        skip = word == "--extend"  # its number follows
    return shlex.join(["mmsweep", *kept, "--resume"])


def say_interrupted(words: Sequence[str], reason: str | None = None) -> None:
    """Print to stderr that a command was interrupted and how to resume it.

    Args:
        words: command line without `mmsweep`.
        reason: what interrupted it, if it was no signal.
    """
    text = "mmsweep: interrupted"
    if words and words[0] in ("tune", "train") and "--dry-run" not in words:
        why = f" ({reason})" if reason else ""
        text = f"The sweep was interrupted{why}; nothing is lost. Go on with: {resume_command(words)}"
    with contextlib.suppress(OSError):  # the terminal is gone
        print(text, file=sys.stderr, flush=True)


def raise_on_signals() -> None:
    """Make each of the signals raise `Interrupted` in the main thread. Under `nohup`, SIGHUP stays ignored."""

    def caught(number: int, frame: FrameType | None) -> None:
        _received(number)
        raise Interrupted(number)

    for number in SIGNALS:
        _install(number, caught)


class Interrupt:
    """The first signal asks for a clean stop, the second one raises `Interrupted`.

    Attributes:
        number: number of the first signal; None before it.
        at_once: whether a signal has raised `Interrupted`; the command then skips optional work.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.at_once = False
        self._patient = True

    @property
    def asked(self) -> bool:
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
                _install(number, self._caught)

    @contextlib.contextmanager
    def impatient(self) -> Iterator[None]:
        """Within the context, the first signal raises too."""
        self._patient = False
        try:
            yield
        finally:
            self._patient = True

    def _caught(self, number: int, frame: FrameType | None) -> None:
        _received(number)
        again, self.number = self.asked, self.number or number
        if again or not self._patient:
            self.at_once = True
            raise Interrupted(self.number)


def _install(number: int, handler: object) -> None:
    if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
        signal.signal(number, handler)  # type: ignore[arg-type]


def _received(number: int) -> None:
    # Ray's own SIGTERM handler may have run first; it sets an alarm that aborts this process after three seconds.
    signal.alarm(0)
    if number != signal.SIGHUP:
        return
    for descriptor in range(64):  # writing to a closed terminal fails, which must not stop the cleanup
        with contextlib.suppress(OSError):
            if os.major(os.fstat(descriptor).st_rdev) in TERMINALS and not os.isatty(descriptor):
                os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
