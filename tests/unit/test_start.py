"""What a sweep does before and beside its hosts: refusals, Ray in the background, what hosts leave out of Ray Train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray._private.node import Node
from ray.train.v2._internal import constants
from ray.train.v2._internal.execution.checkpoint.sync_actor import SynchronizationActor
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2._internal.execution.worker_group import WorkerGroup, worker_group
from ray.train.v2.api import data_parallel_trainer
from ray.train.v2.api.config import RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from mmsweep.errors import UserError
from mmsweep.study import Study
from mmsweep.sweep import cluster
from mmsweep.sweep.lean_train import USELESS, LeanTrainer, host_trainer
from mmsweep.sweep.start import run_sweep
from tests.unit import report_factory as factory


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """A word for each time that Ray would have been started."""
    times: list[str] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cluster, "_start", lambda: times.append("Ray"))
    return times


def changed(**values: Any) -> Study:
    return factory.study().with_values({key.replace("__", "."): value for key, value in values.items()})


def test_a_starting_point_outside_of_the_space_is_refused_before_anything_begins(started: list[str]) -> None:
    key = next(iter(factory.study().search))
    with pytest.raises(UserError, match=r"sweep\.start_from"):
        run_sweep(changed(sweep__start_from=[{key: "no such value"}]), Path("s"))
    assert not started and not Path("s").exists() and not Path("mlflow.db").exists()


def test_a_store_that_is_none_is_refused_before_anything_begins(started: list[str]) -> None:
    with pytest.raises(UserError, match="no MLflow store"):
        run_sweep(changed(tracking__uri="ftp://somewhere"), Path("s"))
    assert not started and not Path("s").exists()


@pytest.mark.parametrize("problem", [UserError("bad rows"), OSError("disk full"), KeyboardInterrupt()])
def test_what_breaks_off_the_data_s_preparation_leaves_no_sweep(started: list[str], problem: BaseException) -> None:
    def describe() -> dict[str, str]:
        raise problem

    with pytest.raises(type(problem)):
        run_sweep(factory.study(), Path("s"), describe=describe)
    assert started == ["Ray"] and not Path("s/study.yaml").exists() and not Path("s/sweep.json").exists()


def test_a_finished_sweep_is_shown_again_without_ray(started: list[str], tmp_path: Path) -> None:
    folder = factory.make_sweep(tmp_path / "s", trials=2)
    outcome = run_sweep(factory.study(), folder, resume=True, live=False)
    assert outcome.state == "finished" and not started and (folder / "report" / "index.html").exists()


def test_hosts_leave_out_what_ray_train_still_calls_so() -> None:
    """Where Ray renames these, hosts start slower or not at all: this is how it is noticed."""
    assert all(hasattr(data_parallel_trainer, name) for name in USELESS)
    assert constants.ENABLE_PREEMPTION_WATCHER_ENV_VAR == "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
    assert constants.ENABLE_CONTROLLER_STRUCTURED_LOGGING_ENV_VAR == "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING"
    assert hasattr(DataParallelTrainer, "_initialize_and_run_controller") and hasattr(Node, "kill_log_monitor")
    assert {"after_controller_start", "_maybe_send_resource_request"} <= set(dir(FixedScalingPolicy))
    assert TrainController.worker_group_cls is WorkerGroup and hasattr(WorkerGroup, "_create_placement_group")
    assert worker_group.SynchronizationActor is SynchronizationActor
    config: Any = RunConfig()
    made = host_trainer(False, print, train_loop_per_worker=print, run_config=config)
    names = {type(callback).__name__ for callback in made._create_default_callbacks()}
    assert "BackendSetupCallback" in names and not names & set(USELESS)


@pytest.mark.parametrize(("workers", "gpu", "backend"), [(1, False, None), (2, False, "gloo"), (1, True, "nccl")])
def test_ranks_and_gpus_are_joined_by_torch(workers: int, gpu: bool, backend: str | None) -> None:
    scaling: Any = ScalingConfig(num_workers=workers, use_gpu=gpu)
    made = host_trainer(workers > 1 or gpu, print, train_loop_per_worker=print, scaling_config=scaling)
    assert isinstance(made, LeanTrainer) and getattr(made.backend_config, "backend", None) == backend
