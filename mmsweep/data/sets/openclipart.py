"""Open Clip Art: public-domain drawings with title and description, shipped inside the package.

Two tasks on the same pictures: `single_label` (10 classes: the folder a drawing was filed in) and `multi_label`
(32 labels: keywords and folders). Both modalities are informative and neither is trivial. How the file was made, and
where validation comes from: `scripts/build_openclipart.py`; counts and licence: `mmsweep/assets/README.md`.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmsweep.components import register
from mmsweep.data.dataset import SPLITS, DatasetBuilder, DatasetCard, Sample
from mmsweep.errors import UserError
from mmsweep.tasks.task import Target

ARCHIVE = Path(__file__).parents[2] / "assets" / "openclipart.zip"
RECORDS = "records.jsonl"
FIELDS = {"single_label": "single", "multi_label": "multi"}
CLASSES = {
    "single_label": (
        "animals", "food", "geography", "office", "people", "plants", "recreation", "signs_and_symbols", "tools",
        "transportation",
    ),
    "multi_label": (
        "africa", "america", "animal", "asia", "beverage", "bird", "building", "dessert", "equipment", "europe",
        "festive", "flag", "food", "france", "fruit", "geography", "holiday", "insect", "mammal", "map", "music",
        "office", "people", "plant", "recreation", "roadsign", "sign", "sport", "subnational", "tool", "transport",
        "united_nations_member",
    ),
}  # fmt: skip
EXPECTED = {
    "single_label": {"train": 1092, "val": 211, "test": 386},
    "multi_label": {"train": 1095, "val": 227, "test": 370},
}


@register("openclipart")
class OpenClipart(DatasetBuilder):
    """The shipped drawings; rows without a label of the task's kind are left out.

    Attributes:
        archive: the zip to read.

    Raises:
        UserError: unknown task; from `splits`, an archive that is absent, damaged or of another version.
    """

    name = "openclipart"
    title = "Open Clip Art: drawings with title and description (public domain)"
    modalities = {"image": "image", "text": "text"}
    get = "ships with the package"
    layout = "one archive inside the package; tasks single_label (default) and multi_label"
    archive = ARCHIVE

    @classmethod
    def card(cls, options: Any = None) -> DatasetCard:
        task: Any = (options and options.task) or "single_label"
        if task not in FIELDS:
            raise UserError("unknown task of openclipart", key="data.task", found=task, expected=" or ".join(FIELDS))
        return replace(super().card(options), target=Target(task, CLASSES[task]), rows=EXPECTED[task])

    def splits(self) -> dict[str, list[Sample]]:
        """Samples in the archive's order; pictures as WebP bytes, 96 x 96, RGB."""
        if not self.archive.is_file():
            raise UserError("the shipped pictures are not there", file=self.archive, hint="Install the package again.")
        splits: dict[str, list[Sample]] = {name: [] for name in SPLITS}
        try:
            with zipfile.ZipFile(self.archive) as archive:
                for line, text in enumerate(archive.read(RECORDS).decode().splitlines(), start=1):
                    record = json.loads(text)
                    if record[FIELDS[self.target.task]] and record["split"] in splits:
                        splits[record["split"]].append(self._sample(record, archive.read(record["file"]), line))
        except (zipfile.BadZipFile, KeyError, ValueError) as error:
            raise UserError("the archive of pictures cannot be read", file=self.archive, found=str(error)) from error
        return splits

    def _sample(self, record: dict[str, Any], picture: bytes, line: int) -> Sample:
        return Sample(
            id=record["id"],
            values={"image": picture, "text": record["text"] or None},
            target=record[FIELDS[self.target.task]],
            group=record["family"],
            origin=f"{self.archive.name}/{RECORDS}:{line}",
        )

    def provenance(self) -> str:
        return (
            "Open Clip Art Library 0.18 (Debian openclipart-svg and openclipart-png 1:0.18+dfsg-19), entries dedicated "
            "to the public domain. Text is title and description. Validation is carved from training once, by family; "
            "training rows whose text or near-identical picture stands in validation or test are left out."
        )
