"""MMLoRA: unimodal fine-tuning, then joint training of adapters beside it (Du et al. 2023, arXiv 2310.05193).

    phase "only-m"   each modality by itself: the adapters of its encoder, its projection and its head, by the loss of
                     its own logits, over the rows that have it
    phase "joint"    adapters and projections are frozen. Every adapted linear has a second adapter, trained together
                     with the heads by the loss of the summed logits

A head for each modality, logits added, is one head on the concatenated class tokens. A modality that is not used adds
nothing.
"""

from __future__ import annotations

import math
from functools import partial
from typing import cast

import torch
from pydantic import Field
from torch import Tensor, nn

from mmsweep.components import register
from mmsweep.data.dataset import Batch
from mmsweep.errors import UserError
from mmsweep.methods.method import Method, Output, Phase
from mmsweep.methods.options import MethodOptions
from mmsweep.models.backbone import EncoderBackbone, draw_linear
from mmsweep.models.lora import Factor, Noise, PackedLoRALinear
from mmsweep.models.packing import PackedLinear, by_slot
from mmsweep.transfer import sent

JOINT = "joint"


class JointLoRALinear(PackedLoRALinear):
    """An adapted linear with a second adapter of equal rank and scale, also initialised to zero, without dropout."""

    def forward(self, x: Tensor) -> Tensor:
        x_SNI = x.reshape(self.slots, -1, x.shape[-1])
        down, up = (cast(Factor, part[JOINT]).weight for part in (self.lora_A, self.lora_B))
        y = super().forward(x)
        return y + torch.bmm(torch.bmm(x_SNI, down), up * self.scale_S11).view(y.shape)


@register("mmlora")
class MMLoRA(Method):
    """Unimodal phases, then a joint one; see the top of this file."""

    class Options(MethodOptions):
        unimodal_epochs: int | None = Field(
            None,
            ge=1,
            description="Epochs of each modality's own phase; null: all phases are equally long.",
        )

    accepts = EncoderBackbone
    backbone: EncoderBackbone
    options: Options

    def __init__(self, backbone: EncoderBackbone, options: Options, noise: Noise, generator: torch.Generator) -> None:
        super().__init__(backbone, options, noise, generator)
        backbone.head.requires_grad_(False)  # one for each modality takes its place
        device = backbone.head.weight.device
        self.heads = nn.ModuleDict({m: PackedLinear(backbone.width, backbone.outputs) for m in backbone.modalities})
        self.heads.to(device)
        for head in self.heads.values():
            assert isinstance(head, PackedLinear)
            draw_linear(head, generator)
        layers = [module for module in backbone.modules() if isinstance(module, PackedLoRALinear)]
        if not layers:
            raise UserError("method mmlora trains adapters", key="model.lora", found=None, expected="adapters")
        for layer in layers:
            _add_joint(layer, generator)

    def phases(self, epochs: int) -> list[Phase]:
        M = len(self.backbone.modalities)
        each = self.options.unimodal_epochs or max(1, epochs // (M + 1))
        if M * each >= epochs:
            raise UserError(
                f"{M} unimodal phases of {each} epochs leave none for the joint phase",
                key="train.epochs",
                found=epochs,
                expected=f"at least {M * each + 1}",
            )
        own = [Phase(f"only-{m}", each, partial(self._unimodal, m)) for m in self.backbone.modalities]
        return [*own, Phase(JOINT, epochs - M * each, _joint)]

    def _unimodal(self, modality: str, name: str) -> bool:
        if name.startswith(f"heads.{modality}."):
            return True
        return self.backbone.belongs(name.removeprefix("backbone."), modality) and f".{JOINT}." not in name

    def forward(self, batch: Batch, used_BM: Tensor) -> Output:
        """In training, a slot uses only the modalities of its phase; rows that lack them do not count."""
        here_SM = self._in_phase()
        used_BM = used_BM & by_slot(here_SM, len(batch)).to(used_BM.device)
        used_BM = sent(used_BM, batch.present_BM.device)
        return Output(_added(self._logits(batch, here_SM), used_BM), counted_B=used_BM.any(1))

    def predict_patterns(self, batch: Batch, patterns_PM: Tensor) -> Tensor:
        """All patterns from one pass of each encoder."""
        logits = self._logits(batch, self._in_phase())
        return torch.stack([_added(logits, batch.present_BM & pattern_M) for pattern_M in patterns_PM])

    def _in_phase(self) -> Tensor:
        """Which modalities each slot trains now [S, M], on the host; all of them in evaluation."""
        modalities = self.backbone.modalities
        if not self.phases_S:
            return torch.ones(self.backbone.head.weight.shape[0], len(modalities), dtype=torch.bool)
        return torch.tensor([[p.name in (JOINT, f"only-{m}") for m in modalities] for p in self.phases_S])

    def _logits(self, batch: Batch, here_SM: Tensor) -> list[Tensor | None]:
        """Each modality's logits [B, C]; None for a modality that no slot trains now."""
        tokens, own = self.backbone.embed(batch), self.noise.generators
        found: list[Tensor | None] = []
        for m, here_S in zip(self.backbone.modalities, here_SM.T.tolist(), strict=True):
            if own:  # a slot in another phase must not draw here: it would not if it trained alone
                pairs = zip(own, here_S, strict=True)
                self.noise.generators = [g if here else torch.Generator(g.device) for g, here in pairs]
            found.append(self.heads[m](self.backbone.classes(m, tokens[m])[0]) if any(here_S) else None)
        self.noise.generators = own
        return found


def _joint(name: str) -> bool:
    return f".{JOINT}." in name or name.startswith("heads.")


def _added(logits: list[Tensor | None], used_BM: Tensor) -> Tensor:
    parts = [torch.where(used_BM[:, m, None], own_BC, 0.0) for m, own_BC in enumerate(logits) if own_BC is not None]
    return torch.stack(parts).sum(0)


def _add_joint(layer: PackedLoRALinear, generator: torch.Generator) -> None:
    device, (_, inputs, padded) = layer.base_layer.weight.device, layer.down.weight.shape
    rank, outputs = layer.down.ranks[0], layer.base_layer.out_features
    layer.__class__ = JointLoRALinear
    down, up = Factor(inputs, padded, 1, rank, device), Factor(padded, outputs, 0, rank, device)
    layer.lora_A[JOINT], layer.lora_B[JOINT] = down, up
    if device.type != "meta":
        start_RI = torch.empty(rank, inputs).uniform_(-1, 1, generator=generator)
        with torch.no_grad():
            down.slot_view(down.weight, 0).copy_(start_RI / math.sqrt(inputs))
