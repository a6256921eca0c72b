"""A few invented films in each layout of MM-IMDb: real JPEG, tar, gzip and HDF5 files.

What the real files do is done here too: ids with zeros in front, several plots with the longest not first, outlines
that are often absent, further keys in the descriptions, a genre beside the 23, one that is spelt in another way.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Films = dict[str, dict[str, Any]]
SPLITS = {"train": 10, "dev": 4, "test": 4}
GENRES = (["Drama", "Romance"], ["Comedy"], ["SCI-FI", "Film-Noir"], ["Drama", "News"], ["Music", "Short"])
MEANS = np.array([103.939, 116.779, 123.68], np.float32)
"""VGG's, of blue, green and red."""


def films() -> tuple[dict[str, list[str]], Films]:
    """(split.json's content, id -> description). The fourth film of a split has no plot but an outline."""
    lists: dict[str, list[str]] = {}
    described: Films = {}
    for split, count in SPLITS.items():
        for place in range(count):
            number = len(described)
            id = f"{16_390 * (number + 1):07d}" if number else "00000005"
            plots = [f"A red disc, number {number}", f"A red disc, number {number}, on blue paper", "a square"]
            described[id] = {
                "title": f"Film {number}",
                "genres": GENRES[number % len(GENRES)],
                "plot": plots[: 1 + number % 3] if place != 3 else [],
                "rating": 6.5,
                "cast": [{"name": "Nobody"}],
            }
            if number % 2:
                described[id]["plot outline"] = f"Outline of a green square, {number}"
            lists.setdefault(split, []).append(id)
    return lists, described


def picture(number: int, size: tuple[int, int] = (24, 36), suffix: str = "jpeg") -> bytes:
    """A poster with noise, in a picture format."""
    pixels = np.random.default_rng(number).integers(0, 256, (size[1] // 4, size[0] // 4, 3)).astype(np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).resize(size).save(content, suffix)
    return content.getvalue()


def write_folder(
    root: Path, folders: tuple[str, str] = ("dataset", "dataset"), found: tuple[Any, Films] | None = None
) -> Path:
    """split.json beside descriptions and posters; `folders` are ("labels", "images") in Lee et al.'s arrangement."""
    lists, described = found or films()
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "split.json").write_text(json.dumps(lists, indent=4))
    for number, (id, description) in enumerate(described.items()):
        (root / folders[0] / f"{id}.json").write_text(json.dumps(description, indent=4))
        (root / folders[1] / f"{id}.jpeg").write_bytes(picture(number))
    return root


def write_archive(path: Path, folder: Path, further: Mapping[str, bytes] | None = None) -> Path:
    """A tar archive (gzipped, if its name says so) of a folder, its files under mmimdb/; split.json comes last."""
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        archive.add(folder / "dataset", "mmimdb/dataset")
        for name, content in (further or {}).items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        archive.add(folder / "split.json", "mmimdb/split.json")
    return path


def write_hdf5(
    folder: Path, genres: Sequence[str], words: bool = True, split: bool = True, protocol: int = 2
) -> tuple[Path, dict[str, np.ndarray]]:
    """multimodal_imdb.hdf5 (and metadata.npy) as make_dataset.py of gmu-mmimdb writes them.

    Returns:
        The file, and the pictures as they were: id -> uint8 [256,160,3], red first.
    """
    import pickle

    import h5py

    lists, described = films()
    folder.mkdir(parents=True, exist_ok=True)
    ids = [id[-7:] for part in lists.values() for id in part]
    vocabulary = ["_UNK_", "a", "red", "disc", ",", "N", "number", "on", "blue", "paper", "square"]
    texts = [
        max(film["plot"] or ["a square"], key=len).lower().replace(",", " ,").split() for film in described.values()
    ]
    sequences = [[vocabulary.index("N" if word.isdigit() else word) for word in text] for text in texts]
    shown = {}
    path = folder / "multimodal_imdb.hdf5"
    with h5py.File(path, "w") as file:
        images = file.create_dataset("images", (len(ids), 3, 256, 160), dtype="int32")
        for row, id in enumerate(ids):
            shown[id] = np.random.default_rng(row).integers(0, 256, (256, 160, 3)).astype(np.uint8)
            images[row] = (shown[id].astype(np.float32)[..., ::-1] - MEANS).transpose(2, 0, 1)  # cut by HDF5
        table = file.create_dataset("genres", (len(ids), len(genres)), dtype="int32")
        table[...] = [[int(genre in film["genres"]) for genre in genres] for film in described.values()]
        table.attrs["target_names"] = json.dumps(list(genres))
        file.create_dataset("imdb_ids", (len(ids),), dtype="S7")[...] = np.array(ids, "S7")
        stored = file.create_dataset("sequences", (len(ids),), dtype=h5py.special_dtype(vlen=np.dtype("int32")))
        for row, numbers in enumerate(sequences):
            stored[row] = np.array(numbers, np.int32)
        if split:
            kinds = [("split", "S5"), ("source", "S8"), ("start", np.int64), ("stop", np.int64), ("available", "?")]
            rows, start = [], 0
            for name, part in lists.items():
                rows += [(name.encode(), s, start, start + len(part), True) for s in (b"imdb_ids", b"images")]
                start += len(part)
            file.attrs["split"] = np.array(rows, kinds)
    if words:
        content = {
            "ix_to_word": dict(enumerate(vocabulary)),
            "word_to_ix": {word: number for number, word in enumerate(vocabulary)},
            "vocab_size": len(vocabulary),
            "lookup": np.zeros((len(vocabulary), 3), np.float32),
        }
        with (folder / "metadata.npy").open("wb") as out:
            np.lib.format.write_array_header_1_0(out, {"descr": "|O", "fortran_order": False, "shape": ()})
            out.write(pickle.dumps(np.array(content, object), protocol))
    return path, shown
