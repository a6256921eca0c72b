"""A small sweep's folder as the sweep writes it: real Optuna study, real evaluation code, invented predictions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch

from mmsweep.availability import Scenario, pattern_rows
from mmsweep.record.trial import Report, TrialFolder
from mmsweep.study import Study
from mmsweep.sweep.summary import summary_of
from mmsweep.tasks.multi_label import MultiLabel
from mmsweep.tasks.single_label import SingleLabel
from mmsweep.tasks.task import Target, Task
from mmsweep.training.evaluation import Predictions, evaluation_record, write_evaluation

MODALITIES = ("image", "text")
CLASSES = ("animal", "food", "people", "plant", "symbol", "tool", "transport")
EVALUATE = [
    "complete",
    {"missing": "text"},
    {"missing": "image"},
    {"available": {"image": 1.0, "text": 0.3}},
    {"rate": 0.7},
]
STUDY: dict[str, Any] = {
    "name": "demo",
    "data": {"dataset": "openclipart", "task": "single_label"},
    "model": {
        "encoders": {
            "image": {"source": "mmsweep", "name": "small-vit"},
            "text": {"source": "mmsweep", "name": "small-bert"},
        }
    },
    "method": {"name": "cmpt"},
    "train": {"epochs": 6},
    "scenarios": {"seed": 3, "evaluate": EVALUATE},
    "search": {
        "method.align_weight": {"log_uniform": [0.01, 1.0]},
        "model.lora.rank": {"choice": [1, 2, 4, 8]},
        "method.masking.probability": {"uniform": [0.0, 0.9]},
        "train.optimizer.lr": {"log_uniform": [1e-4, 1e-2]},
    },
    "sweep": {"trials": 12, "scheduler": {"name": "asha", "grace_epochs": 2}, "final": {"seeds": 3}},
}
GROUPS = {
    "plain": (0.45, 0.66),
    "modality_dropout": (0.62, 0.72),
    "cmpt": (0.66, 0.74),
}  # text gone, image gone; complete .78


def study(**changes: Any) -> Study:
    """The study with whole top-level sections replaced."""
    return Study.parse({**STUDY, **changes})


def per_method() -> Study:
    """A study whose finals are one a method."""
    search = {**STUDY["search"], "method.name": {"choice": list(GROUPS)}}
    sweep = {**STUDY["sweep"], "final": {"seeds": 3, "per": "method.name"}}
    return study(search=search, sweep=sweep)


def make_sweep(
    folder: Path, made: Study | None = None, *, state: str = "finished", trials: int = 12, finals: bool = True
) -> Path:
    """Writes the folder and returns it."""
    made = made or study()
    folder.mkdir(parents=True)
    (folder / "study.yaml").write_text(made.to_yaml())
    summary_of(made).write(folder)
    about = {"name": made.name, "state": state, "created": 1795262400.0, "trials": made.sweep.trials}
    (folder / "sweep.json").write_text(json.dumps(about))
    tags = {
        "mmsweep.version": "0.1.0",
        "mmsweep.torch": "2.15.0",
        "mmsweep.device": "cpu (2 cores)",
        "mmsweep.dataset_fingerprint": "9f2c",
    }
    runs = {f"{number:04d}": f"run{number}" for number in range(trials)}
    tracking = {"id": "x", "uri": "sqlite:////tmp/mlflow.db", "run_id": "parent", "runs": runs, "tags": tags}
    (folder / "tracking.json").write_text(json.dumps(tracking))
    _trials(folder, made, trials, state)
    if finals:
        groups = GROUPS if made.sweep.final and made.sweep.final.per else {"best": GROUPS["cmpt"]}
        for group, strengths in groups.items():
            for seed in (101, 102, 103):
                params = {"method.name": group} if group in GROUPS else {}
                make_final(folder / "final" / group / f"seed-{seed}", made, seed, strengths, params=params)
    return folder


def _trials(folder: Path, made: Study, count: int, state: str) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=0, n_startup_trials=4)
    storage = f"sqlite:///{folder.absolute()}/optuna.db"
    search = optuna.create_study(study_name=made.name, storage=storage, direction="maximize", sampler=sampler)
    random = np.random.default_rng(0)
    for number in range(count):
        trial = search.ask()
        params: dict[str, Any] = {}
        for key, d in made.search.items():
            if d.kind == "choice":
                params[key] = trial.suggest_categorical(key, d.choices)
            else:
                params[key] = trial.suggest_float(key, d.low, d.high, log=d.kind.startswith("log"))
        place = TrialFolder(folder / "trials" / f"{number:04d}")
        place.create(
            {"id": f"{number:04d}", "number": number, "params": params, "kind": "trial", "seed": 0}, made.to_yaml()
        )
        lr = np.log10(params["train.optimizer.lr"])
        goal = 0.62 - 0.06 * abs(lr + 2.6) - 0.1 * abs(params["method.masking.probability"] - 0.6)
        end, stop = 6, "finished"
        if number and goal < 0.53:
            end, stop = 2 + number % 2, "stopped"
        if number == 5:
            end, stop = 1, "failed"
        if state == "running" and number == count - 1:
            end, stop = 2, ""
        value = 0.0
        for epoch in range(1, end + 1):
            value = goal * (1 - 0.55**epoch) + random.normal(0, 0.006)
            metrics = {
                "val/mean_missing/f1_macro": value,
                "val/complete/f1_macro": value + 0.14,
                "train/loss": 2.0 / epoch,
            }
            place.append(Report(epoch, metrics, None, 3.5))
        if stop:
            place.mark_done(stop, "NaN in the loss" if stop == "failed" else None)  # type: ignore[arg-type]
            states = {"finished": "COMPLETE", "stopped": "PRUNED", "failed": "FAIL"}
            final = optuna.trial.TrialState[states[stop]]
            search.tell(trial, value if stop == "finished" else None, state=final)


def make_final(
    folder: Path,
    made: Study,
    seed: int,
    strengths: tuple[float, float],
    *,
    task: Task | None = None,
    rows: int = 300,
    natural: Mapping[str, float] | None = None,
    params: Mapping[str, Any] | None = None,
) -> None:
    """One evaluated final run; `strengths` is how often the right class wins without text, without image."""
    write_final(folder, made, seed, *invent(strengths, seed, task=task, rows=rows, natural=natural), params)


def write_final(
    folder: Path,
    made: Study,
    seed: int,
    predictions: Predictions,
    task: Task,
    params: Mapping[str, Any] | None = None,
    train_targets: np.ndarray | None = None,
) -> None:
    """A final run that said this of the test rows; with training targets it knows the constant predictor's scores."""
    place = TrialFolder(folder)
    place.create(
        {
            "id": f"final/{folder.parent.name}/{folder.name}",
            "params": dict(params or {}),
            "kind": "final",
            "seed": seed,
        },
        made.to_yaml(),
    )
    scenarios = [Scenario.parse(spec, MODALITIES) for spec in made.scenarios.evaluate]
    record = evaluation_record(predictions, task, scenarios, made.scenarios.seed, "test", 6, train_targets)
    write_evaluation(folder, record, predictions)
    place.mark_done("finished")


def invent(
    strengths: Sequence[float],
    seed: int,
    *,
    task: Task | None = None,
    rows: int = 300,
    natural: Mapping[str, float] | None = None,
) -> tuple[Predictions, Task]:
    """Predictions with a wished accuracy; targets and ids are the same for every seed."""
    classes = len(CLASSES)
    chosen = task or SingleLabel(Target("single_label", CLASSES))
    fixed, random = np.random.default_rng(0), np.random.default_rng(seed)
    present_NM = np.ones((rows, 2), dtype=bool)
    for column, modality in enumerate(MODALITIES):
        present_NM[:, column] = fixed.random(rows) >= (natural or {}).get(modality, 0.0)
    hard_N = fixed.random(rows)  # the same rows are hard for everyone, so that pairing matters
    accuracy_P = [0.78, *strengths]
    if isinstance(chosen, MultiLabel):
        target = torch.from_numpy((fixed.random((rows, classes)) < 0.3).astype(np.float32))
    else:
        target = torch.from_numpy(fixed.choice(classes, rows, p=np.arange(1, classes + 1) / 28))
    scores_PNC = random.random((len(pattern_rows(MODALITIES)), rows, classes)).astype(np.float32) * 0.5
    for p, accuracy in enumerate(accuracy_P):
        right_N = hard_N + random.normal(0, 0.05, rows) < accuracy
        if isinstance(chosen, MultiLabel):
            scores_PNC[p] = np.where(right_N[:, None], target.numpy() * 0.8 + 0.1, random.random((rows, classes)))
        else:
            scores_PNC[p, np.flatnonzero(right_N), target.numpy()[right_N]] = 0.9
    ids = tuple(f"row{number}" for number in range(rows))
    return Predictions(torch.from_numpy(scores_PNC), target, present_NM, MODALITIES, ids), chosen
