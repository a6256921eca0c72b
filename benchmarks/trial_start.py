"""How long from Tune's start of a trial to its first training step: on a warm host, and with one TorchTrainer per
trial.

    python benchmarks/trial_start.py --trials 12 --baseline 3 [--out FILE]

Both train the quickstart study (Open Clip Art, the shipped encoders, one epoch) in the same run on the same
machine. The clock starts when Tune's searcher is asked for the trial (warm host) or when Tune reports the trial as
started (one trainer per trial, which is later and so in the baseline's favour), and stops when the optimiser has
made its first step. The first trial of each warm host waits for the host's own start; it is listed apart. Hosts have
one slot: with more, a trial waits for its pack's epoch to end, which is no cost of starting.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from ran_on import Machine, hand_over, out_option, table

from mmsweep.assembly.build import prepare_data
from mmsweep.assembly.host import Warm
from mmsweep.record.trial import TrialFolder
from mmsweep.study import Study
from mmsweep.study.packs import Job, pack_key, warm_key
from mmsweep.training.optimization import PackedAdamW
from mmsweep.training.world import World

ROOT = Path(__file__).resolve().parents[1]
__all__ = ["Job", "TimedWarm", "pack_key", "warm_key"]
FIRST_STEP = "first_step"


class TimedWarm(Warm):
    """The real thing, which writes down when the first optimiser step of each job was made."""

    def run_pack(self, jobs: Sequence[Job], report: Any, refill: Any = tuple, over: Any = None) -> None:
        waiting = [Path(job.folder) / FIRST_STEP for job in jobs]

        def refilled() -> Sequence[Job]:
            joining = refill()
            waiting.extend(Path(job.folder) / FIRST_STEP for job in joining)
            return joining

        step = PackedAdamW.step

        def stepped(optimizer: PackedAdamW, lr_S: Any) -> None:
            step(optimizer, lr_S)
            while waiting:
                waiting.pop().write_text(str(time.time()))

        PackedAdamW.step = stepped  # type: ignore[method-assign]
        try:
            super().run_pack(jobs, report, refilled, over or (lambda job, problem: None))
        finally:
            PackedAdamW.step = step  # type: ignore[method-assign]


def study(trials: int) -> Study:
    given = [f"sweep.trials={trials}", "sweep.final=null", "train.epochs=1", "train.schedule.warmup_epochs=0"]
    given += ["sweep.scheduler.name=none", "resources.slots=1"]
    return Study.load(ROOT / "search_spaces" / "quickstart.yaml", given)


def on_warm_hosts(trials: int, out: Path) -> tuple[list[float], int]:
    """Seconds from the searcher's answer to the first step, by trial, and the number of hosts."""
    from mmsweep.sweep.session import Session
    from mmsweep.sweep.start import run_sweep

    asked: dict[str, float] = {}
    hosts: list[int] = []
    post = Session.submit

    def timed(self: Session, folder: TrialFolder, own: Study | None, **about: Any) -> None:
        asked[folder.path.name] = time.time()
        hosts.append(self.hosts)
        post(self, folder, own, **about)

    Session.submit = timed  # type: ignore[method-assign]
    run_sweep(study(trials), out, live=False, warm="trial_start:TimedWarm")
    return [float((out / "trials" / id / FIRST_STEP).read_text()) - t for id, t in sorted(asked.items())], hosts[0]


def one_trainer(config: dict[str, Any]) -> None:
    """The baseline's Tune trial: a TorchTrainer of its own, which loads everything, and reports its first step."""
    from ray import train
    from ray.train.torch import TorchTrainer

    def loop(config: dict[str, Any]) -> None:
        torch.set_num_threads(int(config["threads"]))
        own = Study.parse(config["study"])
        job = Job("0000", "trial", config["folder"], own)
        TimedWarm("cpu", World.current()).run(job, lambda report: True)

    workers = train.ScalingConfig(num_workers=1, resources_per_worker={"CPU": config["threads"] - 0.02})
    name = Path(config["folder"]).name
    run_config = train.RunConfig(name=name, storage_path=config["storage"])
    TorchTrainer(loop, train_loop_config=config, scaling_config=workers, run_config=run_config).fit()


def one_trainer_per_trial(trials: int, out: Path) -> list[float]:
    from ray import tune

    from mmsweep.sweep import cluster

    started: dict[str, float] = {}

    class Clock(tune.Callback):
        def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            started[trial.config["folder"]] = time.time()

    asked, folders = study(1), [out / f"{n:04d}" for n in range(trials)]
    for folder in folders:
        TrialFolder(folder).create({"id": folder.name, "kind": "trial", "seed": 0, "params": {}}, asked.to_yaml())
    with cluster.connect():
        tune.Tuner(
            tune.with_resources(one_trainer, {"CPU": 0.01}),
            param_space={
                "folder": tune.grid_search([str(f) for f in folders]),
                "study": asked.resolved(),
                "threads": asked.resources.cpus,
                "storage": str(out / "train"),
            },
            tune_config=tune.TuneConfig(max_concurrent_trials=1, trial_dirname_creator=lambda trial: trial.trial_id),
            run_config=tune.RunConfig(name="tune", storage_path=str(out / "tune"), verbose=0, callbacks=[Clock()]),
        ).fit()
    return [float((Path(f) / FIRST_STEP).read_text()) - t for f, t in sorted(started.items())]


def main() -> None:
    os.environ["PYTHONPATH"] = f"{ROOT}{os.pathsep}{ROOT / 'benchmarks'}"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--baseline", type=int, default=3)
    out_option(parser)
    options = parser.parse_args()
    prepare_data(study(1))
    machine, home = Machine(), Path.cwd()
    with tempfile.TemporaryDirectory(prefix="start-") as place:
        os.chdir(place)
        warm, hosts = on_warm_hosts(options.trials, Path(place) / "warm")
        cold = one_trainer_per_trial(options.baseline, Path(place) / "cold")
        os.chdir(home)
    rest = sorted(warm[hosts:])
    p95 = rest[min(len(rest) - 1, round(0.95 * (len(rest) - 1)))]
    rows = [
        ["warm host", f"{statistics.median(rest):.2f} s", f"{p95:.2f} s", _list(warm[hosts:])],
        ["one TorchTrainer per trial", f"{statistics.median(cold):.1f} s", None, _list(cold)],
    ]
    lines = [
        f"The quickstart study, one slot a host, {hosts} host(s); how the clock runs stands in the script.",
        "",
        *table(["", "median", "95th percentile", "each"], rows),
        "",
        f"The hosts' own start, paid once and left out above: {_list(warm[:hosts])} s to their first step.",
    ]
    facts, found = machine.facts(threads=1), {"warm": warm, "cold": cold, "hosts": hosts}
    hand_over("From Tune's start of a trial to its first step", lines, facts, found, options.out)


def _list(values: list[float]) -> str:
    return ", ".join(f"{v:.2f}" for v in values)


if __name__ == "__main__":
    main()
