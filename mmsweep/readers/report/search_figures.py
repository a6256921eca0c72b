"""Figures of the search: history, learning curves, parameter importance, parallel coordinates.

Every function returns the PNG's path, or None if it has nothing to draw yet.
"""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import optuna
from matplotlib.axes import Axes

from mmsweep.readers import wording
from mmsweep.readers.report.style import COLOURS, GREY, INK, figure
from mmsweep.record.objective import best_of
from mmsweep.record.results import TrialRecord
from mmsweep.record.summary import Searched
from mmsweep.record.sweep import SweepRecord

FEWEST_FOR_IMPORTANCE = 20
"""Finished trials needed. With 20 trials, three parameters and a random objective, fANOVA attributed up to 64 % of the
variance to one parameter (six studies)."""
IMPORTANCE_TREES = 32
HAS_SKLEARN = importlib.util.find_spec("sklearn") is not None
"""Optuna's fANOVA needs scikit-learn, which is installed only as a dependency of MLflow."""


def history(record: SweepRecord, path: Path) -> Path | None:
    """Objective by trial number with the best so far; stopped and failed trials are marked."""
    scored = [trial for trial in record.trials if trial.objective is not None]
    if not scored:
        return None
    metric = record.metric
    with figure(path, 7.2, 3.6) as (_, (panel,)):
        place = {trial.id: position for position, trial in enumerate(record.trials)}
        best_x, best_y = _best_so_far(record, place)
        if best_x:
            values = [wording.scaled(metric, value) for value in best_y]
            panel.step(
                [*best_x, len(record.trials) - 0.6],
                [*values, values[-1]],
                where="post",
                color=COLOURS[1],
                label="best so far",
            )
        looks: Mapping[str, dict[str, Any]] = {
            "finished": {"marker": "o", "color": COLOURS[0], "s": 42},
            "stopped": {"marker": "v", "facecolors": "none", "edgecolors": GREY, "s": 42},
            "running": {"marker": "o", "facecolors": "none", "edgecolors": COLOURS[0], "s": 42},
            "failed": {"marker": "x", "color": COLOURS[5], "s": 42},
        }
        for state, look in looks.items():
            trials = [t for t in scored if (t.state if t.state in looks else "running") == state]
            if trials:
                xs = [place[t.id] for t in trials]
                ys = [wording.scaled(metric, t.objective or 0.0) for t in trials]
                panel.scatter(xs, ys, label=wording.STATES.get(state, state), zorder=3, **look)
        unscored = [place[t.id] for t in record.trials if t.objective is None and t.state == "failed"]
        if unscored:
            bottom = panel.get_ylim()[0]
            panel.scatter(
                unscored, [bottom] * len(unscored), label="failed without a score", zorder=3, **looks["failed"]
            )
        panel.set_xticks(*_ticks(record.trials))
        panel.set_xlabel("trial")
        panel.set_ylabel(_objective_label(record))
        panel.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=5)
    return path


def _best_so_far(record: SweepRecord, place: Mapping[str, int]) -> tuple[list[int], list[float]]:
    xs, ys = [], []
    best = math.nan
    for trial in record.trials:
        if trial.objective is not None and trial.state == "finished":
            best = best_of((best, trial.objective), record.objective.mode)
            xs.append(place[trial.id])
            ys.append(best)
    return xs, ys


def curves(record: SweepRecord, path: Path) -> Path | None:
    """Objective by epoch of every trial; shows where the scheduler stopped trials, and the winner's curve."""
    trials = [trial for trial in record.trials if len(trial.curve) > 1]
    if not trials:
        return None
    best = record.best
    with figure(path, 7.2, 3.6) as (_, (panel,)):
        for trial in sorted(trials, key=lambda t: (t is best, t.state == "finished")):
            xs = [epoch for epoch, _ in trial.curve]
            ys = [wording.scaled(record.metric, value) for _, value in trial.curve]
            is_best = best is not None and trial.id == best.id
            colour = COLOURS[1] if is_best else COLOURS[0] if trial.state == "finished" else GREY
            label = f"best ({trial.id})" if is_best else wording.STATES.get(trial.state, trial.state)
            known = panel.get_legend_handles_labels()[1]
            panel.plot(
                xs, ys, color=colour, alpha=1.0 if is_best else 0.55, linewidth=2.6 if is_best else 1.3,
                label=None if label in known else label,
            )  # fmt: skip
            if trial.state == "stopped":
                panel.plot(xs[-1], ys[-1], marker="v", color=GREY, markerfacecolor="white", zorder=3)
        panel.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
        panel.set_xlabel("epoch")
        panel.set_ylabel(_objective_label(record))
        panel.legend(loc="lower right")
    return path


@dataclass(frozen=True)
class Importance:
    """A parameter's share of the variance of the objective.

    Args:
        share: mean over the trees of fANOVA's forest, between 0 and 1.
        low: 5th percentile over the trees.
        high: 95th percentile.
    """

    share: float
    low: float
    high: float


def importances(record: SweepRecord) -> dict[str, Importance]:
    """Importance of each parameter that all finished trials have, largest first; empty for too few trials.

    fANOVA (Hutter et al. 2014) is fitted one tree at a time, because Optuna's evaluator returns only the mean of a
    forest, and the spread over the trees shows how far that mean can be trusted.
    """
    complete = _complete_trials(record)
    several = len(record.summary.objectives) > 1
    if (
        not HAS_SKLEARN
        or several
        or len(complete) < FEWEST_FOR_IMPORTANCE
        or len({trial.value for trial in complete}) < 2
    ):
        return {}
    study = optuna.create_study(direction="minimize")  # the direction does not affect the variance
    study.add_trials(complete)
    trees = []
    for seed in range(IMPORTANCE_TREES):
        evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=1, seed=seed)
        trees.append(optuna.importance.get_param_importances(study, evaluator=evaluator))
    result = {}
    for key in trees[0]:
        shares = [tree[key] for tree in trees]
        low, high = np.percentile(shares, [5, 95])
        result[key] = Importance(float(np.mean(shares)), float(low), float(high))
    return dict(sorted(result.items(), key=lambda item: (-item[1].share, item[0])))


def _complete_trials(record: SweepRecord) -> list[optuna.trial.FrozenTrial]:
    """The finished trials as Optuna's, with the parameters that all of them have."""
    finished = [trial for trial in record.trials if trial.state == "finished" and trial.objective is not None]
    keys = [key for key in record.summary.search if all(key in trial.params for trial in finished)]
    space = {key: _distribution(record.summary.search[key]) for key in keys}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    trials = []
    for trial in finished:
        values = {key: trial.params[key] for key in keys}
        params = {key: _key(v) if record.summary.search[key].kind == "choice" else v for key, v in values.items()}
        trials.append(optuna.trial.create_trial(params=params, distributions=space, value=trial.objective))
    return trials


def _distribution(dimension: Searched) -> optuna.distributions.BaseDistribution:
    if dimension.kind == "choice":
        return optuna.distributions.CategoricalDistribution([_key(choice) for choice in dimension.choices])
    return optuna.distributions.FloatDistribution(dimension.low, dimension.high, log=dimension.kind.startswith("log"))


def importance_note(record: SweepRecord) -> str:
    """How many trials the importances come from, or why they are not shown; "" for several objectives."""
    if len(record.summary.objectives) > 1 or not record.trials:
        return ""
    if not HAS_SKLEARN:
        return "Parameter importance is not shown: it needs scikit-learn, which is not installed."
    trials = len(_complete_trials(record))
    if trials < FEWEST_FOR_IMPORTANCE:
        return (
            f"Parameter importance is not shown: {trials} trials finished, and with fewer than {FEWEST_FOR_IMPORTANCE} "
            "chance alone can attribute more than half of the variance to a parameter without effect."
        )
    return (
        f"Importances are from {trials} finished trials. Trust a difference only if the intervals do not overlap. "
        "Parameters that only some trials have are left out."
    )


def importance_bars(record: SweepRecord, path: Path) -> Path | None:
    """Parameter importance with its 90 % interval over the trees, most important on top."""
    by_key = importances(record)
    if not by_key:
        return None
    names = wording.short_names(list(by_key))
    with figure(path, 7.2, 1.0 + 0.38 * len(by_key)) as (_, (panel,)):
        values = [100 * importance.share for importance in by_key.values()]
        below = [100 * max(i.share - i.low, 0.0) for i in by_key.values()]
        above = [100 * max(i.high - i.share, 0.0) for i in by_key.values()]
        panel.barh(range(len(by_key)), values, 0.62, color=COLOURS[0], xerr=[below, above], ecolor=GREY, capsize=3)
        for position, value in enumerate(values):
            panel.annotate(
                f"{value:.0f} %", (value, position), xytext=(4, 7), textcoords="offset points", va="center", size=8
            )
        panel.set_yticks(range(len(by_key)), [names[key] for key in by_key])
        panel.invert_yaxis()
        panel.grid(visible=False, axis="y")
        panel.set_xlim(0, 105)
        panel.set_xlabel("share of the variance between trials (fANOVA, %); whiskers: 5 % to 95 % of the trees")
    return path


def parallel_coordinates(record: SweepRecord, path: Path) -> Path | None:
    """A line for each scored trial through its parameters to its objective; darker is better, dashed is stopped."""
    trials = list(reversed(record.ranking))
    keys = [key for key in record.summary.search if len({_key(t.params.get(key)) for t in trials}) > 1]
    if len(trials) < 2 or not keys:
        return None
    names = wording.short_names(keys)
    scores = np.array([trial.objective or 0.0 for trial in trials])
    normal = (scores - scores.min()) / max(np.ptp(scores), 1e-12)
    quality = normal if record.objective.better(1.0, 0.0) else 1 - normal
    places = [_axis(record, key, [trial.params.get(key) for trial in trials]) for key in keys]
    ends = (scores.min(), scores.max())
    score_ticks = [
        (position, wording.number(record.metric, ends[0] + position * (ends[1] - ends[0])))
        for position in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    axes = [*places, (list(normal), score_ticks)]
    colours = mpl.colormaps["viridis_r"]  # dark for good trials, since yellow is hard to see on white
    with figure(path, max(6.4, 1.5 * len(axes) + 1.2), 4.0) as (_, (panel,)):
        for position, trial in enumerate(trials):
            ys = [values[position] for values, _ in axes]
            stopped = trial.state != "finished"
            panel.plot(
                range(len(axes)), ys, color=colours(0.15 + 0.85 * quality[position]), alpha=0.45 if stopped else 0.9,
                linewidth=1.2 if stopped else 2.0, linestyle=(0, (3, 2)) if stopped else "-", zorder=2,
            )  # fmt: skip
        for x, (_, ticks) in enumerate(axes):
            panel.axvline(x, color=INK, linewidth=0.9, zorder=1)
            for y, text in ticks:
                panel.annotate(
                    text, (x, y), xytext=(4, 0), textcoords="offset points", va="center", size=7.5, zorder=4,
                    bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.6},
                )  # fmt: skip
        _frame(panel, [*(names[key] for key in keys), record.objective.metric.removeprefix("val/")])
    return path


def _frame(panel: Axes, titles: Sequence[str]) -> None:
    panel.set_xticks(range(len(titles)), [title.replace("/", "\n") for title in titles])
    panel.xaxis.tick_top()
    panel.set_yticks([])
    panel.set_xlim(-0.1, len(titles) - 0.6)
    panel.set_ylim(-0.05, 1.05)
    panel.grid(visible=False)
    for side in panel.spines.values():
        side.set_visible(False)


def _axis(record: SweepRecord, key: str, values: Sequence[Any]) -> tuple[list[float], list[tuple[float, str]]]:
    """Positions from 0 to 1 of a parameter's values (NaN for a trial without one), and the axis' ticks."""
    dimension = record.summary.search[key]
    if dimension.kind == "choice":
        options = dimension.choices
        step = 1 / max(len(options) - 1, 1)
        place = {_key(option): index * step for index, option in enumerate(options)}
        ticks = [(index * step, wording.param_value(option)) for index, option in enumerate(options)]
        return [place.get(_key(value), math.nan) for value in values], ticks
    scale = math.log if dimension.kind in ("log_uniform", "log_int") else float
    low, high = scale(dimension.low), scale(dimension.high)
    unscale = math.exp if scale is math.log else float
    ticks = [
        (t, wording.param_value(float(f"{unscale(low + t * (high - low)):.3g}"))) for t in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    return [(scale(value) - low) / (high - low) if value is not None else math.nan for value in values], ticks


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _ticks(trials: Sequence[TrialRecord]) -> tuple[list[int], list[str]]:
    every = max(1, -(-len(trials) // 16))
    places = list(range(0, len(trials), every))
    return places, [str(trials[place].number) for place in places]


def _objective_label(record: SweepRecord) -> str:
    scenario = record.objective.metric.split("/")[1]
    return f"validation {wording.metric_label(record.metric)}\n{wording.scenario_label(scenario)}"


SEARCH_FIGURES = {
    "history": history,
    "curves": curves,
    "importance": importance_bars,
    "parallel": parallel_coordinates,
}
