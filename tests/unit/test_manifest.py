"""The user's own file: what is read, what is refused, and where rows go."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from mmsweep.data.check import check
from mmsweep.data.options import DatasetOptions, ManifestOptions, ModalityColumn, SplitRule, TargetColumn
from mmsweep.data.registry import build_dataset, dataset_card, datasets
from mmsweep.data.sets.manifest import Manifest
from mmsweep.errors import UserError
from tests.data.files import manifest_rows, write_manifest

COLUMNS = {"image": ModalityColumn("image", "picture"), "text": ModalityColumn("text", "caption")}
BY_COLUMN = SplitRule("part")
HEADER = "picture,caption,kind,part\n"


def read(path: Path, target: TargetColumn | None = None, split: SplitRule = BY_COLUMN, **options: Any) -> Manifest:
    modalities = options.pop("modalities", COLUMNS)
    return Manifest(ManifestOptions(path, modalities, target or TargetColumn("single_label", "kind"), split, **options))


def written(folder: Path, text: str, name: str = "my.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def refused(path: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        read(path, **options)
    return str(caught.value)


# ---- reading


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_three_formats_hold_the_same_rows(suffix: str, tmp_path: Path) -> None:
    rows = manifest_rows(tmp_path)
    builder = read(write_manifest(tmp_path / f"data{suffix}", rows))
    reference = read(write_manifest(tmp_path / "reference.csv", rows))
    assert builder.target == reference.target and builder.target.classes == ("blue", "green", "red")
    for name, samples in builder.splits().items():
        others = reference.splits()[name]
        assert [(s.id, s.values, s.target) for s in samples] == [(s.id, s.values, s.target) for s in others]


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
    builder = read(
        path, TargetColumn("multi_label", "kind", ";"), modalities={"text": ModalityColumn("text", "caption")}
    )
    assert builder.target.classes == ("a", "b", "c")
    assert [builder.splits()[p][0].target for p in ("train", "val", "test")] == [["b", "a"], [], ["a", "c"]]
    assert builder.splits()["test"][0].origin == "my.jsonl:5"


def test_numbers_are_targets_and_class_names_sort_as_numbers(tmp_path: Path) -> None:
    text = HEADER + "".join(f"{i}.png,x,{i},{p}\n" for i, p in ((10, "train"), (9, "Dev"), (1, "TEST")))
    assert read(written(tmp_path, text)).target.classes == ("1", "9", "10")
    builder = read(written(tmp_path, text), TargetColumn("regression", "kind"))
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
    builder = read(written(tmp_path, text), TargetColumn("single_label", "kind", classes=("a", "b")))
    told = [str(row) for row in builder.bad_rows]
    assert [line.split(": ")[0] for line in told] == [f"my.csv:{i}" for i in (3, 4, 5, 6)]
    assert "every modality is empty (picture, caption)" in told[0] and "kind: the target is empty" in told[1]
    assert "picture: files on a network" in told[2] and "'c'" in told[3] and "one of a, b" in told[3]
    assert [s.origin for s in builder.splits()["train"]] == ["my.csv:2"]


# ---- refusals


def test_columns_are_found_or_named(tmp_path: Path) -> None:
    path = write_manifest(tmp_path / "data.csv", manifest_rows(tmp_path))
    message = refused(path, modalities={"image": ModalityColumn("image", "pictur")})
    for part in ("data.modalities.image.column", "data.csv", "'pictur'", "Did you mean 'picture'?", "caption"):
        assert part in message
    assert "data.target.column" in refused(path, target=TargetColumn("single_label", "class"))
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


def test_other_malformed_files(tmp_path: Path) -> None:
    assert "does not exist" in refused(tmp_path / "absent.csv")
    assert "unknown format" in refused(written(tmp_path, "", "my.xlsx"))
    assert "my.jsonl:2: the line is not valid JSON" in refused(written(tmp_path, '{"a": 1}\n{"a": \n', "my.jsonl"))
    assert "not a JSON object" in refused(written(tmp_path, "[1]\n", "my.jsonl"))
    assert "not valid Parquet" in refused(written(tmp_path, "PAR", "my.parquet"))
    (tmp_path / "latin.csv").write_bytes(HEADER.encode() + "1.png,é,a,train\n".encode("latin-1"))
    assert "latin.csv:2: the file is not UTF-8" in refused(tmp_path / "latin.csv")


def test_wrong_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="sum to 1"):
        SplitRule(train=0.8, val=0.1, test=0.2)
    with pytest.raises(UserError, match="also an input"):
        ManifestOptions(tmp_path, COLUMNS, TargetColumn("single_label", "caption"))
    with pytest.raises(UserError, match="unknown kind"):
        ModalityColumn("picture", "picture")
    with pytest.raises(UserError, match="needs its file"):
        build_dataset("manifest")


# ---- splits


def test_carving_follows_groups_and_seed_not_order(tmp_path: Path) -> None:
    rows = manifest_rows(tmp_path, 60)
    rule = SplitRule(train=0.6, val=0.2, test=0.2, seed=1)

    def ids(order: int, seed: int = 1) -> dict[str, frozenset[str]]:
        shuffled = random.Random(order).sample(rows, len(rows))
        path = write_manifest(tmp_path / "data.jsonl", shuffled)
        rule = SplitRule(train=0.6, val=0.2, test=0.2, seed=seed)
        splits = read(path, split=rule, group="concept").splits()
        homes = [{s.group for s in samples} for samples in splits.values()]
        assert sum(map(len, homes)) == len(set().union(*homes)) == 30
        return {name: frozenset(s.id for s in samples) for name, samples in splits.items()}

    assert ids(0) == ids(1) != ids(0, seed=2)
    assert {name: len(found) for name, found in ids(0).items()} == {"train": 36, "val": 12, "test": 12}
    assert "(seed 1)" in read(tmp_path / "data.jsonl", split=rule).provenance()


def test_equal_rows_stay_together_and_have_their_own_ids(tmp_path: Path) -> None:
    text = HEADER + "".join(f"{i // 4}.png,x,{'ab'[i % 8 // 4]},\n" for i in range(80))
    splits = read(written(tmp_path, text), split=SplitRule()).splits()
    homes = {s.values["image"]: name for name, samples in splits.items() for s in samples}
    assert all(homes[s.values["image"]] == name for name, samples in splits.items() for s in samples)
    assert len({s.id for samples in splits.values() for s in samples}) == 80


def test_validation_is_carved_from_training_when_the_column_has_none(tmp_path: Path) -> None:
    rows = [row | {"part": "train" if row["part"] == "val" else row["part"]} for row in manifest_rows(tmp_path)]
    builder = read(write_manifest(tmp_path / "data.csv", rows), group="concept")
    splits = builder.splits()
    assert len(splits["test"]) == sum(row["part"] == "test" for row in rows)
    assert 2 <= len(splits["val"]) <= 4 and "carved off by hash" in builder.provenance()
    assert not {s.group for s in splits["val"]} & {s.group for s in splits["train"]}


def test_a_group_in_two_splits_is_refused(tmp_path: Path) -> None:
    rows = [row | {"part": ("train", "val", "test")[i % 3]} for i, row in enumerate(manifest_rows(tmp_path))]
    message = refused(write_manifest(tmp_path / "data.csv", rows), group="concept")
    assert "data.csv:3" in message and "in train on line 2 and in val here" in message and "'concept-0'" in message


# ---- check and registry


def test_check_tells_what_needs_attention(tmp_path: Path) -> None:
    rows = manifest_rows(tmp_path)
    rows[1]["picture"] = "pictures/absent.png"
    rows[2]["kind"] = "violet"
    findings = "\n".join(check(read(write_manifest(tmp_path / "data.csv", rows))))
    assert "\nwarning: 1 of 32 files" in "\n".join(check(read(tmp_path / "data.csv"), on_bad="skip"))
    for part in ("error: 1 of 32 files do not exist", "data.csv:3: ", "absent.png", "image is missing in",
                 "are complete", "'violet' (0)", "the largest is"):  # fmt: skip
        assert part in findings, findings


def test_registry_knows_names_and_cards() -> None:
    assert {"food101", "kinetics_sounds", "manifest", "mmimdb", "openclipart"} <= set(datasets())
    assert datasets("mm*") == ["mmimdb"]
    food, films, sounds = (dataset_card(name) for name in ("food101", "mmimdb", "kinetics_sounds"))
    assert food.target and food.target.width == 101 and sum(food.rows.values()) == 67_988 + 22_716
    assert films.target and films.target.width == 23 and films.rows == {"train": 15_552, "val": 2_608, "test": 7_799}
    assert sounds.target and sounds.target.width == 31 and list(sounds.modalities) == ["audio", "video"]
    with pytest.raises(UserError, match="Did you mean 'food101'"):
        dataset_card("food-101")
    with pytest.raises(UserError, match=r"does not read it from disk.*dataset: manifest"):
        build_dataset("food101", DatasetOptions(root=Path("/data")))
