"""Aligned rasters and label maps: read as they are, refused by name where they do not fit, varied together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmsweep.data.augmentation import Augmentation
from mmsweep.data.dataset import DatasetBuilder, Sample
from mmsweep.data.files import Undecodable
from mmsweep.data.kinds.raster import RasterFormat, decode_labels, decode_raster, raster_format
from mmsweep.data.prepared import PreparedData, prepare
from mmsweep.data.raster_files import Window
from mmsweep.errors import UserError
from mmsweep.tasks.task import IGNORE, Target

H, W = 12, 16
TARGET = Target("segmentation", ("land", "water", "ice"))
MODALITIES = {"rgb": "raster", "height": "raster", "night": "raster"}


def picture(path: Path, values: np.ndarray) -> Path:
    Image.fromarray(values).save(path)
    return path


class Scenes(DatasetBuilder):
    """Ten scenes of three rasters; the label is told by every raster: colour = 60 x class, height = 20,000 x class."""

    name = "scenes"
    modalities = MODALITIES
    target = TARGET

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        random = np.random.default_rng(0)
        for i in range(10):
            label = random.integers(0, 3, (H, W), dtype=np.uint8)
            picture(folder / f"rgb-{i}.png", np.repeat(60 * label[..., None], 3, 2))
            picture(folder / f"height-{i}.png", label.astype(np.uint16) * 20_000)
            picture(folder / f"night-{i}.png", 60 * label)
            label[random.random((H, W)) < 0.2] = IGNORE
            picture(folder / f"label-{i}.png", label)
        self.formats = {
            "rgb": RasterFormat((H, W), 3, "uint8", (0.0,) * 3, (60.0,) * 3),
            "height": RasterFormat((H, W), 1, "uint16", (0.0,), (20_000.0,)),
            "night": RasterFormat((H, W), 1, "uint8", (0.0,), (60.0,)),
        }

    def splits(self) -> dict[str, list[Sample]]:
        samples = [
            Sample(str(i), {m: self.folder / f"{m}-{i}.png" if (i, m) != (1, "night") else None
                            for m in self.modalities}, self.folder / f"label-{i}.png", None, f"scene {i}")
            for i in range(10)
        ]  # fmt: skip
        return {"train": samples[:6], "val": samples[6:8], "test": samples[8:]}

    def provenance(self) -> str:
        return "made here"


@pytest.fixture()
def scenes(tmp_path: Path) -> Scenes:
    (tmp_path / "files").mkdir()
    return Scenes(tmp_path / "files")


@pytest.fixture()
def data(scenes: Scenes, tmp_path: Path) -> PreparedData:
    return prepare(scenes, scenes.formats, tmp_path / "cache")


# ---- reading


def test_sixteen_bits_stay_sixteen(tmp_path: Path) -> None:
    values = np.array([[0, 1, 300], [40_000, 65_534, 65_535]], np.uint16)
    format = RasterFormat((2, 3), 1, "uint16", (0.0,), (1.0,))
    read = decode_raster(picture(tmp_path / "a.png", values), format)
    assert read.dtype == np.uint16 and (read[0] == values).all()
    assert raster_format(tmp_path / "a.png") == RasterFormat((2, 3), 1, "uint16", None, None)


def test_a_window_is_a_part_of_the_whole(tmp_path: Path) -> None:
    values = np.arange(60, dtype=np.uint8).reshape(6, 10)
    path = picture(tmp_path / "a.png", values)
    read = decode_raster(Window(path, 2, 3, 4, 5), RasterFormat((4, 5), 1, "uint8", (0.0,), (1.0,)))
    assert (read[0] == values[2:6, 3:8]).all()
    with pytest.raises(Undecodable, match="beyond"):
        decode_raster(Window(path, 4, 3, 4, 5), RasterFormat((4, 5), 1, "uint8", (0.0,), (1.0,)))
    picture(path, values + 100)  # another file under the same name is read anew
    assert (decode_raster(Window(path, 0, 0, 1, 1), RasterFormat((1, 1), 1, "uint8", (0.0,), (1.0,))) == 100).all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((11, 16), np.uint8), r"a\.png is 11 x 16 with 1 channel; expected 12 x 16 with 1 channel"),
        (np.random.default_rng(0).integers(0, 9, (H, W, 3), np.uint8), r"a\.png is 12 x 16 with 3 channels; expected"),
        (np.zeros((H, W), np.uint16), r"a\.png holds uint16 values; expected uint8"),
    ],
)
def test_a_raster_that_does_not_fit_is_named(values: np.ndarray, message: str, tmp_path: Path) -> None:
    with pytest.raises(Undecodable, match=message):
        decode_raster(picture(tmp_path / "a.png", values), RasterFormat((H, W), 1, "uint8", (0.0,), (1.0,)))


def test_grey_saved_as_colour_is_grey(tmp_path: Path) -> None:
    values = np.repeat(np.arange(H * W, dtype=np.uint8).reshape(H, W, 1), 3, 2)
    read = decode_raster(picture(tmp_path / "a.png", values), RasterFormat((H, W), 1, "uint8", (0.0,), (1.0,)))
    assert (read[0] == values[..., 0]).all()


def test_labels_become_indices(tmp_path: Path) -> None:
    """FMB and NYUDv2 count from 1 and mean "no class" by 0 (methods.md §A.6, §A.8)."""
    target = Target("segmentation", ("a", "b"), ((0, IGNORE), (1, 0), (2, 1)))
    path = picture(tmp_path / "a.png", np.array([[0, 1, 2]], np.uint8))
    assert decode_labels(path, target, (1, 3)).tolist() == [[IGNORE, 0, 1]]
    indexed = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    indexed.putpalette([9, 9, 9, 100, 0, 0, 0, 100, 0])
    indexed.save(tmp_path / "b.png")
    assert decode_labels(tmp_path / "b.png", target, (1, 3)).tolist() == [[IGNORE, 0, 1]]


def test_a_label_outside_the_classes_is_named(tmp_path: Path) -> None:
    """The well-known "shape [14, 14] is invalid" of FMB copies, told before training."""
    labels = np.zeros((H, W), np.uint8)
    labels[3, 5] = 14
    path = picture(tmp_path / "a.png", labels)
    with pytest.raises(Undecodable, match=r"a\.png holds the value 14 \(row 3, column 5\).* 0 to 2, or 255"):
        decode_labels(path, TARGET, (H, W))
    with pytest.raises(Undecodable, match=r"label map .*a\.png is 12 x 16; expected 12 x 17"):
        decode_labels(path, TARGET, (H, W + 1))


# ---- prepared


def test_columns_keep_their_type(data: PreparedData) -> None:
    split = data.splits["train"]
    assert split.targets.dtype == np.uint8 and split.targets.shape == (6, H, W)
    assert isinstance(split.targets.base, np.memmap) or isinstance(split.targets, np.memmap)
    assert split.column("height").dtype == np.uint16 and split.column("height").shape == (6, 1, H, W)


def test_a_batch_is_whole_aligned_and_without_what_is_absent(data: PreparedData) -> None:
    split = data.splits["train"]
    present = np.ones((6, 3), bool)
    present[2, 0] = False
    batch = split.batch(np.arange(6), present=present)
    assert batch.target.dtype == torch.int64 and batch.target.shape == (6, H, W)
    assert batch.present_BM[1].tolist() == [True, True, False]  # the data's own gap
    for m, channels in (("rgb", 3), ("height", 1), ("night", 1)):
        x = batch.inputs[m]
        assert isinstance(x, torch.Tensor) and x.shape == (6, channels, H, W) and x.dtype == torch.float32
        there = batch.present_BM[:, list(data.modalities).index(m)]
        agree = (x[:, 0] == batch.target) | (batch.target == IGNORE)
        assert agree[there].all() and (x[~there] == 0).all()


@pytest.mark.parametrize(
    "augmentation",
    [
        Augmentation(flip=0.5),
        Augmentation(window=(6, 8)),
        Augmentation(window=(6, 8), flip=0.5, scale=(1.0, 1.0)),
        Augmentation(scale=(0.5, 2.0), flip=0.5),
        Augmentation(scale=(2.0, 2.0), window=(8, 10)),
        Augmentation(crop=(0.25, 1.0), flip=0.5),
    ],
    ids=["flip", "window", "window flip", "scale", "enlarged window", "crop"],
)
def test_rasters_and_labels_move_together(data: PreparedData, augmentation: Augmentation) -> None:
    """Where a label is unambiguous the rasters say the same, pixel for pixel; draws are the generator's alone."""
    split, index = data.splits["train"], np.array([0, 2, 3, 4, 5, 0, 2, 3])
    one = split.batch(index, "cpu", augmentation, torch.Generator().manual_seed(1))
    again = split.batch(index, "cpu", augmentation, torch.Generator().manual_seed(1))
    other = split.batch(index, "cpu", augmentation, torch.Generator().manual_seed(2))
    assert torch.equal(one.target, again.target) and not torch.equal(one.target, other.target)
    rgb, height, night = (one.inputs[m] for m in ("rgb", "height", "night"))
    assert isinstance(rgb, torch.Tensor) and isinstance(height, torch.Tensor) and isinstance(night, torch.Tensor)
    size = augmentation.window or (H, W)
    assert one.target.shape == (8, *size) and rgb.shape == (8, 3, *size)
    torch.testing.assert_close(rgb[:, :1], height)
    torch.testing.assert_close(height, night)
    assert one.target.unique().tolist() == [0, 1, 2, IGNORE]
    # Between pixels rasters blend and labels do not; where blending left a whole value on it, the label is that value.
    labelled = (one.target != IGNORE) & ((height[:, 0] - height[:, 0].round()).abs() < 1e-4)
    exact = (height[:, 0].round() == one.target)[labelled].float().mean()
    still = augmentation.scale in (None, (1.0, 1.0)) and augmentation.crop is None
    assert exact == 1 if still else exact > 0.5


def test_a_window_copies_pixels(data: PreparedData) -> None:
    split = data.splits["train"]
    found = split.batch(np.array([0]), "cpu", Augmentation(window=(6, 8)), torch.Generator().manual_seed(0)).target[0]
    whole = torch.from_numpy(split.targets[0].astype(np.int64))
    places = [(r, c) for r in range(H - 5) for c in range(W - 7) if torch.equal(whole[r : r + 6, c : c + 8], found)]
    assert len(places) == 1


def test_beyond_the_picture_is_no_class(data: PreparedData) -> None:
    split = data.splits["train"]
    batch = split.batch(np.array([0]), "cpu", Augmentation(scale=(0.5, 0.5)), torch.Generator().manual_seed(0))
    x = batch.inputs["height"]
    assert isinstance(x, torch.Tensor)
    beyond = ~(x[0, 0] != 0).any(1)
    assert (batch.target[0] == IGNORE).float().mean() >= 0.75 and (batch.target[0][beyond] != 1).all()


def test_a_rank_sees_its_rows_of_the_same_draw(data: PreparedData) -> None:
    split, index, augmentation = data.splits["train"], np.arange(6), Augmentation(window=(6, 8), flip=0.5)
    whole = split.batch(index, "cpu", augmentation, torch.Generator().manual_seed(1))
    part = split.batch(index, "cpu", augmentation, torch.Generator().manual_seed(1), rows=slice(2, 5))
    assert torch.equal(whole.target[2:5], part.target)


# ---- wrong files


def refused(scenes: Scenes, tmp_path: Path) -> str:
    with pytest.raises(UserError) as caught:
        prepare(scenes, scenes.formats, tmp_path / "other")
    return str(caught.value)


def test_a_modality_of_another_size_is_one_message(scenes: Scenes, tmp_path: Path) -> None:
    picture(scenes.folder / "height-3.png", np.zeros((H, W + 1), np.uint16))
    text = refused(scenes, tmp_path)
    assert "1 row cannot be used" in text and "scene 3" in text and "height-3.png is 12 x 17" in text


def test_a_label_outside_the_range_is_one_message(scenes: Scenes, tmp_path: Path) -> None:
    picture(scenes.folder / "label-7.png", np.full((H, W), 3, np.uint8))
    text = refused(scenes, tmp_path)
    assert "scene 7" in text and "label-7.png holds the value 3" in text and "0 to 2, or 255" in text


def test_a_label_of_another_size_is_one_message(scenes: Scenes, tmp_path: Path) -> None:
    picture(scenes.folder / "label-0.png", np.zeros((H - 1, W), np.uint8))
    assert "label-0.png is 11 x 16; expected 12 x 16" in refused(scenes, tmp_path)


def test_a_sample_without_any_modality_is_one_message(scenes: Scenes, tmp_path: Path) -> None:
    splits = scenes.splits()
    splits["train"][2] = Sample("2", dict.fromkeys(scenes.modalities), splits["train"][2].target, None, "scene 2")
    scenes.splits = lambda: splits  # type: ignore[method-assign]
    text = refused(scenes, tmp_path)
    assert "scene 2" in text and "every modality is empty (rgb, height, night)" in text


def test_bad_rows_can_be_left_out(scenes: Scenes, tmp_path: Path) -> None:
    picture(scenes.folder / "label-1.png", np.full((H, W), 77, np.uint8))
    data = prepare(scenes, scenes.formats, tmp_path / "other", max_bad=1.0)
    split = data.splits["train"]
    assert len(split) == 5 and split.targets.shape == (5, H, W) and len(data.skipped) == 1
    assert split.ids == ["0", "2", "3", "4", "5"]
    whole = np.asarray(Image.open(scenes.folder / "label-2.png"))
    assert (split.targets[1] == whole).all()


def test_changed_labels_are_other_data(scenes: Scenes, data: PreparedData, tmp_path: Path) -> None:
    picture(scenes.folder / "label-0.png", np.zeros((H, W), np.uint8))
    other = prepare(scenes, scenes.formats, tmp_path / "cache")
    assert other.fingerprint != data.fingerprint and other.folder != data.folder
    assert (other.splits["train"].targets[0] == 0).all()
