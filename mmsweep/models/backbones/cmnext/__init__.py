"""The backbone of MMP's segmentation: its network, the parts that no library has, and published checkpoints."""

from mmsweep.models.backbones.cmnext.network import CMNeXt

__all__ = ["CMNeXt"]
