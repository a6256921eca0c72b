#!/usr/bin/env python3
"""MM-IMDb at any size: an invented copy in its true layout is checked, prepared and read.

    python benchmarks/mmimdb_full.py --lists split.json --films 300                # a try
    python benchmarks/mmimdb_full.py --lists split.json --layout tar.gz --place /data/invented

The copy has every id of a real split.json (or the first of each split), a JPEG of 128 x 190 pixels and a description
with one to five plots for each; lengths, counts and genres are drawn like the real ones (a median of 90 words, 2.5
genres a film). `--place` keeps it, with the prepared data, and a later run takes what is there.

Each step is a process of its own, through the shipped study (search_spaces/cmpt_mmimdb.yaml) with the shipped encoders:
`check` is `mmsweep data check`, `prepare` decodes everything, `map` finds it prepared, `read` reads all training rows
once in random order. "anonymous" is the largest sum of RssAnon over the process and its descendants, seen every 0.2 s:
memory above the page cache. "start" is how much of it the imports take. Rows are those of all splits, of
training alone for `read`.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from outside import place_of, python
from PIL import Image
from ran_on import ROOT, Machine, hand_over, out_option, table

STUDY = ROOT / "search_spaces" / "cmpt_mmimdb.yaml"
TINY = (
    "model.encoders.image={source: mmsweep, name: clipart_image}",
    "model.encoders.text={source: mmsweep, name: clipart_text}",
    "data.image.size=null",
    "data.text.length=60",
)
SHARES = {
    "Drama": 0.54, "Comedy": 0.33, "Romance": 0.21, "Thriller": 0.2, "Crime": 0.15, "Action": 0.14, "Adventure": 0.1,
    "Horror": 0.1, "Documentary": 0.08, "Mystery": 0.08, "Sci-Fi": 0.08, "Fantasy": 0.07, "Family": 0.06,
    "Biography": 0.05, "War": 0.05, "History": 0.04, "Music": 0.04, "Animation": 0.04, "Musical": 0.03, "Western": 0.03,
    "Sport": 0.02, "Short": 0.02, "Film-Noir": 0.01,
}  # fmt: skip
"""Share of the films that have a genre, about as in the real set."""

WORDS = ("a", "an", "the", "of", "in", "to", "his", "film", "man", "woman", "city", "night", "love", "two", "young")
STEPS = ("check", "prepare", "map", "read")


# ---- an invented copy ----------------------------------------------------------------------------------------------


def description(rng: np.random.Generator) -> bytes:
    """A film's JSON: plots, often an outline, genres, and keys that nobody reads."""
    plots = [
        " ".join(rng.choice(WORDS, int(np.clip(rng.lognormal(4.5, 0.6), 5, 800)))).capitalize() + "."
        for _ in range(int(rng.integers(1, 6)))
    ]
    genres = [genre for genre, share in SHARES.items() if rng.random() < share] or ["Drama"]
    film = {"title": "Invented", "genres": genres, "plot": plots, "cast": [{"name": "Nobody"}] * 20, "rating": 6.5}
    if rng.random() < 0.6:
        film["plot outline"] = plots[0][:150]
    return json.dumps(film, indent=4).encode()


def poster(rng: np.random.Generator) -> bytes:
    """A JPEG of 128 x 190 pixels."""
    content, colours = io.BytesIO(), rng.integers(0, 256, (19, 13, 3)).astype(np.uint8)
    Image.fromarray(colours).resize((128, 190)).save(content, "jpeg", quality=85)
    return content.getvalue()


def chosen(lists: Path, films: int | None) -> dict[str, list[str]]:
    """The lists of ids, or the same share of each."""
    ids: dict[str, list[str]] = json.loads(lists.read_text())
    share = 1.0 if films is None else films / sum(map(len, ids.values()))
    return {name: part[: max(1, round(share * len(part)))] for name, part in ids.items()}


def files(lists: dict[str, list[str]]) -> Iterator[tuple[str, bytes]]:
    """The copy's files, in the order of names as the real archive has them; split.json comes last."""
    for id in sorted(id for part in lists.values() for id in part):
        rng = np.random.default_rng([int(byte) for byte in id.encode()])
        yield f"dataset/{id}.jpeg", poster(rng)
        yield f"dataset/{id}.json", description(rng)
    yield "split.json", json.dumps(lists).encode()


def generate(place: Path, lists: dict[str, list[str]], layout: str) -> Path:
    """Writes the copy, unless it is there; its folder or archive."""
    made = place / (f"mmimdb.{layout}" if layout != "folder" else "mmimdb")
    done = place / f"{made.name}.films"
    digest = hashlib.sha256(json.dumps(lists).encode()).hexdigest()
    if done.exists() and done.read_text() == digest:
        return made
    if layout == "folder":
        (made / "dataset").mkdir(parents=True, exist_ok=True)
        for name, content in files(lists):
            (made / name).write_bytes(content)
    else:
        with tarfile.open(made, "w:gz" if layout == "tar.gz" else "w") as archive:
            for name, content in files(lists):
                info = tarfile.TarInfo(f"mmimdb/{name}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    done.write_text(digest)
    return made


# ---- what is measured, in a process of its own ---------------------------------------------------------------------


class Anonymous:
    """Samples the memory of this process and its descendants that no file backs."""

    def __init__(self) -> None:
        self.most, self._over = 0, threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Anonymous:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _sample(self) -> None:
        while True:
            self.most = max(self.most, anonymous_bytes())
            if self._over.wait(0.2):
                return


def anonymous_bytes() -> int:
    """RssAnon of this process and its descendants."""
    found: dict[int, tuple[int, int]] = {}
    for path in Path("/proc").glob("[0-9]*/status"):
        try:
            lines = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
        except OSError:  # it ended
            continue
        if "RssAnon" in lines:  # a process of the kernel has none
            found[int(lines["Pid"])] = int(lines["PPid"]), 1024 * int(lines["RssAnon"].split()[0])
    own, total = {os.getpid()}, 0
    while True:
        more = {pid for pid, (parent, _) in found.items() if parent in own} - own
        if not more:
            break
        own |= more
    total += sum(found[pid][1] for pid in own if pid in found)
    return total


def step(name: str, root: Path, out: Path) -> None:
    """Measures a step of the study on a copy; writes seconds, rows and bytes."""
    from mmsweep.assembly.build import make_builder, prepare_data
    from mmsweep.data.check import check
    from mmsweep.study import Study

    study = Study.load(STUDY, [*TINY, f"data.root={root}"])

    def checked() -> int:
        builder = make_builder(study)
        findings = check(builder)
        print("\n".join(findings))
        assert not builder.bad_rows
        return sum(map(len, builder.splits().values()))

    def prepared() -> int:
        return sum(map(len, prepare_data(study).splits.values()))

    def read() -> int:
        train = prepare_data(study).splits["train"]
        order = np.random.default_rng(0).permutation(len(train))
        started.append(time.perf_counter())  # what comes before is `map`
        for place in range(0, len(order), 256):
            train.batch(order[place : place + 256], "cpu")
        return len(train)

    work: dict[str, Callable[[], int]] = {"check": checked, "prepare": prepared, "map": prepared, "read": read}
    started, before = [time.perf_counter()], anonymous_bytes()
    with Anonymous() as memory:
        rows = work[name]()
    seconds = time.perf_counter() - started[-1]
    out.write_text(json.dumps({"step": name, "rows": rows, "seconds": seconds, "start": before, "most": memory.most}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lists", type=Path, required=True, metavar="split.json", help="the real one, or one like it")
    parser.add_argument("--films", type=int, help="so many of them, from the start of each split")
    parser.add_argument("--layout", choices=("folder", "tar", "tar.gz"), default="folder")
    parser.add_argument("--place", type=Path, help="folder to keep the copy in; default: a temporary one")
    out_option(parser)
    options = parser.parse_args()
    lists, machine = chosen(options.lists, options.films), Machine()
    with place_of(options.place, own_cache=True) as place:
        began = time.perf_counter()
        root = generate(place, lists, options.layout)
        generated, found = time.perf_counter() - began, []
        for name in STEPS:
            result = place / f"{name}.json"
            code = f"import mmimdb_full as m; m.step({name!r}, m.Path({str(root)!r}), m.Path({str(result)!r}))"
            python(["-c", code], place / name)
            found.append(json.loads(result.read_text()))
        size = sum(f.stat().st_size for f in (root.rglob("*") if root.is_dir() else [root]) if f.is_file())
    rows = [
        [one["step"], f"{one['rows']:,}", f"{one['seconds']:.1f} s", f"{one['rows'] / one['seconds']:,.0f}",
         f"{one['most'] / 2**20:,.0f} MiB", f"{one['start'] / 2**20:,.0f} MiB"]
        for one in found
    ]  # fmt: skip
    films = ", ".join(f"{len(part):,} {name}" for name, part in lists.items())
    lines = [f"{films}; layout `{options.layout}`, {size / 1e6:,.0f} MB, made in {generated:.0f} s.", ""]
    lines += table(["step", "rows", "time", "rows/s", "anonymous", "start"], rows)
    lines += ["", "A sweep on the copy, with two trials:", "", "```"]
    lines += [f"mmsweep tune search_spaces/cmpt_mmimdb.yaml data.root={root} \\"]
    lines += [f"    {' '.join(repr(word) for word in TINY)} sweep.trials=2", "```"]
    hand_over("MM-IMDb at full size", lines, machine.facts(layout=options.layout), found, options.out)


if __name__ == "__main__":
    main()
