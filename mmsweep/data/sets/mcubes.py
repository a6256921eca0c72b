"""MCubeS: streets in colour, angle and degree of linear polarisation, and near infrared; 20 materials per pixel.

The angle is stored as its sine and cosine and shown as [sin, cos, sin]; the degree and near infrared are one channel,
which CMNeXt shows three times. PNG files have 8 or 16 bits, the same levels. As in the published readers the left 192
columns are dropped, where the near infrared camera saw nothing, and the middle 1024 x 1024 pixels of the remaining 1024
x 1032 are used (research/methods.md §A.7). Those readers show training the four columns on either side as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from mmsweep.components import register
from mmsweep.data.dataset import SPLITS, DatasetBuilder, Sample
from mmsweep.data.kinds.raster import IMAGENET_MEAN, IMAGENET_STD, RasterFormat
from mmsweep.data.options import FolderOptions
from mmsweep.data.raster_files import Stack, Window
from mmsweep.data.scene_folders import data_folder, found_text, listed_names, scene_files, scenes
from mmsweep.errors import UserError
from mmsweep.tasks.task import Target

_NAMES = """
asphalt concrete metal road_marking fabric_leather glass plaster plastic rubber sand gravel ceramic cobblestone
brick grass wood leaf water human sky
"""
CLASSES = tuple(_NAMES.split())
SIZE = (1024, 1024)
DROPPED = 192
"""Columns on the left, of 1224."""
LEFT = DROPPED + (1224 - DROPPED - SIZE[1]) // 2
LISTS = ("list_folder", "list_folder1")
COLOUR, SINE, COSINE, DEGREE, INFRARED, LABELS = (
    "polL_color", "polL_aolp_sin", "polL_aolp_cos", "polL_dolp", "NIR_warped", "GT",
)  # fmt: skip


def _sixteen_bits(levels: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(257 * level for level in levels)


class MCubeSOptions(FolderOptions):
    lists: str | None = Field(
        None, description=f"Folder of the list files; null takes the first of {', '.join(LISTS)} that there is."
    )


@register("mcubes")
class MCubeS(DatasetBuilder):
    """Scenes that the lists of training, validation and test name.

    Raises:
        UserError: a folder or a list file that is absent.
    """

    Options = MCubeSOptions
    name = "mcubes"
    title = "MCubeS: streets in colour, polarisation and near infrared, 20 materials per pixel"
    licence = "its authors' terms (Liang et al. 2022)"
    modalities = dict.fromkeys(("rgb", "aolp", "dolp", "nir"), "raster")
    target = Target("segmentation", CLASSES)
    rows = {"train": 302, "val": 96, "test": 102}
    formats = {
        "rgb": RasterFormat(SIZE, 3, "uint16", _sixteen_bits(IMAGENET_MEAN), _sixteen_bits(IMAGENET_STD),
                            full_scale=True),
        "aolp": RasterFormat(SIZE, 3, "float32", (0.0,) * 3, (1.0,) * 3),
        "dolp": RasterFormat(SIZE, 1, "float32", (0.0,), (1.0,)),
        "nir": RasterFormat(SIZE, 1, "uint16", (0.0,), (65535.0,), full_scale=True),
    }  # fmt: skip
    get = "github.com/kyotovision-public/multimodal-material-segmentation"
    layout = (
        f"multimodal_dataset/{{{COLOUR},{INFRARED},{LABELS}}}/<name>.png, {{{SINE},{COSINE},{DEGREE}}}/<name>.npy, "
        f"{' or '.join(LISTS)}/{{train,val,test}}.txt"
    )

    def __init__(self, options: MCubeSOptions) -> None:
        super().__init__(options)
        self.folder = data_folder(self.root, ("multimodal_dataset",), COLOUR, self.get)
        self.lists = self._lists(options.lists)
        folders = {name: scene_files(self.folder / name) for name in (COLOUR, SINE, COSINE, DEGREE, INFRARED, LABELS)}
        self._splits: dict[str, list[Sample]] = {}
        for split in SPLITS:
            names, bad = listed_names(self.folder / self.lists / f"{split}.txt")
            self._splits[split], incomplete = scenes(names, folders, self._sample)
            self.bad_rows += (*bad, *incomplete)

    def _lists(self, asked: str | None) -> str:
        names = LISTS if asked is None else (asked,)
        for name in names:
            if (self.folder / name).is_dir():
                return name
        raise UserError("there are no lists of the scenes", file=self.folder, key="data.lists", found=asked,
                        expected=f"a folder {' or '.join(names)} with train.txt, val.txt and test.txt")  # fmt: skip

    def _sample(self, name: str, origin: str, files: Mapping[str, Path]) -> Sample:
        middle = {folder: Window(path, 0, LEFT, *SIZE) for folder, path in files.items()}
        values: dict[str, Any] = {
            "rgb": middle[COLOUR],
            "aolp": Stack((middle[SINE], middle[COSINE], middle[SINE])),
            "dolp": middle[DEGREE],
            "nir": middle[INFRARED],
        }
        return Sample(name, values, middle[LABELS], None, origin)

    def splits(self) -> dict[str, list[Sample]]:
        """Scenes in the order of the lists."""
        return {name: list(rows) for name, rows in self._splits.items()}

    def provenance(self) -> str:
        return f"MCubeS: {found_text(self._splits)} scenes, by the lists in {self.lists}, columns from {LEFT} on."
