"""What `mmsweep data check` says of a manifest, and the names that its modalities may have."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmsweep.data.check import check
from mmsweep.data.dataset import Sample
from mmsweep.data.modality_names import MODULE_WORDS, misnamed
from mmsweep.data.options import DATASETS
from mmsweep.models.packing import PackedParameters
from tests.data.files import manifest_rows, target, write_manifest, write_picture
from tests.unit.manifest_helpers import (
    COLUMNS,
    GOOD,
    KIND,
    TEXT,
    read,
    wrong,
)
from tests.unit.prepared_helpers import Rows


def test_check_tells_what_needs_attention(tmp_path: Path) -> None:
    rows = manifest_rows(tmp_path)
    rows[1]["picture"] = "pictures/absent.png"
    rows[2]["kind"] = "violet"
    findings = "\n".join(check(read(write_manifest(tmp_path / "data.csv", rows))).lines)
    assert "\nwarning: 1 of 32 files" in "\n".join(check(read(tmp_path / "data.csv"), max_bad=1.0).lines)
    for part in ("error: 1 of 32 files do not exist", "data.csv:3: ", "absent.png", "image is missing in",
                 "are complete", "'violet' (0)", "the largest is"):  # fmt: skip
        assert part in findings, findings


def test_check_warns_of_a_target_that_is_constant(tmp_path: Path) -> None:
    rows = [row | {"kind": 3} for row in manifest_rows(tmp_path)]
    builder = read(write_manifest(tmp_path / "data.csv", rows), wanted=target("regression", "kind"))
    assert "warning: every training row has the same target" in "\n".join(check(builder).lines)


def test_check_names_the_same_inputs_in_two_splits(tmp_path: Path) -> None:
    rows = manifest_rows(tmp_path)
    copy = next(i for i, row in enumerate(rows) if row["picture"] and row["part"] == "train")
    other = next(i for i, row in enumerate(rows) if row["picture"] and row["part"] == "test")
    (tmp_path / "copy.png").write_bytes((tmp_path / rows[copy]["picture"]).read_bytes())
    rows = [row | {"caption": f"word {i}"} for i, row in enumerate(rows)]
    rows[other] |= {"picture": "copy.png", "caption": rows[copy]["caption"]}
    findings = check(read(write_manifest(tmp_path / "data.csv", rows))).lines
    (warning,) = [line for line in findings if "same inputs" in line]
    assert warning.startswith("warning: ") and f"data.csv:{copy + 2} (train)" in warning
    assert f"data.csv:{other + 2} (test)" in warning
    rows[other]["picture"] = rows[copy]["picture"]
    assert "stand in more than one split" in read(write_manifest(tmp_path / "data.csv", rows)).provenance()


def test_check_survives_file_names_that_are_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    names = ["a long description of what is to be seen " * 8, "/dev/zero", "pipe", ".", "x/" * 3000]
    rows = [row | {"picture": names[i % 5]} for i, row in enumerate(GOOD * 5)]
    findings = "\n".join(check(read(write_manifest(tmp_path / "my.csv", rows))).lines)
    assert "error: 24 of 60 files do not exist" in findings
    assert "error: 36 of 60 files cannot be read" in findings and "expected a file" in findings


def test_rows_with_one_origin_are_counted_one_by_one(tmp_path: Path) -> None:
    """All plots of a film are rows, and stand in one file."""
    rows = [Sample(str(i), {"image": tmp_path / "absent.png"}, "red", None, "film.json") for i in range(4)]
    write_picture(tmp_path / "there.png", "red", seed=0)
    rows += [replace(rows[0], id=str(i), values={"image": tmp_path / "there.png"}) for i in range(4, 40)]
    builder = Rows({"image": "image"}, {"train": rows, "val": rows[4:5], "test": rows[5:6]})
    result = check(builder, max_bad=0.05)
    assert not result.usable and "4 of 42 rows cannot be used (9.52%)" in "\n".join(result.lines)


def test_check_names_classes_that_look_alike(tmp_path: Path) -> None:
    kinds = ["0", "0.0", "cat", "Cat", "dog"]
    rows = [row | {"kind": kinds[i % 5]} for i, row in enumerate(GOOD)]
    findings = "\n".join(check(read(write_manifest(tmp_path / "my.csv", rows), modalities=TEXT)).lines)
    assert "warning: 2 classes are spelt in several ways: '0' and '0.0', 'Cat' and 'cat'" in findings


def test_check_doubts_a_class_that_is_an_absent_value(tmp_path: Path) -> None:
    rows = [row | {"kind": ["nan", "cat", "dog"][i % 3]} for i, row in enumerate(GOOD)]
    findings = "\n".join(check(read(write_manifest(tmp_path / "my.csv", rows), modalities=TEXT)).lines)
    assert "warning: a class may stand for rows without a value: 'nan'" in findings


def test_check_doubts_a_separator_that_separates_nothing(tmp_path: Path) -> None:
    rows = [row | {"kind": ("a, b", "b", "c")[i % 3]} for i, row in enumerate(GOOD)]
    path = write_manifest(tmp_path / "my.csv", rows)
    for separator, doubted in (("|", True), (",", False)):
        builder = read(path, target("multi_label", "kind", separator=separator), modalities=TEXT)
        assert any("data.target.separator" in line for line in check(builder).lines) is doubted


UNUSABLE = ["../../x", "image.left", "image/left", "image-left", "", "1", "a" * 41, "\u00e9", "a b", "a\n"]


@pytest.mark.parametrize(
    "name", [*UNUSABLE, "type", "keys", "forward", "Targets", "natural", "ids", "both", "a_from_b"]
)
def test_names_that_no_modality_can_have(name: str, tmp_path: Path) -> None:
    modalities = {"text": TEXT["text"], name: COLUMNS["image"]}
    message = wrong({"dataset": "manifest", "path": str(tmp_path), "modalities": modalities, "target": KIND})
    assert message.startswith("data.modalities: ") and f"found {name!r}" in message and "letter" in message


def test_names_that_differ_in_case_only_share_a_file_on_some_disks() -> None:
    assert misnamed(["image", "Image"]) and not misnamed(["image", "image_2", "T1"])


def test_words_of_pytorch_are_taken() -> None:
    dictionaries = (torch.nn.ModuleDict(), torch.nn.ParameterDict(), PackedParameters())
    words = {word for each in dictionaries for word in dir(each) if not word.startswith("_")}
    assert words <= MODULE_WORDS


def test_registry_knows_names_and_cards() -> None:
    assert {"food101", "kinetics_sounds", "manifest", "mmimdb", "openclipart"} <= set(DATASETS)
    assert all(name == dataset.card().name for name, dataset in DATASETS.items())
    food, films, sounds = (DATASETS[name].card() for name in ("food101", "mmimdb", "kinetics_sounds"))
    assert food.target and food.target.width == 101 and sum(food.rows.values()) == 67_988 + 22_716
    assert films.target and films.target.width == 23 and films.rows == {"train": 15_552, "val": 2_608, "test": 7_799}
    assert sounds.target and sounds.target.width == 31 and list(sounds.modalities) == ["audio", "video"]
    assert "Did you mean 'food101'" in wrong({"dataset": "food-101"})
