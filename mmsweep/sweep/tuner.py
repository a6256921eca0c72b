"""A study's sweep from its start (or from wherever it was interrupted) to its finals.

`--resume` and `--extend` are one mechanism: a new `Tuner` over the same folder. The trials that have a folder are
served first and replay what they recorded, then Optuna is asked for what is missing. `Tuner.restore` is not used:
it unpickles what lies in the folder, can be a step behind it, and cannot extend.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from optuna.distributions import BaseDistribution
from optuna.trial import TrialState, create_trial
from ray import tune
from ray.tune.error import TuneError
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

import mmsweep.sweep.cluster as cluster
from mmsweep.ending import Interrupt
from mmsweep.environment_faults import environment_fault
from mmsweep.errors import UserError
from mmsweep.record.sweep import SweepRecord
from mmsweep.record.trial import TrialFolder, trial_id
from mmsweep.study import Study
from mmsweep.study.packs import pack_limit
from mmsweep.study.sections import MOST_SLOTS
from mmsweep.study.space import starting_points
from mmsweep.sweep.finals import FinalJob, lay_out_finals, run_jobs
from mmsweep.sweep.folder import SweepFolder
from mmsweep.sweep.hosts import LIGHT_TRIAL, HostPool
from mmsweep.sweep.optuna_file import open_checked
from mmsweep.sweep.outcome import SweepOutcome
from mmsweep.sweep.progress import Progress
from mmsweep.sweep.search import TrialSearch, tell
from mmsweep.sweep.session import Session, starting_hosts
from mmsweep.sweep.trial import EPOCH, OBJECTIVE, follow

if TYPE_CHECKING:
    from mmsweep.readers.mlflow.tracker import Tracker

log = logging.getLogger("mmsweep.sweep")


@dataclass
class _Ending:
    """How a sweep ends, as far as is known; `complete`: finished, with its report."""

    state: str = "failed"
    run_id: str = ""
    reason: str | None = None
    complete: bool = False


class Sweep:
    """One study's sweep, from wherever its folder stands.

    Args:
        warm: import path of what hosts keep warm.
        tags: more tags for its MLflow runs.
    """

    def __init__(self, study: Study, folder: SweepFolder, warm: str, tags: Mapping[str, str]) -> None:
        self.study, self.folder, self.warm, self.tags = study, folder, warm, tags
        self.objectives = study.sweep.objectives

    def run(self, *, live: bool, done: bool, retry_failed: bool) -> SweepOutcome:
        """Search and finals, and the report.

        Args:
            live: a live table where stdout is a terminal.
            done: search and finals were finished before: the report only.
            retry_failed: train failed trials again.

        Raises:
            UserError: see `start.run_sweep`.
            Interrupted: before tracking was open.
        """
        study, folder, interrupt = self.study, self.folder, Interrupt()
        objective, ending = self.objectives[0], _Ending()
        try:
            with (
                Progress(study.name, folder.trials, objective, live) as progress,
                cluster.logged_to(folder.logs / "driver.log"),
                interrupt.listening(),
                nullcontext() if done else self._hosts(progress, interrupt) as hosts,
            ):
                for note in folder.notes:
                    progress.line(note)
                from mmsweep.readers.mlflow.environment import environment_tags
                from mmsweep.readers.mlflow.tracker import Tracker  # seconds, in which the hosts start

                tracker = Tracker(study.tracking.uri, study.tracking.experiment or study.name, Path.cwd())
                tags = {**environment_tags(), **self.tags}
                ending.run_id = tracker.start(folder.path, tags)
                try:
                    mlflow = {"uri": tracker.uri, "experiment": tracker.experiment, "run_id": ending.run_id}
                    folder.update(state="running", mlflow=mlflow)
                    if hosts is None:
                        ending.state = "finished"
                        progress.phase("completing the MLflow runs")
                        tracker.sync("finished")
                    elif interrupt.requested:
                        ending.state = "interrupted"
                    else:
                        with tracker.following():
                            ending.state = self._trained(hosts, progress, interrupt, retry_failed)
                except KeyboardInterrupt:
                    ending.state = "interrupted"
                except Exception as problem:
                    reason = environment_fault(problem)
                    if reason is None:
                        raise
                    log.exception("the environment gave out")
                    progress.phase(f"{reason}; what was computed is kept")
                    ending.state, ending.reason = "interrupted", reason
                finally:  # the hosts were told to end, which takes as long as the report
                    self._end(ending, tracker, progress, interrupt)
        except KeyboardInterrupt:  # again, while hosts start or end
            if not ending.run_id:
                raise
        signal = None if ending.complete else interrupt.number
        state = ending.state if signal is None else "interrupted"
        ui = tracker.ui_command()
        return SweepOutcome(state, folder.path, ending.run_id, ui, tracker.warnings, signal, ending.reason)

    def _note_state(self, state: str) -> None:
        try:
            self.folder.update(state=state)
        except OSError as problem:  # the disk is full, which is why the sweep ends
            log.warning("sweep.json: %s", problem)

    def _trained(self, hosts: HostPool, progress: Progress, interrupt: Interrupt, retry_failed: bool) -> str:
        about = (self.warm, self.folder.path, progress, interrupt)

        def work() -> str:
            try:
                with Session.open(self.study, hosts, *about) as session:
                    return self._search_and_finals(session, retry_failed)
            except ray.exceptions.RayError as error:
                hosts.blame(error)
                raise

        return cluster.attended(work, interrupt, hosts.gone)

    def _end(self, ending: _Ending, tracker: Tracker, progress: Progress, interrupt: Interrupt) -> None:
        """Write down how it ended, and the report, unless a signal is in a hurry."""
        self._note_state(ending.state)
        report = None
        try:
            if not (interrupt.at_once or (interrupt.requested and ending.state == "finished")):
                with interrupt.raising():
                    report = self._report(progress)
                ending.complete = ending.state == "finished"
        finally:
            tracker.end(ending.state, report)

    def _hosts(self, progress: Progress, interrupt: Interrupt) -> AbstractContextManager[HostPool]:
        folder = self.folder
        return starting_hosts(
            self.study.resources, max(folder.trials, 1), self.warm, folder.attempt(), folder.logs, progress, interrupt
        )

    def _report(self, progress: Progress) -> Path | None:
        """Write the report, and return its folder; what was computed stands whether or not it can be drawn."""
        if not self.folder.numbers() and not any((self.folder.path / "final").glob("*/*")):
            return None  # refused before it began
        progress.phase("writing the report")
        from mmsweep.readers.report.page import write_report  # seconds

        try:
            return write_report(self.folder.path).parent
        except Exception as problem:
            log.exception("the report")
            again = f"`mmsweep report {self.folder.path}` tries again"
            progress.line(f"the report could not be written ({problem}); {again}")
            return None

    def _search_and_finals(self, session: Session, retry_failed: bool) -> str:
        folder, study = self.folder, self.study
        searched = bool(study.search) and folder.trials > 0
        if searched:
            folders = [folder.trial(number) for number in folder.numbers()]
            optuna_study, note = open_checked(folder.path / "optuna.db", study, folders)
            if note:
                session.progress.line(note)
            for point in starting_points(study):
                optuna_study.enqueue_trial(point, skip_if_exists=True)
            self._reconcile(optuna_study, retry_failed)
            self._tune(session, optuna_study)
            if session.problem:
                raise session.problem
            if session.interrupt.requested:
                return "interrupted"
        jobs = self._final_jobs(session, searched)
        if retry_failed:
            for folder_of_final, _ in jobs:
                if (folder_of_final.done() or {}).get("state") == "failed":
                    folder_of_final.clear_done()
        if jobs:
            session.progress.phase(f"{len(jobs)} final run{'s' if len(jobs) > 1 else ''} on test")
            ended = run_jobs(jobs, session)
            if session.problem:
                raise session.problem
            if not ended:
                return "interrupted"
        return "finished"

    def _final_jobs(self, session: Session, searched: bool) -> list[FinalJob]:
        if searched:
            return lay_out_finals(SweepRecord.load(self.folder.path), self.study)
        seed = self.study.train.seed
        folder = TrialFolder(self.folder.path / "final" / "best" / f"seed-{seed}")
        folder.create(
            {"id": f"final/best/seed-{seed}", "number": None, "params": {}, "kind": "final", "seed": seed},
            self.study.to_yaml(),
        )
        return [(folder, self.study)]

    def _reconcile(self, optuna_study: Any, retry_failed: bool) -> None:
        """Make Optuna agree with the folders, which are the truth, before anything starts."""
        for number in self.folder.numbers():
            folder = self.folder.trial(number)
            done = folder.done()
            if retry_failed and done and done["state"] == "failed":
                asked = optuna_study.get_trials(deepcopy=False)[folder.trial()["optuna"]]
                again = _asked_again(asked.params, asked.distributions)
                optuna_study.add_trial(again)
                folder.update(optuna=len(optuna_study.get_trials(deepcopy=False)) - 1)
                folder.clear_done()
            else:
                tell(optuna_study, folder, self.objectives)

    def _tune(self, session: Session, optuna_study: Any) -> None:
        """The search itself: Ray Tune with Optuna, a scheduler, and light trials."""
        study, folder = self.study, self.folder
        # Those that are done first: the scheduler has then seen everything when it judges one that goes on.
        served = sorted(folder.numbers(), key=lambda n: (folder.trial(n).done() is None, n))
        total, judged = max(folder.trials, len(served)), judged_epochs(study)
        limit = pack_limit(study, total)
        search = TrialSearch(
            study, optuna_study, folder.path / "trials", served,
            submit=lambda trial, own: session.submit(trial, own, pack_limit=limit, judged=judged),
            ended=lambda trial: session.ended(trial.trial()["id"], trial),
            total=total, room=session.room, say=session.progress.line,
        )  # fmt: skip
        watch = _Watch(session, search, study.sweep.budget.hours)
        trainable = tune.with_resources(
            tune.with_parameters(follow, board=session.board, objective=self.objectives[0]), LIGHT_TRIAL
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
                max_concurrent_trials=min(MOST_SLOTS * session.hosts, total),
                reuse_actors=True,
                trial_name_creator=_trial_name,
                trial_dirname_creator=_trial_name,
            ),
            run_config=tune.RunConfig(
                name="trials",
                storage_path=str(session.pool.storage),
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
            session.pool.blame(error)
            last = str(error).strip().splitlines()[-1]
            raise session.problem or UserError(
                f"the search broke off ({last})", file=folder.logs / "driver.log"
            ) from error
        if search.total < total:
            folder.update(trials=search.total)
        if watch.out_of_time and not session.must_end():
            for folder_left in (folder.trial(n) for n in folder.numbers()):
                if folder_left.done() is None and session.submitted(folder_left):
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
