"""multimodal_imdb.hdf5: MM-IMDb as its authors prepared it (make_dataset.py of johnarevalo/gmu-mmimdb).

    imdb_ids    S7 [N], in the order of splits: attribute `split` (a table of Fuel), else the published counts
    images      int32 [N,3,256,160]: blue, green, red, less the mean of VGG's training pictures, cut towards zero
    genres      int32 [N,23]; the attribute target_names (JSON) names its columns
    sequences   the longest plot as numbers of words; the words are in metadata.npy, which lies beside the file

Pictures are given back as they were; only the shade next to the mean (103 or 104 of blue, for example) is ambiguous.
The plot is what the authors left of it: lower case, N for every number, punctuation apart. No other text is there.
metadata.npy is a pickle; it is searched for its table of words and never unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmsweep.data.files import Stored, Undecodable, first_line
from mmsweep.data.plain_pickle import dict_with, plain_values
from mmsweep.errors import UserError

WORDS = "metadata.npy"
GET_WORDS = f"Get {WORDS} from where the .hdf5 came from (archive.org/download/mmimdb), or use mmimdb.tar.gz"
_ORDER = {"train": 15_552, "dev": 2_608, "test": 7_799}
_MEANS = ((123, 124), (116, 117), (103, 104))
"""The whole numbers below and above VGG's means, for red, green and blue."""


class StoredFilms(NamedTuple):
    """What the file holds.

    Args:
        names: the genres that the file tells of.
        lists: split -> ids, in order.
        genres: id -> names of genres, as the file spells them.
        texts: id -> longest plot.
        pictures: id -> poster.
    """

    names: list[str]
    lists: dict[str, list[str]]
    genres: dict[str, list[str]]
    texts: dict[str, str]
    pictures: dict[str, Stored]


@dataclass(frozen=True)
class Poster(Stored):
    """A picture of the file, given as PPM.

    Args:
        row: its place in `images`.
    """

    row: int

    def read(self) -> bytes:
        with _opened(self.container) as file:
            bgr_CHW = file["images"][self.row]
        rgb_CHW = bgr_CHW[::-1].astype(np.int64)
        below, above = (np.array(values)[:, None, None] for values in zip(*_MEANS, strict=True))
        rgb_CHW += np.where(rgb_CHW < 0, below, above)
        if rgb_CHW.min() < 0 or rgb_CHW.max() > 255:
            raise Undecodable(
                f"{self} holds shades from {rgb_CHW.min()} to {rgb_CHW.max()} once VGG's means are added; expected 0 "
                "to 255, the picture as make_dataset.py of gmu-mmimdb stores it"
            )
        head = f"P6 {rgb_CHW.shape[2]} {rgb_CHW.shape[1]} 255\n".encode()
        return head + rgb_CHW.astype(np.uint8).transpose(1, 2, 0).tobytes()


def read_films(path: Path, field: str) -> StoredFilms:
    """The films of the file, pictures left where they are.

    Raises:
        UserError: the file is no such HDF5 file; the text asked for is not in it; its words are not at hand.
    """
    if field != "longest_plot":
        raise UserError(
            "this text is not in the HDF5 file, which holds the longest plot alone", key="data.text.field", file=path,
            found=field, expected="longest_plot, or mmimdb.tar.gz (or its folder) as data.root",
        )  # fmt: skip
    words = _words(path.with_name(WORDS), path)
    with _opened(path) as file:
        for name in ("imdb_ids", "images", "genres", "sequences"):
            if name not in file or len(file[name]) != len(file["imdb_ids"]):
                count = len(file[name]) if name in file else "nothing"
                raise UserError("the HDF5 file is not that of MM-IMDb", file=path, key=name, found=count,
                                expected="a row for each of imdb_ids")  # fmt: skip
        names = json.loads(file["genres"].attrs["target_names"]) if "target_names" in file["genres"].attrs else []
        if not isinstance(names, list) or len(names) != file["genres"].shape[1]:
            raise UserError("the columns of genres have no names", file=path, key="genres.target_names", found=names,
                            expected=f"{file['genres'].shape[1]} names")  # fmt: skip
        ids = [id.decode("ascii") for id in file["imdb_ids"][:]]
        size = int(np.prod(file["images"].shape[1:]))
        labels_NC, sequences = file["genres"][:] > 0, file["sequences"][:]
        lists = _lists(file, ids, path)
    genres = {id: [str(name) for name, on in zip(names, row, strict=True) if on]
              for id, row in zip(ids, labels_NC, strict=True)}  # fmt: skip
    texts = {id: _text(numbers, words, path, id) for id, numbers in zip(ids, sequences, strict=True)}
    pictures: dict[str, Stored] = {id: Poster(path, f"images/{id}", size, row) for row, id in enumerate(ids)}
    return StoredFilms(names, lists, genres, texts, pictures)


def _opened(path: Path) -> Any:
    """The file, to be closed again. Raises UserError where h5py is not installed or cannot read it."""
    try:
        import h5py
    except ImportError:
        raise UserError("HDF5 files need the package h5py", file=path, hint="pip install 'mmsweep[hdf5]'") from None
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise UserError(f"the file cannot be read as HDF5 ({first_line(error)})", file=path) from None


def _lists(file: Any, ids: list[str], path: Path) -> dict[str, list[str]]:
    """Split -> ids."""
    lists = {}
    if "split" in file.attrs:
        for row in file.attrs["split"]:
            if row["source"] == b"imdb_ids":
                lists[row["split"].decode()] = ids[int(row["start"]) : int(row["stop"])]
    elif len(ids) == sum(_ORDER.values()):
        start = 0
        for name, count in _ORDER.items():
            lists[name], start = ids[start : start + count], start + count
    if set(lists) != set(_ORDER) or sum(map(len, lists.values())) != len(ids):
        raise UserError(
            "the HDF5 file does not say which split its rows are of", file=path, key="split",
            found={name: len(rows) for name, rows in lists.items()} or f"{len(ids):,} rows and no attribute split",
            expected="Fuel's table with train, dev and test, or 25,959 rows",
        )  # fmt: skip
    return lists


def _text(numbers: Any, words: Mapping[int, str], path: Path, id: str) -> str:
    try:
        return " ".join(words[int(number)] for number in numbers)
    except KeyError as error:
        raise UserError("a text has a word that the table of words lacks", file=path.with_name(WORDS), key=id,
                        found=error.args[0], expected=f"a number below {len(words):,}")  from None  # fmt: skip


def _words(path: Path, beside: Path) -> dict[int, str]:
    """Number -> word."""
    if not path.is_file():
        raise UserError(
            "the HDF5 file holds texts as numbers of words, and the words are not here", file=beside,
            found=f"no {WORDS} beside it", expected=f"{WORDS} in the same folder", hint=GET_WORDS,
        )  # fmt: skip
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)  # type: ignore[no-untyped-call]
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            header(file)
            table = dict_with(plain_values(file.read()), "ix_to_word")
        words = table["ix_to_word"] if table else {}
        if not words or not all(isinstance(number, int) and isinstance(word, str) for number, word in words.items()):
            raise ValueError("no ix_to_word")
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"the table of words cannot be read ({first_line(error)})", file=path,
                        expected="ix_to_word, a dict from numbers to words", hint=GET_WORDS) from None  # fmt: skip
    return dict(words)
