"""From the host to a device without either waiting for the other.

A plain copy to a GPU makes the host wait until everything that it has asked for before is done, and a GPU that waits
for the host in turn is idle. Copies out of pinned memory do not wait. On a CPU nothing is copied.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sent(values: Tensor, device: torch.device | str) -> Tensor:
    """Values of the host on a device, where they may arrive later than this returns; the device's order is kept.

    Values that lie on a device already are moved as torch moves them. The host must not write into them afterwards.
    """
    device = torch.device(device)
    if values.device.type != "cpu" or device.type == "cpu":
        return values.to(device)
    return pinned(values, device).to(device, non_blocking=True)


def pinned(values: Tensor, device: torch.device | str) -> Tensor:
    """Values of the host in memory that a device reads by itself; as they are where the device is no GPU."""
    if torch.device(device).type != "cuda" or values.device.type != "cpu":
        return values
    return values.pin_memory()


class Resident:
    """A constant that stays on every device that has asked for it."""

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self._on: dict[torch.device, Tensor] = {}

    def on(self, device: torch.device | str) -> Tensor:
        """The values there; not to be written to."""
        device = torch.device(device)
        if device not in self._on:
            with torch.inference_mode(False):  # or a constant first asked for in evaluation could not be trained with
                self._on[device] = sent(self.values, device)
        return self._on[device]
