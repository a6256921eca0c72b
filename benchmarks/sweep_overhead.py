#!/usr/bin/env python3
"""What a sweep costs beside training: its wall over the sum of its epochs, and where the rest goes.

    python benchmarks/sweep_overhead.py                                     # quickstart: short trials and long ones
    python benchmarks/sweep_overhead.py --size base --gpus 1 --epochs 2 20
    python benchmarks/sweep_overhead.py --size tiny --epochs 2 --trials 3   # whether it runs
    python benchmarks/sweep_overhead.py --pairs 5                           # the demo with lean and with plain trainers

Each case is one `mmsweep tune` from its command to its end (no scheduler, no final runs, random values), with trials of
--epochs epochs. Times of epochs are those that the hosts wrote down (packing.json in the sweep's folder): an epoch of a
pack counts once, however many slots it has, and includes validation. For each host, as shares of the wall:
    epochs    training and validating: all that a trial needs
    start     from the command to the host's first epoch: Python, data's check, Ray, loading, measuring the capacity
    between   from an epoch's end to the next one's start: checkpoints, reports, judging, the next trial
    waiting   from the host's last epoch to the sweep's last: the other hosts still train (the trials' number decides)
    end       from the last epoch to the command's end: tracking, report, closing Ray
"overhead" is all but epochs and waiting, over all but waiting: asked for is at most 5 % where trials are longer than a
minute. "over the epochs": wall x hosts / sum of epochs, waiting included.

--pairs N runs the study as it stands, its final runs included, N times with each of --trainers, in turn. `lean`: Ray
Train without the processes that hosts do not use (mmsweep/sweep/lean_train.py); `plain`: TorchTrainer as it is. Both
count slots anew in each run.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from outside import Ran, place_of, tune
from ran_on import Machine, hand_over, out_option, table
from sizes import SIZES, study_file

from mmsweep.assembly.build import prepare_data
from mmsweep.record.files import cache_folder
from mmsweep.record.packing import PackEpoch, Packing
from mmsweep.record.trial import TrialFolder
from mmsweep.study import Study
from mmsweep.sweep.hosts import PLAIN

ALLOWED = 0.05
PARTS = ("epochs", "start", "between", "waiting", "end")


def parts_of(epochs: Sequence[PackEpoch], ran: Ran) -> dict[str, Any]:
    """Shares of the wall by part, means over the hosts; `gaps` are the seconds between epochs, one by one."""
    by_host: dict[str, list[PackEpoch]] = {}
    for epoch in sorted(epochs, key=lambda e: e.ended):
        by_host.setdefault(epoch.host, []).append(epoch)
    last = max(epoch.ended for epoch in epochs)
    shares: list[Mapping[str, float]] = []
    gaps: list[float] = []
    for own in by_host.values():
        between = [b.ended - b.seconds - a.ended for a, b in pairwise(own)]
        gaps += between
        seconds = {
            "epochs": sum(e.seconds for e in own),
            "start": own[0].ended - own[0].seconds - ran.began,
            "between": sum(between),
            "waiting": last - own[-1].ended,
            "end": ran.ended - last,
        }
        shares.append({name: value / ran.seconds for name, value in seconds.items()})
    parts = {name: mean(share[name] for share in shares) for name in PARTS}
    busy = 1 - parts["waiting"]
    return {
        "hosts": len(by_host),
        "wall": ran.seconds,
        **parts,
        "overhead": (busy - parts["epochs"]) / busy,
        "over_epochs": 1 / parts["epochs"],
        "gaps": gaps,
    }


def stages_of(out: Path, epochs: Sequence[PackEpoch], ran: Ran) -> dict[str, float]:
    """Where start and end go, in seconds: from the host's log lines (the first to train) and the report's files."""
    first = min(epochs, key=lambda e: e.ended - e.seconds)
    log = (out / "logs" / f"{first.host}-rank-0.log").read_text(encoding="utf-8").splitlines()
    times = {word: _time(line) for word in ("slots on", "warm for") for line in log if word in line}
    report = [path.stat().st_mtime for path in (out / "report").rglob("*") if path.is_file()]
    steps = [
        ("to the host's process", times.get("warm for")),
        ("loading and counting slots", times.get("slots on")),
        ("to the first epoch", first.ended - first.seconds),
        ("training", max(e.ended for e in epochs)),
        ("to the report's first file", min(report, default=None)),
        ("the report", max(report, default=None)),
        ("to the command's end", ran.ended),
    ]
    found, before = {}, ran.began
    for name, until in steps:
        if until is not None:
            found[name], before = until - before, until
    return found


def _time(line: str) -> float:
    """Of a log line, seconds since 1970."""
    moment, milliseconds = line[:23].split(",")
    return time.mktime(time.strptime(moment, "%Y-%m-%d %H:%M:%S")) + int(milliseconds) / 1000


def measure(path: Path, out: Path, changes: Sequence[str]) -> dict[str, Any]:
    ran = tune(path, out, changes)
    epochs = [epoch for epoch in Packing.load(out).epochs if epoch.kind == "trial"]
    if not epochs:
        sys.exit(f"{out / 'packing.json'} holds no epoch; the sweep's output is in {out}-in.log")
    folders = [TrialFolder(p.parent) for p in sorted(out.glob("trials/*/trial.json"))]
    lengths = [sum(report.seconds for report in folder.reports()) for folder in folders]
    return {
        **parts_of(epochs, ran),
        "stages": stages_of(out, epochs, ran),
        "trials": len(folders),
        "trial_seconds": lengths,
        "slots": max(epoch.slots for epoch in epochs),
        "width": mean(epoch.width for epoch in epochs),
    }


def compare(path: Path, place: Path, pairs: int, trainers: Sequence[str], changes: Sequence[str]) -> list[str]:
    """Wall and stages of whole sweeps by trainer, as a table's lines."""
    walls: dict[str, list[float]] = {trainer: [] for trainer in trainers}
    stages: dict[str, list[dict[str, float]]] = {trainer: [] for trainer in trainers}
    for pair in range(pairs):
        for trainer in trainers if pair % 2 == 0 else reversed(trainers):
            os.environ.pop(PLAIN, None)
            if trainer == "plain":
                os.environ[PLAIN] = "1"
            shutil.rmtree(cache_folder() / "slots", ignore_errors=True)
            out = place / f"{trainer}-{pair}"
            ran = tune(path, out, changes)
            walls[trainer].append(ran.seconds)
            stages[trainer].append(stages_of(out, Packing.load(out).epochs, ran))
            print(f"{trainer} {pair}: {ran.seconds:.1f} s, load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)
    names = list(stages[trainers[0]][0])
    rows = [
        [
            trainer,
            f"{median(walls[trainer]):.1f} s",
            *(f"{median(one.get(name, 0.0) for one in stages[trainer]):.1f} s" for name in names),
            ", ".join(f"{wall:.1f}" for wall in walls[trainer]),
        ]
        for trainer in trainers
    ]
    return table(["trainer", "wall", *names, "each wall"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="quickstart")
    parser.add_argument("--study", type=Path, help="a study file of yours instead of a size")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="changes of the study")
    parser.add_argument("--epochs", type=int, nargs="+", default=[5, 30], help="of a trial: one sweep for each")
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--slots", default="auto", help="resources.slots")
    parser.add_argument("--hosts", default="auto", help="resources.hosts")
    parser.add_argument("--gpus", type=float, default=0.0, help="resources.gpus")
    parser.add_argument("--place", type=Path, help="folder to keep everything in; default: a temporary one")
    parser.add_argument("--pairs", type=int, default=0, help="compare trainers in so many runs of each")
    parser.add_argument("--trainers", nargs="+", choices=["lean", "plain"], default=["lean", "plain"])
    out_option(parser)
    options = parser.parse_args()
    machine, found = Machine(), []
    if options.pairs:
        with place_of(options.place, own_cache=True) as place:
            path = options.study or study_file(options.size, place / "study")
            prepare_data(Study.load(path, options.set))
            lines = compare(path, place, options.pairs, options.trainers, options.set)
        hand_over("Whole sweeps by trainer: medians", lines, machine.facts(), {}, options.out)
        return
    changes = [
        *(f"sweep.trials={options.trials}", "sweep.scheduler={name: none}", "sweep.sampler={name: random}"),
        *("sweep.final=null", "sweep.budget.hours=null", "tracking.uri=null"),
        *(f"resources.{name}={getattr(options, name)}" for name in ("slots", "hosts", "gpus")),
        *options.set,
    ]
    with place_of(options.place, own_cache=options.size != "quickstart" and options.study is None) as place:
        path = options.study or study_file(options.size, place / "study")
        prepare_data(Study.load(path, changes))
        for epochs in options.epochs:
            warmup = min(Study.load(path, changes).train.schedule.warmup_epochs, epochs - 1)
            own = [*changes, f"train.epochs={epochs}", f"train.schedule.warmup_epochs={warmup}"]
            found.append({"epochs_asked": epochs, **measure(path, place / f"epochs-{epochs}", own)})
    rows, verdicts = [], []
    for one in found:
        trial, gaps = median(one["trial_seconds"]), one["gaps"] or [0.0]
        rows.append(
            [
                one["epochs_asked"],
                f"{trial:.1f} s",
                f"{one['trials']} on {one['hosts']} x {one['slots']}",
                f"{one['wall']:.1f} s",
                *(f"{one[name]:.1%}" for name in PARTS),
                f"{one['overhead']:.1%}",
                f"{one['over_epochs']:.3f}",
                f"{median(gaps):.2f} s, {max(gaps):.2f} s",
            ]
        )
        if trial > 60:
            word = "within" if one["overhead"] <= ALLOWED else "NOT within"
            verdict = f"{one['overhead']:.1%}, {word} {ALLOWED:.0%}"
        else:
            seconds = one["overhead"] * (1 - one["waiting"]) * one["wall"]
            verdict = f"{seconds:.1f} s in all (they are shorter than a minute)"
        stages = "; ".join(f"{name} {seconds:.1f} s" for name, seconds in one["stages"].items())
        verdicts.append(f"- Overhead for trials of {trial:.0f} s: {verdict}. One after the other: {stages}.")
    columns = ["epochs", "a trial", "trials", "wall", *PARTS, "overhead", "over the epochs", "gap: median, longest"]
    lines = [*table(columns, rows), "", *verdicts]
    hand_over("What a sweep costs beside training", lines, machine.facts(), found, options.out)


if __name__ == "__main__":
    main()
