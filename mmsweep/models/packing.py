"""Slots: trials that train side by side in one network and share the pass through its frozen part (DESIGN §4).

A batch has S * B rows ordered by slot. Only the modules here and in lora.py and those of methods know about slots: each
of their trained tensors has a leading slot axis [S, ...], also for a single trial. Trained tensors of a backbone itself
have no such axis, and S is then 1.

    merge   packs ─► one pack: trained tensors concatenated along the slot axis, frozen ones shared
    select  a pack ─► the pack of some of its slots
    trained the trained tensors by the names that checkpoints use; `slot_view` returns one slot's part of a tensor
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)

NARROWEST = 2
"""MKL rounds products with fewer columns differently, depending on their number (benchmarks/layer_products.py)."""


class Packed(nn.Module):
    """A module whose direct parameters have the slot axis; a new one has one slot."""

    def stacked(self) -> Iterator[tuple[nn.Module, str]]:
        """(module, name) of every parameter with the slot axis."""
        for name in self._parameters:
            if self._parameters[name] is not None:
                yield self, name

    def slot_view(self, values: Tensor, slot: int) -> Tensor:
        """A slot's part of a tensor that has the shape of a parameter: a view without slot axis and padding."""
        return values[slot]

    def join(self, others: Sequence[Self]) -> None:
        """Append the slots of other modules.

        Raises:
            ValueError: their tensors have other shapes.
        """
        for places in zip(self.stacked(), *(o.stacked() for o in others), strict=True):
            parts = [module.get_parameter(name) for module, name in places]
            module, name = places[0]
            if len({p.shape[1:] for p in parts}) > 1:
                raise ValueError(f"{name} differs between the slots: {[tuple(p.shape[1:]) for p in parts]}")
            module.register_parameter(
                name, nn.Parameter(torch.cat([p.detach() for p in parts]), parts[0].requires_grad)
            )

    def keep(self, slots: Sequence[int]) -> None:
        """Drop all other slots."""
        for module, name in list(self.stacked()):
            p = module.get_parameter(name)
            module.register_parameter(name, nn.Parameter(p.detach()[list(slots)], p.requires_grad))


class PackedLinear(Packed):
    """S linear maps of one shape: weight_SOI[s] and bias_SO[s] map the rows of slot s."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.empty(1, out_features, in_features))
        self.bias = nn.Parameter(torch.empty(1, out_features))

    @classmethod
    def of(cls, linear: nn.Linear) -> Self:
        """A trainable copy of a linear map, with one slot."""
        packed = cls(linear.in_features, linear.out_features)
        packed.weight = nn.Parameter(linear.weight.detach().clone()[None])
        packed.bias = nn.Parameter(linear.bias.detach().clone()[None])
        return packed

    def forward(self, x: Tensor) -> Tensor:
        """[S * B, ..., I] to [S * B, ..., O]."""
        x_SNI = x.reshape(self.weight.shape[0], -1, self.in_features)
        padding = max(NARROWEST - self.out_features, 0)
        weight_SOI, bias_SO = F.pad(self.weight, (0, 0, 0, padding)), F.pad(self.bias, (0, padding))
        y_SNO = torch.baddbmm(bias_SO[:, None], x_SNI, weight_SOI.transpose(1, 2))
        return y_SNO[..., : self.out_features].reshape(*x.shape[:-1], self.out_features)


class PackedParameters(Packed, nn.ParameterDict):
    """Parameters [S, ...] by name."""


def stack(module: Packed) -> None:
    """Add the slot axis to parameters without one; the module then has one slot."""
    for inner, name in list(module.stacked()):
        p = inner.get_parameter(name)
        inner.register_parameter(name, nn.Parameter(p.detach()[None], p.requires_grad))


def by_slot(values: Tensor, rows: int) -> Tensor:
    """Repeat each slot's values for its rows of a batch: [S, ...] to [rows, ...]."""
    S = values.shape[0]
    return values[:, None].expand(S, rows // S, *values.shape[1:]).flatten(0, 1)


@dataclass(frozen=True)
class Trained:
    """A trained parameter.

    Args:
        name: its name in checkpoints.
        parameter: [S, ...], or without the slot axis if it has no owner.
        owner: the `Packed` module that it belongs to.
    """

    name: str
    parameter: nn.Parameter
    owner: Packed | None

    def slot_view(self, values: Tensor, slot: int) -> Tensor:
        """A slot's part of a tensor of the parameter's shape: a view, shaped as in checkpoints."""
        return values if self.owner is None else self.owner.slot_view(values, slot)


def trained(network: nn.Module, *, frozen: bool = False) -> list[Trained]:
    """Every trained parameter; with `frozen`, every parameter."""
    owners = {
        id(inner.get_parameter(name)): module
        for module in network.modules()
        if isinstance(module, Packed)
        for inner, name in module.stacked()
    }
    return [Trained(n, p, owners.get(id(p))) for n, p in network.named_parameters() if p.requires_grad or frozen]


def values_of(network: nn.Module, slot: int = 0) -> dict[str, Tensor]:
    """A slot's trained values by name, shaped as in checkpoints; they are views, and writing to them sets the slot."""
    return {t.name: t.slot_view(t.parameter.detach(), slot) for t in trained(network)}


def single_slot_reason(network: nn.Module) -> str | None:
    """Why a network can hold only one slot; None if it can hold more."""
    shared = [t.name for t in trained(network) if t.owner is None]
    if not shared:
        return None
    return f"{len(shared)} tensors of the backbone are trained themselves ({shared[0]}, …): trials cannot share it"


def merge(packs: Sequence[Network]) -> Network:
    """One pack with the slots of all packs, in their order; a single pack is returned itself.

    Raises:
        ValueError: packs of different shapes, or a trained backbone.
    """
    if len(packs) == 1:
        return packs[0]
    if reason := single_slot_reason(packs[0]):
        raise ValueError(reason)
    merged = _twin(packs[0])
    for module, *others in zip(merged.modules(), *(p.modules() for p in packs[1:]), strict=True):
        if isinstance(module, Packed):
            module.join(others)
    return merged


def select(pack: Network, slots: Sequence[int]) -> Network:
    """A pack with some slots of another, over the same frozen tensors."""
    selected = _twin(pack)
    for module in selected.modules():
        if isinstance(module, Packed):
            module.keep(slots)
    return selected


def _twin(network: Network) -> Network:
    """A copy of the modules that shares all tensors."""
    shared = {id(t): t for t in (*network.parameters(), *network.buffers())}
    return copy.deepcopy(network, shared)
