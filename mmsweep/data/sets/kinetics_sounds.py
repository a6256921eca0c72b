"""Kinetics-Sounds: ten-second clips of things that are seen and heard, 31 classes.

Nobody distributes the set. OGM-GE's lists circulate: my_train.txt (14,799 clips) and my_test.txt (2,597). CMPT trained
on 14,739 and tested on 2,594 of them, since clips vanish from YouTube (research/methods.md §A.5). The lists number the
classes 0 to 30 and do not name them. They have no validation part, so one is carved from training.

Ids are YouTube's eleven characters, which may hold `_` and begin with `-`, then the second that the clip starts at and
sometimes the one that it ends at: `--4-0ihtnBU_000058_000068`, `-3Mwkq-7TV4_2`. A clip's files may be named in either
way. A file named by YouTube's id alone is taken for the whole video, and the clip's ten seconds are read from it.
"""

from __future__ import annotations

import re
from functools import cached_property

from mmsweep.components import register
from mmsweep.data.clip_files import ABSENT, ClipFiles, ClipOptions
from mmsweep.data.dataset import BadRow, DatasetBuilder, Sample
from mmsweep.data.files import Segment
from mmsweep.data.lists import Line, existing_folder, find_list, read_list, read_samples
from mmsweep.data.splitting import carve_stratified
from mmsweep.errors import UserError
from mmsweep.tasks.task import Target

LISTS = {"train": ("my_train.txt", "train.txt", "train.csv"), "test": ("my_test.txt", "test.txt", "test.csv")}
CLASSES = tuple(f"class-{number:02d}" for number in range(31))
SECONDS = 10
VAL_SHARE = 0.1

_ID = re.compile(r"(?P<video>[\w-]{11})(?:_(?P<start>\d{1,6})(?:_(?P<end>\d{1,6}))?)?")
_ROW = re.compile(r"(?P<id>[^\s,&]+)(?:[\s,&]+(?P<seconds>\d+))?[\s,&]+(?P<label>\d+)")


@register("kinetics_sounds")
class KineticsSounds(DatasetBuilder):
    """The clips of the two lists whose files are in `data.root`.

    Raises:
        UserError: from `splits`, a list that is absent, or a folder without any of its clips.
    """

    name = "kinetics_sounds"
    title = "Kinetics-Sounds: ten-second clips with sound, 31 classes"
    modalities = {"audio": "audio", "video": "video"}
    target = Target("single_label", CLASSES)
    rows = {"train": 14_739, "test": 2_594}
    licence = "Kinetics' annotations: CC BY 4.0; the videos: their authors', under YouTube's terms"
    get = (
        "no distributor: clips of Kinetics-400 by the lists my_train.txt and my_test.txt of OGM-GE (data/KineticSound)"
    )
    layout = (
        "my_train.txt and my_test.txt with lines <id>,10,<label> (or blanks instead of commas), and anywhere below the "
        "folder <id>.mp4; or a folder <id> of frames and <id>.wav or <id>.npy (log-mel [1024, 128], not normalised)"
    )

    Options = ClipOptions

    def splits(self) -> dict[str, list[Sample]]:
        return {name: list(rows) for name, rows in self._read.items()}

    @cached_property
    def _read(self) -> dict[str, list[Sample]]:
        root = existing_folder(self.root, self.get)
        lists = {}
        for split, names in LISTS.items():
            if (path := find_list(root, names)) is None:
                raise UserError("a list of Kinetics-Sounds is not here", file=root, key="data.root",
                                expected=" or ".join(names), hint=f"Get it: {self.get}")  # fmt: skip
            lists[split] = read_list(path)
        files = ClipFiles(root)
        splits, self.bad_rows = read_samples(lists, lambda line: self._sample(line, files), root)
        groups = [str(sample.group) for sample in splits["train"]]
        val, train = carve_stratified(splits["train"], groups, [VAL_SHARE], self.options.split_seed)
        return {"train": train, "val": val, "test": splits["test"]}

    def _sample(self, line: Line, files: ClipFiles) -> Sample | BadRow:
        row = _ROW.fullmatch(line.text)
        if row is None or int(row["label"]) >= len(CLASSES):
            return BadRow(line.origin, f"expected <id>,{SECONDS},<label 0 to 30>; found {line.text!r}")
        id, parts = row["id"], _ID.fullmatch(row["id"])
        names, video = [id], parts["video"] if parts else id
        start = int(parts["start"]) if parts and parts["start"] else None
        if start is not None:
            end = int(parts["end"]) if parts and parts["end"] else start + SECONDS
            names += [f"{video}_{start:06d}_{end:06d}", f"{video}_{start}_{end}", f"{video}_{start}"]
        clip = files.find(*names)
        values: dict[str, object] = dict(clip.values())
        if clip.problem == ABSENT and start is not None and (whole := files.find(video)).video:
            clip, values = whole, dict.fromkeys(self.modalities, Segment(whole.video, start, end))
        if clip.problem:
            return BadRow(line.origin, f"the clip {id} {clip.problem}")
        return Sample(id, values, CLASSES[int(row["label"])], group=video, origin=line.origin)

    def provenance(self) -> str:
        splits = self._read
        lost = sum(row.reason.endswith(ABSENT) for row in self.bad_rows)
        return (
            f"Kinetics-Sounds in {self.root}: {sum(map(len, splits.values())):,} clips of the lists; {lost:,} have no "
            f"file. {VAL_SHARE:.0%} of the training list is validation (seed {self.options.split_seed}, by class)."
        )
