"""The layouts in which MM-IMDb circulates (research/methods.md §A.1): folders, tar archives, the HDF5 file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from mmsweep.data.archives import TAR_SUFFIXES, members
from mmsweep.data.cells import shown
from mmsweep.data.files import Undecodable, opened, reading
from mmsweep.data.sets.mmimdb_hdf5 import read_films
from mmsweep.errors import UserError

LISTS = "split.json"
ARCHIVES = tuple(f"mmimdb{suffix}" for suffix in TAR_SUFFIXES)
HDF5 = "multimodal_imdb.hdf5"
SUFFIXES = (".jpeg", ".jpg", ".png")
_DESCRIPTIONS, _PICTURES = ("dataset", "labels"), ("dataset", "images")


class Film(NamedTuple):
    """What is read of a film's description: genres as the file spells them, and the texts that the study asks for."""

    genres: list[str]
    texts: list[str]


class Found(NamedTuple):
    """MM-IMDb in one of its layouts.

    Args:
        lists: the content of split.json.
        films: id -> film, or why its description cannot be used.
        pictures: id -> poster.
        place: file or folder, for people.
        genres: those that films can have here; None: any.
    """

    lists: Any
    films: dict[str, Film | str]
    pictures: dict[str, Any]
    place: Path
    genres: list[str] | None = None


def find_films(root: Path, field: str) -> Found | None:
    """MM-IMDb in a folder, or in the archive or HDF5 file that `root` is; None where there is none of its layouts.

    Args:
        field: which texts of a film are read, as `data.text.field`.

    Raises:
        UserError: an archive or a list that is damaged; a text that the HDF5 file does not have.
    """
    for place in (root, root / "mmimdb"):
        for first, second in zip(_DESCRIPTIONS, _PICTURES, strict=True):
            if (place / LISTS).is_file() and (place / first).is_dir() and (place / second).is_dir():
                return _gathered(_listed(place, sorted({first, second})), field, place)
    for path in (root, *(root / name for name in (*ARCHIVES, HDF5))):
        if path.is_file() and path.name.endswith(TAR_SUFFIXES):
            return _gathered(((PurePosixPath(m.name), m) for m in members(path)), field, path)
        if path.is_file() and path.suffix in (".hdf5", ".h5"):
            stored = read_films(path, field)
            films = {id: Film(genres, [text] if (text := stored.texts[id]) else [])
                     for id, genres in stored.genres.items()}  # fmt: skip
            return Found(stored.lists, dict(films), dict(stored.pictures), path, stored.names)
    return None


def content_of(root: Path) -> str:
    names = sorted(path.name for path in root.iterdir())[:10] if root.is_dir() else []
    return ", ".join(names) or ("an empty folder" if root.is_dir() else "no such folder or file")


def _listed(place: Path, folders: list[str]) -> Iterator[tuple[PurePosixPath, Path]]:
    yield PurePosixPath(LISTS), place / LISTS
    for folder in folders:
        for name in sorted(os.listdir(place / folder)):
            yield PurePosixPath(folder, name), place / folder / name


def _gathered(files: Iterator[tuple[PurePosixPath, Any]], field: str, place: Path) -> Found:
    """Reads the descriptions, one after the other in the order of the files, and notes where the pictures are."""
    lists: Any = None
    films: dict[str, Film | str] = {}
    pictures: dict[str, Any] = {}
    for name, value in files:
        folder = name.parent.name
        if name.name == LISTS:
            try:
                lists = _json(value)
            except Undecodable as problem:
                raise UserError(f"{LISTS} cannot be read ({problem})", file=place) from None
        elif name.suffix == ".json" and folder in _DESCRIPTIONS:
            try:
                films[name.stem] = _film(_json(value), field)
            except Undecodable as problem:
                films[name.stem] = str(problem)
        elif name.suffix.lower() in SUFFIXES and folder in _PICTURES:
            pictures.setdefault(name.stem, value)
    return Found(lists, films, pictures, place)


def _json(value: Any) -> Any:
    with reading("description", value), opened(value) as file:
        return json.loads(file.read())


def _film(description: Any, field: str) -> Film:
    """Raises Undecodable."""
    if not isinstance(description, dict):
        raise Undecodable(f"expected an object; found {shown(description)}")
    genres, outline = description.get("genres"), description.get("plot outline") or ""
    plots = description.get("plot") or []
    plots = [plots] if isinstance(plots, str) else plots
    for key, names in (("genres", genres), ("plot", plots), ("plot outline", [outline])):
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise Undecodable(f"{key}: expected texts; found {shown(description.get(key))}")
    assert isinstance(genres, list)
    texts = [plot.strip() for plot in plots if plot.strip()]
    if field == "outline" and outline.strip():
        return Film(genres, [outline.strip()])
    if field == "longest_plot":
        return Film(genres, [max(texts, key=len)] if texts else [])
    return Film(genres, texts if field == "all_plots" else texts[:1])
