"""MCubeS: streets in colour, angle and degree of polarisation, near infrared; 20 materials a pixel. Declared.

Counts and layout: research/methods.md §A.7 (the left 192 columns are dropped; evaluation sees the middle 1024 x 1024).
"""

from __future__ import annotations

from mmsweep.components import register
from mmsweep.data.dataset import DatasetBuilder
from mmsweep.data.kinds.raster import RasterFormat
from mmsweep.data.options import CarvedOptions
from mmsweep.tasks.task import Target

_NAMES = """
asphalt concrete metal road_marking fabric_leather glass plaster plastic rubber sand gravel ceramic cobblestone
brick grass wood leaf water human sky
"""
CLASSES = tuple(_NAMES.split())
SIZE = (1024, 1024)


@register("mcubes")
class MCubeS(DatasetBuilder):
    Options = CarvedOptions
    name = "mcubes"
    title = "MCubeS: streets in colour, polarisation and near infrared, 20 materials per pixel"
    modalities = dict.fromkeys(("rgb", "aolp", "dolp", "nir"), "raster")
    target = Target("segmentation", CLASSES)
    rows = {"train": 302, "val": 96, "test": 102}
    formats = {"rgb": RasterFormat(SIZE), "aolp": RasterFormat(SIZE), "dolp": RasterFormat(SIZE),
               "nir": RasterFormat(SIZE)}  # fmt: skip
    get = "kyotovision-public/multimodal-material-segmentation"
    layout = "multimodal_dataset/{polL_color,polL_aolp_sin,polL_aolp_cos,polL_dolp,NIR_warped,GT}, list_folder/*.txt"
