"""A packed method for each rank and seed, without a study."""

from __future__ import annotations

import torch

from mmsweep.methods import METHODS
from mmsweep.models.lora import Noise
from mmsweep.models.options import BACKBONES, LoraOptions
from mmsweep.models.packing import trained
from tests.contracts.test_methods import CLASSES, wishes


def packed_method(
    encoder_folders, name="cmpt", rank=2, padded=5, seed=1, dropout=0.0, dtype=torch.float32, backbone="dual_encoder"
):
    g, noise = torch.Generator().manual_seed(seed), Noise()
    torch.manual_seed(0)
    lora = LoraOptions(rank=rank, alpha=1.5, dropout=dropout)
    model, inputs = wishes(backbone, 2, encoder_folders, lora)
    network = BACKBONES[backbone].build(model, inputs, CLASSES)
    network.reset(g)
    network.adapt(model, noise, g, padded)
    method = METHODS[name](network, METHODS.options(name), noise, g).to(dtype)
    for t in trained(method):
        if "lora_B" in t.name:
            t.slot_view(t.parameter.detach(), 0).normal_(std=0.3, generator=g)
    return method
