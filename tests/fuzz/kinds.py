"""What is tried: study files, manifests and their cells, media files and a sweep's folder, each wrong somewhere.

An example is made from its own random generator alone, so its number and the seed reproduce it.
"""

from __future__ import annotations

import csv
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import yaml
from PIL import Image

from mmsweep.study import Study
from tests.fuzz.harness import Ended
from tests.fuzz.values import damaged, strange

Check = Callable[[Ended], str | None]


@dataclass(frozen=True)
class Example:
    """A command to run in a prepared folder.

    Args:
        arguments: of mmsweep.
        check: a fault that only this kind of example can see, beside those of every command.
    """

    arguments: list[str]
    check: Check = field(default=lambda ended: None)


@dataclass(frozen=True)
class Material:
    """What all examples copy from, made once: tiny encoders and a sweep's folder."""

    encoders: dict[str, str]
    sweep: Path


ROWS = 24
CLASSES = ("cat", "dog")


def study(material: Material) -> dict[str, Any]:
    """A study of own data that is right."""
    columns = {"image": {"kind": "image", "column": "picture"}, "text": {"kind": "text", "column": "caption"}}
    return {
        "name": "fuzz",
        "data": {
            "dataset": "manifest",
            "path": "rows.csv",
            "modalities": columns,
            "target": {"task": "single_label", "column": "kind"},
            "split": {"column": "part"},
            "text": {"length": 12},
        },
        "model": {"encoders": {m: {"name": material.encoders[e]} for m, e in (("image", "vit"), ("text", "bert"))}},
        "method": {"name": "cmpt", "align_weight": 0.2},
        "train": {"epochs": 3, "batch_size": 8},
        "scenarios": {"evaluate": ["complete", {"missing": "text"}]},
        "search": {"method.align_weight": {"uniform": [0.1, 1.0]}},
        "sweep": {"trials": 2, "scheduler": {"name": "asha", "grace_epochs": 1}},
        "resources": {"hosts": 1, "cpus": 1},
    }


def rows() -> list[dict[str, Any]]:
    """Rows that are right; the files that they name are made by `pictures`."""
    parts = ["train"] * 4 + ["val", "test"]
    return [
        {
            "picture": f"{i}.png",
            "caption": f"a red disc {i}",
            "kind": CLASSES[i % 2],
            "part": parts[i // 2 % 6],
        }
        for i in range(ROWS)
    ]


def pictures(folder: Path, draw: random.Random, suffix: str = "png") -> None:
    """A small picture for each row."""
    for i in range(ROWS):
        pixels = np.full((12, 16, 3), draw.randrange(256), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.{suffix}")


def write_rows(path: Path, found: list[dict[str, Any]]) -> None:
    """Rows as CSV, TSV, JSONL or Parquet, by the path's suffix."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    elif path.suffix == ".parquet":
        names = list(dict.fromkeys(name for row in found for name in row))
        pyarrow.parquet.write_table(pyarrow.table({n: _column([r.get(n) for r in found]) for n in names}), path)
    elif path.suffix == ".tsv":  # its cells cannot hold what separates them
        lines = [list(found[0]), *([_cell(value) for value in row.values()] for row in found)]
        text = "".join("\t".join(" ".join(cell.split("\t")) for cell in line) + "\n" for line in lines)
        path.write_text(text, encoding="utf-8", newline="")
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(found[0]))
            writer.writeheader()
            writer.writerows({name: _cell(value) for name, value in row.items()} for row in found)


def _cell(value: Any) -> str:
    return " ".join(("" if value is None else str(value)).splitlines())


def _column(values: list[Any]) -> Any:
    try:
        return pyarrow.array(values)
    except (pyarrow.ArrowException, OverflowError):  # a column has one type
        return pyarrow.array([None if value is None else str(value) for value in values])


def study_file(draw: random.Random, folder: Path, material: Material) -> Example:
    """A study file with one to three values that are wrong, missing or of another key; or with damaged bytes."""
    made = study(material)
    write_rows(folder / "rows.csv", rows())
    keys = _keys(Study.parse({**made, "data": {**made["data"], "path": str(folder / "rows.csv")}}).resolved())
    for _ in range(draw.randint(1, 3)):
        _put(made, draw.choice(keys), strange(draw), delete=draw.random() < 0.1)
    text = yaml.safe_dump(made, sort_keys=False, allow_unicode=True).encode("utf-8", "surrogatepass")
    if draw.random() < 0.2:
        text = damaged(text, draw)
    (folder / "study.yaml").write_bytes(text)
    if draw.random() < 0.5:
        return Example(["validate", "study.yaml"])
    override = [f"{draw.choice(keys)}={strange(draw)}".replace("\0", "")] if draw.random() < 0.3 else []
    return Example(["tune", "study.yaml", "--dry-run", *override])


def _keys(values: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key, value in values.items():
        found.append(prefix + key)
        if isinstance(value, dict):
            found += _keys(value, f"{prefix}{key}.")
    return found


def _put(values: dict[str, Any], key: str, value: Any, *, delete: bool) -> None:
    parts = ["search", key.removeprefix("search.")] if key.startswith("search.") else key.split(".")
    for part in parts[:-1]:
        if not isinstance(values.get(part), dict):
            values[part] = {}
        values = values[part]
    if delete:
        values.pop(parts[-1], None)
    else:
        values[parts[-1]] = value


def manifest(draw: random.Random, folder: Path, material: Material) -> Example:
    """Rows with strange cells or left-out keys, in each format; every row must be kept or counted as skipped."""
    suffix, found = draw.choice(["csv", "tsv", "jsonl", "parquet"]), rows()
    pictures(folder, draw)
    for _ in range(draw.randint(1, 6)):
        row, column = draw.choice(found), draw.choice(list(found[0]))
        if suffix == "jsonl" and draw.random() < 0.3:
            row.pop(column, None)
        else:
            row[column] = strange(draw)
    path = folder / f"rows.{suffix}"
    write_rows(path, found)
    whole = True
    if draw.random() < 0.25:
        path.write_bytes(damaged(path.read_bytes(), draw))
        whole = False
    made = study(material)
    made["data"]["path"] = path.name
    made["data"]["target"]["task"] = draw.choice(["single_label", "single_label", "multi_label", "regression"])
    if draw.random() < 0.3:
        made["data"]["split"] = {"train": 0.6, "val": 0.2, "test": 0.2}
    if draw.random() < 0.3:
        made["data"]["group"] = {"column": "caption"}
    return _prepared(draw, folder, made, ROWS if whole else None)


def media(draw: random.Random, folder: Path, material: Material) -> Example:
    """Pictures, sounds or sequences of which some are damaged."""
    made, found = study(material), rows()
    kind = draw.choice(["picture", "picture", "sound", "sequence"])
    if kind == "picture":
        suffix = draw.choice(["png", "jpg", "webp", "tiff", "gif", "bmp"])
        pictures(folder, draw, suffix)
    elif kind == "sound":
        suffix = "wav"
        import soundfile

        for i in range(ROWS):
            soundfile.write(folder / f"{i}.wav", np.sin(np.arange(800) / (5 + i)).astype(np.float32), 16000)
        made["data"]["modalities"]["image"]["kind"] = "audio"
        made["model"]["encoders"]["image"]["name"] = material.encoders["ast"]
    else:
        suffix = "npy"
        for i in range(ROWS):
            np.save(folder / f"{i}.npy", np.random.default_rng(i).normal(size=(5, 3)).astype(np.float32))
        sequence = {"kind": "sequence", "column": "picture", "length": 6, "width": 3}
        made["data"]["modalities"] = {"image": sequence, "other": sequence}
        made["model"] = {"backbone": {"name": "mult"}, "lora": None}
        made["method"] = {"name": "modality_dropout"}
        made["search"] = {"train.optimizer.lr": {"uniform": [0.001, 0.01]}}
        made["scenarios"]["evaluate"] = ["complete"]
        del made["data"]["text"]
    for row in found:
        row["picture"] = row["picture"].replace("png", suffix)
    for row in draw.sample(found, draw.randint(1, 4)):
        path = folder / row["picture"]
        path.write_bytes(damaged(path.read_bytes(), draw))
    write_rows(folder / "rows.csv", found)
    return _prepared(draw, folder, made, ROWS)


def _prepared(draw: random.Random, folder: Path, made: dict[str, Any], total: int | None) -> Example:
    made["data"]["max_bad"] = draw.choice([1.0, 1.0, 0.0])
    (folder / "study.yaml").write_text(yaml.safe_dump(made, sort_keys=False), encoding="utf-8")
    if draw.random() < 0.3:
        return Example(["data", "check", "study.yaml"])

    def check(ended: Ended) -> str | None:
        if ended.code != 0 or total is None:
            return None
        told = json.loads(ended.out)
        kept = sum(told["rows"].values()) + told["skipped"]
        return None if kept == total else f"{total} rows became {kept}: {told}"

    return Example(["data", "prepare", "study.yaml", "--json"], check)


def run_folder(draw: random.Random, folder: Path, material: Material) -> Example:
    """A sweep's folder in which one file is damaged, replaced or gone."""
    shutil.copytree(material.sweep, folder / "sweep")
    files = sorted(path for path in (folder / "sweep").rglob("*") if path.is_file() and "report" not in path.parts)
    path = draw.choice(files)
    if draw.random() < 0.1:
        path.unlink()
    elif path.suffix == ".json" and draw.random() < 0.6:
        values = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(values, dict) and values and draw.random() < 0.8:
            values[draw.choice(list(values))] = strange(draw)
        else:
            values = strange(draw)
        path.write_text(json.dumps(values), encoding="utf-8")
    else:
        path.write_bytes(damaged(path.read_bytes(), draw))
    commands = [["show", "sweep"], ["show", "sweep", "--json"], ["best", "sweep"], ["best", "sweep", "--json"]]
    commands += [["evaluate", "sweep/final/best/seed-101"]] + [["report", "sweep"]] * (draw.random() < 0.3)
    return Example(draw.choice(commands))


KINDS = {"study": study_file, "manifest": manifest, "media": media, "run": run_folder}
