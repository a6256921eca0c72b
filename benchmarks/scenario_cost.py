#!/usr/bin/env python3
"""What all scenarios cost beside one plain pass per pattern.

    python benchmarks/scenario_cost.py                                          # some minutes on a CPU
    python benchmarks/scenario_cost.py --cases cmpt --repeats 2 --mixed-repeats 0

A study's method, untrained, over its validation rows. `mmsweep` is `predict`, then `scenario_metrics`, then
`evaluation_record`: every scenario, every pattern, their mean and worst, a curve for each modality. `per pattern` is a
loop written out here: for each pattern read every batch, predict under that pattern alone, keep the task's statistics;
no scenario, no metric. `per scenario` is another: for each scenario read every batch and run the method's forward pass
with that scenario's table, then the metrics. They take turns in every repeat; a ratio is the median of the repeats'
ratios, in processor time on a CPU (which others' work disturbs least), on the clock on CUDA. The statistics of the
first two and the scenario scores of the first and the third must agree, or the run ends with an error.
"""

from __future__ import annotations

import argparse
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
from ran_on import ROOT, Machine, hand_over, out_option
from torch import Tensor

from mmsweep.assembly.build import make_method
from mmsweep.assembly.host import Warm
from mmsweep.availability import Scenario, availability_table, pattern_rows
from mmsweep.data.prepared_split import PreparedSplit
from mmsweep.methods.method import Method
from mmsweep.study import Study
from mmsweep.tasks.task import Task, task_of
from mmsweep.training.evaluation import Predictions, evaluation_record, predict, scenario_metrics
from mmsweep.training.world import World

ALLOWED = 1.10
"""Of one pass per pattern."""
AGREE = 1e-3
"""Of a score; of a statistic, relative to the largest. Batches of other compositions round differently."""


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


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=tuple(CASES), default=list(CASES))
    parser.add_argument("--scenarios", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--mixed-repeats", type=int, default=1, help="in how many repeats a pass per scenario runs too")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    out_option(parser)
    return parser.parse_args()


def main() -> None:
    options, machine = _arguments(), Machine()
    torch.set_num_threads(options.threads)
    found = [measure_case(CASES[name], options) for name in options.cases]
    lines = [*evaluation_table(found, options.device), ""]
    for case in found:
        verdict = "within" if case["ratio"] <= ALLOWED else "NOT within"
        lines.append(
            f"- {case['case']}: {verdict} {ALLOWED:.2f} of one pass per pattern; "
            f"scoring is {case['scoring_share']:.1%} of that; "
            f"statistics differ by {case['statistics_apart']:.1e}, scores by {case['scores_apart']:.1e}"
        )
    facts = machine.facts(threads=options.threads)
    hand_over("What all scenarios cost beside one pass per pattern", lines, facts, found, options.out)


if __name__ == "__main__":
    main()
