"""What a sweep does before and beside its hosts: refusals, Ray in the background, which trainer of Ray Train's runs."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal import constants
from ray.train.v2.api import data_parallel_trainer

from mmsweep.errors import UserError
from mmsweep.study import Study
from mmsweep.sweep import cluster, hosts
from mmsweep.sweep.hosts import HostSize, Supervisor
from mmsweep.sweep.lean_train import GROUP, PRIVATE, UNUSED_CALLBACKS, host_trainer, lean_works
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
    with pytest.raises(UserError, match="no address of an MLflow store"):
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


@pytest.mark.parametrize(("workers", "gpu", "backend"), [(1, False, None), (2, False, "gloo"), (1, True, "nccl")])
def test_a_lean_trainer_is_ray_train_s_own_without_what_hosts_do_not_use(
    workers: int, gpu: bool, backend: str | None, whole_ray: None
) -> None:
    """Where Ray renames something, hosts start later: this is how it is noticed."""
    made = trainer(workers, gpu)
    assert type(made).__name__ == "LeanTrainer" and getattr(made.backend_config, "backend", None) == backend
    names = {type(callback).__name__ for callback in made._create_default_callbacks()}
    assert "BackendSetupCallback" in names and not names & set(UNUSED_CALLBACKS)
    assert all(hasattr(data_parallel_trainer, name) for name in UNUSED_CALLBACKS)
    assert constants.ENABLE_PREEMPTION_WATCHER_ENV_VAR == "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
    assert constants.ENABLE_CONTROLLER_STRUCTURED_LOGGING_ENV_VAR == "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING"


@pytest.mark.parametrize("name", [*PRIVATE, GROUP])
def test_without_a_private_name_hosts_are_plain_trainers(
    name: str, whole_ray: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    module, _, path = name.partition(":")
    if path:
        *owner, last = path.split(".")
        owns: Any = reduce(getattr, owner, importlib.import_module(module))
        for base in getattr(owns, "__mro__", [owns]):
            if last in vars(base):
                monkeypatch.delattr(base, last)
    else:
        monkeypatch.setitem(sys.modules, module, None)
    with caplog.at_level("WARNING", "mmsweep.hosts"):
        made = [trainer(workers, gpu=False) for workers in (1, 2)]
    assert [type(one) for one in made] == [TorchTrainer] * 2
    assert len(caplog.messages) == 1 and name in caplog.messages[0]


def test_a_host_whose_lean_trainer_fails_goes_on_with_a_plain_one(tmp_path: Path, whole_ray: None) -> None:
    """A name may mean something else in a newer Ray."""
    tried = []

    class Tried(Supervisor):
        def _fit(self, name: str) -> None:
            tried.append(self.lean)
            if self.lean:
                raise TypeError("run() takes 2 arguments")
            self.close()

    board: Any = SimpleNamespace(failed=SimpleNamespace(remote=lambda *_: None))
    Tried(board, HostSize(1, 1, 0), ["host-0"], "", tmp_path, tmp_path, sole=False, lean=True)._supervise("host-0")
    assert tried == [True, False]


@pytest.fixture
def whole_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(hosts, "_free", lambda *_: None)
    lean_works.cache_clear()
    yield
    lean_works.cache_clear()


def trainer(workers: int, gpu: bool) -> Any:
    scaling: Any = ScalingConfig(num_workers=workers, use_gpu=gpu)
    return host_trainer(True, workers > 1 or gpu, train_loop_per_worker=print, scaling_config=scaling)
