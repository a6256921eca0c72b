"""Parts of CMNeXt (Zhang et al., CVPR 2023): MSPA blocks, score predictor, FRM, FFM, and head.

They follow the paper and the published model's behaviour (methods.md §5.1); `weights.py` maps the tensors to those of
published checkpoints. Feature maps are [B, C, H, W].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmsweep.models.lora import Noise, SeededDropout


class SeededDrop(SeededDropout):
    """Stochastic depth (drops samples) or dropout of channels, with masks from the trial's `noise`."""

    def __init__(self, p: float, channels: bool = False) -> None:
        super().__init__(p, Noise())
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        if not self.active:
            return x
        shape = (x.shape[0], x.shape[1] if self.channels else 1, *[1] * (x.dim() - 2))
        return x * self.noise.mask(x.new_empty(shape), self.p)


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
    """Overlapping patch embedding of the extras: a shared convolution, and a norm for each modality."""

    def __init__(self, before: int, width: int, patch: int, stride: int, extras: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(before, width, patch, stride, patch // 2)
        self.norms = nn.ModuleList(ChannelNorm(width) for _ in range(extras))

    def forward(self, x: Tensor, extra: int) -> Tensor:
        normed: Tensor = self.norms[extra](self.projection(x))
        return normed


class ScorePredictor(nn.Module):
    """Score of each place of an extra modality: [B, 1, H, W] in 0..1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 3, 1, 1, groups=width)
        self.pointwise = nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(x)).sigmoid()


class PoolAttention(nn.Module):
    """Multi-scale pooling attention: x (1 + sigmoid(mix of averages over windows of 1, 3, 7 and 11))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.mix = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(x)
        pooled = [F.avg_pool2d(y, side, 1, side // 2, count_include_pad=False) for side in (3, 7, 11)]
        return x + self.mix(y + pooled[0] + pooled[1] + pooled[2]).sigmoid() * x


class PoolBlock(nn.Module):
    """A block of the extras' branch (MSPA): pooling attention, channel mixing, convolutional MLP."""

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
        # As in the published block, the mixed channels replace the residual.
        return weight_BC[:, :, None, None] * x + self.drop(self.scale2[:, None, None] * hidden)


class Rectification(nn.Module):
    """FRM (CMX, Zhang et al. 2023): each branch adds the other one, weighted by channel and by place."""

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
    """FFM (CMX): the branches exchange contexts by linear cross-attention and are then mixed."""

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
        local, exchanged = zip(*(F.relu(self.split[i](x)).chunk(2, -1) for i, x in enumerate(tokens)), strict=True)
        contexts = [self._context(x, i) for i, x in enumerate(exchanged)]
        out = []
        for i, x in enumerate(tokens):
            queries = exchanged[i].unflatten(-1, (self.heads, -1)).transpose(1, 2)
            attended = (queries @ contexts[1 - i]).transpose(1, 2).flatten(2)
            out.append(self.norms[i](x + self.join[i](torch.cat([local[i], attended], -1))))
        merged = torch.cat(out, -1).transpose(1, 2).unflatten(2, a.shape[2:])
        fused: Tensor = self.norm(self.residual(merged) + self.mix(merged))
        return fused

    def _context(self, x: Tensor, i: int) -> Tensor:
        """A branch's context [B, heads, D, D]; its size does not depend on the number of tokens."""
        keys, values = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.key_value[i](x).chunk(2, -1)
        )
        return ((keys.transpose(-2, -1) @ values) * keys.shape[-1] ** -0.5).softmax(-2)


class SegFormerHead(nn.Module):
    """Projects all stages to one width and the first stage's grid, fuses and classifies them: [B, C, h, w]."""

    def __init__(self, widths: tuple[int, ...], width: int, outputs: int, drop: float) -> None:
        super().__init__()
        self.projections = nn.ModuleList(nn.Linear(w, width) for w in widths)
        self.fuse = nn.Conv2d(len(widths) * width, width, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.drop = SeededDrop(drop, channels=True)
        self.classify = nn.Conv2d(width, outputs, 1)

    def forward(self, stages: list[Tensor]) -> Tensor:
        size = stages[0].shape[2:]
        resized = []
        for projection, stage in zip(self.projections, stages, strict=True):
            x = projection(stage.movedim(1, -1)).movedim(-1, 1)
            resized.append(x if x.shape[2:] == size else F.interpolate(x, size, mode="bilinear"))
        fused = F.relu(self.norm(self.fuse(torch.cat(resized[::-1], 1))))
        logits: Tensor = self.classify(self.drop(fused))
        return logits
