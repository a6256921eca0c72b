#!/usr/bin/env python3
"""A sweep's finished trials, a line for each configuration: mean ± SD over `train.seed` on validation, best first.

    python benchmarks/repeated_trials.py sweeps/quickstart-options

Each trial counts with its best epoch, which favours longer runs a little. Values that all trials share are left out.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from statistics import mean, stdev

from mmsweep.record.results import TrialRecord
from mmsweep.record.sweep import SweepRecord

SEED = "train.seed"


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    record = SweepRecord.load(sys.argv[1])
    trials = [trial for trial in record.ranking if trial.state == "finished"]
    if not trials:
        sys.exit(f"{sys.argv[1]}: no trial has finished")
    wanted = ["mean_missing", "complete", *(f"missing-{m}" for m in record.summary.modalities)]
    columns = [name for name in wanted if f"val/{name}/{record.metric}" in trials[0].metrics]
    sign = -1 if record.objective.mode == "max" else 1
    values = {key: {str(trial.params.get(key)) for trial in trials} for key in record.summary.search}
    shown = [key for key, found in values.items() if key != SEED and len(found) > 1]
    groups: dict[tuple[str, ...], list[TrialRecord]] = defaultdict(list)
    for trial in trials:
        groups[tuple(str(trial.params.get(key, "")) for key in shown)].append(trial)
    print(f"| {' | '.join(shown)} | seeds | {' | '.join(columns)} |")
    print("|" + "---|" * (len(shown) + 1 + len(columns)))
    for names, repeats in sorted(groups.items(), key=lambda item: sign * mean(t.objective or 0.0 for t in item[1])):
        cells = []
        for column in columns:
            found = [100 * trial.metrics[f"val/{column}/{record.metric}"] for trial in repeats]
            cells.append(f"{mean(found):.1f} ± {stdev(found):.1f}" if len(found) > 1 else f"{found[0]:.1f}")
        print(f"| {' | '.join(names)} | {len(repeats)} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
