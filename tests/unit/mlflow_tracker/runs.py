"""Trials as a sweep lays them out, and their runs as MLflow has them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from mmsweep.readers.mlflow.tracker import Tracker
from mmsweep.record.trial import Report, TrialFolder
from tests.unit import report_factory as factory

OBJECTIVE = "val/mean_missing/f1_macro"
METRICS = {OBJECTIVE: 0.5, "val/complete/f1_macro": 0.7, "train/loss": 1.25}
STUDY = factory.study()


def trial(sweep: Path, id: str, params: Mapping[str, Any] | None = None, **more: Any) -> TrialFolder:
    """A trial's folder, or a final run's, as the sweep lays it out."""
    folder = TrialFolder(sweep / (id if "/" in id else f"trials/{id}"))
    folder.create({"id": id, "params": dict(params or {}), "seed": 0, **more}, STUDY.to_yaml())
    return folder


def train(folder: TrialFolder, *scores: float, first: int = 1, done: Any = None) -> TrialFolder:
    """Epochs with these scores; each leaves weights."""
    for epoch, score in enumerate(scores, first):
        weights = folder.checkpoint(epoch) / "weights.safetensors"
        weights.parent.mkdir(parents=True, exist_ok=True)
        weights.write_bytes(f"weights {epoch}".encode())
        checkpoint = str(weights.parent.relative_to(folder.path))
        folder.append(Report(epoch, {**METRICS, OBJECTIVE: score, "epoch": float(epoch)}, checkpoint, 1.0))
    if done:
        folder.mark_done(done)
    return folder


def tracker(folder: Path) -> Tracker:
    return Tracker(f"sqlite:///{folder}/mlflow.db", "demo", folder)


def children(writer: Tracker) -> dict[str, Run]:
    client = MlflowClient(tracking_uri=writer.uri)
    experiment = client.get_experiment_by_name(writer.experiment)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.`mlflow.parentRunId` != ''")
    found = {run.data.tags["mmsweep.trial_id"]: run for run in runs}
    assert len(found) == len(runs)
    return dict(sorted(found.items()))


def attached(writer: Tracker, run: Run) -> set[str]:
    return {item.path for item in MlflowClient(tracking_uri=writer.uri).list_artifacts(run.info.run_id)}
