"""A few invented clips in each of CMU-MOSI's pickles: MMSA's and MulT's, at the shapes of the real files or smaller.

What the real files do is done here too: -inf and NaN in audio, zeros after a sequence's end, keys that nobody needs,
labels of [N,1,1] and ids of bytes in MulT's files, lengths in the unaligned file alone.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

ROWS = {"train": 8, "valid": 4, "test": 4}
UNALIGNED = {"text": (6, 8), "audio": (20, 5), "vision": (15, 3)}
ALIGNED = {"text": (6, 8), "audio": (6, 5), "vision": (6, 3)}
DIRTY = 3
"""Values of audio in the training rows that are -inf or NaN."""

Parts = dict[str, dict[str, Any]]


def sequences(key: str, shapes: dict[str, tuple[int, int]]) -> tuple[dict[str, np.ndarray], dict[str, list[int]]]:
    """(modality -> float32 [N, steps, width] with zeros after the end, modality -> lengths)."""
    rng = np.random.default_rng(list(ROWS).index(key))
    arrays, lengths = {}, {}
    for modality, (steps, width) in shapes.items():
        values = rng.normal(1, 1, (ROWS[key], steps, width)).astype(np.float32)
        lengths[modality] = [1 + (3 * row + steps) % steps for row in range(ROWS[key])]
        for row, length in enumerate(lengths[modality]):
            values[row, length:] = 0
        arrays[modality] = values
    if key == "train":
        arrays["audio"][2, 0, :2], arrays["audio"][3, 1, 0] = -np.inf, np.nan
    return arrays, lengths


def mmsa(aligned: bool = False) -> Parts:
    """The content of aligned_50.pkl or unaligned_50.pkl."""
    parts: Parts = {}
    for key, rows in ROWS.items():
        arrays, lengths = sequences(key, ALIGNED if aligned else UNALIGNED)
        steps = UNALIGNED["text"][0]
        mask = np.arange(steps) < np.array(lengths["text"])[:, None]
        videos = [f"{key}{row // 2}x" for row in range(rows)]
        labels = np.linspace(-3, 3, rows, dtype=np.float32)
        parts[key] = {
            "raw_text": np.array([f"words {row}" for row in range(rows)], object),
            **arrays,
            "id": [f"{video}$_${row}" for row, video in enumerate(videos)],
            "text_bert": np.stack([mask * 7, mask, mask * 0], 1).astype(np.float32),
            "annotations": ["Negative" if label < 0 else "Positive" for label in labels],
            "classification_labels": np.sign(labels) + 1,
            "regression_labels": labels,
        }
        if not aligned:
            parts[key] |= {f"{modality}_lengths": lengths[modality] for modality in ("audio", "vision")}
    return parts


def mult(aligned: bool = False) -> Parts:
    """The content of mosi_data.pkl or mosi_data_noalign.pkl: other widths, and no lengths."""
    parts: Parts = {}
    for key, rows in ROWS.items():
        shapes = ALIGNED if aligned else UNALIGNED
        arrays, _ = sequences(key, {m: (steps, width + 2) for m, (steps, width) in shapes.items()})
        ids = [[f"{key}{row // 2}x".encode(), f"{row}.5".encode(), f"{row + 1}.25".encode()] for row in range(rows)]
        labels = np.linspace(-2, 2, rows, dtype=np.float32).reshape(rows, 1, 1)
        parts[key] = {**arrays, "labels": labels, "id": np.array(ids, object)}
        parts[key]["vision"] = parts[key]["vision"].astype(np.float64)
    return parts


def write(folder: Path, features: str, parts: Parts | None = None, protocol: int = 4, under: str = "") -> Path:
    """A pickle in a folder, or in a folder below it; returns the folder."""
    make = mult if features.startswith("mosi") else mmsa
    place = folder / under
    place.mkdir(parents=True, exist_ok=True)
    content = pickle.dumps(make(features in ("aligned_50", "mosi_data")) if parts is None else parts, protocol)
    (place / f"{features}.pkl").write_bytes(content)
    return folder
