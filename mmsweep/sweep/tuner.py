"""A study's sweep from its start (or from wherever it was interrupted) to its finals.

`--resume` and `--extend` are one mechanism: a new `Tuner` over the same folder. The trials that have a folder are
served first and replay what they recorded, then Optuna is asked for what is missing. `Tuner.restore` is not used:
it unpickles what lies in the folder, can be a step behind it, and cannot extend.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.trial import TrialState, create_trial
from ray import tune
from ray.tune.error import TuneError
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

import mmsweep.sweep.cluster as cluster
from mmsweep.errors import UserError
from mmsweep.jobs import count_trials
from mmsweep.report.page import write_report
from mmsweep.report.record import SweepRecord
from mmsweep.study import Study
from mmsweep.sweep.finals import FinalJob, lay_out_finals, run_jobs
from mmsweep.sweep.folder import SweepFolder, check_lasting
from mmsweep.sweep.progress import Progress
from mmsweep.sweep.search import TrialSearch, open_optuna, starting_points, tell
from mmsweep.sweep.session import WARM, Session
from mmsweep.sweep.trial import EPOCH, OBJECTIVE, follow, trial_id
from mmsweep.tracking import Tracker, environment_tags
from mmsweep.training.capacity import MOST_SLOTS
from mmsweep.training.checkpoint import TrialFolder, write_whole

log = logging.getLogger("mmsweep.sweep")


@dataclass(frozen=True)
class SweepOutcome:
    """How a sweep (or a single training) ended.

    Args:
        state: finished | interrupted.
        folder: the sweep's folder.
        mlflow_run_id: the parent run.
        ui_command: shows the runs.
        warnings: what went wrong without ending the sweep (a tracking server that did not answer).
    """

    state: str
    folder: Path
    mlflow_run_id: str
    ui_command: str
    warnings: list[str] = field(default_factory=list)

    @property
    def record(self) -> SweepRecord:
        return SweepRecord.load(self.folder)


def run_sweep(
    study: Study,
    out: Path,
    *,
    resume: bool = False,
    extend: int = 0,
    retry_failed: bool = False,
    live: bool = True,
    warm: str = WARM,
    tags: Mapping[str, str] | None = None,
) -> SweepOutcome:
    """Run a study's sweep: search, then finals. Blocks until it is finished or interrupted (Ctrl-C).

    Args:
        study: the study.
        out: the sweep's folder (`sweeps/<name>`).
        resume: go on with the sweep that lies in `out`.
        extend: so many trials more than it had.
        retry_failed: train its failed trials again.
        live: a live table where stdout is a terminal.
        warm: import path of what hosts keep warm (tests put a stand-in here).
        tags: more tags for the sweep's and the trials' MLflow runs.

    Raises:
        UserError: the folder, the study, the cluster or the tracking store forbids it; or the hosts cannot go on.
    """
    if not study.search:
        raise UserError(
            "nothing to search", key="search", found={}, expected="at least one key with a range or choices",
            hint="`mmsweep train` trains one configuration.",
        )  # fmt: skip
    check_lasting(study, out)
    starting_points(study)  # refuses points outside of the space before anything is written
    folder = SweepFolder.open(study, out.absolute(), trials=count_trials(study), resume=resume, extend=extend)
    try:
        return _Sweep(study, folder, warm, tags or {}).run(live, retry_failed)
    except UserError:
        folder.abandon()
        raise
    finally:
        folder.release()


def train_one(
    study: Study,
    out: Path,
    *,
    live: bool = True,
    warm: str = WARM,
    resume: bool = False,
    tags: Mapping[str, str] | None = None,
) -> SweepOutcome:
    """Train one configuration on one host and evaluate it on test; laid out and tracked like a sweep's final run.

    Raises:
        UserError: as `run_sweep`.
    """
    check_lasting(study, out)
    folder = SweepFolder.open(study, out.absolute(), trials=0, resume=resume, extend=0)
    try:
        return _Sweep(study, folder, warm, tags or {}).run(live, retry_failed=resume)
    except UserError:
        folder.abandon()
        raise
    finally:
        folder.release()


class _Sweep:
    def __init__(self, study: Study, folder: SweepFolder, warm: str, tags: Mapping[str, str]) -> None:
        self.study, self.folder, self.warm, self.tags = study, folder, warm, tags
        self.objectives = study.sweep.objectives

    def run(self, live: bool, retry_failed: bool) -> SweepOutcome:
        study, folder = self.study, self.folder
        tracker = Tracker(study.tracking.uri, study.tracking.experiment or study.name, Path.cwd())
        objective, interrupt = self.objectives[0], cluster.Interrupt()
        with (
            Progress(study.name, folder.trials, objective.metric, objective.mode, live) as progress,
            cluster.logged_to(folder.logs / "driver.log"),
            interrupt.listening(),
        ):
            run_id = tracker.start_sweep(study.name, folder.path, study.to_yaml(), {**environment_tags(), **self.tags})
            mlflow = {"uri": tracker.uri, "experiment": tracker.experiment, "run_id": run_id}
            folder.update(state="running", mlflow=mlflow)
            state = "failed"
            try:
                finished = folder.finished and not retry_failed
                state = "finished" if finished else self._search_and_finals(tracker, progress, interrupt, retry_failed)
            except KeyboardInterrupt:
                state = "interrupted"
            finally:
                folder.update(state=state)
                self._report(tracker, progress)
                tracker.end_sweep(state)
        return SweepOutcome(state, folder.path, run_id, tracker.ui_command(), tracker.warnings)

    def _report(self, tracker: Tracker, progress: Progress) -> None:
        """Write the report and attach it to the parent run; what was computed stands whether or not it can be drawn."""
        if not self.folder.numbers() and not any((self.folder.path / "final").glob("*/*")):
            return  # refused before it began
        progress.phase("writing the report")
        try:
            index = write_report(self.folder.path)
        except Exception as problem:
            log.exception("the report")
            again = f"`mmsweep report {self.folder.path}` tries again"
            progress.line(f"the report could not be written ({problem}); {again}")
        else:
            tracker.log_artifact(index.parent, "report")

    def _search_and_finals(
        self, tracker: Tracker, progress: Progress, interrupt: cluster.Interrupt, retry_failed: bool
    ) -> str:
        folder, study = self.folder, self.study
        searched = bool(study.search) and folder.trials > 0
        if searched:
            optuna_study = open_optuna(folder.path / "optuna.db", study.name, self.objectives)
            for point in starting_points(study):
                optuna_study.enqueue_trial(point, skip_if_exists=True)
            self._reconcile(optuna_study, retry_failed)
        attempt = folder.attempt()
        most = max(folder.trials, 1)
        with Session.start(
            study,
            trials=most,
            warm=self.warm,
            folder=folder.path,
            storage=attempt,
            logs=folder.logs,
            tracker=tracker,
            progress=progress,
            interrupt=interrupt,
        ) as session:
            if searched:
                self._tune(session, optuna_study, attempt)
                if session.problem:
                    raise session.problem
                if interrupt.asked:
                    return "interrupted"
            jobs = self._final_jobs(session, searched)
            if retry_failed:
                for job in jobs:
                    if (job.folder.done() or {}).get("state") == "failed":
                        job.folder.clear_done()
            if jobs:
                progress.phase(f"{len(jobs)} final run{'s' if len(jobs) > 1 else ''} on test")
                ended = run_jobs(jobs, session)
                if session.problem:
                    raise session.problem
                if not ended:
                    return "interrupted"
        return "finished"

    def _final_jobs(self, session: Session, searched: bool) -> list[FinalJob]:
        if searched:
            return lay_out_finals(SweepRecord.load(self.folder.path), session)
        seed = self.study.train.seed
        folder = TrialFolder(self.folder.path / "final" / "best" / f"seed-{seed}")
        folder.create(
            {"id": f"final/best/seed-{seed}", "number": None, "params": {}, "kind": "final", "seed": seed},
            self.study.to_yaml(),
        )
        return [FinalJob(folder, self.study)]

    def _reconcile(self, optuna_study: Any, retry_failed: bool) -> None:
        """Make Optuna agree with the folders, which are the truth, before anything starts."""
        for number in self.folder.numbers():
            folder = self.folder.trial(number)
            done = folder.done()
            if retry_failed and done and done["state"] == "failed":
                asked = optuna_study.get_trials(deepcopy=False)[folder.trial()["optuna"]]
                again = _asked_again(asked.params, asked.distributions)
                optuna_study.add_trial(again)
                about = {**folder.trial(), "optuna": len(optuna_study.get_trials(deepcopy=False)) - 1}
                write_whole(folder.path / "trial.json", json.dumps(about, indent=1, sort_keys=True))
                folder.clear_done()
            else:
                tell(optuna_study, folder, self.objectives)

    def _tune(self, session: Session, optuna_study: Any, attempt: Path) -> None:
        """The search itself: Ray Tune with Optuna, a scheduler, and light trials."""
        study, folder = self.study, self.folder
        # Those that are done first: the scheduler has then seen everything when it judges one that goes on.
        served = sorted(folder.numbers(), key=lambda n: (folder.trial(n).done() is None, n))
        search = TrialSearch(
            study, optuna_study, folder.path / "trials", served,
            post=lambda trial, own: session.post(trial, own, judged=judged_epochs(study)),
            ended=lambda trial: session.ended(trial.trial()["id"], trial),
            total=max(folder.trials, len(served)), room=session.room,
        )  # fmt: skip
        watch = _Watch(session, search, study.sweep.budget.hours)
        trainable = tune.with_resources(
            tune.with_parameters(follow, board=session.board, objective=self.objectives[0]), {"CPU": 0.01}
        )
        session.progress.phase("searching")
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                metric=OBJECTIVE,
                mode=self.objectives[0].mode,
                search_alg=search,
                scheduler=make_scheduler(study),
                num_samples=-1,  # the searcher knows when all are served; one that Tune loses is served again
                max_concurrent_trials=min(MOST_SLOTS * session.hosts, max(folder.trials, len(served))),
                reuse_actors=True,
                trial_name_creator=_trial_name,
                trial_dirname_creator=_trial_name,
            ),
            run_config=tune.RunConfig(
                name="trials",
                storage_path=str(attempt),
                verbose=0,
                stop=_Stop(watch),
                callbacks=[watch],
                # Of the light trial's own process; what its host does is not its concern.
                failure_config=tune.FailureConfig(max_failures=3),
            ),
        )
        try:
            tuner.fit()
        except TuneError as error:  # Tune turns whatever its callbacks raise into text
            log.exception("the search")
            last = str(error).strip().splitlines()[-1]
            raise session.problem or UserError(
                f"the search broke off ({last})", file=folder.logs / "driver.log"
            ) from error
        if watch.out_of_time and not session.must_end():
            for folder_left in (folder.trial(n) for n in folder.numbers()):
                if folder_left.done() is None and session.posted(folder_left):
                    session.ended(folder_left.trial()["id"], folder_left)
                    tell(optuna_study, folder_left, self.objectives)


def make_scheduler(study: Study) -> TrialScheduler:
    """The study's scheduler, counting epochs."""
    options, epochs = study.sweep.scheduler, _longest(study)
    if options.name == "asha":
        return ASHAScheduler(
            time_attr=EPOCH,
            max_t=epochs,
            grace_period=min(options.grace_epochs, epochs),
            reduction_factor=options.reduction_factor,
        )
    if options.name == "median":
        return MedianStoppingRule(time_attr=EPOCH, grace_period=options.grace_epochs)
    return FIFOScheduler()


def judged_epochs(study: Study) -> list[int]:
    """The epochs at which the study's scheduler may stop a trial: ASHA's rungs, none, or any (median)."""
    options, epochs = study.sweep.scheduler, _longest(study)
    if options.name == "none":
        return []
    if options.name != "asha":
        return list(range(1, epochs + 1))
    rungs: list[int] = []
    grace = min(options.grace_epochs, epochs)
    while (rung := math.ceil(grace * options.reduction_factor ** len(rungs))) <= epochs:
        rungs.append(rung)
    return rungs


def _longest(study: Study) -> int:
    """The epochs of a trial, the most where they are searched."""
    longest = study.search.get("train.epochs")
    return study.train.epochs if longest is None else int(max(longest.edges()))


def _trial_name(trial: Any) -> str:
    return trial_id(trial.config["number"])


def _asked_again(params: dict[str, Any], distributions: dict[str, BaseDistribution]) -> Any:
    """A failed trial's point as a new running Optuna trial (Optuna never reopens one)."""
    return create_trial(state=TrialState.RUNNING, params=params, distributions=distributions)


class _Watch(tune.Callback):
    """Writes down what Tune saw, on the driver."""

    def __init__(self, session: Session, search: TrialSearch, hours: float | None) -> None:
        self._session, self._search = session, search
        self._until = None if hours is None else time.monotonic() + hours * 3600
        self.out_of_time = False

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        metrics = {k: v for k, v in result.items() if k.startswith(("val/", "train/"))}
        self._session.epoch(trial_id(trial.config["number"]), int(result[EPOCH]), metrics)

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        for trial in trials:
            if trial.status == "ERROR":  # Tune does not always tell its searcher; telling twice changes nothing
                self._search.on_trial_complete(trial.trial_id, error=True)
        self._session.expect(not self._search.exhausted)

    def must_end(self) -> bool:
        self.out_of_time = self._until is not None and time.monotonic() > self._until
        return self.out_of_time or self._session.must_end()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks; this one is the driver's alone

    def get_state(self) -> dict[str, Any] | None:
        return None


class _Stop(tune.Stopper):
    """Ends the whole search: Ctrl-C, hosts that cannot go on, or the budget."""

    def __init__(self, watch: _Watch) -> None:
        self._watch = watch

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._watch.must_end()

    def __getstate__(self) -> dict[str, Any]:
        return {}
