"""Runs a block part by part: with additional learned keys and values, or for some tokens only.

An encoder's last block needs outputs for few tokens: the class token and perhaps learned ones (proxies). It needs keys
and values of every token, but no queries, output projection or feed-forward of the others. This saves 10 of the 12 D²
products per token of a block of width D: 7 % of an encoder with 12 blocks, 40 % with 2. The outputs are those of the
whole block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmsweep.models.lora import SeededDropout

MULTIPLE = 4
"""The number of tokens per sample is rounded up to a multiple of this. The row counts at which the AMD rounds products
differently are no multiples of 4 (docs/results/layer_products.md, measured to 24); few_rows.py pads below 16 rows."""


@dataclass(frozen=True)
class BlockParts:
    """The parts of a transformer block around its attention.

    Args:
        heads: number of attention heads.
        before: block input -> attention input.
        query, key, value: the projections.
        after: (attention output, block input at the same tokens) -> block output.
        drop: dropout of the attention weights; None if the block has none.
    """

    heads: int
    before: Callable[[Tensor], Tensor]
    query: nn.Module
    key: nn.Module
    value: nn.Module
    after: Callable[[Tensor, Tensor], Tensor]
    drop: SeededDropout | None = None


class SplitBlock(nn.Module):
    """A block that computes only the outputs of the wanted tokens, in the order of the slices.

    Args:
        block: the whole block.
        parts: block -> its parts.
        wanted: slices of tokens; None: all of them.
    """

    def __init__(
        self, block: nn.Module, parts: Callable[[Any], BlockParts | None], wanted: Sequence[slice] | None
    ) -> None:
        super().__init__()
        self.block, self.parts = block, parts
        self.wanted = (slice(None),) if wanted is None else tuple(wanted)

    def forward(self, values_BND: Tensor, mask: Tensor | None, learned_BLD: Tensor | None = None) -> Tensor:
        """The outputs [B, W, D].

        Args:
            mask: broadcastable to [B, heads, W, N]; bool, False for tokens to ignore, or numbers added to the logits.
            learned_BLD: L / 2 additional keys and L / 2 additional values, never masked.
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
        seen_BHWD = _attended(query_BHWD, key_BHND, value_BHND, mask, parts.drop)
        return parts.after(seen_BHWD.transpose(1, 2).flatten(2), take(values_BND, self.wanted))


def _attended(
    query_BHWD: Tensor, key_BHND: Tensor, value_BHND: Tensor, mask: Tensor | None, drop: SeededDropout | None
) -> Tensor:
    if drop is None or not drop.active:
        return F.scaled_dot_product_attention(query_BHWD, key_BHND, value_BHND, attn_mask=mask)
    logits_BHWN = query_BHWD @ key_BHND.mT / math.sqrt(query_BHWD.shape[-1])
    if mask is not None:
        logits_BHWN = logits_BHWN.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else logits_BHWN + mask
    return drop(logits_BHWN.softmax(-1)).to(value_BHND.dtype) @ value_BHND


def _by_head(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def take(values_BND: Tensor, wanted: Sequence[slice]) -> Tensor:
    """The wanted tokens of each sequence: [B, N, D] to [B, W, D]."""
    return torch.cat([values_BND[:, tokens] for tokens in wanted], 1)


def wanted_tokens(count: int, pooled: int | None, extras: int, place: str) -> list[slice] | None:
    """The tokens to compute in a sequence of `count` input tokens and `extras` more; None: all of them.

    Args:
        pooled: number of leading input tokens that are read; None: all.
        place: position of the extra tokens, `last` or `first`.
    """
    if pooled is None or (computed := pooled + -(pooled + extras) % MULTIPLE) >= count:
        return None
    return [slice(0, computed), slice(count, count + extras)] if place == "last" else [slice(0, extras + computed)]
