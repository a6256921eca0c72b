"""Shows that a change of the code changed no number: trains four shipped studies small, and compares two such runs.

    python scripts/same_numbers.py measure before.json --tree ../before     # a checkout of the commit before
    python scripts/same_numbers.py measure after.json                       # this checkout
    python scripts/same_numbers.py compare before.json after.json

Each study has three trials of three epochs, none stopped early, on one CPU thread and without final runs. Every number
that a trial reports is compared digit by digit: losses, learning rates and all validation metrics of each epoch, and
the parameters that were sampled. `compare` lists the differences and exits with status 1 where there are any. Files
from different machines may differ in the last digits. `measure` took 21 minutes on two cores; mmp_sequences
needs Tux Paint's stamps (docs/tuxpaint.md).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
STUDIES = ("quickstart", "mmp_quickstart", "mmp_earth", "mmp_sequences")
SMALL = (
    "sweep.trials=3",
    "train.epochs=3",
    "sweep.scheduler.name=none",
    "sweep.final=null",
    "resources.hosts=1",
    "resources.slots=2",
)


def measure(tree: Path) -> dict[str, dict[str, Any]]:
    """Study -> trial -> its parameters and its reports, with the mmsweep of a checkout.

    Raises:
        SystemExit: a study's data is not here, which is found before anything trains, or a sweep did not end well;
            the errors stand above.
    """
    files = {study: str(tree / "search_spaces" / f"{study}.yaml") for study in STUDIES}
    measured = {}
    with tempfile.TemporaryDirectory() as folder:
        for file in files.values():
            _mmsweep(tree, folder, "data", "check", file)
        for study, file in files.items():
            print(study, flush=True)
            out = Path(folder) / study
            tracking = f"tracking.uri=sqlite:///{folder}/mlflow.db"
            _mmsweep(tree, folder, "tune", file, "--out", str(out), *SMALL, tracking)
            measured[study] = {trial.name: _numbers(trial) for trial in sorted((out / "trials").iterdir())}
    return measured


def _mmsweep(tree: Path, folder: str, *arguments: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "mmsweep", *arguments]
    if subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL).returncode:
        raise SystemExit(f"failed: mmsweep {' '.join(arguments)}")


def _numbers(trial: Path) -> dict[str, Any]:
    reports = [json.loads(line) for line in (trial / "reports.jsonl").read_text(encoding="utf-8").splitlines()]
    return {
        "params": json.loads((trial / "trial.json").read_text(encoding="utf-8"))["params"],
        "epochs": {str(report["epoch"]): report["metrics"] for report in reports},
    }


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of nested mappings, with the keys that lead to it."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key} ")
        else:
            yield prefix + key, value


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[list[str], int]:
    """Lines that say what differs, and how many numbers were compared. NaN equals NaN."""
    a, b = ({key: json.dumps(value) for key, value in flat(numbers)} for numbers in (before, after))
    keys = sorted(a.keys() | b.keys())
    return [f"{key}: {a.get(key)} -> {b.get(key)}" for key in keys if a.get(key) != b.get(key)], len(keys)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    measuring = verbs.add_parser("measure")
    measuring.add_argument("out", type=Path)
    measuring.add_argument("--tree", type=Path, default=ROOT, help="the checkout whose mmsweep runs")
    comparing = verbs.add_parser("compare")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    given = parser.parse_args()
    if given.verb == "measure":
        measured = measure(given.tree.resolve())
        given.out.write_text(json.dumps(measured, indent=1), encoding="utf-8")
        return 0
    changed, compared = differences(
        *(json.loads(path.read_text(encoding="utf-8")) for path in (given.before, given.after))
    )
    for line in changed[:50]:
        print(line)
    print(f"{compared} numbers compared, {len(changed)} differ")
    return 1 if changed or not compared else 0


if __name__ == "__main__":
    raise SystemExit(main())
