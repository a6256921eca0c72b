"""How the command line ends after what was trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from mmsweep import cli
from mmsweep.sweep.outcome import SweepOutcome
from mmsweep.training.checkpoint import TrialFolder
from tests.unit import report_factory as factory


def outcome_of(folder: Path) -> SweepOutcome:
    return SweepOutcome("finished", folder, "run", "mlflow ui")


def test_a_final_run_that_failed_is_told_and_ends_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = factory.make_sweep(tmp_path / "demo", trials=2)
    cli._conclude(outcome_of(folder), "mmsweep tune s.yaml --resume", " --retry-failed", False)
    assert "failed" not in capsys.readouterr().out
    final = TrialFolder(folder / "final/best/seed-102")
    final.clear_done()
    (final.path / "evaluation.json").unlink()
    final.mark_done("failed", "weights of another architecture")
    with pytest.raises(typer.Exit) as end:
        cli._conclude(outcome_of(folder), "mmsweep tune s.yaml --resume", " --retry-failed", False)
    told = capsys.readouterr()
    assert end.value.exit_code == 1
    assert "final/best/seed-102 failed: weights of another architecture" in told.out
    assert "mmsweep tune s.yaml --resume --retry-failed" in told.err
