"""How many slots a host has: a throughput probe trains packs of 1, 2, 4, … slots for a few steps while that pays."""

from __future__ import annotations

import contextlib
import gc
import os
import platform
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import mmsweep

GAIN = 1.1  # doubling goes on while it raises the throughput (slots per second) by this factor
STEPS = 3  # that are timed, after one that is not
SECONDS = 0.5  # quick steps are repeated for so long
MOST_SECONDS = 2.0  # of slow ones there are fewer: none begins later
DEVICE_SHARE, MEMORY_SHARE = 0.9, 0.5  # of a GPU's memory in all; of what a CPU's machine has left


def measure(
    steps: Callable[[int], Iterator[None]],
    most: int,
    device: torch.device,
    ranks: int = 1,
    agree: Callable[[Any], Any] = lambda word: word,
    reached: Callable[[int], None] = lambda slots: None,
) -> tuple[int, str]:
    """The smallest number of slots at which doubling raises throughput by less than 10 %, or memory does not suffice.

    A gain counts if the smaller pack, timed once more, is still that much slower.

    Args:
        steps: gives the training steps of a pack of so many throw-away slots, one at each `next`.
        most: largest number of slots that is of use.
        ranks: how many processes train each pack together.
        agree: rank 0's value on every rank: all must try the same.
        reached: called with 0 before anything is tried, and with each number of slots that fits before the next.

    Returns:
        The slots, and why there are no more.

    Raises:
        torch.OutOfMemoryError: already for one slot; with several ranks for any number.
    """
    best, rate, reason = 1, 0.0, f"no more than {most} were asked for"
    reached(0)
    slots = 1
    while slots <= most:
        memory = _Memory(device)
        try:
            seconds = _step_seconds(steps(slots), device, agree)
        except torch.OutOfMemoryError:
            if slots == 1 or ranks > 1:  # the others wait for this one's gradients
                raise
            reason = f"the memory does not suffice for {slots}"
            break
        finally:
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
        seconds, fits = agree((seconds, memory.doubles()))
        if rate and slots / seconds >= GAIN * rate:  # or was the machine busier when fewer were tried?
            rate = max(rate, best / agree(_step_seconds(steps(best), device, agree)))
        if slots / seconds < GAIN * rate:
            reason = f"{slots} are only {slots / seconds / rate:.2f} times as fast as {best}"
            break
        best, rate = slots, slots / seconds
        reached(best)
        if not fits:
            reason = f"the memory would not suffice for {2 * slots}"
            break
        slots *= 2
    return best, reason


def machine(device: torch.device) -> dict[str, str]:
    """What a measured number of slots depends on beside the packs: processor, memory, device, versions."""
    gpu = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    return {
        "cpu": _field("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": str(os.cpu_count()),
        "memory": f"{_physical() / 2**30:.0f} GiB",
        "gpu": f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB" if gpu else "",
        "torch": torch.__version__,
        "mmsweep": mmsweep.__version__,
    }


def _step_seconds(steps: Iterator[None], device: torch.device, agree: Callable[[Any], Any]) -> float:
    """The fastest step's seconds: what else the machine does only ever adds to them.

    A step is a collective of all ranks, so one clock decides for all of them whether there is another.
    """
    with contextlib.closing(steps):  # type: ignore[type-var]
        next(steps)
        _finish(device)
        seconds: list[float] = []
        while agree(sum(seconds) < (SECONDS if len(seconds) >= STEPS else MOST_SECONDS)):
            began = time.perf_counter()
            next(steps)
            _finish(device)
            seconds.append(time.perf_counter() - began)
    return min(seconds)


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class _Memory:
    """What a pack takes beyond what was there before it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device)
        else:
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew (Linux)
            self.before, self.left = _resident(), _available()

    def doubles(self) -> bool:
        """Whether a pack of twice the slots has room."""
        if self.device.type == "cuda":
            taken = torch.cuda.max_memory_allocated(self.device) - self.before
            free, total = torch.cuda.mem_get_info(self.device)
            others = total - free - torch.cuda.memory_reserved(self.device)
            return others + self.before + 2 * taken < DEVICE_SHARE * total
        return 2 * max(0, _peak() - self.before) < MEMORY_SHARE * self.left


def _field(path: str, name: str) -> str | None:
    """The first line such as `VmHWM:  123 kB` of a file of Linux's, without its name; None elsewhere."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), None)


def _kilobytes(path: str, name: str) -> int | None:
    text = _field(path, name)
    return None if text is None else 1024 * int(text.split()[0])


def _peak() -> int:
    return _kilobytes("/proc/self/status", "VmHWM") or 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _resident() -> int:
    return _kilobytes("/proc/self/status", "VmRSS") or _peak()


def _available() -> int:
    return _kilobytes("/proc/meminfo", "MemAvailable") or _physical() // 2


def _physical() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
