"""Slots: trials that train side by side in one network, in one pass over what is frozen (DESIGN §4, "Packing").

A batch is S * B rows ordered by slot. Only the modules here and in lora.py, and what a method brings of its own, know
that: each of their trained tensors has a leading slot axis [S, ...], for a single trial too, so there is one way of
computing. Where a backbone's own tensors are trained they have no such axis, and S is 1.

    merge   packs ─► one pack: trained tensors concatenated along the slot axis, frozen ones shared
    select  a pack ─► the pack of some of its slots
    trained what is trained, by the names that checkpoints use; `own` cuts a slot's part out, as checkpoints hold it
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
"""Columns below which MKL computes one product otherwise than one of several (benchmarks/layer_products.py)."""


class Packed(nn.Module):
    """A module whose own parameters have the slot axis. A fresh one has one slot."""

    def stacked(self) -> Iterator[tuple[nn.Module, str]]:
        """(module, name) of every parameter here that has the slot axis."""
        for name in self._parameters:
            if self._parameters[name] is not None:
                yield self, name

    def own(self, values: Tensor, slot: int) -> Tensor:
        """A slot's part of a tensor that is shaped as one of the parameters: a view, without axis and padding."""
        return values[slot]

    def join(self, others: Sequence[Self]) -> None:
        """Take the slots of others in, after one's own.

        Raises:
            ValueError: their tensors do not fit.
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
    """S linear maps of one shape: rows of slot s are mapped by weight_SOI[s] and bias_SO[s]."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.empty(1, out_features, in_features))
        self.bias = nn.Parameter(torch.empty(1, out_features))

    @classmethod
    def of(cls, linear: nn.Linear) -> Self:
        """A copy of a linear map, of one slot, that is trained."""
        packed = cls(linear.in_features, linear.out_features)
        packed.weight = nn.Parameter(linear.weight.detach().clone()[None])
        packed.bias = nn.Parameter(linear.bias.detach().clone()[None])
        return packed

    def forward(self, x: Tensor) -> Tensor:
        """[S * B, ..., I] to [S * B, ..., O]."""
        x_SNI = x.reshape(self.weight.shape[0], -1, self.in_features)
        more = max(NARROWEST - self.out_features, 0)
        weight_SOI, bias_SO = F.pad(self.weight, (0, 0, 0, more)), F.pad(self.bias, (0, more))
        y_SNO = torch.baddbmm(bias_SO[:, None], x_SNI, weight_SOI.transpose(1, 2))
        return y_SNO[..., : self.out_features].reshape(*x.shape[:-1], self.out_features)


class PackedParameters(Packed, nn.ParameterDict):
    """Parameters [S, ...] by name."""


def stack(module: Packed) -> None:
    """Give parameters without a slot axis one: those of one slot."""
    for inner, name in list(module.stacked()):
        p = inner.get_parameter(name)
        inner.register_parameter(name, nn.Parameter(p.detach()[None], p.requires_grad))


def by_slot(values: Tensor, rows: int) -> Tensor:
    """What S slots hold, one for each of a batch's rows: [S, ...] to [rows, ...]."""
    S = values.shape[0]
    return values[:, None].expand(S, rows // S, *values.shape[1:]).flatten(0, 1)


@dataclass(frozen=True)
class Trained:
    """A parameter that is trained.

    Args:
        name: as in checkpoints.
        parameter: [S, ...], or without that axis where no module here is its owner.
        owner: the module that knows its slots.
    """

    name: str
    parameter: nn.Parameter
    owner: Packed | None

    def own(self, values: Tensor, slot: int) -> Tensor:
        """A slot's part of a tensor of the parameter's shape: a view, as a checkpoint holds it."""
        return values if self.owner is None else self.owner.own(values, slot)


def trained(network: nn.Module, *, frozen: bool = False) -> list[Trained]:
    """Every parameter that is trained; with `frozen` every parameter."""
    owners = {
        id(inner.get_parameter(name)): module
        for module in network.modules()
        if isinstance(module, Packed)
        for inner, name in module.stacked()
    }
    return [Trained(n, p, owners.get(id(p))) for n, p in network.named_parameters() if p.requires_grad or frozen]


def values_of(network: nn.Module, slot: int = 0) -> dict[str, Tensor]:
    """A slot's trained values by name, as a checkpoint holds them: views, so that writing to them trains the slot."""
    return {t.name: t.own(t.parameter.detach(), slot) for t in trained(network)}


def alone(network: nn.Module) -> str | None:
    """Why a network can hold one slot only, or None where it can hold more."""
    shared = [t.name for t in trained(network) if t.owner is None]
    if not shared:
        return None
    return f"{len(shared)} tensors of the backbone are trained themselves ({shared[0]}, …): trials cannot share it"


def merge(packs: Sequence[Network]) -> Network:
    """One pack of all slots of several, in their order; a single one is given back as it is.

    Raises:
        ValueError: packs of other shapes, or a backbone that is trained.
    """
    if len(packs) == 1:
        return packs[0]
    if reason := alone(packs[0]):
        raise ValueError(reason)
    whole = _twin(packs[0])
    for module, *others in zip(whole.modules(), *(p.modules() for p in packs[1:]), strict=True):
        if isinstance(module, Packed):
            module.join(others)
    return whole


def select(pack: Network, slots: Sequence[int]) -> Network:
    """The pack of some slots of another, over the same frozen tensors."""
    part = _twin(pack)
    for module in part.modules():
        if isinstance(module, Packed):
            module.keep(slots)
    return part


def _twin(network: Network) -> Network:
    """A copy of the modules over the very same tensors."""
    shared = {id(t): t for t in (*network.parameters(), *network.buffers())}
    return copy.deepcopy(network, shared)
