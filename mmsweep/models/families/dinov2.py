"""DINOv2's vision transformers."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mmsweep.components import register
from mmsweep.models.encoder import Tokens
from mmsweep.models.families.family import IMAGENET_MEAN, IMAGENET_STD, PictureFamily


@register("dinov2")
class Dinov2(PictureFamily):
    model = "Dinov2Model"
    blocks = "encoder.layer"
    norms, scales = ("norm1", "norm2"), ("layer_scale1", "layer_scale2")
    mean, std = IMAGENET_MEAN, IMAGENET_STD

    @staticmethod
    def embed(model: Any, x: Tensor) -> Tokens:
        return Tokens(model.embeddings(x), None, PictureFamily.grid(model.config, x))
