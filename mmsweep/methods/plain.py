"""Plain: the backbone trained on whatever is present, nothing done about gaps (the papers' "pretrained")."""

from __future__ import annotations

from mmsweep.methods.method import register
from mmsweep.methods.modality_dropout import ModalityDropout


@register("plain")
class Plain(ModalityDropout):
    """`modality_dropout` that never masks."""

    can_mask = False
