"""A batch in two halves: what the host reads from the columns, and what a device makes of it.

The host's half is in the columns' own types, so that pictures are moved as bytes, a quarter of what they are as
floats. It reads no device and draws from its own generators only: it may be made ahead, by another thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mmsweep.data.dataset import Batch
from mmsweep.data.kinds.kind import Format, Input, Varied
from mmsweep.tasks.task import IGNORE, Target
from mmsweep.transfer import Resident, pinned, sent


@dataclass(frozen=True)
class RawBatch:
    """Rows as they are stored, on the host. Used once: on a CPU the batch is made in their place.

    Args:
        columns: modality -> what `Format.read` gave: ids and mask of texts, values and mask of sequences, else values,
            of whole pictures that were stretched to squares also their aspect. What no row has may be left out.
        absent: modality -> int64, the rows that hold the placeholder.
        present_BM, index: as Batch's.
        target: as stored: label maps are uint8.
        varied: what is varied, and its random numbers.
    """

    columns: Mapping[str, Mapping[str, Tensor]]
    absent: Mapping[str, Tensor]
    present_BM: Tensor
    target: Tensor
    index: Tensor
    varied: Varied | None = None

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
        placeholders: modality -> what stands for an absent input, as `Format.placeholder`.
    """

    def __init__(self, formats: Mapping[str, Format], target: Target, placeholders: Mapping[str, Input]) -> None:
        self.formats, self.target = formats, target
        self._placeholders = {modality: _resident(x) for modality, x in placeholders.items()}
        self._constants = {modality: format.constants() for modality, format in formats.items()}

    def batch(self, raw: RawBatch, device: torch.device) -> Batch:
        """The batch on a device: normalised, augmented, with the placeholder wherever a modality is not present."""
        inputs: dict[str, Input] = {}
        placeholders = {modality: _on(x, device) for modality, x in self._placeholders.items()}
        for modality, format in self.formats.items():
            parts = {name: sent(x, device) for name, x in raw.columns.get(modality, {}).items()}
            absent = sent(raw.absent[modality], device) if modality in raw.absent else None
            inputs[modality] = format.input(
                parts, placeholders[modality], absent, len(raw.index), raw.varied, self._constants[modality]
            )
        target = sent(raw.target, device)
        if self.target.kind == "map":
            varied = raw.varied
            target = target.long() if varied is None else varied.augmentation.labels(target, varied.draws, IGNORE)
        present_BM, index = sent(raw.present_BM, device), sent(raw.index, device)
        return Batch(inputs, present_BM, target, index, raw.present_BM, placeholders)


def _resident(x: Input) -> Resident | dict[str, Resident]:
    return {name: Resident(part) for name, part in x.items()} if isinstance(x, dict) else Resident(x)


def _on(x: Resident | dict[str, Resident], device: torch.device) -> Any:
    return {name: part.on(device) for name, part in x.items()} if isinstance(x, dict) else x.on(device)
