"""Do tables learn? FT-Transformer alone, and CMPT and MMP beside another modality, against gradient boosting.

Three sets that scikit-learn brings along become manifests with tables, as a user would write them:

    cancer      569 rows: table mean (10 means, 10 errors) and table worst (10) -> malignant or benign
    diabetes    442 rows: table body (age, bmi, bp; sex as a category) and table blood (6) -> progression after a year
    digits    1,797 rows: the upper half of a picture as image, the lower half's pixels as table -> which digit

Each seed carves its own rows (60 % train, 15 % val, 25 % test) and draws its own initial values. Gradient boosting is
scikit-learn's HistGradientBoosting, fitted on the training rows; its learning rate, iterations and leaves are chosen on
the validation rows, as our epoch is. A table alone is a run of `plain` whose training scenario lacks the other
modality; beside it stands boosting on the very same columns of the very same rows.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from ran_on import Machine, hand_over, out_option, table
from sklearn import datasets
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

from mmsweep.assembly.build import make_builder
from mmsweep.assembly.host import Warm
from mmsweep.data.dataset import Sample
from mmsweep.data.sets.manifest import Manifest
from mmsweep.record.trial import TrialFolder
from mmsweep.study import Study
from mmsweep.study.packs import Job
from mmsweep.training.world import World

BEHIND = 3.0
"""Points (of accuracy, or per cent of the mean absolute error) from which on a table is named as behind."""
SHARES = {"train": 0.6, "val": 0.15, "test": 0.25}
BOOSTING = {"learning_rate": (0.03, 0.1), "max_iter": (100, 300), "max_leaf_nodes": (4, 31)}


class Case(NamedTuple):
    """A set as a user would write it: its rows, its modalities and what the study says of them."""

    rows: list[dict[str, Any]]
    modalities: dict[str, dict[str, Any]]
    task: str
    epochs: int

    @property
    def tables(self) -> list[str]:
        return [name for name, own in self.modalities.items() if own["kind"] == "table"]


def cases(folder: Path) -> dict[str, Case]:
    return {"cancer": cancer(), "diabetes": diabetes(), "digits": digits(folder)}


def cancer() -> Case:
    found = datasets.load_breast_cancer()
    names = [str(name) for name in found.feature_names]
    rows = [dict(zip(names, map(float, row), strict=True)) for row in found.data]
    for row, target in zip(rows, found.target, strict=True):
        row["target"] = found.target_names[target]
    parts = {"mean": names[:20], "worst": names[20:]}
    return Case(rows, {name: {"kind": "table", "numeric": own} for name, own in parts.items()}, "single_label", 30)


def diabetes() -> Case:
    found = datasets.load_diabetes(scaled=False)
    names = list(found.feature_names)
    rows = [dict(zip(names, map(float, row), strict=True)) for row in found.data]
    for row, target in zip(rows, found.target, strict=True):
        row["target"] = float(target)
    body = {"kind": "table", "numeric": ["age", "bmi", "bp"], "categorical": ["sex"]}
    return Case(rows, {"body": body, "blood": {"kind": "table", "numeric": names[4:]}}, "regression", 30)


def digits(folder: Path) -> Case:
    """A pixel that is white in nearly every picture says nothing: a column needs 20 rows that differ from the rest."""
    found = datasets.load_digits()
    rows = []
    for number, (picture, target) in enumerate(zip(found.images, found.target, strict=True)):
        upper = Image.fromarray((255 - picture[:4] * (255 / 16)).astype(np.uint8)).resize((48, 24))
        square = Image.new("L", (48, 48), 255)
        square.paste(upper, (0, 12))
        square.save(folder / f"{number}.png")
        pixels = {f"p{place}": float(value) for place, value in enumerate(picture[4:].ravel())}
        rows.append({"picture": f"{number}.png", **pixels, "target": str(target)})
    columns = [name for name in rows[0] if name.startswith("p") and name != "picture"]
    told = [name for name in columns if sum(row[name] != rows[0][name] for row in rows) >= 20]
    modalities = {"image": {"kind": "image", "column": "picture"}, "pixels": {"kind": "table", "numeric": told}}
    return Case(rows, modalities, "single_label", 12)


def study_of(name: str, case: Case, path: Path, seed: int, method: str, alone: str | None) -> Study:
    first, second = case.modalities
    other = None if alone is None else second if alone == first else first
    metric = "mae" if case.task == "regression" else "accuracy"
    encoders = {
        m: {"source": "scratch", "name": "ft_transformer", "sizes": {"width": 32, "heads": 4, "layers": 2}}
        if own["kind"] == "table"
        else {"source": "mmsweep", "name": "clipart_image"}
        for m, own in case.modalities.items()
    }
    pictures = {"image": {"size": 48}} if "image" in case.modalities else {}
    values: dict[str, Any] = {
        "name": name,
        "data": {
            "dataset": "manifest", "path": str(path), "modalities": case.modalities,
            "target": {"task": case.task, "column": "target"}, "split": {**SHARES, "seed": seed}, **pictures,
        },
        "model": {"encoders": encoders, **({} if pictures else {"lora": None})},
        "method": {"name": method},
        "train": {
            "epochs": case.epochs, "batch_size": 32, "seed": seed, "schedule": {"warmup_epochs": 2},
            "optimizer": {"lr": 2e-3, "weight_decay": 1e-4},
        },
        "scenarios": {"evaluate": ["complete", {"missing": first}, {"missing": second}]},
        "sweep": {"objective": {"metric": f"val/{'complete' if other is None else f'missing-{other}'}/{metric}"}},
    }  # fmt: skip
    if other is not None:
        values["scenarios"]["train"] = {"missing": other}
    return Study.parse(values)


def trained(study: Study, folder: Path) -> dict[str, float]:
    """Scenario -> score on test: accuracy in per cent, or the mean absolute error."""
    trial = TrialFolder(folder)
    trial.create({"id": "0", "params": {}}, study.to_yaml())
    Warm("cpu", World()).run(Job("0", "final", str(folder), study), lambda report: False)
    record = json.loads((folder / "evaluation.json").read_text())
    return {name: score(entry["metrics"]) for name, entry in record["scenarios"].items()}


def score(metrics: Mapping[str, float]) -> float:
    return metrics["mae"] if "mae" in metrics else 100 * metrics["accuracy"]


def boosted(builder: Manifest, case: Case, modalities: list[str], seed: int) -> float:
    """HistGradientBoosting on the tables' columns: the score on test of what scores best on val."""
    splits = builder.splits()
    xs = {part: inputs(rows, builder, modalities) for part, rows in splits.items()}
    ys = {part: np.array([sample.target for sample in rows]) for part, rows in splits.items()}
    names = [name for m in modalities for name in builder.formats[m].names]  # type: ignore[attr-defined]
    chosen = {name for m in modalities for name in case.modalities[m].get("categorical", [])}
    categories = [place for place, name in enumerate(names) if name in chosen]
    number = case.task == "regression"
    found: list[tuple[float, float]] = []
    for values in product(*BOOSTING.values()):
        options: dict[str, Any] = {**dict(zip(BOOSTING, values, strict=True)), "categorical_features": categories}
        kind = HistGradientBoostingRegressor if number else HistGradientBoostingClassifier
        model = kind(random_state=seed, **options).fit(xs["train"], ys["train"])

        def of(part: str, model: Any = model) -> float:
            guess = model.predict(xs[part])
            return float(np.abs(guess - ys[part]).mean() if number else 100 * (guess == ys[part]).mean())

        found.append((of("val") if number else -of("val"), of("test")))
    return min(found, key=lambda pair: pair[0])[1]


def inputs(rows: list[Sample], builder: Manifest, modalities: list[str]) -> np.ndarray:
    """float64 [N, columns]: numbers as they are, categories as codes."""
    found = []
    for sample in rows:
        cells: list[float] = []
        for modality in modalities:
            format, row = builder.formats[modality], sample.values[modality]
            codes = format.values(row)[2 * len(format.numeric) :]  # type: ignore[attr-defined]
            cells += [*row[: len(format.numeric)], *codes]  # type: ignore[attr-defined]
        found.append(cells)
    return np.array(found)


Found = dict[str, dict[str, list[float]]]
"""Row of the page -> {"boosting", "ours"} -> a score a seed."""


def write_csv(case: Case, path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(case.rows[0]))
        writer.writeheader()
        writer.writerows(case.rows)


def run(name: str, case: Case, folder: Path, seed: int, found: Found) -> None:
    """Add a seed's scores."""
    path = folder / f"{name}.csv"

    def note(row: str, column: str, value: float) -> None:
        found.setdefault(row, {}).setdefault(column, []).append(value)
        print(f"{name} seed {seed}: {row}, {column} {value:.2f}", file=sys.stderr, flush=True)

    builder = make_builder(study_of(name, case, path, seed, "plain", None))
    assert isinstance(builder, Manifest)
    boosting = {m: boosted(builder, case, [m], seed) for m in case.tables}
    if len(case.tables) == len(case.modalities):
        boosting["complete"] = boosted(builder, case, case.tables, seed)
    for alone in case.tables:
        scores = trained(study_of(name, case, path, seed, "plain", alone), folder / f"{name}-{alone}-{seed}")
        other = next(m for m in case.modalities if m != alone)
        note(f"{alone} alone", "boosting", boosting[alone])
        note(f"{alone} alone", "ours", scores[f"missing-{other}"])
    for method in ("plain", "cmpt", "mmp"):
        scores = trained(study_of(name, case, path, seed, method, None), folder / f"{name}-{method}-{seed}")
        for scenario, value in scores.items():
            left = next((m for m in case.modalities if scenario not in ("complete", f"missing-{m}")), "complete")
            note(f"{method}, {scenario}", "ours", value)
            if left in boosting:
                note(f"{method}, {scenario}", "boosting", boosting[left])


def page(found: Mapping[str, Mapping[str, Mapping[str, list[float]]]], regression: set[str]) -> list[str]:
    def shown(values: list[float] | None) -> str | None:
        return None if values is None else f"{np.mean(values):.1f} ± {np.std(values):.1f}"

    rows, behind = [], []
    for name, own in found.items():
        for row, columns in own.items():
            ours, theirs, points = columns["ours"], columns.get("boosting"), None
            if theirs is not None:
                lead = np.mean(ours) - np.mean(theirs)
                points = -100 * lead / np.mean(theirs) if name in regression else lead
                if points < -BEHIND and row.endswith("alone"):
                    behind.append(f"{name}, {row}: {-points:.1f}")
            shown_points = None if points is None else f"{points:+.1f}"
            rows.append(
                [name, "MAE" if name in regression else "accuracy (%)", row, shown(ours), shown(theirs), shown_points]
            )
    said = f"more than {BEHIND:g} points behind boosting"
    verdict = f"Tables alone that stand {said}: {'; '.join(behind)}." if behind else f"No table alone stands {said}."
    columns = ["set", "metric, on test", "run", "mmsweep", "boosting on the tables that are left", "points ahead"]
    return [verdict, "", NOTES, "", *table(columns, rows)]


NOTES = """Mean ± SD over the seeds. A point is one per cent of the rows, or of boosting's error. A row `missing-x` is
the same run, tested without x; boosting is then fitted without x from the start, which our run was not. There is no
boosting of pictures, so rows that see one have none."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", action="append", choices=("cancer", "diabetes", "digits"), help="some of the sets")
    out_option(parser)
    arguments = parser.parse_args()
    machine = Machine()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        chosen = {n: case for n, case in cases(folder).items() if n in (arguments.only or (n,))}
        regression = {n for n, case in chosen.items() if case.task == "regression"}
        found: dict[str, Found] = {n: {} for n in chosen}
        for n, case in chosen.items():
            write_csv(case, folder / f"{n}.csv")
        for seed in range(arguments.seeds):
            for n, case in chosen.items():
                run(n, case, folder, seed, found[n])
            facts = machine.facts(seeds=seed + 1)  # the page is written after each seed, over those that are there
            lines = [f"{seed + 1} of {arguments.seeds} seeds are done.", *page(found, regression)]
            hand_over("Tables beside gradient boosting", lines, facts, found, arguments.out)


if __name__ == "__main__":
    main()
