"""Folders that are read like a file with a row per sample: what `datasets` saves, and WebDataset's tar files.

    datasets.save_to_disk   one dataset, or a folder a split; Arrow streams. Class labels become their names
    WebDataset              tar files. Consecutive members with one name up to the first point are a row, and what
                            follows the point is the column: `0001.jpg`, `0001.txt`, `0001.json`. A JSON object's keys
                            are the columns, in place of `json`

Both have a column `split` where nothing else is called so: the folder's name, or a tar file's without its number
(`train` of `train-000012.tar`). Nothing is unpacked, and pictures in tar files are read when they are decoded.

Sources: huggingface.co/docs/datasets (Dataset.save_to_disk), github.com/webdataset/webdataset (the format).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmsweep.data.archives import Member, members
from mmsweep.data.files import Undecodable
from mmsweep.errors import UserError

SPLIT = "split"
_TEXTS = ("txt", "text", "cls", "caption")
_ROWS_AT_ONCE = 1024


def folder_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number from 1, cells by column) of each row of a folder.

    Raises:
        UserError: the folder is neither, or damaged.
    """
    if (path / "dataset_dict.json").is_file():
        splits = _json(path / "dataset_dict.json").get("splits", [])
        yield from _numbered({**row, SPLIT: row.get(SPLIT, name)} for name in splits for row in _arrow(path / name))
    elif (path / "state.json").is_file():
        yield from _numbered(_arrow(path))
    elif tars := sorted(path.glob("*.tar")):
        yield from _numbered(row for tar in tars for row in _samples(tar))
    else:
        raise UserError(
            "the folder holds no rows", key="data.path", found=str(path),
            expected="a file, a folder of datasets.save_to_disk, or one of WebDataset's .tar files",
        )  # fmt: skip


def _numbered(rows: Iterator[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
    return enumerate(rows, start=1)


# ---- datasets --------------------------------------------------------------------------------------------------------


def _arrow(folder: Path) -> Iterator[dict[str, Any]]:
    import pyarrow

    state, info = _json(folder / "state.json"), _json(folder / "dataset_info.json")
    if any(state.get(key) for key in ("_indices_data_files", "_indices_files")):
        raise UserError(
            "the dataset was saved with an indices mapping, which only its library applies", file=folder,
            hint="Call flatten_indices() before save_to_disk()",
        )  # fmt: skip
    names = {
        column: feature["names"]
        for column, feature in (info.get("features") or {}).items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names")
    }
    for part in state.get("_data_files") or []:
        file = folder / Path(part["filename"]).name
        try:
            with pyarrow.OSFile(str(file)) as source, pyarrow.ipc.open_stream(source) as stream:
                for batch in stream:
                    for start in range(0, batch.num_rows, _ROWS_AT_ONCE):
                        for row in batch.slice(start, _ROWS_AT_ONCE).to_pylist():
                            yield {column: _named(cell, names.get(column)) for column, cell in row.items()}
        except (pyarrow.ArrowException, OSError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
            raise UserError(f"the file cannot be read ({reason})", file=file) from None


def _named(cell: Any, names: list[str] | None) -> Any:
    """A class label by its name; -1 stands for no label."""
    if names is None or not isinstance(cell, int):
        return cell
    return names[cell] if 0 <= cell < len(names) else None


def _json(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"the file cannot be read ({error})", file=path) from None
    if not isinstance(content, dict):
        raise UserError("the file holds no JSON object", file=path)
    return content


# ---- WebDataset ------------------------------------------------------------------------------------------------------


def _samples(tar: Path) -> Iterator[dict[str, Any]]:
    split = re.sub(r"[-_.]*[0-9]+([-_]of[-_][0-9]+)?$", "", tar.stem)
    key, row, keys = None, dict[str, Any](), set[str]()
    for member in members(tar):
        folder, _, name = member.name.rpartition("/")
        stem, point, extension = name.partition(".")
        if not point or not stem:
            continue
        if (own := f"{folder}/{stem}") != key:
            if row:
                yield {SPLIT: split, **row}
            if own in keys:
                raise UserError(
                    "the members of a sample are not next to each other", file=tar, found=member.name,
                    hint="Write the archive in the order of names (tar --sort=name)",
                )  # fmt: skip
            keys.add(own)
            key, row = own, {"__key__": own.strip("./")}
        cells = _cells(tar, extension.lower(), member)
        if twice := sorted(cells.keys() & row.keys()):
            raise UserError(f"the sample {row['__key__']} has two values of {twice[0]}", file=tar, found=member.name)
        row |= cells
    if row:
        yield {SPLIT: split, **row}


def _cells(tar: Path, column: str, member: Member) -> dict[str, Any]:
    """The columns that a member makes."""
    if column != "json" and column not in _TEXTS:
        return {column: member}
    try:
        text = member.read().decode()
        content = json.loads(text) if column == "json" else text.strip()
    except (Undecodable, ValueError, RecursionError) as error:
        raise UserError(f"a member cannot be read ({error})", file=tar, found=member.name) from None
    return content if isinstance(content, dict) else {column: content}
