"""`optuna.db`, checked against the trials' folders, which are the truth, and made again from them where it disagrees.

A study that was made again holds the same points, scores and intermediate values, so the sampler suggests what it would
have suggested, and no starting point is enqueued a second time.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import optuna
from optuna.trial import FixedTrial, FrozenTrial, TrialState, create_trial

from mmsweep.environment_faults import environment_fault
from mmsweep.record.trial import TrialFolder
from mmsweep.study import Study
from mmsweep.study.space import SearchSpace
from mmsweep.sweep.search import FOLDER, ended_as, open_optuna

log = logging.getLogger("mmsweep.sweep")


def open_checked(path: Path, study: Study, folders: Sequence[TrialFolder]) -> tuple[optuna.Study, str | None]:
    """The sweep's Optuna study, and what had to be done to it as a sentence (None: nothing).

    Args:
        path: `optuna.db`.
        folders: those of the sweep's trials, in the order of their numbers.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: the disk gave out, which says nothing about the file.
    """
    problem = _problem(path, study, folders)
    if problem is not None:
        log.warning("%s %s", path, problem)
        for name in (path.name, f"{path.name}-journal", f"{path.name}-wal", f"{path.name}-shm"):
            if path.with_name(name).exists():  # a left-over journal would be played back into the new file
                os.replace(path.with_name(name), path.with_name(f"{name}.damaged"))
    opened = open_optuna(path, study.name, study.sweep.objectives)
    if problem is None:
        return opened, None
    space = SearchSpace(study)
    for folder in folders:
        _add(opened, folder, study, space)
    return opened, f"{path.name} {problem}; it was made again from the folders of {len(folders)} trials"


def _problem(path: Path, study: Study, folders: Sequence[TrialFolder]) -> str | None:
    """Why the file cannot be used, in words; None where it agrees with the folders."""
    if not path.exists():
        return "was missing" if folders else None
    space, objectives = SearchSpace(study), study.sweep.objectives
    try:
        trials = open_optuna(path, study.name, objectives).get_trials(deepcopy=False)
    except Exception as error:  # whatever SQLite, SQLAlchemy and Optuna say about bytes that are none of theirs
        if environment_fault(error):
            raise
        return f"could not be read ({(str(error).splitlines() or [type(error).__name__])[0][:120]})"
    for folder in folders:
        about = folder.trial()
        number = about.get("optuna", -1)
        if not 0 <= number < len(trials) or trials[number].params != space.point(about["params"]):
            return f"did not hold trial {about['id']}"
        state, scores = ended_as(folder, objectives)
        told = trials[number]
        if told.state.is_finished() and (told.state != state or (scores and told.values != scores)):
            return f"told otherwise of trial {about['id']}"
    return None


def _add(opened: optuna.Study, folder: TrialFolder, study: Study, space: SearchSpace) -> None:
    """Tell a study about a trial that it has never heard of, and note its number there."""
    about = folder.trial()
    opened.add_trial(_told(folder, study, space))
    number = len(opened.get_trials(deepcopy=False)) - 1
    if about.get("optuna") != number:
        folder.update(optuna=number)


def _told(folder: TrialFolder, study: Study, space: SearchSpace) -> FrozenTrial:
    """A trial as Optuna would hold it, had it been asked for and told of it (`search.tell`)."""
    about, objectives = folder.trial(), study.sweep.objectives
    state, scores = ended_as(folder, objectives)
    asked = FixedTrial(space.point(about["params"]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna warns of experimental options that were chosen on purpose
        space(asked)
    steps: dict[int, float] = {}
    if len(objectives) == 1 and state in (TrialState.COMPLETE, TrialState.PRUNED):
        reports = folder.reports()
        epochs = [report.metrics for report in reports]
        steps = {report.epoch: objectives[0].score(epochs[:n]) for n, report in enumerate(reports, 1)}
    if state == TrialState.PRUNED and steps:
        scores = [steps[max(steps)]]
    return create_trial(
        state=state,
        values=scores,
        params=asked.params,
        distributions=asked.distributions,
        user_attrs={FOLDER: int(folder.path.name)},
        intermediate_values=steps,
    )
