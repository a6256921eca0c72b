"""A batch in two halves: what the host reads from the columns, and what a device makes of it.

The host's half is in the columns' own types, so that pictures are moved as bytes, a quarter of what they are as
floats. It reads no device and draws from its own generators only: it may be made ahead, by another thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from torch import Tensor

from mmsweep.data.augmentation import Augmentation, Draws
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
from mmsweep.tasks.task import Target
from mmsweep.transfer import Resident, pinned, sent


@dataclass(frozen=True)
class RawBatch:
    """Rows as they are stored, on the host. Used once: on a CPU the batch is made in their place.

    Args:
        columns: modality -> its parts: ids and mask of texts, values and mask of sequences, else values, of whole
            pictures that were stretched to squares also their aspect. Pictures and the like that no row has are left
            out.
        absent: modality -> int64, the rows that hold the fill value.
        present_BM, index: as Batch's.
        target: as stored: label maps are uint8.
        augmentation, draws: what is varied, and its random numbers.
    """

    columns: Mapping[str, Mapping[str, Tensor]]
    absent: Mapping[str, Tensor]
    present_BM: Tensor
    target: Tensor
    index: Tensor
    augmentation: Augmentation | None = None
    draws: Draws | None = None

    def pinned(self, device: torch.device) -> RawBatch:
        """The same in memory that the device reads by itself."""
        return replace(
            self,
            columns={m: {k: pinned(x, device) for k, x in parts.items()} for m, parts in self.columns.items()},
            absent={name: pinned(rows, device) for name, rows in self.absent.items()},
            present_BM=pinned(self.present_BM, device),
            target=pinned(self.target, device),
            index=pinned(self.index, device),
        )


class Normalisation:
    """Makes batches of raw ones, on a device.

    Args:
        formats: modality -> format, in the dataset's order.
        target: what is predicted.
        fills: modality -> what stands in an absent input, float32 and broadcastable over one; texts have none.
        empties: modality -> ids and mask [L] of the empty text, of the modalities that are texts.
    """

    def __init__(
        self,
        formats: Mapping[str, Format],
        target: Target,
        fills: Mapping[str, Tensor],
        empties: Mapping[str, Mapping[str, Tensor]] = MappingProxyType({}),
    ) -> None:
        self.formats, self.target = formats, target
        self._empties = {m: {k: Resident(x) for k, x in parts.items()} for m, parts in empties.items()}
        self._there = Resident(torch.ones((), dtype=torch.bool))
        self._fills = {modality: Resident(fill) for modality, fill in fills.items()}
        self._scales = {m: _scale(f) for m, f in formats.items() if isinstance(f, ImageFormat | VideoFormat)}
        self._rasters = {
            m: (Resident(_per_channel(f.mean)), Resident(_per_channel(f.std)))
            for m, f in formats.items()
            if isinstance(f, RasterFormat)
        }

    def batch(self, raw: RawBatch, device: torch.device) -> Batch:
        """The batch on a device: normalised, augmented, with the fill value wherever a modality is not present."""
        inputs: dict[str, Tensor | dict[str, Tensor]] = {}
        for modality, format in self.formats.items():
            parts = {name: sent(x, device) for name, x in raw.columns.get(modality, {}).items()}
            if isinstance(format, TextFormat):
                inputs[modality] = {"ids": parts["ids"].long(), "mask": parts["mask"]}
                continue
            fill = self._fills[modality].on(device)
            if not parts:
                inputs[modality] = fill.expand(len(raw.index), *_shown_shape(format)).contiguous()
                continue
            values = self._shown(modality, format, parts, raw)
            if modality in raw.absent:
                values[sent(raw.absent[modality], device)] = fill
            inputs[modality] = {"values": values, "mask": parts["mask"]} if "mask" in parts else values
        target = sent(raw.target, device)
        if self.target.kind == "map":
            varied, draws = raw.augmentation, raw.draws
            target = target.long() if varied is None or draws is None else varied.labels(target, draws)
        present_BM, index = sent(raw.present_BM, device), sent(raw.index, device)
        return Batch(inputs, present_BM, target, index, raw.present_BM, self.placeholders(device))

    def placeholders(self, device: torch.device) -> dict[str, Tensor | Mapping[str, Tensor]]:
        """`Batch.placeholders`. An absent sequence is the fill value at every step."""
        found: dict[str, Tensor | Mapping[str, Tensor]] = {}
        for modality, fill in self._fills.items():
            value = fill.on(device)
            sequence = isinstance(self.formats[modality], SequenceFormat)
            found[modality] = {"values": value, "mask": self._there.on(device)} if sequence else value
        for modality, parts in self._empties.items():
            found[modality] = {name: part.on(device) for name, part in parts.items()}
        return found

    def _shown(self, modality: str, format: Format, parts: Mapping[str, Tensor], raw: RawBatch) -> Tensor:
        """Float32, fresh or the host's own: may be written to."""
        values, augmentation, draws = parts["values"], raw.augmentation, raw.draws
        if isinstance(format, RasterFormat):
            mean, std = (constant.on(values.device) for constant in self._rasters[modality])
            # Cast on the device: float32 holds 16 bits exactly, and integers of 16 bits have few operations in torch.
            values = values.to(torch.float32).sub_(mean).div_(std)
            return values if augmentation is None or draws is None else augmentation.rasters(values, draws)
        if not isinstance(format, ImageFormat | VideoFormat):
            return values
        size = format.image.size if isinstance(format, VideoFormat) else format.size
        if augmentation is not None and augmentation.changes_pictures and draws is not None:
            values = augmentation.pictures(values, draws, size, parts.get("aspect"))
        factor, shift = (constant.on(values.device) for constant in self._scales[modality])
        # In place on the fresh float copy: ten times as fast on a CPU as mixed-type or out-of-place arithmetic.
        return values.float().mul_(factor).add_(shift)


def _per_channel(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)[:, None, None]


def _scale(format: ImageFormat | VideoFormat) -> tuple[Resident, Resident]:
    """(x / 255 - mean) / std as x * factor + shift."""
    picture = format.image if isinstance(format, VideoFormat) else format
    std = _per_channel(picture.std)
    return Resident(1 / (255 * std)), Resident(-_per_channel(picture.mean) / std)


def _shown_shape(format: Format) -> tuple[int, ...]:
    if isinstance(format, AudioFormat):
        return format.frames, format.mel_bins
    if isinstance(format, VideoFormat):
        return format.frames, 3, format.image.size, format.image.size
    assert isinstance(format, ImageFormat)
    return 3, format.size, format.size
