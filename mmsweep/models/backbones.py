"""The backbones by the name that studies use (`model.backbone.name`). A new one is a file and a line here."""

from __future__ import annotations

from mmsweep.models.backbone import Backbone
from mmsweep.models.cmnext import CMNeXt
from mmsweep.models.dual_encoder import DualEncoder
from mmsweep.models.mult import MulT
from mmsweep.models.vilt import ViLT

BACKBONES: dict[str, type[Backbone]] = {
    "dual_encoder": DualEncoder,
    "vilt": ViLT,
    "cmnext": CMNeXt,
    "mult": MulT,
}
