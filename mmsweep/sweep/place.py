"""What a host's ranks are given: where they find the board, what they keep warm, and where they log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Place:
    """Where a host's ranks find things.

    Args:
        board: handle of the board's actor.
        host: the host's name, "host-0".
        warm: import path "module:Class" of what is kept warm; the module also holds `warm_key` and `pack_key`.
        threads: CPU threads a rank.
        gpus: GPUs a rank; 0: the CPU, also where there is a GPU.
        logs: folder for the ranks' log files.
    """

    board: Any
    host: str
    warm: str
    threads: int
    gpus: float
    logs: str
