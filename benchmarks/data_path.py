#!/usr/bin/env python3
"""The data path alone, without a network: batches per second, beside how many a training step asks for.

    python benchmarks/data_path.py --size quickstart
    python benchmarks/data_path.py --size base --device cuda
    python benchmarks/data_path.py --size tiny --slots 1 2 --seconds 0.1          # whether it runs

A batch is what the engine reads for a step of S slots: each slot's rows, masks and augmentation drawn from its own
generators, the prepared arrays read, moved to the device, normalised. A step is the engine's whole step, the batch
included. Both are medians of blocks and take turns. "share": batch / step, so below 100 % the data path keeps up even
where nothing overlaps; "feeds": how many steps' batches it makes in the time of one step. The arrays are memory-mapped
and in the page cache, as they are from a trial's second epoch on.
`augmented` adds random crops and flips of pictures (data.augmentation), which happen on the device.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from outside import place_of
from pack_steps import PackSteps, seconds_of, slot_studies
from ran_on import Machine, device_of, hand_over, out_option, table
from sizes import SIZES, study_file

from mmsweep.assembly.host import Warm
from mmsweep.study import Study
from mmsweep.training.world import World

AUGMENTED = {"data.augmentation": {"flip": True, "crop": [0.5, 1.0]}}


def measure(warm: Warm, study: Study, slots: int, seconds: float, turns: int) -> dict[str, Any]:
    """Seconds of a batch and of a step of so many slots."""
    pack = PackSteps(warm, slot_studies(study, slots))
    found: dict[str, Any] = {"slots": slots, "rows": pack.rows, "batch": [], "step": []}
    for turn in range(turns):
        for name in ("batch", "step") if turn % 2 == 0 else ("step", "batch"):
            found[name] += seconds_of(getattr(pack, name), warm.device, seconds, 3)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="quickstart")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="changes of the study")
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0, help="a block's length at least")
    parser.add_argument("--turns", type=int, default=2)
    out_option(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device, machine = device_of(options.device), Machine()
    with place_of(None, own_cache=options.size != "quickstart") as place:
        plain = Study.load(study_file(options.size, place, options.set))
        warm, found = Warm(str(device), World()), []
        for name, study in (("as it is", plain), ("augmented", plain.with_values(AUGMENTED))):
            for slots in options.slots:
                found.append({"data": name, **measure(warm, study, slots, options.seconds, options.turns)})
    rows = []
    for one in found:
        batch, step = median(one["batch"]), median(one["step"])
        ms = (f"{1000 * batch:,.2f} ms", f"{1000 * step:,.1f} ms")
        rates = (f"{1 / batch:,.0f}", f"{one['rows'] / batch:,.0f}")
        rows.append(
            [one["data"], one["slots"], one["rows"], *ms, *rates, f"{batch / step:.1%}", f"{step / batch:,.0f}"]
        )
    columns = ["", "S", "rows", "a batch", "a step", "batches/s", "rows/s", "share", "feeds"]
    lines = [f"Size `{options.size}`, batch {plain.train.batch_size} a slot.", "", *table(columns, rows)]
    facts = machine.facts(threads=options.threads, device=str(device), precision=plain.train.precision)
    hand_over("The data path alone", lines, facts, found, options.out)


if __name__ == "__main__":
    main()
