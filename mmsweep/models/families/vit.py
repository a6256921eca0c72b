"""ViT, the vision transformer."""

from __future__ import annotations

from mmsweep.components import register
from mmsweep.models.families.family import PictureFamily


@register("vit")
class Vit(PictureFamily):
    model = "ViTModel"
    pooler = True
    blocks = "layers"
