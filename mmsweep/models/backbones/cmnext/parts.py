"""The parts of CMNeXt (Zhang et al., CVPR 2023) that no library has: MSPA blocks, score predictor, FRM, FFM, head.

Written from the paper and from the published model's behaviour (methods.md §5.1); the tests hold the arithmetic, and
`cmnext_weights.py` the names under which the published checkpoints keep these tensors. Feature maps are [B, C, H, W].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmsweep.models.lora import Noise


class SeededDrop(nn.Module):
    """Drops whole samples (`channels=False`: stochastic depth) or channels, by the trial's own `noise`."""

    def __init__(self, p: float, channels: bool = False) -> None:
        super().__init__()
        self.p, self.channels, self.noise = p, channels, Noise()

    def forward(self, x: Tensor) -> Tensor:
        if not self.noise.generators or self.p == 0.0:
            return x
        shape = (x.shape[0], x.shape[1] if self.channels else 1, *[1] * (x.dim() - 2))
        return x * self.noise.keep(x.new_empty(shape), self.p)


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of a feature map."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        normed = F.layer_norm(x.movedim(1, -1), self.weight.shape, self.weight, self.bias, eps=1e-6)
        return normed.movedim(-1, 1)


class SharedEmbedding(nn.Module):
    """Overlapping patches of the extra modalities: one convolution for all of them, a norm for each."""

    def __init__(self, before: int, width: int, patch: int, stride: int, extras: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(before, width, patch, stride, patch // 2)
        self.norms = nn.ModuleList(ChannelNorm(width) for _ in range(extras))

    def forward(self, x: Tensor, extra: int) -> Tensor:
        out: Tensor = self.norms[extra](self.projection(x))
        return out


class ScorePredictor(nn.Module):
    """How informative each place of an extra modality is: [B, 1, H, W] in 0..1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 3, 1, 1, groups=width)
        self.pointwise = nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(x)).sigmoid()


class PoolAttention(nn.Module):
    """Multi-scale pooling attention: x (1 + sigmoid(mix of averages over 1, 3, 7 and 11 places))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.mix = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        seen = self.depthwise(x)
        pooled = [F.avg_pool2d(seen, side, 1, side // 2, count_include_pad=False) for side in (3, 7, 11)]
        return x + self.mix(seen + pooled[0] + pooled[1] + pooled[2]).sigmoid() * x


class PoolBlock(nn.Module):
    """A block of the branch of extra modalities (MSPA): pooling attention, channel mixing, convolutional MLP."""

    def __init__(self, width: int, ratio: int, drop: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.attention = PoolAttention(width)
        self.scale1 = nn.Parameter(torch.full((width,), 1e-2))
        self.scale2 = nn.Parameter(torch.full((width,), 1e-2))
        self.channel_mix = nn.Conv1d(1, 1, 3, padding=1, bias=False)
        self.expand = nn.Conv2d(width, ratio * width, 1)
        self.depthwise = nn.Conv2d(ratio * width, ratio * width, 3, padding=1, groups=ratio * width)
        self.contract = nn.Conv2d(ratio * width, width, 1)
        self.drop = SeededDrop(drop)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop(self.scale1[:, None, None] * self.attention(self.norm1(x)))
        channels_B1C = x.mean((2, 3))[:, None]
        weight_BC = self.channel_mix(channels_B1C).sigmoid()[:, 0]
        hidden = self.contract(F.gelu(self.depthwise(self.expand(self.norm2(x)))))
        # The published block has no residual beside the mixed channels here.
        return weight_BC[:, :, None, None] * x + self.drop(self.scale2[:, None, None] * hidden)


class Rectification(nn.Module):
    """FRM (CMX, Zhang et al. 2023): each branch takes from the other what channel and place weights let through."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.channels = nn.Sequential(nn.Linear(4 * width, 4 * width), nn.ReLU(), nn.Linear(4 * width, 2 * width))
        self.places = nn.Sequential(nn.Conv2d(2 * width, width, 1), nn.ReLU(), nn.Conv2d(width, 2, 1))

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        both = torch.cat([a, b], 1)
        pooled = torch.cat([both.mean((2, 3)), both.amax((2, 3))], 1)
        of_a, of_b = self.channels(pooled).sigmoid()[:, :, None, None].chunk(2, 1)
        at_a, at_b = self.places(both).sigmoid().chunk(2, 1)
        return a + 0.5 * (of_b + at_b) * b, b + 0.5 * (of_a + at_a) * a


class Fusion(nn.Module):
    """FFM (CMX): the branches exchange their contexts by cross-attention that is linear in the tokens, then mix."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.split = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(2))
        self.key_value = nn.ModuleList(nn.Linear(width, 2 * width, bias=False) for _ in range(2))
        self.join = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.residual = nn.Conv2d(2 * width, width, 1, bias=False)
        self.mix = nn.Sequential(
            nn.Conv2d(2 * width, width, 1),
            nn.Conv2d(width, width, 3, padding=1, groups=width),
            nn.ReLU(),
            nn.Conv2d(width, width, 1),
            nn.BatchNorm2d(width),
        )
        self.norm = nn.BatchNorm2d(width)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        tokens = [x.flatten(2).transpose(1, 2) for x in (a, b)]
        kept, given = zip(*(F.relu(self.split[i](x)).chunk(2, -1) for i, x in enumerate(tokens)), strict=True)
        contexts = [self._context(x, i) for i, x in enumerate(given)]
        out = []
        for i, x in enumerate(tokens):
            queries = given[i].unflatten(-1, (self.heads, -1)).transpose(1, 2)
            taken = (queries @ contexts[1 - i]).transpose(1, 2).flatten(2)
            out.append(self.norms[i](x + self.join[i](torch.cat([kept[i], taken], -1))))
        merged = torch.cat(out, -1).transpose(1, 2).unflatten(2, a.shape[2:])
        fused: Tensor = self.norm(self.residual(merged) + self.mix(merged))
        return fused

    def _context(self, x: Tensor, i: int) -> Tensor:
        """[B, heads, D, D]: a summary of a branch whose size does not grow with its tokens."""
        keys, values = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.key_value[i](x).chunk(2, -1)
        )
        return ((keys.transpose(-2, -1) @ values) * keys.shape[-1] ** -0.5).softmax(-2)


class SegFormerHead(nn.Module):
    """All stages brought to one width and to the first stage's grid, fused, classified: [B, C, h, w]."""

    def __init__(self, widths: tuple[int, ...], width: int, outputs: int, drop: float) -> None:
        super().__init__()
        self.projections = nn.ModuleList(nn.Linear(w, width) for w in widths)
        self.fuse = nn.Conv2d(len(widths) * width, width, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.drop = SeededDrop(drop, channels=True)
        self.classify = nn.Conv2d(width, outputs, 1)

    def forward(self, stages: list[Tensor]) -> Tensor:
        size = stages[0].shape[2:]
        shown = []
        for projection, x in zip(self.projections, stages, strict=True):
            own = projection(x.movedim(1, -1)).movedim(-1, 1)
            shown.append(own if own.shape[2:] == size else F.interpolate(own, size, mode="bilinear"))
        fused = F.relu(self.norm(self.fuse(torch.cat(shown[::-1], 1))))
        logits: Tensor = self.classify(self.drop(fused))
        return logits
