"""How commands end by a signal. Whole sweeps that do are in tests/end_to_end/test_ends.py."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys

import pytest

from mmsweep.ending import Interrupt, Interrupted, exit_code, resume_command

BY_SIGNAL = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]


@pytest.mark.parametrize(("number", "code"), BY_SIGNAL)
def test_the_first_signal_asks_and_the_second_raises(number: signal.Signals, code: int) -> None:
    before = signal.getsignal(number)
    with Interrupt().listening() as interrupt:
        os.kill(os.getpid(), number)
        assert interrupt.requested and interrupt.number == number and not interrupt.at_once
        with pytest.raises(Interrupted) as end:
            os.kill(os.getpid(), signal.SIGTERM)
        assert exit_code(end.value) == code and interrupt.at_once  # what came first says how it ended
    assert signal.getsignal(number) == before


def test_what_need_not_be_finished_ends_with_the_first_signal() -> None:
    with Interrupt().listening() as interrupt:
        with pytest.raises(Interrupted), interrupt.raising():
            os.kill(os.getpid(), signal.SIGTERM)
        assert interrupt.number == signal.SIGTERM


def test_an_alarm_that_another_handler_set_does_not_abort_the_process() -> None:
    """As Ray's does, which catches SIGTERM and then calls ours."""
    with Interrupt().listening():
        signal.alarm(100)
        os.kill(os.getpid(), signal.SIGTERM)
        assert signal.alarm(0) == 0


@pytest.mark.parametrize(
    ("called", "further"),
    [
        ("tune s.yaml", "mmsweep tune s.yaml --resume"),
        ("train s.yaml train.epochs=2 --resume", "mmsweep train s.yaml train.epochs=2 --resume"),
        ("tune s.yaml --extend 3 --out 'a b'", "mmsweep tune s.yaml --out 'a b' --resume"),
        ("tune --extend=3 s.yaml", "mmsweep tune s.yaml --resume"),
    ],
)
def test_the_command_that_goes_on_repeats_what_was_called(called: str, further: str) -> None:
    assert resume_command(shlex.split(called)) == further


WORKING = """
import os, signal, sys, types
from mmsweep import __main__ as process

class Slow(types.ModuleType):  # what the command line imports, in the course of which the signal comes
    def __getattr__(self, name):
        os.kill(os.getpid(), int(sys.argv.pop()))
        raise AttributeError(name)

sys.modules["typer"] = Slow("typer")
process.run()
"""


@pytest.mark.parametrize(("number", "code"), BY_SIGNAL)
def test_a_signal_in_the_first_moments_is_told_in_the_same_words(number: signal.Signals, code: int) -> None:
    command = [sys.executable, "-c", WORKING, "tune", "s.yaml", str(int(number))]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert ended.returncode == code
    assert ended.stderr == (
        "The sweep was interrupted; nothing is lost. Resume it with: mmsweep tune s.yaml --resume\n"
    )


def test_nohup_keeps_the_hangup_away() -> None:
    code = "from mmsweep.ending import *; raise_on_signals(); os.kill(os.getpid(), signal.SIGHUP); print('alive')"
    command = ["nohup", sys.executable, "-c", code]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=200, stdin=subprocess.DEVNULL)
    assert ended.returncode == 0 and ended.stdout == "alive\n"


def test_a_terminal_that_is_gone_does_not_break_off_the_end() -> None:
    code = """
import os, pty, signal, sys
from mmsweep.ending import Interrupt, print_interrupted
near, far = pty.openpty()
os.dup2(far, 2)
with Interrupt().listening() as interrupt:
    os.close(near)
    os.kill(os.getpid(), signal.SIGHUP)
    os.write(2, b"for nobody")
    print_interrupted(["tune"])
print(interrupt.number)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert (ended.returncode, ended.stdout) == (0, "1\n")
