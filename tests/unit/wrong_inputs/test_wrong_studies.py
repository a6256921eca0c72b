"""Wrong studies and command lines: one message with file, line, key, what was found, what is right; no traceback."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmsweep import cli
from tests.unit.wrong_inputs.messages import Say, line_of, one_message


def test_the_study_that_the_others_spoil_is_right(
    study: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["mmsweep", "validate", str(study())])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0 and capsys.readouterr().err == ""


WRONG_STUDIES: dict[str, tuple[dict[str, Any], str, str, list[str]]] = {
    # name: (changes, text on the line that is named, key, pieces of the message)
    "unknown key": (
        {"method.algin_weight": 0.3},
        "algin_weight",
        "method.algin_weight",
        [
            "unknown key",
            "found 'algin_weight'",
            "expected one of name, masking, align_weight",
            "Did you mean 'align_weight'?",
        ],
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
    "name that no folder can have": ({"name": "n" * 300}, "name: nnn", "name", ["expected string should match"]),
    "missing section": ({"method": ...}, "", "method", ["this key is missing", "expected a value"]),
    "manifest without its file": (
        {"data.path": ...},
        "data:",
        "data.path",
        ["this key is missing", "expected a value"],
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
        ["without any modality", "found {'missing': ['image', 'text']}", "expected at least one modality"],
    ),
    "shares that leave rows with too little": (
        {"scenarios.evaluate": [{"available": {"image": 0.3, "text": 0.3}}]},
        "available:",
        "scenarios.evaluate.0.available",
        ["too many gaps", "found {'image': 0.3, 'text': 0.3}", "gaps sum to at most 1"],
    ),
    "crop upside down": (
        {"data.augmentation": {"crop": [0.9, 0.5]}},
        "crop:",
        "data.augmentation.crop",
        ["must rise within (0, 1]", "found [0.9, 0.5]"],
    ),
    "a split rule for a dataset with splits of its own": (
        {"data": {"dataset": "openclipart", "split": {"train": 0.5}}},
        "split:",
        "data.split",
        ["unknown key", "found 'split'", "It is an option of dataset cremad, manifest"],
    ),
    "views at test without rasters": (
        {"inference": {"flip": True}},
        "flip: true",
        "inference.flip",
        ["no effect in this study", "found True", "no such key", "task is segmentation"],
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


def test_no_weights(study: Callable[..., Path], say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    path = study({"model.encoders.image.name": "no-such/encoder"})
    message = say("tune", path)
    assert message.startswith(f"{line_of(path, 'no-such/encoder')}model.encoders.image.name: no weights found; ")
    assert "found 'no-such/encoder'" in message and "expected a network" in message and "Searched: " in message
    assert "the hub's cache" in message and "Give a folder" in message


def test_no_such_shipped_encoder(study: Callable[..., Path], say: Say) -> None:
    path = study({"model.encoders.text": {"source": "mmsweep", "name": "clipart_txt"}})
    message = say("data", "prepare", path)
    assert message.startswith(f"{line_of(path, 'clipart_txt')}model.encoders.text.name: mmsweep ships no such")
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


def test_failed_trials_are_retried_only_where_a_sweep_goes_on(study: Callable[..., Path], say: Say) -> None:
    assert say("tune", study(), "--retry-failed").startswith("--retry-failed: a new sweep has no failed trials")


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


def test_as_a_process(study: Callable[..., Path], place: Path) -> None:
    path = study({"train.epochs": "many"})
    command = [sys.executable, "-m", "mmsweep", "validate", str(path)]
    home = str(Path(cli.__file__).parents[2])
    ended = subprocess.run(
        command, capture_output=True, text=True, cwd=place, env={**os.environ, "PYTHONPATH": home}, timeout=120
    )
    assert ended.returncode == 2 and ended.stdout == ""
    assert one_message(ended.stderr).startswith(f"{line_of(path, 'epochs:')}train.epochs: ")


@pytest.mark.parametrize("arguments", [["tnue"], ["tune"], ["tune", "a.yaml", "--no-such-option"], ["show", "a", "b"]])
def test_a_wrong_command_line(arguments: list[str], say: Say) -> None:
    assert say(*arguments)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": {"name": "mmlora"}, "train": {"epochs": 2}}, "leave none for the joint phase"),
        ({"method": {"name": "missing_aware_prompts", "layers": [7]}}, "no block of the network gets prompts"),
    ],
)
def test_train_refuses_a_network_that_cannot_be_trained_before_anything_starts(
    study: Callable[..., Path], place: Path, say: Say, changes: dict[str, Any], words: str
) -> None:
    assert words in say("train", study({"search": {}, **changes}))
    assert not (place / "sweeps").exists()
