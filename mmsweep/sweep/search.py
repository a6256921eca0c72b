"""What to try next: the study's search space for Optuna, and the bookkeeping between Optuna's study and the trials'
folders.

The folders are the truth. A sweep that goes on (`--resume`, `--extend`) first serves the trials that have a folder:
what they recorded is replayed, so Tune's scheduler is rebuilt, and Optuna is told once, from the folder. Then
Optuna is asked for new ones.

Optuna's sampler is seeded anew for every trial with the sweep's seed and the trial's number: with one host, a sweep
of one slot that was killed suggests exactly what an undisturbed one would have.
"""

from __future__ import annotations

import math
import random
import sys
import warnings
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import TrialState
from ray.tune.search import Searcher

from mmsweep.errors import UserError
from mmsweep.record.objective import Objective
from mmsweep.record.trial import TrialFolder, trial_id
from mmsweep.study import Study
from mmsweep.study.space import SearchSpace, identity
from mmsweep.sweep.trial import EPOCH, OBJECTIVE

MAX_LOSSES = 3  # how often a trial that Tune loses is served again
FOLDER = "mmsweep_trial"  # Optuna user attribute: the number of the trial's folder


def make_sampler(name: str, seed: int) -> optuna.samplers.BaseSampler:
    """Optuna's sampler by its name in the study (a grid is enqueued, so its sampler never draws)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if name == "tpe":
            return optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)
        if name == "gp":
            return optuna.samplers.GPSampler(seed=seed)
        if name == "nsgaii":
            return optuna.samplers.NSGAIISampler(seed=seed)
        return optuna.samplers.RandomSampler(seed=seed)


def open_optuna(path: Path, name: str, objectives: Sequence[Objective]) -> optuna.Study:
    """The sweep's Optuna study in an SQLite file, created where there is none."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = optuna.storages.RDBStorage(
        f"sqlite:///{path.absolute()}", engine_kwargs={"connect_args": {"timeout": 60}}
    )
    directions = [StudyDirection.MINIMIZE if o.mode == "min" else StudyDirection.MAXIMIZE for o in objectives]
    return optuna.create_study(storage=storage, study_name=name, directions=directions, load_if_exists=True)


def ended_as(folder: TrialFolder, objectives: Sequence[Objective]) -> tuple[TrialState, list[float] | None]:
    """What a trial's folder says about its end, in Optuna's words.

    Finished is COMPLETE with its scores, stopped early PRUNED, failed or not a number FAIL; RUNNING: it did not end.
    """
    done = folder.done()
    if done is None:
        return TrialState.RUNNING, None
    epochs = [report.metrics for report in folder.reports()]
    if done["state"] == "failed" or not epochs:
        return TrialState.FAIL, None
    scores = [objective.score(epochs) for objective in objectives]
    if any(math.isnan(s) for s in scores):
        return TrialState.FAIL, None
    return (TrialState.COMPLETE, scores) if done["state"] == "finished" else (TrialState.PRUNED, None)


def tell(study: optuna.Study, folder: TrialFolder, objectives: Sequence[Objective], number: int | None = None) -> None:
    """Tell Optuna how a trial ended; once, and only what its folder says. A trial that did not end is left running.

    Args:
        number: of another Optuna trial, which repeats the folder's configuration; None: the folder's own.
    """
    state, scores = ended_as(folder, objectives)
    asked = study.get_trials(deepcopy=False)[folder.trial()["optuna"] if number is None else number]
    if state == TrialState.RUNNING or asked.state.is_finished():
        return
    live = _live(study, asked)
    if len(objectives) == 1 and state != TrialState.FAIL:  # Optuna refuses intermediate values of several objectives
        epochs = [report.metrics for report in folder.reports()]
        for n, report in enumerate(folder.reports(), 1):
            if report.epoch not in asked.intermediate_values:
                live.report(objectives[0].score(epochs[:n]), report.epoch)
    study.tell(live, scores, state)


def _live(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> optuna.trial.Trial:
    """A running trial of the storage as one that can be asked and told.

    Optuna hands these out for new trials only, and tells a trial's id in its storage by no public name.
    """
    return optuna.trial.Trial(study, trial._trial_id)


Submit = Callable[[TrialFolder, Study | None], None]
FROM_SAMPLER = 5  # repeats in a row after which the next configuration is drawn from those that were not tried
MOST_REPEATS = 1000  # of a space that is too large to list
REPEATS = "mmsweep_repeats"  # Optuna user attribute of a suggestion that was not trained: the trial that it repeats


class TrialSearch(Searcher):
    """Ray Tune's searcher: serves the trials that have a folder, then asks Optuna.

    A trial's folder exists before Tune hears of the trial, and `submit` queues it on the board at once, so an idle host
    starts while Tune still prepares the light trial. Tune's own OptunaSearch is not used, because it would tell Optuna
    that a stopped trial is COMPLETE, with a low-fidelity value, and would leave a NaN trial RUNNING for ever.

    Args:
        study: the study.
        optuna_study: its Optuna study.
        folder: `trials/` of the sweep.
        served: numbers of the trials that have a folder, in the order in which they are served.
        submit: called with a trial's folder and its study (None where the values do not make a study) before Tune
            hears of it.
        ended: called with a trial's folder when Tune is done with the trial.
        total: how many trials there are to be.
        room: how many may be open at a time, as far as is known by now.
        say: called with a line for people.

    A suggestion that repeats a trial's configuration gets no folder and no number: Optuna is told the known outcome and
    asked again, or the configuration is trained with another seed (`sweep.duplicates`). `total` counts configurations
    that are trained. When every configuration was tried, the search ends early.
    """

    def __init__(
        self,
        study: Study,
        optuna_study: optuna.Study,
        folder: Path,
        served: Sequence[int],
        submit: Submit,
        ended: Callable[[TrialFolder], None],
        total: int,
        room: Callable[[], int] = lambda: sys.maxsize,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        super().__init__(metric=OBJECTIVE, mode=study.sweep.objectives[0].mode)
        self._space, self._optuna = SearchSpace(study), optuna_study
        self._study, self._folder, self._submit, self._ended = study, folder, submit, ended
        self._to_serve, self._total, self._most, self._room = deque(served), total, total, room
        self._losses: Counter[str] = Counter()
        self._next = max(served, default=-1) + 1
        self._live: dict[str, TrialFolder] = {}
        self._say, self._tried = say, dict[str, list[int]]()
        known = set()
        for number in sorted(served):
            trial = self._at(number).trial()
            known.add(trial["optuna"])
            self._tried.setdefault(self._identity(trial["params"]), []).append(number)
        # Asked for by a driver that was killed before it had made the folder; taken up, since enqueued points come
        # only once.
        self._orphans = deque(
            t
            for t in optuna_study.get_trials(deepcopy=False)
            if t.state == TrialState.RUNNING and t.number not in known
        )

    def set_max_concurrency(self, max_concurrent: int) -> bool:
        """Tune's own limiter would never hear of a trial that was lost while its actor was reset, and wait for ever."""
        self._most = max_concurrent
        return True

    @property
    def total(self) -> int:
        """How many trials there are to be; fewer than asked for where the space has no more configurations."""
        return self._total

    @property
    def exhausted(self) -> bool:
        """Whether all trials were given out (one that is lost is given out again)."""
        return self._next >= self._total and not self._to_serve

    def suggest(self, trial_id: str) -> Any:
        if len(self._live) >= min(self._most, self._room()):
            return None
        if self.exhausted:
            # Not yet the end while a trial is under way: it may be lost and have to be served again.
            return None if self._live else Searcher.FINISHED
        if self._to_serve:
            folder = self._at(self._to_serve.popleft())
            self._submit(folder, self._study.with_values(folder.trial()["params"]) if folder.done() is None else None)
        elif (new := self._new()) is not None:
            folder = new
        else:
            return self.suggest(trial_id)  # exhausted by now
        self._live[trial_id] = folder
        return {"number": int(folder.path.name), "params": folder.trial()["params"]}

    def _at(self, number: int) -> TrialFolder:
        return TrialFolder(self._folder / trial_id(number))

    def _identity(self, params: Mapping[str, Any]) -> str:
        return identity({key: value for key, value in params.items() if key in self._study.search})

    def _asked(self) -> tuple[optuna.trial.Trial, dict[str, Any]] | None:
        """The next suggestion, as Optuna's trial and its values; None: every configuration was tried."""
        options, number = self._study.sweep, self._next
        for attempt in range(MOST_REPEATS):
            # Sampling depends on the trial's number alone, so a sweep that was killed goes on as it would have.
            seed = options.sampler.seed + number + attempt * 100_003
            self._optuna.sampler = make_sampler(options.sampler.name if attempt < FROM_SAMPLER else "random", seed)
            untried = self._space.untried(self._tried) if attempt >= FROM_SAMPLER and not self._orphans else None
            if untried is not None:
                if not untried:
                    return None
                self._optuna.enqueue_trial(self._space.point(random.Random(seed).choice(untried)))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Optuna warns of experimental options that were chosen on purpose
                asked = _live(self._optuna, self._orphans.popleft()) if self._orphans else self._optuna.ask()
                params = self._space(asked)
            repeated = self._tried.get(self._identity(params))
            if repeated is None or options.sampler.name == "grid":
                return asked, params
            if options.duplicates == "reseed":
                return asked, {**params, "train.seed": self._study.train.seed + len(repeated)}
            self._skip(asked, repeated[0])
        return None

    def _skip(self, asked: optuna.trial.Trial, number: int) -> None:
        """Tell Optuna how the trial ended that a suggestion repeats; nothing where it is still under way."""
        asked.set_user_attr(REPEATS, number)
        tell(self._optuna, self._at(number), self._study.sweep.objectives, asked.number)
        if not self._optuna.get_trials(deepcopy=False)[asked.number].state.is_finished():
            self._optuna.tell(asked, state=TrialState.FAIL)
        self._say(f"Optuna suggested the configuration of trial {trial_id(number)} again; skipped")

    def _new(self) -> TrialFolder | None:
        """A folder for the next suggestion; None where the space has no other configuration."""
        suggestion = self._asked()
        if suggestion is None:
            self._say(
                f"every configuration of the search space was tried: the search ends with {self._next} trials "
                f"instead of {self._total}"
            )
            self._total = self._next
            return None
        (asked, params), number = suggestion, self._next
        self._next += 1
        self._tried.setdefault(self._identity(params), []).append(number)
        asked.set_user_attr(FOLDER, number)
        folder, own, problem = self._at(number), None, None
        try:
            own = self._study.with_values(params)
        except UserError as error:  # each value is possible, their combination is not
            problem = str(error)
        about = {"id": trial_id(number), "number": number, "params": params, "kind": "trial", "optuna": asked.number}
        folder.create({**about, "seed": (own or self._study).train.seed}, (own or self._study).to_yaml())
        if problem:
            folder.mark_done("failed", problem)
        self._submit(folder, own)
        return folder

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing: what Optuna learns about epochs it is told once, at the end, from the folder."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        folder = self._live.pop(trial_id, None)
        if folder is None:
            return
        if error and folder.done() is None:
            self._lost(folder)
            return
        if folder.done() is None and self._finished(folder, result):
            # Tune saw the last epoch before the host had written its mark; the mark follows, the scores are in the
            # reports.
            folder.mark_done("finished")
        self._ended(folder)
        tell(self._optuna, folder, self._study.sweep.objectives)

    def _lost(self, folder: TrialFolder) -> None:
        """Tune lost the light trial (its process was killed at a bad moment); its host knows nothing of that. Serve it
        again, before any new one."""
        self._losses[folder.path.name] += 1
        if self._losses[folder.path.name] <= MAX_LOSSES:
            self._to_serve.appendleft(int(folder.path.name))
            return
        folder.mark_done("failed", f"Ray Tune lost it {self._losses[folder.path.name]} times; logs/driver.log says why")
        self._ended(folder)
        tell(self._optuna, folder, self._study.sweep.objectives)

    def _finished(self, folder: TrialFolder, result: dict[str, Any] | None) -> bool:
        epochs = self._study.with_values(folder.trial()["params"]).train.epochs
        return bool(result) and int((result or {}).get(EPOCH, 0)) >= epochs

    def __deepcopy__(self, memo: dict[int, Any]) -> TrialSearch:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its searcher now and then; the truth is in the folders, so there is nothing to keep

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a sweep goes on from its trials' folders")
