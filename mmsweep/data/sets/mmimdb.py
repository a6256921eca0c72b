"""MM-IMDb: a film's poster and plot, 23 genres. Declared; its reader comes later.

Counts are those of the distributed split.json; the order of genres is by frequency, as in Lee et al.'s preparation
(research/methods.md §A.1).
"""

from __future__ import annotations

from mmsweep.data.dataset import DatasetBuilder
from mmsweep.data.options import DatasetOptions
from mmsweep.data.registry import DatasetCard, not_read_yet, register_dataset
from mmsweep.tasks.task import Target

GENRES = (
    "Drama", "Comedy", "Romance", "Thriller", "Crime", "Action", "Adventure", "Horror", "Documentary", "Mystery",
    "Sci-Fi", "Music", "Fantasy", "Family", "Biography", "War", "History", "Animation", "Musical", "Western", "Sport",
    "Short", "Film-Noir",
)  # fmt: skip

CARD = DatasetCard(
    name="mmimdb",
    title="MM-IMDb: film posters and plots",
    modalities={"image": "image", "text": "text"},
    target=Target("multi_label", GENRES),
    rows={"train": 15_552, "val": 2_608, "test": 7_799},
    get="mmimdb.tar.gz (8 GB) from archive.org",
    layout="split.json (train, dev, test), dataset/<id>.json (plot, genres), dataset/<id>.jpeg",
    reader=False,
    reads=("data.root", "data.text.field"),
)


@register_dataset("mmimdb", card=lambda options: CARD)
def mmimdb(options: DatasetOptions) -> DatasetBuilder:
    raise not_read_yet(CARD)
