"""NYUDv2: rooms in colour and depth (as HHA), 40 classes a pixel. Declared; its reader comes later.

Counts, size and label rule: research/methods.md §A.6 (0 is "no class", 1 to 40 the classes).
"""

from __future__ import annotations

from mmsweep.components import register
from mmsweep.data.dataset import DatasetBuilder
from mmsweep.data.kinds.raster import RasterFormat
from mmsweep.data.options import CarvedOptions
from mmsweep.tasks.task import IGNORE, Target

_NAMES = """
wall floor cabinet bed chair sofa table door window bookshelf picture counter blinds desk shelves curtain dresser
pillow mirror floor_mat clothes ceiling books refrigerator television paper towel shower_curtain box whiteboard
person night_stand toilet sink lamp bathtub bag otherstructure otherfurniture otherprop
"""
CLASSES = tuple(_NAMES.split())
SIZE = (480, 640)


@register("nyudv2")
class NYUDv2(DatasetBuilder):
    Options = CarvedOptions
    name = "nyudv2"
    title = "NYUDv2: rooms in colour and depth, 40 classes per pixel"
    modalities = {"rgb": "raster", "depth": "raster"}
    target = Target("segmentation", CLASSES, ((0, IGNORE), *((c + 1, c) for c in range(len(CLASSES)))))
    rows = {"train": 795, "test": 654}
    formats = {"rgb": RasterFormat(SIZE), "depth": RasterFormat(SIZE)}
    get = "the package of SA-Gate (charlesCXK/RGBD_Semantic_Segmentation_PyTorch)"
    layout = "RGB/<i>.jpg, HHA/<i>.jpg, Label/<i>.png, train.txt, test.txt"
