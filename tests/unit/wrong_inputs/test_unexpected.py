"""What no check foresaw: one line and a traceback in a file, and never the words of an interruption."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mmsweep import cli
from tests.unit.wrong_inputs.messages import Say


@pytest.mark.parametrize(
    "problem",
    [EOFError("Ran out of input"), MemoryError(), RecursionError("too deep"), ValueError("two\nlines"), KeyError(1)],
)
def test_an_unexpected_error_is_one_line_and_a_file(
    problem: Exception, say: Say, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("mmsweep.data.options.Datasets.values", _raising(problem))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    message = say("data", "list")
    assert message.startswith(f"{type(problem).__name__}: ") and "interrupted" not in message
    file = Path(message.rpartition("(traceback: ")[2].rstrip(")"))
    assert file.parent == tmp_path and "Traceback" in file.read_text() and "test_unexpected.py" in file.read_text()


def test_a_developer_gets_the_error_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmsweep.data.options.Datasets.values", _raising(EOFError("Ran out of input")))
    monkeypatch.setenv("MMSWEEP_DEBUG", "1")
    monkeypatch.setattr(sys, "argv", ["mmsweep", "data", "list"])
    with pytest.raises(EOFError, match="Ran out of input"):
        cli.main()


def test_ctrl_c_is_an_interruption(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("mmsweep.data.options.Datasets.values", _raising(KeyboardInterrupt()))
    monkeypatch.setattr(sys, "argv", ["mmsweep", "data", "list"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 130 and "mmsweep: interrupted" in capsys.readouterr().err


def _raising(problem: BaseException):  # type: ignore[no-untyped-def]
    def values(registry: object) -> None:
        raise problem

    return values
