"""What a message to people looks like."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

Say = Callable[..., str]
METRIC = "val/mean_missing/f1_macro"


def one_message(stderr: str) -> str:
    assert "Traceback" not in stderr
    assert stderr.startswith("mmsweep: ") and stderr.count("mmsweep: ") == 1
    lines = stderr.rstrip("\n").split("\n")
    assert all(line.startswith("  ") or line.startswith(". ") for line in lines[1:]), stderr  # rows that are listed
    return stderr.removeprefix("mmsweep: ").rstrip("\n")


def line_of(path: Path, text: str) -> str:
    """`file:line: ` of the first line that holds `text`."""
    number = next(n for n, line in enumerate(path.read_text().splitlines(), 1) if text in line)
    return f"{path}:{number}: "
