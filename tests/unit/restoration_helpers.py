"""Scenes of three modalities, for methods that restore a missing one's tokens."""

from __future__ import annotations

import copy

import torch

from mmsweep.availability import pattern_rows
from mmsweep.data.dataset import Batch
from mmsweep.methods import METHODS
from mmsweep.methods.restoration import TokenShape, per_sample
from mmsweep.models.backbone import Backbone, without_absent
from mmsweep.models.encoder import Tokens
from mmsweep.models.lora import Noise

SHAPES = {  # everything differs: counts, widths, grids, a clip of two frames, a text
    "text": TokenShape(5, 6, (4,)),
    "image": TokenShape(13, 8, (3, 4)),
    "clip": TokenShape(10, 12, (2, 2), sequences=2),
}


class Scenes(Backbone):
    """The smallest backbone there can be: tokens are the inputs, the prediction a linear map of their means."""

    def __init__(self, shapes=SHAPES):
        super().__init__()
        self.shapes, self.modalities, self.outputs = shapes, tuple(shapes), 3
        self.clip_frames = {m: s.sequences for m, s in shapes.items() if s.sequences > 1}
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.heads = torch.nn.ModuleDict({m: torch.nn.Linear(s.width, 3) for m, s in shapes.items()})

    def token_shapes(self):
        return {m: (s.count // s.sequences, s.width) for m, s in self.shapes.items()}

    def token_grids(self):
        return {m: s.grid for m, s in self.shapes.items()}

    def embed(self, batch):
        tokens = {}
        for column, (m, s) in enumerate(self.shapes.items()):
            x = without_absent(batch.inputs[m], batch.present_BM[:, column]) * self.scale
            n = x.shape[1] // s.sequences
            side = s.grid if m != "image" or n == 13 else (5, 7)
            lengths = torch.arange(n)[None] < (2 + torch.arange(len(x)) % 3)[:, None]
            mask = lengths[:, :n] if m == "text" else None
            tokens[m] = Tokens(x.unflatten(1, (s.sequences, n)).flatten(0, 1), mask, side, s.sequences)
        return tokens

    def predict(self, tokens, used_BM):
        total = 0
        for m, s in self.shapes.items():
            x = per_sample(tokens[m], s)
            weight = torch.ones(x.values_BND.shape[:2]) if x.mask_BN is None else x.mask_BN.float()
            mean = (x.values_BND * weight[..., None]).sum(1) / weight.sum(1, keepdim=True)
            total = total + self.heads[m](mean) * used_BM[:, [self.modalities.index(m)]]
        return total


def inputs(rows=7, seed=0, **counts):
    g = torch.Generator().manual_seed(seed)
    return {m: torch.randn(rows, counts.get(m, s.count), s.width, generator=g) for m, s in SHAPES.items()}


def scene(name="mmp", rows=7, counts=None, **spec):
    g = torch.Generator().manual_seed(1)
    spec = ({"projector": {"heads": 4}, "aggregated_tokens": 3} if name == "mmp" else {}) | spec
    method = METHODS[name](Scenes(), METHODS.options(name, **spec), Noise(), g)
    batch = Batch(inputs(rows, **(counts or {})), torch.ones(rows, 3, dtype=torch.bool), torch.zeros(rows).long())
    return method, batch


def solo(projector):
    """The only slot's projector, as its equations are written."""
    own = copy.deepcopy(projector)
    for p in own.parameters():
        p.data = p.data[0]
    return own


EVERY = torch.from_numpy(pattern_rows(tuple(SHAPES)))
