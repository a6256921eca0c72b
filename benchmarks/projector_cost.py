#!/usr/bin/env python3
"""What MMP's projector costs as its tokens grow.

    python benchmarks/projector_cost.py                                         # a minute on a CPU
    python benchmarks/projector_cost.py --tokens 1024 4096

MMP's AggregatedProjector for the study mmp_mcubes (CMNeXt-B2, four modalities), one sample, at the training window
that gives N tokens a modality. Each size is a process of its own. `peak` is the most resident memory above the level
at which parameters and tokens lay ready (CUDA: allocated memory), libraries having been warmed up; `one N x N` is what
one attention matrix of all heads would take. Seconds are of the processor on a CPU, on the clock on CUDA.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import math
import multiprocessing
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from ran_on import ROOT, Machine, hand_over, out_option
from scenario_cost import clocked
from torch import nn

from mmsweep.assembly.build import card_of, make_backbone
from mmsweep.methods.mmp import MMP, AggregatedProjector
from mmsweep.methods.restoration import Sequence as TokenSequence
from mmsweep.methods.restoration import TokenShape, token_shapes
from mmsweep.study import Study

MIB = 2**20


def mcubes(side: int) -> Study:
    """MMP's study at four modalities, trained on windows of `side` pixels: (side / 4)² tokens each."""
    return Study.load(ROOT / "search_spaces" / "mmp_mcubes.yaml", [f"data.augmentation.window={side}"])


class Memory:
    """Most memory above the level at which this was made; on a CPU for Linux with glibc only."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        gc.collect()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self.level = torch.cuda.memory_allocated()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of before
            self.level = self._status("VmRSS")

    def peak(self) -> int:
        """Bytes."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated() - self.level
        return self._status("VmHWM") - self.level

    @staticmethod
    def _status(name: str) -> int:
        # getrusage would do, but its peak is that of the parent where that was larger, and cannot be reset.
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def map_from(size: int) -> None:
    """Blocks of so many bytes come from the kernel and go back to it at once: nothing freed before hides a peak."""
    M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, size)
    libc.mallopt(M_TRIM_THRESHOLD, size)
    libc.malloc_trim(0)


def projector_work(
    shapes: dict[str, TokenShape], spec: MMP.Options, missing: int, train: bool, device: torch.device
) -> tuple[int, Callable[[], None]]:
    """(parameters, one pass): the first `missing` modalities from the others."""
    draws = torch.Generator().manual_seed(0)
    projector = AggregatedProjector(shapes, spec.aggregated_tokens, **dict(spec.projector))
    projector.reset(draws)
    projector.to(device)
    values = {m: torch.randn(1, s.count, s.width, generator=draws).to(device) for m, s in shapes.items()}
    tokens = {m: TokenSequence(v.requires_grad_(train), None, shapes[m].grid) for m, v in values.items()}
    used_BM = (torch.arange(len(shapes)) >= missing)[None].to(device)

    def work() -> None:
        with torch.set_grad_enabled(train):
            restored = projector(tokens, used_BM)
            assert len(restored) == missing
            if train:
                loss = [nn.functional.smooth_l1_loss(r.values_RND, values[m]) for m, r in restored.items()]
                torch.stack(loss).sum().backward()
        for tensor in (*projector.parameters(), *values.values()):
            tensor.grad = None

    return sum(p.numel() for p in projector.parameters()), work


@dataclass(frozen=True)
class Probe:
    """One size of the projector, to be measured in a process of its own."""

    shapes: dict[str, TokenShape]
    spec: MMP.Options
    missing: int
    train: bool
    device: str
    threads: int
    repeats: int

    def __call__(self) -> dict[str, Any]:
        torch.set_num_threads(self.threads)
        device = torch.device(self.device)
        small = {m: TokenShape(64, s.width, (8, 8)) for m, s in self.shapes.items()}
        projector_work(small, self.spec, self.missing, self.train, device)[1]()
        parameters, work = projector_work(self.shapes, self.spec, self.missing, self.train, device)
        if device.type == "cpu":
            map_from(16384)
        memory = Memory(device)
        work()
        peak = memory.peak()
        if device.type == "cpu":
            map_from(32 * MIB)  # as large as glibc lets it become by itself; pages from the kernel cost time
            work()
        times = [clocked(work, device)[1:] for _ in range(self.repeats)]
        wall, cpu = (median(t[i] for t in times) for i in (0, 1))
        return {"peak": peak, "wall_s": wall, "cpu_s": cpu, "parameters": parameters}


def run_probe(probe: Probe) -> dict[str, Any]:
    return probe()


def measure_projector(options: argparse.Namespace) -> list[dict[str, Any]]:
    found = []
    # A server that has imported everything forks a fresh child for every probe: imports are paid once.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mmsweep.assembly"])
    with context.Pool(1, maxtasksperchild=1) as pool:
        for missing in (1, 3):
            for side in (4 * math.isqrt(n) for n in sorted(options.tokens)):
                study = mcubes(side)
                assert isinstance(study.method, MMP.Options)
                with torch.device("meta"):
                    shapes = token_shapes(make_backbone(study, card_of(study), load=False))
                (n,) = {s.count for s in shapes.values()}
                for train in (False, True):
                    probe = Probe(
                        shapes, study.method, missing, train, options.device, options.threads, options.repeats
                    )
                    about = {"side": side, "missing": missing, "train": train, "tokens": n}
                    square = 4 * study.method.projector.heads * n * n
                    found.append(about | {"square": square} | pool.apply(run_probe, (probe,)))
    return found


def projector_table(found: Sequence[dict[str, Any]], device: str) -> list[str]:
    clock = "cpu_s" if device == "cpu" else "wall_s"
    lines = [
        "| N | picture | missing of 4 | pass | parameters | peak | × that of the N before | seconds | × that of the N "
        "before | one N x N |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    before: dict[tuple[int, bool], dict[str, Any]] = {}
    for one in found:
        last = before.get((one["missing"], one["train"]))
        grown = ["", ""] if last is None else [f"{one[k] / last[k]:.1f}" for k in ("peak", clock)]
        before[one["missing"], one["train"]] = one
        lines.append(
            f"| {one['tokens']:,} | {one['side']}² | {one['missing']} | {_pass(one)} | {one['parameters'] / 1e6:.2f} M "
            f"| {one['peak'] / MIB:.1f} MiB | {grown[0]} | {one[clock]:.4f} | {grown[1]} "
            f"| {one['square'] / MIB:,.0f} MiB |"
        )
    return lines


def _pass(one: dict[str, Any]) -> str:
    return "forward and backward" if one["train"] else "forward"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 4096, 16384], help="squares of multiples of 8")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    out_option(parser)
    return parser.parse_args()


def main() -> None:
    options, machine = _arguments(), Machine()
    found = measure_projector(options)
    lines, facts = projector_table(found, options.device), machine.facts(threads=options.threads)
    hand_over("What MMP's projector costs as its tokens grow", lines, facts, found, options.out)


if __name__ == "__main__":
    main()
