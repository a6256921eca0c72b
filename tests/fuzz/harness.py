"""Runs one command of mmsweep in a forked process and says whether it ended as a command must.

Forking a process that has imported everything makes an example cost milliseconds instead of seconds. The child has a
deadline, a limit of memory and its own working directory; what it printed and how it ended come back.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

DEADLINE = 60.0
"""Seconds after which a command counts as hanging."""
MEMORY = 12 * 2**30
"""Bytes of address space that a command may take; libraries alone map several GB."""


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code (None: killed at the deadline or by a signal) and what it printed."""

    code: int | None
    out: str
    err: str
    seconds: float

    def fault(self) -> str | None:
        """What is wrong with this end; None where the command worked or refused its input in one message."""
        if self.code is None:
            return f"killed after {self.seconds:.0f} s"
        if "Traceback (most recent call last)" in self.err + self.out:
            return "a traceback"
        if self.code not in (0, 1, 2):
            return f"exit code {self.code}"
        if self.code == 2 and not self.err.startswith("mmsweep: "):
            return "refused without a message"
        return None


def run(arguments: list[str], folder: Path, cache: Path) -> Ended:
    """`mmsweep ARGUMENTS` with `folder` as its working directory."""
    outputs = [folder / ".stdout", folder / ".stderr"]
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        _child(arguments, folder, cache, outputs)
    code = _wait(child, start)
    printed = [path.read_text(encoding="utf-8", errors="replace") for path in outputs]
    return Ended(code, printed[0], printed[1], time.monotonic() - start)


def _child(arguments: list[str], folder: Path, cache: Path, outputs: list[Path]) -> None:
    code = 70
    try:
        os.setsid()
        os.chdir(folder)
        os.environ["MMSWEEP_CACHE"] = str(cache)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        for descriptor, path in zip((1, 2), outputs, strict=True):
            os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdin, sys.stdout, sys.stderr = (os.fdopen(n, mode) for n, mode in ((0, "r"), (1, "w"), (2, "w")))
        sys.argv = ["mmsweep", *arguments]
        from mmsweep import cli
        from mmsweep.cli.printing import out

        out.file = sys.stdout
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        except BaseException:
            import traceback

            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _wait(child: int, start: float) -> int | None:
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else None
        if time.monotonic() - start > DEADLINE:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(0.005)
