"""Wrong inputs, given as users give them: one message with file, key, what was found, what is right; no traceback."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mmsweep import cli
from mmsweep.study import Study
from mmsweep.training.checkpoint import Report, TrialFolder
from tests.data.files import manifest_rows, write_manifest

Say = Callable[..., str]
METRIC = "val/mean_missing/f1_macro"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of its own; prepared data is shared by the tests of this file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MMSWEEP_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture(scope="module")
def own_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small manifest that is right."""
    folder = tmp_path_factory.mktemp("own")
    return write_manifest(folder / "rows.csv", manifest_rows(folder))


@pytest.fixture()
def values(encoder_folders: dict[str, str], own_data: Path) -> dict[str, Any]:
    """A study that is right, as plain values."""
    return {
        "name": "wrong",
        "data": {
            "dataset": "manifest",
            "path": str(own_data),
            "modalities": {
                "image": {"kind": "image", "column": "picture"},
                "text": {"kind": "text", "column": "caption"},
            },
            "target": {"task": "single_label", "column": "kind"},
            "split": {"column": "part"},
            "text": {"length": 12},
        },
        "model": {"encoders": {"image": {"name": encoder_folders["vit"]}, "text": {"name": encoder_folders["bert"]}}},
        "method": {"name": "cmpt", "align_weight": 0.2},
        "train": {"epochs": 3, "batch_size": 8},
        "scenarios": {"evaluate": ["complete", {"missing": "text"}]},
        "search": {"method.align_weight": {"uniform": [0.1, 1.0]}},
        "sweep": {"trials": 2, "objective": {"metric": METRIC}, "scheduler": {"name": "asha", "grace_epochs": 1}},
        "resources": {"hosts": 1, "cpus": 1},
    }


@pytest.fixture()
def study(place: Path, values: dict[str, Any]) -> Callable[..., Path]:
    """Writes study.yaml, some dotted keys changed; `...` takes a key out."""

    def write(changes: dict[str, Any] | None = None, name: str = "study.yaml") -> Path:
        text = json.loads(json.dumps(values))
        for key, value in (changes or {}).items():
            inner, parts = text, key.split(".")
            for part in parts[:-1]:
                inner = inner[part]
            if value is ...:
                del inner[parts[-1]]
            else:
                inner[parts[-1]] = value
        path = place / name
        path.write_text(yaml.safe_dump(text, sort_keys=False))
        return path

    return write


@pytest.fixture()
def say(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Say:
    """Runs the command line in this process; asserts one message and a failure; returns the message."""

    def run(*arguments: Any) -> str:
        monkeypatch.setattr(sys, "argv", ["mmsweep", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert end.value.code not in (0, None)
        return one_message(capsys.readouterr().err)

    return run


def one_message(stderr: str) -> str:
    assert "Traceback" not in stderr
    assert stderr.startswith("mmsweep: ") and stderr.count("mmsweep: ") == 1
    lines = stderr.rstrip("\n").split("\n")
    assert all(line.startswith("  ") or line.startswith(". ") for line in lines[1:]), stderr  # rows that are listed
    return stderr.removeprefix("mmsweep: ").rstrip("\n")


def line_of(path: Path, text: str) -> str:
    """`file:line: ` of the first line that holds `text`."""
    number = next(n for n, line in enumerate(path.read_text().splitlines(), 1) if text in line)
    return f"{path}:{number}: "


def test_the_study_that_the_others_spoil_is_right(
    study: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["mmsweep", "validate", str(study())])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0 and capsys.readouterr().err == ""


# ---- the study's own text: what `validate` says, and every other verb in the same words ------------------------------

WRONG_STUDIES: dict[str, tuple[dict[str, Any], str, str, list[str]]] = {
    # name: (changes, text on the line that is named, key, pieces of the message)
    "unknown key": (
        {"method.algin_weight": 0.3},
        "algin_weight",
        "method.algin_weight",
        ["unknown key", "found 'algin_weight'", "expected one of name, align_weight", "Did you mean 'align_weight'?"],
    ),
    "unknown section": ({"trian": {}}, "trian", "trian", ["unknown key", "found 'trian'", "Did you mean 'train'?"]),
    "wrong type": (
        {"train.epochs": "many"},
        "epochs: many",
        "train.epochs",
        ["found 'many'", "expected input should be a valid integer"],
    ),
    "negative λ": (
        {"method.align_weight": -0.5},
        "align_weight: -0.5",
        "method.align_weight",
        ["found -0.5", "greater than or equal to 0"],
    ),
    "missing section": ({"method": ...}, "", "method", ["this key is missing", "expected a value"]),
    "manifest without its file": (
        {"data.path": ...},
        "data:",
        "data",
        ["dataset manifest needs path", "expected path, modalities and target"],
    ),
    "impossible range": (
        {"search": {"method.align_weight": {"uniform": [-1.0, 1.0]}}},
        "  method.align_weight:",
        "search.method.align_weight",
        ["impossible value", "found -1.0"],
    ),
    "range upside down": (
        {"search": {"method.align_weight": {"uniform": [2.0, 1.0]}}},
        "  method.align_weight:",
        "search.method.align_weight",
        ["an empty range", "found {'uniform': [2.0, 1.0]}", "expected a lower bound below"],
    ),
    "search of an unknown key": (
        {"search": {"method.lambda": {"uniform": [0.0, 1.0]}}},
        "method.lambda",
        "search.method.lambda",
        ["unknown key"],
    ),
    "objective on test": (
        {"sweep.objective": {"metric": "test/mean_missing/f1_macro"}},
        "metric: test/",
        "sweep.objective.metric",
        ["validation only", "found 'test/mean_missing/f1_macro'", "expected a metric that starts with val/"],
    ),
    "objective on an unlisted scenario": (
        {"sweep.objective": {"metric": "val/missing-image/f1_macro"}},
        "metric: val/",
        "sweep.objective.metric",
        ["no such metric", "found 'val/missing-image/f1_macro'", "val/missing-text/f1_macro", "Did you mean"],
    ),
    "ASHA inside the warm-up": (
        {"train.schedule": {"warmup_epochs": 2}},
        "grace_epochs",
        "sweep.scheduler.grace_epochs",
        ["inside the warm-up", "found 1", "expected more than train.schedule.warmup_epochs (2)"],
    ),
    "grid with a range": (
        {"sweep.sampler": {"name": "grid"}},
        "  method.align_weight:",
        "search.method.align_weight",
        ["a grid needs choices", "found 'uniform'", "expected {choice: [...]}"],
    ),
    "unknown method": (
        {"method.name": "cmtp"},
        "name: cmtp",
        "method.name",
        ["unknown method", "found 'cmtp'", "expected one of", "Did you mean 'cmpt'?"],
    ),
    "search over an unknown method": (
        {"search": {"method.name": {"choice": ["cmpt", "plian"]}}},
        "  method.name:",
        "search.method.name",
        ["unknown method", "found 'plian'", "Did you mean 'plain'?"],
    ),
    "encoder for a modality that the dataset lacks": (
        {"model.encoders": {"image": {"name": "a"}, "txt": {"name": "b"}}},
        "txt:",
        "model.encoders.txt",
        ["found 'txt'", "expected one of image, text", "Did you mean 'text'?"],
    ),
    "modality without an encoder": (
        {"model.encoders": {"image": {"name": "a"}}},
        "encoders:",
        "model.encoders",
        ["a modality without an encoder", "found ['image']", "expected one for text too"],
    ),
    "scenario of an unknown modality": (
        {"scenarios.evaluate": ["complete", {"missing": "txet"}]},
        "missing: txet",
        "scenarios.evaluate.1",
        ["unknown modality", "found 'txet'", "expected one of image, text", "Did you mean 'text'?"],
    ),
    "training scenario of an unknown modality": (
        {"scenarios.train": "missing-audio"},
        "train: missing-audio",
        "scenarios.train",
        ["unknown modality", "found 'audio'", "expected one of image, text"],
    ),
    "scenario of no modality": (
        {"scenarios.evaluate": [{"only": 5}]},
        "only: 5",
        "scenarios.evaluate.0",
        ["unknown modality", "found 5"],
    ),
    "shares that leave a sample empty": (
        {"scenarios.evaluate": [{"missing": ["image", "text"]}]},
        "missing:",
        "scenarios.evaluate.0",
        ["no modality at all", "found {'missing': ['image', 'text']}", "expected one left at least"],
    ),
    "shares that leave rows with too little": (
        {"scenarios.evaluate": [{"available": {"image": 0.3, "text": 0.3}}]},
        "available:",
        "scenarios.evaluate.0.available",
        ["too little", "found {'image': 0.3, 'text': 0.3}", "gaps sum to at most 1"],
    ),
    "crop upside down": (
        {"data.augmentation": {"crop": [0.9, 0.5]}},
        "crop:",
        "data.augmentation.crop",
        ["must rise within (0, 1]", "found (0.9, 0.5)"],
    ),
    "unknown dataset": (
        {"data": {"dataset": "openclipar"}},
        "dataset: openclipar",
        "data.dataset",
        ["unknown dataset", "found 'openclipar'", "expected one of", "Did you mean 'openclipart'?"],
    ),
    "unset variable": (
        {"tracking": {"uri": "sqlite:///${MMSWEEP_NO_SUCH_VARIABLE}/mlflow.db"}},
        "MMSWEEP_NO_SUCH_VARIABLE",
        "tracking.uri",
        ["an environment variable is not set", "found 'sqlite:///${MMSWEEP_NO_SUCH", "export MMSWEEP_NO_SUCH_VARIABLE"],
    ),
    "missing manifest": (
        {"data.path": "absent/rows.csv", "data.target.classes": ...},
        "path: absent",
        "data.path",
        ["the manifest does not exist", "absent/rows.csv", "expected a file"],
    ),
}


@pytest.mark.parametrize("name", WRONG_STUDIES)
def test_wrong_studies(name: str, study: Callable[..., Path], values: dict[str, Any], say: Say) -> None:
    changes, text, key, pieces = WRONG_STUDIES[name]
    values["data"]["target"].setdefault("classes", ["red", "green", "blue"])
    path = study(changes)
    message = say("validate", path)
    assert message.startswith(f"{line_of(path, text) if text else f'{path}: '}{key}: "), message
    for piece in pieces:
        assert piece in message, message
    assert say("tune", path, "--dry-run") == message  # the same words from every verb
    assert say("train", path) == message


def test_several_wrong_files_give_a_message_each(
    study: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad, worse = study(name="a.yaml"), study({"train.epochs": 0}, "b.yaml"), study({"trian": {}}, "c.yaml")
    monkeypatch.setattr(sys, "argv", ["mmsweep", "validate", *map(str, (good, bad, worse))])
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = capsys.readouterr()
    assert end.value.code == 2 and str(good) in said.out
    assert [line.split(":")[1].strip() for line in said.err.splitlines()] == [str(bad), str(worse)]


def test_a_missing_study_names_its_neighbours(study: Callable[..., Path], place: Path, say: Say) -> None:
    study(name="other.yaml")
    message = say("tune", place / "sutdy.yaml")
    assert message == f"{place / 'sutdy.yaml'}: no such study file; expected a YAML file. There: other.yaml."


@pytest.mark.parametrize(("text", "line"), [("name: x\ndata: {dataset: [\n", 3), ("a: 1\nb: 2\n c: 3\n", 3)])
def test_broken_yaml_is_named_by_its_line(text: str, line: int, place: Path, say: Say) -> None:
    (place / "broken.yaml").write_text(text)
    message = say("validate", place / "broken.yaml")
    assert message.startswith(f"{place / 'broken.yaml'}:{line}: not valid YAML")


def test_a_key_that_stands_twice(study: Callable[..., Path], say: Say) -> None:
    path = study()
    path.write_text(path.read_text() + "name: again\n")
    last = len(path.read_text().splitlines())
    message = say("validate", path)
    assert message == f"{path}:{last}: name: this key stands twice; found 'the first on line 1'; expected once"


@pytest.mark.parametrize("text", ["", "just words", "[1, 2]"])
def test_yaml_that_is_no_study(text: str, place: Path, say: Say) -> None:
    (place / "list.yaml").write_text(text)
    message = say("validate", place / "list.yaml")
    assert "not a study" in message and "expected a mapping with name, data, model, method" in message


def test_a_wrong_override_is_placed_on_the_command_line(study: Callable[..., Path], say: Say) -> None:
    message = say("tune", study(), "method.align_weight=-1", "--dry-run")
    assert message.startswith("command line: method.align_weight: ") and "found -1" in message
    message = say("tune", study(), "method.name=cmtp", "--dry-run")
    assert message.startswith("command line: method.name: unknown method; found 'cmtp'")
    assert "expected key=value" in say("tune", study(), "epochs", "--dry-run")


# ---- what the study names --------------------------------------------------------------------------------------------


def test_no_weights(study: Callable[..., Path], say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    path = study({"model.encoders.image.name": "no-such/encoder"})
    message = say("tune", path)
    assert message.startswith(f"{line_of(path, 'no-such/encoder')}model.encoders.image.name: no weights found; ")
    assert "found 'no-such/encoder'" in message and "expected a network" in message and "Looked for: " in message
    assert "the hub's cache" in message and "Give a folder" in message


def test_no_such_shipped_encoder(study: Callable[..., Path], say: Say) -> None:
    path = study({"model.encoders.text": {"source": "mmsweep", "name": "clipart_txt"}})
    message = say("data", "prepare", path)
    assert message.startswith(f"{line_of(path, 'clipart_txt')}model.encoders.text.name: no such encoder ships")
    assert "found 'clipart_txt'" in message and "expected one of " in message


@pytest.mark.parametrize(
    ("changes", "key", "found", "expected"),
    [
        ({"data.text.length": 99}, "data.text.length", "99", "at most 16 tokens"),
        ({"model.encoders.text.layers": 3}, "model.encoders.text.layers", "3", "at most 2"),
        ({"model.encoders.image.pool": "pooler"}, "model.encoders.image.pool", "'pooler'", "cls or mean"),
    ],
)
def test_what_an_encoder_cannot_do(
    changes: dict[str, Any], key: str, found: str, expected: str, study: Callable[..., Path], say: Say
) -> None:
    path = study(changes)
    last = key.rpartition(".")[2]
    message = say("tune", path, "--dry-run")
    assert message.startswith(f"{line_of(path, f'{last}: {found.strip(chr(39))}')}{key}: "), message
    assert message.endswith(f"; found {found}; expected {expected}")


def test_a_task_that_the_dataset_lacks(study: Callable[..., Path], say: Say) -> None:
    path = study({"data": {"dataset": "openclipart", "task": "nope"}})
    message = say("validate", path)
    assert message.startswith(f"{line_of(path, 'task: nope')}data.task: ")
    assert "found 'nope'; expected single_label or multi_label" in message


def test_a_cut_off_encoder(study: Callable[..., Path], place: Path, encoder_folders: dict[str, str], say: Say) -> None:
    shutil.copytree(encoder_folders["vit"], place / "cut")
    weights = place / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    message = say("data", "prepare", study({"model.encoders.image.name": str(place / "cut")}))
    assert message.startswith(f"{weights}: the encoder's weights cannot be read (")
    (place / "cut" / "config.json").write_text("{")
    message = say("data", "prepare", study({"model.encoders.image.name": str(place / "cut")}))
    assert message.startswith(str(place / "cut")) and "config" in message


def test_a_timm_model_that_does_not_exist(study: Callable[..., Path], say: Say) -> None:
    path = study({"model.encoders.image": {"source": "timm", "name": "vit_nothing"}})
    message = say("data", "prepare", path)
    assert message.startswith(f"{line_of(path, 'vit_nothing')}model.encoders.image.name: ")
    assert "found 'vit_nothing'" in message and "expected one of timm.list_models" in message


def test_bad_rows_are_listed_with_their_lines(place: Path, study: Callable[..., Path], say: Say) -> None:
    rows = manifest_rows(place)
    pictures = [place / row["picture"] for row in rows if row["picture"]]
    corrupt = next(i for i, row in enumerate(rows) if row["picture"])
    pictures[0].write_bytes(b"this is no picture")
    absent = [i for i, row in enumerate(rows) if row["picture"]][5]
    (place / rows[absent]["picture"]).unlink()
    rows[3]["kind"] = "gren"
    write_manifest(place / "rows.csv", rows)
    path = study({"data.path": "rows.csv", "data.target.classes": ["red", "green", "blue"]})
    message = say("data", "prepare", path)
    assert message.startswith(f"{path}: 3 rows cannot be used:\n")
    listed = {int(found[1]): found[2] for found in re.finditer(r"\n  rows\.csv:(\d+): (.*)", message)}
    assert sorted(listed) == sorted([corrupt + 2, 3 + 2, absent + 2])
    assert "image" in listed[corrupt + 2] and "image" in listed[absent + 2]
    assert "kind: " in listed[5] and "found 'gren'" in listed[5] and "expected one of red, green, blue" in listed[5]
    assert "Did you mean 'green'?" in listed[5] and "data.on_bad=skip" in message


def test_a_check_that_finds_missing_files_fails(
    place: Path, study: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = manifest_rows(place)
    rows[0]["picture"] = "absent.png"
    write_manifest(place / "rows.csv", rows)
    monkeypatch.setattr(sys, "argv", ["mmsweep", "data", "check", str(study({"data.path": "rows.csv"}))])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 1 and "files do not exist: rows.csv:2: " in capsys.readouterr().out


def test_failed_trials_are_retried_only_where_a_sweep_goes_on(study: Callable[..., Path], say: Say) -> None:
    assert say("tune", study(), "--retry-failed").startswith("--retry-failed: a new sweep has no failed trials")


def test_a_column_that_the_manifest_lacks(study: Callable[..., Path], own_data: Path, say: Say) -> None:
    path = study({"data.modalities.text.column": "captoin"})
    message = say("data", "check", path)
    assert message.startswith(f"{line_of(path, 'captoin')}data.modalities.text.column: {own_data} has no such column; ")
    assert "found 'captoin'" in message and "expected one of picture, caption" in message and "'caption'?" in message


# ---- folders, servers, clusters --------------------------------------------------------------------------------------


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


def test_an_empty_search(study: Callable[..., Path], say: Say) -> None:
    path = study({"search": {}})
    message = say("tune", path)
    assert message.startswith(f"{line_of(path, 'search:')}search: nothing to search; found {{}}; expected at least one")
    assert "`mmsweep train`" in message


def test_a_starting_point_outside_of_the_space(study: Callable[..., Path], say: Say) -> None:
    path = study({"method.align_weight": 7.0})
    message = say("tune", path)
    assert message.startswith(f"{line_of(path, '  method.align_weight:')}search.method.align_weight: ")
    assert "found 7.0" in message and "expected a value in [0.1, 1]" in message


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
    for command in (["tune", study(), "--resume"], ["show", folder], ["report", folder]):
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
    path = study({"resources.gpus": 8})
    message = say("tune", path)
    assert message.startswith(f"{line_of(path, 'resources:')}resources: the cluster lacks the resources for 1 host; ")
    assert "with 1 CPUs and 8 GPUs each" in message and "expected at most what there is (nodes: " in message
    assert not (place / "sweeps" / "wrong" / "study.yaml").exists()


# ---- runs ------------------------------------------------------------------------------------------------------------


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
    checkpoint = folder.save_checkpoint(1, {"other.weight": torch.zeros(2)}, {}, {"epoch": 1})
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


# ---- the program itself ----------------------------------------------------------------------------------------------


def test_as_a_process(study: Callable[..., Path], place: Path) -> None:
    path = study({"train.epochs": "many"})
    command = [sys.executable, "-m", "mmsweep", "validate", str(path)]
    home = str(Path(cli.__file__).parents[1])
    ended = subprocess.run(
        command, capture_output=True, text=True, cwd=place, env={**os.environ, "PYTHONPATH": home}, timeout=120
    )
    assert ended.returncode == 2 and ended.stdout == ""
    assert one_message(ended.stderr).startswith(f"{line_of(path, 'epochs:')}train.epochs: ")


@pytest.mark.parametrize("arguments", [["tnue"], ["tune"], ["tune", "a.yaml", "--no-such-option"], ["show", "a", "b"]])
def test_a_wrong_command_line(arguments: list[str], say: Say) -> None:
    assert say(*arguments)
