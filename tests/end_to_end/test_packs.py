"""Whole sweeps whose hosts train several trials in one pass, on a real Ray; only the epochs sleep (`sleeping.py`)."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import ray

from mmsweep.record.packing import Packing
from mmsweep.record.sweep import SweepRecord
from mmsweep.record.trial import TrialFolder
from mmsweep.study import Study
from mmsweep.sweep.start import run_sweep
from mmsweep.training.world import World
from tests.end_to_end.test_sweep import WARM, kill_one, place, ray_here, searched, trained, wait_for_epoch  # noqa: F401

sys.path.insert(0, str(Path(__file__).parent))
from sleeping import Job, SleepingWarm, held, study

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_here")]


def pack_study(weights: list[float], **values: Any) -> Study:
    return searched(
        {"method.align_weight": {"choice": weights}}, sweep__sampler__name="grid", sweep__scheduler__name="none",
        sweep__start_from=[], sweep__final=None, resources__hosts=1, **values,
    )  # fmt: skip


def undisturbed(folder: Path, at: Path) -> list[list[dict[str, float]]]:
    """What a sweep's trials report where each is trained by itself, in one go, here."""
    found = []
    for trial in SweepRecord.load(folder).trials:
        own = TrialFolder(at / trial.id)
        values = Study.load(trial.folder / "study.yaml")
        own.create({"id": trial.id, "params": {}}, values.to_yaml())
        job = Job(trial.id, "trial", str(own.path), values)
        SleepingWarm("cpu", World()).run_pack([job], lambda told: [False], tuple, lambda job, problem: None)
        found.append([report.metrics for report in own.reports()])
    return found


def reported(folder: Path) -> list[list[dict[str, float]]]:
    return [[r.metrics for r in TrialFolder(t.folder).reports()] for t in SweepRecord.load(folder).trials]


def test_packs_end_with_the_metrics_of_single_trials(tmp_path: Path) -> None:
    """The driver's and the hosts' part of it: what packs compute is tested in test_packing.py and test_worker.py."""
    asked = pack_study([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7], name="packs", resources__slots=3)
    assert run_sweep(asked, tmp_path / "s", live=False, warm=WARM).state == "finished"
    assert reported(tmp_path / "s") == undisturbed(tmp_path / "s", tmp_path / "single")
    packing = SweepRecord.load(tmp_path / "s").packing
    assert max(e.width for e in packing.epochs) == 3 and packing.capacities[0].slots == 3
    assert sum(e.width for e in packing.epochs) == 7 * 4
    assert "of 3 slots were occupied on average while trials were pending" in str(packing.sentence())


def test_a_host_killed_in_mid_pack_costs_no_trial_an_epoch(tmp_path: Path) -> None:
    """Between two epochs; benchmarks/sweep_chaos.py kills anywhere."""
    asked = pack_study([0.1, 0.2, 0.3, 0.4], name="shot", resources__slots=4, train__epochs=8)
    folder, outcomes = tmp_path / "s", []
    thread = threading.Thread(
        target=lambda: outcomes.append(run_sweep(asked, folder, live=False, warm=WARM).state), daemon=True
    )
    with held(tmp_path):
        thread.start()
        wait_for_epoch(thread, folder, 1, trials=4)
        kill_one("RayTrainWorker")
    thread.join(200)
    assert outcomes == ["finished"] and reported(folder) == undisturbed(folder, tmp_path / "single")
    assert trained(folder) == {f"trials/000{n}": list(range(1, 9)) for n in range(4)}
    pids = {line.split()[1] for line in (folder / "trials" / "0000" / "trained.log").read_text().splitlines()}
    assert len(pids) == 2  # it was killed in the middle


def test_an_exception_in_a_pack_fails_one_trial(tmp_path: Path) -> None:
    asked = pack_study([0.1, 10.5, 0.2, 9.5, 8.5, 0.3], name="wrong", resources__slots=6)
    assert run_sweep(asked, tmp_path / "s", live=False, warm=WARM).state == "finished"
    errors = {t.params["method.align_weight"]: t.error for t in SweepRecord.load(tmp_path / "s").trials}
    assert "RuntimeError: 10.5 is too much" in str(errors[10.5]) and "cannot be trained" in str(errors[9.5])
    assert "not a number" in str(errors[8.5]) and {errors[w] for w in (0.1, 0.2, 0.3)} == {None}


def test_a_trial_that_kills_its_host_takes_no_neighbour_with_it(tmp_path: Path) -> None:
    asked = pack_study([0.1, 11.5, 0.2], name="deadly", resources__slots=3)
    assert run_sweep(asked, tmp_path / "s", live=False, warm=WARM).state == "finished"
    trials = {t.params["method.align_weight"]: t for t in SweepRecord.load(tmp_path / "s").trials}
    assert {w: t.state for w, t in trials.items()} == {0.1: "finished", 11.5: "failed", 0.2: "finished"}
    assert "its host died 3 times in a row" in str(trials[11.5].error)


def test_asha_s_stops_free_slots_that_others_take(tmp_path: Path) -> None:
    everything = float(ray.cluster_resources()["CPU"])  # a host that fills the node: its light trials must run too
    asked = study("asha", sweep__trials=12, resources__slots=4, train__epochs=9, sweep__scheduler__reduction_factor=3,
                  resources__cpus=everything)  # fmt: skip
    assert run_sweep(asked, tmp_path / "s", live=False, warm=WARM).state == "finished"
    record = SweepRecord.load(tmp_path / "s")
    assert len(record.trials) == 12 and {t.state for t in record.trials} == {"finished", "stopped"}
    for trial in record.trials:  # a stop ends the trial there and then: no epoch was trained for nothing
        epochs = len(trained(tmp_path / "s")[f"trials/{trial.id}"])
        assert epochs == len(trial.curve) and epochs in ((9,) if trial.state == "finished" else (1, 3))
    widths = [e.width for e in Packing.load(tmp_path / "s").epochs if e.kind == "trial"]
    assert max(widths) == 4 and sum(widths) == sum(len(t.curve) for t in record.trials)
    finals = [e.width for e in Packing.load(tmp_path / "s").epochs if e.kind == "final"]
    assert sum(finals) == 3 * 9 and max(finals) == 3  # seeds of the winner share packs too
