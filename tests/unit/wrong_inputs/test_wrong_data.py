"""Wrong data: one message (or a list of rows) that names the file, what was found and what is right."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mmsweep import cli
from tests.data.files import manifest_rows, write_manifest
from tests.unit.wrong_inputs.messages import Say, line_of


def test_a_task_that_the_dataset_lacks(study: Callable[..., Path], say: Say) -> None:
    path = study({"data": {"dataset": "openclipart", "task": "nope"}})
    message = say("validate", path)
    assert message.startswith(f"{line_of(path, 'task: nope')}data.task: ")
    assert "found 'nope'; expected single_label or multi_label" in message


def test_bad_rows_are_listed_with_their_lines(place: Path, study: Callable[..., Path], say: Say) -> None:
    rows = manifest_rows(place)
    pictures = [place / row["picture"] for row in rows if row["picture"]]
    corrupt = next(i for i, row in enumerate(rows) if row["picture"])
    pictures[0].write_bytes(b"this is no picture")
    absent = [i for i, row in enumerate(rows) if row["picture"]][5]
    (place / rows[absent]["picture"]).unlink()
    rows[3]["kind"] = "gren"
    write_manifest(place / "rows.csv", rows)
    path = study({"data.path": "rows.csv", "data.target.classes": ["red", "green", "blue"]})
    message = say("data", "prepare", path)
    assert message.startswith(f"{path}: 3 rows cannot be used (of 40; data.max_bad allows 1.00%):\n")
    listed = {int(found[1]): found[2] for found in re.finditer(r"\n  rows\.csv:(\d+): (.*)", message)}
    assert sorted(listed) == sorted([corrupt + 2, 3 + 2, absent + 2])
    assert "image" in listed[corrupt + 2] and "image" in listed[absent + 2]
    assert "kind: " in listed[5] and "found 'gren'" in listed[5] and "expected one of red, green, blue" in listed[5]
    assert "Did you mean 'green'?" in listed[5] and "data.max_bad" in message


def test_a_check_that_finds_missing_files_fails(
    place: Path, study: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = manifest_rows(place)
    rows[0]["picture"] = "absent.png"
    write_manifest(place / "rows.csv", rows)
    monkeypatch.setattr(sys, "argv", ["mmsweep", "data", "check", str(study({"data.path": "rows.csv"}))])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 1 and "files do not exist: rows.csv:2: " in capsys.readouterr().out


def test_a_column_that_the_manifest_lacks(study: Callable[..., Path], own_data: Path, say: Say) -> None:
    path = study({"data.modalities.text.column": "captoin"})
    message = say("data", "check", path)
    assert message.startswith(f"{line_of(path, 'captoin')}data.modalities.text.column: {own_data} has no such column; ")
    assert "found 'captoin'" in message and "expected one of picture, caption" in message and "'caption'?" in message
