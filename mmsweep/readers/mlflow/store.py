"""Opens an MLflow store and the experiment in it; failures become a `UserError`."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mlflow.entities import Dataset, DatasetInput, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from mmsweep.errors import UserError
from mmsweep.readers.mlflow.address import KEY, check_reachable, resolve_uri, unreachable
from mmsweep.readers.mlflow.naming import metric_name
from mmsweep.record.lock import HeldError, held

LOCK_SECONDS = 60.0  # wait for another process that creates the database


@dataclass(frozen=True)
class Store:
    """An open store and the id of the experiment in it."""

    uri: str
    client: MlflowClient
    experiment_id: str

    @classmethod
    def open(cls, uri: str | None, experiment: str, root: Path) -> Store:
        """Open it; arguments as in `Tracker`."""
        absolute = resolve_uri(uri, root)
        database = _database_path(absolute)
        with as_user_errors(absolute):
            if database is None:
                check_reachable(absolute)
                client = MlflowClient(tracking_uri=absolute, registry_uri=absolute)
                return cls(absolute, client, _experiment(client, experiment, None))
            database.parent.mkdir(parents=True, exist_ok=True)
            # Processes that create the same database at once would break each other's migrations.
            with held(Path(f"{database}.lock"), LOCK_SECONDS):
                client = MlflowClient(tracking_uri=absolute, registry_uri=absolute)
                folder = database.parent / "mlartifacts" / re.sub(r"[^\w.\-]+", "-", experiment)
                return cls(absolute, client, _experiment(client, experiment, folder))

    # ------------------------------------------------------------------ calls; each may raise

    def create_run(self, name: str, tags: Mapping[str, str]) -> str:
        """Create a run and return its id."""
        user = os.environ.get("USER") or os.environ.get("LOGNAME") or "unknown"
        tags = {**tags, "mlflow.source.name": "mmsweep", "mlflow.user": user}
        return str(self.client.create_run(self.experiment_id, tags=tags, run_name=name).info.run_id)

    def search(self, query: str) -> list[Run]:
        """All runs of the experiment that match a query."""
        runs: list[Run] = []
        token = None
        while True:
            page = self.client.search_runs([self.experiment_id], query, max_results=1000, page_token=token)
            runs += page
            token = page.token
            if not token:
                return runs

    def send(self, run_id: str, path: Path, folder: str | None = None) -> None:
        """Attach a file, or the content of a folder, to a run."""
        send = self.client.log_artifacts if path.is_dir() else self.client.log_artifact
        send(run_id, str(path), folder)

    def log(
        self,
        run_id: str,
        metrics: Sequence[Metric] = (),
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """`log_batch` within MLflow's limits of 1,000 metrics, 100 params and 100 tags per request."""
        all_params = [Param(k, v) for k, v in (params or {}).items()]
        all_tags = [RunTag(metric_name(k), str(v)) for k, v in (tags or {}).items()]
        chunks = max(-(-len(metrics) // 800), -(-len(all_params) // 90), -(-len(all_tags) // 90))
        for i in range(chunks):
            chunk = slice(i * 90, (i + 1) * 90)
            self.client.log_batch(run_id, metrics[i * 800 : (i + 1) * 800], all_params[chunk], all_tags[chunk])

    def log_dataset(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Log the dataset in the tags as an MLflow dataset."""
        if "mmsweep.dataset" in tags and "mmsweep.dataset_fingerprint" in tags:
            name, digest = tags["mmsweep.dataset"], tags["mmsweep.dataset_fingerprint"][:36]  # the column's width
            dataset = Dataset(name, digest, source_type="mmsweep", source=json.dumps({"dataset": name}))
            self.client.log_inputs(run_id, [DatasetInput(dataset, [])])


def _database_path(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///").partition("?")[0]) if uri.startswith("sqlite:") else None


def _experiment(client: MlflowClient, name: str, folder: Path | None) -> str:
    known = client.get_experiment_by_name(name)
    if known is None:
        # Without the tag, the UI may open on its pages for chat models. Without a location, the artifacts' path would
        # be relative to the creating process.
        tags = {"mlflow.experimentKind": "custom_model_development"}
        try:
            return str(client.create_experiment(name, artifact_location=folder.as_uri() if folder else None, tags=tags))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS" or (known := client.get_experiment_by_name(name)) is None:
                raise
    if known.lifecycle_stage != "active":
        hint = f"Choose another name, or `mlflow experiments restore --experiment-id {known.experiment_id}`"
        raise UserError("the experiment was deleted in MLflow", key="tracking.experiment", found=name, hint=hint)
    return str(known.experiment_id)


@contextmanager
def as_user_errors(uri: str) -> Iterator[None]:
    """Turn what a store raises into a `UserError` that names it."""
    try:
        yield
    except UserError:
        raise
    except HeldError as error:
        raise UserError(f"{error} for longer than {LOCK_SECONDS:.0f} s", key=KEY, found=uri) from error
    except Exception as error:  # mlflow passes on all exceptions of database drivers and the network
        raise unreachable(uri, error) from error
