"""Evaluation: predicts under every pattern once, then scores every scenario, rate and class by indexing.

Predictions are kept as `statistics` [P, N, ...]. A scenario's table assigns a pattern to each row, and its score is the
metric of those entries, so the cost depends on the number of patterns and not of scenarios.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmsweep.availability import (
    BoolArray,
    Scenario,
    availability_table,
    pattern_name,
    pattern_rows,
    patterns,
    table_digest,
)
from mmsweep.data.dataset import Batch
from mmsweep.data.prepared_split import PreparedSplit
from mmsweep.methods.method import Method
from mmsweep.record.files import json_text, write_atomically
from mmsweep.record.objective import direction, worst_of
from mmsweep.study.sections import Inference
from mmsweep.tasks.task import Task
from mmsweep.training.inference import WHOLE, predict_patterns
from mmsweep.training.world import World


@dataclass(frozen=True)
class Predictions:
    """A model's predictions on a split under every pattern.

    Args:
        statistics_PN: [P, N, ...], on the CPU; entries whose pattern leaves the row nothing hold no meaning.
        target_N: the truth.
        natural_NM: what the data has.
        modalities: the order of columns.
        ids: of the rows.
        groups: of the rows; a row of the group None is its own.
    """

    statistics_PN: Tensor
    target_N: Tensor
    natural_NM: BoolArray
    modalities: tuple[str, ...]
    ids: tuple[str, ...]
    groups: tuple[str | None, ...] = ()

    def under(self, table_NM: BoolArray) -> tuple[Tensor, Tensor, BoolArray]:
        """Statistics and targets of the rows that are eligible under a table, and a mask of these rows."""
        rows_PM = pattern_rows(self.modalities)
        weights_M = 1 << np.arange(len(self.modalities))
        place = np.full(2 ** len(self.modalities), -1)
        place[rows_PM @ weights_M] = np.arange(len(rows_PM))
        pattern_N = place[table_NM @ weights_M]
        eligible_N = pattern_N >= 0
        index = torch.from_numpy(np.flatnonzero(eligible_N))
        return self.statistics_PN[torch.from_numpy(pattern_N[eligible_N]), index], self.target_N[index], eligible_N


def autocast(precision: str, device: torch.device) -> Any:
    """bf16 on GPUs if asked for; otherwise fp32."""
    if precision == "bf16" and device.type == "cuda":
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return nullcontext()


def predict(
    method: Method,
    task: Task,
    split: PreparedSplit,
    batch_size: int,
    device: torch.device,
    world: World,
    precision: str = "fp32",
    inference: Inference = WHOLE,
) -> Predictions:
    """Predictions of a method of one slot on a split."""
    return predict_slots(method, [task], split, batch_size, device, world, precision, inference)[0]


@torch.inference_mode()
def predict_slots(
    method: Method,
    tasks: Sequence[Task],
    split: PreparedSplit,
    batch_size: int,
    device: torch.device,
    world: World,
    precision: str = "fp32",
    inference: Inference = WHOLE,
) -> list[Predictions]:
    """Read the split once and predict under every pattern for each slot; the rows are divided among the ranks.

    Args:
        tasks: the task of each slot.
    """
    slots, task = len(tasks), tasks[0]
    modalities = method.backbone.modalities
    patterns_PM = torch.from_numpy(pattern_rows(modalities)).to(device)
    method.eval()
    method.noise.off()
    share = world.rows(len(split))
    parts: list[Tensor] = []
    for start in range(share.start, share.stop, batch_size):
        index = np.arange(start, min(start + batch_size, share.stop))
        batch: Batch = split.batch(index, device).repeated(slots)
        statistics: list[Tensor] = []
        # Maps of all patterns at once would fill the memory: 15 patterns, 20 classes at 1024 x 1024 are 1.3 GB a row.
        for some_PM in patterns_PM.split(1 if task.dense else len(patterns_PM)):
            with autocast(precision, device):
                prediction = predict_patterns(inference, method, batch, some_PM)
            pairs = zip(prediction.chunk(slots, 1), batch.target.chunk(slots), strict=True)  # one pair per slot
            statistics.append(torch.cat([t.statistics(*pair) for t, pair in zip(tasks, pairs, strict=True)], 1))
        parts.append(torch.cat(statistics).unflatten(1, (slots, -1)))
    if not parts:  # a rank without rows
        shape = (len(patterns_PM), slots, 0, *task.statistics_shape)
        parts = [torch.zeros(shape, dtype=task.statistics_dtype, device=device)]
    statistics_PSN = world.all_gather_rows(torch.cat(parts, 2), len(split), dim=2).cpu()
    truth, natural_NM, ids = task.truth(split.targets), np.asarray(split.natural_NM), tuple(split.ids)
    rows = (truth, natural_NM, modalities, ids, tuple(split.groups))
    return [Predictions(statistics_PSN[:, s], *rows) for s in range(slots)]


def scenario_metrics(
    predictions: Predictions, task: Task, scenarios: Sequence[Scenario], seed: int
) -> dict[str, float]:
    """`scenario/metric` for every scenario, and `mean_missing/…`, `worst_missing/…` over the proper patterns."""
    scores: dict[str, float] = {}
    for scenario in scenarios:
        metrics = _score(predictions, task, scenario, seed)
        scores |= {f"{scenario.name}/{metric}": value for metric, value in metrics.items()}
    mean, worst = missing_summary(predictions, task)
    scores |= {f"mean_missing/{metric}": value for metric, value in mean.items()}
    scores |= {f"worst_missing/{metric}": value for metric, value in worst.items()}
    return scores


def missing_summary(predictions: Predictions, task: Task) -> tuple[dict[str, float], dict[str, float]]:
    """Mean and worst metric over the incomplete patterns, each applied to all rows: the same in every study."""
    modalities = predictions.modalities
    scores = [_score(predictions, task, _always(p, modalities), 0) for p in patterns(modalities)[1:]]
    mean, worst = {}, {}
    for metric in task.metric_names:
        values = [score[metric] for score in scores if not math.isnan(score[metric])]
        mean[metric] = sum(values) / len(values) if values else math.nan
        worst[metric] = worst_of(values, direction(metric))
    return mean, worst


def constant_metrics(
    predictions: Predictions, task: Task, scenarios: Sequence[Scenario], seed: int, train_targets: np.ndarray
) -> dict[str, float]:
    """`constant/scenario/metric`: the `scenario_metrics` of the constant predictor.

    Args:
        train_targets: targets of the training rows [N, ...], as a prepared split holds them.
    """
    constant = _constant_predictions(predictions, task, train_targets)
    return {f"constant/{name}": v for name, v in scenario_metrics(constant, task, scenarios, seed).items()}


def _constant_predictions(predictions: Predictions, task: Task, train_targets: np.ndarray) -> Predictions:
    return replace(predictions, statistics_PN=task.constant_statistics(predictions.statistics_PN, train_targets))


def evaluation_record(
    predictions: Predictions,
    task: Task,
    scenarios: Sequence[Scenario],
    seed: int,
    split: str,
    epoch: int,
    train_targets: np.ndarray | None = None,
) -> dict[str, Any]:
    """The content of `evaluation.json`: all that a report needs on one model and one split.

    Args:
        train_targets: targets of the training rows; if given, the constant predictor is scored too.
    """
    modalities = predictions.modalities
    mean, worst = missing_summary(predictions, task)
    curves: dict[str, list[dict[str, Any]]] = {}
    for modality in modalities:
        curves[modality] = []
        for tenth in range(11):
            scenario = Scenario.parse({"available": {modality: tenth / 10}}, modalities)
            table = availability_table(scenario, len(predictions.ids), modalities, seed, predictions.natural_NM)
            statistics, target, _ = predictions.under(table)
            curves[modality].append(
                {"share": tenth / 10, "rows": len(target), "metrics": task.metrics(statistics, target)}
            )
    return {
        "split": split,
        "task": task.target.task,
        "modalities": list(modalities),
        "classes": list(task.target.classes),
        "rows": len(predictions.ids),
        "epoch": epoch,
        "scenarios": {s.name: _entry(predictions, task, s, seed) for s in scenarios},
        "patterns": {
            pattern_name(p, modalities): _entry(predictions, task, _always(p, modalities), seed)
            for p in patterns(modalities)
        },
        "mean_missing": mean,
        "worst_missing": worst,
        "curves": curves,
        **task.settings(),
        "constant": None
        if train_targets is None
        else _constant_scores(predictions, task, scenarios, seed, train_targets),
    }


def _constant_scores(
    predictions: Predictions, task: Task, scenarios: Sequence[Scenario], seed: int, train_targets: np.ndarray
) -> dict[str, dict[str, Any]]:
    """The constant predictor's metrics by scenario and by pattern, on the same rows as the model's."""
    constant = _constant_predictions(predictions, task, train_targets)
    modalities = predictions.modalities
    mean, worst = missing_summary(constant, task)
    return {
        "scenarios": {s.name: _score(constant, task, s, seed) for s in scenarios},
        "patterns": {
            pattern_name(p, modalities): _score(constant, task, _always(p, modalities), seed)
            for p in patterns(modalities)
        },
        "mean_missing": mean,
        "worst_missing": worst,
    }


def write_evaluation(folder: Path, record: dict[str, Any], predictions: Predictions) -> None:
    """Write evaluation.json and predictions.npz; the latter allows bootstraps over rows."""
    statistics = predictions.statistics_PN
    kept: dict[str, Any] = (
        {"scores_PNC": statistics.float()} if statistics.is_floating_point() else {"confusions_PNCC": statistics}
    )
    if any(group is not None for group in predictions.groups):
        names = [("row", i) if group is None else ("group", group) for i, group in enumerate(predictions.groups)]
        number = {name: place for place, name in enumerate(dict.fromkeys(names))}
        kept["groups_N"] = torch.tensor([number[name] for name in names])
    rows_PM = pattern_rows(predictions.modalities)
    present_PN = (rows_PM[:, None] & predictions.natural_NM).any(-1)
    temporary = folder / ".predictions.npz"
    np.savez_compressed(
        temporary,
        **{name: values.numpy() for name, values in kept.items()},
        targets=predictions.target_N.numpy(),
        ids=np.array(predictions.ids),
        present_PN=present_PN,
        natural_NM=predictions.natural_NM,
        patterns=np.array([pattern_name(p, predictions.modalities) for p in patterns(predictions.modalities)]),
    )
    temporary.replace(folder / "predictions.npz")
    write_atomically(folder / "evaluation.json", json_text(record, indent=1))


def _always(pattern: frozenset[str], modalities: Sequence[str]) -> Scenario:
    return Scenario(pattern_name(pattern, modalities), ((pattern, 1.0),))


def _score(predictions: Predictions, task: Task, scenario: Scenario, seed: int) -> dict[str, float]:
    table = availability_table(scenario, len(predictions.ids), predictions.modalities, seed, predictions.natural_NM)
    statistics, target, _ = predictions.under(table)
    return task.metrics(statistics, target)


def _entry(predictions: Predictions, task: Task, scenario: Scenario, seed: int) -> dict[str, Any]:
    modalities = predictions.modalities
    table = availability_table(scenario, len(predictions.ids), modalities, seed, predictions.natural_NM)
    statistics, target, _ = predictions.under(table)
    counts = {
        pattern_name(p, modalities): int((table == row).all(1).sum())
        for p, row in zip(patterns(modalities), pattern_rows(modalities), strict=True)
    }
    return {
        "rows": len(target),
        "table": table_digest(table),
        "shares": {name: count for name, count in counts.items() if count},
        "metrics": task.metrics(statistics, target),
        "per_class": task.per_class(statistics, target),
    }
