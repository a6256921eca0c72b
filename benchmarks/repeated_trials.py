#!/usr/bin/env python3
"""The trials of a sweep that differ in nothing but `train.seed`, a line each: mean ± SD on validation, best first.

    python benchmarks/repeated_trials.py sweeps/quickstart-options

Each trial counts with the epoch that its score is. Searched values that all trials share are left out.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from statistics import mean, stdev

from mmsweep.report.record import SweepRecord

SEED = "train.seed"


def main() -> None:
    record = SweepRecord.load(sys.argv[1])
    metric = record.metric
    columns = ["mean_missing", "complete", *(f"missing-{m}" for m in record.study.model.encoders)]
    values = {key: {str(trial.params.get(key)) for trial in record.trials} for key in record.study.search}
    shown = [key for key, found in values.items() if key != SEED and len(found) > 1]
    groups = defaultdict(list)
    for trial in record.ranking:
        groups[tuple(str(trial.params.get(key, "")) for key in shown)].append(trial)
    print(f"| {' | '.join(shown)} | seeds | {' | '.join(columns)} |")
    print("|" + "---|" * (len(shown) + 1 + len(columns)))
    for names, trials in sorted(groups.items(), key=lambda item: -mean(t.objective or 0.0 for t in item[1])):
        cells = []
        for column in columns:
            found = [100 * trial.metrics[f"val/{column}/{metric}"] for trial in trials]
            cells.append(f"{mean(found):.1f} ± {stdev(found):.1f}" if len(found) > 1 else f"{found[0]:.1f}")
        print(f"| {' | '.join(names)} | {len(trials)} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
