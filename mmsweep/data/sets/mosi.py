"""CMU-MOSI: clips of opinions as sequences of words, sounds and faces, with a sentiment from -3 to 3.

The features are those of MMSA's pickles (unaligned_50.pkl, aligned_50.pkl: BERT 768, audio 5, vision 20) or of MulT's
(mosi_data_noalign.pkl, mosi_data.pkl: GloVe; other widths), as research/methods.md §5.3 and §A.9 describe them. A
pickle is parsed and never unpickled (`array_pickle.py`).

-inf and NaN in audio become 0, as in MMSA. Anything else that is not finite makes its row a bad one. A sequence ends at
its length: `audio_lengths` and `vision_lengths` of the unaligned file, the mask of `text_bert` for the words and for
whatever is aligned with them. Where a file states no length, or steps beyond it are not zero, all steps are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from mmsweep.components import register
from mmsweep.data.dataset import BadRow, DatasetBuilder, Sample
from mmsweep.data.kinds.kind import Format
from mmsweep.data.kinds.sequence import SequenceFormat
from mmsweep.data.options import FolderOptions
from mmsweep.data.sets.mosi_pickle import (
    SPLIT_NAMES,
    Features,
    column,
    features_of,
    id_of,
    labels_of,
    lengths_of,
    splits_of,
)
from mmsweep.errors import UserError
from mmsweep.tasks.task import Target

FOLDERS = ("", "Processed", "MOSI/Processed")
FILES = ("unaligned_50", "aligned_50", "mosi_data_noalign", "mosi_data")
WIDTHS = {"text": 768, "audio": 5, "vision": 20}
LENGTHS = {"unaligned_50": (50, 500, 375), "aligned_50": (50, 50, 50)}
LARGEST = 3.0
"""Sentiment is from -3 to 3."""


class MOSIOptions(FolderOptions):
    features: Literal[FILES] = Field(  # type: ignore[valid-type]
        "unaligned_50",
        description="Which file is read, without .pkl: unaligned_50 (which MMSA's MulT and MMP's paper use) or "
        "aligned_50 of MMSA; mosi_data_noalign or mosi_data of MulT, whose shapes are only known from the file.",
    )


def published_formats(features: str) -> dict[str, SequenceFormat]:
    """Shapes of MMSA's files."""
    return {m: SequenceFormat(length, width)
            for (m, width), length in zip(WIDTHS.items(), LENGTHS[features], strict=True)}  # fmt: skip


@register("mosi")
class MOSI(DatasetBuilder):
    """The clips of one pickle, in its order and its splits; clips of a video are a group.

    Raises:
        UserError: the file is absent or damaged, names anything but arrays, or lacks a split or a key.
    """

    Options = MOSIOptions
    name = "mosi"
    title = "CMU-MOSI: words, sounds and faces of 2,199 clips as sequences, with a sentiment from -3 to 3"
    modalities = dict.fromkeys(WIDTHS, "sequence")
    target = Target("regression", signed=True)
    rows = {"train": 1_284, "val": 229, "test": 686}
    formats = published_formats("unaligned_50")
    licence = "its authors' terms, for research (Zadeh et al. 2016); the videos belong to their owners"
    get = (
        "MMSA's files: links and SHA-256 sums in github.com/thuiar/MMSA; MulT's: "
        "github.com/yaohungt/Multimodal-Transformer"
    )
    layout = f"one of {', '.join(f'{name}.pkl' for name in FILES)}, in the folder itself, Processed/ or MOSI/Processed/"

    @classmethod
    def formats_of(cls, options: Any) -> Mapping[str, Format]:
        """The file's shapes; MMSA's published ones where the data is not here."""
        if options is None:
            return cls.formats
        path = _path(options)
        if path is not None:
            return _formats(path, path.stat().st_mtime_ns)
        if options.features in LENGTHS:
            return published_formats(options.features)
        raise UserError(
            "the shapes of this file are only known from the file, which is not here", key="data.features",
            found=options.features, expected=f"a data.root with {options.features}.pkl, or one of {', '.join(LENGTHS)}",
        )  # fmt: skip

    def __init__(self, options: MOSIOptions) -> None:
        super().__init__(options)
        path = _path(options)
        if path is None:
            others = [str(p) for name in FILES for p in _places(self.root, name) if p.is_file()]
            raise UserError(
                f"{options.features}.pkl is not here", file=self.root, key=f"data.{'features' if others else 'root'}",
                found=others or None, expected=self.layout, hint=f"Get it: {self.get}",
            )  # fmt: skip
        self.path, self._cleaned, self._padded = path, 0, dict.fromkeys(WIDTHS, 0)
        self._homes: dict[str, str] = {}
        self._bad: list[BadRow] = []
        parts = splits_of(path)
        self._splits = {split: list(self._samples(key, parts.pop(key))) for key, split in SPLIT_NAMES.items()}
        self.bad_rows = tuple(self._bad)

    def splits(self) -> dict[str, list[Sample]]:
        return {name: list(rows) for name, rows in self._splits.items()}

    def provenance(self) -> str:
        padded = ", ".join(f"{modality} {count:,}" for modality, count in self._padded.items() if count)
        return (
            f"CMU-MOSI in {self.path}, split as the file says. {self._cleaned:,} values of audio were -inf or NaN and "
            "are 0, as in MMSA. " + (f"Sequences that are read with their padding: {padded}." if padded else "")
        ).rstrip()

    def _samples(self, key: str, part: Mapping[str, Any]) -> Iterator[Sample]:
        """The rows of a split that can be used."""
        arrays = {modality: features_of(self.path, key, part, modality) for modality in WIDTHS}
        rows = len(arrays["text"])
        dirty = np.isneginf(arrays["audio"]) | np.isnan(arrays["audio"])
        self._cleaned += int(dirty.sum())
        arrays["audio"] = np.where(dirty, 0, arrays["audio"])
        unknown: list[int | None] = [None] * rows
        lengths = {m: lengths_of(self.path, key, part, m, array) or unknown for m, array in arrays.items()}
        labels_N = labels_of(self.path, key, part, rows)
        ids = column(self.path, key, part, "id", rows) if "id" in part else [f"{key}-{row}" for row in range(rows)]
        for row in range(rows):
            origin, (id, video) = f"{self.path.name}: {key} {row}", id_of(ids[row])
            problem = None
            if not abs(labels_N[row]) <= LARGEST:  # NaN too
                problem = f"the sentiment is {labels_N[row]:g}; expected -3 to 3"
            elif not id:
                problem = f"the id is {ids[row]!r}; expected a text"
            elif id in self._homes:
                problem = f"the id {id} stands twice, first in {self._homes[id]}"
            if problem is not None:
                self._bad.append(BadRow(origin, problem))
                continue
            self._homes[id] = origin
            values = {m: self._value(f"{key} {m} {row}", m, array[row], lengths[m][row]) for m, array in arrays.items()}
            yield Sample(id, values, float(labels_N[row]), video, origin)

    def _value(self, name: str, modality: str, values_TF: np.ndarray, length: int | None) -> Features | None:
        """A sequence up to its length; None where that is 0."""
        if length is None or values_TF[length:].any():
            self._padded[modality] += 1
        elif length == 0:
            return None
        else:
            values_TF = values_TF[:length]
        return Features(self.path, name, values_TF.nbytes, values_TF)


def _places(root: Path | None, features: str) -> list[Path]:
    return [] if root is None else [root / folder / f"{features}.pkl" for folder in FOLDERS]


def _path(options: Any) -> Path | None:
    """The file that the options ask for; None where it is not here."""
    root = Path(options.root) if options.root and "${" not in options.root else None
    return next((path for path in _places(root, options.features) if path.exists()), None)


@lru_cache(maxsize=4)
def _formats(path: Path, changed: int) -> Mapping[str, Format]:
    """The shapes of a file as it was at a time."""
    part = splits_of(path)["train"]
    return {m: SequenceFormat(*features_of(path, "train", part, m).shape[1:]) for m in WIDTHS}
