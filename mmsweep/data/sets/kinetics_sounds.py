"""Kinetics-Sounds: ten-second clips of things that are seen and heard, 31 classes. Declared; its reader comes later.

Counts are CMPT's (14,739 and 2,594: the circulating lists of 14,799 and 2,597 without the clips that have vanished);
there is no validation split, so one is carved from training (research/methods.md §A.5). The circulating lists number
the classes 0 to 30 and do not name them.
"""

from __future__ import annotations

from mmsweep.components import register
from mmsweep.data.dataset import DatasetBuilder
from mmsweep.data.options import CarvedOptions
from mmsweep.tasks.task import Target


@register("kinetics_sounds")
class KineticsSounds(DatasetBuilder):
    Options = CarvedOptions
    name = "kinetics_sounds"
    title = "Kinetics-Sounds: ten-second clips with sound"
    modalities = {"audio": "audio", "video": "video"}
    target = Target("single_label", tuple(f"class-{number:02d}" for number in range(31)))
    rows = {"train": 14_739, "test": 2_594}
    get = "no distributor: clips of Kinetics-400 by the lists my_train.txt and my_test.txt of OGM-GE"
    layout = "lists of <youtube id>_<start>_<end>,10,<label>; a folder of frames and a .wav (or .npy) per clip"
