"""AVE, Audio-Visual Events: ten-second videos of YouTube, 28 classes of events that are seen and heard.

A row is an event: `category&video&quality&start&end`, in seconds of the video. 45 videos hold two events of different
categories, some of them in two splits. The published lists trainSet, valSet and testSet have 3,339, 402 and 402 rows
and together are Annotations.txt, which some copies begin with a header (research/methods.md §A.4).

A clip is its event's part of the video. One row states an event without duration: its whole video is the clip.
"""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import Field

from mmsweep.components import register
from mmsweep.data.clip_files import ABSENT, ClipFiles, ClipOptions
from mmsweep.data.dataset import BadRow, DatasetBuilder, Sample
from mmsweep.data.files import Segment
from mmsweep.data.lists import Line, existing_folder, find_list, read_list, read_samples
from mmsweep.data.splitting import carve_stratified
from mmsweep.errors import UserError
from mmsweep.tasks.task import Target

LISTS = {"train": "trainSet.txt", "val": "valSet.txt", "test": "testSet.txt"}
ANNOTATIONS = "Annotations.txt"
CLASSES = (
    "Accordion", "Acoustic guitar", "Baby cry, infant cry", "Banjo", "Bark", "Bus", "Cat", "Chainsaw", "Church bell",
    "Clock", "Female speech, woman speaking", "Fixed-wing aircraft, airplane", "Flute", "Frying (food)", "Goat",
    "Helicopter", "Horse", "Male speech, man speaking", "Mandolin", "Motorcycle", "Race car, auto racing",
    "Rodents, rats, mice", "Shofar", "Toilet flush", "Train horn", "Truck", "Ukulele", "Violin, fiddle",
)  # fmt: skip
SECONDS = 10.0
SHARES = {"test": 402 / 4143, "val": 402 / 4143}

# Read from the right: category names hold blanks and commas, which in some copies separate the columns too.
_ROW = re.compile(
    r"(?P<category>.+?)[&,\s]+(?P<video>[\w-]{11})[&,\s]+(?P<quality>[A-Za-z]+)"
    r"[&,\s]+(?P<start>\d+(?:\.\d+)?)[&,\s]+(?P<end>\d+(?:\.\d+)?)"
)
_TITLES = re.compile(r"category\W*video\W*id\W*quality\W*start\W*time\W*end\W*time", re.IGNORECASE)
_HEADER = "titles of the columns"


@register("ave")
class AVE(DatasetBuilder):
    """The events whose files are in `data.root`.

    Raises:
        UserError: from `splits`, absent lists, or a folder without any of their videos.
    """

    name = "ave"
    title = "AVE: audio-visual events in ten-second videos, 28 classes"
    modalities = {"audio": "audio", "video": "video"}
    target = Target("single_label", CLASSES)
    rows = {"train": 3_339, "val": 402, "test": 402}
    licence = "not stated by its authors; the videos: their authors', under YouTube's terms"
    get = "AVE_Dataset.zip, linked from github.com/YapengTian/AVE-ECCV18"
    layout = (
        "trainSet.txt, valSet.txt and testSet.txt (or Annotations.txt alone) with lines "
        "<category>&<video>&<quality>&<start>&<end>, and anywhere below the folder <video>.mp4; or a folder <video> of "
        "frames and <video>.wav or .npy"
    )

    class Options(ClipOptions):
        clip: Literal["event", "video"] = Field(
            "event", description="What a clip shows: event is the annotated part of the video, video all ten seconds."
        )
        extracted: Literal["event", "video"] = Field(
            "event",
            description="What extracted frames and sounds hold. event: the annotated part, as in PMR's folders with "
            "names that end in SE. video: all ten seconds; the event is then cut out. Video files are always whole.",
        )

    def splits(self) -> dict[str, list[Sample]]:
        return {name: list(rows) for name, rows in self._read.items()}

    @cached_property
    def _read(self) -> dict[str, list[Sample]]:
        root = existing_folder(self.root, self.get)
        files = ClipFiles(root)
        lists = {split: read_list(path) for split, path in self._lists(root).items()}
        splits, bad = read_samples(lists, lambda line: self._sample(line, files), root)
        self.bad_rows = tuple(row for row in bad if row.reason != _HEADER)
        if "all" not in splits:
            return splits
        rows, shares = splits["all"], list(SHARES.values())
        test, val, train = carve_stratified(rows, [str(r.group) for r in rows], shares, self.options.split_seed)
        return {"train": train, "val": val, "test": test}

    def _lists(self, root: Path) -> dict[str, Path]:
        """The published lists; without all three of them, the annotations of all videos."""
        found = {split: find_list(root, [name]) for split, name in LISTS.items()}
        lists = {split: path for split, path in found.items() if path is not None}
        annotations = find_list(root, [ANNOTATIONS])
        self._published = len(lists) == len(LISTS)
        if self._published:
            return lists
        if lists or annotations is None:
            absent = ", ".join(name for split, name in LISTS.items() if split not in lists)
            raise UserError("lists of AVE are not here", file=root, key="data.root", expected=absent,
                            hint=f"Get them: {self.get}")  # fmt: skip
        return {"all": annotations}

    def _sample(self, line: Line, files: ClipFiles) -> Sample | BadRow:
        if _TITLES.fullmatch(line.text):
            return BadRow(line.origin, _HEADER)
        row = _ROW.fullmatch(line.text)
        if row is None or row["category"] not in CLASSES:
            what = "<category>&<video>&<quality>&<start>&<end>" if row is None else "one of AVE's 28 categories"
            return BadRow(line.origin, f"expected {what}; found {line.text!r}")
        video, start, end = row["video"], float(row["start"]), float(row["end"])
        clip = files.find(video)
        if clip.problem:
            return BadRow(line.origin, f"the video {video} {clip.problem}")
        shown, extracted = self.options.clip, self.options.extracted
        values: dict[str, object] = {}
        for modality, path in clip.values().items():
            whole = path == clip.video or extracted == "video"
            if path is not None and shown == "video" and not whole:
                raise UserError("extracted events cannot show whole videos", file=path, key="data.extracted",
                                found=extracted, expected="video, or data.clip: event")  # fmt: skip
            cut = path is not None and shown == "event" and whole and start < end
            values[modality] = Segment(path, start, end, SECONDS) if cut and path else path
        id = f"{video}:{row['start']}-{row['end']}:{row['category']}"
        return Sample(id, values, row["category"], group=video, origin=line.origin)

    def provenance(self) -> str:
        splits = self._read
        lost = sum(row.reason.endswith(ABSENT) for row in self.bad_rows)
        split = "the published lists" if self._published else f"carved here by video (seed {self.options.split_seed})"
        shown = "the annotated part of each video" if self.options.clip == "event" else "whole videos"
        return (
            f"AVE in {self.root}: {sum(map(len, splits.values())):,} events, {shown}; {lost:,} have no file. Splits "
            f"are {split}. Extracted frames and sounds are taken to hold the {self.options.extracted}."
        )
