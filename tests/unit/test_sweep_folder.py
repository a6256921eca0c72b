"""Opening a sweep's folder, what is refused before anything starts, and how many hosts fit."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from mmsweep.errors import UserError
from mmsweep.sweep.folder import SweepFolder, as_it_began, check_lasting, differing_keys
from mmsweep.sweep.hosts import HostSize, capacity, count_hosts

sys.path.insert(0, str(Path(__file__).parents[1] / "end_to_end"))
from sleeping import study


def opened(path: Path, resume: bool = False, extend: int = 0, **values: Any) -> SweepFolder:
    return SweepFolder.open(study(**values), path, trials=6, resume=resume, extend=extend)


def test_a_folder_is_made_once_held_alone_and_taken_up_again(tmp_path: Path) -> None:
    folder = opened(tmp_path / "s")
    assert folder.trials == 6 and folder.state["state"] == "running"
    with pytest.raises(UserError, match="this sweep is running"):
        opened(tmp_path / "s", resume=True)
    folder.release()
    with pytest.raises(UserError, match=r"a sweep lies here already.*--resume"):
        opened(tmp_path / "s")
    again = opened(tmp_path / "s", resume=True, resources__hosts=3, sweep__budget__hours=1.0)
    assert not again.finished
    again.update(state="finished")
    again.release()
    again = opened(tmp_path / "s", resume=True)
    assert again.finished
    again.release()
    again = opened(tmp_path / "s", extend=4)
    assert again.trials == 10 and not again.finished


def test_a_changed_study_is_refused_with_the_keys_that_differ(tmp_path: Path) -> None:
    opened(tmp_path / "s").release()
    with pytest.raises(UserError, match=r"changed.*\(method.align_weight, train.epochs\).*found 0.7; expected 0.2, as"):
        opened(tmp_path / "s", resume=True, method__align_weight=0.7, train__epochs=9)
    with pytest.raises(UserError, match=r"sweep.trials: the study has changed.*--extend N adds trials"):
        opened(tmp_path / "s", resume=True, sweep__trials=40)
    assert differing_keys({"a": {"b.c": 1}, "d": [1]}, {"a": {"b.c": 2}, "d": [1], "e": None}) == ["a.b.c"]


def test_a_sweep_goes_on_without_the_first_command_s_overrides(tmp_path: Path) -> None:
    began = study(train__epochs=9, method__align_weight=0.7, tracking__experiment="mine")
    first = ["train.epochs=9", "method={align_weight: 0.7}", "tracking.experiment=mine"]
    SweepFolder.open(began, tmp_path / "s", trials=6, resume=False, extend=0, overrides=first).release()
    own, kept = as_it_began(study(), tmp_path / "s", [])
    assert own == began
    assert kept == [
        "method.align_weight=0.7 instead of 0.2",
        'tracking.experiment="mine" instead of null',
        f"train.epochs=9 instead of {study().train.epochs}",
    ]
    SweepFolder.open(own, tmp_path / "s", trials=6, resume=True, extend=0).release()

    again, kept = as_it_began(study(train__epochs=9), tmp_path / "s", ["train.epochs=9"])  # repeated in part
    assert again == began and "train.epochs" not in str(kept)
    elsewhere = study(resources__hosts=3, sweep__budget__hours=1.0)
    moved, _ = as_it_began(elsewhere, tmp_path / "s", ["resources.hosts=3", "sweep.budget={hours: 1}"])
    assert moved == began.with_values({"resources.hosts": 3, "sweep.budget.hours": 1.0})
    for override in ("train.epochs=5", "train={epochs: 5}"):
        with pytest.raises(UserError, match=r"command line: train.epochs: .*changed.*found 5; expected 9, as before"):
            as_it_began(study(train__epochs=5), tmp_path / "s", [override])
    with pytest.raises(UserError, match=r"train.seed: the study has changed.*found 3; expected 0, as before"):
        as_it_began(study(train__seed=3), tmp_path / "s", [])  # the file itself
    assert as_it_began(study(), tmp_path / "none", ["train.epochs=5"]) == (study(), [])


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no sweep lies here that could be extended"):
        opened(tmp_path / "none", extend=3)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        opened(tmp_path / "file" / "s")


def test_inside_a_ray_job_nothing_may_lie_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    check_lasting(study(), Path("sweeps/s"))  # not in a job
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(UserError, match="Add: --out"):
        check_lasting(study(), Path("sweeps/s"))
    with pytest.raises(UserError, match=r"Add: tracking.uri=sqlite:////lasting/mlflow.db"):
        check_lasting(study(), Path("/lasting/s"))
    check_lasting(study(tracking__uri="http://server:5000"), Path("/lasting/s"))


def node(cpus: float, gpus: float = 0, alive: bool = True) -> dict[str, Any]:
    return {"Alive": alive, "Resources": {"CPU": cpus, "GPU": gpus}}


def test_hosts_are_as_many_as_fit_and_never_more_than_trials() -> None:
    nodes = [node(16, 4), node(16, 4), node(99, 9, alive=False)]
    assert capacity(HostSize(1, 4, 1), nodes) == 8
    assert capacity(HostSize(2, 4, 1), nodes) == 4
    assert capacity(HostSize(1, 1, 0.4), [node(16, 1)]) == 2  # 0.4 of a GPU fits twice, not 2.5 times
    assert capacity(HostSize(1, 12, 0), nodes) == 2  # a rank never spans two nodes
    assert count_hosts(HostSize(1, 4, 1), "auto", 3, nodes) == 3
    assert count_hosts(HostSize(1, 4, 1), 2, 30, nodes) == 2
    with pytest.raises(UserError, match=r"resources: .*lacks.*found .*64 CPUs.*16 CPUs, 4 GPUs; 16 CPUs, 4 GPUs"):
        count_hosts(HostSize(1, 64, 0), "auto", 3, nodes)
    with pytest.raises(UserError, match=r"resources.gpus: .*lacks.*8 GPUs each.*resources.gpus=0 trains on CPUs"):
        count_hosts(HostSize(1, 4, 8), "auto", 3, nodes)
