"""The command's process ends at once, and not before it has done what an end owes."""

from __future__ import annotations

import subprocess
import sys

import pytest

ENDING = """
import atexit, sys, threading, time
from mmsweep import __main__ as process

class Never:
    def __del__(self):
        print("freed")

def main():
    sys.modules["kept"] = Never()
    atexit.register(print, "exit function")
    threading.Thread(target=lambda: (time.sleep(0.2), print("thread"))).start()
    {end}

process.main = main
process.run()
"""


@pytest.mark.parametrize(
    ("end", "status"),
    [
        ("sys.exit(0)", 0),
        ("sys.exit(130)", 130),
        ("sys.exit()", 0),
        ("sys.exit('told')", 1),
        ("raise ValueError('unforeseen')", 1),
    ],
)
def test_threads_and_exit_functions_come_before_the_end_and_nothing_after(end: str, status: int) -> None:
    code = ENDING.replace("{end}", end)
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.returncode == status
    assert ended.stdout == "thread\nexit function\n"  # and no "freed": that is what takes seconds
    assert ("unforeseen" in ended.stderr) == ("unforeseen" in end)
