"""A damaged checkpoint is skipped in favour of the newest intact one, and the trial ends as if nothing had happened."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mmsweep.assembly.host import Warm, evaluate_run
from mmsweep.errors import UserError
from mmsweep.record.trial import Report, TrialFolder
from mmsweep.study import Study
from mmsweep.study.packs import Job
from mmsweep.training.checkpoint import load_checkpoint, save_checkpoint
from mmsweep.training.world import World

BEST = 2.0  # the epoch whose checkpoint is kept as the best


@pytest.fixture(autouse=True)
def second_epoch_is_best(monkeypatch: pytest.MonkeyPatch) -> None:
    make = Warm.slot

    def slot(self: Warm, study: Study, folder: TrialFolder) -> object:
        made = make(self, study, folder)
        made.better = lambda new, best: new["epoch"] == BEST
        return made

    monkeypatch.setattr(Warm, "slot", slot)


@pytest.fixture(scope="module")
def warm() -> Warm:
    return Warm("cpu", World())


def train(study: Study, path: Path, warm: Warm, until: int = 4) -> TrialFolder:
    folder = TrialFolder(path)
    folder.create({"id": "0", "params": {}}, study.to_yaml())
    job = Job("0", "trial", str(path), study)
    warm.run(job, lambda report: report.epoch == until)
    return folder


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1  # a value of a tensor: the file reads as before
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


FAULTS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a flipped bit": ("weights.safetensors", flip),
    "cut off": ("resume.safetensors", truncate),
    "empty": ("resume.json", lambda path: path.write_bytes(b"")),
    "deleted": ("weights.safetensors", lambda path: path.unlink()),
    "a list": ("manifest.json", lambda path: path.write_text("[1]")),
}


CASES = [*(((3,), 2, fault) for fault in FAULTS), ((2,), 0, "a flipped bit"), ((2, 3), 0, "a flipped bit")]


@pytest.mark.parametrize(("damaged", "after", "fault"), CASES)
def test_training_goes_on_from_the_newest_whole_checkpoint(
    damaged: tuple[int, ...], after: int, fault: str, tiny_study: Study, tmp_path: Path, warm: Warm,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """The second epoch is the best one, the third the last: where the best is lost, the run starts over."""
    study = tiny_study.with_values({"train.epochs": 4})
    whole = train(study, tmp_path / "whole", warm)
    folder = train(study, tmp_path / "damaged", warm, until=3)
    name, damage = FAULTS[fault]
    for epoch in damaged:
        damage(folder.checkpoint(epoch) / name)
    assert any(f"epoch-000{damaged[-1]}" in sentence for sentence in folder.damage())

    seen: list[int] = []
    job = Job("0", "trial", str(folder.path), study)
    warm.run(job, lambda report: bool(seen.append(report.epoch)))
    assert seen == list(range(after + 1, 5))
    assert [r.metrics for r in folder.reports()] == [r.metrics for r in whole.reports()]
    for epoch in (2, 4):
        ours, theirs = (load_checkpoint(f.checkpoint(epoch))[0] for f in (folder, whole))
        assert all(torch.equal(ours[n], theirs[n]) for n in theirs) and ours.keys() == theirs.keys()
    assert (folder.done() or {})["state"] == "finished"
    assert (f"it continues after epoch {after}" if after else "it starts over") in caplog.text
    assert sorted(path.name for path in (folder.path / "checkpoints").iterdir()) == ["epoch-0002", "epoch-0004"]


def test_a_checkpoint_of_an_older_mmsweep_has_no_manifest(tiny_study: Study, tmp_path: Path, warm: Warm) -> None:
    study = tiny_study.with_values({"train.epochs": 4})
    folder = train(study, tmp_path, warm, until=3)
    for path in folder.path.glob("checkpoints/*/manifest.json"):
        path.unlink()
    assert folder.damage() == [] and folder.last_checkpoint() == folder.checkpoint(3)
    truncate(folder.checkpoint(3) / "weights.safetensors")
    assert folder.last_checkpoint() == folder.checkpoint(2)


def test_damaged_weights_are_named_by_evaluate_and_init_from(tiny_study: Study, tmp_path: Path, warm: Warm) -> None:
    study = tiny_study.with_values({"sweep.objective": {"metric": "val/complete/f1_macro", "scope": "last"}})
    folder = train(study, tmp_path / "a", warm)
    flip(folder.checkpoint(2) / "weights.safetensors")
    named = r"epoch-0002: .*weights.safetensors differs from its checksum"
    with pytest.raises(UserError, match=named):
        evaluate_run(folder.path, "val", "cpu")
    second = study.with_values({"train.init_from": str(folder.path)})
    with pytest.raises(UserError, match=r"epoch-0002: train.init_from: .*weights.safetensors differs"):
        warm.slot(second, TrialFolder(tmp_path / "b"))


def test_a_manifest_is_written_last_and_nothing_is_left_where_writing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = TrialFolder(tmp_path)
    folder.create({"id": "0", "params": {}}, "")
    name = save_checkpoint(folder, 1, {"a": torch.ones(2)}, {"b": torch.ones(2)}, {"epoch": 1})
    folder.append(Report(1, {}, name))
    manifest = json.loads((folder.checkpoint(1) / "manifest.json").read_text())
    assert set(manifest) == {"weights.safetensors", "resume.safetensors", "resume.json"}
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(folder, 2, {"a": torch.ones(2)}, {}, {"epoch": 2})
    with pytest.raises(OSError, match="No space"):
        folder.mark_done("finished")
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["epoch-0001"]
    assert not [path.name for path in tmp_path.iterdir() if "done" in path.name]


@pytest.mark.parametrize("umask", [0o077, 0o002])
def test_a_trial_s_files_have_the_rights_that_the_user_chose(tmp_path: Path, umask: int) -> None:
    """safetensors makes its files for their owner alone."""
    before = os.umask(umask)
    try:
        folder = TrialFolder(tmp_path / "0000")
        folder.create({"id": "0", "params": {}}, "name: x\n")
        checkpoint = save_checkpoint(folder, 1, {"a": torch.ones(1)}, {"b": torch.ones(1)}, {"epoch": 1})
        folder.append(Report(1, {}, checkpoint, 0.0))
        folder.mark_done("finished")
    finally:
        os.umask(before)
    files = list(folder.path.rglob("*"))
    assert len(files) >= 8
    for path in files:
        assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~umask, path
