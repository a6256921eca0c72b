"""Segmentation from a study to a report: trained by a host, resumed, evaluated, drawn. Tiny, without Ray."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmsweep.assembly.checks import check
from mmsweep.assembly.host import Warm
from mmsweep.assembly.plan import dry_run
from mmsweep.components import register
from mmsweep.data.dataset import DatasetBuilder, Sample
from mmsweep.data.kinds.raster import RasterFormat
from mmsweep.data.options import DATASETS, FolderOptions
from mmsweep.errors import UserError
from mmsweep.readers.report.bootstrap import Bootstrap, Predicted
from mmsweep.readers.report.maps import coloured
from mmsweep.readers.report.page import write_report
from mmsweep.record.trial import TrialFolder
from mmsweep.study import Study
from mmsweep.study.packs import Job, warm_key
from mmsweep.sweep.summary import summary_of
from mmsweep.tasks.task import Target, task_of
from mmsweep.training.checkpoint import load_checkpoint
from mmsweep.training.world import World

SIDE, ROWS = 32, {"train": 6, "val": 3, "test": 5}
TARGET = Target("segmentation", ("left", "right", "never"))
TASK = task_of(TARGET)
RASTERS = {"rgb": RasterFormat((SIDE, SIDE)), "height": RasterFormat((SIDE, SIDE), 1, "uint16", (0.0,), (65535.0,))}


class Halves(DatasetBuilder):
    """Scenes that are split by an upright line; both rasters show where."""

    Options = FolderOptions
    name = "halves"
    modalities = dict.fromkeys(RASTERS, "raster")
    target = TARGET
    rows = ROWS
    formats = RASTERS

    def __init__(self, options: FolderOptions) -> None:
        super().__init__(options)
        root = self.root
        random = np.random.default_rng(0)
        for i in range(sum(ROWS.values())):
            label = np.zeros((SIDE, SIDE), np.uint8)
            label[:, random.integers(8, 24) :] = 1
            noise = random.integers(0, 40, (SIDE, SIDE, 3), np.uint8)
            Image.fromarray(noise + 180 * label[..., None]).save(root / f"rgb-{i}.png")
            Image.fromarray(label.astype(np.uint16) * 60_000).save(root / f"height-{i}.png")
            label[:4] = 255
            Image.fromarray(label).save(root / f"label-{i}.png")

    def splits(self) -> dict[str, list[Sample]]:
        rows = [
            Sample(f"scene-{i}", {m: self.root / f"{m}-{i}.png" for m in RASTERS}, self.root / f"label-{i}.png")
            for i in range(sum(ROWS.values()))
        ]
        first, second = ROWS["train"], ROWS["train"] + ROWS["val"]
        return {"train": rows[:first], "val": rows[first:second], "test": rows[second:]}

    def provenance(self) -> str:
        return "made here"


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> Any:
    register("halves")(Halves)
    yield {
        "name": "halves",
        "data": {
            "dataset": "halves",
            "root": str(tmp_path_factory.mktemp("halves")),
            "augmentation": {"scale": [1.0, 1.5], "flip": True},
        },
        "model": {
            "backbone": {"name": "cmnext", "size": "nano", "pretrained": False, "trainable": True},
            "lora": None,
        },
        "method": {"name": "modality_dropout"},
        "train": {"epochs": 2, "batch_size": 3, "optimizer": {"lr": 3e-3}, "hard_pixels": True},
        "scenarios": {"evaluate": ["complete", {"missing": "rgb"}, {"missing": "height"}]},
        "sweep": {"objective": {"metric": "val/mean_missing/miou"}, "final": {"seeds": 1}},
    }
    del DATASETS._components["halves"]


@pytest.fixture()
def study(values: Any) -> Study:
    return Study.parse(values)


def trained(study: Study, folder: Path, kind: str = "final", stop: int | None = None) -> TrialFolder:
    trial = TrialFolder(folder)
    trial.create({"id": "0000", "params": {}, "seed": 1}, study.to_yaml())
    job = Job("0000", kind, str(folder), study)
    Warm("cpu", World()).run(job, lambda report: report.epoch == stop)
    return trial


@pytest.fixture(scope="module")
def sweep(values: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep's folder with one trial and one final run."""
    root = tmp_path_factory.mktemp("sweep")
    study = Study.parse(values)
    (root / "study.yaml").write_text(study.to_yaml())
    summary_of(study).write(root)
    (root / "sweep.json").write_text(json.dumps({"name": "halves", "state": "finished", "trials": 1}))
    for folder, kind in ((root / "trials" / "0000", "trial"), (root / "final" / "best" / "seed-1", "final")):
        trained(study, folder, kind)
    return root


def test_a_dry_run_counts_tokens_and_parameters(study: Study) -> None:
    check(study)
    plan = dry_run(study)
    assert plan["tokens"] == {"rgb": 64, "height": 64} and plan["steps_per_trial"] == 4
    assert plan["parameters"]["total"] == plan["parameters"]["trainable"] > 1e6
    window = study.with_values({"data.augmentation.window": 48})
    assert dry_run(window)["tokens"]["rgb"] == 144 and warm_key(window) != warm_key(study)


def test_a_final_run_is_evaluated_under_every_pattern(sweep: Path) -> None:
    folder = sweep / "final" / "best" / "seed-1"
    record = json.loads((folder / "evaluation.json").read_text())
    assert record["task"] == "segmentation" and set(record["patterns"]) == {"complete", "missing-rgb", "missing-height"}
    for entry in record["patterns"].values():
        assert set(entry["metrics"]) == set(TASK.metric_names) and len(entry["per_class"]["iou"]) == 3
        assert entry["metrics"]["miou"] <= entry["metrics"]["miou_present"]
    with np.load(folder / "predictions.npz", allow_pickle=False) as file:
        assert file["confusions_PNCC"].shape == (3, 5, 3, 3)
        assert (file["confusions_PNCC"].sum((2, 3)) == SIDE * (SIDE - 4)).all()  # what has no class counts nowhere
    with np.load(folder / "examples.npz", allow_pickle=False) as file:
        assert file["maps_PRHW"].shape == (3, 4, SIDE, SIDE) and file["maps_PRHW"].max() < 3
        assert file["input_height"].dtype == np.uint8 and file["input_rgb"].shape == (4, SIDE, SIDE, 3)


def test_checkpoints_hold_the_running_statistics(sweep: Path, study: Study) -> None:
    weights, _, _ = load_checkpoint(TrialFolder(sweep / "trials" / "0000").checkpoint(2))
    means = [n for n in weights if n.endswith("running_mean")]
    assert means and all(weights[n].abs().sum() > 0 for n in means)


def test_an_interrupted_run_goes_on_as_if_it_had_not_been(sweep: Path, study: Study, tmp_path: Path) -> None:
    trained(study, tmp_path / "cut", "trial", stop=1)
    (tmp_path / "cut" / "done.json").unlink(missing_ok=True)
    cut = trained(study, tmp_path / "cut", "trial")
    whole = TrialFolder(sweep / "trials" / "0000")
    assert [r.metrics for r in cut.reports()] == [r.metrics for r in whole.reports()]
    a, b = (load_checkpoint(f.checkpoint(2))[0] for f in (cut, whole))
    assert a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def test_the_report_shows_maps_and_classes(sweep: Path) -> None:
    page = write_report(sweep).read_text()
    assert 'id="maps"' in page and 'id="per_class"' in page and "mIoU" in page
    assert (sweep / "report" / "maps.png").stat().st_size > 5_000


def test_intervals_stand_on_the_matrices(sweep: Path) -> None:
    folder = sweep / "final" / "best" / "seed-1"
    predicted = Predicted.read(folder / "predictions.npz")
    record = json.loads((folder / "evaluation.json").read_text())
    tables = {"complete": np.ones((5, 2), bool), "missing-rgb": np.tile([False, True], (5, 1))}
    bootstrap = Bootstrap({"a": [(predicted, TASK)]}, tables, resamples=50)
    for scenario in tables:
        for metric in TASK.metric_names:
            interval = bootstrap.interval("a", scenario, metric)
            assert interval.value == pytest.approx(record["patterns"][scenario]["metrics"][metric])
            assert interval.low <= interval.high
    draws = next(iter(list(bootstrap._weights())[1:]))[:3]
    matrices = predicted.statistics_PN[0].astype(float)
    for r, weights_N in enumerate(draws):
        sum_CC = sum(w * m for w, m in zip(weights_N, matrices, strict=True))
        hits = np.diag(sum_CC)
        iou = hits / np.maximum(sum_CC.sum(0) + sum_CC.sum(1) - hits, 1)
        assert bootstrap._samples("a", "complete", "miou")[1 + r] == pytest.approx(iou.mean())


def test_no_class_is_drawn_pale() -> None:
    drawn = coloured(np.array([[0, 1, 255]]))
    assert drawn.shape == (1, 3, 3) and drawn[0, 2].min() > 0.8 and not np.allclose(drawn[0, 0], drawn[0, 1])


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"model.backbone.size": "b9"}, "model.backbone.size"),
        ({"inference.window": 16, "inference.stride": 20}, "inference.stride"),
        ({"inference.window": 16}, "inference.window: the backbone would see 16 pixels a side; found 16; expected 29"),
        ({"inference.scales": [1.0, 0.5]}, "inference.scales: the backbone would see "),
        ({"data.augmentation.crop": [0.5, 1.0]}, "data.augmentation.scale"),
        ({"data.augmentation.window": 16}, "too small"),
        ({"data.task": "single_label"}, "data.task: halves has no such task; found 'single_label'; expected segm"),
        ({"sweep.objective.metric": "val/mean_missing/iou"}, "miou"),
    ],
)
def test_impossible_studies_are_refused(study: Study, change: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError) as caught:
        dry_run(study.with_values(change))
    assert key in str(caught.value)


def test_backbones_predict_what_the_target_is(study: Study, tiny_study: Study) -> None:
    with pytest.raises(UserError, match="does not predict single_label"):
        check(
            tiny_study.with_values(
                {"model": {"backbone": {"name": "cmnext", "size": "nano", "pretrained": False, "trainable": True}}}
            )
        )
    with pytest.raises(UserError, match=r"hard_pixels"):
        check(tiny_study.with_values({"train.hard_pixels": True}))


def test_views_at_test_are_the_studys(study: Study, tmp_path: Path) -> None:
    wide = study.with_values({"inference.scales": [1.0, 1.5], "inference.flip": True, "train.epochs": 1})
    plain = trained(study.with_values({"train.epochs": 1}), tmp_path / "plain")
    views = trained(wide, tmp_path / "views")
    assert [r.metrics for r in plain.reports()] == [r.metrics for r in views.reports()]  # validation is as it was
    found = [np.load(f.path / "predictions.npz", allow_pickle=False)["confusions_PNCC"] for f in (plain, views)]
    assert not np.array_equal(*found)
