"""A sweep on a file system that really fills up, and whose files are damaged before it goes on."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from mmsweep.record.trial import TrialFolder
from mmsweep.study import Study
from mmsweep.study.packs import Job
from mmsweep.study.space import starting_points
from mmsweep.sweep.search import TrialSearch, open_optuna
from mmsweep.training.world import World

sys.path.insert(0, str(Path(__file__).parent))
from sleeping import SleepingWarm, study

HERE = Path(__file__).parent
pytestmark = pytest.mark.slow

ASKED: dict[str, Any] = {
    "sweep__trials": 3,
    "sweep__scheduler__name": "none",
    "sweep__final": {"seeds": 1},
    "resources__slots": 1,
}
DRIVER = f"""
import sys
from pathlib import Path
from sleeping import study
from mmsweep.sweep.start import run_sweep

asked = study("faulty", **{ASKED!r})
out = run_sweep(asked, Path(sys.argv[1]), resume="resume" in sys.argv, live=False, warm="sleeping:SleepingWarm")
print(out.state, out.reason)
"""


def drive(folder: Path, place: Path, *arguments: str) -> subprocess.Popen[str]:
    path = f"{HERE}{os.pathsep}{HERE.parents[1]}"
    environment = {**os.environ, "PYTHONPATH": path, "SLEEPING_EPOCH": "0.5"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    command = [sys.executable, "-c", DRIVER, str(folder), *arguments]
    return subprocess.Popen(
        command, env=environment, cwd=place, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


@pytest.fixture()
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MB."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", path], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("only root may mount a file system")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def fill(path: Path) -> None:
    with contextlib.suppress(OSError), open(path, "wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)


def metrics(folder: Path) -> dict[str, list[dict[str, float]]]:
    paths = [*folder.glob("trials/*"), *folder.glob("final/*/*")]
    return {str(path.relative_to(folder)): [r.metrics for r in TrialFolder(path).reports()] for path in paths}


def undisturbed(folder: Path, place: Path) -> dict[str, list[dict[str, float]]]:
    """The metrics of a sweep that nothing happened to: the same search and the same training, without Ray."""
    asked = study("faulty", **ASKED)
    told = open_optuna(place / "optuna.db", asked.name, asked.sweep.objectives)
    for point in starting_points(asked):
        told.enqueue_trial(point)
    search = TrialSearch(asked, told, place / "trials", [], lambda *_: None, lambda *_: None, total=3)
    for number in range(3):
        suggested = search.suggest(str(number))
        assert suggested and suggested["params"] == TrialFolder(folder / "trials" / f"{number:04d}").trial()["params"]
    for path in [*folder.glob("trials/*"), *folder.glob("final/*/*")]:
        own = Study.load(path / "study.yaml")
        same = TrialFolder(place / path.relative_to(folder))
        same.create(TrialFolder(path).trial(), own.to_yaml())
        job = Job("0", "trial", str(same.path), own)
        SleepingWarm("cpu", World()).run_pack([job], lambda told: [False] * len(told), tuple, lambda *_: None)
    return metrics(place)


def test_a_full_disk_interrupts_and_damaged_files_are_made_good(disk: Path, tmp_path: Path) -> None:
    folder, whole = disk / "s", tmp_path / "whole"
    driver = drive(folder, tmp_path)
    until = time.monotonic() + 400
    while not (folder / "trials" / "0001" / "checkpoints" / "epoch-0002").exists():
        assert driver.poll() is None and time.monotonic() < until, driver.communicate()[0]
        time.sleep(0.05)
    fill(disk / "ballast")
    text = driver.communicate(timeout=300)[0]
    assert "No space left on device" in text and text.strip().splitlines()[-1].startswith("interrupted "), text
    assert "Traceback" not in text
    assert not (folder / "trials" / "0001" / "done.json").exists()

    (disk / "ballast").unlink()
    (folder / "optuna.db").unlink()
    last = TrialFolder(folder / "trials" / "0001").last_checkpoint()
    assert last is not None
    (last / "weights.safetensors").write_bytes(b"")
    text = drive(folder, tmp_path, "resume").communicate(timeout=400)[0]
    assert text.strip().endswith("finished None"), text
    assert "optuna.db was missing" in text and "weights.safetensors differs from its checksum" in text

    whole.mkdir()
    assert metrics(folder) == undisturbed(folder, whole) and len(metrics(folder)) == 4
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    parent = json.loads((folder / "sweep.json").read_text())["mlflow"]["run_id"]
    experiments = [e.experiment_id for e in client.search_experiments()]
    runs = [r for r in client.search_runs(experiments) if r.data.tags.get("mlflow.parentRunId") == parent]
    assert sorted(r.data.tags["mmsweep.trial_id"] for r in runs) == ["0000", "0001", "0002", "final/best/seed-101"]
    assert {r.info.status for r in (*runs, client.get_run(parent))} == {"FINISHED"}
    left = [p for p in folder.rglob(".*") if p.name not in (".lock",) and "tune" not in p.parts]
    assert left == []
