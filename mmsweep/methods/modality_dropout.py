"""Modality dropout: the backbone trained with modalities removed at random.

`method.absent` says what the fusion gets for a modality that is absent or masked:

    drop         nothing: it adds nothing to the sum of class tokens, or its tokens are not attended to
    placeholder  the network's output for its placeholder (`data.fill`, the empty text), as in both papers' baselines
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from mmsweep.components import register
from mmsweep.data.dataset import Batch
from mmsweep.methods.method import Method, Output
from mmsweep.methods.options import MaskingMethodOptions, MethodOptions
from mmsweep.models.backbone import Backbone, EncoderBackbone, fuse
from mmsweep.transfer import sent


class PlaceholderOptions(MethodOptions):
    absent: Literal["drop", "placeholder"] = Field(
        "drop",
        description="What the fusion gets for an absent or masked modality. drop: nothing. placeholder: the modality's "
        "placeholder (data.fill, or the empty text) runs through the network and is fused like a real input, as in "
        "both papers' baselines.",
    )


@register("modality_dropout")
class ModalityDropout(Method):
    """Augmentation by masking (the "dropout" baseline of both papers)."""

    class Options(PlaceholderOptions, MaskingMethodOptions):
        pass

    backbone: Backbone
    options: PlaceholderOptions

    def forward(self, batch: Batch, used_BM: Tensor) -> Output:
        used_BM = sent(used_BM, batch.present_BM.device)
        if self.options.absent == "placeholder":
            batch = batch.with_placeholders(used_BM, self.backbone.modalities)
            used_BM = batch.present_BM
        return Output(self.backbone.predict(self.backbone.embed(batch), used_BM))

    def predict_patterns(self, batch: Batch, patterns_PM: Tensor) -> Tensor:
        """All patterns from one pass of each encoder, and a second one if placeholders are fed."""
        backbone, feeds = self.backbone, self.options.absent == "placeholder"
        if not isinstance(backbone, EncoderBackbone):
            if feeds:
                return super().predict_patterns(batch, patterns_PM)
            tokens = backbone.embed(batch)
            return torch.stack([backbone.predict(tokens, batch.present_BM & pattern_M) for pattern_M in patterns_PM])
        class_BMD = backbone.class_tokens(batch)
        substitute_BMD = None
        if feeds:
            nothing_BM = torch.zeros_like(batch.present_BM)
            substitute_BMD = backbone.class_tokens(batch.with_placeholders(nothing_BM, backbone.modalities))
        used_PBM = patterns_PM[:, None] & batch.present_BM
        return torch.stack([backbone.head(fuse(class_BMD, used_BM, substitute_BMD)) for used_BM in used_PBM])
