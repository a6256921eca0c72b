"""Inputs as users give them: a working directory, a study that is right, the command line in this process."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmsweep import cli
from tests.data.files import manifest_rows, write_manifest
from tests.unit.wrong_inputs.messages import METRIC, Say, one_message


@pytest.fixture(autouse=True)
def place(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of its own; prepared data is shared by the tests of this folder."""
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
