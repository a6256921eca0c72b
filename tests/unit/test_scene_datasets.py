"""NYUDv2, MCubeS and FMB as they are distributed: what is read, in which values, and what is refused by name."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from mmsweep.data.check import check
from mmsweep.data.dataset import SPLITS, DatasetBuilder
from mmsweep.data.kinds.raster import decode_labels, decode_raster
from mmsweep.data.options import DATASETS
from mmsweep.data.prepared import PreparedData, prepare
from mmsweep.errors import UserError
from mmsweep.tasks.task import IGNORE
from tests.data.layouts.fmb import write_fmb
from tests.data.layouts.mcubes import write_mcubes
from tests.data.layouts.nyudv2 import write_nyudv2
from tests.data.rasters import save

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
WRITERS = {"nyudv2": write_nyudv2, "mcubes": write_mcubes, "fmb": write_fmb}


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: write(tmp_path_factory.mktemp(name)) for name, write in WRITERS.items()}


@pytest.fixture()
def copies(roots: dict[str, Path], tmp_path: Path) -> Any:
    """A copy to damage, of links but for what is damaged."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(roots[name], tmp_path / name, copy_function=lambda a, b: Path(b).symlink_to(a)))

    return copy


def builder(name: str, root: Path, **options: Any) -> Any:
    return DATASETS[name](DATASETS.options(name, root=str(root), **options))


def shown(found: DatasetBuilder, modality: str, split: str = "train", place: int = 0) -> np.ndarray:
    """[H, W, C] as a network gets it: decoded by the format, normalised by its statistics."""
    format = found.formats[modality]
    values = decode_raster(found.splits()[split][place].values[modality], format).astype(np.float64)
    mean, std = (np.array(x)[:, None, None] for x in (format.mean, format.std))
    return ((values - mean) / std).transpose(1, 2, 0)


def ids(found: DatasetBuilder) -> dict[str, list[str]]:
    return {name: [sample.id for sample in rows] for name, rows in found.splits().items()}


# ---- NYUDv2


def test_both_syntaxes_of_the_lists_name_the_same_scenes(roots: dict[str, Path], copies: Any) -> None:
    pairs, bare = builder("nyudv2", roots["nyudv2"]), copies("nyudv2") / "NYUDepthv2"
    for name, numbers in (("train", range(1, 13)), ("test", range(13, 15))):
        (bare / f"{name}.txt").unlink()
        (bare / f"{name}.txt").write_text("\n".join(f"{i} of the kitchen" if i == 3 else str(i) for i in numbers))
    assert ids(builder("nyudv2", bare)) == ids(pairs) and not pairs.bad_rows
    assert ids(pairs)["test"] == ["13", "14"] and sorted(map(int, ids(pairs)["train"] + ids(pairs)["val"])) == [
        *range(1, 13)
    ]
    assert len(ids(pairs)["val"]) == 1


def test_the_published_scenes_are_carved_as_the_card_says() -> None:
    from mmsweep.data.sets import fmb, nyudv2
    from mmsweep.data.splitting import CARVED_VALIDATION, _dealt

    for module, kind in ((nyudv2, nyudv2.NYUDv2), (fmb, fmb.FMB)):
        scenes = module.PUBLISHED["train"]
        for seed in (0, 1):
            dealt = _dealt({str(i): 1 for i in range(scenes)}, [CARVED_VALIDATION * scenes], seed)
            val = sum(part == 0 for part in dealt.values())
            assert kind.rows == {"train": scenes - val, "val": val, "test": module.PUBLISHED["test"]}


def test_another_seed_carves_other_scenes(roots: dict[str, Path]) -> None:
    vals = {tuple(ids(builder("nyudv2", roots["nyudv2"], split_seed=seed))["val"]) for seed in range(6)}
    assert len(vals) > 1


def test_nyudv2_reads_what_delivers_reader_does(roots: dict[str, Path]) -> None:
    """RGB with ImageNet's statistics, HHA / 255 (grey in three channels), label - 1 in uint8 with 255 for 0."""
    found = builder("nyudv2", roots["nyudv2"])
    for split in SPLITS:
        for place, sample in enumerate(found.splits()[split]):
            folder = roots["nyudv2"] / "NYUDepthv2"
            rgb = np.asarray(Image.open(folder / f"RGB/{sample.id}.jpg")) / 255
            np.testing.assert_allclose(shown(found, "rgb", split, place), (rgb - MEAN) / STD, atol=1e-6)
            hha = np.atleast_3d(np.asarray(Image.open(folder / f"HHA/{sample.id}.jpg"))) / 255
            wide = np.broadcast_to(hha, (480, 640, 3))
            np.testing.assert_allclose(shown(found, "depth", split, place), wide, atol=1e-9)
            raw = np.array(Image.open(folder / f"Label/{sample.id}.png"))
            raw[raw == 255] = 0
            labels = decode_labels(sample.target, found.target, (480, 640))
            assert labels.dtype == np.uint8 and (labels == raw - np.uint8(1)).all()
            assert set(np.unique(labels)) == {*range(40), IGNORE}


def test_raw_depth_is_normalised_by_the_training_scenes(roots: dict[str, Path], tmp_path: Path) -> None:
    found = builder("nyudv2", roots["nyudv2"], depth="raw")
    data = prepare(found, found.formats, tmp_path)
    split = data.splits["train"]
    depths = np.stack([np.load(sample.values["depth"]) for sample in found.splits()["train"]]).astype(np.float64)
    format = split.formats["depth"]
    np.testing.assert_allclose([*format.mean, *format.std], [depths.mean(), depths.std()], rtol=1e-6)
    values = split.batch(np.arange(len(split))).inputs["depth"]
    assert isinstance(values, torch.Tensor) and values.shape == (11, 1, 480, 640)
    np.testing.assert_allclose(values[:, 0].numpy(), (depths - depths.mean()) / depths.std(), atol=1e-4)
    test = data.splits["test"]
    assert test.formats == split.formats  # never the test scenes' own statistics


# ---- MCubeS


def test_mcubes_reads_what_delivers_reader_does(roots: dict[str, Path]) -> None:
    """16-bit PNG / 65535 and 8-bit / 255; AoLP as [sin, cos, sin]; the middle of what the 192-column crop leaves."""
    found, folder = builder("mcubes", roots["mcubes"]), roots["mcubes"] / "multimodal_dataset"
    for place, sample in enumerate(found.splits()["train"]):
        sin, cos, dolp = (np.load(folder / f"polL_{name}/{sample.id}.npy") for name in ("aolp_sin", "aolp_cos", "dolp"))

        def middle(whole: np.ndarray) -> np.ndarray:
            kept = whole[:, 192:]  # 1032 columns, of which evaluation sees the middle 1024
            return kept[:, 4:1028]

        aolp = middle(np.stack([sin, cos, sin], axis=2))
        np.testing.assert_allclose(shown(found, "aolp", place=place), aolp, atol=1e-7)
        np.testing.assert_allclose(shown(found, "dolp", place=place)[..., 0], middle(dolp), atol=1e-7)
        raw = {name: (folder / name / f"{sample.id}.png") for name in ("polL_color", "NIR_warped")}
        colour, infrared = original(place)
        top = 65535 if place == 0 else 255
        assert raw["polL_color"].read_bytes()[24] == (16 if place == 0 else 8)
        np.testing.assert_allclose(shown(found, "rgb", place=place), (middle(colour) / top - MEAN) / STD, atol=1e-6)
        np.testing.assert_allclose(shown(found, "nir", place=place)[..., 0], middle(infrared) / top, atol=1e-9)
        labels = decode_labels(sample.target, found.target, (1024, 1024))
        whole = np.asarray(Image.open(folder / f"GT/{sample.id}.png"))
        assert (whole[:, :192] == 77).all() and (labels == middle(whole)).all()


def original(scene: int) -> tuple[np.ndarray, np.ndarray]:
    """Colour and near infrared as the generator drew them, whatever a PNG reader makes of the files."""
    from tests.data.layouts.mcubes import SIZE
    from tests.data.rasters import blocks

    top = 65535 if scene == 0 else 255
    return blocks(SIZE, 3, top, scene), blocks(SIZE, 1, top, 10 + scene)[..., 0]


def test_either_folder_of_lists_serves(roots: dict[str, Path], copies: Any) -> None:
    first = builder("mcubes", roots["mcubes"])
    root = copies("mcubes")
    (root / "multimodal_dataset/list_folder").rename(root / "multimodal_dataset/list_folder1")
    other = builder("mcubes", root)
    assert ids(other) == ids(first) and "list_folder1" in other.provenance()
    with pytest.raises(UserError, match=r"data\.lists: there are no lists of the scenes.*a folder list_folder with"):
        builder("mcubes", root, lists="list_folder")


# ---- FMB


def test_fmb_is_read_by_its_folders(roots: dict[str, Path]) -> None:
    found = builder("fmb", roots["fmb"])
    assert ids(found)["test"] == ["test/00012", "test/00013"] and len(ids(found)["val"]) == 1
    for place, sample in enumerate(found.splits()["train"]):
        folder, name = roots["fmb"] / "FMB/train", sample.id.removeprefix("train/")
        thermal = np.atleast_3d(np.asarray(Image.open(folder / f"Infrared/{name}.png"))) / 255
        wide = np.broadcast_to(thermal, (600, 800, 3))
        np.testing.assert_allclose(shown(found, "thermal", place=place), wide, atol=1e-9)
        raw = np.asarray(Image.open(folder / f"Label/{name}.png"))
        labels = decode_labels(sample.target, found.target, (600, 800))
        assert (labels == raw - np.uint8(1)).all() and set(np.unique(labels)) == {*range(14), IGNORE}


def test_labels_of_a_bad_copy_are_named_with_values_and_range(copies: Any, tmp_path: Path) -> None:
    """MMSFormer#2: "shape [14, 14] is invalid for input of size 3556"."""
    root = copies("fmb")
    path = root / "FMB/train/Label/00003.png"
    labels = np.array(Image.open(path))
    labels[7, 9:11], labels[7, 11] = 60, 99
    path.unlink()
    save(path, labels)
    told = r"00003\.png holds the values 60, 99 \(first at row 7, column 9\), .*expected 1 to 14, or 0 or 255 \(no"
    (line,) = [line for line in check(builder("fmb", root), 0.0).lines if "label maps cannot be used" in line]
    assert line.startswith("error: ") and re.search(told, line)
    found = builder("fmb", root)
    with pytest.raises(UserError, match=told):
        prepare(found, found.formats, tmp_path / "cache", max_bad=0.0)


def test_a_file_without_its_partners_is_named(copies: Any) -> None:
    root = copies("fmb")
    (root / "FMB/train/Infrared/00005.png").unlink()
    (root / "FMB/test/Visible/00013.png").unlink()
    found = builder("fmb", root)
    assert [str(row) for row in found.bad_rows] == [
        "train/00005: the scene 00005 has no file in train/Infrared",
        "test/00013: the scene 00013 has no file in test/Visible",
    ]
    assert len(ids(found)["train"]) + len(ids(found)["val"]) == 11 and ids(found)["test"] == ["test/00012"]


# ---- all of them


@pytest.mark.parametrize("name", ["nyudv2", "mcubes"])
def test_every_line_of_a_list_is_used_or_named(name: str, roots: dict[str, Path], copies: Any) -> None:
    root = copies(name)
    path = next(root.rglob("train.txt"))
    text = path.read_text()
    path.unlink()
    first = text.split()[0].removeprefix("RGB/").removesuffix(".jpg")
    path.write_text(
        f"\ufeff{text.rstrip()}\n\ngone-1\n{first}\n" + ("RGB/3.jpg\tLabel/4.png\n" if name == "nyudv2" else "")
    )
    found = builder(name, root)
    lines = [str(row) for row in found.bad_rows]
    assert lines[-1].endswith(f"the scene gone-1 has no file in {', '.join(folders(name))}")
    assert any(f"the scene {first} is also on line 1" in line for line in lines)
    assert name == "mcubes" or any("of several scenes: 3, 4" in line for line in lines)
    assert ids(found) == ids(builder(name, roots[name]))


def folders(name: str) -> list[str]:
    if name == "nyudv2":
        return ["RGB", "HHA", "Label"]
    return ["polL_color", "polL_aolp_sin", "polL_aolp_cos", "polL_dolp", "NIR_warped", "GT"]


@pytest.mark.parametrize("name", WRITERS)
def test_a_root_that_holds_something_else_says_where_to_get_the_data(name: str, tmp_path: Path) -> None:
    kind = DATASETS[name]
    for root in (tmp_path, None):
        with pytest.raises(UserError, match=r"data\.root.*Get it: ") as caught:
            kind(DATASETS.options(name, root=root and str(root)))
        assert kind.get in str(caught.value)


@pytest.mark.parametrize("name", WRITERS)
def test_rasters_and_labels_shrink_together(name: str, roots: dict[str, Path], tmp_path: Path) -> None:
    """`data.raster.size`: rasters are averages, labels those of the nearest pixels, of the same places."""
    found = builder(name, roots[name], raster={"size": [48, 64]})
    data: PreparedData = prepare(found, found.formats, tmp_path)
    split = data.splits["train"]
    batch = split.batch(np.arange(2))
    for modality, format in found.formats.items():
        values = batch.inputs[modality]
        assert isinstance(values, torch.Tensor) and values.shape == (2, format.channels, 48, 64)
    assert batch.target.shape == (2, 48, 64)
    whole = builder(name, roots[name])
    high, wide = whole.formats["rgb"].size
    labels = decode_labels(whole.splits()["train"][0].target, whole.target, (high, wide))
    rows, columns = (((np.arange(n) + 0.5) * m / n).astype(int) for n, m in ((48, high), (64, wide)))
    assert (split.targets[0] == labels[rows][:, columns]).all()
    with pytest.raises(ValidationError, match="a raster has no such size"):
        DATASETS.options(name, root="x", raster={"size": [0, 64]})
