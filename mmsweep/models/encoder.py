"""The contract of an encoder.

    embed(x) -> Tokens      the embedding layer, class token first (equation 1 of CMPT)
    encode(Tokens) -> BND   blocks and final norm (equation 3); extra tokens may have been added in between
    pool(BND) -> BD         the token that represents the input

pretrained.py implements it for every pretrained transformer; a `Family` (families/) holds what differs between
architectures, and weights.py finds the weights. Encoders always run in evaluation mode, without their own dropout;
adapters have theirs.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmsweep.data.kinds.kind import Format
from mmsweep.errors import UserError
from mmsweep.models.options import CompileMode

PromptPlace = Literal["input", "attention"]

LEARNED = "learned"
"""Name of a buffer that holds what a network's format learned from the training rows (`TableFormat.stored`). It is kept
with the trained weights, which mean nothing on inputs that were made otherwise."""


@dataclass(frozen=True)
class Tokens:
    """A batch of token sequences.

    Args:
        values_BND: token values. For clips B counts frames: `sequences` consecutive rows belong to one sample.
        mask_BN: bool, False for padding; None: no padding.
        grid: (h, w) of patches, or (n,) for a sequence; prefix tokens (CLS, distillation) do not count.
        sequences: sequences per sample (frames of a clip), 1 otherwise.
        picture: (H, W) of the embedded raster, to which a dense prediction is resized.
    """

    values_BND: Tensor
    mask_BN: Tensor | None
    grid: tuple[int, ...]
    sequences: int = 1
    picture: tuple[int, int] | None = None

    def with_extra(self, extra_BED: Tensor, place: Literal["last", "first"]) -> Tokens:
        """These tokens with E more, which are never masked (B9)."""
        parts = [self.values_BND, extra_BED] if place == "last" else [extra_BED, self.values_BND]
        mask_BN = self.mask_BN
        if mask_BN is not None:
            ones = mask_BN.new_ones(extra_BED.shape[:2])
            mask_BN = torch.cat([mask_BN, ones] if place == "last" else [ones, mask_BN], 1)
        return replace(self, values_BND=torch.cat(parts, 1), mask_BN=mask_BN)


@dataclass(frozen=True)
class Prompt:
    """Learned vectors that enter a block of a transformer, one set per row.

    Args:
        values_BLD: L vectors of the network's width.
        place: `input`: they are appended to the sequence before the block and stay in it for later blocks;
            `attention`: the first half are additional keys and the second half additional values of the block.
    """

    values_BLD: Tensor
    place: PromptPlace

    def joined(self, values_BND: Tensor, mask: Tensor | None, seen: float = 1.0) -> tuple[Tensor, Tensor | None]:
        """The sequence with these vectors appended, and its mask [B, 1, 1, N] padded with `seen`."""
        longer_BND = torch.cat([values_BND, self.values_BLD.to(values_BND.dtype)], 1)
        return longer_BND, mask if mask is None else F.pad(mask, (0, self.values_BLD.shape[1]), value=seen)


Prompts = Mapping[int, Prompt]
"""Index of a block, from 0 -> the prompt that enters it."""
NO_PROMPTS: Prompts = MappingProxyType({})


class Encoder(nn.Module, ABC):
    """One modality's network, with `width` (D) and `format` (of its input)."""

    width: int
    format: Format

    def reset(self, generator: torch.Generator) -> None:
        """Draw anew, on the CPU, whatever no checkpoint gives."""

    @abstractmethod
    def embed(self, x: Tensor | dict[str, Tensor]) -> Tokens: ...

    @abstractmethod
    def embed_extra(self, extra_ED: Tensor) -> Tensor:
        """Apply to extra learned tokens the part of the embedding that they need (B7, B8): [..., E, D] to the same."""

    @abstractmethod
    def encode(self, tokens: Tokens, wanted: Sequence[slice] | None = None, prompts: Prompts = NO_PROMPTS) -> Tensor:
        """Blocks and final norm: [B, N, D], or [B, W, D] of the wanted tokens only. Outputs of prompts are dropped."""

    def prompted_blocks(self, place: PromptPlace) -> int:
        """Number of blocks that take prompts. Raises UserError if the architecture takes none at that place."""
        raise refuse_prompts(place)

    def train_pooler(self) -> None:
        """Train the pooler that `pool` uses, if there is one; it gets the slot axis (packing.py)."""

    @property
    @abstractmethod
    def pooled(self) -> int | None:
        """Number of leading tokens that `pool` reads; None: all of them."""

    def compile_blocks(self, mode: CompileMode) -> None:
        """Compile the blocks for training. Raises UserError if the encoder has no blocks to compile."""
        refuse_compiling(mode, "encoder")

    @abstractmethod
    def pool(self, values_BND: Tensor, mask_BN: Tensor | None = None) -> Tensor: ...

    @abstractmethod
    def class_embedding(self) -> Tensor:
        """The class token's embedding [D], or a suitable initial value if the architecture has none."""

    @abstractmethod
    def attention_linears(self) -> list[str]:
        """Full names of the q, k, v and o projections, which LoRA adapts."""

    @abstractmethod
    def token_shape(self) -> tuple[int, int]:
        """(N, D) of the tokens of a full-length input."""

    def token_grid(self) -> tuple[int, ...]:
        """`Tokens.grid` for a full-length input: (h, w) or (n,), without prefix tokens such as CLS."""
        return (self.token_shape()[0],)

    def train(self, mode: bool = True) -> Encoder:
        # Dropout in a frozen encoder would make two passes of one input differ; adapters have their own dropout.
        return super().train(False)


def refuse_prompts(place: PromptPlace) -> UserError:
    """The error of a network that takes no prompts at a place."""
    return UserError("this network takes no prompts there", key="method.place", found=place, expected="input")


def refuse_compiling(mode: CompileMode, what: str) -> None:
    """Raise UserError unless compiling is off."""
    if mode != "off":
        raise UserError(f"this {what} cannot be compiled", key="train.compile", found=mode, expected="off")


def sinusoids(steps: int, width: int) -> Tensor:
    """Encoding of positions 1 to `steps`: [steps, width], sines then cosines, and a zero column if width is odd."""
    half = width // 2
    rates_D = torch.exp(torch.arange(half) * (-math.log(10_000) / max(half - 1, 1)))
    angles_ND = torch.arange(1, steps + 1)[:, None] * rates_D
    return F.pad(torch.cat([angles_ND.sin(), angles_ND.cos()], 1), (0, width - 2 * half))
