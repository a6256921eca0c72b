"""The MLflow tracker against real SQLite stores, and stores that fail or are slow."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from mmsweep.readers.mlflow import tracker as module
from mmsweep.readers.mlflow.attempts import Attempts, UnavailableError
from mmsweep.readers.mlflow.environment import environment_tags
from mmsweep.readers.mlflow.tracker import Tracker
from mmsweep.record.trial import TrialFolder
from mmsweep.sweep.finals import _put_aside
from tests.unit import report_factory as factory
from tests.unit.mlflow_tracker.runs import OBJECTIVE, STUDY, attached, children, tracker, train, trial

pytestmark = pytest.mark.long

CALLS = (
    *("create_run", "update_run", "search_runs", "set_terminated"),
    *("log_batch", "log_inputs", "log_artifact", "log_text", "list_artifacts"),
)


def started(sweep: Path) -> Tracker:
    writer = tracker(sweep.parents[1])
    writer.start(sweep, {"mmsweep.split_hash": "abc"})
    return writer


def history(writer: Tracker, run: Run, metric: str) -> list[tuple[int, float]]:
    client = MlflowClient(tracking_uri=writer.uri)
    return [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, metric)]


def stored(run: Run, name: str) -> str:
    return (Path(run.info.artifact_uri.removeprefix("file://")) / name).read_text()


def calls(writer: Tracker, monkeypatch: pytest.MonkeyPatch, seconds: float = 0.0) -> list[str]:
    """The calls to the store from now on, each of which takes so much longer."""
    made: list[str] = []

    def counted(name: str, real: Any) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            made.append(name)
            time.sleep(seconds)
            return real(*given, **named)

        return call

    for name in CALLS:
        monkeypatch.setattr(writer._store.client, name, counted(name, getattr(writer._store.client, name)))
    return made


def test_one_sweep_as_mlflow_shows_it(sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = tracker(tmp_path)
    tags = {"dataset": "openclipart", "dataset_fingerprint": "f" * 64, "mmsweep.scenarios": "t1"}
    parent_id = writer.start(sweep, {**tags, **environment_tags()})
    train(trial(sweep, "0000", {"model.lora.rank": 4, "train.optimizer.lr": 1e-3}), 0.5, 0.6, 0.4, done="finished")
    train(trial(sweep, "0001", {"model.lora.rank": 8, "train.optimizer.lr": 1e-2}), 0.5, done="stopped")
    trial(sweep, "0002", {"model.lora.rank": 1, "train.optimizer.lr": 1.0}).mark_done("failed", "NaN")
    train(trial(sweep, "0003", {"model.lora.rank": 2}), 0.3)
    final = sweep / "final" / "best" / "seed-101"
    factory.make_final(final, STUDY, 101, (0.6, 0.7))
    train(TrialFolder(final), 0.5)
    (sweep / "report").mkdir()
    (sweep / "report" / "index.html").write_text("report")
    assert writer.sync() == []
    running = children(writer)["0003"]
    assert running.info.status == "RUNNING" and "mmsweep.state" not in running.data.tags
    with monkeypatch.context() as counting:
        made = calls(writer, counting)
        assert writer.sync() == [] and made == []  # nothing has changed
    writer.end("interrupted", sweep / "report")

    assert writer.warnings == []
    runs = children(writer)
    assert {key: (run.info.status, run.data.tags["mmsweep.state"]) for key, run in runs.items()} == {
        "0000": ("FINISHED", "finished"),
        "0001": ("KILLED", "stopped"),
        "0002": ("FAILED", "failed"),
        "0003": ("KILLED", "interrupted"),
        "final/best/seed-101": ("FINISHED", "finished"),
    }
    assert runs["0000"].data.params == {"model.lora.rank": "4", "train.optimizer.lr": "0.001"}
    assert history(writer, runs["0000"], OBJECTIVE) == [(1, 0.5), (2, 0.6), (3, 0.4)]
    assert history(writer, runs["0000"], "objective") == [(1, 0.5), (2, 0.6), (3, 0.6)]  # the best so far
    again = started(sweep)
    again.end("interrupted")
    assert children(again).keys() == runs.keys() and again.warnings == []
    assert len(history(again, runs["0000"], "objective")) == 3
    assert len(history(again, runs["final/best/seed-101"], "test/mean_missing/f1_macro")) == 1
    tested = [key for key, run in runs.items() if any(m.startswith("test/") for m in run.data.metrics)]
    assert tested == ["final/best/seed-101"]
    assert attached(writer, runs["0000"]) == {"study.yaml", "weights.safetensors"}
    assert attached(writer, runs["final/best/seed-101"]) == {"study.yaml", "weights.safetensors", "evaluation.json"}
    assert stored(runs["0000"], "weights.safetensors") == "weights 2"  # of the epoch that counts
    parent = MlflowClient(tracking_uri=writer.uri).get_run(parent_id)
    assert parent.info.status == "KILLED" and stored(parent, "report/index.html") == "report"
    assert parent.inputs.dataset_inputs[0].dataset.name == "openclipart"
    for run in (parent, runs["0000"]):  # every run stands alone
        assert run.data.tags["mmsweep.torch"] and run.data.tags["mmsweep.dataset_fingerprint"] == "f" * 64
    notes = json.loads((sweep / "tracking.json").read_text())
    assert notes["runs"]["0000"] == runs["0000"].info.run_id and notes["run_id"] == parent_id
    note = parent.data.tags["mlflow.note.content"]
    assert "| final | state | test/mean_missing/f1_macro |" in note
    assert note.index("[0000]") < note.index("[0001]")  # .6 before .5


def test_a_thread_follows_the_folder(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody who trains waits for a slow store, and what came together is brought together."""
    monkeypatch.setattr(module, "FOLLOW_SECONDS", 0.1)
    writer = started(sweep)
    folder = trial(sweep, "0000")
    with monkeypatch.context() as slow:
        made = calls(writer, slow, 0.3)
        with writer.following():
            assert "mlflow" in {thread.name for thread in threading.enumerate()}
            train(folder, *(0.1 * n for n in range(1, 9)))
            until = time.monotonic() + 60
            while not (runs := children(writer)) or len(history(writer, runs["0000"], OBJECTIVE)) < 8:
                assert time.monotonic() < until
                time.sleep(0.1)
        assert made.count("log_batch") < 8
        folder.mark_done("finished")
        writer.end("finished")
    assert children(writer)["0000"].info.status == "FINISHED" and writer.warnings == []
    assert "mlflow" not in {thread.name for thread in threading.enumerate()}


def test_a_slow_store_does_not_hold_up_the_end(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SIGNAL_SECONDS", 1.0)
    writer = started(sweep)
    for number in range(20):
        train(trial(sweep, f"{number:04d}"), 0.5, done="finished")
    with monkeypatch.context() as slow:
        calls(writer, slow, 0.4)
        began = time.monotonic()
        writer.end("interrupted")
        assert time.monotonic() - began < 10
    assert "never reached MLflow" in writer.warnings[-1] and "trials/0019" in writer.warnings[-1]
    again = started(sweep)
    assert again.sync("finished") == []
    again.end("finished")
    assert len(children(again)) == 20 and again.warnings == []


def test_artifacts_do_not_depend_on_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    writer = Tracker(None, "a team/demo", Path("."))
    assert writer.uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert writer.uri in writer.ui_command()
    experiment = MlflowClient(tracking_uri=writer.uri).get_experiment_by_name("a team/demo")
    assert experiment is not None
    assert experiment.artifact_location == (tmp_path / "mlartifacts/a-team-demo").as_uri()


def test_a_resumed_sweep_goes_on_in_the_same_runs(sweep: Path) -> None:
    first = started(sweep)
    folder = train(trial(sweep, "0000", {"lr": 0.1}), 0.5, 0.9)
    first.end("interrupted")
    assert children(first)["0000"].data.tags["mmsweep.state"] == "interrupted"

    second = started(sweep)
    second.sync()
    assert children(second)["0000"].info.status == "RUNNING"
    train(folder, 0.5, first=3, done="finished")
    second.end("finished")
    runs = children(second)
    assert list(runs) == ["0000"]
    assert history(second, runs["0000"], OBJECTIVE) == [(1, 0.5), (2, 0.9), (3, 0.5)]
    assert runs["0000"].data.metrics["objective"] == 0.9
    client = MlflowClient(tracking_uri=second.uri)
    sweeps = client.search_runs([runs["0000"].info.experiment_id], "tags.`mmsweep.kind` = 'sweep'")
    assert [run.info.status for run in sweeps] == ["FINISHED"]


def test_a_failed_final_that_is_trained_again_has_its_new_weights(sweep: Path) -> None:
    writer, id = started(sweep), "final/best/seed-101"
    folder = train(trial(sweep, id, kind="final"), 0.5, done="failed")
    writer.sync()
    assert children(writer)[id].info.status == "FAILED"
    folder.clear_done()
    writer.sync()
    assert children(writer)[id].info.status == "RUNNING"
    train(folder, 0.6, first=2, done="finished")
    writer.end("finished")
    run = children(writer)[id]
    assert run.info.status == "FINISHED" and stored(run, "weights.safetensors") == "weights 2"


def test_finals_that_were_put_aside_keep_their_runs(sweep: Path) -> None:
    writer, id = started(sweep), "final/best/seed-101"
    train(trial(sweep, id, {"lr": 0.1}, kind="final", **{"from": "0000"}), 0.5, done="finished")
    writer.sync()
    old = children(writer)[id].info.run_id
    _put_aside(sweep / "final" / "best", "best", "0000")
    train(trial(sweep, id, {"lr": 0.2}, kind="final", **{"from": "0001"}), 0.7, done="finished")
    writer.end("finished")
    for reader in (writer, started(sweep)):
        reader.sync("finished")
        runs = children(reader)
        assert set(runs) == {id, f"superseded/0000/{id}"} and reader.warnings == []
        assert runs[f"superseded/0000/{id}"].info.run_id == old
        assert runs[f"superseded/0000/{id}"].data.tags["mmsweep.kind"] == "superseded"
        assert runs[id].data.params == {"lr": "0.2"}
    assert json.loads((sweep / "tracking.json").read_text())["runs"][id] == runs[id].info.run_id


@pytest.mark.parametrize("call", ["set_terminated", "log_batch"])
def test_a_driver_killed_while_it_closes_a_run_closes_it_when_resumed(
    call: str, sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        """What no handler may catch."""

    def die(*_: object, **__: object) -> None:
        raise Killed

    first = started(sweep)
    folder = train(trial(sweep, "0000"), 0.5)
    first.sync()
    folder.mark_done("finished")
    monkeypatch.setattr(first._store.client, call, die)
    with pytest.raises(Killed):
        first.sync()
    second = started(sweep)
    second.end("finished")
    run = children(second)["0000"]
    assert (run.info.status, run.data.tags["mmsweep.state"]) == ("FINISHED", "finished")
    assert history(second, run, OBJECTIVE) == [(1, 0.5)]


def test_a_folder_made_anew_is_a_new_sweep(sweep: Path) -> None:
    writer = started(sweep)
    train(trial(sweep, "0000"), 0.5, done="finished")
    writer.end("finished")
    (sweep / "tracking.json").unlink()
    started(sweep).end("finished")
    client = MlflowClient(tracking_uri=writer.uri)
    experiment = client.get_experiment_by_name("demo")
    assert experiment is not None
    assert len(client.search_runs([experiment.experiment_id])) == 4


def test_a_store_that_fails_in_mid_sweep_costs_nothing(sweep: Path, tmp_path: Path) -> None:
    writer = started(sweep)
    folder = train(trial(sweep, "0000", {"lr": 0.1}), 0.5)
    writer.sync()
    database, away = tmp_path / "mlflow.db", tmp_path / "away.db"
    database.rename(away)
    database.mkdir()  # what SQLite cannot open
    writer._store.client._tracking_client.store.engine.dispose()
    train(folder, 0.6, 0.7, first=2, done="finished")
    other = train(trial(sweep, "0001", {"lr": 0.2}), 0.5)
    assert writer.sync() == writer.sync() == ["trials/0000", "trials/0001"]
    assert len(writer.warnings) == 1  # one of each kind
    database.rmdir()
    away.rename(database)
    other.mark_done("stopped")
    writer.end("finished")
    runs = children(writer)
    assert {key: run.info.status for key, run in runs.items()} == {"0000": "FINISHED", "0001": "KILLED"}
    assert [step for step, _ in history(writer, runs["0000"], OBJECTIVE)] == [1, 2, 3]
    assert runs["0001"].data.params == {"lr": "0.2"} and len(writer.warnings) == 1


def test_an_outage_is_said_once_whichever_call_it_meets() -> None:
    attempts = Attempts("http://host")
    for call, id in (("runs/create", "a" * 32), ("runs/log-batch", "b" * 32), ("runs/search", "c" * 32)):

        def away(call: str = call, id: str = id) -> None:
            raise ConnectionError(f"API request to http://host/api/2.0/mlflow/{call} failed: {id} at 0x{id[:9]}")

        with pytest.raises(UnavailableError):
            attempts.call("a call", away)
    assert len(attempts.warnings) == 1 and "runs/create failed" in attempts.warnings[0]


def test_a_run_that_was_made_though_the_answer_was_lost_is_not_made_twice(
    sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = started(sweep)
    create = writer._store.client.create_run

    def lost(*given: Any, **named: Any) -> None:
        create(*given, **named)
        raise ConnectionError("no answer")

    train(trial(sweep, "0000"), 0.5, done="finished")
    with monkeypatch.context() as bad:
        bad.setattr(writer._store.client, "create_run", lost)
        assert writer.sync() == ["trials/0000"]
    writer.end("finished")
    assert {id: run.info.status for id, run in children(writer).items()} == {"0000": "FINISHED"}


def test_a_resumed_sweep_brings_what_never_arrived(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An artifact that was lost reaches a run that was closed without it, and one that arrived is not sent again."""
    writer = started(sweep)
    train(trial(sweep, "0000"), 0.5, done="finished")

    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as bad:
        bad.setattr(writer._store.client, "log_artifact", refused)
        writer.end("finished")
    assert children(writer)["0000"].info.status == "FINISHED"  # the artifact held up nothing
    assert "never reached" in writer.warnings[-1] and "artifact weights.safetensors of 0000" in writer.warnings[-1]
    for sent in (2, 0):
        again = started(sweep)
        with monkeypatch.context() as counting:
            made = calls(again, counting)
            again.end("finished")
        assert again.warnings == [] and made.count("log_artifact") == sent
        run = children(again)["0000"]
        assert attached(again, run) == {"study.yaml", "weights.safetensors"} and run.info.status == "FINISHED"


def test_a_damaged_file_holds_up_no_other_trial(sweep: Path) -> None:
    writer = started(sweep)
    train(trial(sweep, "0000"), 0.5, done="finished")
    train(trial(sweep, "0001"), 0.5, done="finished")
    (sweep / "trials/0000/reports.jsonl").write_text("nonsense\n")
    writer.end("finished")
    assert list(children(writer)) == ["0001"]
    assert "reports.jsonl" in writer.warnings[0] and "trials/0000" in writer.warnings[-1]


def test_a_lost_tracking_json_is_made_again_from_the_runs(sweep: Path) -> None:
    writer, notes = started(sweep), sweep / "tracking.json"
    trial(sweep, "0000", {"a": 1})
    writer.sync()
    child, parent = children(writer)["0000"].info.run_id, json.loads(notes.read_text())["run_id"]
    (sweep / "sweep.json").write_text(json.dumps({"mlflow": {"uri": writer.uri, "run_id": parent}}))
    notes.unlink()
    again = tracker(sweep.parents[1])
    assert again.start(sweep, {}) == parent
    again.sync()
    assert {run.info.run_id for run in children(again).values()} == {child}

    (sweep / "sweep.json").write_text(json.dumps({"mlflow": {"uri": writer.uri, "run_id": "f" * 32}}))
    notes.unlink()  # and the run that it names was deleted
    assert tracker(sweep.parents[1]).start(sweep, {}) not in (parent, "")
