"""Do studies on a table of one's own learn? Regression, one class and several labels against the constant predictor.

Three tables that scikit-learn brings along become manifests of .npy sequences, as a user would write them:

    regression     diabetes, 442 rows: body (4 measures) and blood (6) -> disease progression after a year
    single_label   breast cancer, 569 rows: mean, error and worst (10 measures each) -> malignant or benign
    multi_label    digits, 1,797 rows: the upper and the lower half of a picture -> even, prime, loop, large

A measure is a step of its sequence: its value, standardised over all rows, and a one-hot of which measure it is.
`mmsweep train` trains each study once, and `mmsweep tune` searches the first one. Then the breast cancer table is split
again with two of its three modalities: no row may move.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from outside import place_of, python, tune
from ran_on import Machine, hand_over, out_option, table
from sklearn import datasets

from mmsweep.assembly.build import make_builder
from mmsweep.readers import wording
from mmsweep.readers.report.sentences import shortfall
from mmsweep.record.sweep import SweepRecord
from mmsweep.study import Study

METRICS = {"regression": ("mae",), "single_label": ("accuracy", "f1_macro"), "multi_label": ("f1_macro", "accuracy")}
"""The first is what the study selects by."""
SCENARIOS = ("complete", "mean_missing", "worst_missing")


def steps(values_NT: np.ndarray) -> np.ndarray:
    """[N, T, 1 + T]: each measure standardised, beside a one-hot of its place."""
    N, T = values_NT.shape
    standard_NT = (values_NT - values_NT.mean(0)) / values_NT.std(0)
    return np.concatenate([standard_NT[..., None], np.broadcast_to(np.eye(T), (N, T, T))], 2).astype(np.float32)


def tables() -> dict[str, tuple[dict[str, np.ndarray], list[Any]]]:
    """Task -> (modality -> sequences [N, T, F], targets)."""
    diabetes, cancer, digits = datasets.load_diabetes(), datasets.load_breast_cancer(), datasets.load_digits()
    halves = digits.images.astype(np.float32) / 16
    labels = {"even": (0, 2, 4, 6, 8), "prime": (2, 3, 5, 7), "loop": (0, 6, 8, 9), "large": (5, 6, 7, 8, 9)}
    return {
        "regression": (
            {"body": steps(diabetes.data[:, :4]), "blood": steps(diabetes.data[:, 4:])},
            diabetes.target.tolist(),
        ),
        "single_label": (
            {name: steps(cancer.data[:, 10 * i : 10 * i + 10]) for i, name in enumerate(("mean", "error", "worst"))},
            [str(cancer.target_names[t]) for t in cancer.target],
        ),
        "multi_label": (
            {"top": halves[:, :4], "bottom": halves[:, 4:]},
            ["|".join(name for name, members in labels.items() if digit in members) for digit in digits.target],
        ),
    }


def write(folder: Path, task: str, sequences: Mapping[str, np.ndarray], targets: list[Any], epochs: int) -> Path:
    """A manifest with its files, and its study; the study's path."""
    folder.mkdir(exist_ok=True)
    with open(folder / "table.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*sequences, "target"])
        for row, target in enumerate(targets):
            names = [f"{name}-{row:04d}.npy" for name in sequences]
            for name, values_NTF in zip(names, sequences.values(), strict=True):
                np.save(folder / name, values_NTF[row])
            writer.writerow([*names, target])
    shapes = {name: {"length": v.shape[1], "width": v.shape[2]} for name, v in sequences.items()}
    study = {
        "name": f"own-{task.replace('_', '-')}",
        "data": {
            "dataset": "manifest",
            "path": "table.csv",
            "modalities": {name: {"kind": "sequence", "column": name, **shape} for name, shape in shapes.items()},
            "target": {"task": task, "column": "target"},
            "split": {"train": 0.7, "val": 0.15, "test": 0.15},
        },
        "model": {
            "backbone": {
                "name": "mult",
                "mult": {"width": 16, "heads": 2, "levels": 1, "kernel": 1, "attention_dropout": 0.1,
                         "key_dropout": {}, "input_dropout": {}, "embedding_dropout": 0.1, "output_dropout": 0.2},
            },
            "lora": None,
        },
        "method": {"name": "modality_dropout", "masking": {"probability": 0.4}},
        "train": {"epochs": epochs, "batch_size": 32, "optimizer": {"lr": 5e-3}},
        "scenarios": {"evaluate": ["complete", *({"missing": name} for name in sequences)]},
        "search": {
            "train.optimizer.lr": {"log_uniform": [1e-3, 1e-2]},
            "method.masking.probability": {"uniform": [0.2, 0.7]},
        },
        "sweep": {"trials": 3, "objective": {"metric": f"val/mean_missing/{METRICS[task][0]}"}, "final": {"seeds": 1}},
        "resources": {"hosts": 1},
    }  # fmt: skip
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study, sort_keys=False), encoding="utf-8")
    return path


def scores(task: str, how: str, folder: Path) -> tuple[list[list[str]], dict[str, Any]]:
    """Rows of the page, and the same as numbers."""
    record = SweepRecord.load(folder)
    group = record.best_group
    assert group is not None, f"{folder} has no final run"
    cells = {(m, s): cell for m in METRICS[task] for s in SCENARIOS if (cell := group.cell(s, m)) is not None}
    rows = [
        [
            task, how, wording.metric_label(metric), wording.scenario_label(scenario), wording.cell(metric, cell),
            wording.number(metric, cell.constant), "yes" if cell.beats_constant(metric) else "no",
        ]
        for (metric, scenario), cell in cells.items()
    ]  # fmt: skip
    found = {f"{scenario}/{metric}": cell.to_json() for (metric, scenario), cell in cells.items()}
    return rows, {"cells": found, "shortfall": shortfall(record, group)}


def moved_rows(path: Path) -> tuple[int, int]:
    """(rows that change their split when the study drops a modality, all rows)."""
    whole = Study.load(path)
    fewer = {name: column for name, column in whole.resolved()["data"]["modalities"].items() if name != "error"}
    scenarios = {"scenarios.evaluate": ["complete"], "data.modalities": fewer}
    places = []
    for study in (whole, whole.with_values(scenarios)):
        parts = make_builder(study).splits()
        places.append({sample.origin: split for split, samples in parts.items() for sample in samples})
    assert places[0].keys() == places[1].keys()
    return sum(places[0][row] != places[1][row] for row in places[0]), len(places[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="keep everything there, and go on with what lies there"
    )
    out_option(parser)
    options = parser.parse_args()
    machine, rows, found = Machine(), [], {}
    with place_of(options.keep, own_cache=True) as place:
        studies = {t: write(place / t, t, *made, options.epochs) for t, made in tables().items()}
        for task, study in studies.items():
            out = place / f"{task}-train"
            words = ["-m", "mmsweep", "train", str(study), "--out", str(out), *(["--resume"] if out.exists() else [])]
            python(words, out.with_name(f"{out.name}-in"))
            lines, found[f"{task}, train"] = scores(task, "train", out)
            rows += lines
        out = place / "regression-tune"
        tune(studies["regression"], out, ["--resume"] if out.exists() else [])
        lines, found["regression, tune"] = scores("regression", "tune", out)
        rows += lines
        moved, all_rows = moved_rows(studies["single_label"])
    found["rows that move when a modality is dropped"] = moved
    beaten = sum(row[-1] == "yes" for row in rows)
    text = [
        f"The model beats the constant predictor in {beaten} of {len(rows)} rows of this table, all on test.",
        f"{moved} of {all_rows} rows of the breast cancer table change their split when the study drops one of its",
        "three modalities. The constant predictor always says the median of the training rows (regression), their most",
        "frequent class, or each label's share of them, and so no label that half of the rows lack.",
        "",
        *table(("task", "verb", "metric", "scenario", "model", "constant predictor", "better"), rows),
    ]
    hand_over("Regression, classes and labels on data of one's own", text, machine.facts(), found, options.out)


if __name__ == "__main__":
    main()
