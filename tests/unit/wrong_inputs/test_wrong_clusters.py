"""Wrong folders, servers, clusters and runs: one message that names them; nothing is begun."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mmsweep.record.trial import Report, TrialFolder
from mmsweep.study import Study
from mmsweep.training.checkpoint import save_checkpoint
from tests.unit.wrong_inputs.messages import METRIC, Say, line_of


def test_a_folder_that_cannot_be_made(study: Callable[..., Path], place: Path, say: Say) -> None:
    (place / "file").write_text("in the way")
    message = say("tune", study(), "--out", place / "file" / "sweep")
    assert message.startswith(
        f"{place / 'file' / 'sweep'}: --out: the sweep's folder cannot be written (Not a directory"
    )
    assert "expected a folder that can be made and written" in message


def test_an_unreachable_tracking_server(study: Callable[..., Path], place: Path, say: Say) -> None:
    path = study({"tracking": {"uri": "http://127.0.0.1:9"}})
    message = say("tune", path)
    assert message.startswith(f"{line_of(path, '127.0.0.1:9')}tracking.uri: the tracking store cannot be used (")
    assert "found 'http://127.0.0.1:9'" in message and "Start it (`mlflow server`)" in message
    # Nothing began, so the corrected study is a new sweep: it does not stumble over the first one's folder.
    assert "tracking" in say("tune", study({"tracking": {"uri": "http://127.0.0.1:10"}}))


def test_an_address_that_is_no_store(study: Callable[..., Path], say: Say) -> None:
    path = study({"tracking": {"uri": "ftp://somewhere"}})
    message = say("tune", path)
    assert message.startswith(f"{line_of(path, 'ftp:')}tracking.uri: ") and "found 'ftp://somewhere'" in message
    assert "expected sqlite:///<path>" in message


def test_existing_and_changed_sweeps(study: Callable[..., Path], place: Path, say: Say) -> None:
    folder = place / "sweeps" / "wrong"
    folder.mkdir(parents=True)
    (folder / "study.yaml").write_text(Study.load(study()).to_yaml())
    (folder / "sweep.json").write_text(json.dumps({"name": "wrong", "state": "interrupted", "trials": 2}))
    before = sorted(p.name for p in folder.iterdir())

    message = say("tune", study())
    assert message.startswith("sweeps/wrong: ") or message.startswith(f"{folder}: ")
    assert "a sweep lies here already" in message and "--resume" in message and "--extend N" in message

    message = say("tune", study({"train.epochs": 4}), "--resume")
    assert message.startswith(f"{folder}: train.epochs: the study has changed since this sweep began (train.epochs)")
    assert "found 4" in message and "expected 3, as before" in message and "another name" in message
    message = say("tune", study({"search": {"method.align_weight": {"uniform": [0.1, 2.0]}}}), "--resume")
    assert "search.method.align_weight.uniform: " in message and "found [0.1, 2.0]" in message
    assert sorted(p.name for p in folder.iterdir() if not p.name.startswith((".", "tri", "log", "tune"))) == before


def test_damaged_sweeps(study: Callable[..., Path], place: Path, say: Say) -> None:
    folder = place / "sweeps" / "wrong"
    folder.mkdir(parents=True)
    (folder / "study.yaml").write_text(Study.load(study()).to_yaml())
    (folder / "sweep.json").write_text("{")
    for command in (["tune", study(), "--resume"], ["show", folder], ["best", "wrong"]):
        message = say(*command)
        assert message.startswith(str(folder / "sweep.json")) or message.startswith("sweeps/wrong/sweep.json"), message
        assert "not valid JSON; expected the file as mmsweep wrote it" in message
    (folder / "study.yaml").write_text("name: x\ndata: [")
    assert say("tune", study(), "--resume").startswith(f"{folder / 'study.yaml'}:2: not valid YAML")
    for command in (["show", folder], ["report", folder]):
        assert say(*command).startswith(str(folder / "sweep.json"))  # they read the summary, not the study
    (folder / "summary.json").unlink()
    for command in (["show", folder], ["report", folder]):
        assert say(*command).startswith(f"{folder / 'study.yaml'}:2: not valid YAML")


def test_nothing_to_extend(study: Callable[..., Path], place: Path, say: Say) -> None:
    assert "no sweep lies here that could be extended" in say("tune", study(), "--extend", "3")
    assert "--extend" in say("tune", study(), "--extend", "-1")


def test_inside_a_ray_job_results_must_outlive_it(
    study: Callable[..., Path], place: Path, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    message = say("tune", study())
    assert message.startswith("--out: inside a Ray job") and "found 'sweeps/wrong'" in message
    assert "expected an absolute path that outlives the job. Add: --out /path/to/sweeps" in message
    assert say("tune", study(), "--out", place / "inside").startswith("--out: inside a Ray job")
    path = study({"tracking": {"uri": None}})
    message = say("tune", path, "--out", "/elsewhere/sweeps/wrong")
    assert message.startswith(f"{line_of(path, 'uri:')}tracking.uri: inside a Ray job") and "found None" in message
    assert "Add: tracking.uri=sqlite:////elsewhere/sweeps/mlflow.db" in message


def test_a_job_without_a_lasting_folder(study: Callable[..., Path], say: Say) -> None:
    message = say("submit", study())
    assert message.startswith("--out: ") and "found None" in message and "expected an absolute path" in message
    assert "found 'here'" in say("submit", study(), "--out", "here")


def test_folders_that_hold_no_sweep(place: Path, say: Say) -> None:
    for verb in ("show", "best", "report"):
        message = say(verb, place / "nothing")
        assert message.startswith(str(place / "nothing")), message
        assert "sweep" in message


@pytest.mark.slow
def test_resources_that_the_cluster_lacks(study: Callable[..., Path], place: Path, say: Say) -> None:
    path = study({"resources.gpus": 800})
    message = say("tune", path)
    assert message.startswith(f"{line_of(path, 'gpus:')}resources.gpus: the cluster lacks the resources for 1 host; ")
    assert "with 1 CPUs and 800 GPUs each" in message and "expected at most what there is (nodes: " in message
    assert message.endswith("resources.gpus=0 trains on CPUs.")
    assert not (place / "sweeps" / "wrong" / "study.yaml").exists()


def test_a_folder_that_is_no_run(place: Path, say: Say) -> None:
    message = say("evaluate", place)
    assert message == f"{place}: no run lies here; expected a folder with study.yaml, trial.json and reports.jsonl"
    message = say("evaluate", place, "--split", "tset")
    assert message == "--split: no such split; found 'tset'; expected val or test"


@pytest.fixture()
def run_folder(place: Path, study: Callable[..., Path]) -> TrialFolder:
    """A run whose checkpoint holds one tensor that no method has."""
    folder = TrialFolder(place / "run")
    folder.create({"id": "0000", "number": 0, "params": {}, "kind": "trial", "seed": 0}, study().read_text())
    checkpoint = save_checkpoint(folder, 1, {"other.weight": torch.zeros(2)}, {}, {"epoch": 1})
    folder.append(Report(1, {METRIC: 0.5}, checkpoint))
    return folder


def test_a_checkpoint_of_another_architecture(run_folder: TrialFolder, say: Say) -> None:
    message = say("evaluate", run_folder.path)
    assert message.startswith(f"{run_folder.checkpoint(1)}: backbone.") and "another architecture" in message
    assert "expected the tensors that its study.yaml trains" in message


def test_a_checkpoint_that_is_not_whole(run_folder: TrialFolder, say: Say) -> None:
    (run_folder.checkpoint(1) / "weights.safetensors").write_bytes(b"\x00" * 5)
    message = say("evaluate", run_folder.path)
    assert message.startswith(f"{run_folder.checkpoint(1)}: the checkpoint cannot be read (")
    assert "expected a checkpoint folder" in message


def test_a_run_whose_records_are_damaged(run_folder: TrialFolder, say: Say) -> None:
    (run_folder.path / "reports.jsonl").write_text("[]\n")
    message = say("evaluate", run_folder.path)
    assert message.startswith(f"{run_folder.path / 'reports.jsonl'}:1: not a report; found '[]")
    (run_folder.path / "study.yaml").write_text("name: [")
    assert say("evaluate", run_folder.path).startswith(f"{run_folder.path / 'study.yaml'}:1: not valid YAML")
