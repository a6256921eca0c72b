"""Preparation: decoding, caching, bad rows, and what a batch holds."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmsweep.data import wholeness
from mmsweep.data.dataset import Sample
from mmsweep.data.kinds.audio import AudioFormat
from mmsweep.data.kinds.image import ImageFormat
from mmsweep.data.kinds.kind import Format
from mmsweep.data.kinds.sequence import SequenceFormat
from mmsweep.data.kinds.text import TextFormat
from mmsweep.data.prepared import prepare
from mmsweep.errors import UserError
from tests.data.files import write_picture, write_tokenizer
from tests.unit.prepared_helpers import Rows, formats_of, image_of, pictures

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


# ---- caching


def test_the_second_call_reads_what_the_first_wrote(tmp_path: Path, tokenizer: str) -> None:
    builder, calls = pictures(tmp_path), []
    first = prepare(builder, formats_of(tokenizer), tmp_path / "cache", progress=lambda *args: calls.append(args))
    assert calls[-1] == ("test", 6, 6)
    again = prepare(builder, formats_of(tokenizer), tmp_path / "cache", progress=lambda *args: calls.append("more"))
    assert again.folder == first.folder and "more" not in calls
    assert torch.equal(image_of(first), image_of(again))


def test_a_changed_file_is_prepared_anew(tmp_path: Path, tokenizer: str) -> None:
    builder = pictures(tmp_path)
    first = prepare(builder, formats_of(tokenizer), tmp_path / "cache")
    write_picture(tmp_path / "train" / "0.png", "blue", (30, 30))
    again = prepare(builder, formats_of(tokenizer), tmp_path / "cache")
    assert again.fingerprint != first.fingerprint and not torch.equal(image_of(first)[0], image_of(again)[0])
    # Only normalisation differs: the same columns serve.
    assert prepare(builder, formats_of(tokenizer, mean=(0.0, 0.0, 0.0)), tmp_path / "cache").folder == again.folder


def test_the_same_content_elsewhere_has_the_same_fingerprint(tmp_path: Path, tokenizer: str) -> None:
    first = prepare(pictures(tmp_path / "here"), formats_of(tokenizer), tmp_path / "cache")
    moved = shutil.copytree(tokenizer, tmp_path / "tokenizer")
    again = prepare(pictures(tmp_path / "there"), formats_of(str(moved)), tmp_path / "cache")
    assert again.folder != first.folder and again.fingerprint == first.fingerprint


def test_what_a_killed_process_left_is_swept_away(tmp_path: Path, tokenizer: str) -> None:
    builder, cache = pictures(tmp_path), tmp_path / "cache"
    folder = prepare(builder, formats_of(tokenizer), cache).folder
    (folder / "prepared.json").write_text('{"rows": ')
    left = cache / f".{folder.name}-left"
    left.mkdir()
    assert len(prepare(builder, formats_of(tokenizer), cache).splits["train"]) == 6
    assert not left.exists() and json.loads((folder / "prepared.json").read_text())["rows"]["train"] == 6


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(data)


DAMAGE: dict[str, Any] = {
    "flipped bit": flipped,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-5]),
    "emptied": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "other JSON": lambda path: path.write_text("[1]"),
    "null": lambda path: path.write_text("null"),
    "another array": lambda path: np.save(path.open("wb"), np.zeros(3)),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize(
    "file",
    ["train/targets.npy", "val/natural.npy", "test/ids.json", "train/text.ids.npy", "train/text.mask.npy",
     "test/image.npy", "prepared.json"],
)  # fmt: skip
def test_damaged_columns_are_named_and_made_again(
    file: str, damage: str, tmp_path: Path, tokenizer: str, caplog: pytest.LogCaptureFixture
) -> None:
    builder, cache = pictures(tmp_path), tmp_path / "cache"
    first = prepare(builder, formats_of(tokenizer), cache)
    whole = {path.name: path.read_bytes() for path in sorted((first.folder / "train").iterdir())}
    assert not caplog.records
    DAMAGE[damage](first.folder / file)
    again = prepare(builder, formats_of(tokenizer), cache)
    assert [record.getMessage() for record in caplog.records] == [
        f"prepared data is damaged ({file}) and is made again: {first.folder}"
    ]
    assert again.fingerprint == first.fingerprint and again.splits["test"].ids == first.splits["test"].ids
    assert whole == {path.name: path.read_bytes() for path in sorted((again.folder / "train").iterdir())}


def test_whole_columns_are_read_once(tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    builder, cache, read = pictures(tmp_path), tmp_path / "cache", []
    own = wholeness._digest
    monkeypatch.setattr(wholeness, "_digest", lambda path: read.append(path.name) or own(path))
    monkeypatch.setattr(wholeness, "_SETTLED_NS", -1)
    folder = prepare(builder, formats_of(tokenizer), cache).folder
    assert len(read) == 2 * len(set(zip(read, read, strict=True))) * 3  # as written, and as found, in three splits
    read.clear()
    prepare(builder, formats_of(tokenizer), cache)
    assert read == []
    changed = (folder / "val" / "image.npy").stat()
    os.utime(folder / "val" / "image.npy")
    prepare(builder, formats_of(tokenizer), cache)
    assert read == ["image.npy"] and changed.st_size == (folder / "val" / "image.npy").stat().st_size


def test_a_write_that_hides_its_time_is_found(tmp_path: Path, tokenizer: str, caplog: pytest.LogCaptureFixture) -> None:
    builder, cache = pictures(tmp_path), tmp_path / "cache"
    file = prepare(builder, formats_of(tokenizer), cache).folder / "train" / "image.npy"
    before = file.stat()
    flipped(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    prepare(builder, formats_of(tokenizer), cache)
    assert len(caplog.records) == 1


@pytest.mark.parametrize("name", ["../image", "/image", "a/b", "..", "targets", "natural", ""])
def test_no_name_leaves_the_cache(name: str, tmp_path: Path, tokenizer: str) -> None:
    builder = pictures(tmp_path)
    builder.modalities = {name: "image", "text": "text"}
    with pytest.raises(UserError, match="cannot be that of a file"):
        prepare(builder, {name: ImageFormat(8), "text": TextFormat(tokenizer, 8)}, tmp_path / "cache")
    assert not [path for path in tmp_path.rglob("*.npy")]


@pytest.mark.parametrize("umask", [0o077, 0o002])
def test_prepared_data_has_the_rights_that_the_user_chose(tmp_path: Path, tokenizer: str, umask: int) -> None:
    before = os.umask(umask)
    try:
        prepare(pictures(tmp_path), formats_of(tokenizer), tmp_path / "cache")
    finally:
        os.umask(before)
    for path in (tmp_path / "cache").rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~umask, path


def _prepare_there(builder: Rows, tokenizer: str, cache: Path, queue: Any) -> None:
    data = prepare(builder, formats_of(tokenizer), cache)
    queue.put((data.fingerprint, float(image_of(data).sum())))


def test_processes_may_prepare_at_once(tmp_path: Path, tokenizer: str) -> None:
    builder, cache = pictures(tmp_path), tmp_path / "cache"
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = [context.Process(target=_prepare_there, args=(builder, tokenizer, cache, queue)) for _ in range(2)]
    for worker in workers:
        worker.start()
    results = {queue.get(timeout=120) for _ in workers}
    for worker in workers:
        worker.join()
    assert len(results) == 1
    assert len([p for p in cache.iterdir() if not p.name.startswith(".")]) == 1
    assert not list(cache.glob(".*-*"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_cache_is_one_message(tmp_path: Path, tokenizer: str) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    with pytest.raises(UserError, match="cannot be written"):
        prepare(pictures(tmp_path), formats_of(tokenizer), locked / "cache")


def test_a_cache_that_is_a_file_is_one_message(tmp_path: Path, tokenizer: str) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(UserError, match="cache for prepared data cannot be written"):
        prepare(pictures(tmp_path), formats_of(tokenizer), tmp_path / "cache")


# ---- bad rows


def spoiled(folder: Path) -> Rows:
    builder = pictures(folder)
    (folder / "train" / "0.png").write_bytes(b"\x89PNG broken")
    (folder / "val" / "3.png").unlink()
    rows = builder.splits()
    rows["test"][5] = Sample("test-5", rows["test"][5].values, "violet", None, "test.csv:7")
    return builder


def test_bad_rows_are_listed_and_refused_at_once(tmp_path: Path, tokenizer: str) -> None:
    with pytest.raises(UserError) as caught:
        prepare(spoiled(tmp_path), formats_of(tokenizer), tmp_path / "cache")
    message = str(caught.value)
    for part in ("3 rows cannot be used", "train.csv:2: image:", "cannot be decoded", "val.csv:5:", "does not exist",
                 "test.csv:7: target:", "'violet'", "data.on_bad=skip"):  # fmt: skip
        assert part in message
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


def test_long_lists_of_bad_rows_are_cut_and_counted(tmp_path: Path, tokenizer: str) -> None:
    builder = pictures(tmp_path, rows=30)
    for path in (tmp_path / "train").iterdir():
        path.write_bytes(b"broken")
    with pytest.raises(UserError) as caught:
        prepare(builder, formats_of(tokenizer), tmp_path / "cache")
    assert "29 rows cannot be used" in str(caught.value) and "… and 9 more" in str(caught.value)


def test_bad_rows_can_be_skipped_and_are_counted(tmp_path: Path, tokenizer: str) -> None:
    builder = spoiled(tmp_path)
    data = prepare(builder, formats_of(tokenizer), tmp_path / "cache", on_bad="skip")
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 5, "val": 5, "test": 5}
    assert [row.origin for row in data.skipped] == ["train.csv:2", "val.csv:5", "test.csv:7"]
    assert data.splits["train"].ids == [f"train-{i}" for i in range(1, 6)]
    # The columns moved up with the rows.
    whole = prepare(pictures(tmp_path / "whole"), formats_of(tokenizer), tmp_path / "cache")
    assert torch.equal(image_of(data), image_of(whole)[1:])
    again = prepare(builder, formats_of(tokenizer), tmp_path / "cache", on_bad="skip")
    assert again.skipped == data.skipped
    with pytest.raises(UserError, match="3 rows cannot be used"):
        prepare(builder, formats_of(tokenizer), tmp_path / "cache")


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_split_of_bad_rows_alone_is_refused_by_its_rows(split: str, tmp_path: Path, tokenizer: str) -> None:
    builder = pictures(tmp_path)
    rows = builder.splits()[split]
    rows[:] = [sample for sample in rows if sample.values["image"] is not None]
    for sample in rows:
        Path(sample.values["image"]).write_bytes(b"no picture")
    for _ in range(2):  # decoded, and from the cache
        with pytest.raises(UserError, match=f"{len(rows)} rows cannot be used") as caught:
            prepare(builder, formats_of(tokenizer), tmp_path / "cache", on_bad="skip")
        assert f"{split}.csv:2: image: the picture" in str(caught.value)
        assert f"has no rows in {split}" in str(caught.value)


def test_numbers_that_are_not_finite_are_bad_rows(tmp_path: Path) -> None:
    """Whatever the kind, and after the cast to 32 bits, of which 1e300 is beyond."""
    soundfile = pytest.importorskip("soundfile")
    wave = np.sin(np.arange(4_000) / 9).astype(np.float32)
    wrong = {"nan.wav": wave.copy(), "inf.wav": wave.copy()}
    wrong["nan.wav"][100], wrong["inf.wav"][200] = np.nan, -np.inf
    for name, values in {"fine.wav": wave, **wrong}.items():
        soundfile.write(tmp_path / name, values, 16_000, subtype="FLOAT")
    for name, value in {"fine": 1.0, "nan": np.nan, "huge": 1e300}.items():
        np.save(tmp_path / f"{name}.npy", np.full((3, 8), value))
    rows = [("fine.wav", "fine.npy"), ("nan.wav", "fine.npy"), ("inf.wav", "fine.npy"), ("nan.npy", "fine.npy"),
            ("huge.npy", "fine.npy"), ("fine.wav", "nan.npy"), ("fine.wav", "huge.npy")]  # fmt: skip
    samples = [
        Sample(str(i), {"sound": tmp_path / a, "series": tmp_path / b}, "red", None, f"my.csv:{i + 2}")
        for i, (a, b) in enumerate(rows)
    ]
    builder = Rows(
        {"sound": "audio", "series": "sequence"}, {"train": samples, "val": samples[:1], "test": samples[:1]}
    )
    formats: dict[str, Format] = {"sound": AudioFormat(mel_bins=8, frames=20), "series": SequenceFormat(4, 8)}
    with pytest.raises(UserError) as caught:
        prepare(builder, formats, tmp_path / "cache")
    message = str(caught.value)
    assert "6 rows cannot be used" in message
    for line, words in enumerate(("sound: the sound", "sound: the sound", "sound: the sound", "sound: the sound",
                                  "series: the sequence", "series: the sequence"), start=3):  # fmt: skip
        assert f"my.csv:{line}: {words}" in message
    assert "nan.wav holds nan" in message and "huge.npy holds inf at step 0, column 0" in message
    data = prepare(builder, formats, tmp_path / "cache", on_bad="skip", fill="mean")
    assert data.splits["train"].ids == ["0"] and len(data.skipped) == 6
    assert np.isfinite(data.splits["train"].column("sound")).all()


def test_whatever_raises_is_a_bad_row(tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts that cannot be encoded, names that no system takes, and exceptions that no decoder expects."""
    builder = pictures(tmp_path)
    rows = builder.splits()["train"]
    values = [dict(row.values) for row in rows]
    values[0]["text"] = "half a pair \ud800"
    values[2]["image"] = "a caption where a picture belongs " * 20
    values[3]["image"] = "nul\0byte"
    values[4]["text"] = 5
    builder.splits()["train"] = [replace(row, values=v) for row, v in zip(rows, values, strict=True)]
    read = Image.open

    def opened(file: Any) -> Image.Image:
        picture = read(file)
        if file.name.endswith("train/5.png"):
            raise KeyError("some tag")
        return picture

    monkeypatch.setattr(Image, "open", opened)
    with pytest.raises(UserError) as caught:
        prepare(builder, formats_of(tokenizer), tmp_path / "cache")
    message = str(caught.value)
    assert message.encode() and "5 rows cannot be used" in message
    for part in ("train.csv:2: text: ", "train.csv:4: image: ", "train.csv:5: image: ", "train.csv:6: text: ",
                 "train.csv:7: image: the picture", "'some tag'"):  # fmt: skip
        assert part in message
    data = prepare(builder, formats_of(tokenizer), tmp_path / "cache", on_bad="skip")
    assert data.splits["train"].ids == ["train-1"] and len(data.skipped) == 5
