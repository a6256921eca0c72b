"""Whole sweeps on a real Ray, Optuna and MLflow; only the epochs sleep (`sleeping.py`)."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
import ray
from mlflow import MlflowClient

from mmsweep.errors import UserError
from mmsweep.record.sweep import SweepRecord
from mmsweep.record.trial import TrialFolder
from mmsweep.study import Study
from mmsweep.sweep import cluster
from mmsweep.sweep.hosts import PLAIN
from mmsweep.sweep.start import run_sweep, train_one

sys.path.insert(0, str(Path(__file__).parent))
from sleeping import held, study

HERE = Path(__file__).parent
WARM = "sleeping:SleepingWarm"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    """One Ray for the tests of this file that kill nothing."""
    os.environ["PYTHONPATH"] = str(HERE)
    os.environ["SLEEPING_EPOCH"] = "0.05"
    with cluster.connect():
        yield
    del os.environ["SLEEPING_EPOCH"]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def searched(search: dict[str, Any], **values: Any) -> Study:
    return Study.parse({**study(**values).resolved(), "search": search})


def trained(folder: Path) -> dict[str, list[int]]:
    """Epochs that were really trained, by trial."""
    logs = sorted(folder.glob("trials/*/trained.log")) + sorted(folder.glob("final/*/*/trained.log"))
    return {str(p.parent.relative_to(folder)): [int(x.split()[0]) for x in p.read_text().splitlines()] for p in logs}


def told(folder: Path, name: str) -> Counter[str]:
    optuna_study = optuna.load_study(study_name=name, storage=f"sqlite:///{folder / 'optuna.db'}")
    return Counter(trial.state.name for trial in optuna_study.get_trials())


def mlflow_runs(place: Path, folder: Path) -> dict[str, str]:
    """Trial -> status of its MLflow run; fails where a trial has two."""
    client = MlflowClient(f"sqlite:///{place / 'mlflow.db'}")
    parent = json.loads((folder / "sweep.json").read_text())["mlflow"]["run_id"]
    experiments = [e.experiment_id for e in client.search_experiments()]
    runs = [r for r in client.search_runs(experiments) if r.data.tags.get("mlflow.parentRunId") == parent]
    names = [r.data.tags["mmsweep.trial_id"] for r in runs]
    assert len(set(names)) == len(names)
    return {r.data.tags["mmsweep.trial_id"]: r.info.status for r in runs}


def test_asha_stops_some_the_rest_finish_and_the_winner_is_trained_anew(ray_here: None, place: Path) -> None:
    folder = place / "s"
    outcome = run_sweep(study("one"), folder, live=False, warm=WARM)
    assert outcome.state == "finished"
    record = SweepRecord.load(folder)
    states = Counter(trial.state for trial in record.trials)
    assert len(record.trials) == 6 and states["stopped"] >= 1 and states["finished"] >= 1
    assert set(states) == {"stopped", "finished"}
    assert told(folder, "one") == Counter(COMPLETE=states["finished"], PRUNED=states["stopped"])
    for trial in record.trials:  # a stop ends the trial there and then: no epoch was trained for nothing
        assert len(trained(folder)[f"trials/{trial.id}"]) == len(trial.curve) == (4 if trial.state == "finished" else 1)
    assert record.best and record.best.state == "finished"
    runs = mlflow_runs(place, folder)
    assert {runs[f"final/best/seed-{seed}"] for seed in (101, 102, 103)} == {"FINISHED"} and len(runs) == 9
    assert Counter(runs.values()) == Counter(FINISHED=states["finished"] + 3, KILLED=states["stopped"])

    before = trained(folder)
    with pytest.raises(UserError, match="a sweep lies here already"):
        run_sweep(study("one"), folder, live=False, warm=WARM)
    with pytest.raises(UserError, match=r"has changed.*train.epochs"):
        run_sweep(study("one", train__epochs=5), folder, resume=True, live=False, warm=WARM)
    run_sweep(study("one"), folder, extend=3, live=False, warm=WARM)
    after = trained(folder)
    assert {name: after[name] for name in before if name.startswith("trials")} == {
        name: epochs for name, epochs in before.items() if name.startswith("trials")
    }
    assert len(SweepRecord.load(folder).trials) == 9 and sum(told(folder, "one").values()) == 9
    assert len(mlflow_runs(place, folder)) >= 12


def test_failures_are_the_trials_own_and_other_backbones_are_served(ray_here: None, place: Path) -> None:
    folder = place / "s"
    asked = searched(
        {
            "method.align_weight": {"choice": [0.3, 8.5, 9.5]},  # good, not a number, cannot be trained
            "model.encoders.image.name": {"choice": ["vit", "other"]},
        },
        name="two", sweep__sampler__name="grid", sweep__scheduler__name="none", sweep__start_from=[],
        sweep__final={"seeds": 1, "per": "model.encoders.image.name"}, train__epochs=2,
    )  # fmt: skip
    assert run_sweep(asked, folder, live=False, warm=WARM).state == "finished"
    record = SweepRecord.load(folder)
    errors = {t.params["method.align_weight"]: t.error for t in record.trials if t.state == "failed"}
    assert "cannot be trained" in str(errors[9.5]) and "not a number" in str(errors[8.5])
    assert told(folder, "two") == Counter(COMPLETE=2, FAIL=4)
    assert sorted(group.name for group in record.groups) == ["other", "vit"]
    runs = mlflow_runs(place, folder)
    assert Counter(runs.values()) == Counter(FINISHED=4, FAILED=4)

    again = asked.with_values({"resources.hosts": "auto"})  # where it runs may change
    assert run_sweep(again, folder, resume=True, retry_failed=True, live=False, warm=WARM).state == "finished"
    assert told(folder, "two") == Counter(COMPLETE=2, FAIL=8)  # Optuna never reopens a trial: those are new ones
    assert Counter(mlflow_runs(place, folder).values()) == Counter(FINISHED=4, FAILED=4)


def test_a_small_space_ends_the_sweep_once_all_of_it_was_tried(ray_here: None, place: Path) -> None:
    """Three configurations and nine trials: what Optuna suggests again costs nothing, and all counts agree."""
    folder = place / "s"
    asked = searched(
        {"method.align_weight": {"choice": [0.2, 0.4, 0.6]}},
        name="small", sweep__trials=9, sweep__scheduler__name="none", sweep__final={"seeds": 1}, train__epochs=1,
    )  # fmt: skip
    assert run_sweep(asked, folder, live=False, warm=WARM).state == "finished"
    record = SweepRecord.load(folder)
    assert sorted(trial.params["method.align_weight"] for trial in record.trials) == [0.2, 0.4, 0.6]
    assert record.planned == 3 and len(mlflow_runs(place, folder)) == 4
    before = trained(folder)
    assert run_sweep(asked, folder, resume=True, live=False, warm=WARM).state == "finished"
    assert run_sweep(asked, folder, extend=2, live=False, warm=WARM).state == "finished"
    assert trained(folder) == before and SweepRecord.load(folder).planned == 3


def test_one_configuration_is_trained_without_a_search_by_a_plain_trainer(
    ray_here: None, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fall-back from names of Ray Train that are not public; the other tests have what this Ray allows."""
    monkeypatch.setenv(PLAIN, "1")
    outcome = train_one(study("three", train__epochs=2), place / "t", live=False, warm=WARM)
    assert outcome.state == "finished" and outcome.record.groups[0].name == "best"
    assert trained(place / "t") == {"final/best/seed-0": [1, 2]}


def test_resources_that_the_cluster_lacks_are_refused(ray_here: None, place: Path) -> None:
    with pytest.raises(UserError, match=r"lacks the resources.*nodes: "):
        run_sweep(study("four", resources__cpus=999), place / "s", live=False, warm=WARM)


def processes(title: str) -> list[psutil.Process]:
    """Of our own Ray, by the title that Ray gives them."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # one that has just ended
            if title in " ".join(process.cmdline()):
                found.append(process)
    return found


def kill_one(title: str) -> None:
    processes(title)[0].kill()


def wait_for_epoch(sweep: threading.Thread, folder: Path, epoch: int, trials: int) -> None:
    """Until so many trials have reported it."""
    until = time.monotonic() + 200
    while sum(len(TrialFolder(path).reports()) >= epoch for path in folder.glob("trials/*")) < trials:
        assert time.monotonic() < until and sweep.is_alive()
        time.sleep(0.05)


def test_a_killed_rank_and_a_killed_supervisor_cost_no_epoch(ray_here: None, place: Path) -> None:
    folder, outcomes = place / "s", []

    def sweep() -> None:
        asked = study(
            "shot",
            resources__hosts=2,
            resources__slots=2,
            sweep__scheduler__name="none",
            sweep__trials=4,
            train__epochs=8,
            sweep__final=None,
        )
        outcomes.append(run_sweep(asked, folder, live=False, warm=WARM).state)

    thread = threading.Thread(target=sweep, daemon=True)
    with held(place) as hold:
        thread.start()
        wait_for_epoch(thread, folder, 1, trials=4)
        assert len(processes("RayTrainWorker")) == 2
        assert bool(processes("SynchronizationActor")) == (PLAIN in os.environ)
        kill_one("RayTrainWorker")
        hold(4)  # which all reach only if its host starts again
        wait_for_epoch(thread, folder, 4, trials=4)
        ranks = {process.pid for process in processes("RayTrainWorker")}
        kill_one("Supervisor")
        until = time.monotonic() + 60
        while ranks <= {process.pid for process in processes("RayTrainWorker")}:  # its rank still lives, and may die
            assert time.monotonic() < until  # between a line of trained.log and the report if it were let go on now
            time.sleep(0.05)
    thread.join(300)
    assert outcomes == ["finished"]
    assert trained(folder) == {f"trials/000{n}": list(range(1, 9)) for n in range(4)}


DRIVER = """
import contextlib, sys, time
from pathlib import Path
import ray
from sleeping import study
from mmsweep.sweep import cluster
from mmsweep.sweep.start import run_sweep

with cluster.connect() if "outlived" in sys.argv else contextlib.nullcontext():
    out = run_sweep(study("killed", resources__workers=2), Path(sys.argv[1]), resume="resume" in sys.argv, live=False,
                    warm="sleeping:SleepingWarm")
    until = time.monotonic() + 30
    while ray.is_initialized() and ray.available_resources().get("CPU", 0) != ray.cluster_resources()["CPU"]:
        assert time.monotonic() < until, f"free: {ray.available_resources()}"
        time.sleep(0.1)
print(out.state)
"""


def drive(folder: Path, *arguments: str, epoch: str = "0.6") -> subprocess.Popen[str]:
    path = f"{HERE}{os.pathsep}{HERE.parents[1]}"
    environment = {**os.environ, "PYTHONPATH": path, "SLEEPING_EPOCH": epoch}
    command = [sys.executable, "-c", DRIVER, str(folder), *arguments]
    return subprocess.Popen(
        command, env=environment, cwd=folder.parent, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def wait_for(driver: subprocess.Popen[str], folder: Path, pattern: str, number: int) -> None:
    until = time.monotonic() + 400
    while len(list(folder.glob(pattern))) < number:
        assert driver.poll() is None and time.monotonic() < until, driver.communicate()[0]
        time.sleep(0.1)


def test_a_killed_and_then_interrupted_sweep_goes_on_where_it_was(place: Path) -> None:
    """Two gloo ranks; SIGKILL after the first trial is done, then Ctrl-C in mid-trial, then to the end."""
    ray.shutdown()
    folder = place / "s"
    driver = drive(folder)
    wait_for(driver, folder, "trials/*/done.json", 1)
    driver.send_signal(signal.SIGKILL)
    driver.communicate()

    driver = drive(folder, "resume")
    wait_for(driver, folder, "trials/*/done.json", 3)
    driver.send_signal(signal.SIGINT)
    text = driver.communicate(timeout=200)[0]
    assert text.strip().endswith("interrupted") and "Traceback" not in text
    assert json.loads((folder / "sweep.json").read_text())["state"] == "interrupted"

    driver = drive(folder, "resume")
    text = driver.communicate(timeout=200)[0]
    assert text.strip().endswith("finished"), text
    record = SweepRecord.load(folder)
    assert {trial.state for trial in record.trials} == {"finished", "stopped"} and len(record.trials) == 6
    for name, epochs in trained(folder).items():
        assert epochs == list(range(1, len(epochs) + 1)), f"{name} trained an epoch again: {epochs}"
    states = Counter(trial.state for trial in record.trials)
    assert told(folder, "killed") == Counter(COMPLETE=states["finished"], PRUNED=states["stopped"])
    assert set(mlflow_runs(place, folder).values()) == {"FINISHED", "KILLED"}


def test_ctrl_c_in_an_epoch_of_minutes_still_ends_in_good_order(place: Path) -> None:
    """The host is left behind in its epoch: that must not end the driver before it has reported, nor hold a Ray's CPUs
    that goes on."""
    ray.shutdown()
    folder = place / "s"
    driver = drive(folder, "outlived", epoch="240")
    wait_for(driver, folder, "trials/*/.lock", 1)
    driver.send_signal(signal.SIGINT)
    text = driver.communicate(timeout=100)[0]
    assert driver.returncode == 0 and text.strip().endswith("interrupted"), text
    assert json.loads((folder / "sweep.json").read_text())["state"] == "interrupted"
    assert "already been shutdown" not in text and "Traceback" not in (folder / "logs" / "driver.log").read_text()
