"""LoRA adapters of S slots on q, k, v and o of attention; every random number comes from the trial's own generator.

    y = W x + B_s A_s drop_s(x) * alpha_s / rank_s        for the rows x of slot s

Ranks, alphas and dropouts may differ between slots. A and B are padded with zeros to a common rank. The padding gets
zero gradients and stays zero, so a trial computes the same beside any other trials. Adapted linears are listed by their
full names, because a pattern such as `dense` would also match BERT's feed-forward layers and pooler (B14). Tensor names
are peft's (peft_format.py exports a slot as an adapter that peft opens).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mmsweep.models.few_rows import linear, padded_rows
from mmsweep.models.packing import NARROWEST, Packed


@dataclass
class Noise:
    """The source of dropout masks; one per pack, set by the engine for each step.

    Args:
        generators: each slot's generator; empty: no dropout (evaluation).
        total: rows of a slot's global batch.
        rows: this rank's share of them. Masks are drawn for the whole batch, so they do not depend on the ranks.
        missing_M: modalities that are missing in some row of the global batch; None: judge by the rows at hand.
            Restored tokens lengthen sequences, and masks need the same shape on all ranks and in any pack.
    """

    generators: Sequence[torch.Generator] = ()
    total: int = 0
    rows: slice = field(default_factory=lambda: slice(0, 0))
    missing_M: Tensor | None = None

    def off(self) -> None:
        """Switch to evaluation: no dropout."""
        self.generators, self.missing_M = (), None

    def mask(self, x: Tensor, p: float | Sequence[float]) -> Tensor:
        """A mask of x's shape: 0 with probability p (one for all slots, or one per slot), else 1 / (1 - p)."""
        first, last, S = self.rows.start, self.rows.stop, len(self.generators)
        rates = [p] * S if isinstance(p, float) else p
        per_row = x.shape[0] // (S * (last - first))  # frames of a clip are consecutive
        masks = torch.empty((S, self.total * per_row, *x.shape[1:]), dtype=x.dtype, device=x.device)
        for mask, rate, generator in zip(masks, rates, self.generators, strict=True):
            if rate > 0.0:
                mask.bernoulli_(1.0 - rate, generator=generator).div_(1.0 - rate)
            else:
                mask.fill_(1.0)
        return masks[:, first * per_row : last * per_row].flatten(0, 1)


class SeededDropout(nn.Module):
    """Dropout that draws from `noise` instead of the process-wide generator, which other trials use too."""

    def __init__(self, p: float, noise: Noise) -> None:
        super().__init__()
        self.p, self.noise = p, noise

    @property
    def active(self) -> bool:
        return bool(self.noise.generators) and self.p > 0.0

    def forward(self, x: Tensor) -> Tensor:
        return x * self.noise.mask(x, self.p) if self.active else x


def set_noise(network: nn.Module, noise: Noise) -> None:
    """Let all seeded dropouts of a network draw from a trial's noise."""
    for module in network.modules():
        if isinstance(module, SeededDropout):
            module.noise = noise


class Factor(Packed):
    """A [S, I, R] or B [S, R, O], zero beyond each slot's rank r; a slot's view has the shape [r, I] or [O, r].

    Args:
        inputs, outputs: I and R, or R and O; R is the padded rank.
        axis: axis of R within a slot's matrix.
        rank: rank of the first slot.
    """

    def __init__(self, inputs: int, outputs: int, axis: int, rank: int, device: torch.device) -> None:
        super().__init__()
        self.axis = axis
        self.ranks: tuple[int, ...] = (rank,)
        self.weight = nn.Parameter(torch.zeros(1, inputs, outputs, device=device))

    def slot_view(self, values: Tensor, slot: int) -> Tensor:
        return values[slot].narrow(self.axis, 0, self.ranks[slot]).T

    def join(self, others: Sequence[Self]) -> None:
        super().join(others)
        self.ranks = sum((o.ranks for o in others), self.ranks)

    def keep(self, slots: Sequence[int]) -> None:
        super().keep(slots)
        self.ranks = tuple(self.ranks[s] for s in slots)


class _Adapted(torch.autograd.Function):
    """x W' + b + drop(x) A B of every slot, with its gradients; W and b are frozen.

    Plain autograd would copy the output and the input's gradient, and it would compute the low-rank products as tall
    matrices, which MKL multiplies more slowly than wide ones.

    Args:
        x: [S * B, ..., I].
        mask: dropout mask of x's shape; None: no slot has dropout. A mask of ones gives the same bits as None.
        weight_OI, bias_O, A_SIR, B_SRO: weights in x's type; B is already scaled.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, mask: Tensor | None, weight_OI: Tensor, bias_O: Tensor | None, A_SIR: Tensor, B_SRO: Tensor
    ) -> Tensor:
        S = A_SIR.shape[0]
        masked_SNI = (x if mask is None else (x * mask).to(x.dtype)).reshape(S, -1, x.shape[-1])
        y = linear(x, weight_OI, bias_O)
        inner_SRN = torch.bmm(A_SIR.mT, masked_SNI.mT)
        y.view(S, -1, y.shape[-1]).baddbmm_(inner_SRN.mT, B_SRO)
        ctx.save_for_backward(masked_SNI, mask, inner_SRN, weight_OI, A_SIR, B_SRO)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        masked_SNI, mask, inner_SRN, weight_OI, A_SIR, B_SRO = ctx.saved_tensors
        grad_SNO = grad.reshape(A_SIR.shape[0], -1, grad.shape[-1])
        inner_grad_SRN = torch.bmm(B_SRO, grad_SNO.mT)
        x_grad = None
        if ctx.needs_input_grad[0]:
            # A single order of the sums, so that a slot without dropout rounds the same beside one with dropout.
            low_rank = torch.bmm(inner_grad_SRN.mT, A_SIR.mT).view(*grad.shape[:-1], -1)
            low_rank = low_rank if mask is None else low_rank.mul_(mask)
            grad_NO = grad.reshape(-1, grad.shape[-1])
            x_grad = torch.mm(padded_rows(grad_NO), weight_OI)[: len(grad_NO)].view(low_rank.shape).add_(low_rank)
        return x_grad, None, None, None, torch.bmm(inner_grad_SRN, masked_SNI).mT, torch.bmm(inner_SRN, grad_SNO)


class PackedLoRALinear(Packed):
    """A frozen linear with an adapter for each slot; see the top of this file. B starts at zero.

    Args:
        base: the linear, kept as `base_layer`.
        rank, alpha, dropout: options of the first slot.
        noise: the pack's source of dropout masks.
        padded: the rank to which all slots are padded, at least 2; None: the rank of the first slot.
    """

    scale_S11: Tensor
    mask: Tensor | None

    def __init__(
        self, base: nn.Linear, rank: int, alpha: float, dropout: float, noise: Noise, padded: int | None = None
    ) -> None:
        super().__init__()
        if padded is not None and padded < rank:
            raise ValueError(f"rank {rank} cannot be padded to {padded}")
        self.base_layer, self.noise = base, noise
        self.alphas: tuple[float, ...] = (alpha,)
        self.dropouts: tuple[float, ...] = (dropout,)
        device, padded = base.weight.device, max(padded or rank, NARROWEST)
        self.lora_A = nn.ModuleDict({"default": Factor(base.in_features, padded, 1, rank, device)})
        self.lora_B = nn.ModuleDict({"default": Factor(padded, base.out_features, 0, rank, device)})
        self.register_buffer("scale_S11", torch.full((1, 1, 1), alpha / rank, device=device), persistent=False)
        self.drawn, self.mask = False, None

    @property
    def down(self) -> Factor:
        return cast(Factor, self.lora_A["default"])

    @property
    def up(self) -> Factor:
        return cast(Factor, self.lora_B["default"])

    @property
    def slots(self) -> int:
        return self.down.weight.shape[0]

    @property
    def masks(self) -> bool:
        """Whether dropout is active in any slot."""
        return bool(self.noise.generators) and max(self.dropouts) > 0.0

    def draw_ahead(self, x: Tensor) -> None:
        """Draw the mask of the next call now, for an input of x's shape."""
        self.drawn, self.mask = True, self.noise.mask(x, self.dropouts) if self.masks else None

    def forget(self) -> None:
        """Drop the mask of `draw_ahead`; the next call draws its own."""
        self.drawn, self.mask = False, None

    def forward(self, x: Tensor) -> Tensor:
        """[S * B, N, I] to [S * B, N, O]."""
        mask = self.mask if self.drawn else self.noise.mask(x, self.dropouts) if self.masks else None
        base, up_SRO = self.base_layer, self.up.weight * self.scale_S11
        weights: list[Tensor | None] = [base.weight, base.bias, self.down.weight, up_SRO]
        kind = x.device.type
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
            x, weights = x.to(dtype), [None if weight is None else weight.to(dtype) for weight in weights]
        return _Adapted.apply(x, mask, *weights)

    def set_slot(self, slot: int, rank: int, alpha: float, dropout: float) -> None:
        """Change a slot's rank, alpha and dropout, and set its values to zero.

        Raises:
            ValueError: the rank exceeds the padded rank.
        """
        padded = self.up.weight.shape[1]
        if rank > padded:
            raise ValueError(f"rank {rank} does not fit into {padded}")
        for factor in (self.down, self.up):
            factor.ranks = (*factor.ranks[:slot], rank, *factor.ranks[slot + 1 :])
            factor.weight.detach()[slot].zero_()
        self.alphas = (*self.alphas[:slot], alpha, *self.alphas[slot + 1 :])
        self.dropouts = (*self.dropouts[:slot], dropout, *self.dropouts[slot + 1 :])
        self.scale_S11[slot] = alpha / rank

    def join(self, others: Sequence[Self]) -> None:
        super().join(others)
        self.alphas = sum((o.alphas for o in others), self.alphas)
        self.dropouts = sum((o.dropouts for o in others), self.dropouts)
        self.scale_S11 = torch.cat([self.scale_S11, *(o.scale_S11 for o in others)])

    def keep(self, slots: Sequence[int]) -> None:
        super().keep(slots)
        self.alphas = tuple(self.alphas[s] for s in slots)
        self.dropouts = tuple(self.dropouts[s] for s in slots)
        self.scale_S11 = self.scale_S11[list(slots)]


def add_lora(
    network: nn.Module,
    rank: int,
    alpha: float,
    dropout: float,
    noise: Noise,
    generator: torch.Generator,
    linears: Sequence[str],
    padded: int | None = None,
) -> None:
    """Add adapters with one slot to a network, in place: W x + alpha / rank * B A drop(x) on its attention linears.

    Args:
        network: the network; its weights must be frozen already.
        linears: full names of the linears within it.
        rank, alpha, dropout: as in Hu et al. 2022.
        noise: the trial's source of dropout masks.
        generator: draws the initial A at the true rank (Kaiming uniform, as in peft).
        padded: the largest rank in the pack that the trial may join; None: no padding.
    """
    for name in sorted(linears):
        parent, _, last = name.rpartition(".")
        base = network.get_submodule(name)
        assert isinstance(base, nn.Linear)
        layer = PackedLoRALinear(base, rank, alpha, dropout, noise, padded)
        setattr(network.get_submodule(parent), last, layer)
        if base.weight.device.type != "meta":
            start_RI = torch.empty(rank, base.in_features).uniform_(-1, 1, generator=generator)
            with torch.no_grad():
                layer.down.slot_view(layer.down.weight, 0).copy_(start_RI / math.sqrt(base.in_features))
