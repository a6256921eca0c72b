"""Missing-aware prompts (Lee et al., CVPR 2023, arXiv 2303.03369): learned prompts for each pattern of modalities.

    a row with the pattern p ─► placeholders in place of what p lacks ─► prompts of p enter the first blocks ─► head

    input       a block's prompts are tokens that join its sequence and stay in it: it grows by L with every such block
    attention   a block's prompts are L/2 keys and L/2 values that its attention reads beside its own

Only prompts, the pooler that the prediction is read through (where there is one) and the head are trained. While
training a row's pattern is what it uses, in evaluation the pattern that is asked for.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from mmsweep.components import misfit, register
from mmsweep.data.dataset import Batch
from mmsweep.errors import UserError
from mmsweep.methods.method import Method, Output
from mmsweep.methods.options import MaskingMethodOptions
from mmsweep.models.backbone import PromptedBackbone
from mmsweep.models.encoder import Prompt, PromptPlace, Prompts
from mmsweep.models.lora import Noise, PackedLoRALinear
from mmsweep.models.packing import PackedParameters
from mmsweep.transfer import sent


@register("missing_aware_prompts")
class MissingAwarePrompts(Method):
    """Prompts chosen by the missing modalities; see the top of this file."""

    class Options(MaskingMethodOptions):
        place: PromptPlace = Field("input", description="Whether prompts are tokens, or keys and values of attention.")
        length: int = Field(16, ge=1, description="Vectors of each prompt; of attention half are keys, half values.")
        layers: tuple[Annotated[int, Field(ge=0)], ...] = Field(
            (0, 1, 2, 3, 4, 5),
            min_length=1,
            description="Blocks that get prompts, from 0; a shallower network leaves out the others.",
        )
        init: Literal["indicator", "normal"] = Field(
            "indicator",
            description="Initial prompts. indicator, as in the authors' code: zeros but for one vector of ones, a "
            "different one for each pattern; normal: N(0, 0.02²).",
        )
        adapters: bool = Field(
            False, description="Whether the adapters of model.lora are trained too; the paper trains none."
        )

        @model_validator(mode="after")
        def _fits_together(self) -> MissingAwarePrompts.Options:
            if self.place == "attention" and self.length % 2:
                raise misfit(f"a length of {self.length} does not divide into keys and values", "an even length")
            if len(set(self.layers)) < len(self.layers):
                raise misfit("a block gets prompts twice", "each number once", "layers", list(self.layers))
            return self

    accepts = PromptedBackbone
    masks_gaps = False  # gaps of scenarios.train are the paper's setting
    always_feeds = True
    backbone: PromptedBackbone
    options: Options

    def __init__(self, backbone: PromptedBackbone, options: Options, noise: Noise, generator: torch.Generator) -> None:
        super().__init__(backbone, options, noise, generator)
        if not options.adapters:
            _without_adapters(backbone)
        backbone.train_pooler()
        self.layers: dict[str, list[int]] = {}
        self.prompts = PackedParameters()  # [S, P, layers, L, D]
        device = next(backbone.parameters()).device
        P = 2 ** len(backbone.modalities) - 1
        for part, (blocks, width) in backbone.prompted(options.place).items():
            self.layers[part] = [layer for layer in options.layers if layer < blocks]
            if not self.layers[part]:
                raise UserError(
                    "no block of the network gets prompts", key="method.layers", found=list(options.layers),
                    expected=f"numbers below {blocks}",
                )  # fmt: skip
            start = torch.zeros(P, len(self.layers[part]), options.length, width)
            if options.init == "normal":
                start.normal_(std=0.02, generator=generator)
            else:
                halves = start.chunk(2, 2) if options.place == "attention" else [start]
                for half in halves:
                    for p in range(P):
                        half[p, :, p % half.shape[2]] = 1.0
            self.prompts[part] = nn.Parameter(start[None].to(device))
        if options.place == "input":  # a part is a modality's encoder, or a network that all modalities share
            added = sum(options.length * len(layers) for layers in self.layers.values())
            self.extra_tokens = added // len(backbone.modalities)

    def forward(self, batch: Batch, used_BM: Tensor) -> Output:
        used_BM = sent(used_BM, batch.present_BM.device)
        fed = batch.with_placeholders(used_BM, self.backbone.modalities)
        prompts = {part: self._chosen(part, used_BM) for part in self.layers}
        return Output(self.backbone.predict(self.backbone.embed(fed), fed.present_BM, prompts))

    def _chosen(self, part: str, used_BM: Tensor) -> Prompts:
        """A part's prompts for the pattern of each row."""
        every = self.prompts[part]
        S, P, Y, L, D = every.shape
        digits_M = 2 ** torch.arange(used_BM.shape[1], device=used_BM.device)
        pattern_B = ((used_BM * digits_M).sum(1) - 1).clamp(min=0)  # a row without modalities is undefined
        chosen_SBP = (pattern_B[:, None] == torch.arange(P, device=used_BM.device)).view(S, -1, P).to(every.dtype)
        # A product with ones and zeros has a deterministic gradient; that of indexing sums in any order.
        rows_BYLD = torch.bmm(chosen_SBP, every.flatten(2)).view(-1, Y, L, D)
        return {i: Prompt(rows_BYLD[:, y], self.options.place) for y, i in enumerate(self.layers[part])}


def _without_adapters(network: nn.Module) -> None:
    """Replace adapted linears by their frozen base layers, in place."""
    for module in list(network.modules()):
        for name, inner in list(module.named_children()):
            if isinstance(inner, PackedLoRALinear):
                setattr(module, name, inner.base_layer)
