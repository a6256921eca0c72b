"""The backbone of MMP's segmentation: the network, its parts, and the import of published checkpoints."""

from mmsweep.models.backbones.cmnext.network import CMNeXt

__all__ = ["CMNeXt"]
