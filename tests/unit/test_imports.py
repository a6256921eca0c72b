"""What is imported where a host waits for it: processes that start one after the other must each import little."""

from __future__ import annotations

import subprocess
import sys

import pytest


def loaded(statement: str) -> set[str]:
    """The modules that a fresh interpreter holds after a statement."""
    code = f"{statement}\nimport sys\nprint('\\n'.join(sys.modules))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize(
    ("module", "without"),
    [
        ("mmsweep.sweep.train_function", {"torch", "ray", "transformers"}),  # a controller unpickles its names
        ("mmsweep.sweep.hosts", {"transformers", "torchmetrics", "mmsweep.training.engine"}),  # and the keeper's
        ("mmsweep.sweep.board", {"torch", "transformers"}),
        ("mmsweep.sweep.trial", {"torch", "transformers"}),
    ],
)
def test_processes_before_the_ranks_import_little(module, without):
    found = loaded(f"import {module}")
    assert module in found and not found & without
