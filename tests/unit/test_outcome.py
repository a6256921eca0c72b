"""How the command line ends after what was trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from mmsweep import cli
from mmsweep.cli.train import conclude
from mmsweep.ending import Interrupted
from mmsweep.record.trial import TrialFolder
from mmsweep.study import Study
from mmsweep.sweep.outcome import SweepOutcome
from tests.unit import report_factory as factory


def outcome_of(folder: Path) -> SweepOutcome:
    return SweepOutcome("finished", folder, "run", "mlflow ui")


def test_a_final_run_that_failed_is_told_and_ends_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["mmsweep", "tune", "s.yaml"])
    folder = factory.make_sweep(tmp_path / "demo", trials=2)
    conclude(outcome_of(folder), " --retry-failed", False)
    assert "failed" not in capsys.readouterr().out
    final = TrialFolder(folder / "final/best/seed-102")
    final.clear_done()
    (final.path / "evaluation.json").unlink()
    final.mark_done("failed", "weights of another architecture")
    with pytest.raises(typer.Exit) as end:
        conclude(outcome_of(folder), " --retry-failed", False)
    told = capsys.readouterr()
    assert end.value.exit_code == 1
    assert "final/best/seed-102 failed: weights of another architecture" in told.out
    assert "mmsweep tune s.yaml --resume --retry-failed" in told.err


@pytest.mark.parametrize(("number", "code"), [(2, 130), (15, 143), (1, 129)])
def test_a_signal_reaches_the_boundary_past_the_parser_of_arguments(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int, code: int
) -> None:
    def interrupted(*given: object) -> None:
        raise Interrupted(number)

    monkeypatch.setattr(Study, "load", interrupted)
    monkeypatch.setattr("sys.argv", ["mmsweep", "tune", "s.yaml", "--extend", "3"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == code
    assert capsys.readouterr().err == (
        "The sweep was interrupted; nothing is lost. Resume it with: mmsweep tune s.yaml --resume\n"
    )


def test_a_cluster_that_is_gone_is_told_with_the_command_that_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["mmsweep", "tune", "s.yaml"])
    folder = factory.make_sweep(tmp_path / "demo", trials=2)
    outcome = SweepOutcome("interrupted", folder, "run", "mlflow ui", reason="Ray's process raylet ended")
    with pytest.raises(typer.Exit) as end:
        conclude(outcome, "", False)
    assert end.value.exit_code == 1
    line = (
        "The sweep was interrupted (Ray's process raylet ended); nothing is lost. Resume it with: mmsweep tune s.yaml"
    )
    assert line in capsys.readouterr().err
