"""Scenes in folders: `RGB/12.jpg`, `HHA/12.jpg` and `Label/12.png` are one scene, named 12, which a list file names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from mmsweep.data.dataset import BadRow, Sample
from mmsweep.data.files import natural_key
from mmsweep.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".npy", ".tif", ".tiff")
"""Of the files of a scene; where a folder has several of one name, the first of these is taken."""

Names = list[tuple[str, str]]
"""Names of scenes, each with the place that names it."""


def data_folder(root: Path | None, inner: Iterable[str], holds: str, get: str) -> Path:
    """The folder with the data: the root itself, or the folder of that name within it.

    Args:
        inner: names of the folder within archives.
        holds: what must be in it.
        get: how to get the data, for the message.

    Raises:
        UserError: there is no root, or it does not hold the data.
    """
    if root is None:
        raise UserError("the folder of the data is not named", key="data.root", hint=f"Get it: {get}")
    for place in (root, *(root / name for name in inner)):
        if (place / holds).exists():
            return place
    raise UserError("the data is not here", file=root, key="data.root", found=f"no {holds}", hint=f"Get it: {get}")


def listed_names(path: Path) -> tuple[Names, list[BadRow]]:
    """The scenes that a list file names, in its order, and the lines that cannot be used.

    A line is a bare name (`2`, or `2 …`: the text before the first blank), a file (`RGB/2.jpg`), or files of one scene
    separated by TABs (`RGB/2.jpg<TAB>Label/2.png`). Line ends may be CRLF.

    Raises:
        UserError: the list is absent, or names nothing.
    """
    if not path.is_file():
        raise UserError("the list of scenes does not exist", file=path)
    names: dict[str, int] = {}
    bad: list[BadRow] = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig", errors="replace").splitlines(), start=1):
        if not line.strip():
            continue
        fields = [field for field in line.split("\t") if field.strip()] if "\t" in line else line.split()[:1]
        found = list(dict.fromkeys(_stem(field) for field in fields))
        origin = f"{path.name}:{number}"
        if len(found) > 1:
            bad.append(BadRow(origin, f"the files are of several scenes: {', '.join(found)}"))
        elif found[0] in names:
            bad.append(BadRow(origin, f"the scene {found[0]} is also on line {names[found[0]]}"))
        else:
            names[found[0]] = number
    if not names:
        raise UserError("the list names no scene", file=path)
    return [(name, f"{path.name}:{number}") for name, number in names.items()], bad


def scene_files(folder: Path) -> dict[str, Path]:
    """Name -> file, of the files of a folder, in the order of their names. Raises UserError where it is absent."""
    if not folder.is_dir():
        raise UserError("a folder of the data does not exist", file=folder)
    found: dict[str, Path] = {}
    for path in folder.iterdir():
        rank = SUFFIXES.index(path.suffix.lower()) if path.suffix.lower() in SUFFIXES else None
        other = found.get(path.stem)
        if rank is not None and (other is None or rank < SUFFIXES.index(other.suffix.lower())):
            found[path.stem] = path
    return {name: found[name] for name in sorted(found, key=natural_key)}


def scenes(
    names: Names,
    folders: Mapping[str, Mapping[str, Path]],
    sample: Callable[[str, str, Mapping[str, Path]], Sample],
) -> tuple[list[Sample], list[BadRow]]:
    """A sample of each scene whose files are all there, and the scenes that lack one.

    Args:
        folders: the folder's name in messages -> its files, as `scene_files`.
        sample: makes one of a scene's name, its place in the list, and its files by the folders' names.
    """
    samples, bad = [], []
    for name, origin in names:
        files = {folder: found[name] for folder, found in folders.items() if name in found}
        if absent := [folder for folder in folders if folder not in files]:
            bad.append(BadRow(origin, f"the scene {name} has no file in {', '.join(absent)}"))
        else:
            samples.append(sample(name, origin, files))
    return samples, bad


def _stem(field: str) -> str:
    name = PurePosixPath(field.strip().replace("\\", "/"))
    return name.stem if name.suffix.lower() in SUFFIXES else name.name


def found_text(splits: Mapping[str, list[Any]]) -> str:
    """`716 train, 79 val, 654 test`."""
    return ", ".join(f"{len(rows):,} {name}" for name, rows in splits.items())
