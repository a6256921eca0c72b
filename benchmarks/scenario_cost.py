#!/usr/bin/env python3
"""What all scenarios cost beside one plain pass per pattern, and what MMP's projector costs as its tokens grow.

    python benchmarks/scenario_cost.py                                          # both parts, some minutes on a CPU
    python benchmarks/scenario_cost.py --parts evaluation --cases cmpt --repeats 2 --mixed-repeats 0
    python benchmarks/scenario_cost.py --parts projector --tokens 1024 4096

evaluation   A study's method, untrained, over its validation rows. `mmsweep` is `predict`, then `scenario_metrics`,
             then `evaluation_record`: every scenario, every pattern, their mean and worst, a curve for each modality.
             `per pattern` is a loop written out here: for each pattern read every batch, predict under that pattern
             alone, keep the task's statistics; no scenario, no metric. `per scenario` is another: for each scenario
             read every batch and run the method's forward pass with that scenario's table, then the metrics. They take
             turns in every repeat; a ratio is the median of the repeats' ratios, in processor time on a CPU (which
             others' work disturbs least), on the clock on CUDA. The statistics of the first two and the scenario
             scores of the first and the third must agree, or the run ends with an error.
projector    MMP's AggregatedProjector for the study mmp_mcubes (CMNeXt-B2, four modalities), one sample, at the
             training window that gives N tokens a modality. Each size is a process of its own. `peak` is the most
             resident memory above the level at which parameters and tokens lay ready (CUDA: allocated memory),
             libraries having been warmed up; `one N x N` is what one attention matrix of all heads would take.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import math
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch import Tensor, nn

from mmsweep.assembly.build import card_of, make_backbone, make_method
from mmsweep.assembly.host import Warm
from mmsweep.availability import Scenario, availability_table, pattern_rows
from mmsweep.data.prepared_split import PreparedSplit
from mmsweep.methods.method import Method
from mmsweep.methods.mmp import MMP, AggregatedProjector
from mmsweep.methods.restoration import Sequence as TokenSequence
from mmsweep.methods.restoration import TokenShape, token_shapes
from mmsweep.study import Study
from mmsweep.tasks.task import Task, task_of
from mmsweep.training.evaluation import Predictions, evaluation_record, predict, scenario_metrics
from mmsweep.training.world import World

ROOT = Path(__file__).resolve().parents[1]
ALLOWED = 1.10
"""Of one pass per pattern."""
AGREE = 1e-3
"""Of a score; of a statistic, relative to the largest. Batches of other compositions round differently."""
MIB = 2**20


@dataclass(frozen=True)
class Case:
    """A study file, and what is changed in it."""

    title: str
    study: str
    changes: tuple[str, ...] = ()


CASES = {
    "cmpt": Case("CMPT, Open Clip Art", "quickstart"),
    "mmp": Case("MMP, Open Clip Art", "mmp_quickstart"),
    "mmp-earth": Case("MMP, CMNeXt nano, Earth", "mmp_earth"),
    "dropout-earth": Case("modality dropout, CMNeXt nano, Earth", "mmp_earth", ("method.name=modality_dropout",)),
}


def many_scenarios(modalities: Sequence[str], count: int) -> list[Scenario]:
    """`count` different scenarios: whole patterns, then rates and shares by tenths, the middle ones first."""
    specs: list[Any] = ["complete", *({"missing": m} for m in modalities), *({"only": m} for m in modalities)]
    for tenth in (5, 3, 7, 1, 9, 2, 8, 4, 6):
        specs += [{"rate": tenth / 10, "type": "both"}, *({"available": {m: tenth / 10}} for m in modalities)]
    different = {s.shares: s for s in (Scenario.parse(spec, modalities) for spec in specs)}
    if len(different) < count:
        sys.exit(f"--scenarios: {len(modalities)} modalities have {len(different)} here, not {count}")
    return list(different.values())[:count]


@dataclass
class Setting:
    """One case, ready to be timed."""

    method: Method
    task: Task
    split: PreparedSplit
    rows_at_once: int
    device: torch.device
    seed: int
    scenarios: list[Scenario]

    @classmethod
    def of(cls, case: Case, device: torch.device, scenarios: int) -> Setting:
        study = Study.load(ROOT / "search_spaces" / f"{case.study}.yaml", case.changes)
        data, backbone = Warm(str(device), World()).ready(study)
        method, split = make_method(study, backbone).to(device), data.splits["val"]
        # With natural gaps some rows have nothing under some patterns: the loops below would have to step over them.
        assert np.asarray(split.natural_NM).all()
        chosen = many_scenarios(backbone.modalities, scenarios)
        size, seed = study.train.rows_at_once, study.scenarios.seed
        return cls(method, task_of(data.target), split, size, device, seed, chosen)

    def mmsweep(self) -> tuple[Predictions, dict[str, float]]:
        predictions = predict(self.method, self.task, self.split, self.rows_at_once, self.device, World())
        return predictions, self.scores(predictions)

    def scores(self, predictions: Predictions) -> dict[str, float]:
        scores = scenario_metrics(predictions, self.task, self.scenarios, self.seed)
        evaluation_record(predictions, self.task, self.scenarios, self.seed, "val", 1)
        return scores

    def batches(self) -> list[np.ndarray]:
        return np.array_split(np.arange(len(self.split)), range(self.rows_at_once, len(self.split), self.rows_at_once))

    @torch.inference_mode()
    def per_pattern(self) -> Tensor:
        """[P, N, ...]"""
        self.method.eval()
        found = []
        for pattern_M in torch.from_numpy(pattern_rows(self.method.backbone.modalities)).to(self.device):
            parts = []
            for index in self.batches():
                batch = self.split.batch(index, self.device)
                prediction = self.method.predict_patterns(batch, pattern_M[None])[0]
                parts.append(self.task.statistics(prediction, batch.target).cpu())
            found.append(torch.cat(parts))
        return torch.stack(found)

    @torch.inference_mode()
    def per_scenario(self) -> dict[str, float]:
        """`scenario/metric` of every scenario."""
        self.method.eval()
        modalities, truth, scores = self.method.backbone.modalities, self.task.truth(self.split.targets), {}
        for scenario in self.scenarios:
            table = torch.from_numpy(availability_table(scenario, len(self.split), modalities, self.seed))
            parts = []
            for index in self.batches():
                batch = self.split.batch(index, self.device)
                prediction = self.method(batch, table[index].to(self.device)).prediction
                parts.append(self.task.statistics(prediction, batch.target).cpu())
            found = self.task.metrics(torch.cat(parts), truth)
            scores |= {f"{scenario.name}/{metric}": value for metric, value in found.items()}
        return scores


def clocked(work: Callable[[], Any], device: torch.device) -> tuple[Any, float, float]:
    """(its result, seconds on the clock, seconds of processor)."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def measure_case(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    setting = Setting.of(case, torch.device(options.device), options.scenarios)
    names = ("mmsweep", "scoring", "per_pattern", "per_scenario")
    wall: dict[str, list[float]] = {name: [] for name in names}
    cpu: dict[str, list[float]] = {name: [] for name in names}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        result, on_clock, of_processor = clocked(work, setting.device)
        wall[name].append(on_clock)
        cpu[name].append(of_processor)
        return result

    predictions, scores = setting.mmsweep()  # untimed: first calls load and compile what later ones have
    worst_statistic, worst_score = _statistics_apart(predictions, setting.per_pattern(), setting.task), 0.0
    for repeat in range(options.repeats):
        turns = ["mmsweep", "per_pattern", *(["per_scenario"] if repeat < options.mixed_repeats else [])]
        for name in turns if repeat % 2 == 0 else turns[::-1]:
            result = timed(name, getattr(setting, name))
            if name == "per_scenario":
                worst_score = max(worst_score, *(abs(value - scores[key]) for key, value in result.items()))
        timed("scoring", lambda: setting.scores(predictions))
    if max(worst_statistic, worst_score) > AGREE:
        sys.exit(f"{case.title}: the passes disagree: statistics by {worst_statistic}, scores by {worst_score}")
    judged = cpu if setting.device.type == "cpu" else wall

    def ratio(of: str, to: str) -> float | None:
        pairs = list(zip(judged[of], judged[to], strict=False))
        return median(a / b for a, b in pairs) if pairs else None

    patterns = len(pattern_rows(setting.method.backbone.modalities))
    return {
        "case": case.title,
        "rows": len(setting.split),
        "patterns": patterns,
        "scenarios": len(setting.scenarios),
        "wall_s": wall,
        "cpu_s": cpu,
        "ratio": ratio("mmsweep", "per_pattern"),
        "ratio_to_scenarios": ratio("mmsweep", "per_scenario"),
        "scoring_share": ratio("scoring", "per_pattern"),
        "statistics_apart": worst_statistic,
        "scores_apart": worst_score,
    }


def _statistics_apart(predictions: Predictions, found_PN: Tensor, task: Task) -> float:
    """The largest difference of any statistic, relative to the largest of its row (dense: the row's pixels)."""
    apart = (predictions.statistics_PN.double() - found_PN.double()).abs()
    scale = found_PN.double().abs()
    if task.dense:
        return float((apart.flatten(2).sum(2) / scale.flatten(2).sum(2).clamp(min=1)).max())
    return float((apart / scale.amax(-1, keepdim=True)).max())


def evaluation_table(found: Sequence[dict[str, Any]], device: str) -> list[str]:
    clock = "cpu_s" if device == "cpu" else "wall_s"
    lines = [
        "| | rows | patterns | scenarios | mmsweep | of it scoring | per pattern | per scenario "
        "| mmsweep / per pattern | mmsweep / per scenario |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for case in found:
        seconds = {name: f"{median(values):.3f} s" if values else "" for name, values in case[clock].items()}
        others = case["ratio_to_scenarios"]
        lines.append(
            f"| {case['case']} | {case['rows']} | {case['patterns']} | {case['scenarios']} | {seconds['mmsweep']} "
            f"| {seconds['scoring']} | {seconds['per_pattern']} | {seconds['per_scenario']} | {case['ratio']:.2f} "
            f"| {'' if others is None else f'{others:.2f}'} |"
        )
    return lines


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
    parser.add_argument("--parts", nargs="+", choices=("evaluation", "projector"), default=["evaluation", "projector"])
    parser.add_argument("--cases", nargs="+", choices=tuple(CASES), default=list(CASES))
    parser.add_argument("--scenarios", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--mixed-repeats", type=int, default=1, help="in how many repeats a pass per scenario runs too")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 4096, 16384], help="squares of multiples of 8")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    return parser.parse_args()


def main() -> None:
    options = _arguments()
    torch.set_num_threads(options.threads)
    load, started = os.getloadavg()[0], time.perf_counter()
    found: dict[str, Any] = {}
    if "evaluation" in options.parts:
        found["evaluation"] = [measure_case(CASES[name], options) for name in options.cases]
        print("\n".join(evaluation_table(found["evaluation"], options.device)))
        for case in found["evaluation"]:
            verdict = "within" if case["ratio"] <= ALLOWED else "NOT within"
            print(
                f"{case['case']}: {verdict} {ALLOWED:.2f} of one pass per pattern; "
                f"scoring is {case['scoring_share']:.1%} of that; "
                f"statistics differ by {case['statistics_apart']:.1e}, scores by {case['scores_apart']:.1e}"
            )
    if "projector" in options.parts:
        found["projector"] = measure_projector(options)
        print("\n".join(projector_table(found["projector"], options.device)))
    device = torch.cuda.get_device_name() if options.device != "cpu" else platform.machine()
    print(
        f"{time.strftime('%Y-%m-%d')}, {device}, {os.cpu_count()} cores, {options.threads} thread(s), torch "
        f"{torch.__version__}, load average {load:.1f} before and {os.getloadavg()[0]:.1f} after, "
        f"{time.perf_counter() - started:.0f} s"
    )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
