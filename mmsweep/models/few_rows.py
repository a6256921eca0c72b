"""Products of few rows that round as those of many do.

MKL multiplies a matrix of fewer than 16 rows otherwise than a larger one on the processors that were looked at
(docs/results/layer_products.md, layer_products_avx512.md). A slot whose batch is a sample or two, an epoch's last one
say, reads so few tokens in its encoders' last block (last_block.py) that it would round otherwise alone than beside
neighbours. Rows of zeros make up for those that are missing.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

LEAST = 16
"""Rows from which on a product rounds each of them as among many, on one thread: 4 on the AMD, where 12 are needed on
two, and 16 on the Intel; up to 24 were looked at. Not every processor has such a number."""


def filled(x_NI: Tensor) -> Tensor:
    """On a CPU [N, I] to [max(N, 16), I], the new rows being zeros; on other devices x as it is."""
    few = x_NI.device.type == "cpu" and len(x_NI) < LEAST
    return F.pad(x_NI, (0, 0, 0, LEAST - len(x_NI))) if few else x_NI


def linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    """`F.linear`, each row as among many: [..., I] to [..., O]."""
    rows = x.numel() // x.shape[-1]
    if rows >= LEAST:
        return F.linear(x, weight_OI, bias_O)
    y_NO = F.linear(filled(x.reshape(rows, x.shape[-1])), weight_OI, bias_O)[:rows]
    return y_NO.view(*x.shape[:-1], len(weight_OI))


class SteadyLinear(nn.Linear):
    """A linear whose output at a row does not depend on how many others there are, on one thread."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def steady(network: nn.Module) -> None:
    """Make every `nn.Linear` within a network a `SteadyLinear`, in place; weights and names stay what they are."""
    for module in network.modules():
        if type(module) is nn.Linear:
            module.__class__ = SteadyLinear
