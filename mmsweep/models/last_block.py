"""A block run by its parts: with learned keys and values beside its own, or only at the tokens that somebody reads.

The latter is for an encoder's last block. What stands for an input is one token (CLS) and a few learned ones (proxies)
of many. The queries, the output projection and the feed-forward part of the others would be computed, differentiated
and thrown away; keys and values are needed of every token. Of the 12 D² products that a block of width D takes for a
token, 10 are saved: 7 % of an encoder of 12 blocks, 40 % of one of 2. What is read is what the whole block gives.
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


class SplitBlock(nn.Module):
    """A block that may give some tokens' outputs alone, in the order in which they are named.

    Args:
        block: the whole one.
        parts: takes it apart.
        wanted: the tokens; None: all of them.
    """

    def __init__(
        self, block: nn.Module, parts: Callable[[Any], BlockParts | None], wanted: Sequence[slice] | None
    ) -> None:
        super().__init__()
        self.block, self.parts = block, parts
        self.wanted = (slice(None),) if wanted is None else tuple(wanted)

    def forward(self, values_BND: Tensor, mask: Tensor | None, learned_BLD: Tensor | None = None) -> Tensor:
        """[B, W, D].

        Args:
            mask: broadcastable to [B, heads, W, N]; bool, False where nothing is attended to, or what is added to the
                logits.
            learned_BLD: L / 2 keys and L / 2 values more, all attended to.
        """
        parts = self.parts(self.block)
        assert parts is not None
        read_BND = parts.before(values_BND)
        query_BHWD = _by_head(parts.query(take(read_BND, self.wanted)), parts.heads)
        key_BND, value_BND = parts.key(read_BND), parts.value(read_BND)
        if learned_BLD is not None:
            more = learned_BLD.to(key_BND.dtype).chunk(2, 1)
            key_BND, value_BND = (torch.cat(pair, 1) for pair in zip((key_BND, value_BND), more, strict=True))
            if mask is not None:
                mask = F.pad(mask, (0, more[0].shape[1]), value=float(mask.dtype == torch.bool))
        key_BHND, value_BHND = (_by_head(x_BND, parts.heads) for x_BND in (key_BND, value_BND))
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
