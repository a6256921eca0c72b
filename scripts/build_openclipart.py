#!/usr/bin/env python3
"""Make the Open Clip Art set that the package ships, from the full pack of pictures.

    python scripts/build_openclipart.py PACK OUT

PACK is `openclipart_mm.zip`: `records.jsonl` and 96 x 96 WebP pictures of Debian's `openclipart-svg` and
`openclipart-png` 1:0.18+dfsg-19 (only entries whose own licence says PublicDomain). OUT is the zip to write
(`mmsweep/assets/openclipart.zip`): the labelled rows with their pictures, unchanged, and a `records.jsonl` with
id, file, text, single, multi, family, creator, title, split. Same PACK, same bytes in OUT.

Splits: the pack's test flag stands. Validation is about 15 % of the rest, by md5 of the family (drawings whose names
differ by a number only), so a family never crosses a split. A family cannot catch everything: a training row becomes
`dropped` when its text or a near-identical picture also stands in validation or test, a validation row when it also
stands in test. The text is title and description; keywords spell out the category and are left behind.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

FIELDS = ("id", "file", "text", "single", "multi", "family", "creator", "title")
SALT = "mmsweep-validation:"
VALIDATION_SHARE = 0.15
NEAR_IDENTICAL = 0.85
"""Cosine of two pictures' outlines from which they count as near-identical. Looking at the pairs: above it are the same
drawing in another colour or as line art, and road signs that differ in a small symbol; below .84 differing drawings."""


def normalised(text: str) -> str:
    """What of a text is compared: its words, without case, digits and punctuation."""
    return " ".join(re.findall(r"[^\W\d_]+", text.casefold())) or text


def outlines(pictures_NHWC: np.ndarray, cells: int = 16, directions: int = 8) -> np.ndarray:
    """Where the edges are and which way they run, without colour: float32 [N, cells * cells * directions], unit length.

    A sum of gradient magnitudes per cell and direction (unsigned), square-rooted so that line art and filled drawings
    weigh alike.
    """
    grey_NHW = pictures_NHWC.astype(np.float32).mean(-1)
    dx_NHW, dy_NHW = np.zeros_like(grey_NHW), np.zeros_like(grey_NHW)
    dx_NHW[:, :, 1:-1] = grey_NHW[:, :, 2:] - grey_NHW[:, :, :-2]
    dy_NHW[:, 1:-1] = grey_NHW[:, 2:] - grey_NHW[:, :-2]
    magnitude_NHW = np.minimum(np.hypot(dx_NHW, dy_NHW), 64)
    direction_NHW = (np.arctan2(dy_NHW, dx_NHW) % np.pi / np.pi * directions).astype(int) % directions
    count, height, width = grey_NHW.shape
    shape = (count, cells, height // cells, cells, width // cells)
    parts = [
        np.where(direction_NHW == k, magnitude_NHW, 0).reshape(shape).sum((2, 4)).reshape(count, -1)
        for k in range(directions)
    ]
    features_NF = np.sqrt(np.concatenate(parts, axis=1))
    return features_NF / (np.linalg.norm(features_NF, axis=1, keepdims=True) + 1e-6)


def read_pack(pack: Path) -> tuple[list[dict[str, Any]], np.ndarray]:
    """All rows of the pack and their pictures, uint8 [N,96,96,3]."""
    with zipfile.ZipFile(pack) as archive:
        rows = [json.loads(line) for line in archive.read("records.jsonl").decode().splitlines()]
        pictures = [np.asarray(Image.open(io.BytesIO(archive.read(row["file"]))).convert("RGB")) for row in rows]
    return rows, np.stack(pictures)


def assign_splits(rows: list[dict[str, Any]], pictures_NHWC: np.ndarray) -> tuple[list[str], Counter[str]]:
    """A split for every row of the pack (labelled or not), and how many rows were dropped for which reason.

    Only labelled rows can be in validation or test. Rows without labels are "train" when nothing like them is held out
    (they may serve to train encoders) and "dropped" otherwise.
    """
    labelled = np.array([bool(row["single"] or row["multi"]) for row in rows])

    def drawn(family: str) -> bool:
        digest = hashlib.md5((SALT + family).encode(), usedforsecurity=False).hexdigest()
        return int(digest, 16) % 10_000 < VALIDATION_SHARE * 10_000

    first = ["test" if row["test"] else "val" if drawn(row["family"]) else "train" for row in rows]
    split = np.array(first, dtype=object)
    texts = np.array([normalised(row["text"]) if row["text"] else "" for row in rows])
    outline_NF = outlines(pictures_NHWC)
    reasons: Counter[str] = Counter()

    def drop(what: np.ndarray, held_out: np.ndarray, name: str) -> None:
        """Drops the rows of `what` that resemble a row of `held_out`."""
        same_text = np.isin(texts, texts[held_out & (texts != "")]) & (texts != "")
        nearest_N = (outline_NF @ outline_NF[held_out].T).max(1)
        same_picture = nearest_N >= NEAR_IDENTICAL
        for part, rows_of in (("", what & labelled), (" (no labels)", what & ~labelled)):
            reasons[f"{name}: text{part}"] += int((rows_of & same_text).sum())
            reasons[f"{name}: picture only{part}"] += int((rows_of & same_picture & ~same_text).sum())
        split[what & (same_text | same_picture)] = "dropped"

    drop((split == "val") & labelled, (split == "test") & labelled, "val row like a test row")
    split[(split != "train") & ~labelled] = "dropped"  # their family is held out
    drop(split == "train", np.isin(split, ("val", "test")), "train row like a val or test row")
    return split.tolist(), reasons


def write(pack: Path, out: Path, rows: list[dict[str, Any]], splits: list[str]) -> None:
    """The labelled rows with their pictures' bytes as they are, fixed dates, nothing compressed twice."""
    out.parent.mkdir(parents=True, exist_ok=True)
    kept = [(row, split) for row, split in zip(rows, splits, strict=True) if row["single"] or row["multi"]]
    lines = [json.dumps({**{k: row[k] for k in FIELDS}, "split": split}, ensure_ascii=False) for row, split in kept]
    with zipfile.ZipFile(pack) as source, zipfile.ZipFile(out, "w") as archive:
        info = zipfile.ZipInfo("records.jsonl")
        archive.writestr(info, "\n".join(lines) + "\n", compress_type=zipfile.ZIP_DEFLATED, compresslevel=9)
        for row, _ in kept:
            archive.writestr(zipfile.ZipInfo(row["file"]), source.read(row["file"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pack", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    rows, pictures_NHWC = read_pack(arguments.pack)
    splits, reasons = assign_splits(rows, pictures_NHWC)
    write(arguments.pack, arguments.out, rows, splits)
    named = [(row, split) for row, split in zip(rows, splits, strict=True) if row["single"] or row["multi"]]
    print(f"rows in the pack {len(rows)}, with labels {len(named)}")
    for reason, count in reasons.items():
        print(f"dropped, {reason}: {count}")
    spare = sum(
        split == "train" and not (row["single"] or row["multi"]) for row, split in zip(rows, splits, strict=True)
    )
    print(f"rows without labels that nothing held out resembles: {spare}")
    for task in ("single", "multi"):
        counts = Counter(split for row, split in named if row[task])
        print(f"{task}:", {name: counts[name] for name in ("train", "val", "test", "dropped")})
    for name in ("train", "val", "test"):
        classes = Counter(row["single"] for row, split in named if split == name and row["single"])
        print(f"single, {name}:", dict(sorted(classes.items())))
    written = arguments.out.read_bytes()
    print(f"{arguments.out}: {len(written)} bytes, sha256 {hashlib.sha256(written).hexdigest()}")


if __name__ == "__main__":
    main()
