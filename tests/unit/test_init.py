"""`mmsweep init`: what is guessed of a file's columns, and that the study written is one."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from mmsweep.assembly.checks import check_sweep
from mmsweep.cli.inputs import init
from mmsweep.data.guess import guess
from mmsweep.data.options import DATASETS
from mmsweep.errors import UserError
from mmsweep.study import Study
from tests.data.files import write_picture

WORDS = "a red disc on grey paper"


def write(path: Path, columns: Mapping[str, Sequence[Any]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


def columns(**more: Sequence[Any]) -> dict[str, Sequence[Any]]:
    """Forty rows with a picture, a caption and whatever else is asked for."""
    pictures = [f"pictures/{i}.png" if i % 7 else "" for i in range(40)]
    return {"photo file": pictures, "caption": [f"{WORDS} {i}" for i in range(40)], **more}


def test_a_file_of_pictures_and_texts_becomes_a_study_that_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for i in range(40):
        write_picture(tmp_path / "data" / "pictures" / f"{i}.png", "red", seed=i)
    parts = (["train"] * 6 + ["dev", "test"]) * 5
    path = write(
        tmp_path / "data" / "my file.csv",
        columns(
            speaker=[f"s{i % 8}" for i in range(40)],
            part=parts,
            kind=["cat", "dog"] * 20,
            pages=list(range(40)),
            age=[i % 7 + 0.5 for i in range(40)],
            ward=["A", "b", ""][:2] * 10 + ["", "b", "A", "A"] * 5,
        ),
    )
    init(path)
    told = capsys.readouterr().out
    study = Study.load(tmp_path / "my file.yaml")
    check_sweep(study)
    assert list(study.data.modalities) == ["photo_file", "caption", "table"]
    table, encoder = study.data.modalities["table"], study.model.encoders["table"]
    assert (table.kind, table.numeric, table.categorical) == ("table", ["age"], ["ward"])
    assert (encoder.source, encoder.name, encoder.trainable) == ("scratch", "ft_transformer", True)
    assert study.data.target.task == "single_label" and study.data.split.column == "part"
    assert study.data.group.column == "speaker" and study.data.id is None
    assert "input table: age, ward (table; numbers in 1 column, categories that repeat in 1 column)" in told
    assert "left out: pages (whole numbers that never repeat, as ids)" in told
    assert '# Not used (whole numbers that never repeat, as ids): "pages"\n' in (tmp_path / "my file.yaml").read_text()
    assert "input photo_file: photo file (image; all 34 cells" in told
    builder = DATASETS["manifest"](study.data)
    assert {name: len(rows) for name, rows in builder.splits().items()} == {"train": 30, "val": 5, "test": 5}
    with pytest.raises(UserError, match="the file exists already"):
        init(path)


@pytest.mark.parametrize(
    ("name", "cells", "task", "separator"),
    [
        ("label", [f"class {i % 4}" for i in range(40)], "single_label", None),
        ("label", [i % 3 for i in range(40)], "single_label", None),
        ("tags", [("red|blue", "red", "green|blue")[i % 3] for i in range(40)], "multi_label", "|"),
        ("tags", [("red; blue", "red", "green; blue")[i % 3] for i in range(40)], "multi_label", ";"),
        ("score", [i / 8 for i in range(40)], "regression", None),
        ("what it is", [("yes", "no")[i % 2] for i in range(40)], "single_label", None),  # the only column of classes
    ],
)
def test_the_target_s_column_says_the_task(
    name: str, cells: list[Any], task: str, separator: str | None, tmp_path: Path
) -> None:
    guesses = guess(write(tmp_path / "my.csv", columns(**{name: cells})))
    assert (guesses.target, guesses.task, guesses.separator) == (name, task, separator)


def test_a_file_sorted_by_split_and_class_is_seen_to_its_end(tmp_path: Path) -> None:
    rows = 2_500
    table = {"photo": ["a.png"] * rows, "said": [WORDS] * rows, "part": ["train"] * 2_300 + ["test"] * 200,
             "kind": ["cat"] * 2_200 + ["dog"] * 300}  # fmt: skip
    guesses = guess(write(tmp_path / "my.csv", table))
    assert (guesses.split, guesses.target, guesses.notes["kind"]) == ("part", "kind", "2 classes")


def test_lists_and_records_of_json_are_understood(tmp_path: Path) -> None:
    rows = [
        {"sound": {"path": f"{i}.wav", "bytes": None}, "said": WORDS, "genres": ["rock", "jazz"][: i % 2 + 1], "id": i}
        for i in range(20)
    ]
    (tmp_path / "my.jsonl").write_text("\n".join(map(json.dumps, rows)))
    guesses = guess(tmp_path / "my.jsonl")
    assert [(m.name, m.kind) for m in guesses.modalities] == [("sound", "audio"), ("said", "text")]
    assert (guesses.target, guesses.task, guesses.id) == ("genres", "multi_label", "id")


def test_what_cannot_be_guessed_is_refused_with_what_was_seen(tmp_path: Path) -> None:
    two = columns(mood=["good", "bad"] * 20, side=["left", "right"] * 20)
    with pytest.raises(UserError, match="no column looks like a target") as caught:
        guess(write(tmp_path / "my.csv", two))
    for part in ("photo file: image files", "caption: texts of 7 words", "mood: 2 different values in 40 cells"):
        assert part in str(caught.value)
    assert guess(tmp_path / "my.csv", target="side").target == "side"
    with pytest.raises(UserError, match="no such column"):
        guess(tmp_path / "my.csv", target="sides")
    del two["photo file"]
    with pytest.raises(UserError, match="1 of its columns are inputs"):
        guess(write(tmp_path / "my.csv", two | {"label": ["a", "b"] * 20}))


@pytest.mark.parametrize(
    ("name", "cells", "reason"),
    [
        ("pages", list(range(40)), "whole numbers that never repeat, as ids"),
        ("patient_id", [i % 7 for i in range(40)], "its name is that of an id or a group"),
        ("cameraId", [i % 7 for i in range(40)], "its name is that of an id or a group"),
        ("movie", [f"m{i % 7}" for i in range(40)], "its name is that of an id or a group"),  # speaker is the group
        ("device", ["x"] * 36 + ["y"] * 4, "fewer than 5 training rows differ from its most frequent value"),
        ("code", [f"x{i}" for i in range(40)], "40 different texts in 40 rows"),
        ("size", [["a"], ["b"]] * 20, "neither numbers nor names of categories in the training rows"),
        ("species", ["felis", "canis"] * 20, "each of its values stands beside a single target"),
        ("breed", ["siam", "boxer", "persian", "beagle"] * 10, "each of its values stands beside a single target"),
        ("kind number", [0, 1] * 20, "each of its values stands beside a single target"),
    ],
)
def test_a_table_takes_no_ids_and_nothing_that_gives_the_target_away(
    name: str, cells: list[Any], reason: str, tmp_path: Path
) -> None:
    own = columns(speaker=[f"s{i % 8}" for i in range(40)], kind=["cat", "dog"] * 20, age=[i % 7 for i in range(40)])
    own = {**own, name: cells}
    rows = [dict(zip(own, row, strict=True)) for row in zip(*own.values(), strict=True)]
    (tmp_path / "my.jsonl").write_text("\n".join(map(json.dumps, rows)))
    guesses = guess(tmp_path / "my.jsonl")
    assert guesses.group == "speaker" and guesses.modalities[-1].options == {"numeric": ["age"]}
    assert guesses.notes[name].startswith(reason)


def test_a_table_is_no_copy_of_a_number_that_is_the_target(tmp_path: Path) -> None:
    score = [i * i / 8 for i in range(40)]
    own = columns(score=score, percent=[3 - 12.5 * x for x in score], age=[(i * 17) % 40 / 2 for i in range(40)])
    guesses = guess(write(tmp_path / "my.csv", own))
    assert guesses.modalities[-1].options == {"numeric": ["age"]}
    assert guesses.notes["percent"] == "it is the target on another scale: it would give the target away"


def test_codes_are_categories_and_only_training_rows_show_that_a_column_varies(tmp_path: Path) -> None:
    own = {
        "table": [f"{WORDS} {i}" for i in range(40)],
        "area": [f"0{i % 3}" for i in range(40)],
        "level": [("1", "2", "n/a")[i % 3] for i in range(40)],
        "label": ["a", "b"] * 20,
        "late": [i % 5 if i >= 30 else 7 for i in range(40)],
        "part": ["train"] * 30 + ["val"] * 5 + ["test"] * 5,
    }
    guesses = guess(write(tmp_path / "my.csv", own))
    assert [(m.name, m.kind) for m in guesses.modalities] == [("table", "text"), ("table_", "table")]
    assert guesses.modalities[1].options == {"categorical": ["area", "level"]}
    assert guesses.notes["late"] == "fewer than 5 training rows differ from its most frequent value"
