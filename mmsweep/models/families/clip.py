"""CLIP's vision tower."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mmsweep.components import register
from mmsweep.models.families.family import PictureFamily


@register("clip_vision_model", "clip")
class Clip(PictureFamily):
    """Extra tokens enter before the pre-LN (B7); pooling is after the post-LN, without the projection (B10)."""

    model = "CLIPVisionModel"
    blocks = "encoder.layers"
    projections = tuple(f"self_attn.{p}" for p in ("q_proj", "k_proj", "v_proj", "out_proj"))
    heads, norms = "self_attn.num_heads", ("layer_norm1", "layer_norm2")
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

    @classmethod
    def config(cls, config: Any) -> Any:
        return getattr(config, "vision_config", config)

    @staticmethod
    def before(model: Any, values_BND: Tensor) -> Tensor:
        return model.pre_layrnorm(values_BND)

    @staticmethod
    def after(model: Any, values_BND: Tensor) -> Tensor:
        return model.post_layernorm(values_BND)

    @staticmethod
    def class_embedding(model: Any) -> Tensor:
        return model.embeddings.class_embedding
