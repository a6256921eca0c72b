#!/usr/bin/env python3
"""How fast is data prepared, and prepared data read, beside the plainest loops that do the same?

    python benchmarks/data_prepare.py --rows 20000
    python benchmarks/data_prepare.py --rows 400                       # whether it runs

The rows are JPEGs of 320 x 256 pixels, made for the run; the network sees 224 x 224. All files are in the page cache
before anything is timed, and every way starts in a process of its own.

    pillow     one process, one thread: each picture opened, resized and cropped by Pillow (`decode_image`), no more
    threads    `prepare` as a library call: threads of one process
    ray        `prepare` as `mmsweep data prepare` runs it: Ray's start, and its tasks on all cores, included
    again      `prepare` once more: the checksums of what is there are known

`prepare` also hashes each file, writes and checksums the columns; "pictures/s a core" counts the cores in use. Then
batches of 64 rows, in random order, are read from the mapped column into memory: by NumPy's indexing alone ("copy"),
and by `PreparedSplit.raw`, which is what training calls.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from outside import place_of
from PIL import Image
from ran_on import Machine, hand_over, out_option, table

from mmsweep.data.kinds.image import ImageFormat, decode_image
from mmsweep.data.options import DATASETS
from mmsweep.data.prepared import PreparedData, prepare
from mmsweep.data.shards import in_threads

SIZE, BATCH = 224, 64
WAYS = ("pillow", "threads", "ray", "again")


def make(folder: Path, rows: int) -> Path:
    """A manifest of JPEGs; every picture is another."""
    (folder / "pictures").mkdir(parents=True)
    draw = np.random.default_rng(0)
    with (folder / "my.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["picture", "kind"])
        for row in range(rows):
            small = Image.fromarray(draw.integers(0, 255, (12, 16, 3), np.uint8))
            path = folder / "pictures" / f"{row:06d}.jpg"
            small.resize((320, 256), Image.Resampling.BICUBIC).save(path, quality=88)
            writer.writerow([f"pictures/{path.name}", "ab"[row % 2]])
    return folder / "my.csv"


def prepared(manifest: Path, cache: Path, way: str) -> PreparedData:
    section = DATASETS["manifest"].Options
    column = {"image": {"kind": "image", "column": "picture"}}
    options = section(dataset="manifest", path=str(manifest), modalities=column,
                      target={"task": "single_label", "column": "kind"})  # fmt: skip
    run = in_threads
    if way == "ray":
        from mmsweep.sweep import decoding

        decoding.LONG_SECONDS = -1.0  # however few rows there are
        run = decoding.with_ray
    return prepare(DATASETS["manifest"](options), {"image": ImageFormat(SIZE)}, cache, run=run)


def one(way: str, manifest: Path, cache: Path) -> float:
    """Seconds of one way, in this process."""
    for path in (manifest.parent / "pictures").iterdir():
        path.read_bytes()
    begun = time.perf_counter()
    if way == "pillow":
        for path in sorted((manifest.parent / "pictures").iterdir()):
            decode_image(path, ImageFormat(SIZE))
    else:
        prepared(manifest, cache, way)
    return time.perf_counter() - begun


def reading(data: PreparedData, seconds: float) -> dict[str, float]:
    """Pictures a second of reading batches, by NumPy alone and by the split."""
    split, draw = data.splits["train"], np.random.default_rng(0)
    column = split.column("image")
    column[:].sum()  # into the page cache
    ways = {"copy": lambda index: column[index], "raw": lambda index: split.raw(index)}
    rates = {}
    for name, read in ways.items():
        count, begun = 0, time.perf_counter()
        while time.perf_counter() - begun < seconds:
            read(draw.integers(0, len(split), BATCH))
            count += BATCH
        rates[name] = count / (time.perf_counter() - begun)
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=5.0, help="how long batches are read")
    parser.add_argument("--one", nargs=3, metavar=("WAY", "MANIFEST", "CACHE"), help=argparse.SUPPRESS)
    out_option(parser)
    options = parser.parse_args()
    if options.one:
        way, manifest, cache = options.one
        print(one(way, Path(manifest), Path(cache)))
        return
    machine, found = Machine(), dict[str, Any]()
    with place_of(None, own_cache=True) as place:
        manifest = make(Path(place), options.rows)
        for way in WAYS:
            cache = Path(place) / ("threads" if way == "again" else way)
            command = [sys.executable, __file__, "--one", way, str(manifest), str(cache)]
            ran = subprocess.run(command, capture_output=True, text=True, check=True)
            found[way] = float(ran.stdout.split()[-1])
        rates = reading(prepared(manifest, Path(place) / "threads", "threads"), options.seconds)
    cores = {"pillow": 1, "threads": os.cpu_count() or 1, "ray": os.cpu_count() or 1, "again": 1}
    rows = []
    for way in WAYS:
        rate = options.rows / found[way]
        ratio = found["pillow"] / found[way]
        rows.append([way, f"{found[way]:.1f} s", f"{rate:,.0f}", f"{rate / cores[way]:,.0f}", f"{ratio:.2f}"])
    lines = table(["way", f"{options.rows:,} rows", "pictures/s", "pictures/s a core", "of pillow's rate"], rows)
    lines += ["", *table(["batches of 64", "pictures/s, one core"], [[n, f"{r:,.0f}"] for n, r in rates.items()])]
    hand_over("Preparing data, and reading it", lines, machine.facts(), {**found, **rates}, options.out)


if __name__ == "__main__":
    main()
