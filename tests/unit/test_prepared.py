"""Preparation: decoding, caching, bad rows, and what a batch holds."""

from __future__ import annotations

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

from mmsweep.data import shards, wholeness
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
    assert calls[-1] == (18, 18)
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


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


class Stopped(Exception):
    pass


@pytest.mark.parametrize("damage", ["none", "flipped", "cut journal", "lost column"])
def test_interrupted_preparation_continues_and_gives_the_same_bytes(
    damage: str, tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At whatever shard it stops; shards whose rows are not on disk as they were written are decoded again."""
    monkeypatch.setattr(shards, "_SHARD_ROWS", 2)
    builder = spoiled(tmp_path)
    whole = files_of(prepare(builder, formats_of(tokenizer), tmp_path / "whole", max_bad=1.0).folder)
    decoded: list[int] = []

    def run(limit: int) -> Any:
        def some(parts: Any) -> Any:
            for part in parts[:limit]:
                decoded.append(1)
                yield shards.decode(part)
            if limit < len(parts):
                raise Stopped

        return some

    for stop in range(9) if damage == "none" else (0, 1, 4, 8):  # of nine shards
        cache = tmp_path / f"cache-{stop}"
        with pytest.raises(Stopped):
            prepare(builder, formats_of(tokenizer), cache, max_bad=1.0, run=run(stop))
        (partial,) = cache.glob(".*.partial")
        journal = partial.with_name(f"{partial.name}.jsonl")
        decoded.clear()
        again = 9 - stop
        if damage == "flipped" and stop:
            flipped(partial / "train" / "image.npy")  # of row 5, in the third shard
            again += stop > 2
        elif damage == "cut journal" and stop:
            journal.write_text(journal.read_text()[:-20])
            again += 1
        elif damage == "lost column" and stop:
            (partial / "train" / "image.npy").unlink()
            again += max(0, min(stop, 3) - 1)  # the first shard holds no picture, and so zeros
        data = prepare(builder, formats_of(tokenizer), cache, max_bad=1.0, run=run(9))
        assert files_of(data.folder) == whole and len(decoded) == again
        assert not list(cache.glob(".*.partial*"))


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
    assert not list(cache.glob(".*.partial*"))


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
    builder = spoiled(tmp_path)
    with pytest.raises(UserError) as caught:
        prepare(builder, formats_of(tokenizer), tmp_path / "cache")
    message = str(caught.value)
    for part in ("3 rows cannot be used", "train.csv:2: image:", "cannot be decoded", "val.csv:5:", "does not exist",
                 "test.csv:7: target:", "'violet'", "data.max_bad"):  # fmt: skip
        assert part in message
    assert "(of 18; data.max_bad allows 1.00%)" in message
    listed = (tmp_path / "cache").glob("*.bad_rows.csv").__next__().read_text().splitlines()
    assert listed[0] == "row,reason" and [line.split(",")[0] for line in listed[1:]] == [
        "train.csv:2", "val.csv:5", "test.csv:7",
    ]  # fmt: skip
    # What was decoded serves once more bad rows are allowed, and once they are few enough.
    data = prepare(builder, formats_of(tokenizer), tmp_path / "cache", max_bad=0.17, run=lambda shards: 1 / 0)
    assert data.omission() == f"3 of 18 rows cannot be used and are left out (16.67%): {data.bad_rows_file}"


def test_long_lists_of_bad_rows_are_cut_and_counted(tmp_path: Path, tokenizer: str) -> None:
    builder = pictures(tmp_path, rows=30)
    for path in (tmp_path / "train").iterdir():
        path.write_bytes(b"broken")
    with pytest.raises(UserError) as caught:
        prepare(builder, formats_of(tokenizer), tmp_path / "cache")
    assert "29 rows cannot be used" in str(caught.value) and "… and 9 more" in str(caught.value)


def test_bad_rows_can_be_skipped_and_are_counted(tmp_path: Path, tokenizer: str) -> None:
    builder = spoiled(tmp_path)
    data = prepare(builder, formats_of(tokenizer), tmp_path / "cache", max_bad=1.0)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 5, "val": 5, "test": 5}
    assert [row.origin for row in data.skipped] == ["train.csv:2", "val.csv:5", "test.csv:7"]
    assert data.splits["train"].ids == [f"train-{i}" for i in range(1, 6)]
    # The columns moved up with the rows.
    whole = prepare(pictures(tmp_path / "whole"), formats_of(tokenizer), tmp_path / "cache")
    assert torch.equal(image_of(data), image_of(whole)[1:])
    again = prepare(builder, formats_of(tokenizer), tmp_path / "cache", max_bad=1.0)
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
            prepare(builder, formats_of(tokenizer), tmp_path / "cache", max_bad=1.0)
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
    data = prepare(builder, formats, tmp_path / "cache", max_bad=1.0, fill="mean")
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
    data = prepare(builder, formats_of(tokenizer), tmp_path / "cache", max_bad=1.0)
    assert data.splits["train"].ids == ["train-1"] and len(data.skipped) == 5
