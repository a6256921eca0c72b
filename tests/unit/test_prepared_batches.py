"""Batches of prepared data: pictures, texts, clips and sounds, fill values, targets."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmsweep.data.dataset import Sample
from mmsweep.data.kinds.audio import AudioFormat
from mmsweep.data.kinds.image import ImageFormat, decode_image
from mmsweep.data.kinds.kind import Format
from mmsweep.data.kinds.text import TextFormat
from mmsweep.data.kinds.video import VideoFormat
from mmsweep.data.prepared import prepare
from mmsweep.errors import UserError
from mmsweep.tasks.task import Target
from tests.data.files import WORDS, write_tokenizer
from tests.unit.prepared_helpers import Rows, formats_of, image_of, pictures

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def test_pictures_are_normalised(tmp_path: Path, tokenizer: str) -> None:
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 0.125)
    data = prepare(pictures(tmp_path), formats_of(tokenizer, mean=mean, std=std), tmp_path / "cache")
    raw = torch.from_numpy(decode_image(tmp_path / "train" / "0.png", ImageFormat(8))).double() / 255
    wanted = (raw - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(image_of(data)[0].double(), wanted, atol=1e-5, rtol=1e-5)


def test_texts_are_tokenised_and_trimmed(tmp_path: Path, tokenizer: str) -> None:
    split = prepare(pictures(tmp_path), formats_of(tokenizer), tmp_path / "cache").splits["train"]
    text = split.batch(np.array([0, 2])).inputs["text"]
    assert isinstance(text, dict)
    words = [[WORDS[i] for i in row] for row in text["ids"].tolist()]
    assert words == [["[CLS]", "green", "square", "[SEP]"], ["[CLS]", "[SEP]", "[PAD]", "[PAD]"]]
    assert text["mask"].sum(1).tolist() == [4, 2]
    long = split.batch(np.array([1])).inputs["text"]
    assert isinstance(long, dict) and long["ids"].shape == (1, 8)
    fixed = {"image": ImageFormat(8), "text": TextFormat(tokenizer, 8, trim=False)}
    text = prepare(pictures(tmp_path), fixed, tmp_path / "cache").splits["train"].batch(np.array([0])).inputs["text"]
    assert isinstance(text, dict) and text["ids"].shape == (1, 8) and text["mask"].sum() == 4


@pytest.mark.parametrize("fill", ["zeros", "ones", "black", "mean"])
def test_fill_values(fill: str, tmp_path: Path, tokenizer: str) -> None:
    format = ImageFormat(8, (0.4, 0.5, 0.6), (0.2, 0.25, 0.5))
    formats: dict[str, Format] = {"image": format, "text": TextFormat(tokenizer, 8)}
    image = image_of(prepare(pictures(tmp_path), formats, tmp_path / "cache", fill={"image": fill}))
    there = torch.tensor([True, False, True, True, True, True])
    wanted = {
        "zeros": torch.zeros(3),
        "ones": torch.ones(3),
        "black": -torch.tensor(format.mean) / torch.tensor(format.std),
        "mean": image[there].mean((0, 2, 3)),
    }[fill]
    torch.testing.assert_close(image[1], wanted[:, None, None].expand(3, 8, 8), atol=1e-4, rtol=1e-4)


def test_a_mean_of_nothing_is_one_message(tmp_path: Path, tokenizer: str) -> None:
    builder = pictures(tmp_path)
    rows = [replace(sample, values={**sample.values, "image": None}) for sample in builder.splits()["train"]]
    builder.splits()["train"] = [row for row in rows if row.values["text"]]
    with pytest.raises(UserError, match=r"data.fill: no training row has image"):
        prepare(builder, formats_of(tokenizer), tmp_path / "cache", fill="mean")


def test_wrong_fills_and_formats_are_refused(tmp_path: Path, tokenizer: str) -> None:
    builder = pictures(tmp_path)
    for fill, words in (("white", "unknown fill"), ({"sound": "zeros"}, "unknown modality")):
        with pytest.raises(UserError, match=words):
            prepare(builder, formats_of(tokenizer), tmp_path / "cache", fill=fill)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="needs a format"):
        prepare(builder, {"image": ImageFormat(8)}, tmp_path / "cache")
    with pytest.raises(UserError, match="does not read text"):
        prepare(builder, {"image": ImageFormat(8), "text": ImageFormat(8)}, tmp_path / "cache")


def test_ranks_share_one_batch(tmp_path: Path, tokenizer: str) -> None:
    split = prepare(pictures(tmp_path), formats_of(tokenizer), tmp_path / "cache").splits["train"]
    index = np.array([5, 0, 3, 4])
    present = np.array([[True, False], [True, True], [False, True], [True, True]])
    whole = split.batch(index, present=present)
    part = split.batch(torch.from_numpy(index), present=torch.from_numpy(present), rows=slice(2, 4))
    assert torch.equal(part.inputs["image"], whole.inputs["image"][2:])  # type: ignore[index, arg-type]
    assert part.index.tolist() == [3, 4] and torch.equal(part.present_BM, whole.present_BM[2:])


def test_a_split_travels_as_its_folder(tmp_path: Path, tokenizer: str) -> None:
    data = prepare(pictures(tmp_path), formats_of(tokenizer), tmp_path / "cache")
    carried = pickle.dumps(data.splits["train"])
    assert len(carried) < 2000
    assert torch.equal(image_of(data), pickle.loads(carried).batch(np.arange(6)).inputs["image"])


def test_clips_and_sounds_make_batches(tmp_path: Path) -> None:
    for i in range(6):
        Image.new("L", (8, 8), i * 40).save(tmp_path / f"{i}.png")
    np.save(tmp_path / "sound.npy", np.ones((5, 4), np.float32))
    values = [{"audio": tmp_path / "sound.npy", "video": tmp_path}, {"audio": None, "video": tmp_path}]
    rows = {n: [Sample(f"{n}{i}", v, "red", None, "") for i, v in enumerate(values)] for n in ("train", "val", "test")}
    formats: dict[str, Format] = {
        "video": VideoFormat(ImageFormat(8, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)), frames=2),
        "audio": AudioFormat(mel_bins=4, frames=6, mean=0.0, std=0.5),
    }
    builder = Rows({"audio": "audio", "video": "video"}, rows)
    batch = prepare(builder, formats, tmp_path / "cache", fill="nan").splits["train"].batch(np.array([1, 0]))
    audio, video = batch.inputs["audio"], batch.inputs["video"]
    assert isinstance(audio, torch.Tensor) and isinstance(video, torch.Tensor)
    assert audio.shape == (2, 6, 4) and audio[0].isnan().all() and audio[1, 0, 0] == 1
    assert video.shape == (2, 2, 3, 8, 8)
    torch.testing.assert_close(video[0, :, 0, 0, 0], torch.tensor([40.0, 160.0]) / 255)


# ---- targets


def test_targets_are_encoded_and_checked() -> None:
    single, multi = Target("single_label", ("cat", "dog")), Target("multi_label", ("cat", "dog", "owl"))
    assert single.encode("dog") == 1 and multi.encode(["owl", "cat"]).tolist() == [1, 0, 1]  # type: ignore[union-attr]
    assert Target("regression").encode("-1.5") == -1.5 and Target("regression").width == 1
    assert multi.array([multi.encode(["dog"])]).dtype == np.float32
    assert single.array([single.encode("cat")]).dtype == np.int64
    for target, value, words in (
        (single, "dgo", "Did you mean 'dog'"),
        (multi, "cat", "list of labels"),
        (Target("regression"), "many", "not a number"),
        (Target("regression"), "nan", "finite"),
        (Target("regression"), 4e38, "finite number of 32 bits"),
        (Target("regression"), "-1e300", "finite"),
        (Target("regression"), 10**400, "not a number"),
    ):
        with pytest.raises(UserError, match=words):
            target.encode(value)
    with pytest.raises(UserError, match="listed twice"):
        Target("single_label", ("cat", "cat"))


def test_a_full_disk_is_told_before_writing(tmp_path: Path, tokenizer: str) -> None:
    huge = {"image": ImageFormat(2**23), "text": TextFormat(tokenizer, 8)}
    with pytest.raises(UserError, match="no room for the prepared data"):
        prepare(pictures(tmp_path), huge, tmp_path / "cache")
