"""The train function that Ray Train is given, and its argument. Light: see `serve`."""

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


def serve(config: dict[str, Any]) -> None:
    """Train what the board gives out until it closes. `config` is {"place": Place} (Ray Train passes mappings)."""
    # The hosts' supervisor imports this file too, before any rank is started. What trains takes seconds to import: only
    # ranks do.
    from mmsweep.sweep.worker import train_at

    train_at(config["place"])
