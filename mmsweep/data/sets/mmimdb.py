"""MM-IMDb: a film's poster and plot, 23 genres. Declared; its reader comes later.

Counts are those of the distributed split.json; the order of genres is by frequency, as in Lee et al.'s preparation
(research/methods.md §A.1).
"""

from __future__ import annotations

from pydantic import Field

from mmsweep.components import register
from mmsweep.data.dataset import DatasetBuilder
from mmsweep.data.kinds.text import TextFormat
from mmsweep.data.options import FolderOptions
from mmsweep.tasks.task import Target

GENRES = (
    "Drama", "Comedy", "Romance", "Thriller", "Crime", "Action", "Adventure", "Horror", "Documentary", "Mystery",
    "Sci-Fi", "Music", "Fantasy", "Family", "Biography", "War", "History", "Animation", "Musical", "Western", "Sport",
    "Short", "Film-Noir",
)  # fmt: skip


class Plot(TextFormat.Reading):
    field: str | None = Field(None, description="Which text of a film is read, for example longest_plot.")


@register("mmimdb")
class MMIMDb(DatasetBuilder):
    name = "mmimdb"
    title = "MM-IMDb: film posters and plots"
    modalities = {"image": "image", "text": "text"}
    target = Target("multi_label", GENRES)
    rows = {"train": 15_552, "val": 2_608, "test": 7_799}
    get = "mmimdb.tar.gz (8 GB) from archive.org"
    layout = "split.json (train, dev, test), dataset/<id>.json (plot, genres), dataset/<id>.jpeg"

    class Options(FolderOptions):
        text: Plot = Field(Plot(), description=TextFormat.Reading.__doc__)
