"""Plain: the backbone trained on whatever is present, nothing done about gaps (the papers' "pretrained")."""

from __future__ import annotations

import torch

from mmsweep.methods.method import register
from mmsweep.methods.modality_dropout import ModalityDropout
from mmsweep.models.backbone import Backbone
from mmsweep.models.lora import Noise
from mmsweep.study import MethodSpec


@register("plain")
class Plain(ModalityDropout):
    """`modality_dropout` that never masks."""

    def __init__(self, backbone: Backbone, spec: MethodSpec, noise: Noise, generator: torch.Generator) -> None:
        super().__init__(backbone, spec, noise, generator)
        self.masking = None
