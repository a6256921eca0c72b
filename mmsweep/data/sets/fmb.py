"""FMB: roads in colour and thermal infrared, 14 classes per pixel.

Label maps hold 0 for the background, which counts as no class, and 1 to 14. Copies with other values circulate: they
end published training code with "shape [14, 14] is invalid", and are refused here with file, values and range
(research/methods.md §A.8). There is no validation split: a tenth of the 1,220 training scenes is carved off by
`data.split_seed`. Published code chooses its best epoch on the test scenes instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmsweep.components import register
from mmsweep.data.dataset import BadRow, DatasetBuilder, Sample
from mmsweep.data.files import natural_key
from mmsweep.data.kinds.raster import IMAGENET_MEAN, IMAGENET_STD, RasterFormat
from mmsweep.data.options import CarvedOptions
from mmsweep.data.scene_folders import data_folder, found_text, scene_files, scenes
from mmsweep.data.splitting import CARVED_VALIDATION, carve
from mmsweep.errors import UserError
from mmsweep.tasks.task import IGNORE, Target

_NAMES = """
road sidewalk building traffic_lamp traffic_sign vegetation sky person car truck bus motorcycle bicycle pole
"""
CLASSES = tuple(_NAMES.split())
SIZE = (600, 800)
PUBLISHED = {"train": 1220, "test": 280}
FOLDERS = ("Visible", "Infrared", "Label")


@register("fmb")
class FMB(DatasetBuilder):
    """Scenes of the folders train and test: every name that one of their folders holds.

    Raises:
        UserError: a folder that is absent or empty.
    """

    Options = CarvedOptions
    name = "fmb"
    title = "FMB: roads in colour and thermal infrared, 14 classes per pixel"
    licence = "its authors' terms (Liu et al. 2023)"
    modalities = {"rgb": "raster", "thermal": "raster"}
    target = Target("segmentation", CLASSES, ((0, IGNORE), (255, IGNORE), *((c + 1, c) for c in range(len(CLASSES)))))
    rows = {"train": 1098, "val": 122, "test": 280}
    formats = {
        "rgb": RasterFormat(SIZE, 3, "uint8", IMAGENET_MEAN, IMAGENET_STD),
        "thermal": RasterFormat(SIZE, 3, "uint8", (0.0,) * 3, (255.0,) * 3, repeat=True),
    }
    get = "the page of SegMiF (github.com/JinyuanLiu-CV/SegMiF)"
    layout = "{train,test}/{Visible,Infrared,Label}/<name>.png"

    def __init__(self, options: CarvedOptions) -> None:
        super().__init__(options)
        self.seed = options.split_seed
        self.folder = data_folder(self.root, ("FMB",), "train", self.get)
        found: dict[str, list[Sample]] = {}
        for split in PUBLISHED:
            folders = {f"{split}/{name}": scene_files(self.folder / split / name) for name in FOLDERS}
            names = sorted({name for files in folders.values() for name in files}, key=natural_key)
            if not names:
                raise UserError("the folder holds no scene", file=self.folder / split, expected=self.layout)
            listed = [(name, f"{split}/{name}") for name in names]
            found[split], bad = scenes(listed, folders, self._sample)
            self.bad_rows: tuple[BadRow, ...] = (*self.bad_rows, *bad)
        val, train = carve(found["train"], [s.id for s in found["train"]], [CARVED_VALIDATION], self.seed)
        self._splits = {"train": train, "val": val, "test": found["test"]}

    def _sample(self, name: str, origin: str, files: Mapping[str, Any]) -> Sample:
        visible, infrared, label = files.values()
        return Sample(origin, {"rgb": visible, "thermal": infrared}, label, None, origin)

    def splits(self) -> dict[str, list[Sample]]:
        """Scenes in the order of their names."""
        return {name: list(rows) for name, rows in self._splits.items()}

    def provenance(self) -> str:
        return (
            f"FMB: {found_text(self._splits)} scenes. Validation is {CARVED_VALIDATION:.0%} of the scenes in train, by "
            f"hash (seed {self.seed})."
        )
