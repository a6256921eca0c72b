"""CMPT: cross-modal proxy tokens (arXiv 2501.17823), for two modalities as in the paper, and for more.

Symbols: T_CMPT,m -> proxies[m]; T_CLS,m -> class_BD; M -> modalities; λ -> method.align_weight.

    (2) each encoder gets one proxy token per other modality
    (3) the adapted encoder turns them into class and proxy outputs, in one pass
    (4) alignment: a modality's proxy for another should equal that other's class token, over samples that have both
    (5) gate: the class token where a modality is used, else the mean of its proxies from the used ones; summed
    (6) a linear head on the sum
    (7) task loss + λ alignment
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from mmsweep.components import Section, register
from mmsweep.data.dataset import Batch
from mmsweep.methods.method import Method, Output, StandIn, Term
from mmsweep.methods.options import AligningMethodOptions
from mmsweep.models.backbone import EncoderBackbone, fuse
from mmsweep.models.lora import Noise
from mmsweep.models.packing import PackedParameters
from mmsweep.transfer import sent


class ProxyOptions(Section):
    """Every field is an open question of the paper (research/methods.md §B)."""

    init: Literal["normal", "cls"] = Field(
        "normal", description="Initial value: normal(0, 0.02), or the encoder's class embedding (B6)."
    )
    trainable: bool = Field(True, description="Whether proxies are trained; false keeps their initial values (B6).")
    place: Literal["last", "first"] = Field(
        "last", description="Where proxies stand among an encoder's tokens; last keeps CLS at index 0 (B7)."
    )


@register("cmpt")
class CMPT(Method):
    """Proxy tokens beside the class token of every encoder; see the top of this file."""

    class Options(AligningMethodOptions):
        own_weight: ClassVar[float] = 0.2

        proxy: ProxyOptions = Field(ProxyOptions(), description="Tokens that stand for the other modalities.")

    accepts = EncoderBackbone
    masks_gaps = False  # B3: the paper drops modalities "on complete modality data", and its Table 6 fits that
    undecayed = ("proxies.",)
    backbone: EncoderBackbone
    options: Options

    def __init__(self, backbone: EncoderBackbone, options: Options, noise: Noise, generator: torch.Generator) -> None:
        super().__init__(backbone, options, noise, generator)
        self.weights = {"align": options.alignment}
        self.extra_tokens = len(backbone.modalities) - 1
        self.proxies = PackedParameters()  # [S, E, D]
        for modality in backbone.modalities:
            encoder = backbone.encoder(modality)
            device = encoder.class_embedding().device
            if options.proxy.init == "cls":  # B6
                start_ED = encoder.class_embedding().detach().expand(self.extra_tokens, -1).clone()
            else:
                start_ED = (0.02 * torch.randn(self.extra_tokens, encoder.width, generator=generator)).to(device)
            self.proxies[modality] = nn.Parameter(start_ED[None], requires_grad=options.proxy.trainable)

    def forward(self, batch: Batch, used_BM: Tensor) -> Output:
        used_BM = sent(used_BM, batch.present_BM.device)
        class_BMD, proxy_BSTD = self.read(batch)
        prediction_BC = self.backbone.head(self.gate(class_BMD, proxy_BSTD, used_BM))  # (6)
        return Output(prediction_BC, {"align": self.alignment(class_BMD, proxy_BSTD, batch.present_BM)})

    def predict_patterns(self, batch: Batch, patterns_PM: Tensor) -> Tensor:
        """All patterns from one encoder pass: only gate and head differ between them."""
        class_BMD, proxy_BSTD = self.read(batch)
        used_PBM = patterns_PM[:, None] & batch.present_BM
        return torch.stack([self.backbone.head(self.gate(class_BMD, proxy_BSTD, used_BM)) for used_BM in used_PBM])

    def stand_ins(self, batch: Batch) -> dict[str, StandIn]:
        """Class tokens and the mean of the other modalities' proxies for them, which the gate uses in their place."""
        class_BMD, proxy_BSTD = self.read(batch)
        found = {}
        for target, modality in enumerate(self.backbone.modalities):
            used_BM = torch.ones_like(batch.present_BM)
            used_BM[:, target] = False
            guess_BTD = _mean_over_sources(proxy_BSTD, used_BM)
            found[modality] = StandIn(class_BMD[:, target, None], guess_BTD[:, target, None])
        return found

    def read(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Equations 2 and 3: class tokens [B, M, D] and proxies [B, source, target, D] (zero where source = target).

        B5: every encoder runs on all present modalities, used or not; masking affects only the gate.
        """
        tokens = self.backbone.embed(batch)
        modalities = self.backbone.modalities
        classes, rows = [], []
        for source, modality in enumerate(modalities):
            class_BD, proxy_BED = self.backbone.classes(
                modality, tokens[modality], self.proxies[modality], self.options.proxy.place
            )
            classes.append(class_BD)
            zero_B1D = torch.zeros_like(proxy_BED[:, :1])
            rows.append(torch.cat([proxy_BED[:, :source], zero_B1D, proxy_BED[:, source:]], 1))
        return torch.stack(classes, 1), torch.stack(rows, 1)

    def gate(self, class_BMD: Tensor, proxy_BSTD: Tensor, used_BM: Tensor) -> Tensor:
        """Equation 5: fused token [B, D]; for M > 2 the mean of the used sources' proxies (B38)."""
        return fuse(class_BMD, used_BM, _mean_over_sources(proxy_BSTD, used_BM))

    def alignment(self, class_BMD: Tensor, proxy_BSTD: Tensor, present_BM: Tensor) -> Term:
        """Equation 4 per sample: for each present target the mean over present sources of MSE(proxy, class), summed.

        With two modalities this is the paper's sum of two terms, counted on complete samples only.
        """
        target_BMD = class_BMD.detach() if self.options.detach_target else class_BMD  # B4
        exact = torch.promote_types(proxy_BSTD.dtype, torch.float32)  # a mean of squares is never taken in bf16
        error_BST = (proxy_BSTD.to(exact) - target_BMD.to(exact)[:, None]).square().mean(-1)
        eye = torch.eye(len(self.backbone.modalities), dtype=torch.bool, device=present_BM.device)
        pair_BST = present_BM[:, :, None] & present_BM[:, None, :] & ~eye
        sources_BT = pair_BST.sum(1).clamp(min=1)
        per_target_BT = torch.where(pair_BST, error_BST, torch.zeros_like(error_BST)).sum(1) / sources_BT
        return Term(per_target_BT.sum(1), pair_BST.flatten(1).any(1))


def _mean_over_sources(proxy_BSTD: Tensor, used_BM: Tensor) -> Tensor:
    """Mean over the used sources of their proxies for each target: [B, T, D]; read only for targets not in use."""
    weight_BS = used_BM.to(proxy_BSTD.dtype)
    weight_BS = weight_BS / weight_BS.sum(1, keepdim=True).clamp(min=1)
    return torch.einsum("bs,bstd->btd", weight_BS, proxy_BSTD)
