"""Opens an MLflow store and the experiment in it; every failure is one message for people."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from mmsweep.errors import UserError
from mmsweep.record.lock import HeldError, held
from mmsweep.tracking.address import KEY, check_reachable, resolve_uri, unreachable

# mlflow's own defaults wait 120 s and try 8 times: minutes during which no trial would be served.
_PATIENCE = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "8",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}

LOCK_SECONDS = 60.0  # for another process to make a fresh database


@contextmanager
def impatient() -> Iterator[None]:
    """MLflow's HTTP calls inside give up within seconds. What the user has set in the environment stands."""
    added = [name for name in _PATIENCE if name not in os.environ]
    os.environ.update({name: _PATIENCE[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@dataclass(frozen=True)
class Store:
    """An open store with the id of our experiment in it."""

    uri: str
    client: MlflowClient
    experiment_id: str

    @classmethod
    def open(cls, uri: str | None, experiment: str, root: Path) -> Store:
        """See `Tracker`; `root` is where relative paths start."""
        absolute = resolve_uri(uri, root)
        database = _database_path(absolute)
        with impatient(), _as_user_errors(absolute):
            if database is None:
                check_reachable(absolute)
                client = MlflowClient(tracking_uri=absolute, registry_uri=absolute)
                return cls(absolute, client, _experiment(client, experiment, None))
            database.parent.mkdir(parents=True, exist_ok=True)
            # Several processes that open one fresh database at the same time break each other's migrations.
            with held(Path(f"{database}.lock"), LOCK_SECONDS):
                client = MlflowClient(tracking_uri=absolute, registry_uri=absolute)
                folder = database.parent / "mlartifacts" / re.sub(r"[^\w.\-]+", "-", experiment)
                return cls(absolute, client, _experiment(client, experiment, folder))

    @contextmanager
    def as_user_errors(self) -> Iterator[None]:
        """What the store raises inside becomes a `UserError` that names it."""
        with _as_user_errors(self.uri):
            yield


def _database_path(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///").partition("?")[0]) if uri.startswith("sqlite:") else None


def _experiment(client: MlflowClient, name: str, folder: Path | None) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            # MLflow's own default is a path relative to whoever creates the experiment.
            kind = {
                "mlflow.experimentKind": "custom_model_development"
            }  # else the UI may open on its pages for chat models
            return str(client.create_experiment(name, artifact_location=folder.as_uri() if folder else None, tags=kind))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS" or (found := client.get_experiment_by_name(name)) is None:
                raise
    if found.lifecycle_stage != "active":
        hint = f"Choose another name, or `mlflow experiments restore --experiment-id {found.experiment_id}`"
        raise UserError("the experiment was deleted in MLflow", key="tracking.experiment", found=name, hint=hint)
    return str(found.experiment_id)


@contextmanager
def _as_user_errors(uri: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except HeldError as error:
        raise UserError(f"{error} for longer than {LOCK_SECONDS:.0f} s", key=KEY, found=uri) from error
    except Exception as error:  # mlflow passes on whatever its database driver or the network raises
        raise unreachable(uri, error) from error
