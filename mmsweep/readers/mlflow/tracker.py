"""The MLflow tracker: it synchronises MLflow with a sweep's folder while the sweep runs and at its end.

Layout
    The parent run is the sweep; child runs have the tags `mlflow.parentRunId`, `mmsweep.trial_id` and `mmsweep.sweep`.
    Params are the searched values; constants are tags or in the artifact `study.yaml`. Metrics are named
    `split/scenario/metric` with the epoch as step. A trial also has `objective`, its score so far, because MLflow's
    tables show last values and a score is a best one.

Synchronisation
    `Tracker.sync` compares the folder with MLflow and sends what is missing: runs, metrics of every epoch, artifacts,
    and final states. A thread calls it every two seconds, and it is called once more at the end. Nothing else sends
    results to MLflow, so resuming a sweep, finished or not, completes its runs.

Failures of the store
    Before the sweep starts, a failure is a `UserError` within about ten seconds. Later failures never stop the sweep:
    each kind is logged once, and the store is retried twice a minute and at the end. `warnings` names what has not
    arrived by then.

`tracking.json` in the sweep's folder holds {"id", "uri", "experiment", "run_id", "runs": {trial: run id}, "tags"};
reports read it instead of querying MLflow. Runs are searched by their tags before a new one is created.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from mlflow.entities import Metric, Run
from mlflow.exceptions import MlflowException

from mmsweep.errors import VARIABLE, UserError
from mmsweep.readers.mlflow.address import shown
from mmsweep.readers.mlflow.attempts import Attempts, UnavailableError
from mmsweep.readers.mlflow.content import best_weights, epoch_metrics, run_name, scores_on_test
from mmsweep.readers.mlflow.naming import children_table, metric_name, param_text, prefixed
from mmsweep.readers.mlflow.store import Store, as_user_errors
from mmsweep.record.evaluation import Evaluation
from mmsweep.record.files import read_record, write_atomically
from mmsweep.record.summary import Summary
from mmsweep.record.sweep import SweepFile, TrackingFile, superseded_folders, trial_folders
from mmsweep.record.trial import TrialFolder

SWEEP_STATES = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}
RUN_STATES = {**SWEEP_STATES, "stopped": "KILLED"}  # the tag mmsweep.state tells an early stop from an interruption
FOLLOW_SECONDS = 2.0
RETRY_SECONDS = 30.0  # pause after a failure of the store
END_SECONDS = 60.0  # longest wait for a slow store at the end of a sweep; --resume sends the rest
SIGNAL_SECONDS = 15.0  # the same after a signal, since SLURM kills 30 s after its SIGTERM
_FILES = ("trial.json", "reports.jsonl", "done.json", "evaluation.json")  # the sources of a run in MLflow


@dataclass
class _Run:
    """A child run in MLflow; `attached` holds the names of its artifacts, None before they were queried."""

    run_id: str
    status: str
    metrics: dict[str, float] = field(default_factory=dict)
    params: set[str] = field(default_factory=set)
    tags: dict[str, str] = field(default_factory=dict)
    attached: set[str] | None = None
    opened: bool = False  # whether its params and tags are complete

    @classmethod
    def of(cls, run: Run) -> _Run:
        return cls(run.info.run_id, run.info.status, dict(run.data.metrics), set(run.data.params), dict(run.data.tags))

    def closed_as(self, *states: str) -> bool:
        """Whether it was closed in one of these states."""
        state = self.tags.get("mmsweep.state", "")
        return state in states and self.status == RUN_STATES.get(state)


class Tracker:
    """Synchronises an MLflow store with one sweep's folder; only the driver uses it.

    Args:
        uri: MLflow tracking URI; None: `$MLFLOW_TRACKING_URI`, else `sqlite:///<root>/mlflow.db`. A relative SQLite
            path starts at `root`. Databases are created once, under a lock.
        experiment: name of the MLflow experiment, created if necessary (for SQLite with an absolute artifact folder
            beside the database).
        root: the command's working directory.

    Raises:
        UserError: the store is unusable or unreachable (within about ten seconds); names the URI and `tracking.uri`.
    """

    def __init__(self, uri: str | None, experiment: str, root: Path) -> None:
        self._store = Store.open(uri, experiment, root)
        self.uri, self.experiment = shown(uri, self._store.uri), experiment
        self._attempts = Attempts(self.uri)
        self._folder, self._parent, self._notes = Path(), "", dict[str, Any]()
        self._summary: Summary
        self._runs: dict[str, _Run] | None = None  # by trial; None: must be queried
        self._synced: dict[Path, tuple[object, ...]] = {}  # a trial's folder -> its state when it was synchronised
        self._pending: set[Path] = set()  # folders with artifacts left to send at the end
        self._unavailable = False  # whether the store failed to answer last time
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def warnings(self) -> list[str]:
        """The store's failures since the start of the sweep, each kind once; passwords are masked."""
        return self._attempts.warnings

    def ui_command(self) -> str:
        """The command that shows the runs, or the address of a server; without passwords."""
        if self.uri.startswith(("http://", "https://")):
            return self.uri
        mlflow = "mlflow" if shutil.which("mlflow") else f"{shlex.quote(sys.executable)} -m mlflow"
        uri = f'"{self.uri}"' if VARIABLE.search(self.uri) else shlex.quote(self.uri)  # the shell expands variables
        return f"{mlflow} ui --backend-store-uri {uri}"

    # ------------------------------------------------------------------ the sweep

    def start(self, folder: Path, tags: Mapping[str, str]) -> str:
        """Find or create the parent run of the sweep in `folder`.

        A random id in `tracking.json` and in the run's tags links them, so a folder that was deleted and created again
        does not write into the old sweep's runs.

        Args:
            tags: facts that make the sweep reproducible; every child run gets them too. Plain names get the prefix
                `mmsweep.`. If they include `dataset` and `dataset_fingerprint`, the data is also logged as an MLflow
                dataset.

        Returns:
            The run's id.

        Raises:
            UserError: the store fails, or the folder holds no sweep.
        """
        self._folder, self._summary = Path(folder).absolute(), Summary.load(Path(folder))
        study = (self._folder / "study.yaml").read_text(encoding="utf-8")
        with as_user_errors(self._store.uri):
            self._notes = self._load_notes()
            identity, name = self._notes["id"], self._summary.name
            fixed = {"mmsweep.kind": "sweep", "mmsweep.sweep": name, "mmsweep.state": "running"}
            fixed |= {"mmsweep.sweep_id": identity, "mmsweep.sweep_path": str(self._folder)}
            runs = self._store.search(f"tags.`mmsweep.sweep_id` = '{identity}' and tags.`mmsweep.kind` = 'sweep'")
            if runs:
                self._parent = runs[0].info.run_id
                self._store.client.update_run(self._parent, status="RUNNING")
            else:
                self._parent = self._store.create_run(name, fixed)
            self._store.log(self._parent, tags={**prefixed(tags), **fixed})
            self._store.client.log_text(self._parent, study, "study.yaml")
            self._store.log_dataset(self._parent, prefixed(tags))
        self._notes |= {"uri": self.uri, "experiment": self.experiment, "run_id": self._parent}
        self._notes["tags"] = prefixed(tags)
        self._write_notes()
        return self._parent

    @contextlib.contextmanager
    def following(self) -> Iterator[None]:
        """Within the context, a thread synchronises MLflow every two seconds."""

        def follow() -> None:
            while not self._stop.wait(RETRY_SECONDS if self._unavailable else FOLLOW_SECONDS):
                self.sync()

        self._thread = threading.Thread(target=follow, name="mlflow", daemon=True)
        self._thread.start()
        try:
            yield
        finally:
            self._stop.set()

    def end(self, state: str, report: Path | None = None) -> None:
        """Send what is missing, close all runs, and write the table of children into the parent's description.

        Args:
            state: "finished", "interrupted" or "failed".
            report: a folder to attach to the parent run.
        """
        seconds = SIGNAL_SECONDS if state == "interrupted" else END_SECONDS
        self._attempts.until = time.monotonic() + seconds
        self._stop.set()
        if self._thread is not None:
            self._thread.join(seconds)
            if self._thread.is_alive():
                self._attempts.warn(f"MLflow at {self.uri} does not answer; --resume sends what is missing")
                return
        for path in self._pending:
            self._synced.pop(path, None)
        missing = self.sync(state)
        try:
            attach = partial(self._store.send, self._parent, folder="report")
            if report is not None and not self._attempts.succeeds("the report", partial(attach, report)):
                missing.append("the report")
            self._attempts.call("the end of the sweep", lambda: self._close_parent(state))
        except UnavailableError:
            missing.append("the end of the sweep")
        if missing:
            named = ", ".join(missing)[:300]
            self._attempts.warn(
                f"{len(missing)} entries never reached MLflow at {self.uri} (the sweep's folder has them, and --resume "
                f"sends them): {named}"
            )

    def sync(self, state: str = "running") -> list[str]:
        """Send to MLflow what it lacks; never raises an `Exception`.

        Args:
            state: state of the sweep; trials that have not ended get it too.

        Returns:
            Names of what could not be sent.
        """
        missing: list[str] = []
        self._unavailable = False
        for folder in trial_folders(self._folder):
            files = _fingerprint(folder.path)
            now = (files, None if files[_FILES.index("done.json")] else state)
            if self._synced.get(folder.path) == now:
                continue
            name = str(folder.path.relative_to(self._folder))
            try:
                if self._unavailable:
                    raise UnavailableError
                pending = self._sync_trial(folder, state)
            except UnavailableError:
                self._unavailable, self._runs = True, None  # a failed call may have arrived, so query the runs again
                missing.append(name)
                continue
            except Exception as problem:  # a damaged or deleted file
                pending = [name] if folder.path.exists() else []
                if pending:
                    self._attempts.warn(f"{name} cannot be sent to MLflow: {problem}", str(problem))
            self._synced[folder.path] = now
            self._pending |= {folder.path} if pending else set()
            missing += pending
        return missing

    def _close_parent(self, state: str) -> None:
        children = self._store.search(f"tags.`mlflow.parentRunId` = '{self._parent}'")
        note = children_table(children, self._summary.objectives, self._store.experiment_id)
        self._store.client.set_terminated(self._parent, SWEEP_STATES[state])
        self._store.log(self._parent, tags={"mmsweep.state": state, "mlflow.note.content": note})

    # ------------------------------------------------------------------ one trial

    def _sync_trial(self, folder: TrialFolder, state: str) -> list[str]:
        """Update a trial's run; returns the artifacts that could not be attached. Raises UnavailableError."""
        if not folder.exists():
            return []
        about, reports, done = folder.trial(), folder.reports(), folder.done()
        self._rename_superseded()
        if folder.trial() != about:  # meanwhile another trial has replaced it
            return []
        unfinished = "interrupted" if state == "finished" else state
        id, trial_state = run_name(folder), str(done["state"]) if done else unfinished
        run = self._open(id, about, trial_state)
        first = int(run.metrics.get("epoch", 0)) + 1
        if new := [report for report in reports if report.epoch >= first]:
            metrics = epoch_metrics(new, reports, self._summary.objectives)
            self._attempts.call(f"epochs of {id}", lambda: self._store.log(run.run_id, metrics=metrics))
            run.metrics["epoch"] = new[-1].epoch
        evaluation = folder.path / "evaluation.json"
        if trial_state == "finished" and evaluation.exists():
            self._log_test(id, run, Evaluation.read(evaluation))
        pending = self._attach(id, run, folder, trial_state)
        if trial_state != "running" and not run.closed_as(trial_state):
            self._attempts.call(f"the end of {id}", lambda: self._close(run, trial_state))
        return pending

    def _open(self, id: str, about: Mapping[str, Any], state: str) -> _Run:
        """Find or create a trial's run, and complete its params and tags."""
        runs = self._child_runs()
        if id not in runs:
            tags = {"mlflow.parentRunId": self._parent, "mmsweep.trial_id": id, "mmsweep.sweep": self._summary.name}
            tags["mmsweep.kind"] = id.split("/")[0] if "/" in id else "trial"
            created = self._attempts.call(f"the run of {id}", lambda: self._store.create_run(id, tags))
            if created is None:
                raise UserError("MLflow refuses to create a run", found=id)
            runs[id] = _Run(created, "RUNNING", attached=set())
        run = runs[id]
        if not run.opened and not run.closed_as("finished", "stopped"):
            params = {metric_name(key): param_text(value) for key, value in about["params"].items()}
            missing = {key: value for key, value in params.items() if key not in run.params}  # params are write-once
            facts = {**self._notes.get("tags", {}), "mmsweep.seed": str(about["seed"])}
            log = partial(self._store.log, run.run_id, tags=facts, params=missing)
            self._attempts.call(f"params and tags of {id}", log)
            self._attempts.call(f"the dataset of {id}", lambda: self._store.log_dataset(run.run_id, facts))
            run.params |= set(params)
            run.opened = True
        if state == "running" and run.status != "RUNNING":
            self._attempts.call(f"the run of {id}", lambda: self._store.client.update_run(run.run_id, status="RUNNING"))
            run.status, run.attached = "RUNNING", set()  # its weights will change
        if self._notes["runs"].get(id) != run.run_id:
            self._notes["runs"][id] = run.run_id
            self._write_notes()
        return run

    def _rename_superseded(self) -> None:
        """Rename the runs of superseded finals, so that new finals can use the names."""
        runs = self._child_runs()
        for folder in superseded_folders(self._folder):
            about, id = folder.trial(), run_name(folder)
            if id not in runs and about["id"] in runs:
                tags = {"mmsweep.trial_id": id, "mmsweep.kind": "superseded"}
                rename = partial(self._store.log, runs[about["id"]].run_id, tags=tags)
                self._attempts.call(f"tags of {id}", rename)
                runs[id] = runs.pop(about["id"])
                self._notes["runs"].pop(about["id"], None)

    def _log_test(self, id: str, run: _Run, evaluation: Evaluation) -> None:
        values = {metric_name(name): value for name, value in scores_on_test(evaluation).items()}
        step, now = int(run.metrics.get("epoch", 0)), int(time.time() * 1000)
        if new := [Metric(name, value, now, step) for name, value in values.items() if name not in run.metrics]:
            self._attempts.call(f"test metrics of {id}", lambda: self._store.log(run.run_id, metrics=new))
            run.metrics |= values

    def _attach(self, id: str, run: _Run, folder: TrialFolder, state: str) -> list[str]:
        """Attach the study, and at the end weights and evaluation; returns the artifacts that failed."""
        paths = [folder.path / "study.yaml"]
        if state != "running" and folder.done() is not None:
            paths += [best_weights(folder, self._summary.objectives[0]), folder.path / "evaluation.json"]
        paths = [path for path in paths if path.exists()]
        if run.attached is None or not {path.name for path in paths} <= run.attached:
            if run.attached is None:
                listed = self._attempts.call(
                    f"artifacts of {id}", lambda: self._store.client.list_artifacts(run.run_id)
                )
                run.attached = {item.path for item in listed or ()}
            for path in paths:
                send = partial(self._store.send, run.run_id, path)
                if path.name not in run.attached and self._attempts.succeeds(f"artifact {path.name} of {id}", send):
                    run.attached.add(path.name)
        return [f"artifact {path.name} of {id}" for path in paths if path.name not in run.attached]

    def _close(self, run: _Run, state: str) -> None:
        self._store.client.set_terminated(run.run_id, RUN_STATES[state])
        # Last, since the tag marks the run as closed: a driver killed before it closes the run again when resumed.
        self._store.log(run.run_id, tags={"mmsweep.state": state})
        run.status, run.tags["mmsweep.state"] = RUN_STATES[state], state

    # ------------------------------------------------------------------ known runs

    def _child_runs(self) -> dict[str, _Run]:
        """The child runs in MLflow by trial."""
        if self._runs is None:
            query = f"tags.`mlflow.parentRunId` = '{self._parent}'"
            runs = self._attempts.call("the sweep's runs", lambda: self._store.search(query)) or []
            self._runs = {run.data.tags.get("mmsweep.trial_id", run.info.run_id): _Run.of(run) for run in runs}
        return self._runs

    def _load_notes(self) -> dict[str, Any]:
        """The content of `tracking.json`; a new one is written before the run with its id is created."""
        if (notes := read_record(self._folder / "tracking.json", TrackingFile)) is not None:
            return {"runs": {}, **notes}
        self._notes = {"id": self._known_identity() or uuid.uuid4().hex}
        self._write_notes()
        return {"runs": {}, **self._notes}

    def _write_notes(self) -> None:
        write_atomically(self._folder / "tracking.json", json.dumps(self._notes, indent=1))

    def _known_identity(self) -> str | None:
        """The id in the tags of the run that `sweep.json` names, if `tracking.json` was lost."""
        sweep = read_record(self._folder / "sweep.json", SweepFile) or {}
        run_id = sweep.get("mlflow", {}).get("run_id")
        if not run_id:
            return None
        try:
            return self._store.client.get_run(run_id).data.tags.get("mmsweep.sweep_id")
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":  # another store, or the run was deleted
                return None
            raise


def _fingerprint(folder: Path) -> tuple[object, ...]:
    """Time and size of each of `_FILES`, None for a missing one; it changes whenever a file changes."""
    stamps: list[tuple[int, int] | None] = []
    for name in _FILES:
        try:
            status = os.stat(folder / name)
        except OSError:
            stamps.append(None)
        else:
            stamps.append((status.st_mtime_ns, status.st_size))
    return tuple(stamps)
