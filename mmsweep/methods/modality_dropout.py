"""Modality dropout: the backbone trained with modalities removed at random; an unused one adds nothing to the sum."""

from __future__ import annotations

import torch
from torch import Tensor

from mmsweep.data.dataset import Batch
from mmsweep.methods.method import Method, Output, register
from mmsweep.models.backbone import Backbone, EncoderBackbone
from mmsweep.models.dual_encoder import fuse
from mmsweep.transfer import sent


@register("modality_dropout")
class ModalityDropout(Method):
    """Augmentation by masking (the "dropout" baseline of both papers)."""

    def forward(self, batch: Batch, used_BM: Tensor) -> Output:
        assert isinstance(self.backbone, Backbone)
        used_BM = sent(used_BM, batch.present_BM.device)
        return Output(self.backbone.predict(self.backbone.embed(batch), used_BM))

    def predict_patterns(self, batch: Batch, patterns_PM: Tensor) -> Tensor:
        backbone, tokens = self.backbone, self.backbone.embed(batch)
        if not isinstance(backbone, EncoderBackbone):
            return torch.stack([backbone.predict(tokens, batch.present_BM & pattern_M) for pattern_M in patterns_PM])
        class_BMD = torch.stack([backbone.classes(m, tokens[m], None, "last")[0] for m in backbone.modalities], 1)
        return torch.stack([backbone.head(fuse(class_BMD, used)) for used in patterns_PM[:, None] & batch.present_BM])
