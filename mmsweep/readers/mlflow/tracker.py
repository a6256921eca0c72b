"""The MLflow tracker: it makes MLflow agree with a sweep's folder, while the sweep runs and at its end.

How a sweep lies in MLflow
    Parent run = sweep; children carry `mlflow.parentRunId`, `mmsweep.trial_id`, `mmsweep.sweep`. Params are only what
    varies in the sweep; what is constant is a tag or stands in the artifact `study.yaml`. Metrics are named
    `split/scenario/metric`, their step is the epoch; beside them a trial has `objective`, its score so far, because
    MLflow's tables show last values and a score is a best one.

How it gets there
    `Tracker.agree` compares the folder with MLflow and brings what is missing: runs, the metrics of every epoch,
    artifacts, how runs ended. It is called every two seconds by a thread beside the sweep, and once more at the end.
    Nothing else carries results to MLflow, so a sweep that is resumed, finished or not, brings what never arrived.

What happens when the store fails
    Before the sweep starts: a `UserError` within about ten seconds. After that nothing tracked may stop a sweep: one
    warning is logged for each kind of trouble, and the store is tried again twice a minute and at the end. What has
    not arrived then is named in `warnings`.

`tracking.json` in the sweep's folder says where everything went: {"id", "uri", "experiment", "run_id", "runs": {trial:
run id}, "tags"}; reports read it instead of asking MLflow. Runs are found by their tags before one is created.
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
from mmsweep.readers.mlflow.attempts import Attempts, AwayError
from mmsweep.readers.mlflow.content import best_weights, epoch_metrics, run_name, scores_on_test
from mmsweep.readers.mlflow.naming import children_table, metric_name, param_text, prefixed
from mmsweep.readers.mlflow.store import Store
from mmsweep.record.evaluation import Evaluation
from mmsweep.record.files import read_record, write_atomically
from mmsweep.record.summary import Summary
from mmsweep.record.sweep import SweepFile, TrackingFile, superseded_folders, trial_folders
from mmsweep.record.trial import TrialFolder

SWEEP_STATES = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}
RUN_STATES = {**SWEEP_STATES, "stopped": "KILLED"}  # the tag mmsweep.state tells an early stop from an interruption
FOLLOW_SECONDS = 2.0
RETRY_SECONDS = 30.0  # a store that failed is tried again after so long
END_SECONDS = 60.0  # the end of a sweep waits so long for a slow store; --resume brings the rest
SIGNAL_SECONDS = 15.0  # and so long after a signal: SLURM kills 30 s after its SIGTERM
_FILES = ("trial.json", "reports.jsonl", "done.json", "evaluation.json")  # what a run in MLflow is made from


@dataclass
class _Run:
    """What MLflow has of a child run; `attached`: names of its artifacts, None where they were not asked for yet."""

    run_id: str
    status: str
    metrics: dict[str, float] = field(default_factory=dict)
    params: set[str] = field(default_factory=set)
    tags: dict[str, str] = field(default_factory=dict)
    attached: set[str] | None = None
    opened: bool = False  # its params and tags are complete

    @classmethod
    def of(cls, run: Run) -> _Run:
        return cls(run.info.run_id, run.info.status, dict(run.data.metrics), set(run.data.params), dict(run.data.tags))

    def closed_as(self, *states: str) -> bool:
        """Whether it was closed, in one of some states."""
        state = self.tags.get("mmsweep.state", "")
        return state in states and self.status == RUN_STATES.get(state)


class Tracker:
    """Makes an MLflow store agree with one sweep's folder. Made and used by the driver alone.

    Args:
        uri: MLflow tracking URI; None: `$MLFLOW_TRACKING_URI`, else `sqlite:///<root>/mlflow.db`. A relative SQLite
            path starts at `root`. Databases are created once, under a lock.
        experiment: name of the MLflow experiment, created where it does not exist (for SQLite with an absolute artifact
            folder beside the database: MLflow's own default is relative to whoever creates it).
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
        self._runs: dict[str, _Run] | None = None  # by trial; None: to be asked for
        self._agreed: dict[Path, tuple[object, ...]] = {}  # a trial's folder -> as it was when MLflow agreed with it
        self._late: set[Path] = set()  # folders with something left to send, at the end
        self._away = False  # the store did not answer last time
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def warnings(self) -> list[str]:
        """What went wrong with the store since the sweep began, each kind once, in words; passwords are masked."""
        return self._attempts.warnings

    def ui_command(self) -> str:
        """The command that shows the runs (for a server: its address), without any password."""
        if self.uri.startswith(("http://", "https://")):
            return self.uri
        mlflow = "mlflow" if shutil.which("mlflow") else f"{shlex.quote(sys.executable)} -m mlflow"
        uri = f'"{self.uri}"' if VARIABLE.search(self.uri) else shlex.quote(self.uri)  # the shell fills variables in
        return f"{mlflow} ui --backend-store-uri {uri}"

    # ------------------------------------------------------------------ the sweep

    def start(self, folder: Path, tags: Mapping[str, str]) -> str:
        """Find or create the parent run of the sweep that lies in `folder`.

        The run belongs to the sweep, not to the path: `tracking.json` in the folder holds a random id that the run
        carries as a tag, so that a folder which was deleted and made anew does not write into the old sweep's runs.

        Args:
            tags: what makes the sweep reproducible, beside `environment_tags`; every child run gets them too, so that
                each stands alone. Plain names get the prefix `mmsweep.`; with `dataset` and `dataset_fingerprint` among
                them the data are also logged as an MLflow dataset.

        Returns:
            The run's id.

        Raises:
            UserError: the store fails before the sweep has begun, or the folder holds no sweep.
        """
        self._folder, self._summary = Path(folder).absolute(), Summary.load(Path(folder))
        study = (self._folder / "study.yaml").read_text(encoding="utf-8")
        with self._store.as_user_errors():
            self._notes = self._kept_notes()
            identity, name = self._notes["id"], self._summary.name
            fixed = {"mmsweep.kind": "sweep", "mmsweep.sweep": name, "mmsweep.state": "running"}
            fixed |= {"mmsweep.sweep_id": identity, "mmsweep.sweep_path": str(self._folder)}
            found = self._store.search(f"tags.`mmsweep.sweep_id` = '{identity}' and tags.`mmsweep.kind` = 'sweep'")
            if found:
                self._parent = found[0].info.run_id
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
        """Within, a thread makes MLflow agree with the folder every two seconds."""

        def follow() -> None:
            while not self._stop.wait(RETRY_SECONDS if self._away else FOLLOW_SECONDS):
                self.agree()

        self._thread = threading.Thread(target=follow, name="mlflow", daemon=True)
        self._thread.start()
        try:
            yield
        finally:
            self._stop.set()

    def end(self, state: str, report: Path | None = None) -> None:
        """Bring what is missing, close all runs, put the table of children into the parent's description.

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
                self._attempts.warn(f"MLflow at {self.uri} does not answer; --resume brings what never reached it")
                return
        for path in self._late:
            self._agreed.pop(path, None)
        missing = self.agree(state)
        try:
            attach = partial(self._store.send, self._parent, folder="report")
            if report is not None and not self._attempts.done("the report", partial(attach, report)):
                missing.append("the report")
            self._attempts.do("the end of the sweep", lambda: self._close_parent(state))
        except AwayError:
            missing.append("the end of the sweep")
        if missing:
            named = ", ".join(missing)[:300]
            self._attempts.warn(
                f"{len(missing)} entries never reached MLflow at {self.uri} (the sweep's folder has them, and --resume "
                f"brings them): {named}"
            )

    def agree(self, state: str = "running") -> list[str]:
        """Make MLflow agree with the folder: what it has already is not sent again.

        Args:
            state: the sweep's. Trials that have not ended are running, interrupted or failed as it is.

        Returns:
            What could not be brought, by name; never raises an `Exception`.
        """
        missing: list[str] = []
        self._away = False
        for folder in trial_folders(self._folder):
            files = _fingerprint(folder.path)
            now = (files, None if files[_FILES.index("done.json")] else state)
            if self._agreed.get(folder.path) == now:
                continue
            name = str(folder.path.relative_to(self._folder))
            try:
                if self._away:
                    raise AwayError
                late = self._agree_on(folder, state)
            except AwayError:
                self._away, self._runs = True, None  # what was under way may have arrived all the same: ask again
                missing.append(name)
                continue
            except Exception as problem:  # a file that is damaged or gone; the verbs that read it say so
                late = [name] if folder.path.exists() else []
                if late:
                    self._attempts.warn(f"{name} cannot be brought to MLflow: {problem}", str(problem))
            self._agreed[folder.path] = now
            self._late |= {folder.path} if late else set()
            missing += late
        return missing

    def _close_parent(self, state: str) -> None:
        children = self._store.search(f"tags.`mlflow.parentRunId` = '{self._parent}'")
        note = children_table(children, self._summary.objectives, self._store.experiment_id)
        self._store.client.set_terminated(self._parent, SWEEP_STATES[state])
        self._store.log(self._parent, tags={"mmsweep.state": state, "mlflow.note.content": note})

    # ------------------------------------------------------------------ one trial

    def _agree_on(self, folder: TrialFolder, state: str) -> list[str]:
        """Bring a trial up to date; the artifacts that could not be attached. Raises AwayError."""
        if not folder.exists():
            return []
        about, reports, done = folder.trial(), folder.reports(), folder.done()
        self._rename_superseded()
        if folder.trial() != about:  # put aside meanwhile, and another one lies here
            return []
        unfinished = "interrupted" if state == "finished" else state
        id, wanted = run_name(folder), str(done["state"]) if done else unfinished
        run = self._open(id, about, wanted)
        first = int(run.metrics.get("epoch", 0)) + 1
        if new := [report for report in reports if report.epoch >= first]:
            metrics = epoch_metrics(new, reports, self._summary.objectives)
            self._attempts.do(f"epochs of {id}", lambda: self._store.log(run.run_id, metrics=metrics))
            run.metrics["epoch"] = new[-1].epoch
        evaluation = folder.path / "evaluation.json"
        if wanted == "finished" and evaluation.exists():
            self._log_test(id, run, Evaluation.read(evaluation))
        late = self._attach(id, run, folder, wanted)
        if wanted != "running" and not run.closed_as(wanted):
            self._attempts.do(f"the end of {id}", lambda: self._close(run, wanted))
        return late

    def _open(self, id: str, about: Mapping[str, Any], wanted: str) -> _Run:
        """Find or create the run of a trial, and complete its params and tags."""
        runs = self._known()
        if id not in runs:
            tags = {"mlflow.parentRunId": self._parent, "mmsweep.trial_id": id, "mmsweep.sweep": self._summary.name}
            tags["mmsweep.kind"] = id.split("/")[0] if "/" in id else "trial"
            created = self._attempts.do(f"the run of {id}", lambda: self._store.create_run(id, tags))
            if created is None:
                raise UserError("MLflow refuses to make a run", found=id)
            runs[id] = _Run(created, "RUNNING", attached=set())
        run = runs[id]
        if not run.opened and not run.closed_as("finished", "stopped"):
            params = {metric_name(key): param_text(value) for key, value in about["params"].items()}
            missing = {key: value for key, value in params.items() if key not in run.params}  # they are write-once
            facts = {**self._notes.get("tags", {}), "mmsweep.seed": str(about["seed"])}
            log = partial(self._store.log, run.run_id, tags=facts, params=missing)
            self._attempts.do(f"params and tags of {id}", log)
            self._attempts.do(f"the dataset of {id}", lambda: self._store.log_dataset(run.run_id, facts))
            run.params |= set(params)
            run.opened = True
        if wanted == "running" and run.status != "RUNNING":
            self._attempts.do(f"the run of {id}", lambda: self._store.client.update_run(run.run_id, status="RUNNING"))
            run.status, run.attached = "RUNNING", set()  # it will have other weights in the end
        if self._notes["runs"].get(id) != run.run_id:
            self._notes["runs"][id] = run.run_id
            self._write_notes()
        return run

    def _rename_superseded(self) -> None:
        """Runs of finals that were put aside make room for the new ones of the same name."""
        runs = self._known()
        for folder in superseded_folders(self._folder):
            about, id = folder.trial(), run_name(folder)
            if id not in runs and about["id"] in runs:
                tags = {"mmsweep.trial_id": id, "mmsweep.kind": "superseded"}
                rename = partial(self._store.log, runs[about["id"]].run_id, tags=tags)
                self._attempts.do(f"tags of {id}", rename)
                runs[id] = runs.pop(about["id"])
                self._notes["runs"].pop(about["id"], None)

    def _log_test(self, id: str, run: _Run, evaluation: Evaluation) -> None:
        values = {metric_name(name): value for name, value in scores_on_test(evaluation).items()}
        step, now = int(run.metrics.get("epoch", 0)), int(time.time() * 1000)
        if new := [Metric(name, value, now, step) for name, value in values.items() if name not in run.metrics]:
            self._attempts.do(f"test metrics of {id}", lambda: self._store.log(run.run_id, metrics=new))
            run.metrics |= values

    def _attach(self, id: str, run: _Run, folder: TrialFolder, wanted: str) -> list[str]:
        """Attach the trial's study, and at its end its weights and evaluation; what could not be attached, by name."""
        paths = [folder.path / "study.yaml"]
        if wanted != "running" and folder.done() is not None:
            paths += [best_weights(folder, self._summary.objectives[0]), folder.path / "evaluation.json"]
        paths = [path for path in paths if path.exists()]
        if run.attached is None or not {path.name for path in paths} <= run.attached:
            if run.attached is None:
                listed = self._attempts.do(f"artifacts of {id}", lambda: self._store.client.list_artifacts(run.run_id))
                run.attached = {item.path for item in listed or ()}
            for path in paths:
                send = partial(self._store.send, run.run_id, path)
                if path.name not in run.attached and self._attempts.done(f"artifact {path.name} of {id}", send):
                    run.attached.add(path.name)
        return [f"artifact {path.name} of {id}" for path in paths if path.name not in run.attached]

    def _close(self, run: _Run, state: str) -> None:
        self._store.client.set_terminated(run.run_id, RUN_STATES[state])
        # Last: it says that the run is closed. A driver killed between the two closes it again when resumed.
        self._store.log(run.run_id, tags={"mmsweep.state": state})
        run.status, run.tags["mmsweep.state"] = RUN_STATES[state], state

    # ------------------------------------------------------------------ what is known of the runs

    def _known(self) -> dict[str, _Run]:
        """The child runs that MLflow has, by trial."""
        if self._runs is None:
            query = f"tags.`mlflow.parentRunId` = '{self._parent}'"
            found = self._attempts.do("the sweep's runs", lambda: self._store.search(query)) or []
            self._runs = {run.data.tags.get("mmsweep.trial_id", run.info.run_id): _Run.of(run) for run in found}
        return self._runs

    def _kept_notes(self) -> dict[str, Any]:
        """`tracking.json`, or a new one: it must be on disk before the run that carries its id is made."""
        if (kept := read_record(self._folder / "tracking.json", TrackingFile)) is not None:
            return {"runs": {}, **kept}
        self._notes = {"id": self._known_identity() or uuid.uuid4().hex}
        self._write_notes()
        return {"runs": {}, **self._notes}

    def _write_notes(self) -> None:
        write_atomically(self._folder / "tracking.json", json.dumps(self._notes, indent=1))

    def _known_identity(self) -> str | None:
        """The id that the sweep's run carries, where `tracking.json` was lost and `sweep.json` still names the run."""
        sweep = read_record(self._folder / "sweep.json", SweepFile) or {}
        run_id = sweep.get("mlflow", {}).get("run_id")
        if not run_id:
            return None
        try:
            return self._store.client.get_run(run_id).data.tags.get("mmsweep.sweep_id")
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":  # another store, or somebody deleted the run
                return None
            raise


def _fingerprint(folder: Path) -> tuple[object, ...]:
    """Changes whenever a file changes from which the run is made."""
    found: list[tuple[int, int] | None] = []
    for name in _FILES:
        try:
            status = os.stat(folder / name)
        except OSError:
            found.append(None)
        else:
            found.append((status.st_mtime_ns, status.st_size))
    return tuple(found)
