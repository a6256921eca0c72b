"""The train function that Ray Train is given. Light: see `serve`."""

from __future__ import annotations

from typing import Any


def serve(config: dict[str, Any]) -> None:
    """Train what the board gives out until it closes. `config` is {"place": Place} (Ray Train passes mappings)."""
    # The hosts' supervisor imports this file too, before any rank is started. What trains takes seconds to import: only
    # ranks do.
    from mmsweep.sweep.worker import train_at

    train_at(config["place"])
