#!/usr/bin/env python3
"""Trials per hour of one and the same list of trials, in every way that there is to run them.

    python benchmarks/trials_per_hour.py                                              # CPU, quickstart, 16 trials
    python benchmarks/trials_per_hour.py --size base --device cuda --rows 4096        # ViT-B/16 + BERT-base, bf16
    python benchmarks/trials_per_hour.py --size tiny --trials 4 --slots 2             # whether it runs

packed-N, packed-auto   `mmsweep tune` with resources.slots=N, or auto
warm                    `mmsweep tune` with resources.slots=1: hosts stay warm, each trial has one to itself
process                 one trial per process with the same engine and no Ray, as many processes at a time as hosts
guide                   plain Ray Tune as Ray's guide shows it (docs.ray.io, Train, "Hyperparameter Tuning with Ray
                        Tune"): each Tune trial is a function that starts a TorchTrainer of its own, whose worker runs
                        the same engine; results reach Tune by TuneReportCallback. Tune gives the function 1 CPU
                        beside the worker's, so as many trials run at a time as that leaves room for
torchtrainer            the same tuned by somebody who knows: the function takes next to no CPU, so that all CPUs train
fractional              GPU: --fractions one-slot hosts that share it (resources.gpus < 1)
graphs                  GPU: one slot with CUDA graphs (train.compile=reduce-overhead)

All variants train the same trials: values drawn here once from the study's search space (those of the file first), the
study's seeds, no scheduler, no final runs, the same number of hosts with the same CPUs and threads, data prepared
before. Each is a command in a process of its own, timed from its start to its end as its user sees it: starting,
training, evaluating, writing checkpoints and, for mmsweep alone, tracking in MLflow and the report. "to the last
trial" ends when the last trial's folder is marked done. With --repeats the variants take turns, in another order each
time, and seconds are medians. The shorter trials are, the more their starting counts: the page says how many steps one
has, and --rows and --set train.epochs=… decide it. Every variant's metrics of every epoch are compared with those of
the first.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from outside import place_of, python, tune
from ran_on import Machine, cores, device_of, hand_over, out_option, table
from sizes import SIZES, study_file

from mmsweep.assembly.build import prepare_data
from mmsweep.assembly.host import Warm
from mmsweep.record.trial import Report, TrialFolder
from mmsweep.study import Study
from mmsweep.study.packs import Job
from mmsweep.study.search import Conditions
from mmsweep.training.world import World

COMPARED = ("warm", "torchtrainer", "guide")
ONLY_GPU = ("fractional", "graphs")


# The trials


def draw_points(study: Study, trials: int, seed: int = 0) -> list[dict[str, Any]]:
    """The study's own values, then points of its search space."""
    draws = random.Random(seed)
    space = Conditions(study.search, study.value)
    points: list[dict[str, Any]] = [{key: study.value(key) for key in study.search}]
    while len(points) < trials:
        values: dict[str, Any] = {}
        for key, dimension in space.dimensions.items():
            if not space.holds(dimension, values):
                continue
            if dimension.kind == "choice":
                values[key] = draws.choice(dimension.choices)
            elif dimension.kind in ("int", "log_int"):
                values[key] = draws.randint(int(dimension.low), int(dimension.high))
            elif dimension.kind == "log_uniform":
                values[key] = dimension.low * (dimension.high / dimension.low) ** draws.random()
            else:
                values[key] = draws.uniform(dimension.low, dimension.high)
        points.append(values)
    return points[:trials]


def lay_out(study: Study, points: Sequence[dict[str, Any]], out: Path) -> list[Path]:
    """Folders of the trials for those variants that are not mmsweep's own sweeps."""
    folders = []
    for number, point in enumerate(points):
        own = study.with_values(point)
        folders.append(out / "trials" / f"{number:04d}")
        TrialFolder(folders[-1]).create(
            {"id": f"{number:04d}", "kind": "trial", "seed": own.train.seed, "params": point}, own.to_yaml()
        )
    return folders


# What is timed


def train_alone(
    folder: Path, device: str, threads: int, report: Callable[[Report], bool] = lambda record: False
) -> None:
    """One trial from nothing to its end: the whole program of `process`, and what a TorchTrainer's worker does."""
    torch.set_num_threads(threads)
    study = Study.load(folder / "study.yaml")
    Warm(device, World.current()).run(Job(folder.name, "trial", str(folder), study), report)


def train_fn_per_worker(config: dict[str, Any]) -> None:
    import ray.train
    from ray.train.torch import get_device

    def report(record: Report) -> bool:
        ray.train.report({k: v for k, v in record.metrics.items() if k.startswith(("val/", "epoch"))})
        return False

    device = str(get_device()) if config["gpus"] else "cpu"
    train_alone(Path(config["folder"]), device, config["threads"], report)


def train_driver_fn(config: dict[str, Any]) -> None:
    """Of a Tune trial."""
    import ray.train
    import ray.train.torch
    import ray.tune
    from ray.tune.integration.ray_train import TuneReportCallback

    resources = {"CPU": config["cpus"] - 0.02} | ({"GPU": config["gpus"]} if config["gpus"] else {})
    ray.train.torch.TorchTrainer(
        train_fn_per_worker,
        train_loop_config=config,
        scaling_config=ray.train.ScalingConfig(
            num_workers=1, use_gpu=config["gpus"] > 0, resources_per_worker=resources
        ),
        run_config=ray.train.RunConfig(
            name=f"train-trial_id={ray.tune.get_context().get_trial_id()}",
            storage_path=config["storage"],
            callbacks=[TuneReportCallback()],
        ),
    ).fit()


def tune_trainers(out: Path, at_once: int, cpus: float, gpus: float, driver_cpus: float) -> None:
    """The whole program of `torchtrainer` and `guide`."""
    import ray
    import ray.tune

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(address="local", log_to_driver=False, object_store_memory=200_000_000)
    folders = sorted(str(path) for path in (out / "trials").iterdir())
    ray.tune.Tuner(
        ray.tune.with_resources(train_driver_fn, {"CPU": driver_cpus}),
        param_space={
            "folder": ray.tune.grid_search(folders),
            **{"threads": max(1, int(cpus)), "cpus": cpus, "gpus": gpus, "storage": str(out / "train")},
        },
        tune_config=ray.tune.TuneConfig(max_concurrent_trials=at_once),
        run_config=ray.tune.RunConfig(name="tune", storage_path=str(out / "tune"), verbose=0),
    ).fit()
    ray.shutdown()


class Variants:
    """Every way to run the trials of a study file.

    Args:
        path: the study; its `sweep.start_from` holds all the trials' values.
        at_once: how many hosts, or trials where there are none.
    """

    def __init__(self, path: Path, device: str, at_once: int, fractions: int) -> None:
        self.path, self.device, self.at_once, self.fractions = path, device, at_once, fractions
        self.study = Study.load(path)
        self.points = [dict(point) for point in self.study.sweep.start_from if isinstance(point, dict)]

    def run(self, name: str, out: Path) -> dict[str, float]:
        """Seconds by what: `wall`, and `trained` to the mark of the last trial."""
        if name in ("process", "torchtrainer", "guide"):
            folders = lay_out(self.study, self.points, out)
        began, clock = time.time(), time.perf_counter()
        if name == "process":
            with ThreadPoolExecutor(self.at_once) as pool:
                list(pool.map(lambda folder: self._own("--train-alone", folder), folders))
        elif name == "torchtrainer":
            self._own("--tune-trainers", out)
        elif name == "guide":  # at most as many as fit: a function that took the last CPU would wait for ever
            room = max(1, int(cores() // (1 + self.study.resources.cpus)))
            self._own("--tune-trainers", out, "--driver-cpus", "1", "--at-once", str(min(room, self.at_once)))
        else:
            tune(self.path, out, self._changes(name))
        wall = time.perf_counter() - clock
        marks = [path.stat().st_mtime for path in out.glob("trials/*/done.json")]
        if len(marks) != len(self.points):
            sys.exit(
                f"{name}: {len(marks)} of {len(self.points)} trials ended; see {self._inside(out).with_suffix('.log')}"
            )
        return {"wall": wall, "trained": max(marks) - began}

    def _changes(self, name: str) -> list[str]:
        if name == "warm":
            return ["resources.slots=1"]
        if name == "fractional":
            hosts, cpus = self.at_once * self.fractions, self.study.resources.cpus
            size = {"hosts": hosts, "gpus": round(1 / self.fractions, 4), "cpus": min(cpus, cores() / hosts)}
            return ["resources.slots=1", *(f"resources.{name}={value}" for name, value in size.items())]
        if name == "graphs":
            return ["resources.slots=1", "train.compile=reduce-overhead"]
        return [f"resources.slots={name.removeprefix('packed-')}"]

    def _own(self, what: str, folder: Path, *more: str) -> None:
        resources = self.study.resources
        given = ["--at-once", str(self.at_once), "--cpus", str(resources.cpus), "--gpus", str(resources.gpus)]
        python(
            [str(Path(__file__).resolve()), what, str(folder), "--device", self.device, *given, *more],
            self._inside(folder),
        )

    @staticmethod
    def _inside(folder: Path) -> Path:
        return folder.with_name(f"{folder.name}-in") if folder.parent.name != "trials" else folder / "in"


# What is said of it


def reports_of(out: Path) -> list[list[dict[str, float]]]:
    """Metrics of every epoch of every trial, in the order of trials."""
    folders = sorted(path.parent for path in out.glob("trials/*/trial.json"))
    return [[r.metrics for r in TrialFolder(folder).reports()] for folder in folders]


def difference(some: list[list[dict[str, float]]], others: list[list[dict[str, float]]]) -> dict[str, float | bool]:
    """How far two variants' metrics are apart: whether all are equal, and the largest difference of any."""
    apart = {"validation": 0.0, "loss": 0.0}
    same = [len(trial) for trial in some] == [len(trial) for trial in others]
    for one, other in zip(some, others, strict=False):
        for a, b in zip(one, other, strict=False):
            same = same and a.keys() == b.keys() and a["train/lr"] == b["train/lr"]  # which the trial alone decides
            for key in a.keys() & b.keys():
                kind = "validation" if key.startswith("val/") else "loss" if key.startswith("train/loss") else None
                if kind:
                    apart[kind] = max(apart[kind], abs(a[key] - b[key]))
    return {"same_epochs": same, "equal": same and not any(apart.values()), **apart}


def in_words(apart: dict[str, float | bool]) -> str:
    if apart["equal"]:
        return "equal"
    if not apart["same_epochs"]:
        return "OTHER EPOCHS OR METRICS"
    return f"within {apart['validation']:.1e} (loss {apart['loss']:.1e})"


def chosen(options: argparse.Namespace) -> list[str]:
    """The variants to run; those that cannot be are said to be left out, or end the program where asked for by name."""
    packed = [f"packed-{n}" for n in options.slots]
    names = options.variants or [*packed, "warm", "process", "torchtrainer", "guide", *ONLY_GPU]
    usable = []
    for name in names:
        problem = None
        if name in ONLY_GPU and not options.device.startswith("cuda"):
            problem = "it needs --device cuda"
        if problem and options.variants:
            sys.exit(f"--variants {name}: {problem}")
        if problem:
            print(f"left out: {name} ({problem})", file=sys.stderr)
        else:
            usable.append(name)
    return usable


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="quickstart")
    parser.add_argument("--study", type=Path, help="a study file of yours instead of a size")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="changes of the study")
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--rows", type=int, help="training rows of tiny and base: how long a trial is")
    parser.add_argument("--variants", nargs="+", help="some of those above; default: all that can run here")
    parser.add_argument(
        "--slots", nargs="+", default=["auto", "4"], metavar="N", help="of packed-N, if not in --variants"
    )
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--cpus", type=float, help="of a host; default: the study's, on CUDA 4 or what there is")
    parser.add_argument("--fractions", type=int, default=4, help="hosts on one GPU in `fractional`")
    parser.add_argument("--place", type=Path, help="folder to keep everything in; default: a temporary one")
    parser.add_argument("--at-once", type=int, help="hosts; default: as many as there are cores for, on CUDA one")
    parser.add_argument("--driver-cpus", type=float, default=0.01, help=argparse.SUPPRESS)
    for own in ("--train-alone", "--tune-trainers"):
        parser.add_argument(own, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--gpus", type=float, default=0.0, help=argparse.SUPPRESS)
    out_option(parser)
    return parser.parse_args()


def prepare(options: argparse.Namespace, place: Path) -> tuple[Path, int]:
    """The study file with all its trials and resources in it, its data prepared, and the steps of an epoch."""
    gpu = options.device.startswith("cuda")
    source = place / "study"
    path = options.study or study_file(options.size, source, options.set, options.rows)
    study = Study.load(path, options.set if options.study else [])
    cpus = options.cpus or (min(4, cores()) if gpu else study.resources.cpus)
    at_once = options.at_once or (1 if gpu else max(1, int(cores() // cpus)))
    study = study.with_values(
        {
            "sweep.trials": options.trials,
            "sweep.start_from": draw_points(study, options.trials),
            "sweep.scheduler": {"name": "none"},
            "sweep.sampler": {"name": "random"},
            "sweep.final": None,
            "sweep.budget.hours": None,
            "tracking.uri": None,
            "resources": {"hosts": min(at_once, options.trials), "workers": 1, "cpus": cpus, "gpus": int(gpu)},
        }
    )
    train = prepare_data(study).splits["train"]
    path = place / "trials.yaml"
    path.write_text(study.to_yaml(), encoding="utf-8")
    return path, math.ceil(len(train) / study.train.batch_size)


def main() -> None:
    options = _arguments()
    if options.train_alone:
        train_alone(options.train_alone, options.device, max(1, int(options.cpus)))
        return
    if options.tune_trainers:
        tune_trainers(options.tune_trainers, options.at_once, options.cpus, options.gpus, options.driver_cpus)
        return
    device_of(options.device)
    names, machine = chosen(options), Machine()
    with place_of(options.place, own_cache=options.size != "quickstart" and options.study is None) as place:
        path, steps = prepare(options, place)
        study = Study.load(path)
        hosts = int(study.resources.hosts)
        variants = Variants(path, options.device, hosts, options.fractions)
        seconds: dict[str, list[dict[str, float]]] = {name: [] for name in names}
        apart: dict[str, Any] = {}
        for repeat in range(options.repeats):
            for name in [*names[repeat % len(names) :], *names[: repeat % len(names)]]:
                out = place / f"{name}-{repeat}"
                seconds[name].append(variants.run(name, out))
                print(f"{name}: {seconds[name][-1]['wall']:.1f} s", file=sys.stderr, flush=True)
                if repeat == 0:
                    apart[name] = difference(reports_of(place / f"{names[0]}-0"), reports_of(out))
    walls = {name: median(found["wall"] for found in runs) for name, runs in seconds.items()}
    rows = []
    for name, runs in seconds.items():
        trained = median(found["trained"] for found in runs)
        ratios = [f"{walls[other] / walls[name]:.2f}" if other in walls else None for other in COMPARED]
        rows.append(
            [
                name,
                f"{walls[name]:.1f} s",
                f"{trained:.1f} s",
                f"{3600 * options.trials / walls[name]:,.0f}",
                *ratios,
                in_words(apart[name]) if name != names[0] else "",
            ]
        )
    columns = [
        "",
        "wall",
        "to the last trial",
        "trials per hour",
        "× warm",
        "× torchtrainer",
        "× guide",
        f"metrics, to {names[0]}",
    ]
    about = (
        f"{options.trials} trials of {study.train.epochs} epochs of {steps} steps, batch {study.train.batch_size}, "
        f"{study.train.precision} asked for, {hosts} host(s) with {study.resources.cpus:g} CPU(s) and "
        f"{study.resources.gpus:g} GPU(s) each, {options.repeats} repeat(s)."
    )
    found = {"trials": variants.points, "seconds": seconds, "apart": apart, "study": study.resolved()}
    facts = machine.facts(threads=max(1, int(study.resources.cpus)), device=options.device)
    hand_over("Trials per hour", [about, "", *table(columns, rows)], facts, found, options.out)
    if bad := [name for name, one in apart.items() if not one["same_epochs"]]:
        sys.exit(f"not the same trials: {', '.join(bad)}")


if __name__ == "__main__":
    main()
