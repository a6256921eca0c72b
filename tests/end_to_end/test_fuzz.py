"""Random wrong inputs for two minutes, always the same ones; docs/results/fuzz.md says how to try for an hour."""

from __future__ import annotations

import pytest

from tests.fuzz.__main__ import Failure, failures
from tests.fuzz.kinds import KINDS

pytestmark = pytest.mark.long

SECONDS = 120


def test_wrong_inputs_end_in_a_message() -> None:
    found = list(failures(seed=0, seconds=SECONDS))
    assert [failure for failure in found if isinstance(failure, Failure)] == []
    tried = next(line for line in found if isinstance(line, str) and line.startswith("tried: "))
    assert all(f"'{kind}': " in tried for kind in KINDS), tried
