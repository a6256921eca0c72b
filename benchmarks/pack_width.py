#!/usr/bin/env python3
"""Step time, achieved FLOP/s and memory of packs of S = 1, 2, 4, … slots, beside what the device can do at most.

    python benchmarks/pack_width.py --size quickstart                              # CPU, some minutes
    python benchmarks/pack_width.py --size base --slots 1 2 4                      # CPU: 768-wide encoders
    python benchmarks/pack_width.py --size base --device cuda                      # ViT-B/16 + BERT-base, bf16
    python benchmarks/pack_width.py --size tiny --slots 1 2 --seconds 0.1          # whether it runs

A step is the engine's own: data, forward, backward, clipping, optimiser, of S slots that differ as trials do. Its time
is the median of blocks; the packs take turns, once up and once down, so that a load that changes does not favour one.
FLOP are counted (torch.utils.flop_counter: products, convolutions, attention; forward and backward) and do not include
anything elementwise. The limit is the rate of the best square matrix product at the precision in force, measured before
and after. "of one slot's rate": how many times as many trials' steps a second as with S = 1.
Memory is that of a step at its highest, above what the host holds without any slot (frozen encoders, data): on CUDA
what was allocated; on a CPU resident memory, each S in a process of its own. "a slot": (this S less S = 1) / (S - 1).
A pack that would take longer than --limit a step, or more than 60 % of the memory, is left out and said to be.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from outside import place_of
from pack_steps import PackSteps, product_rate, seconds_of, slot_studies
from ran_on import Machine, device_of, hand_over, out_option, table
from sizes import SIZES, study_file
from torch.utils.flop_counter import FlopCounterMode

from mmsweep.assembly.host import Warm
from mmsweep.models.packing import single_slot_reason
from mmsweep.record.trial import TrialFolder
from mmsweep.study import Study
from mmsweep.training.world import World

MIB = 2**20
MEMORY_SHARE = 0.6


def speed(warm: Warm, study: Study, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One entry for each S: seconds of a step (all blocks), FLOP of a step, on CUDA peak bytes; or why it is not."""
    device, found = warm.device, {S: {"slots": S, "seconds": []} for S in sorted(options.slots)}
    for turn in range(options.turns):
        for S in sorted(found, reverse=turn % 2 == 1):
            entry = found[S]
            if "left_out" in entry:
                continue
            if turn == 0 and (reason := _too_much(found, S, options.limit, device)):
                entry["left_out"] = reason
                continue
            try:
                _measure(warm, study, entry, options)
            except torch.cuda.OutOfMemoryError:
                entry["left_out"] = "out of memory"
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
    return list(found.values())


def _measure(warm: Warm, study: Study, entry: dict[str, Any], options: argparse.Namespace) -> None:
    device = warm.device
    if device.type == "cuda":
        level = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    if "flop" not in entry:
        # Counted without train.compile: a replayed graph shows the counter nothing.
        plain = study.with_values({"train.compile": "off"})
        counted = PackSteps(warm, slot_studies(plain, entry["slots"]))
        with FlopCounterMode(display=False) as counter:
            counted.step()
        entry["flop"], entry["rows"] = counter.get_total_flops(), counted.rows
        del counted
    pack = PackSteps(warm, slot_studies(study, entry["slots"]))
    entry["seconds"] += seconds_of(pack.step, device, options.seconds, options.blocks)
    if device.type == "cuda":
        entry["peak"] = torch.cuda.max_memory_allocated() - level


def _too_much(found: dict[int, dict[str, Any]], S: int, limit: float, device: torch.device) -> str | None:
    """Judged by the largest S that was measured: neither time nor memory grows faster than S."""
    before = [e for e in found.values() if e["seconds"] and e["slots"] < S]
    if not before:
        return None
    last = max(before, key=lambda e: e["slots"])
    guess = median(last["seconds"]) * S / last["slots"]
    if guess > limit:
        return f"a step would take about {guess:.0f} s"
    if device.type == "cuda" and last["peak"] * S / last["slots"] > torch.cuda.get_device_properties(0).total_memory:
        return "out of memory, by what the S before took"
    return None


def memory(path: Path, found: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """On a CPU: add the peak of a step to each entry, from a process of its own; Linux only."""
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    grown: list[dict[str, Any]] = []
    for entry in found:
        if "left_out" in entry:
            continue
        if grown and grown[-1]["peak"] * entry["slots"] / grown[-1]["slots"] > MEMORY_SHARE * available:
            continue
        probe = [sys.executable, __file__, "--probe", str(path), "--slots", str(entry["slots"])]
        said = subprocess.run([*probe, "--threads", str(options.threads)], capture_output=True, text=True)
        if said.returncode:
            sys.exit(f"the probe for S = {entry['slots']} failed:\n{said.stderr[-2000:]}")
        entry["peak"] = json.loads(said.stdout.splitlines()[-1])["peak"]
        grown.append(entry)


def probe(path: Path, slots: int) -> int:
    """Bytes by which resident memory rises at most above that of a host without slots."""
    study, warm = Study.load(path), Warm("cpu", World())
    warm.ready(study)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of loading
    level = _status("VmRSS")
    pack = PackSteps(warm, slot_studies(study, slots))
    for _ in range(2):  # gradients and the optimiser's own tensors are there from the second on
        pack.step()
    return _status("VmHWM") - level


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def rows(found: list[dict[str, Any]], limit: float) -> list[list[str | None]]:
    first = next((e for e in found if e["slots"] == 1 and e["seconds"]), None)
    lines: list[list[str | None]] = []
    for entry in found:
        S, seconds = entry["slots"], entry["seconds"]
        if not seconds:
            lines.append([str(S), entry["left_out"], *[None] * 7])
            continue
        step, peak = median(seconds), entry.get("peak")
        rate = entry["flop"] / step
        own = None
        if peak is not None and S > 1 and first and "peak" in first:
            own = f"{(peak - first['peak']) / (S - 1) / MIB:,.0f} MiB"
        lines.append(
            [
                str(S),
                f"{1000 * step:,.1f} ms",
                f"{1000 * min(seconds):,.1f} ms",
                f"{S / step:,.3g}",
                f"{S / step * median(first['seconds']):.2f}" if first else None,
                f"{entry['flop'] / 1e12:.3g}",
                f"{rate / 1e12:.3g}",
                f"{100 * rate / limit:.0f} %",
                None if peak is None else f"{peak / MIB:,.0f} MiB",
                own,
            ]
        )
    return lines


COLUMNS = (
    *("S", "a step", "fastest", "trials' steps a second", "of one slot's rate", "TFLOP a step", "TFLOP/s"),
    *("of the product rate", "memory", "a slot"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="quickstart")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="changes of the study")
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=1, help="of a CPU; a host of `resources.cpus: 1` has one")
    parser.add_argument("--seconds", type=float, default=1.0, help="a block's length at least")
    parser.add_argument("--blocks", type=int, default=5, help="of each pack in each turn")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--limit", type=float, default=30.0, help="longest step in seconds")
    parser.add_argument("--no-memory", action="store_true", help="CPU: leave out the processes that measure memory")
    parser.add_argument("--probe", type=Path, help=argparse.SUPPRESS)
    out_option(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.probe:
        print(json.dumps({"peak": probe(options.probe, options.slots[0])}))
        return
    device, machine = device_of(options.device), Machine()
    with place_of(None, own_cache=options.size != "quickstart") as place:
        path = study_file(options.size, place, options.set)
        study, warm = Study.load(path), Warm(str(device), World())
        precision = study.train.precision if device.type == "cuda" else "fp32"
        warm.ready(study)
        if reason := single_slot_reason(warm.slot(study, TrialFolder("/nonexistent/0")).method):
            sys.exit(reason)
        limits = [product_rate(device, precision)]
        found = speed(warm, study, options)
        limits.append(product_rate(device, precision))
        if device.type == "cpu" and not options.no_memory:
            memory(path, found, options)
    limit = max(limits)
    lines = [
        f"Size `{options.size}`: batch {study.train.batch_size} a slot, {precision}. The best square matrix product "
        f"ran at {' and '.join(f'{x / 1e12:,.2f}' for x in limits)} TFLOP/s before and after.",
        "",
        *table(COLUMNS, rows(found, limit)),
    ]
    best = max((e for e in found if e["seconds"]), key=lambda e: e["flop"] / median(e["seconds"]))
    share = 100 * best["flop"] / median(best["seconds"]) / limit
    lines += ["", f"Best: S = {best['slots']}, {share:.0f} % of the product rate."]
    facts = machine.facts(threads=options.threads, device=str(device), precision=precision)
    hand_over("Packs by their width", lines, facts, {"product_rates": limits, "packs": found}, options.out)


if __name__ == "__main__":
    main()
