"""timm's attention as adapters need it: q, k and v by themselves (B14)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SplitQKV(nn.Module):
    """timm's fused q, k, v projection as three linears, equal outputs: one adapter over the fused one is not three."""

    def __init__(self, fused: nn.Linear) -> None:
        super().__init__()
        width = fused.out_features // 3
        for index, name in enumerate(("q", "k", "v")):
            part = nn.Linear(fused.in_features, width, bias=fused.bias is not None, device=fused.weight.device)
            with torch.no_grad():
                part.weight.copy_(fused.weight[index * width : (index + 1) * width])
                if fused.bias is not None:
                    part.bias.copy_(fused.bias[index * width : (index + 1) * width])
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([part(x) for part in self.children()], -1)
