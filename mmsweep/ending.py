"""How a command ends by a signal: SIGINT (Ctrl-C), SIGTERM (`kill`, SLURM) and SIGHUP (the terminal is gone).

A sweep that trains hears the first signal and stops in good order (`Interrupt`); everywhere else, and the second time,
a signal raises `Interrupted`. This file imports nothing that takes time: it is there before anything else is.
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
TERMINALS = {4, 5, *range(136, 144)}  # Linux's numbers of their devices


class Interrupted(KeyboardInterrupt):
    """A signal ended the work.

    Args:
        number: the signal's.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def exit_code(end: BaseException) -> int:
    """The exit status that tells a signal: 130 for SIGINT, 143 for SIGTERM, 129 for SIGHUP."""
    return 128 + (end.number if isinstance(end, Interrupted) else signal.SIGINT)


def resume_command(words: Sequence[str]) -> str:
    """The command that goes on with a sweep or a training.

    Args:
        words: what was called, from the verb on: `tune study.yaml train.epochs=2`.
    """
    kept, skip = [], False
    for word in words:
        if not skip and word != "--resume" and not word.startswith("--extend"):
            kept.append(word)
        skip = word == "--extend"  # its number follows
    return shlex.join(["mmsweep", *kept, "--resume"])


def say_interrupted(words: Sequence[str], reason: str | None = None) -> None:
    """Print, to stderr, that a command was interrupted and how to go on.

    Args:
        words: what was called, from the verb on.
        reason: what happened, where it was no signal.
    """
    text = "mmsweep: interrupted"
    if words and words[0] in ("tune", "train") and "--dry-run" not in words:
        why = f" ({reason})" if reason else ""
        text = f"The sweep was interrupted{why}; nothing is lost. Go on with: {resume_command(words)}"
    with contextlib.suppress(OSError):  # the terminal is gone
        print(text, file=sys.stderr, flush=True)


def raise_on_signals() -> None:
    """From now on, each of the signals raises `Interrupted` in the main thread. `nohup` still keeps SIGHUP away."""

    def caught(number: int, frame: FrameType | None) -> None:
        _received(number)
        raise Interrupted(number)

    for number in SIGNALS:
        _install(number, caught)


class Interrupt:
    """The first signal asks for a clean stop, the second one raises `Interrupted`.

    Attributes:
        number: the first signal's; None before it.
        at_once: a signal has raised: whatever can be left out is left out.
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
        """Catches the signals within; elsewhere than on the main thread there are none to catch."""
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
        """Take the signals back: Ray catches SIGTERM for itself when it starts."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                _install(number, self._caught)

    @contextlib.contextmanager
    def impatient(self) -> Iterator[None]:
        """Within, the first signal raises, too."""
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
    # Where Ray's own handler caught SIGTERM first, it has set an alarm that aborts this process in three seconds.
    signal.alarm(0)
    if number != signal.SIGHUP:
        return
    for descriptor in range(64):  # writing to a terminal that was closed fails, which must not break off the end
        with contextlib.suppress(OSError):
            if os.major(os.fstat(descriptor).st_rdev) in TERMINALS and not os.isatty(descriptor):
                os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
