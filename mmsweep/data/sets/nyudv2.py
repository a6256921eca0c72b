"""NYUDv2: rooms in colour and depth, 40 classes per pixel, as SA-Gate packages it.

Label maps hold 0 where a pixel has no class, and 1 to 40 (research/methods.md §A.6). There is no validation split: a
tenth of the 795 training scenes is carved off by `data.split_seed`. The papers choose their best epoch on the test
scenes instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from mmsweep.components import register
from mmsweep.data.dataset import DatasetBuilder, Sample
from mmsweep.data.kinds.kind import Format
from mmsweep.data.kinds.raster import IMAGENET_MEAN, IMAGENET_STD, RasterFormat
from mmsweep.data.options import CarvedOptions
from mmsweep.data.scene_folders import data_folder, found_text, listed_names, scene_files, scenes
from mmsweep.data.splitting import CARVED_VALIDATION, carve
from mmsweep.tasks.task import IGNORE, Target

_NAMES = """
wall floor cabinet bed chair sofa table door window bookshelf picture counter blinds desk shelves curtain dresser
pillow mirror floor_mat clothes ceiling books refrigerator television paper towel shower_curtain box whiteboard
person night_stand toilet sink lamp bathtub bag otherstructure otherfurniture otherprop
"""
CLASSES = tuple(_NAMES.split())
SIZE = (480, 640)
PUBLISHED = {"train": 795, "test": 654}
FOLDERS = {"hha": "HHA", "raw": "Depth"}


class NYUDv2Options(CarvedOptions):
    depth: Literal["hha", "raw"] = Field(
        "hha",
        description="Which files show depth: hha (HHA/, three channels, as both papers use) or raw (Depth/, one "
        "channel of numbers, normalised by the training scenes' mean and standard deviation).",
    )


def depth_format(depth: str) -> RasterFormat:
    """How depth is read: HHA from 0 to 1, grey shown in all three channels; raw depth by its training scenes."""
    if depth == "hha":
        return RasterFormat(SIZE, 3, "uint8", (0.0,) * 3, (255.0,) * 3, repeat=True)
    return RasterFormat(SIZE, 1, "float32", None, None)


@register("nyudv2")
class NYUDv2(DatasetBuilder):
    """Scenes of a folder that both list files name.

    Raises:
        UserError: a folder or a list file that is absent.
    """

    Options = NYUDv2Options
    name = "nyudv2"
    title = "NYUDv2: rooms in colour and depth, 40 classes per pixel"
    licence = "its authors' terms (Silberman et al. 2012)"
    modalities = {"rgb": "raster", "depth": "raster"}
    # DELIVER's reader takes 255 for 0 as well.
    target = Target("segmentation", CLASSES, ((0, IGNORE), (255, IGNORE), *((c + 1, c) for c in range(len(CLASSES)))))
    rows = {"train": 716, "val": 79, "test": 654}
    formats = {"rgb": RasterFormat(SIZE, 3, "uint8", IMAGENET_MEAN, IMAGENET_STD), "depth": depth_format("hha")}
    get = "the package of SA-Gate (github.com/charlesCXK/RGBD_Semantic_Segmentation_PyTorch)"
    layout = "RGB/<i>.jpg, HHA/<i>.jpg or Depth/<i>.npy, Label/<i>.png, train.txt, test.txt"

    @classmethod
    def formats_of(cls, options: Any) -> Mapping[str, Format]:
        return {**cls.formats, "depth": depth_format(options.depth)} if options else cls.formats

    def __init__(self, options: NYUDv2Options) -> None:
        super().__init__(options)
        self.depth, self.seed = FOLDERS[options.depth], options.split_seed
        self.folder = data_folder(self.root, ("NYUDepthv2", "NYUDepthV2"), "train.txt", self.get)
        folders = {name: scene_files(self.folder / name) for name in ("RGB", self.depth, "Label")}
        found: dict[str, list[Sample]] = {}
        for split in PUBLISHED:
            names, bad = listed_names(self.folder / f"{split}.txt")
            found[split], incomplete = scenes(names, folders, self._sample)
            self.bad_rows += (*bad, *incomplete)
        val, train = carve(found["train"], [s.id for s in found["train"]], [CARVED_VALIDATION], self.seed)
        self._splits = {"train": train, "val": val, "test": found["test"]}

    def _sample(self, name: str, origin: str, files: Mapping[str, Any]) -> Sample:
        return Sample(name, {"rgb": files["RGB"], "depth": files[self.depth]}, files["Label"], None, origin)

    def splits(self) -> dict[str, list[Sample]]:
        """Scenes in the order of the lists."""
        return {name: list(rows) for name, rows in self._splits.items()}

    def provenance(self) -> str:
        return (
            f"NYUDv2 in SA-Gate's package, depth from {self.depth}: {found_text(self._splits)} scenes. Validation is "
            f"{CARVED_VALIDATION:.0%} of the scenes of train.txt, by hash (seed {self.seed})."
        )
