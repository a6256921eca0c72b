"""Learning-rate schedules as the papers state them, and the optimiser of a slot."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from mmsweep.study import Optimizer, Schedule


def lr_factor(schedule: Schedule, step: int, steps: int, steps_per_epoch: int) -> float:
    """What the learning rate is multiplied by at a step (counted from 0) of `steps` in all.

    Warm-up: `linear` climbs from `warmup_ratio` to 1 (as the code that the papers build on), `constant` holds the ratio
    (as their text says): research/methods.md B20. Afterwards polynomial decay to 0, cosine to 0, or constant.
    """
    warmup = (
        schedule.warmup_steps if schedule.warmup_steps is not None else round(schedule.warmup_epochs * steps_per_epoch)
    )
    if step < warmup:
        if schedule.warmup == "constant":
            return schedule.warmup_ratio
        return schedule.warmup_ratio + (1.0 - schedule.warmup_ratio) * step / warmup
    progress = min((step - warmup) / max(steps - warmup, 1), 1.0)
    if schedule.name == "constant":
        return 1.0
    if schedule.name == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    return (1.0 - progress) ** schedule.power


def make_optimizer(spec: Optimizer, parameters: Iterable[tuple[str, nn.Parameter]]) -> torch.optim.AdamW:
    """AdamW; biases, norms, proxy and aggregated tokens are not decayed, as in the reference code (methods.md §5.2)."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in parameters:
        (
            decayed if parameter.dim() > 1 and not name.startswith(("proxies.", "projector.aggregated.")) else plain
        ).append(parameter)
    groups = [{"params": decayed, "weight_decay": spec.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        [g for g in groups if g["params"]], lr=spec.lr, betas=spec.betas, eps=spec.eps, foreach=True
    )
