"""A few invented dishes in each layout of UPMC Food-101: real JPEG files, titles, lists."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

from tests.data.files import write_picture

CLASSES = ("apple_pie", "pho", "red_velvet_cake")
COUNTS = {"train": 8, "test": 3}
"""Images of a class."""

HEADERS = (None, ("Image_path", "text", "label"), ("image", "title", "class"), ("0", "1", "2"))
"""None, BalanceMM's, one with other words, pandas' numbers."""

NAMES = {part: [f"{label}_{number}.jpg" for label in CLASSES for number in range(first, first + count)]
         for (part, count), first in zip(COUNTS.items(), (0, 100), strict=True)}  # fmt: skip
"""The files of images/train and images/test."""


def title(name: str) -> str:
    """With a comma, a quote and a letter that is not ASCII."""
    return f'A red "{name.rpartition("_")[0]}", crème on paper'


def write_images(root: Path) -> Path:
    """images/{train,test}/<class>/<class>_<number>.jpg."""
    for part, names in NAMES.items():
        for number, name in enumerate(names):
            colour = ("red", "green", "blue")[number % 3]
            write_picture(root / "images" / part / name.rpartition("_")[0] / name, colour, seed=len(part) + number)
    return root


def write_titles(
    root: Path, header: Sequence[str] | None = None, end: str = "\n", folder: str = "texts", path: str = ""
) -> Path:
    """texts/{train,test}_titles.csv: file, title, class.

    Args:
        header: of both files.
        end: of a line; the last one has none.
        path: stands before the names of files.
    """
    (root / folder).mkdir(parents=True, exist_ok=True)
    for part, names in NAMES.items():
        file = root / folder / f"{part}_titles.csv"
        with file.open("w", encoding="utf-8", newline="") as out:
            writer = csv.writer(out, lineterminator=end)
            writer.writerows([header] if header else [])
            writer.writerows((path + name, title(name), name.rpartition("_")[0]) for name in names)
        file.write_bytes(file.read_bytes().removesuffix(end.encode()))
    return root


def splits() -> dict[str, list[str]]:
    """Every fourth training file validates; lists are not in the order of names."""
    train = NAMES["train"][::-1]
    return {"train": [n for i, n in enumerate(train) if i % 4], "val": train[::4], "test": NAMES["test"][::-1]}


def write_lee(root: Path) -> Path:
    """split.json, class_idx.json and text.json."""
    (root / "split.json").write_text(json.dumps(splits()))
    (root / "class_idx.json").write_text(json.dumps({label: i for i, label in enumerate(CLASSES)}))
    texts = {name: title(name) for names in NAMES.values() for name in names}
    (root / "text.json").write_text(json.dumps(texts))
    return root


def write_mla(root: Path) -> Path:
    """my_train_food.txt and my_test_food.txt, beside the titles."""
    for part, names in NAMES.items():
        (root / f"my_{part}_food.txt").write_text("\n".join(f"{n} {n.rpartition('_')[0]}" for n in names))
    return write_titles(root)


def write_jsonl(root: Path) -> Path:
    """MMBT's train.jsonl, dev.jsonl and test.jsonl."""
    for part, names in splits().items():
        folder = "test" if part == "test" else "train"
        lines = [
            {"id": Path(name).stem, "label": label, "text": title(name).lower(),
             "img": f"images/{folder}/{label}/{name}"}
            for name in names
            for label in [name.rpartition("_")[0]]
        ]  # fmt: skip
        file = root / f"{'dev' if part == 'val' else part}.jsonl"
        file.write_text("\n".join(json.dumps(line) for line in lines))
    return root


def write_pages(root: Path) -> Path:
    """texts_txt/<class>/<class>_<number>.txt."""
    for names in NAMES.values():
        for name in names:
            file = root / "texts_txt" / name.rpartition("_")[0] / name.replace(".jpg", ".txt")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{title(name)}\r\n\t on  paper\n", encoding="utf-8")
    return root
