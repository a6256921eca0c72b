"""Makes the tiny real files that the data tests read: pictures, a tokenizer, manifests in three formats."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image
from transformers import BertTokenizerFast

from mmsweep.data.options import DATASETS

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "a",
    "red",
    "green",
    "blue",
    "disc",
    "square",
    "on",
    "paper",
    ",",
]
COLOURS = {"red": (200, 30, 30), "green": (30, 180, 30), "blue": (30, 30, 200)}


def write_tokenizer(folder: Path) -> str:
    """A WordPiece tokenizer with the words of the captions."""
    folder.mkdir(parents=True, exist_ok=True)
    BertTokenizerFast(vocab={word: index for index, word in enumerate(WORDS)}).save_pretrained(folder)
    return str(folder)


def write_picture(path: Path, colour: str, size: tuple[int, int] = (20, 14), seed: int = 0) -> Path:
    """A picture of mostly one colour, with noise of its own."""
    rng = np.random.default_rng(seed)
    pixels = np.clip(np.array(COLOURS[colour]) + rng.integers(-20, 20, (size[1], size[0], 3)), 0, 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def manifest_rows(folder: Path, rows: int = 40) -> list[dict[str, Any]]:
    """Rows of captioned pictures; every fifth lacks its picture, every seventh its caption, never both."""
    out: list[dict[str, Any]] = []
    for i in range(rows):
        colour = list(COLOURS)[i % 3]
        picture = i % 5 != 0
        caption = i % 7 != 0 or not picture
        if picture:
            write_picture(folder / "pictures" / f"{i}.png", colour, seed=i)
        out.append(
            {
                "picture": f"pictures/{i}.png" if picture else None,
                "caption": f"A {colour} {'disc' if i % 2 else 'square'}, on paper" if caption else None,
                "kind": colour,
                "tags": [colour, "even"] if i % 2 == 0 else [colour],
                "score": i / 10,
                "part": "test" if i % 8 in (0, 1) else "val" if i % 8 in (2, 3) else "train",
                "concept": f"concept-{i // 2}",
            }
        )
    return out


def write_manifest(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows as CSV (lists joined by |), JSONL or Parquet, by the suffix."""
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            for row in rows:
                writer.writerow({key: "|".join(cell) if isinstance(cell, list) else cell for key, cell in row.items()})
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def manifest_options(
    path: Path,
    modalities: Mapping[str, Any],
    target: Mapping[str, Any],
    split: Mapping[str, Any] | None = None,
    group: str | None = None,
    id: str | None = None,
) -> Any:
    """What a study says of the user's own file; group and id are columns."""
    named = {key: {"column": column} for key, column in {"group": group, "id": id}.items() if column}
    return DATASETS.options(
        "manifest", path=str(path), modalities=dict(modalities), target=target, split=split, **named
    )


def column(kind: str, name: str, **more: Any) -> dict[str, Any]:
    """A modality's column, as a study says it."""
    return {"kind": kind, "column": name, **more}


def target(task: str, name: str, **more: Any) -> dict[str, Any]:
    """The target's column, as a study says it."""
    return {"task": task, "column": name, **more}
