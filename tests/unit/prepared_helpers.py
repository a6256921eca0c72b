"""A small dataset of pictures and texts, and how it is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmsweep.data.dataset import DatasetBuilder, Sample
from mmsweep.data.kinds.image import ImageFormat
from mmsweep.data.kinds.kind import Format
from mmsweep.data.kinds.text import TextFormat
from mmsweep.data.prepared import PreparedData
from mmsweep.tasks.task import Target
from tests.data.files import write_picture


class Rows(DatasetBuilder):
    """Splits that a test hands in."""

    name = "rows"

    def __init__(self, modalities: Mapping[str, str], splits: dict[str, list[Sample]]) -> None:
        self.modalities, self._splits = modalities, splits
        self.target = Target("single_label", ("red", "green", "blue"))

    def splits(self) -> dict[str, list[Sample]]:
        return self._splits

    def provenance(self) -> str:
        return "made by a test"


def pictures(folder: Path, rows: int = 6) -> Rows:
    """Captioned pictures; row 1 lacks its picture, row 2 its caption."""
    splits: dict[str, list[Sample]] = {}
    for name in ("train", "val", "test"):
        samples = []
        for i in range(rows):
            path = write_picture(folder / name / f"{i}.png", ("red", "green", "blue")[i % 3], seed=i)
            text = "A red disc, on paper" if i % 2 else "green square"
            values = {"image": None if i == 1 else path, "text": None if i == 2 else text}
            samples.append(Sample(f"{name}-{i}", values, ("red", "green", "blue")[i % 3], None, f"{name}.csv:{i + 2}"))
        splits[name] = samples
    return Rows({"image": "image", "text": "text"}, splits)


def formats_of(tokenizer: str, **image: Any) -> dict[str, Format]:
    return {"image": ImageFormat(8, **image), "text": TextFormat(tokenizer, 8)}


def image_of(data: PreparedData, **options: Any) -> torch.Tensor:
    split = data.splits["train"]
    image = split.batch(np.arange(len(split)), **options).inputs["image"]
    assert isinstance(image, torch.Tensor)
    return image
