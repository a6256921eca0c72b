"""CMU-MOSI in MMSA's and MulT's pickles: what is read, cleaned, cut and refused (research/methods.md §A.9, §5.3)."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmsweep.data.check import check
from mmsweep.data.dataset import Sample
from mmsweep.data.kinds.sequence import decode_sequence
from mmsweep.data.options import DATASETS
from mmsweep.data.prepared import prepare
from mmsweep.data.sets.mosi import FILES, MOSI
from mmsweep.errors import UserError
from tests.data.layouts.mosi import ALIGNED, DIRTY, ROWS, UNALIGNED, mmsa, mult, sequences, write


def mosi(root: Path, features: str = "unaligned_50") -> MOSI:
    return MOSI(DATASETS.options("mosi", root=str(root), features=features))


def values(builder: MOSI, sample: Sample, modality: str) -> np.ndarray:
    return decode_sequence(sample.values[modality], builder.formats[modality])  # type: ignore[arg-type]


# ---- what is read


def test_the_card_is_the_published_one() -> None:
    card = MOSI.card()
    assert card.rows == {"train": 1_284, "val": 229, "test": 686} and card.target is not None and card.target.signed
    shapes = {m: (f.length, f.width) for m, f in card.formats.items()}  # type: ignore[attr-defined]
    assert shapes == {"text": (50, 768), "audio": (500, 5), "vision": (375, 20)}
    for root in (None, "${MOSI_ROOT}", "/nowhere"):
        aligned = MOSI.card(DATASETS.options("mosi", root=root, features="aligned_50")).formats
        assert {m: f.length for m, f in aligned.items()} == dict.fromkeys(shapes, 50)  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"data.features: the shapes.*found 'mosi_data'"):
        MOSI.card(DATASETS.options("mosi", features="mosi_data"))


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_clip_is_its_sequences_up_to_their_lengths(protocol: int, tmp_path: Path) -> None:
    builder = mosi(write(tmp_path, "unaligned_50", protocol=protocol, under="MOSI/Processed"))
    splits = builder.splits()
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 8, "val": 4, "test": 4}
    assert {m: (f.length, f.width) for m, f in builder.formats.items()} == UNALIGNED  # type: ignore[attr-defined]
    for key, name in (("train", "train"), ("valid", "val"), ("test", "test")):
        arrays, lengths = sequences(key, UNALIGNED)
        for row, sample in enumerate(splits[name]):
            assert sample.id == f"{key}{row // 2}x$_${row}" and sample.group == f"{key}{row // 2}x"
            assert sample.target == pytest.approx(np.linspace(-3, 3, ROWS[key])[row], abs=1e-6)
            assert sample.origin == f"unaligned_50.pkl: {key} {row}"
            for modality, array in arrays.items():
                clean = np.where(np.isfinite(array[row]), array[row], 0)[: lengths[modality][row]]
                assert np.array_equal(values(builder, sample, modality), clean)
    assert not builder.bad_rows
    assert f"{DIRTY} values of audio were -inf or NaN" in builder.provenance()
    assert "padding" not in builder.provenance()


def test_an_aligned_file_has_one_length_for_all(tmp_path: Path) -> None:
    """The mask of text_bert; a row whose steps go on beyond it is read whole, and said."""
    builder = mosi(write(tmp_path, "aligned_50"), "aligned_50")
    _, lengths = sequences("train", ALIGNED)
    assert {m: (f.length, f.width) for m, f in builder.formats.items()} == ALIGNED  # type: ignore[attr-defined]
    assert [len(values(builder, s, "vision")) for s in builder.splits()["train"]] == lengths["text"]
    parts = mmsa(aligned=True)
    row = lengths["text"].index(4)
    parts["train"]["vision"][row, 5] = 1.0
    longer = mosi(write(tmp_path / "longer", "aligned_50", parts), "aligned_50")
    assert [len(values(longer, s, "vision")) for s in longer.splits()["train"]] == [
        6 if place == row else length for place, length in enumerate(lengths["text"])
    ]
    assert longer.provenance().endswith("read with their padding: vision 1.")


@pytest.mark.parametrize("features", ["mosi_data", "mosi_data_noalign"])
def test_mult_s_files_have_their_own_widths_ids_and_labels(features: str, tmp_path: Path) -> None:
    builder = mosi(write(tmp_path, features, protocol=2), features)
    shapes = ALIGNED if features == "mosi_data" else UNALIGNED
    found = {m: (f.length, f.width) for m, f in builder.formats.items()}  # type: ignore[attr-defined]
    assert found == {m: (steps, width + 2) for m, (steps, width) in shapes.items()}
    first, third = builder.splits()["train"][0], builder.splits()["train"][2]
    assert (first.id, first.group, first.target) == ("train0x[0.5-1.25]", "train0x", -2.0)
    assert third.group == "train1x" and values(builder, third, "audio").shape == (shapes["audio"][0], 7)
    assert "text 16, audio 16, vision 16" in builder.provenance()  # no lengths: padding is read, as MulT does


def test_mult_s_files_without_ids(tmp_path: Path) -> None:
    parts = mult()
    for part in parts.values():
        del part["id"]
    builder = mosi(write(tmp_path, "mosi_data_noalign", parts), "mosi_data_noalign")
    assert [s.id for s in builder.splits()["val"]] == [f"valid-{row}" for row in range(4)]


def test_a_sequence_of_no_steps_is_absent(tmp_path: Path) -> None:
    parts = mmsa()
    parts["train"]["vision_lengths"][1], parts["train"]["vision"][1] = 0, 0
    builder = mosi(write(tmp_path, "unaligned_50", parts))
    assert [s.values["vision"] is None for s in builder.splits()["train"]] == [False, True] + 6 * [False]
    assert any("vision is missing in 1 rows" in line for line in check(builder).lines)


def test_prepared_batches_hold_the_sequences_and_masks(tmp_path: Path) -> None:
    builder = mosi(write(tmp_path, "unaligned_50"))
    data = prepare(builder, builder.formats, tmp_path / "cache")
    batch = data.splits["train"].batch(np.arange(8))
    arrays, lengths = sequences("train", UNALIGNED)
    for modality, array in arrays.items():
        part = batch.inputs[modality]
        assert isinstance(part, dict) and part["mask"].sum(1).tolist() == lengths[modality]
        clean = torch.from_numpy(np.where(np.isfinite(array), array, 0))
        assert torch.equal(part["values"], clean)
    assert batch.target.dtype == torch.float32 and batch.target[0] == -3 and batch.target[-1] == 3


def test_other_content_is_another_fingerprint(tmp_path: Path) -> None:
    parts, prints = mmsa(), []
    for place in ("one", "same", "other"):
        if place == "other":
            parts["test"]["text"][0, 0, 0] += 1
        builder = mosi(write(tmp_path / place, "unaligned_50", parts))
        prints.append(prepare(builder, builder.formats, tmp_path / f"cache-{place}").fingerprint)
    assert prints[0] == prints[1] != prints[2]


# ---- what is wrong


def test_every_row_is_used_or_named(tmp_path: Path) -> None:
    parts = mmsa()
    train = parts["train"]
    train["regression_labels"][0], train["regression_labels"][1] = 3.5, np.nan
    train["id"][3], train["id"][4] = train["id"][2], None
    parts["test"]["id"][0] = train["id"][2]
    builder = mosi(write(tmp_path, "unaligned_50", parts))
    twice = "the id train1x$_$2 stands twice, first in unaligned_50.pkl: train 2"
    assert [str(bad).removeprefix("unaligned_50.pkl: ") for bad in builder.bad_rows] == [
        "train 0: the sentiment is 3.5; expected -3 to 3",
        "train 1: the sentiment is nan; expected -3 to 3",
        f"train 3: {twice}",
        "train 4: the id is None; expected a text",
        f"test 0: {twice}",
    ]
    assert sum(map(len, builder.splits().values())) == 16 - 5


def test_only_audio_is_cleaned(tmp_path: Path) -> None:
    parts = mmsa()
    parts["train"]["text"][0, 0, 0], parts["train"]["vision"][1, 0, 2] = -np.inf, np.nan
    parts["train"]["audio"][4, 0, 1] = np.inf
    builder = mosi(write(tmp_path, "unaligned_50", parts))
    data = prepare(builder, builder.formats, tmp_path / "cache", max_bad=1.0)
    assert [str(row) for row in data.skipped] == [
        f"unaligned_50.pkl: train {row}: {modality}: the sequence {builder.path}:train {modality} {row} holds {number} "
        f"at step 0, column {column}"
        for row, modality, number, column in ((0, "text", "-inf", 0), (1, "vision", "nan", 2), (4, "audio", "inf", 1))
    ]


def damaged(change: Any) -> Any:
    parts = mmsa()
    change(parts)
    return parts


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p: p.pop("valid"), r"does not hold the splits; found \['train', 'test'\]; expected train, valid and"),
        (lambda p: p["test"].pop("audio"), r"test.audio: .*absent.*found None; expected 4 rows"),
        (lambda p: p["train"].update(vision=p["test"]["vision"]), r"train.vision: .*found '4 rows'; expected 8 rows"),
        (lambda p: p["train"].update(text=p["train"]["text"][..., 0]), r"train.text: .*found '\[8, 6\] of float32"),
        (lambda p: p["test"].pop("regression_labels"), r"test.labels: .*found None; expected 4 rows"),
        (lambda p: p["test"].update(regression_labels=np.zeros((4, 7))), r"test.regression_labels: .*found '\[4, 7\]"),
        (lambda p: p["train"].update(audio_lengths=8 * [-1]), r"train.audio_lengths: the lengths are not whole"),
        (lambda p: p["train"].update(vision_lengths=[3]), r"train.vision_lengths: .*found '1 rows'; expected 8"),
        (lambda p: p["train"].update(audio_lengths=[[1], [1, 2]] * 4), r"train.audio_lengths: .*object"),
        (lambda p: p["train"].update(text_bert=3, id=[["a"], [[]]]), r"train.id: .*found '2 rows'"),
        (lambda p: p["train"].update(id=["a"]), r"train.id: .*found '1 rows'"),
    ],
)  # fmt: skip
def test_a_malformed_pickle_is_one_message(change: Any, said: str, tmp_path: Path) -> None:
    root = write(tmp_path, "unaligned_50", damaged(change))
    with pytest.raises(UserError, match=said) as caught:
        mosi(root)
    assert "\n" not in str(caught.value) and "unaligned_50.pkl" in str(caught.value)


def test_a_hostile_pickle_is_refused_by_name(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "made"),)

    parts = damaged(lambda p: p["train"].update(raw_text=[Hostile()]))
    with pytest.raises(UserError, match=r"unaligned_50.pkl.*asks for posix.mkdir; only plain values and NumPy arrays"):
        mosi(write(tmp_path, "unaligned_50", parts))
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "is empty"), (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs|git-LFS"),
     (pickle.dumps(mmsa())[:2000], "no whole pickle"), (pickle.dumps([1]), "found 'list'")],
)  # fmt: skip
def test_no_pickle_of_mosi(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "unaligned_50.pkl").write_bytes(content)
    with pytest.raises(UserError, match=said):
        mosi(tmp_path)


def test_what_is_not_here_is_named(tmp_path: Path) -> None:
    for root in (None, str(tmp_path)):
        with pytest.raises(UserError, match=r"data.root: unaligned_50.pkl is not here.*github.com/thuiar/MMSA"):
            MOSI(DATASETS.options("mosi", root=root))
    write(tmp_path, "aligned_50", under="Processed")
    with pytest.raises(UserError, match=r"data.features: unaligned_50.pkl is not here.*Processed/aligned_50.pkl"):
        mosi(tmp_path)
    with pytest.raises(ValueError, match="mosi_data"):
        DATASETS.options("mosi", features="aligned")
    assert FILES[0] == "unaligned_50"
