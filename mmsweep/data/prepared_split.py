"""One split of prepared data: its mapped columns, and batches made from them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmsweep.data.augmentation import Augmentation, Draws
from mmsweep.data.columns import TARGETS, column_layout, map_size, training_layout
from mmsweep.data.dataset import Batch
from mmsweep.data.formats import (
    AudioFormat,
    Format,
    ImageFormat,
    RasterFormat,
    SequenceFormat,
    TextFormat,
    VideoFormat,
)
from mmsweep.data.raw_batch import Normalisation, RawBatch
from mmsweep.errors import UserError
from mmsweep.tasks.task import Target

FILLS = ("zeros", "ones", "black", "mean", "nan")
"""What stands in for an absent input, after normalisation: zeros | ones | a black picture | the training set's mean |
NaN (tests: nothing absent may be read). An absent text is always the empty text."""


class PreparedSplit:
    """One split's columns, mapped. Pickles as the name of its folder.

    Attributes:
        natural_NM: bool, what the data itself has; columns in the dataset's order of modalities.
        targets: int64 [N], float32 [N,C], float32 [N], or uint8 [N,H,W] label maps (mapped).
        ids, groups: of the rows.
    """

    def __init__(
        self, folder: Path, name: str, formats: Mapping[str, Format], target: Target, fills: Mapping[str, str]
    ) -> None:
        self.folder, self.name, self.formats, self.target, self.fills = folder, name, dict(formats), target, dict(fills)
        self.natural_NM: np.ndarray = np.load(folder / name / "natural.npy", allow_pickle=False)
        rows = json.loads((folder / name / "ids.json").read_text())
        self.ids: list[str] = rows["ids"]
        self.groups: list[str | None] = rows["groups"]
        self._statistics = json.loads((folder / "prepared.json").read_text())["statistics"]
        self._columns: dict[str, np.ndarray] = {}
        self._longest: dict[str, int] = {}
        self.targets: np.ndarray
        if target.kind == "map":
            self.targets = _map(folder / name / f"{TARGETS}.npy", np.uint8, (len(self.ids), *map_size(self.formats)))
        else:
            self.targets = np.load(folder / name / f"{TARGETS}.npy", allow_pickle=False)
        for modality, format in self.formats.items():
            extra = training_layout(modality, format) if name == "train" else []
            for column, dtype, shape in column_layout(modality, format) + extra:
                self._columns[column] = _map(folder / name / f"{column}.npy", dtype, (len(self.ids), *shape))
        fill = {m: self._fill_value(m, f) for m, f in self.formats.items() if not isinstance(f, TextFormat)}
        self._empties = {m: self._empty(m, f) for m, f in self.formats.items() if isinstance(f, TextFormat)}
        self._normalisation = Normalisation(self.formats, target, fill, self._empties)

    def __len__(self) -> int:
        return len(self.ids)

    def __reduce__(self) -> tuple[Any, ...]:
        return PreparedSplit, (self.folder, self.name, self.formats, self.target, self.fills)

    def batch(
        self,
        index: np.ndarray | Tensor,
        device: str | torch.device = "cpu",
        augmentation: Augmentation | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        present: np.ndarray | Tensor | None = None,
        *,
        rows: slice | np.ndarray | Tensor | None = None,
        one_length: bool = False,
    ) -> Batch:
        """The rows `index` on `device`, normalised, with the fill value wherever a modality is not present.

        Arguments as `raw`.
        """
        raw = self.raw(index, augmentation, generator, present, rows=rows, one_length=one_length)
        return self.batch_of(raw, device)

    def batch_of(self, raw: RawBatch, device: str | torch.device) -> Batch:
        """The second half of `batch`: what a device makes of the first. A raw batch is used once."""
        return self._normalisation.batch(raw, torch.device(device))

    def raw(
        self,
        index: np.ndarray | Tensor,
        augmentation: Augmentation | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        present: np.ndarray | Tensor | None = None,
        *,
        rows: slice | np.ndarray | Tensor | None = None,
        one_length: bool = False,
    ) -> RawBatch:
        """The host's half of `batch`: the rows as they are stored, and the random numbers of their augmentation.

        Args:
            index: int64 [B], rows of the split: the whole batch over all ranks.
            augmentation, generator: of the training split only, prepared with the augmentation's `kept_formats`. Draws
                are made for the whole batch, on the CPU. Of several generators, each draws for an equal share of the
                batch: a slot's rows.
            present: bool [B,M], what a scenario leaves; taken together with what the data has.
            rows: which of the B rows to make (a rank's share); None: all.
            one_length: texts are as long as the split's longest, not the batch's: nothing depends on a row's mates.
        """
        index_B = np.asarray(index, np.int64)
        present_BM = self.natural_NM[index_B]
        if present is not None:
            present_BM = present_BM & np.asarray(present, bool)
        draws = self._draw(len(index_B), augmentation, generator)
        if rows is not None:
            chosen = rows if isinstance(rows, slice) else np.asarray(rows, np.int64)
            index_B, present_BM = index_B[chosen], present_BM[chosen]
            draws = draws.rows(chosen if isinstance(chosen, slice) else torch.from_numpy(chosen)) if draws else None
        columns: dict[str, dict[str, Tensor]] = {}
        absent: dict[str, Tensor] = {}
        for column, (modality, format) in enumerate(self.formats.items()):
            present_B = present_BM[:, column]
            if isinstance(format, TextFormat):
                columns[modality] = self._text(modality, format, index_B, present_B, one_length)
                continue
            if not present_B.any() and isinstance(format, ImageFormat | AudioFormat | VideoFormat):
                continue  # nothing to read
            columns[modality] = self._parts(modality, index_B, augmentation, draws)
            if isinstance(format, SequenceFormat):
                length_B = np.where(present_B, self._columns[f"{modality}.length"][index_B], 0)
                columns[modality]["mask"] = torch.from_numpy(np.arange(format.length) < length_B[:, None])
            if not present_B.all():
                absent[modality] = torch.from_numpy(np.flatnonzero(~present_B))
        target, kept = torch.from_numpy(self.targets[index_B]), torch.from_numpy(index_B)
        return RawBatch(columns, absent, torch.from_numpy(present_BM), target, kept, augmentation, draws)

    def column(self, modality: str) -> np.ndarray:
        """A raster's stored values, in the file's own type: uint8 or uint16 [N,C,H,W]."""
        return self._columns[modality]

    def kept_frames(self, modality: str) -> np.ndarray:
        """int32 [N]: how many distinct frames of each clip random frames are drawn from; 0 where there is no clip."""
        return self._columns[f"{modality}.varied.length"]

    def longest(self, modality: str) -> int:
        """Tokens of the split's longest text."""
        if modality not in self._longest:
            lengths_N = self._columns[f"{modality}.mask"].sum(1)
            self._longest[modality] = max(int(lengths_N.max(initial=1)), len(self._statistics[modality]["empty"]))
        return self._longest[modality]

    def _draw(
        self,
        rows: int,
        augmentation: Augmentation | None,
        generator: torch.Generator | Sequence[torch.Generator] | None,
    ) -> Draws | None:
        if augmentation is None:
            return None
        if generator is None:
            raise ValueError("augmentation draws from an explicit generator")
        if self.name != "train" or augmentation.kept_formats(self.formats) != self.formats:
            raise ValueError("this augmentation needs a training split that was prepared with its `kept_formats`")
        generators = [generator] if isinstance(generator, torch.Generator) else generator
        kept = {m: f.kept for m, f in self.formats.items() if isinstance(f, VideoFormat) and f.kept is not None}
        return Draws.together([augmentation.draw(rows // len(generators), g, kept) for g in generators])

    def _text(
        self, modality: str, format: TextFormat, index_B: np.ndarray, present_B: np.ndarray, one_length: bool
    ) -> dict[str, Tensor]:
        ids_BL = self._columns[f"{modality}.ids"][index_B]
        mask_BL = self._columns[f"{modality}.mask"][index_B]
        if not present_B.all():
            empty = self._empties[modality]
            ids_BL[~present_B], mask_BL[~present_B] = empty["ids"].numpy(), empty["mask"].numpy()
        longest = self.longest(modality) if one_length else int(mask_BL.sum(1).max(initial=1))
        length = longest if format.trim else format.length
        parts = {"ids": ids_BL[:, :length], "mask": mask_BL[:, :length]}
        return {name: torch.from_numpy(np.ascontiguousarray(part)) for name, part in parts.items()}

    def _empty(self, modality: str, format: TextFormat) -> dict[str, Tensor]:
        """ids and mask [length] of the empty text."""
        found = self._statistics[modality]
        ids_L = torch.full((format.length,), (found["pad"] or [0])[0])
        ids_L[: len(found["empty"])] = torch.tensor(found["empty"], dtype=torch.int64)
        return {"ids": ids_L, "mask": torch.arange(format.length) < len(found["empty"])}

    def _parts(
        self, modality: str, index_B: np.ndarray, augmentation: Augmentation | None, draws: Draws | None
    ) -> dict[str, Tensor]:
        """Values as evaluation sees them, or what this augmentation needs where that is kept."""
        column, format = f"{modality}.varied", self.formats[modality]
        if augmentation is None or draws is None or column not in self._columns:
            return {"values": torch.from_numpy(self._columns[modality][index_B])}
        aspect = {"aspect": torch.from_numpy(self._columns[f"{modality}.aspect"][index_B])}
        if not isinstance(format, VideoFormat) or format.kept is None:
            return {"values": torch.from_numpy(self._columns[column][index_B])} | aspect
        kept_B = torch.from_numpy(self.kept_frames(modality)[index_B])
        frames_BF = augmentation.frames(modality, format.frames, draws, kept_B).numpy()
        return {"values": torch.from_numpy(self._columns[column][index_B[:, None], frames_BF])} | aspect

    def _fill_value(
        self, modality: str, format: ImageFormat | AudioFormat | VideoFormat | RasterFormat | SequenceFormat
    ) -> Tensor:
        """Float32, broadcastable over an input."""
        fill = self.fills[modality]
        if fill in ("zeros", "ones", "nan"):
            return torch.tensor({"zeros": 0.0, "ones": 1.0, "nan": float("nan")}[fill])
        if isinstance(format, AudioFormat | SequenceFormat):
            return torch.tensor(self._mean(modality), dtype=torch.float32)
        if isinstance(format, RasterFormat):
            level = [0.0] * format.channels if fill == "black" else self._mean(modality)
            shown = [(v - m) / s for v, m, s in zip(level, format.mean, format.std, strict=True)]
            return torch.tensor(shown, dtype=torch.float32)[:, None, None]
        picture = format.image if isinstance(format, VideoFormat) else format
        level = [0.0, 0.0, 0.0] if fill == "black" else self._mean(modality)
        shown = [(v / 255 - m) / s for v, m, s in zip(level, picture.mean, picture.std, strict=True)]
        return torch.tensor(shown, dtype=torch.float32)[:, None, None]

    def _mean(self, modality: str) -> list[float]:
        if modality not in self._statistics:
            raise UserError(
                f"no training row has {modality}, so there is no mean of it", key="data.fill", found="mean",
                expected=f"one of {', '.join(name for name in FILLS if name != 'mean')}",
            )  # fmt: skip
        return list(self._statistics[modality]["mean"])


def _map(path: Path, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    if 0 in shape:
        return np.zeros(shape, dtype)
    try:
        array = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError) as error:
        raise UserError(f"a prepared column is damaged ({error})", file=path, hint="Delete its folder") from None
    if array.shape != shape or array.dtype != np.dtype(dtype):
        raise UserError("a prepared column has another shape", file=path, found=array.shape, expected=str(shape))
    return array
