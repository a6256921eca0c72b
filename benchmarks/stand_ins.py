#!/usr/bin/env python3
"""How near a run's stand-ins come to the real tokens on test, beside its scores: for runs that are no final ones.

    python benchmarks/stand_ins.py sweeps/mmp-earth-ablation/trials/0009 sweeps/mmp-earth-k/trials/0000

Final runs have this in their report. Here the best epoch of any run (a trial of a search, too) is evaluated on test as
`mmsweep evaluate` does it, and its stand-ins are measured as final runs measure theirs (training/stand_ins.py): cosine
similarity and mean squared error of each modality's tokens. One seed, and chosen on validation: an aid to
understanding, not a result.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from mmsweep.assembly.host import Warm
from mmsweep.readers.report.arrays import read_arrays
from mmsweep.record.trial import TrialFolder
from mmsweep.study import Study
from mmsweep.training.stand_ins import write_stand_ins
from mmsweep.training.world import World


def measure(path: Path) -> dict[str, Any]:
    """{"mean_missing": the objective's metric on test, "cosine" and "mse": modality -> mean over rows}."""
    study, folder, warm = Study.load(path / "study.yaml"), TrialFolder(path), Warm("cpu", World())
    slot = warm.slot(study, folder)
    record, _ = warm.evaluate(study, folder, slot, "test")
    metric = study.sweep.objectives[0].metric.split("/")[-1]
    found: dict[str, Any] = {"run": str(path), "mean_missing": record["mean_missing"][metric]}
    found |= {name: scenario["metrics"][metric] for name, scenario in record["scenarios"].items()}
    with tempfile.TemporaryDirectory() as place:
        split = warm.ready(study)[0].splits["test"]
        write_stand_ins(Path(place), slot.method, split, study.train.rows_at_once, torch.device("cpu"))
        kept = read_arrays(Path(place) / "stand_ins.npz", ("modalities", "cosine_MN", "mse_MN"))
    for name in ("cosine", "mse"):
        means = np.nanmean(kept[f"{name}_MN"], axis=1)
        found[name] = {str(m): float(value) for m, value in zip(kept["modalities"], means, strict=True)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs whose method replaces tokens")
    found = [measure(path) for path in parser.parse_args().runs]
    for one in found:
        near = "  ".join(f"{m} {one['cosine'][m]:.2f}/{one['mse'][m]:.2f}" for m in one["cosine"])
        print(f"{one['run']}: mean of missing {100 * one['mean_missing']:.1f}; cosine/MSE {near}")
    print(f"{platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} thread(s)")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
