"""Locks and whole files of the record."""

from __future__ import annotations

import errno
import fcntl
import math
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mmsweep.record.files import write_atomically
from mmsweep.record.lock import HeldError, NoLocksError, held


def test_a_lock_is_held_by_one_and_ends_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    code = "import sys, time\nfrom mmsweep.record.lock import held\nfrom pathlib import Path\n"
    code += f"with held(Path({str(path)!r})):\n    print('held', flush=True)\n    time.sleep(60)\n"
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdout.readline() == "held\n"
    began = time.monotonic()
    with pytest.raises(HeldError, match="another process holds"), held(path, 0.3):
        pass
    assert 0.3 <= time.monotonic() - began < 10
    other.kill()
    other.wait()
    with held(path, 10.0):
        pass
    assert path.exists()  # a lock file that were deleted could be held twice


def test_a_lock_is_waited_for(tmp_path: Path) -> None:
    holds, order = threading.Event(), []

    def hold() -> None:
        with held(tmp_path / ".lock"):
            holds.set()
            time.sleep(0.3)
            order.append("first")

    thread = threading.Thread(target=hold)
    thread.start()
    holds.wait()
    with held(tmp_path / ".lock", math.inf):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]


def test_a_file_system_without_locks_is_told_from_a_folder_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FileNotFoundError), held(tmp_path / "none" / ".lock"):
        pass

    def refused(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refused)
    with pytest.raises(NoLocksError), held(tmp_path / ".lock"):
        pass


def test_a_file_that_cannot_be_written_whole_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "new \ud800")
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a.json"]
