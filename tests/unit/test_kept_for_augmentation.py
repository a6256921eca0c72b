"""Random frames and crops from a study to the batches of its training steps; evaluation sees what it always saw."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmsweep.assembly.build import make_augmentation, make_scenarios, prepare_data
from mmsweep.assembly.host import Warm
from mmsweep.data.augmentation import Augmentation
from mmsweep.data.dataset import Batch
from mmsweep.data.prepared import PreparedData
from mmsweep.errors import UserError
from mmsweep.record.trial import TrialFolder
from mmsweep.study import Study
from mmsweep.study.packs import warm_key
from mmsweep.training import engine
from mmsweep.training.slot import Member
from mmsweep.training.world import World

FRAMES, WIDTH, HEIGHT = 12, 48, 24
RANDOM = {"random_frames": True}
BOTH = {"random_frames": True, "crop": [0.2, 0.5]}


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory, encoder_folders: dict[str, str]) -> dict[str, Any]:
    """Clips whose frame k is grey of 20 k; pictures that grow redder to the right and greener downwards."""
    root = tmp_path_factory.mktemp("clips")
    red, green = np.meshgrid(np.linspace(0, 255, WIDTH), np.linspace(0, 255, HEIGHT))
    picture = np.stack([red, green, np.zeros_like(red)], -1).astype(np.uint8)
    rows = []
    for i in range(24):
        (root / f"clip-{i}").mkdir()
        for frame in range(FRAMES):
            Image.new("RGB", (WIDTH, HEIGHT), (20 * frame,) * 3).save(root / f"clip-{i}" / f"{frame}.png")
        Image.fromarray(picture).save(root / f"{i}.png")
        part = "train" if i < 16 else "val" if i < 20 else "test"
        rows.append({"clip": f"clip-{i}", "picture": f"{i}.png", "kind": "ab"[i % 2], "part": part})
    with open(root / "rows.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    columns = {"clip": {"kind": "video", "column": "clip"}, "picture": {"kind": "image", "column": "picture"}}
    return {
        "name": "clips",
        "data": {
            "dataset": "manifest",
            "path": str(root / "rows.csv"),
            "modalities": columns,
            "target": {"task": "single_label", "column": "kind"},
            "split": {"column": "part"},
        },
        "model": {"encoders": {m: {"name": encoder_folders["vit"]} for m in columns}, "lora": {"rank": 1}},
        "method": {"name": "plain"},
        "train": {"epochs": 2, "batch_size": 8},
    }


def study_with(values: dict[str, Any], augmentation: dict[str, Any], **more: Any) -> Study:
    return Study.parse(values).with_values({"data.augmentation": augmentation, **more})


def steps(studies: list[Study], monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    """What the method reads in two epochs of a pack, through `Warm`, `Slot` and the engine's own steps."""
    warm, seen = Warm("cpu", World()), []
    data, backbone = warm.ready(studies[0])
    slots = [warm.slot(study, TrialFolder("nowhere")) for study in studies]
    pack = engine._Pack(data, engine.EvaluationPlan(make_scenarios(studies[0], backbone.modalities), 0),
                        torch.device("cpu"), World())  # fmt: skip
    pack.join([Member(slot, data) for slot in slots])
    train = data.splits["train"]
    read = train.batch_of
    monkeypatch.setattr(type(train), "batch_of", lambda split, raw, device: seen.append(read(raw, device)) or seen[-1])
    for _ in range(2):
        pack._train_epoch()
        for member in pack.members:
            member.done += 1
    monkeypatch.undo()
    return seen


def pixels(batches: list[Batch], modality: str) -> torch.Tensor:
    """0..255 again: the encoders normalise by a mean and a deviation of one half."""
    values = torch.cat([batch.inputs[modality] for batch in batches])  # type: ignore[misc]
    return (values * 0.5 + 0.5) * 255


def frames_of(batches: list[Batch]) -> torch.Tensor:
    """Which frames each row shows: their grey tells."""
    return (pixels(batches, "clip").mean((2, 3, 4)) / 20).round().long()


def test_training_steps_show_random_frames(values, monkeypatch) -> None:
    shown = frames_of(steps([study_with(values, RANDOM)], monkeypatch))
    assert shown.shape == (32, 3) and (shown.diff(dim=1) > 0).all()
    assert set(shown.flatten().tolist()) == set(range(FRAMES)) and len({tuple(row) for row in shown.tolist()}) > 16
    still = frames_of(steps([study_with(values, {})], monkeypatch))
    assert {tuple(row) for row in still.tolist()} == {(2, 6, 10)}


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_training_steps_show_crops_of_the_whole_picture(values, fit, monkeypatch) -> None:
    """Evaluation's square of a picture that is twice as wide as high holds reds of 64 to 191 only."""
    study = study_with(values, {"crop": [0.2, 0.5]}, **{"data.image.fit": fit})
    shown = pixels(steps([study], monkeypatch), "picture")
    left, right = shown[:, 0, :, 0], shown[:, 0, :, -1]
    if fit == "crop":
        assert left.min() < 40 and right.max() > 215
        width_B, height_B = (right - left).mean(1) / 255, (shown[:, 1, -1] - shown[:, 1, 0]).mean(1) / 255
        area_B = width_B * height_B * (16 / 15) ** 2  # from the first pixel's middle to the last one's
        assert area_B.min() > 0.17 and area_B.max() < 0.53 and area_B.std() > 0.03
        ratio_B = width_B * WIDTH / (height_B * HEIGHT)
        assert ratio_B.min() > 0.7 and ratio_B.max() < 1.4 and ratio_B.std() > 0.05
    else:
        assert (shown[:, 2] > 250).any() and (shown[:, 2] < 5).any()  # the page above and below it, too
    assert len({round(float(v), 2) for v in shown.mean((1, 2, 3))}) > 24


def test_crops_and_frames_together(values, monkeypatch) -> None:
    batches = steps([study_with(values, BOTH | {"flip": True})], monkeypatch)
    assert batches[0].inputs["clip"].shape == (8, 3, 3, 16, 16)  # type: ignore[union-attr]
    assert set(frames_of(batches).flatten().tolist()) == set(range(FRAMES))
    shown = pixels(batches, "picture")
    turned = shown[:, 0, :, 0].mean(1) > shown[:, 0, :, -1].mean(1)
    assert 4 < int(turned.sum()) < 28


def same(one: list[Batch], other: list[Batch], rows: slice) -> bool:
    return all(
        torch.equal(a.inputs[m][rows], b.inputs[m])  # type: ignore[index, arg-type]
        for a, b in zip(one, other, strict=True)
        for m in b.inputs
    )


def test_a_slot_s_draws_are_its_own(values, monkeypatch) -> None:
    """Bit by bit the same beside another trial, in either place, and again; another seed draws others."""
    study = study_with(values, BOTH | {"flip": True})
    other = study.with_values({"train.seed": 7, "train.optimizer.lr": 0.1})
    alone, its_mate = steps([study], monkeypatch), steps([other], monkeypatch)
    assert same(alone, steps([study], monkeypatch), slice(0, 8)) and not same(alone, its_mate, slice(0, 8))
    first, second = steps([study, other], monkeypatch), steps([other, study], monkeypatch)
    assert same(first, alone, slice(0, 8)) and same(first, its_mate, slice(8, 16))
    assert same(second, its_mate, slice(0, 8)) and same(second, alone, slice(8, 16))
    assert not torch.equal(alone[0].inputs["picture"], alone[2].inputs["picture"])  # another epoch


def columns(data: PreparedData) -> Iterator[tuple[str, bytes]]:
    for path in sorted(data.folder.rglob("*.npy")):
        if ".varied" not in path.name and ".aspect" not in path.name:
            yield str(path.relative_to(data.folder)), path.read_bytes()


@pytest.mark.parametrize("fit", ["crop", "pad"])
@pytest.mark.parametrize("augmentation", [BOTH, RANDOM, {"crop": [0.2, 0.5]}, {"flip": True}])
def test_evaluation_sees_the_same_to_the_bit(values, augmentation, fit) -> None:
    plain = prepare_data(study_with(values, {}, **{"data.image.fit": fit}))
    varied = prepare_data(study_with(values, augmentation, **{"data.image.fit": fit}))
    assert dict(columns(plain)) == dict(columns(varied))
    statistics = [json.loads((d.folder / "prepared.json").read_text())["statistics"] for d in (plain, varied)]
    assert statistics[0] == statistics[1]
    for name, split in varied.splits.items():
        own, theirs = (s.batch(np.arange(len(split))) for s in (split, plain.splits[name]))
        assert all(torch.equal(own.inputs[m], theirs.inputs[m]) for m in own.inputs)  # type: ignore[arg-type]


def test_only_what_augmentation_asks_for_is_kept(values) -> None:
    """Nothing without it, or with a flip alone; else the training rows' pictures once more, within bounds."""
    plain, flipped = prepare_data(study_with(values, {})), prepare_data(study_with(values, {"flip": True}))
    assert flipped.folder == plain.folder and not list(plain.folder.rglob("*.varied*"))
    data = prepare_data(study_with(values, BOTH))
    assert {path.parent.name for path in data.folder.rglob("*.varied*")} == {"train"}
    clip, picture = (np.load(data.folder / "train" / f"{m}.varied.npy", mmap_mode="r") for m in ("clip", "picture"))
    assert picture.shape == (16, 3, 23, 23) and clip.shape == (16, 24, 3, 23, 23)
    assert (data.splits["train"]._columns["clip"][".varied.length"] == FRAMES).all() and not clip[:, FRAMES:].any()


def test_configurations_that_differ_in_the_crop_alone_share_what_is_kept(values) -> None:
    study = study_with(values, BOTH)
    assert warm_key(study) == warm_key(study.with_values({"data.augmentation.crop": [0.3, 1.0]}))
    for key, value in {"data.augmentation.crop": None, "data.augmentation.random_frames": False}.items():
        assert warm_key(study) != warm_key(study.with_values({key: value}))


def test_random_frames_of_clips_without_more_frames_are_refused(values) -> None:
    with pytest.raises(UserError, match=r"augmentation.random_frames: no training clip has more frames than the 12"):
        prepare_data(study_with(values, RANDOM, **{"data.video.frames": FRAMES}))
    prepare_data(study_with(values, RANDOM, **{"data.video.frames": FRAMES - 1}))


def test_augmentation_never_works_on_columns_that_were_prepared_without_it(values) -> None:
    crop, generator = Augmentation((0.2, 0.5)), torch.Generator()
    plain, varied = (prepare_data(study_with(values, a)).splits for a in ({}, {"crop": [0.2, 0.5]}))
    for split in (plain["train"], varied["val"]):
        with pytest.raises(ValueError, match="kept_formats"):
            split.batch(np.arange(4), augmentation=crop, generator=generator)
    with pytest.raises(ValueError, match="kept_formats"):
        varied["train"].batch(np.arange(4), augmentation=Augmentation(flip=0.5), generator=generator)


def test_absent_pictures_and_clips_are_the_fill_value(values) -> None:
    lines = Path(values["data"]["path"]).read_text().replace("clip-3,3.png", "clip-3,").replace("clip-5,", ",")
    root = Path(values["data"]["path"]).parent
    (root / "gaps.csv").write_text(lines)
    study = study_with(values, BOTH, **{"data.path": str(root / "gaps.csv"), "data.fill": "nan"})
    data = Warm("cpu", World()).ready(study)[0].splits["train"]
    batch = data.batch(np.arange(16), augmentation=make_augmentation(study), generator=torch.Generator())
    for modality, row in (("picture", 3), ("clip", 5)):
        values_B = batch.inputs[modality].flatten(1)  # type: ignore[union-attr]
        assert values_B.isnan().all(1).nonzero().flatten().tolist() == [row]
        assert values_B.isnan().any(1).nonzero().flatten().tolist() == [row]
