"""The parts of a trial's folder that are logged to MLflow."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path

from mlflow.entities import Metric

from mmsweep.readers.mlflow.naming import metric_name
from mmsweep.record.checkpoint import WEIGHTS
from mmsweep.record.evaluation import Evaluation
from mmsweep.record.objective import Objective
from mmsweep.record.sweep import SUPERSEDED
from mmsweep.record.trial import Report, TrialFolder, deciding_report


def epoch_metrics(new: Sequence[Report], reports: Sequence[Report], objectives: Sequence[Objective]) -> list[Metric]:
    """The metrics and scores of new reports. "epoch" comes last and marks an epoch as complete.

    Args:
        reports: all reports of the trial.
    """
    now, metrics = int(time.time() * 1000), []
    for report in new:
        values = {name: float(value) for name, value in report.metrics.items() if name != "epoch"}
        values |= _scores(objectives, [other for other in reports if other.epoch <= report.epoch])
        values["epoch"] = float(report.epoch)
        metrics += [Metric(metric_name(name), value, now, report.epoch) for name, value in values.items()]
    return metrics


def scores_on_test(evaluation: Evaluation) -> dict[str, float]:
    """An evaluation's `test/<scenario>/<metric>`; the constant predictor's are `test/constant/<scenario>/<metric>`."""
    groups = {name: score.metrics for name, score in evaluation.scenarios.items()} | dict(evaluation.summaries)
    groups |= {f"constant/{name}": evaluation.constants[name] for name in groups if name in evaluation.constants}
    return {
        f"test/{group}/{metric}": value
        for group, metrics in groups.items()
        for metric, value in metrics.items()
        if not math.isnan(value)
    }


def _scores(objectives: Sequence[Objective], reports: Sequence[Report]) -> dict[str, float]:
    """`objective` (or `objective/<metric>` for several) after the last report, if it has a score."""
    scores: dict[str, float] = {}
    for objective in objectives:
        if not math.isnan(reports[-1].metrics.get(objective.metric, math.nan)):
            epochs = [report.metrics for report in reports if objective.metric in report.metrics]
            scores["objective" if len(objectives) == 1 else f"objective/{objective.metric}"] = objective.score(epochs)
    return scores


def best_weights(folder: TrialFolder, objective: Objective) -> Path:
    """Path of the trained weights (adapters, tokens, head) of the deciding epoch; without an epoch there is no file."""
    decided = deciding_report(folder.reports(), objective)
    return folder.path / (decided.checkpoint if decided and decided.checkpoint else "") / WEIGHTS


def run_name(folder: TrialFolder) -> str:
    """The trial's id; for a superseded final run, `superseded/<repeated trial>/<its id>`."""
    about = folder.trial()
    superseded = folder.path.parents[1].name == SUPERSEDED
    return f"{SUPERSEDED}/{about.get('from')}/{about['id']}" if superseded else str(about["id"])
