"""The command's process ends at once, and not before it has done what an end owes."""

from __future__ import annotations

import os
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


def test_a_reader_that_has_gone_is_told_by_the_status() -> None:
    code = "import sys, time\nfrom mmsweep import __main__ as process\n"
    code += "process.main = lambda: (sys.stdin.read(), print('for nobody'), sys.exit(0))\nprocess.run()"
    pipe = subprocess.PIPE
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}  # what is printed waits for its end
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdout and process.stdin and process.stderr
        process.stdout.close()
        process.stdin.close()
        assert process.stderr.read() == b"" and process.wait(60) == 120
