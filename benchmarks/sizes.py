"""The studies that benchmarks train, by size; all but the quickstart are made on the spot and need no network.

    tiny        encoders 16 wide on pictures of 16 px: to see that a benchmark runs
    quickstart  search_spaces/quickstart.yaml: 192 wide, Open Clip Art, batch 32, LoRA rank 4
    base        ViT-B/16 and BERT-base, 768 wide, 224 px, texts of 40 tokens, batch 8, LoRA rank 1, bf16 where the
                device has it; random weights (time does not depend on them)

Pictures and texts of `tiny` and `base` are drawn: a class is a colour and a letter, under noise, so there is something
to learn and metrics mean something.
"""

from __future__ import annotations

import csv
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from transformers import BertConfig, BertModel, BertTokenizer, ViTConfig, ViTModel

from mmsweep.study import Study

ROOT = Path(__file__).resolve().parents[1]
SIZES = ("tiny", "quickstart", "base")
TEXT_TOKENS = {"tiny": 12, "base": 40}
PICTURE = {"tiny": 16, "base": 224}
ROWS = {"tiny": 48, "base": 256}
"""Training rows; validation and test have a quarter of that each."""
CLASSES = ((200, 40, 40), (40, 200, 40), (40, 40, 200), (180, 180, 40))


def study_file(size: str, place: Path, changes: Sequence[str] = (), rows: int | None = None) -> Path:
    """Write the study of a size, with changes (`key=value`), to `place/study.yaml`, and what it needs beside it."""
    place.mkdir(parents=True, exist_ok=True)
    if size == "quickstart":
        given = ROOT / "search_spaces" / "quickstart.yaml"
    else:
        given = place / "given.yaml"
        _write_encoders(size, place)
        _write_rows(size, place, rows or ROWS[size])
        given.write_text(yaml.safe_dump(_values(size, place), sort_keys=False))
    path = place / "study.yaml"
    path.write_text(Study.load(given, changes).to_yaml(), encoding="utf-8")
    return path


def _values(size: str, place: Path) -> dict[str, Any]:
    kinds = {"image": {"kind": "image", "column": "picture"}, "text": {"kind": "text", "column": "words"}}
    names = {"image": "vit", "text": "bert"}
    return {
        "name": size,
        "data": {
            "dataset": "manifest",
            "path": str(place / "rows.csv"),
            "modalities": kinds,
            "target": {"task": "single_label", "column": "kind"},
            "split": {"column": "part"},
            "image": {"size": PICTURE[size]},
            "text": {"length": TEXT_TOKENS[size]},
        },
        "model": {
            "encoders": {m: {"source": "transformers", "name": str(place / name)} for m, name in names.items()},
            "lora": {"rank": 1, "alpha": 1, "dropout": 0.1},
        },
        "method": {"name": "cmpt", "align_weight": 0.2, "masking": {"probability": 0.667}},
        "train": {
            "epochs": 2,
            "batch_size": 8,
            "optimizer": {"lr": 1e-3},
            "clip_norm": 1.0,
            "precision": "bf16",
        },
        "scenarios": {"evaluate": ["complete", {"missing": "text"}, {"missing": "image"}]},
        # All ranks of the search pad to its largest, so it stays at 1: the size that is measured.
        "search": {
            "train.optimizer.lr": {"log_uniform": [3e-4, 1e-2]},
            "method.align_weight": {"log_uniform": [0.01, 2.0]},
            "method.masking.probability": {"uniform": [0.2, 0.9]},
        },
        "resources": {"hosts": 1, "cpus": 1},
    }


def _write_encoders(size: str, place: Path) -> None:
    width = {} if size == "base" else dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
    inner = {} if size == "base" else dict(intermediate_size=24)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.ascii_lowercase]
    words = 30522 if size == "base" else len(vocabulary)
    pixels = dict(image_size=PICTURE[size], patch_size=16 if size == "base" else 8)
    torch.manual_seed(0)
    if not (place / "vit" / "config.json").exists():
        ViTModel(ViTConfig(**pixels, **width, **inner), add_pooling_layer=False).save_pretrained(place / "vit")
    if not (place / "bert" / "config.json").exists():
        BertModel(BertConfig(vocab_size=words, **width, **inner)).save_pretrained(place / "bert")
        (place / "bert" / "vocab.txt").write_text("\n".join(vocabulary))
        BertTokenizer(str(place / "bert" / "vocab.txt")).save_pretrained(place / "bert")


def _write_rows(size: str, place: Path, train: int) -> None:
    """rows.csv, and pictures that compress well: noise at a sixteenth of their side."""
    draws, side = np.random.default_rng(0), PICTURE[size]
    (place / "pictures").mkdir(exist_ok=True)
    small, letters, part = max(side // 16, 4), TEXT_TOKENS[size] - 2, train // 4
    with open(place / "rows.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["picture", "words", "kind", "part"])
        for i in range(train + 2 * part):
            kind = i % len(CLASSES)
            pixels = np.clip(np.array(CLASSES[kind]) + draws.normal(0, 70, (small, small, 3)), 0, 255).astype("uint8")
            path = f"pictures/{i}.png"
            Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST).save(place / path)
            drawn = draws.choice(list(string.ascii_lowercase), letters)
            drawn[draws.random(letters) < 0.2] = string.ascii_lowercase[kind]
            split = "train" if i < train else "val" if i < train + part else "test"
            writer.writerow([path, " ".join(drawn), f"kind-{kind}", split])
