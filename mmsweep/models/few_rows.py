"""Matrix products with few rows, rounded like products with many rows.

On the processors that were measured (docs/results/layer_products.md, layer_products_avx512.md), MKL rounds products of
fewer than 16 rows differently. A slot with a batch of a sample or two, such as an epoch's last one, has so few tokens
in its encoders' last block (last_block.py) that its results would depend on the other slots of its pack. Rows of zeros
pad such products.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

LEAST = 16
"""Number of rows from which a product rounds each row as among many, up to 24 measured rows: 4 on the AMD with one
thread and 12 with two, 16 on the Intel. Other processors may have no such number."""


def padded_rows(x_NI: Tensor) -> Tensor:
    """[N, I] padded by rows of zeros to [max(N, 16), I] on a CPU; unchanged on other devices."""
    few = x_NI.device.type == "cpu" and len(x_NI) < LEAST
    return F.pad(x_NI, (0, 0, 0, LEAST - len(x_NI))) if few else x_NI


def linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    """`F.linear` with each row rounded as among many: [..., I] to [..., O]."""
    rows = x.numel() // x.shape[-1]
    if rows >= LEAST:
        return F.linear(x, weight_OI, bias_O)
    y_NO = F.linear(padded_rows(x.reshape(rows, x.shape[-1])), weight_OI, bias_O)[:rows]
    return y_NO.view(*x.shape[:-1], len(weight_OI))


class SteadyLinear(nn.Linear):
    """A linear whose output for a row does not depend on the number of rows, on one thread."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def steady(network: nn.Module) -> None:
    """Turn every `nn.Linear` within a network into a `SteadyLinear`, in place; weights and names stay the same."""
    for module in network.modules():
        if type(module) is nn.Linear:
            module.__class__ = SteadyLinear
