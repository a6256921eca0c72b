"""Plain: the backbone trained on the present modalities without handling gaps (the papers' "pretrained")."""

from __future__ import annotations

from mmsweep.components import register
from mmsweep.methods.modality_dropout import ModalityDropout, PlaceholderOptions


@register("plain")
class Plain(ModalityDropout):
    """`modality_dropout` that never masks."""

    class Options(PlaceholderOptions):
        pass
