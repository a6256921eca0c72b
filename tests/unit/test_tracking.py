"""The MLflow writer against real SQLite stores, a real server, and stores that fail."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from mmsweep.errors import UserError
from mmsweep.tracking.address import check_store, resolve_uri, shown
from mmsweep.tracking.environment import environment_tags
from mmsweep.tracking.naming import metric_name
from mmsweep.tracking.tracker import Tracker

OBJECTIVE = "val/mean_missing/f1_macro"
STUDY = f"name: demo\nsweep: {{objective: {{metric: {OBJECTIVE}, mode: max}}}}\n"
METRICS = {OBJECTIVE: 0.5, "val/complete/f1_macro": 0.7, "train/loss": 1.25}


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Making MLflow's tables takes seconds; tests copy these."""
    folder = tmp_path_factory.mktemp("empty")
    Tracker(f"sqlite:///{folder}/mlflow.db", "empty", folder)
    return folder / "mlflow.db"


@pytest.fixture(autouse=True)
def _tables(empty_database: Path, tmp_path: Path) -> None:
    shutil.copy(empty_database, tmp_path / "mlflow.db")


def tracker(folder: Path) -> Tracker:
    return Tracker(f"sqlite:///{folder}/mlflow.db", "demo", folder)


def started(folder: Path) -> Tracker:
    writer = tracker(folder)
    writer.start_sweep("demo", folder / "sweeps/demo", STUDY, {"mmsweep.split_hash": "abc"})
    return writer


def children(writer: Tracker) -> dict[str, Run]:
    client = MlflowClient(tracking_uri=writer.uri)
    experiment = client.get_experiment_by_name(writer.experiment)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.`mlflow.parentRunId` != ''")
    return {run.data.tags["mmsweep.trial_id"]: run for run in runs}


def history(writer: Tracker, run: Run, metric: str) -> list[tuple[int, float]]:
    client = MlflowClient(tracking_uri=writer.uri)
    return [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, metric)]


def test_one_sweep_as_mlflow_shows_it(tmp_path: Path) -> None:
    writer = tracker(tmp_path)
    tags = {"dataset": "openclipart", "dataset_fingerprint": "f" * 64, "mmsweep.scenarios": "t1"}
    parent_id = writer.start_sweep("demo", tmp_path / "sweeps/demo", STUDY, {**tags, **environment_tags()})
    assert writer.start_trial("0000", {"model.lora.rank": 4, "train.optimizer.lr": 1e-3}, {}, "name: demo\n")
    for epoch, score in ((1, 0.5), (2, 0.6), (3, 0.4)):
        writer.log_epoch("0000", epoch, {**METRICS, OBJECTIVE: score})
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"weights")
    writer.end_trial("0000", "finished", [weights])
    writer.start_trial("0001", {"model.lora.rank": 8, "train.optimizer.lr": 1e-2}, {}, "name: demo\n")
    writer.log_epoch("0001", 1, METRICS)
    writer.end_trial("0001", "stopped")
    writer.start_trial("0002", {"model.lora.rank": 1, "train.optimizer.lr": 1.0}, {}, "name: demo\n")
    writer.end_trial("0002", "failed")
    writer.start_trial("final/best/seed-101", {}, {}, "name: demo\n")
    writer.log_epoch("final/best/seed-101", 1, METRICS)
    writer.log_test("final/best/seed-101", {"test/mean_missing/f1_macro": 0.55})
    writer.end_trial("final/best/seed-101", "finished")
    writer.log_artifact(weights, "report")
    writer.end_sweep("finished")

    assert writer.warnings == []
    runs = children(writer)
    assert {key: run.info.status for key, run in runs.items()} == {
        "0000": "FINISHED",
        "0001": "KILLED",
        "0002": "FAILED",
        "final/best/seed-101": "FINISHED",
    }
    assert runs["0001"].data.tags["mmsweep.state"] == "stopped"
    assert runs["0000"].data.params == {"model.lora.rank": "4", "train.optimizer.lr": "0.001"}
    assert history(writer, runs["0000"], OBJECTIVE) == [(1, 0.5), (2, 0.6), (3, 0.4)]
    assert runs["0000"].data.metrics["objective"] == 0.6  # best so far, while the last value of the metric is .4
    assert [key for key, run in runs.items() if any(m.startswith("test/") for m in run.data.metrics)] == [
        "final/best/seed-101"
    ]
    client = MlflowClient(tracking_uri=writer.uri)
    assert {item.path for item in client.list_artifacts(runs["0000"].info.run_id)} == {
        "study.yaml",
        "weights.safetensors",
    }
    parent = client.get_run(parent_id)
    assert parent.info.status == "FINISHED"
    assert parent.inputs.dataset_inputs[0].dataset.name == "openclipart"
    for run in (parent, runs["0000"]):  # every run stands alone
        assert run.data.tags["mmsweep.torch"] and run.data.tags["mmsweep.dataset_fingerprint"] == "f" * 64
    notes = json.loads((tmp_path / "sweeps/demo/tracking.json").read_text())
    assert notes["runs"]["0000"] == runs["0000"].info.run_id and notes["run_id"] == parent_id
    note = parent.data.tags["mlflow.note.content"]
    assert "| final | state | test/mean_missing/f1_macro |" in note
    assert note.index("[0000]") < note.index("[0001]")  # .6 before .5
    assert (Path(parent.info.artifact_uri.removeprefix("file://")) / "report/weights.safetensors").read_bytes()


def test_artifacts_do_not_depend_on_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    writer = Tracker(None, "a team/demo", Path("."))
    assert writer.uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert writer.uri in writer.ui_command()
    experiment = MlflowClient(tracking_uri=writer.uri).get_experiment_by_name("a team/demo")
    assert experiment is not None
    assert experiment.artifact_location == (tmp_path / "mlartifacts/a-team-demo").as_uri()


def test_a_resumed_sweep_goes_on_in_the_same_runs(tmp_path: Path) -> None:
    first = started(tmp_path)
    first.start_trial("0000", {"lr": 0.1}, {}, STUDY)
    first.log_epoch("0000", 1, METRICS)
    first.log_epoch("0000", 2, {**METRICS, OBJECTIVE: 0.9})
    first.end_sweep("interrupted")
    assert children(first)["0000"].data.tags["mmsweep.state"] == "interrupted"

    second = started(tmp_path)
    second.start_trial("0000", {"lr": 0.1}, {}, STUDY)
    assert children(second)["0000"].info.status == "RUNNING"
    for epoch in (1, 2, 3):  # the trial replays what it had reported
        second.log_epoch("0000", epoch, METRICS)
    second.log_test("0000", {"test/complete/f1_macro": 0.5})
    second.log_test("0000", {"test/complete/f1_macro": 0.5})
    second.end_trial("0000", "finished")
    second.end_sweep("finished")
    runs = children(second)
    assert list(runs) == ["0000"]
    assert history(second, runs["0000"], OBJECTIVE) == [(1, 0.5), (2, 0.9), (3, 0.5)]
    assert runs["0000"].data.metrics["objective"] == 0.9
    assert len(history(second, runs["0000"], "test/complete/f1_macro")) == 1
    client = MlflowClient(tracking_uri=second.uri)
    sweeps = client.search_runs([runs["0000"].info.experiment_id], "tags.`mmsweep.kind` = 'sweep'")
    assert [run.info.status for run in sweeps] == ["FINISHED"]


@pytest.mark.parametrize("call", ["set_terminated", "log_batch"])
def test_a_driver_killed_while_it_closes_a_run_closes_it_when_resumed(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        """What no handler may catch."""

    def die(*_: object, **__: object) -> None:
        raise Killed

    first = started(tmp_path)
    first.start_trial("0000", {}, {}, STUDY)
    first.log_epoch("0000", 1, METRICS)
    monkeypatch.setattr(first._client, call, die)
    with pytest.raises(Killed):
        first.end_trial("0000", "finished")

    second = started(tmp_path)
    second.start_trial("0000", {}, {}, STUDY)
    second.log_epoch("0000", 1, METRICS)
    second.end_trial("0000", "finished")
    run = children(second)["0000"]
    assert (run.info.status, run.data.tags["mmsweep.state"]) == ("FINISHED", "finished")


def test_a_folder_made_anew_is_a_new_sweep(tmp_path: Path) -> None:
    writer = started(tmp_path)
    writer.start_trial("0000", {}, {}, STUDY)
    writer.log_epoch("0000", 1, METRICS)
    writer.end_sweep("finished")
    (tmp_path / "sweeps/demo/tracking.json").unlink()
    again = started(tmp_path)
    again.start_trial("0000", {}, {}, STUDY)
    again.log_epoch("0000", 1, METRICS)
    again.end_sweep("finished")
    client = MlflowClient(tracking_uri=writer.uri)
    experiment = client.get_experiment_by_name("demo")
    assert experiment is not None
    assert len(client.search_runs([experiment.experiment_id])) == 4


def test_a_store_that_fails_in_mid_sweep_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = started(tmp_path)
    monkeypatch.setattr("mmsweep.tracking.outbox.RETRY_SECONDS", 0.0)
    writer.start_trial("0000", {"lr": 0.1}, {}, STUDY)
    writer.log_epoch("0000", 1, METRICS)
    database = tmp_path / "mlflow.db"
    away = tmp_path / "away.db"
    database.rename(away)
    database.mkdir()  # what SQLite cannot open
    writer._client._tracking_client.store.engine.dispose()
    writer.log_epoch("0000", 2, METRICS)
    writer.log_epoch("0000", 3, METRICS)
    writer.end_trial("0000", "finished")
    assert writer.start_trial("0001", {"lr": 0.2}, {}, STUDY) == ""
    writer.log_epoch("0001", 1, METRICS)
    assert writer.warnings
    database.rmdir()
    away.rename(database)
    writer.end_trial("0001", "stopped")
    writer.end_sweep("finished")
    runs = children(writer)
    assert {key: run.info.status for key, run in runs.items()} == {"0000": "FINISHED", "0001": "KILLED"}
    assert [step for step, _ in history(writer, runs["0000"], OBJECTIVE)] == [1, 2, 3]
    assert runs["0001"].data.params == {"lr": "0.2"}
    assert not any("never reached" in warning for warning in writer.warnings)


def test_addresses_show_no_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORE_PASSWORD", "hunter2")
    assert resolve_uri("http://ann:${STORE_PASSWORD}@host", tmp_path) == "http://ann:hunter2@host"
    assert shown("http://ann:${STORE_PASSWORD}@host", "") == "http://ann:${STORE_PASSWORD}@host"
    assert shown("http://${USER}:hunter2@host", "") == "http://${USER}:***@host"
    assert shown(None, "postgresql://ann:hu/nt@er2@host/db?x=1&password=hunter2") == (
        "postgresql://ann:***@host/db?x=1&password=***"
    )
    for uri in (f"sqlite:///{tmp_path}/a:b.db", "http://host:5000/mlflow", "postgresql://ann@host:5432/db"):
        assert shown(uri, uri) == uri
    assert "hunter2" not in str(UserError("no", found="http://ann:hunter2@host", hint="mysql://a:hunter2@b/c"))
    for uri, problem in (("http://ann:***@host", "is not kept"), ("http://${NOT_SET_AT_ALL}@host", "is not set")):
        with pytest.raises(UserError, match=problem):
            resolve_uri(uri, tmp_path)


def test_a_resumed_sweep_brings_what_never_arrived(tmp_path: Path) -> None:
    """An artifact that was lost reaches a run that was closed without it, and one that arrived is not sent again."""
    writer = started(tmp_path)
    writer.start_trial("0000", {}, {}, STUDY)
    writer.end_trial("0000", "finished", [tmp_path / "evaluation.json"])
    writer.end_sweep("finished")
    assert "never reached" in writer.warnings[-1]
    (tmp_path / "evaluation.json").write_text("{}")
    for _ in range(2):
        again = started(tmp_path)
        again.start_trial("0000", {}, {}, STUDY)
        again.end_trial("0000", "finished", [tmp_path / "evaluation.json"])
        again.end_sweep("finished")
        assert again.warnings == []
        run = children(again)["0000"]
        found = MlflowClient(tracking_uri=again.uri).list_artifacts(run.info.run_id)
        assert {item.path for item in found} == {"study.yaml", "evaluation.json"}
        assert run.info.status == "FINISHED"


def test_what_never_reaches_the_store_is_named(tmp_path: Path) -> None:
    writer = started(tmp_path)
    writer.start_trial("0000", {}, {}, STUDY)
    writer.end_trial("0000", "finished", [tmp_path / "gone.safetensors"])
    writer.end_sweep("finished")
    assert children(writer)["0000"].info.status == "FINISHED"  # the artifact held up nothing
    assert "gone.safetensors" in writer.warnings[-1]
    assert "never reached" in writer.warnings[-1]


@pytest.mark.parametrize(
    "uri", ["file:///tmp/mlruns", "./mlruns", "mlruns", "sqlite://", "sqlite:///:memory:", "gopher://x"]
)
def test_stores_that_cannot_be_used_are_refused_by_name(uri: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tracking\.uri") as error:
        Tracker(uri, "demo", tmp_path)
    assert uri in str(error.value)


def test_relative_databases_become_absolute(tmp_path: Path) -> None:
    assert resolve_uri("sqlite:///runs/m.db", tmp_path) == f"sqlite:///{tmp_path}/runs/m.db"
    assert resolve_uri("sqlite:////data/m.db?timeout=9", tmp_path) == "sqlite:////data/m.db?timeout=9"
    assert resolve_uri("http://host:5000/", tmp_path) == "http://host:5000"


def test_a_server_that_is_not_there_is_said_at_once(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(UserError, match=r"tracking\.uri") as error:
        Tracker(uri, "demo", tmp_path)
    assert uri in str(error.value) and "mlflow server" in str(error.value)


def test_a_database_that_is_none_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("this is not a database, it is a text of more than sixteen bytes" * 30)
    with pytest.raises(UserError, match=r"tracking\.uri"):
        tracker(tmp_path)


def test_names_stay_or_become_unique_ones() -> None:
    for name in ("val/image-100_text-30/f1_macro", "model.lora.rank", "train/loss", "test/per class: cat/f1"):
        assert metric_name(name) == name
    assert metric_name("a@b") != metric_name("a=b")
    assert metric_name("a@b") == metric_name("a@b")
    assert "//" not in metric_name("a//b")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{tmp_path}/mlflow.db",
        "--artifacts-destination",
        str(tmp_path / "a"),
    ]
    with open(tmp_path / "server.log", "w") as output:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=output, stderr=output, start_new_session=True)
    try:
        deadline = time.monotonic() + 180
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=30).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "server.log").read_text()
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_the_same_sweep_on_a_real_server(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named with a user and a password, which no file and no message shows."""
    monkeypatch.setenv("STORE_PASSWORD", "hunter2")
    named = server.replace("//", "//ann:${STORE_PASSWORD}@")
    check_store(named, tmp_path)
    writer = Tracker(named, "demo", tmp_path)
    assert writer.ui_command() == named
    writer.start_sweep("demo", tmp_path / "sweeps/demo", STUDY, {"dataset": "d", "dataset_fingerprint": "f"})
    writer.start_trial("0000", {f"p{i}": i for i in range(120)}, {}, STUDY)  # more than one request takes
    writer.log_epoch("0000", 1, {**METRICS, **{f"val/s{i}/f1_macro": i / 1200 for i in range(1200)}})
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"weights")
    writer.end_trial("0000", "finished", [weights])
    writer.end_sweep("finished")
    assert writer.warnings == []
    assert not [p for p in (tmp_path / "sweeps").rglob("*") if p.is_file() and "hunter2" in p.read_text()]
    writer.uri = server
    run = children(writer)["0000"]
    assert (run.info.status, len(run.data.params), len(run.data.metrics)) == ("FINISHED", 120, 1205)
    client = MlflowClient(tracking_uri=server)
    assert "weights.safetensors" in {item.path for item in client.list_artifacts(run.info.run_id)}


def test_a_lost_tracking_json_is_made_again_from_the_runs(tmp_path: Path) -> None:
    writer, folder = started(tmp_path), tmp_path / "sweeps/demo"
    child = writer.start_trial("0000", {"a": 1}, {}, STUDY)
    parent = json.loads((folder / "tracking.json").read_text())["run_id"]
    (folder / "sweep.json").write_text(json.dumps({"mlflow": {"uri": writer.uri, "run_id": parent}}))
    (folder / "tracking.json").unlink()
    again = tracker(tmp_path)
    assert again.start_sweep("demo", folder, STUDY, {}) == parent
    assert again.start_trial("0000", {"a": 1}, {}, STUDY) == child and len(children(again)) == 1

    (folder / "sweep.json").write_text(json.dumps({"mlflow": {"uri": writer.uri, "run_id": "f" * 32}}))
    (folder / "tracking.json").unlink()  # and the run that it names was deleted
    assert tracker(tmp_path).start_sweep("demo", folder, STUDY, {}) not in (parent, "")
