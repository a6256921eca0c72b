"""A sweep's folder, beside a store whose tables are made."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mmsweep.readers.mlflow.tracker import Tracker
from mmsweep.sweep.summary import summary_of
from tests.unit.mlflow_tracker.runs import STUDY


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Making MLflow's tables takes seconds; tests copy these."""
    folder = tmp_path_factory.mktemp("empty")
    Tracker(f"sqlite:///{folder}/mlflow.db", "empty", folder)
    return folder / "mlflow.db"


@pytest.fixture(autouse=True)
def _tables(empty_database: Path, tmp_path: Path) -> None:
    shutil.copy(empty_database, tmp_path / "mlflow.db")


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    folder = tmp_path / "sweeps" / "demo"
    folder.mkdir(parents=True)
    (folder / "study.yaml").write_text(STUDY.to_yaml())
    summary_of(STUDY).write(folder)
    return folder
