"""The last block of an encoder, computed only at the tokens that somebody reads.

What stands for an input is one token (CLS) and a few learned ones (proxies) of many. The queries, the output projection
and the feed-forward part of all others would be computed, differentiated and thrown away; keys and values are needed of
every token. Of the 12 D² products that a block of width D takes for a token, 10 are saved: 7 % of an encoder of 12
blocks, 40 % of one of 2. What is read is what the whole block gives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MULTIPLE = 4
"""Tokens of a sample are computed in multiples of so many: of the numbers of rows whose products differ among others
(docs/results/layer_products.md) the AMD's are no multiples of four. Those below 16 few_rows.py fills up; above 24 it is
not known."""


@dataclass(frozen=True)
class BlockParts:
    """A transformer block, taken apart at its attention.

    Args:
        heads: of attention.
        before: what attention reads of the block's input.
        query, key, value: the projections.
        after: (what attention gives, the block's input at the same tokens) -> the block's output.
    """

    heads: int
    before: Callable[[Tensor], Tensor]
    query: nn.Module
    key: nn.Module
    value: nn.Module
    after: Callable[[Tensor, Tensor], Tensor]


class LastBlock(nn.Module):
    """A block that gives some tokens' outputs alone, in the order in which they are named.

    Args:
        block: the whole one.
        parts: takes it apart.
        wanted: the tokens.
    """

    def __init__(self, block: nn.Module, parts: Callable[[Any], BlockParts | None], wanted: Sequence[slice]) -> None:
        super().__init__()
        self.block, self.parts, self.wanted = block, parts, tuple(wanted)

    def forward(self, values_BND: Tensor, mask: Tensor | None) -> Tensor:
        """[B, W, D]; mask: bool, broadcastable to [B, heads, W, N], False where nothing is attended to."""
        parts = self.parts(self.block)
        assert parts is not None
        read_BND = parts.before(values_BND)
        query_BHWD = _by_head(parts.query(take(read_BND, self.wanted)), parts.heads)
        key_BHND, value_BHND = (_by_head(project(read_BND), parts.heads) for project in (parts.key, parts.value))
        seen_BHWD = F.scaled_dot_product_attention(query_BHWD, key_BHND, value_BHND, attn_mask=mask)
        return parts.after(seen_BHWD.transpose(1, 2).flatten(2), take(values_BND, self.wanted))


def _by_head(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def take(values_BND: Tensor, wanted: Sequence[slice]) -> Tensor:
    """Some tokens of each sequence: [B, N, D] to [B, W, D]."""
    return torch.cat([values_BND[:, some] for some in wanted], 1)


def wanted_tokens(own: int, pooled: int | None, extras: int, place: str) -> list[slice] | None:
    """Which tokens to compute of a sequence of `own` tokens and `extras` more; None: all of them.

    Args:
        pooled: how many of the own ones are read, from the first on; None: all.
        place: of the extras, `last` or `first`.
    """
    if pooled is None or (kept := pooled + -(pooled + extras) % MULTIPLE) >= own:
        return None
    return [slice(0, kept), slice(own, own + extras)] if place == "last" else [slice(0, extras + kept)]
