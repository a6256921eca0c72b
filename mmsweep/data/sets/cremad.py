"""CREMA-D: 91 actors speak twelve sentences in six emotions; 7,442 short videos with sound.

Clips are named `<actor>_<sentence>_<emotion>_<level>`, as 1001_DFA_ANG_XX. Two train and test lists are published, both
of 6,698 and 744 clips: OGM-GE's train.csv and test.csv (lines `1088_IOM_NEU_XX,NEU`) and MLA's my_train_cre.txt and
my_test_cre.txt (`1085_IWL_SAD_XX.flv Sad`). They are different draws, and in both an actor speaks in training and in
test. Neither has a validation part, so one is carved from training (research/methods.md §4, §A.3). The split `actors`,
which is made here, keeps each actor in one part.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from mmsweep.components import register
from mmsweep.data.clip_files import ABSENT, ClipFiles
from mmsweep.data.dataset import BadRow, DatasetBuilder, DatasetCard, Sample
from mmsweep.data.lists import Line, existing_folder, find_list, read_list, read_samples
from mmsweep.data.options import CarvedOptions
from mmsweep.data.splitting import carve, carve_stratified
from mmsweep.errors import UserError
from mmsweep.tasks.task import Target

LISTS = {
    "ogm": {"train": "train.csv", "test": "test.csv"},
    "mla": {"train": "my_train_cre.txt", "test": "my_test_cre.txt"},
}
CLASSES = {"ANG": "anger", "DIS": "disgust", "FEA": "fear", "HAP": "happiness", "NEU": "neutral", "SAD": "sadness"}
VAL_SHARE = 0.1
ACTOR_SHARES = {"test": 0.1, "val": 0.1}

_ROW = re.compile(r"(?P<clip>\d{4}_[A-Z]{3}_(?P<code>[A-Z]{3})_[A-Z]{1,2})(?:\.\w+)?(?:[,\s]+(?P<label>\w+))?")


@register("cremad")
class CremaD(DatasetBuilder):
    """The clips in `data.root`: the repository's AudioWAV and VideoFlash, or sounds and folders of frames made of them.

    Raises:
        UserError: from `splits`, lists that are absent or of two kinds, a folder without clips, or one that holds
            git-LFS pointers in place of the clips.
    """

    name = "cremad"
    title = "CREMA-D: actors speaking in six emotions, video and sound"
    modalities = {"audio": "audio", "video": "video"}
    target = Target("single_label", tuple(CLASSES.values()))
    rows = {"train": 6_698, "test": 744}
    licence = "Open Database License (ODbL) 1.0; the contents: Database Contents License 1.0"
    get = (
        "git clone github.com/CheyneyComputerScience/CREMA-D with git-LFS installed, or its GitLab mirror (a zip "
        "download holds only pointers); the lists are in OGM-GE's data/CREMAD and MLA's data"
    )
    layout = (
        "AudioWAV/<clip>.wav and VideoFlash/<clip>.flv (or a folder <clip> of frames), and train.csv and test.csv or "
        "my_train_cre.txt and my_test_cre.txt"
    )

    class Options(CarvedOptions):
        split: Literal["ogm", "mla", "actors"] | None = Field(
            None,
            description="ogm and mla are the two published pairs of lists, which have the same actors in training and "
            "test. actors is carved here and keeps each actor in one split. null takes the pair that is in the folder.",
        )

    @classmethod
    def card(cls, options: Any = None) -> DatasetCard:
        by_actor = options is not None and options.split == "actors"
        return replace(super().card(options), rows={} if by_actor else cls.rows)

    def splits(self) -> dict[str, list[Sample]]:
        return {name: list(rows) for name, rows in self._read.items()}

    @cached_property
    def _read(self) -> dict[str, list[Sample]]:
        root, seed = existing_folder(self.root, self.get), self.options.split_seed
        files = ClipFiles(root)
        if self.options.split == "actors":
            clips = [Line(name, name) for name in files.names() if _ROW.fullmatch(name)]
            read, self.bad_rows = read_samples({"all": clips}, lambda line: self._sample(line, files), root)
            rows = [replace(sample, group=sample.id[:4]) for sample in read["all"]]
            test, val, train = carve(rows, [str(row.group) for row in rows], list(ACTOR_SHARES.values()), seed)
            return {"train": train, "val": val, "test": test}
        self._pair, paths = self._lists(root)
        lists = {split: read_list(path) for split, path in paths.items()}
        splits, self.bad_rows = read_samples(lists, lambda line: self._sample(line, files), root)
        val, train = carve_stratified(splits["train"], [row.id for row in splits["train"]], [VAL_SHARE], seed)
        return {"train": train, "val": val, "test": splits["test"]}

    def _lists(self, root: Path) -> tuple[str, dict[str, Path]]:
        wanted = LISTS if self.options.split is None else {self.options.split: LISTS[self.options.split]}
        pairs = {}
        for name, files in wanted.items():
            found = {split: path for split, file in files.items() if (path := find_list(root, [file])) is not None}
            if len(found) == len(files):
                pairs[name] = found
        if len(pairs) > 1:
            raise UserError("the folder holds both published splits, which differ", file=root, key="data.split",
                            found=None, expected=" or ".join(pairs))  # fmt: skip
        if not pairs:
            expected = ", or ".join(" and ".join(files.values()) for files in wanted.values())
            raise UserError("the published lists are not here", file=root, key="data.root", expected=expected,
                            hint=f"data.split: actors needs none. {self.get}")  # fmt: skip
        return next(iter(pairs.items()))

    def _sample(self, line: Line, files: ClipFiles) -> Sample | BadRow:
        row = _ROW.fullmatch(line.text)
        if row is None or row["code"] not in CLASSES:
            return BadRow(
                line.origin, f"expected <actor>_<sentence>_<emotion>_<level> and emotion; found {line.text!r}"
            )
        if row["label"] and row["label"][:3].upper() != row["code"]:
            return BadRow(line.origin, f"the clip {row['clip']} is listed as {row['label']}")
        clip = files.find(row["clip"])
        if clip.problem:
            return BadRow(line.origin, f"the clip {row['clip']} {clip.problem}")
        return Sample(row["clip"], clip.values(), CLASSES[row["code"]], origin=line.origin)

    def provenance(self) -> str:
        splits = self._read
        lost = sum(row.reason.endswith(ABSENT) for row in self.bad_rows)
        how = "Splits are carved here, and no actor is in two of them"
        if self.options.split != "actors":
            lists = f"{self._pair.upper()}'s lists, which share actors"
            how = f"Training and test are {lists}; {VAL_SHARE:.0%} of training is validation"
        return (
            f"CREMA-D in {self.root}: {sum(map(len, splits.values())):,} clips; {lost:,} have no file. {how} (seed "
            f"{self.options.split_seed})."
        )
