"""Asynchronous copies from the host to a device.

A plain copy to a GPU blocks the host until all its earlier work is done, and the GPU then idles until the host sends
more. Copies from pinned memory do not block. On a CPU nothing is copied.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sent(values: Tensor, device: torch.device | str) -> Tensor:
    """Copy values from the host to a device without waiting; later work on the device sees them.

    Values on a device are moved as torch moves them. The host must not write to the values afterwards.
    """
    device = torch.device(device)
    if values.device.type != "cpu" or device.type == "cpu":
        return values.to(device)
    return pinned(values, device).to(device, non_blocking=True)


def pinned(values: Tensor, device: torch.device | str) -> Tensor:
    """Values of the host in pinned memory; unchanged if the device is no GPU."""
    if torch.device(device).type != "cuda" or values.device.type != "cpu":
        return values
    return values.pin_memory()


class Resident:
    """A constant that is cached on every device where it is used."""

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self._on: dict[torch.device, Tensor] = {}

    def on(self, device: torch.device | str) -> Tensor:
        """The values on a device; callers must not write to them."""
        device = torch.device(device)
        if device not in self._on:
            with torch.inference_mode(False):  # tensors first copied in evaluation must be usable in training
                self._on[device] = sent(self.values, device)
        return self._on[device]
