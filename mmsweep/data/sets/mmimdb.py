"""MM-IMDb: a film's poster and plot, 23 genres, several of them to a film.

Read from any of the layouts in which it circulates (research/methods.md §A.1):

    mmimdb/split.json, mmimdb/dataset/<id>.json, mmimdb/dataset/<id>.jpeg     the distributor's archive, unpacked
    mmimdb.tar.gz or mmimdb.tar                                               the archive itself, read where it lies
    split.json, labels/<id>.json, images/<id>.jpeg                            as Lee et al. arrange it
    multimodal_imdb.hdf5, and metadata.npy for its texts                      `mmimdb_hdf5.py` says what it holds

Counts are those of the distributed split.json; genres are in order of frequency, as in Lee et al.'s preparation.
A .tar.gz is decompressed once in every process that starts (a minute for its 8 GB); a .tar
(`gunzip -k mmimdb.tar.gz`) is listed in a second.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any, Literal

from pydantic import Field

from mmsweep.components import register
from mmsweep.data.cells import shown
from mmsweep.data.dataset import SPLITS, BadRow, DatasetBuilder, DatasetCard, Sample
from mmsweep.data.kinds.text import TextFormat
from mmsweep.data.options import FolderOptions
from mmsweep.data.sets.mmimdb_layouts import ARCHIVES, HDF5, LISTS, SUFFIXES, Film, Found, content_of, find_films
from mmsweep.errors import UserError
from mmsweep.tasks.task import Target

GENRES = (
    "Drama", "Comedy", "Romance", "Thriller", "Crime", "Action", "Adventure", "Horror", "Documentary", "Mystery",
    "Sci-Fi", "Fantasy", "Family", "Biography", "War", "History", "Music", "Animation", "Musical", "Western", "Sport",
    "Short", "Film-Noir",
)  # fmt: skip
"""In order of frequency. IMDb's other genres (News, Reality-TV, Talk-Show, Adult) are none of the task's."""

SPLIT_NAMES = {"train": "train", "dev": "val", "val": "val", "valid": "val", "test": "test"}


class Plot(TextFormat.Reading):
    field: Literal["longest_plot", "first_plot", "outline", "all_plots"] = Field(
        "longest_plot",
        description="Which text of a film is read. longest_plot is that of MMBT and of the HDF5 file; first_plot the "
        "first one; outline the plot outline, or the first plot of a film without one; all_plots makes every plot a "
        "sample, as Lee et al. do. CMPT's paper does not say which it reads.",
    )


@register("mmimdb")
class MMIMDb(DatasetBuilder):
    """Films of split.json in its order; ids stay as they are written there.

    A film whose description or poster is absent or damaged is a bad row; one without a plot has no text. Genres beside
    the 23 are left out and counted; a film may have none of the 23.

    Raises:
        UserError: none of the layouts is here; split.json is malformed; the archive is damaged; a text that the HDF5
            file does not have.
    """

    name = "mmimdb"
    title = "MM-IMDb: film posters and plots, 23 genres"
    modalities = {"image": "image", "text": "text"}
    target = Target("multi_label", GENRES)
    rows = {"train": 15_552, "val": 2_608, "test": 7_799}
    licence = "none stated; posters and plots belong to their owners and are shared for research"
    get = "mmimdb.tar.gz (8 GB) from archive.org/download/mmimdb; it need not be unpacked"
    layout = (
        "split.json (train, dev, test) with dataset/<id>.json and dataset/<id>.jpeg, or labels/ and images/; or "
        f"{' or '.join(ARCHIVES)}; or {HDF5} with metadata.npy"
    )

    class Options(FolderOptions):
        text: Plot = Field(Plot(), description=TextFormat.Reading.__doc__)

    @classmethod
    def card(cls, options: Any = None) -> DatasetCard:
        card = super().card(options)
        return replace(card, rows={}) if options and options.text.field == "all_plots" else card

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.field = options.text.field
        found = None if self.root is None else find_films(self.root, self.field)
        if found is None:
            raise UserError(
                "MM-IMDb is not here", file=self.root, key="data.root", found=self.root and content_of(self.root),
                expected=self.layout, hint=f"Get it: {self.get}",
            )  # fmt: skip
        if lacking := [genre for genre in GENRES if found.genres is not None and genre not in found.genres]:
            raise UserError("the file does not tell of all genres", file=found.place, key="genres.target_names",
                            found=f"no {', '.join(lacking)}", expected="the 23 genres")  # fmt: skip
        self._place = found.place
        self._bad: list[BadRow] = []
        self._others: Counter[str] = Counter()
        self._homes: dict[str, str] = {}
        self._splits: dict[str, list[Sample]] = {name: [] for name in SPLITS}
        for key, ids in _lists(found).items():
            for id in ids:
                self._splits[SPLIT_NAMES[key]] += self._samples(id, key, found)
        self.bad_rows = tuple(self._bad)

    def splits(self) -> dict[str, list[Sample]]:
        return {name: list(rows) for name, rows in self._splits.items()}

    def _samples(self, id: Any, key: str, found: Found) -> list[Sample]:
        """A film's samples; none where it is a bad row."""
        origin, film = f"{LISTS}: {key} {id}", found.films.get(id) if isinstance(id, str) else None
        picture = found.pictures.get(id) if film is not None else None
        problem = film if isinstance(film, str) else None
        if not isinstance(id, str):
            problem = f"expected an id in quotes; found {shown(id)}"
        elif id in self._homes:
            problem = f"the id stands twice, first in {self._homes[id]}"
        elif film is None:
            problem = f"{self._place} has no {id}.json"
        elif picture is None and problem is None:
            problem = f"{self._place} has no {id}{SUFFIXES[0]}"
        if problem is not None:
            self._bad.append(BadRow(origin, problem))
            return []
        assert isinstance(film, Film)
        self._homes[id] = key
        genres = {_plain(genre): genre for genre in film.genres}
        self._others.update(genre for plain, genre in genres.items() if plain not in _BY_NAME)
        target = [genre for genre in GENRES if _plain(genre) in genres]
        texts: list[str | None] = [*film.texts] or [None]
        ids = [f"{id}-{number}" for number in range(len(texts))] if self.field == "all_plots" else [id]
        return [Sample(own, {"image": picture, "text": text}, target, id, origin)
                for own, text in zip(ids, texts, strict=True)]  # fmt: skip

    def provenance(self) -> str:
        bare = len({row.group for rows in self._splits.values() for row in rows if not row.target})
        others = ", ".join(f"{name} {count}" for name, count in sorted(self._others.items()))
        slow = self._place.suffix in (".gz", ".tgz")
        return (
            f"MM-IMDb in {self._place}: {len(self._homes):,} films, split as {LISTS} says; text: {self.field}. "
            f"Genres beside the 23 are left out ({others or 'there are none'}); {bare} films have none of the 23."
            + (" The .gz is decompressed once at every start; unzipped to a .tar it is listed at once." if slow else "")
        )


def _plain(genre: str) -> str:
    """Sci-Fi, SCI-FI and Sci Fi are one genre."""
    return "".join(letter for letter in genre.casefold() if letter.isalnum())


_BY_NAME = {_plain(genre): genre for genre in GENRES}


def _lists(found: Found) -> dict[str, list[Any]]:
    """The lists of split.json. Raises UserError."""
    lists = found.lists
    keys = list(lists) if isinstance(lists, dict) else lists
    homes = [SPLIT_NAMES.get(key) for key in lists] if isinstance(lists, dict) else []
    if sorted(map(str, homes)) != sorted(SPLITS) or not all(isinstance(ids, list) for ids in lists.values()):
        raise UserError(f"{LISTS} does not list the splits", file=found.place, found=keys,
                        expected="train, dev and test, each a list of ids")  # fmt: skip
    assert isinstance(lists, dict)
    return lists
