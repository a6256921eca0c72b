"""The light Tune trial: it computes nothing, it passes on what a host reports about its trial and leaves.

It needs next to no CPU and no torch. Whatever Tune does with it (start it again, stop it), the trial's folder and its
host go on by themselves: a light trial that starts for the second time, or after a resume, passes on all recorded
reports first.
"""

from __future__ import annotations

import time
from typing import Any

import ray
from ray import tune

from mmsweep.record.objective import Objective
from mmsweep.record.trial import trial_id

POLL_SECONDS = (
    1.0  # below Tune's patience (2 s) with a trial's thread that shall end, so that its actor can be used again
)
GONE_SECONDS = 30.0  # within which the driver notices that the board is gone
OBJECTIVE, EPOCH = "objective", "epoch"


def follow(config: dict[str, Any], board: Any, objective: Objective) -> None:
    """Tune's trainable: pass on the reports of trial `config["number"]` until it is over.

    Each result holds the epoch's metrics, "epoch" (what ASHA counts) and "objective" (the score so far).
    """
    id = trial_id(config["number"])
    epochs: list[dict[str, float]] = []
    last = 0
    while True:
        try:
            reports, over = ray.get(board.follow.remote(id, last, POLL_SECONDS))
        except ray.exceptions.RayActorError:
            time.sleep(GONE_SECONDS)  # the driver ends the sweep; the trial has not failed
            raise
        for report in reports:
            epochs.append(report["metrics"])
            last = report["epoch"]
            # Returns when Tune wants the next result; if it does not (the trial is stopped), never.
            tune.report({**report["metrics"], EPOCH: last, OBJECTIVE: objective.score(epochs)})
            board.judged.remote(id, last)
        if over and not reports:
            return
