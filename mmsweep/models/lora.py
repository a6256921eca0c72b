"""LoRA adapters on q, k, v and o of attention only, by peft, with every random draw from a trial's own generator.

The names of the adapted linears are spelt out in full: a pattern such as `dense` would also hit BERT's feed-forward
layers and pooler (B14).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from mmsweep.models.encoder import Encoder


@dataclass
class Noise:
    """Where dropout masks come from: one per trial, set by the engine for each step.

    Args:
        generator: the trial's own; None: no dropout (evaluation).
        total: rows of the global batch.
        rows: this rank's share of them. Masks are drawn for the whole batch, so they do not depend on the ranks.
        missing_M: which modalities some row of the whole batch does not use; None: the rows at hand are the whole.
            What is restored there makes sequences longer, and masks must have one shape on all ranks.
    """

    generator: torch.Generator | None = None
    total: int = 0
    rows: slice = field(default_factory=lambda: slice(0, 0))
    missing_M: Tensor | None = None

    def off(self) -> None:
        """No dropout, and no other rows than those at hand: evaluation."""
        self.generator = self.missing_M = None

    def keep(self, x: Tensor, p: float) -> Tensor:
        """A mask of x's shape, 0 with probability p, else 1 / (1 - p)."""
        first, last = self.rows.start, self.rows.stop
        per_row = x.shape[0] // (last - first)  # frames of a clip stand beside each other
        whole = torch.empty((self.total * per_row, *x.shape[1:]), dtype=x.dtype, device=x.device)
        whole.bernoulli_(1.0 - p, generator=self.generator).div_(1.0 - p)
        return whole[first * per_row : last * per_row]


class SeededDropout(nn.Module):
    """Dropout that draws from `noise` instead of the process-wide generator, which every other trial would disturb."""

    def __init__(self, p: float, noise: Noise) -> None:
        super().__init__()
        self.p, self.noise = p, noise

    @property
    def active(self) -> bool:
        return self.noise.generator is not None and self.p > 0.0

    def forward(self, x: Tensor) -> Tensor:
        if not self.active:
            return x
        return x * self.noise.keep(x, self.p)


def add_lora(
    encoder: nn.Module,
    rank: int,
    alpha: float,
    dropout: float,
    noise: Noise,
    generator: torch.Generator,
    linears: Sequence[str] | None = None,
) -> None:
    """Adapt a network in place: W x + alpha / rank * B A drop(x) on its attention linears; B starts at zero.

    Args:
        encoder: adapted in place; its own weights must be frozen already.
        linears: full names of the linears within it; None: an Encoder's own `attention_linears()`.
        rank, alpha, dropout: as in Hu et al. 2022.
        noise: the trial's source of dropout masks.
        generator: draws the initial A (Kaiming uniform, as peft's own start).
    """
    if linears is None:
        assert isinstance(encoder, Encoder)
        linears = encoder.attention_linears()
    config = LoraConfig(r=rank, lora_dropout=dropout, target_modules=list(linears), bias="none")
    config.lora_alpha = alpha  # type: ignore[assignment]  # peft's annotation says int, its arithmetic takes any number
    inject_adapter_in_model(config, encoder)
    layers: dict[str, Any] = {n: m for n, m in encoder.named_modules() if isinstance(m, LoraLayer)}
    for _, layer in sorted(layers.items()):
        a = layer.lora_A["default"].weight
        if a.device.type != "meta":
            start = torch.empty(a.shape).uniform_(-1, 1, generator=generator) / math.sqrt(a.shape[1])
            with torch.no_grad():
                a.copy_(start)
                layer.lora_B["default"].weight.zero_()
        layer.lora_dropout["default"] = SeededDropout(dropout, noise)
