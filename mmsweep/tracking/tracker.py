"""The MLflow writer: one parent run a sweep, one child run a trial or final; `MlflowClient` only, no fluent globals.

How it lies in MLflow
    Parent run = sweep; children carry `mlflow.parentRunId`, `mmsweep.trial_id`, `mmsweep.sweep`. Params are only what
    varies in the sweep; what is constant is a tag or stands in the artifact `study.yaml`. Metrics are named
    `split/scenario/metric`, their step is the epoch; beside them a trial has `objective`, its score so far, because
    MLflow's tables show last values and a score is a best one.

What happens when the store fails
    Before the sweep starts: a `UserError` within about ten seconds. After that nothing tracked may kill a sweep: what
    cannot be written is kept in order, one warning is logged for each kind of trouble, it is tried again at most twice
    a minute (so that a dead server does not slow the trials) and a last time in `end_sweep`. What still is not written
    then is named in `warnings`. The sweep folder has everything: MLflow never holds the only copy.

`tracking.json` in the sweep's folder says where everything went: {"id", "uri", "experiment", "run_id", "runs": {trial:
run id}, "tags"}; reports read it instead of asking MLflow. Everything is find-or-create by tag, so that
a resumed sweep goes on in the same runs; an epoch that a run already has is not logged again.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow.entities import Dataset, DatasetInput, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

from mmsweep.record.files import read_record, write_whole
from mmsweep.record.objective import best_of
from mmsweep.record.sweep import SweepFile, TrackingFile
from mmsweep.study_source import VARIABLE
from mmsweep.tracking.address import shown
from mmsweep.tracking.naming import Objective, children_table, metric_name, objectives
from mmsweep.tracking.outbox import Outbox
from mmsweep.tracking.store import Store, impatient

SWEEP_STATES = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}
TRIAL_STATES = {**SWEEP_STATES, "stopped": "KILLED"}  # the tag mmsweep.state tells an early stop from an interruption


@dataclass
class _ChildRun:
    """What the writer knows of one child run."""

    trial_id: str
    params: Mapping[str, object] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    run_id: str | None = None
    state: str | None = None
    last_epoch: int = 0
    logged: dict[str, float] = field(default_factory=dict)
    settled: str | None = None  # the state in which an earlier driver closed it for good


class Tracker:
    """Writes one sweep to MLflow. Made and used by the driver alone.

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
        self._client = self._store.client
        self.uri, self.experiment = shown(uri, self._store.uri), experiment
        self._outbox = Outbox(self.uri)
        self._parent: str | None = None
        self._sweep = ""
        self._objectives: list[Objective] = []
        self._runs: dict[str, _ChildRun] = {}
        self._notebook = Path()
        self._notes: dict[str, Any] = {}

    @property
    def warnings(self) -> list[str]:
        """What went wrong with the store since the sweep started, in words."""
        return self._outbox.warnings

    def ui_command(self) -> str:
        """The command that shows the runs (for a server: its address), without any password."""
        if self.uri.startswith(("http://", "https://")):
            return self.uri
        mlflow = "mlflow" if shutil.which("mlflow") else f"{shlex.quote(sys.executable)} -m mlflow"
        uri = f'"{self.uri}"' if VARIABLE.search(self.uri) else shlex.quote(self.uri)  # the shell fills variables in
        return f"{mlflow} ui --backend-store-uri {uri}"

    # ------------------------------------------------------------------ the sweep's own run

    def start_sweep(self, name: str, sweep_folder: Path, study_yaml: str, tags: Mapping[str, str]) -> str:
        """Finds or creates the parent run and returns its id.

        The run belongs to the sweep, not to the path: `tracking.json` in the folder holds a random id that the run
        carries as a tag, so that a folder which was deleted and made anew does not write into the old sweep's runs.

        Args:
            tags: what makes the sweep reproducible, beside `environment_tags`; every child run gets them too, so that
                each stands alone. Plain names get the prefix `mmsweep.`; with `dataset` and `dataset_fingerprint` among
                them the data are also logged as an MLflow dataset.

        Raises:
            UserError: the store fails before the sweep has begun.
        """
        self._sweep, self._objectives = name, objectives(study_yaml)
        self._notebook = Path(sweep_folder).absolute() / "tracking.json"
        with impatient(), self._store.as_user_errors():
            self._notes = _notes(self._notebook, self._known_identity)
            identity = self._notes["id"]
            fixed = {"mmsweep.kind": "sweep", "mmsweep.sweep": name, "mmsweep.state": "running"}
            fixed |= {"mmsweep.sweep_id": identity, "mmsweep.sweep_path": str(self._notebook.parent)}
            found = self._search(f"tags.`mmsweep.sweep_id` = '{identity}' and tags.`mmsweep.kind` = 'sweep'")
            if found:
                self._parent = found[0].info.run_id
                self._client.update_run(self._parent, status="RUNNING")
            else:
                self._parent = self._create(name, fixed)
            self._log(self._parent, tags={**_prefixed(tags), **fixed})
            self._client.log_text(self._parent, study_yaml, "study.yaml")
            self._log_dataset(self._parent, tags)
        self._notes |= {"uri": self.uri, "experiment": self.experiment, "run_id": self._parent}
        self._notes["tags"] = _prefixed(tags)
        write_whole(self._notebook, json.dumps(self._notes, indent=1))
        return self._parent

    def set_tags(self, tags: Mapping[str, str], trial_id: str | None = None) -> None:
        """Adds tags to the parent run or a trial's: facts known only later, such as the prepared data's fingerprint."""

        def write() -> None:
            run_id = self._parent_id() if trial_id is None else self._run_id(self._run(trial_id))
            self._log(run_id, tags=_prefixed(tags))
            self._log_dataset(run_id, tags)

        if trial_id is None:
            self._notes["tags"] = {**self._notes.get("tags", {}), **_prefixed(tags)}
            write_whole(self._notebook, json.dumps(self._notes, indent=1))
        self._outbox.write("tags", write)

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Attaches a file, or a folder's content, to the parent run under `folder`."""
        self._outbox.write_unordered(f"artifact {path}", lambda: self._send(self._parent_id(), Path(path), folder))

    def end_sweep(self, state: str) -> None:
        """Writes what is waiting, closes children left open, puts the table of children into the parent's description.

        Args:
            state: "finished", "interrupted" or "failed".
        """
        for run in self._runs.values():
            if run.state is None:
                self.end_trial(run.trial_id, "failed" if state == "failed" else "interrupted")

        def write() -> None:
            children = self._search(f"tags.`mlflow.parentRunId` = '{self._parent_id()}'")
            note = children_table(children, self._objectives, self._store.experiment_id)
            self._client.set_terminated(self._parent_id(), SWEEP_STATES[state])
            self._log(self._parent_id(), tags={"mmsweep.state": state, "mlflow.note.content": note})

        self._outbox.write("end of the sweep", write)
        self._outbox.finish()

    # ------------------------------------------------------------------ the trials' runs

    def start_trial(self, trial_id: str, params: Mapping[str, object], tags: Mapping[str, str], study_yaml: str) -> str:
        """Finds or creates the child run of a trial ("0003") or a final ("final/best/seed-101").

        Args:
            params: only what varies in the sweep.
            study_yaml: the trial's resolved study, logged as the artifact `study.yaml`.

        Returns:
            The run's id; "" while the store does not answer (the run is then made with the first write that succeeds).
        """
        run = self._runs[trial_id] = _ChildRun(trial_id, dict(params), dict(tags))
        self._outbox.write(f"start of {trial_id}", lambda: self._open(run))
        self._outbox.write_unordered(
            f"artifact study.yaml of {trial_id}",
            lambda: self._client.log_text(self._run_id(run), study_yaml, "study.yaml"),
        )
        return run.run_id or ""

    def log_epoch(self, trial_id: str, epoch: int, metrics: Mapping[str, float]) -> None:
        """Logs one report in one batch, with step `epoch` (from 1). An epoch that the run already has is skipped."""
        run, now = self._run(trial_id), _now()

        def write() -> None:
            run_id = self._run_id(run)
            if epoch <= run.last_epoch:
                return
            values = {name: float(value) for name, value in metrics.items() if _is_number(value) and name != "epoch"}
            values |= self._scores(run, values)
            values["epoch"] = float(epoch)  # last: it says that everything before it is there
            self._log(run_id, metrics=[Metric(metric_name(k), v, now, epoch) for k, v in values.items()])
            run.last_epoch = epoch
            run.logged.update(values)

        self._outbox.write(f"epoch {epoch} of {trial_id}", write)

    def log_test(self, trial_id: str, metrics: Mapping[str, float]) -> None:
        """Logs test metrics (`test/complete/f1_macro`), once; final runs only."""
        run, now = self._run(trial_id), _now()

        def write() -> None:
            run_id = self._run_id(run)
            values = {metric_name(name): float(value) for name, value in metrics.items() if _is_number(value)}
            new = {name: value for name, value in values.items() if name not in run.logged}
            self._log(run_id, metrics=[Metric(name, value, now, run.last_epoch) for name, value in new.items()])
            run.logged.update(new)

        self._outbox.write(f"test metrics of {trial_id}", write)

    def end_trial(self, trial_id: str, state: str, artifacts: Iterable[Path] = ()) -> None:
        """Closes a run: "finished" is FINISHED, "failed" FAILED, "stopped" (early) and "interrupted" KILLED.

        Args:
            state: also written as the tag `mmsweep.state`.
            artifacts: files or folders to attach first (adapters and heads as safetensors, evaluation.json).
        """
        run = self._run(trial_id)
        run.state = state
        for path in map(Path, artifacts):
            what = f"artifact {path.name} of {trial_id}"
            self._outbox.write_unordered(what, lambda path=path: self._send_missing(run, path))  # type: ignore[misc]
        if run.settled == state:
            return

        def write() -> None:
            run_id = self._run_id(run)
            self._client.set_terminated(run_id, TRIAL_STATES[state])
            # Last: it says that the run is closed. A driver killed between the two closes it again when resumed.
            self._log(run_id, tags={"mmsweep.state": state})

        self._outbox.write(f"end of {trial_id}", write)

    # ------------------------------------------------------------------ MLflow calls; each may raise

    def _known_identity(self) -> str | None:
        """The id that the sweep's run carries, where `tracking.json` was lost and `sweep.json` still names the run."""
        sweep = read_record(self._notebook.with_name("sweep.json"), SweepFile) or {}
        run_id = sweep.get("mlflow", {}).get("run_id")
        if not run_id:
            return None
        try:
            return self._client.get_run(run_id).data.tags.get("mmsweep.sweep_id")
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":  # another store, or somebody deleted the run
                return None
            raise

    def _create(self, name: str, tags: Mapping[str, str]) -> str:
        user = os.environ.get("USER") or os.environ.get("LOGNAME") or "unknown"
        tags = {**tags, "mlflow.source.name": "mmsweep", "mlflow.user": user}
        return str(self._client.create_run(self._store.experiment_id, tags=tags, run_name=name).info.run_id)

    def _search(self, query: str) -> list[Run]:
        found: list[Run] = []
        token = None
        while True:
            page = self._client.search_runs([self._store.experiment_id], query, max_results=1000, page_token=token)
            found += page
            token = page.token
            if not token:
                return found

    def _send(self, run_id: str, path: Path, folder: str) -> None:
        send = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
        send(run_id, str(path), folder or None)

    def _send_missing(self, run: _ChildRun, path: Path) -> None:
        """Attach a file to a trial's run; a run that an earlier driver closed gets it only where it lacks it."""
        run_id = self._run_id(run)
        attached = [] if run.settled is None else self._client.list_artifacts(run_id)
        if path.name not in {item.path for item in attached}:
            self._send(run_id, path, "")

    def _parent_id(self) -> str:
        if self._parent is None:
            raise MlflowException("start_sweep was not called")
        return self._parent

    def _run(self, trial_id: str) -> _ChildRun:
        return self._runs.setdefault(trial_id, _ChildRun(trial_id))

    def _run_id(self, run: _ChildRun) -> str:
        self._open(run)
        return str(run.run_id)

    def _open(self, run: _ChildRun) -> None:
        """Finds or creates the child run, completes its params and tags, and reads how far it was logged."""
        if run.run_id is not None:
            return
        parent = self._parent_id()
        found = self._search(f"tags.`mlflow.parentRunId` = '{parent}' and tags.`mmsweep.trial_id` = '{run.trial_id}'")
        params: set[str] = set()
        if found:
            run_id, data = found[0].info.run_id, found[0].data
            run.logged, params = dict(data.metrics), set(data.params)
            run.last_epoch = int(data.metrics.get("epoch", 0))
            state = data.tags.get("mmsweep.state")
            run.settled = state if state in ("finished", "stopped") else None  # those are only being replayed
            if run.settled is None:
                self._client.update_run(run_id, status="RUNNING")
        else:
            tags = {"mlflow.parentRunId": parent, "mmsweep.trial_id": run.trial_id, "mmsweep.sweep": self._sweep}
            tags["mmsweep.kind"] = "final" if run.trial_id.startswith("final") else "trial"
            run_id = self._create(run.trial_id, tags)
        missing = {metric_name(k): _text(v) for k, v in run.params.items() if metric_name(k) not in params}
        facts = {**self._notes.get("tags", {}), **_prefixed(run.tags)}
        self._log(run_id, tags=facts, params=missing)  # params are write-once
        self._log_dataset(run_id, facts)
        run.run_id = run_id
        self._notes["runs"][run.trial_id] = run_id
        write_whole(self._notebook, json.dumps(self._notes, indent=1))

    def _log(
        self,
        run_id: str,
        metrics: Sequence[Metric] = (),
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """`log_batch` within MLflow's limits: 1,000 metrics, 100 params, 100 tags a request."""
        all_params = [Param(k, v) for k, v in (params or {}).items()]
        all_tags = [RunTag(metric_name(k), str(v)) for k, v in (tags or {}).items()]
        chunks = max(-(-len(metrics) // 800), -(-len(all_params) // 90), -(-len(all_tags) // 90))
        for i in range(chunks):
            some_params, some_tags = all_params[i * 90 : (i + 1) * 90], all_tags[i * 90 : (i + 1) * 90]
            self._client.log_batch(run_id, metrics[i * 800 : (i + 1) * 800], some_params, some_tags)

    def _log_dataset(self, run_id: str, tags: Mapping[str, str]) -> None:
        named = _prefixed(tags)
        if "mmsweep.dataset" in named and "mmsweep.dataset_fingerprint" in named:
            name, digest = named["mmsweep.dataset"], named["mmsweep.dataset_fingerprint"][:36]  # the column's width
            dataset = Dataset(name, digest, source_type="mmsweep", source=json.dumps({"dataset": name}))
            self._client.log_inputs(run_id, [DatasetInput(dataset, [])])

    def _scores(self, run: _ChildRun, values: Mapping[str, float]) -> dict[str, float]:
        """`objective` (of several: `objective/<metric>`): best so far, or last where `scope: last` is asked for."""
        scores: dict[str, float] = {}
        for objective in self._objectives:
            name = "objective" if len(self._objectives) == 1 else f"objective/{objective.metric}"
            new, old = values.get(objective.metric), run.logged.get(name)
            if new is None or new != new:  # NaN is no score
                continue
            scores[name] = new if old is None or objective.scope == "last" else best_of((old, new), objective.mode)
        return scores


def _notes(path: Path, known_identity: Callable[[], str | None]) -> dict[str, Any]:
    """What stands in the notebook, or a new one: it must be on disk before the run that carries its id is made."""
    if (kept := read_record(path, TrackingFile)) is not None:
        return {"runs": {}, **kept}
    path.parent.mkdir(parents=True, exist_ok=True)
    notes = {"id": known_identity() or uuid.uuid4().hex}
    write_whole(path, json.dumps(notes))
    return {"runs": {}, **notes}


def _prefixed(tags: Mapping[str, str]) -> dict[str, str]:
    """Plain names become ours: "split_digest" is `mmsweep.split_digest`."""
    ours = ("mmsweep.", "mlflow.")
    return {name if name.startswith(ours) else f"mmsweep.{name}": str(value) for name, value in tags.items()}


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _now() -> int:
    return int(time.time() * 1000)
