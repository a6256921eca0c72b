"""Sequences: files of the user's and features derived from stamps, in prepared columns and batches."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmsweep.assembly.build import card_of, make_backbone
from mmsweep.assembly.plan import dry_run
from mmsweep.data.check import check
from mmsweep.data.derived import picture_features, sound_features, word_features
from mmsweep.data.files import Undecodable
from mmsweep.data.kinds.sequence import SequenceFormat, decode_sequence, sequence_decoder
from mmsweep.data.options import DATASETS
from mmsweep.data.prepared import prepare
from mmsweep.data.prepared_split import PreparedSplit
from mmsweep.data.sets.manifest import Manifest
from mmsweep.data.sets.tuxpaint import CLASSES
from mmsweep.data.sets.tuxpaint_sequences import ALIVE, SEQUENCES, TuxPaintSequences
from mmsweep.errors import UserError
from mmsweep.study import Study
from tests.data.files import column, manifest_options, target, write_picture
from tests.data.stamps import write_sound, write_stamps

COLUMNS = {
    "words": column("sequence", "words", length=6, width=3),
    "tones": column("sequence", "tones", length=9, width=2),
}
TARGET = target("regression", "score", signed=True)


@pytest.fixture()
def table(tmp_path: Path) -> Path:
    """24 rows; every fifth lacks its words; lengths from 1 to 8 steps (words are cut at 6)."""
    random = np.random.default_rng(0)
    rows = []
    for i in range(24):
        np.save(tmp_path / f"words-{i}.npy", random.normal(size=(1 + i % 8, 3)))
        np.save(tmp_path / f"tones-{i}.npy", random.normal(size=(9 - i % 4, 2)).astype(np.float32))
        part = "train" if i < 14 else "val" if i < 19 else "test"
        words = "" if i % 5 == 0 else f"words-{i}.npy"
        rows.append({"words": words, "tones": f"tones-{i}.npy", "score": i / 4 - 3, "part": part})
    path = tmp_path / "data.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def read(table: Path, cache: str = "cache", **options: Any) -> PreparedSplit:
    builder = Manifest(manifest_options(table, COLUMNS, TARGET, {"column": "part"}))
    return prepare(builder, builder.formats, table.parent / cache, **options).splits["train"]


def test_batches_hold_values_and_lengths(table: Path) -> None:
    split = read(table)
    batch = split.batch(np.arange(14))
    words = batch.inputs["words"]
    assert isinstance(words, dict) and words["values"].shape == (14, 6, 3) and words["values"].dtype == torch.float32
    for i in range(14):
        steps = 0 if i % 5 == 0 else min(1 + i % 8, 6)
        assert words["mask"][i].tolist() == [t < steps for t in range(6)]
        if steps:
            stored = np.load(table.parent / f"words-{i}.npy")[:6].astype(np.float32)
            assert torch.equal(words["values"][i, :steps], torch.from_numpy(stored))
        assert (words["values"][i, steps:] == 0).all()
    assert batch.target.dtype == torch.float32 and batch.target[4] == -2.0
    one = split.batch(np.array([9])).inputs["words"]  # a row does not depend on how long its batch mates are
    assert isinstance(one, dict) and torch.equal(one["values"][0], words["values"][9])


@pytest.mark.parametrize("fill", ["zeros", "ones", "nan", "mean"])
def test_absent_sequences_are_the_fill(table: Path, fill: str) -> None:
    split = read(table, fill=fill)
    present = np.ones((14, 2), bool)
    present[::2, 1] = False
    tones = split.batch(np.arange(14), present=present).inputs["tones"]
    whole = split.batch(np.arange(14)).inputs["tones"]
    assert isinstance(tones, dict) and isinstance(whole, dict)
    assert not tones["mask"][::2].any() and torch.equal(tones["mask"][1::2], whole["mask"][1::2])
    assert torch.equal(tones["values"][1::2], whole["values"][1::2])
    mean = np.concatenate([np.load(table.parent / f"tones-{i}.npy") for i in range(14)]).mean(0)
    expected = {"zeros": [0, 0], "ones": [1, 1], "nan": [np.nan] * 2, "mean": mean}[fill]
    found = tones["values"][::2].reshape(-1, 2).numpy()
    np.testing.assert_allclose(found, np.broadcast_to(np.asarray(expected, np.float32), found.shape), rtol=1e-5)


def test_a_sequence_is_not_black(table: Path) -> None:
    with pytest.raises(UserError, match=r"data.fill: sequence cannot be black"):
        read(table, fill="black")


def test_columns_are_mapped_and_keyed_by_their_size(table: Path) -> None:
    split = read(table)
    assert (split.folder / "train" / "words.length.npy").is_file()
    assert np.load(split.folder / "train" / "words.npy", mmap_mode="r").shape == (14, 6, 3)
    builder = Manifest(manifest_options(table, COLUMNS, TARGET, {"column": "part"}))
    shorter = {**builder.formats, "words": SequenceFormat(4, 3)}
    assert prepare(builder, shorter, table.parent / "cache").folder != split.folder


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 5)), r"words-3.npy is not \[steps, 3\]; found \[4, 5\]"),
        (np.zeros((0, 3)), r"is not \[steps, 3\]; found \[0, 3\]"),
        (np.zeros(3), r"found \[3\]"),
        (np.array([[1.0, -np.inf, 0.0]]), r"holds -inf at step 0, column 1"),
        (np.array([["a", "b", "c"]]), r"does not hold numbers; found <U1"),
        (np.array([[object()] * 3]), r"words-3.npy is not a .npy array"),
        (b"PK no array", r"words-3.npy is not a .npy array"),
        (None, r"words-3.npy does not exist"),
    ],
)
def test_wrong_files_are_named_with_their_row(table: Path, array: Any, message: str) -> None:
    path = table.parent / "words-3.npy"
    path.unlink()
    if isinstance(array, bytes):
        path.write_bytes(array)
    elif array is not None:
        np.save(path, array, allow_pickle=True)
    with pytest.raises(UserError, match=rf"data.csv:5: words: .*{message}"):
        read(table)
    assert len(read(table, max_bad=1.0)) == 13


def test_a_sequence_is_cut_at_its_length() -> None:
    import io

    buffer = io.BytesIO()
    np.save(buffer, np.arange(12).reshape(6, 2))
    found = decode_sequence(buffer.getvalue(), SequenceFormat(4, 2))
    assert found.dtype == np.float32 and found.tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]


STUDY: dict[str, Any] = {
    "name": "sequences",
    "data": {
        "dataset": "manifest",
        "path": "data.csv",
        "modalities": {
            "words": {"kind": "sequence", "column": "words", "length": 6, "width": 3},
            "tones": {"kind": "sequence", "column": "tones", "length": 9, "width": 2},
        },
        "target": {"task": "regression", "column": "score", "signed": True},
        "split": {"column": "part"},
    },
    "model": {"backbone": {"name": "mult", "mult": {"width": 4, "heads": 2, "kernel": 3}}, "lora": None},
    "method": {"name": "plain"},
    "sweep": {"objective": {"metric": "val/mean_missing/non0_accuracy"}},
}


def test_a_study_of_sequences_dry_runs(table: Path) -> None:
    study = Study.parse(STUDY).with_values({"data.path": str(table)})
    plan = dry_run(study)
    assert plan["tokens"] == {"words": 4, "tones": 7}
    assert plan["parameters"]["trainable"] == plan["parameters"]["total"] > 0


def test_mult_reads_sequences_only() -> None:
    picture = {"data.modalities.words": {"kind": "text", "column": "words"}}
    with pytest.raises(UserError, match=r"model.backbone.name.*found 'mult for words, which is text'"):
        make_backbone(study := Study.parse(STUDY).with_values(picture), card_of(study), load=False, files=False)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("data.modalities.words.width", None, r"data.modalities.words.width: wrong value; found None"),
        (
            "data.modalities.words.kind",
            "text",
            r"words.length: unknown key; .*of kind of modality sequence",
        ),
        ("data.target.task", "single_label", r"data.target.*single_label has no sign"),
        ("model.backbone.mult.heads", 3, r"model.backbone.mult.*3 heads cannot share a width of 4"),
        ("model.backbone.trainable", True, r"model.backbone"),
        ("train.regression_loss", "l3", r"train.regression_loss.*'l3'"),
    ],
)
def test_wrong_studies_are_one_message(key: str, value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        Study.parse(STUDY).with_values({key: value})
    assert "\n" not in str(caught.value)


# ---- derived


def test_words_are_hashed_alike_everywhere() -> None:
    one, two = word_features("A red Fox!", 64), word_features("fox, a", 64)
    assert one.shape == (3, 64) and two.shape == (2, 64) and np.array_equal(one[2], two[0])
    assert np.allclose(np.linalg.norm(one, axis=1), 1)
    near, far = word_features("foxes", 768)[0], word_features("lamp", 768)[0]
    fox = word_features("fox", 768)[0]
    assert fox @ near > 0.3 > abs(fox @ far)  # trigrams shared
    with pytest.raises(Undecodable, match="has no words"):
        word_features(" … ", 64)


def test_sound_tells_pitch_and_loudness(tmp_path: Path) -> None:
    pytest.importorskip("soundfile")
    low, high = (sound_features(write_sound(tmp_path / f"{p}.wav", p, 0.5)) for p in (200.0, 2_000.0))
    assert low.shape == high.shape == (48, 5)  # 0.5 s: (8000 - 400) // 160 + 1
    inner = slice(2, -2)
    crossings = 2 * 200 / 16_000, 2 * 2_000 / 16_000
    assert low[inner, 1].mean() == pytest.approx(crossings[0], rel=0.1)
    assert high[inner, 1].mean() == pytest.approx(crossings[1], rel=0.1)
    assert high[inner, 2].mean() == pytest.approx(2_000 / 8_000, rel=0.05)
    assert abs(low[inner, 0] - (np.log10(0.5 * (20_000 / 32_768) ** 2) / 4 + 1)).max() < 0.05


def test_pictures_are_read_cell_by_cell(tmp_path: Path) -> None:
    path = write_picture(tmp_path / "red.png", "red", (100, 50))
    features = picture_features(path)
    assert features.shape[1] == 20 and 0 < len(features) < 375  # the padding is blank
    assert features[:, 0].mean() > 0.7 and features[5:-5, 1].mean() < 0.3
    rows = np.unique(features[:, 19])
    assert rows.min() > -0.7 and rows.max() < 0.7 and np.allclose(np.unique(features[:, 18])[[0, -1]], [-1, 1])
    from PIL import Image

    Image.new("RGB", (20, 20), "white").save(tmp_path / "blank.png")
    assert picture_features(tmp_path / "blank.png").shape == (375, 20)


def test_a_recipe_has_its_own_width() -> None:
    for recipe, width in (("sound", 5), ("picture", 20)):
        with pytest.raises(UserError, match=rf"recipe {recipe} gives another width.*expected {width}"):
            sequence_decoder(SequenceFormat(10, 7, recipe))  # type: ignore[arg-type]


def test_stamps_as_sequences(tmp_path: Path) -> None:
    pytest.importorskip("soundfile")
    root = write_stamps(tmp_path / "package", each=6)
    options = DATASETS.options("tuxpaint_sequences", root=str(root), split_seed=1)
    builder, card = TuxPaintSequences(options), TuxPaintSequences.card(options)
    assert dict(card.formats) == dict(builder.formats) == SEQUENCES and card.target == builder.target
    assert set(ALIVE) == set(CLASSES) and 0.0 in ALIVE.values() and max(ALIVE.values()) == -min(ALIVE.values()) == 3.0
    findings = check(builder).lines
    assert not [line for line in findings if line.startswith(("warning", "error"))]
    assert "Derived, not measured" in findings[0]
    data = prepare(builder, builder.formats, tmp_path / "cache")
    batch = data.splits["train"].batch(np.arange(len(data.splits["train"])))
    shapes = {m: tuple(x["values"].shape[1:]) for m, x in batch.inputs.items() if isinstance(x, dict)}
    assert shapes == {"text": (50, 768), "audio": (500, 5), "vision": (375, 20)}
    assert 0 < batch.present_BM[:, 1].sum() < len(batch)
    with pytest.raises(UserError, match=r"data.audio.language: sequences are of one language"):
        TuxPaintSequences(DATASETS.options("tuxpaint_sequences", root=str(root), audio={"language": "all"}))
