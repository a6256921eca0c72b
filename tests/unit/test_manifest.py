"""The user's own file: what is read, what is refused, and where rows go."""

from __future__ import annotations

import datetime
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mmsweep.data.check import named_builder
from mmsweep.errors import UserError
from tests.data.files import column, manifest_rows, target, write_manifest
from tests.unit.manifest_helpers import (
    COLUMNS,
    GOOD,
    HEADER,
    KIND,
    TEXT,
    bad_rows,
    read,
    refused,
    written,
    wrong,
)

# ---- reading


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_three_formats_hold_the_same_rows(suffix: str, tmp_path: Path) -> None:
    rows = manifest_rows(tmp_path)
    builder = read(write_manifest(tmp_path / f"data{suffix}", rows))
    reference = read(write_manifest(tmp_path / "reference.csv", rows))
    assert builder.target == reference.target and builder.target.classes == ("blue", "green", "red")
    for name, samples in builder.splits().items():
        others = reference.splits()[name]
        assert [(s.values, s.target) for s in samples] == [(s.values, s.target) for s in others]


def test_an_empty_cell_is_a_missing_modality_in_every_split(tmp_path: Path) -> None:
    rows = manifest_rows(tmp_path)
    splits = read(write_manifest(tmp_path / "data.csv", rows)).splits()
    gaps = {name: sum(s.values["image"] is None for s in samples) for name, samples in splits.items()}
    assert gaps == {p: sum(r["picture"] is None for r in rows if r["part"] == p) for p in ("train", "val", "test")}
    assert min(gaps.values()) > 0


def test_file_names_are_relative_to_the_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_manifest(tmp_path / "data.csv", manifest_rows(tmp_path))
    monkeypatch.chdir(tmp_path)
    samples = read(Path("data.csv")).splits()["train"]
    assert all(
        s.values["image"] is None or (s.values["image"].is_absolute() and s.values["image"].exists()) for s in samples
    )
    elsewhere = written(
        tmp_path / "pictures", HEADER + f"{tmp_path}/pictures/1.png,,a,train\n1.png,x,b,val\n2.png,y,a,test\n"
    )
    assert all(s.values["image"].exists() for rows in read(elsewhere).splits().values() for s in rows)


def test_quoted_cells_may_span_lines_and_errors_name_the_first(tmp_path: Path) -> None:
    path = written(
        tmp_path, "\ufeff" + HEADER + '1.png,"two\nlines, one cell",a,train\n2.png,x,b,val\n3.png,y,a,test\n'
    )
    splits = read(path).splits()
    assert splits["train"][0].values["text"] == "two\nlines, one cell" and splits["train"][0].origin == "my.csv:2"
    assert splits["val"][0].origin == "my.csv:4"


def test_labels_are_lists_or_separated(tmp_path: Path) -> None:
    lines = [{"caption": "x", "kind": k, "part": p} for k, p in ((["b", "a"], "train"), ([], "val"), ("a; c", "test"))]
    path = written(tmp_path, "".join(json.dumps(line) + "\n\n" for line in lines), "my.jsonl")
    builder = read(path, target("multi_label", "kind", separator=";"), modalities={"text": column("text", "caption")})
    assert builder.target.classes == ("a", "b", "c")
    assert [builder.splits()[p][0].target for p in ("train", "val", "test")] == [["b", "a"], [], ["a", "c"]]
    assert builder.splits()["test"][0].origin == "my.jsonl:5"


def test_numbers_are_targets_and_class_names_sort_as_numbers(tmp_path: Path) -> None:
    text = HEADER + "".join(f"{i}.png,x,{i},{p}\n" for i, p in ((10, "train"), (9, "Dev"), (1, "TEST")))
    assert read(written(tmp_path, text)).target.classes == ("1", "9", "10")
    builder = read(written(tmp_path, text), target("regression", "kind"))
    assert builder.target.encode(builder.splits()["val"][0].target) == 9.0


def test_ids_do_not_depend_on_the_line(tmp_path: Path) -> None:
    rows = manifest_rows(tmp_path)
    before = read(write_manifest(tmp_path / "data.csv", rows)).splits()
    random.Random(0).shuffle(rows)
    after = read(write_manifest(tmp_path / "data.csv", rows)).splits()
    assert {n: {s.id for s in r} for n, r in before.items()} == {n: {s.id for s in r} for n, r in after.items()}


# ---- bad rows


def test_bad_rows_are_kept_apart_with_their_line(tmp_path: Path) -> None:
    text = HEADER + (
        "1.png,x,a,train\n"
        ",,a,train\n"
        "2.png,x,,train\n"
        "http://host/3.png,x,b,train\n"
        "4.png,x,c,train\n"
        "5.png,x,b,val\n"
        "6.png,x,a,test\n"
    )
    builder = read(written(tmp_path, text), target("single_label", "kind", classes=["a", "b"]))
    told = [str(row) for row in builder.bad_rows]
    assert [line.split(": ")[0] for line in told] == [f"my.csv:{i}" for i in (3, 4, 5, 6)]
    assert "every modality is empty (picture, caption)" in told[0] and "kind: the target is empty" in told[1]
    assert "picture: files on a network" in told[2] and "'c'" in told[3] and "one of a, b" in told[3]
    assert [s.origin for s in builder.splits()["train"]] == ["my.csv:2"]


def test_whatever_is_wrong_with_a_row_makes_it_a_bad_row(tmp_path: Path) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"kind": ...}, "kind: the target is empty"),
        ({"part": ...}, "part: unknown split; found ''; expected train"),
        ({"part": "trian"}, "part: unknown split; found 'trian'"),
        ({"part": ["train"]}, "part: expected a name or a number; found ['train']"),
        ({"caption": ...}, "every modality is empty (caption)"),
        ({"caption": []}, "every modality is empty (caption)"),
        ({"caption": ["x", "y"]}, "caption: expected a text; found ['x', 'y']"),
        ({"caption": {"raw": "x"}}, "caption: expected a text; found {'raw': 'x'}"),
        ({"caption": "\ud83d"}, "caption: expected a text; found half of a surrogate pair"),
        ({"caption": True}, "caption: expected a text; found True"),
        ({"kind": ["a"]}, "kind: expected a name or a number; found ['a']"),
        ({"concept": {"a": 1}}, "concept: expected a name or a number; found {'a': 1}"),
    ]
    bad = [{k: v for k, v in {**GOOD[0], **change}.items() if v is not ...} for change, _ in wrong]
    path = write_manifest(tmp_path / "my.jsonl", [*GOOD, *bad])
    told = bad_rows(path, modalities=TEXT, group="concept")
    assert len(told) == len(wrong)
    for line, (row, (_, reason)) in enumerate(zip(told, wrong, strict=True), start=len(GOOD) + 1):
        assert row.startswith(f"my.jsonl:{line}: ") and reason in row
    assert sum(map(len, read(path, modalities=TEXT, group="concept").splits().values())) == len(GOOD)


def test_bytes_are_texts_and_numbers_are_class_names(tmp_path: Path) -> None:
    """As Spark writes texts, and as pandas turns integers into floats where a value is absent."""
    rows = [row | {"caption": row["caption"].encode(), "kind": float(i % 2)} for i, row in enumerate(GOOD)]
    rows[2]["kind"] = None
    builder = read(write_manifest(tmp_path / "my.parquet", rows), modalities=TEXT)
    assert builder.target.classes == ("0", "1") and builder.splits()["train"][0].values == {"text": "word 0"}
    assert [str(row) for row in builder.bad_rows] == ["my.parquet:3: kind: the target is empty"]
    mixed = [row | {"kind": (0, 0.0, "0", 1, 1.0, "1")[i % 6]} for i, row in enumerate(GOOD)]
    assert read(write_manifest(tmp_path / "my.jsonl", mixed), modalities=TEXT).target.classes == ("0", "1")


def test_a_cell_that_arrow_cannot_convert_is_a_bad_row(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = write_manifest(tmp_path / "my.parquet", GOOD)
    table = pyarrow.parquet.read_table(path)
    raw = pyarrow.array([b"\xff" if i == 4 else row["caption"].encode() for i, row in enumerate(GOOD)])
    latin = pyarrow.Array.from_buffers(pyarrow.string(), len(raw), raw.buffers())  # a string column that is not UTF-8
    pyarrow.parquet.write_table(table.set_column(table.schema.get_field_index("caption"), "caption", latin), path)
    assert [row[:24] for row in bad_rows(path, modalities=TEXT)] == ["my.parquet:5: caption: e"]


def test_dates_are_neither_classes_nor_texts(tmp_path: Path) -> None:
    rows = [row | {"when": datetime.datetime(2020, 1, i + 1)} for i, row in enumerate(GOOD)]
    path = write_manifest(tmp_path / "my.parquet", rows)
    message = refused(path, modalities=TEXT, wanted=target("single_label", "when"))
    assert (
        message.startswith("12 rows cannot be used:") and "my.parquet:1: when: expected a name or a number" in message
    )


def test_bad_rows_are_told_before_what_follows_from_them(tmp_path: Path) -> None:
    rows = [row | {"picture": 5} for row in GOOD]
    path = write_manifest(tmp_path / "my.jsonl", rows)
    images = {"image": column("image", "picture")}
    for wanted in (target("single_label", "kind", classes=["a", "b"]), KIND):
        message = refused(path, modalities=images, wanted=wanted)
        assert "12 rows cannot be used:\n  my.jsonl:1: picture: expected a file name; found 5" in message
        assert "Without them" in message and "Give it rows" not in message


def test_pictures_of_hugging_face_are_read(tmp_path: Path) -> None:
    rows = [row | {"picture": {"bytes": None, "path": f"{i}.png"}} for i, row in enumerate(GOOD)]
    rows[1]["picture"] = {"bytes": b"\x89PNG", "path": "1.png"}
    images = {"image": column("image", "picture")}
    splits = read(write_manifest(tmp_path / "my.parquet", rows), modalities=images).splits()
    assert [s.values["image"] for s in splits["train"][:2]] == [tmp_path / "0.png", b"\x89PNG"]


@pytest.mark.parametrize("seed", ["1", "3"])
def test_the_order_of_classes_does_not_follow_the_hash_seed(seed: str, tmp_path: Path) -> None:
    rows = [row | {"kind": ("07", "7", "007", "b", "0007")[i % 5]} for i, row in enumerate(GOOD)]
    path = write_manifest(tmp_path / "my.csv", rows)
    script = (
        "import sys; from pathlib import Path; from tests.unit.manifest_helpers import read, TEXT;"
        "print(read(Path(sys.argv[1]), modalities=TEXT).target.classes)"
    )
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    out = subprocess.run([sys.executable, "-c", script, str(path)], env=environment, capture_output=True, text=True)
    assert out.stdout.strip() == "('0007', '007', '07', '7', 'b')", out.stderr


# ---- refusals


def test_columns_are_found_or_named(tmp_path: Path) -> None:
    path = write_manifest(tmp_path / "data.csv", manifest_rows(tmp_path))
    message = refused(path, modalities={"image": column("image", "pictur")})
    for part in ("data.modalities.image.column", "data.csv", "'pictur'", "Did you mean 'picture'?", "caption"):
        assert part in message
    assert "data.target.column" in refused(path, wanted=target("single_label", "class"))
    assert "data.group.column" in refused(path, group="family")
    assert "semicolons" in refused(written(tmp_path, HEADER.replace(",", ";") + "1.png;x;a;train\n"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["is empty"]),
        (HEADER, ["no rows"]),
        (HEADER + "1.png,a, comma,a,train\n", ["my.csv:2", "another number of cells", "found 5", "double quotes"]),
        (HEADER + "1.png,x,a,train\n1.png,x,b,trian\n", ["my.csv:3", "part", "'trian'", "train, val"]),
        (HEADER + "1.png,x,a,train\n1.png,x,b,\n", ["my.csv:3", "unknown split", "found ''"]),
        (HEADER + "1.png,x,a,train\n2.png,x,b,train\n", ["no row of the manifest belongs to test"]),
        (HEADER + "1.png,x,a,train\n2.png,x,a,test\n", ["too few classes", "['a']"]),
        ("picture,caption,kind,part,kind\n", ["my.csv:1", "named twice", "'kind'"]),
        (HEADER + '1.png,"x"y,a,train\n', ["my.csv:2", "not valid CSV"]),
    ],
)
def test_malformed_files_are_one_message(text: str, words: list[str], tmp_path: Path) -> None:
    message = refused(written(tmp_path, text))
    assert all(word in message for word in words), message


def test_cells_of_a_tsv_are_what_stands_between_tabs(tmp_path: Path) -> None:
    rows = [*GOOD]
    rows[2] = rows[2] | {"caption": '"blue boat, she said'}
    rows[5] = rows[5] | {"caption": 'the end of it"'}
    rows[6] = rows[6] | {"caption": '"all of it"'}
    text = "\r\n".join("\t".join(row.values()) for row in [{k: k for k in GOOD[0]}, *rows])
    samples = [s for part in read(written(tmp_path, text, "my.tsv"), modalities=TEXT).splits().values() for s in part]
    assert sorted(s.values["text"] for s in samples) == sorted(row["caption"] for row in rows)
    assert all("\r" not in s.target for s in samples)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('"a\tb"\ta\ttrain', ["my.tsv:2", "another number of cells", "found 4", "quotes do not enclose"]),
        ('"a', ["my.tsv:2", "another number of cells", "found 1", "quotes do not enclose"]),
        ('"she said ""a"""\ta\ttrain', ["my.tsv:2: caption", "quoted as in CSV"]),
    ],
)
def test_a_tsv_with_the_quotes_of_csv_is_refused(line: str, words: list[str], tmp_path: Path) -> None:
    message = refused(written(tmp_path, f"caption\tkind\tpart\n{line}\n", "my.tsv"), modalities=TEXT)
    assert all(word in message for word in words), message


def test_an_open_quote_is_refused_where_it_begins(tmp_path: Path) -> None:
    text = HEADER + '1.png,x,a,train\n2.png,"x,b,val\n3.png,y,a,test\n'
    assert "my.csv:3: the row is not valid CSV" in refused(written(tmp_path, text))


@pytest.mark.parametrize("close", [3, 9])
def test_a_stray_quote_that_takes_in_rows_is_refused_where_it_stands(close: int, tmp_path: Path) -> None:
    rows = [row | {"picture": ""} for row in GOOD]
    rows[2]["caption"], rows[close]["caption"] = '"blue boat', 'the end of it"'
    lines = [",".join(row[column] for column in ("picture", "caption", "kind", "part")) for row in rows]
    message = refused(written(tmp_path, HEADER + "\n".join(lines) + "\n"), modalities=TEXT)
    assert "my.csv:4: a quote opens a cell that takes in the rows below it" in message
    lines[2] = ',"one, two, three\nfour, five",a,train'  # as many commas on each line as a row has, but no row
    lines[close] = lines[close].replace('"', "")
    assert len(read(written(tmp_path, HEADER + "\n".join(lines) + "\n"), modalities=TEXT).splits()["train"]) == 5


def test_other_malformed_files(tmp_path: Path) -> None:
    assert "does not exist" in refused(tmp_path / "absent.csv")
    assert "unknown format" in refused(written(tmp_path, "", "my.xlsx"))
    assert "my.jsonl:2: the line is not valid JSON" in refused(written(tmp_path, '{"a": 1}\n{"a": \n', "my.jsonl"))
    twice = '{"caption": "a", "caption": "b"}'
    assert "my.jsonl:1: the line is not valid JSON (the key 'caption' stands twice)" in refused(
        written(tmp_path, twice, "my.jsonl")
    )
    deep = '{"caption": ' + "[" * 100_000
    assert "my.jsonl:1: the line is not valid JSON" in refused(written(tmp_path, deep, "my.jsonl"))
    assert "not a JSON object" in refused(written(tmp_path, "[1]\n", "my.jsonl"))
    assert "not valid Parquet" in refused(written(tmp_path, "PAR", "my.parquet"))
    (tmp_path / "latin.csv").write_bytes(HEADER.encode() + "1.png,é,a,train\n".encode("latin-1"))
    assert "latin.csv:2: the file is not UTF-8" in refused(tmp_path / "latin.csv")


def test_wrong_options_are_refused(tmp_path: Path) -> None:
    data = {"dataset": "manifest", "path": str(tmp_path), "modalities": COLUMNS, "target": KIND}
    assert "sum to 1" in wrong(data | {"split": {"train": 0.8, "val": 0.1, "test": 0.2}})
    assert "data.modalities.text.column: the target's column is also an input; found 'caption'" in wrong(
        data | {"target": target("single_label", "caption")}
    )
    assert "data.modalities.image.kind: " in wrong(data | {"modalities": {"image": column("picture", "picture")}})
    assert "data.path: this key is missing" in wrong({"dataset": "manifest"})
    with pytest.raises(UserError, match="dataset manifest needs path, modalities, target"):
        named_builder("manifest")
