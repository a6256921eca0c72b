"""The user's own rasters with label maps: the study of docs/own_data.md on files that it describes, end to end."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from mmsweep.assembly.build import card_of, make_builder, prepare_data
from mmsweep.assembly.checks import check as check_study
from mmsweep.assembly.host import Warm
from mmsweep.assembly.plan import dry_run
from mmsweep.data.check import check
from mmsweep.data.kinds.raster import RasterFormat
from mmsweep.errors import UserError
from mmsweep.record.trial import TrialFolder
from mmsweep.study import Study
from mmsweep.study.packs import Job
from mmsweep.tasks.task import IGNORE
from mmsweep.training.world import World
from tests.data.rasters import save

tifffile = pytest.importorskip("tifffile")

PAGE = Path(__file__).parents[2] / "docs" / "own_data.md"
SIDE, ROWS, CHANNELS = 80, {"train": 6, "val": 2, "test": 3}, 5


def write_fields(folder: Path) -> Path:
    """The manifest of the page: satellite pictures of half the side, one height missing, class 3 rare."""
    random = np.random.default_rng(0)
    rows = []
    for i, part in enumerate(part for part, count in ROWS.items() for _ in range(count)):
        labels = random.integers(1, 4, (4, 4)).repeat(20, 0).repeat(20, 1)
        labels[:3] = 0
        save(
            folder / f"colour-{i}.png",
            (labels[..., None] * [60, 20, 9] + random.integers(0, 9, (SIDE, SIDE, 3))).astype(np.uint8),
        )
        bands = (labels[::2, ::2, None] * 9000 + random.integers(0, 900, (40, 40, CHANNELS))).astype(np.uint16)
        tifffile.imwrite(folder / f"satellite-{i}.tif", bands, photometric="minisblack", planarconfig="contig")
        save(folder / f"height-{i}.npy", (450 + 120 * (labels - 2)).astype(np.float64))
        save(folder / f"labels-{i}.png", labels)
        names = {m: f"{m}-{i}.{end}" for m, end in (("colour", "png"), ("satellite", "tif"), ("height", "npy"))}
        rows.append({**names, "labels": f"labels-{i}.png", "part": part})
    rows[1]["height"] = ""
    with (folder / "fields.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder / "fields.csv"


def page_study(path: Path) -> dict[str, Any]:
    (block,) = [text for text in re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.S) if "my-fields" in text]
    values: dict[str, Any] = yaml.safe_load(block)
    values["data"]["path"] = str(path)
    return values


@pytest.fixture()
def values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("MMSWEEP_CACHE", str(tmp_path / "cache"))
    (tmp_path / "files").mkdir()
    return page_study(write_fields(tmp_path / "files"))


def test_the_page_s_study_trains_on_the_page_s_files(values: dict[str, Any], tmp_path: Path) -> None:
    values["train"] = {"epochs": 1, "batch_size": 3, "optimizer": {"lr": 1e-3}}
    study = Study.parse(values)
    check_study(study)
    plan = dry_run(study)
    assert plan["steps_per_trial"] == 2 and plan["tokens"] == dict.fromkeys(("colour", "satellite", "height"), 144)
    trial = TrialFolder(tmp_path / "trial")
    trial.create({"id": "0000", "params": {}, "seed": 1}, study.to_yaml())
    scores: list[Any] = []
    Warm("cpu", World()).run(Job("0000", "final", str(tmp_path / "trial"), study), scores.append)
    assert len(scores) == 1 and np.isfinite(scores[0].metrics["val/complete/miou"])


def test_rasters_are_as_the_files_and_the_training_rows_say(values: dict[str, Any], tmp_path: Path) -> None:
    study = Study.parse(values)
    formats = card_of(study).formats
    assert formats["colour"] == RasterFormat((64, 64), 3, "uint8", None, None, resize=True)
    assert formats["satellite"] == RasterFormat((64, 64), CHANNELS, "uint16", None, None, resize=True)
    assert formats["height"] == RasterFormat((64, 64), 1, "float32", (450.0,), (120.0,), resize=True)
    data = prepare_data(study)
    train, test = data.splits["train"], data.splits["test"]
    assert train.natural_NM[:, 2].tolist() == [True, False, True, True, True, True]
    batch, height = train.batch(np.arange(6)), train.column("height")
    satellite = batch.inputs["satellite"]
    assert isinstance(satellite, torch.Tensor) and satellite.shape == (6, CHANNELS, 64, 64)
    np.testing.assert_allclose(satellite.mean((0, 2, 3)), 0, atol=1e-3)
    np.testing.assert_allclose(satellite.std((0, 2, 3), correction=0), 1, atol=1e-3)
    heights = batch.inputs["height"]
    assert isinstance(heights, torch.Tensor) and height.dtype == np.float32
    np.testing.assert_allclose(heights[0], (height[0] - 450) / 120, atol=1e-5)
    assert (heights[1] == 0).all()
    assert test.formats == train.formats
    assert set(np.unique(train.targets)) == {0, 1, 2, IGNORE}


def test_given_bands_and_statistics_are_taken(values: dict[str, Any]) -> None:
    values["data"]["modalities"]["satellite"] |= {"channels": [4, 0], "mean": [1, 2], "std": [3, 4]}
    split = prepare_data(Study.parse(values)).splits["train"]
    shown, stored = split.batch(np.arange(2)).inputs["satellite"], split.column("satellite")[:2]
    assert isinstance(shown, torch.Tensor) and shown.shape == (2, 2, 64, 64)
    np.testing.assert_allclose(
        shown, (stored - np.array([1, 2.0])[:, None, None]) / np.array([3, 4.0])[:, None, None], rtol=1e-5
    )


def test_a_number_of_classes_names_them_by_their_values(values: dict[str, Any]) -> None:
    values["data"]["target"]["classes"] = 3
    target = make_builder(Study.parse(values)).target
    assert target.classes == ("1", "2", "3") and target.label_values == ((0, IGNORE), (1, 0), (2, 1), (3, 2))


def test_data_check_names_the_labels_out_of_range(values: dict[str, Any], tmp_path: Path) -> None:
    wrong = np.ones((SIDE, SIDE), np.uint8)
    wrong[5, 6], wrong[5, 7] = 4, 9
    save(tmp_path / "files/labels-7.png", wrong)
    findings = check(make_builder(Study.parse(values)), 0.0).lines
    (told,) = [line for line in findings if line.startswith("error: ") and "label maps" in line]
    assert "val: 1 label maps cannot be used" in told and "fields.csv:9" in told
    assert re.search(r"labels-7\.png holds the values 4, 9 \(first at row 5, column 6\).*expected 1 to 3, or 0", told)
    assert check(make_builder(Study.parse(page_study(tmp_path / "files/fields.csv"))), 1.0).usable


def test_files_of_another_size_are_refused_unless_a_size_is_given(values: dict[str, Any], tmp_path: Path) -> None:
    del values["data"]["raster"]
    with pytest.raises(UserError, match=r"rasters, all of one size.*40 x 40.*data\.raster\.size"):
        prepare_data(Study.parse(values))
    del values["data"]["modalities"]["satellite"]
    values["scenarios"] = {"evaluate": ["complete"]}
    save(tmp_path / "files/height-3.npy", np.zeros((SIDE, SIDE + 1)))
    with pytest.raises(
        UserError, match=r"(?s)1 row .*fields\.csv:5: height: .*height-3\.npy is 80 x 81 with 1 channel; exp"
    ):
        prepare_data(Study.parse(values))


def test_the_first_file_that_can_be_read_says_how(values: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "files/satellite-0.tif").write_bytes(b"II*\0 no tiff")
    assert make_builder(Study.parse(values)).formats["satellite"].columns()[0][2] == (CHANNELS, 64, 64)
    for i in range(ROWS["train"]):
        (tmp_path / f"files/satellite-{i}.tif").unlink()
    with pytest.raises(UserError, match=r"no training file says how the raster is read .*satellite-0\.tif"):
        make_builder(Study.parse(values))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": {"classes": None}}, "do not say which classes"),
        ({"target": {"classes": 1}}, "2 to 255"),
        ({"target": {"classes": 300}}, "2 to 255"),
        ({"target": {"ignore": [0, 2]}}, "the value 2 stands for a class and for no class"),
        ({"target": {"ignore": 70_000}}, "0 to 65535"),
        ({"target": {"task": "single_label"}}, "single_label has no label maps"),
        ({"target": {"task": "single_label", "offset": 0, "ignore": 255, "classes": 4}}, "needs names of classes"),
        ({"raster": {"size": [0, 4]}}, "no such size"),
        ({"modalities": {"height": {"kind": "raster", "column": "height", "mean": [1]}}}, "given together"),
        ({"modalities": {"height": {"kind": "raster", "column": "height", "mean": [1], "std": [0]}}}, "do not fit"),
        ({"modalities": {"height": {"kind": "raster", "column": "height", "channels": [-1]}}}, "count from 0"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str, values: dict[str, Any]) -> None:
    for section, options in change.items():
        values["data"][section] |= options
    with pytest.raises(UserError, match=message):
        Study.parse(values)
