"""The contract of an encoder, and the one implementation that serves every pretrained transformer.

    embed(x) -> Tokens      the embedding layer, class token first (equation 1 of CMPT)
    encode(Tokens) -> BND   blocks and final norm (equation 3); extra tokens may have been added in between
    pool(BND) -> BD         the token that stands for the input

What differs between architectures is a `Family` (families/); how weights are found is weights.py.
Encoders run in evaluation mode for ever: their own dropout is off, adapters bring theirs.
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


@dataclass(frozen=True)
class Tokens:
    """A batch of token sequences.

    Args:
        values_BND: token values. For clips B counts frames: `sequences` consecutive rows belong to one sample.
        mask_BN: bool, False for padding; None: no padding.
        grid: (h, w) of patches, or (n,) for a sequence; prefix tokens (CLS, distillation) are not counted.
        sequences: sequences a sample (frames of a clip), 1 otherwise.
        picture: (H, W) of the raster that was embedded: what a dense prediction is brought back to.
    """

    values_BND: Tensor
    mask_BN: Tensor | None
    grid: tuple[int, ...]
    sequences: int = 1
    picture: tuple[int, int] | None = None

    def with_extra(self, extra_BED: Tensor, place: Literal["last", "first"]) -> Tokens:
        """These tokens with E more, never masked (B9)."""
        parts = [self.values_BND, extra_BED] if place == "last" else [extra_BED, self.values_BND]
        mask_BN = self.mask_BN
        if mask_BN is not None:
            ones = mask_BN.new_ones(extra_BED.shape[:2])
            mask_BN = torch.cat([mask_BN, ones] if place == "last" else [ones, mask_BN], 1)
        return replace(self, values_BND=torch.cat(parts, 1), mask_BN=mask_BN)


@dataclass(frozen=True)
class Prompt:
    """Learned vectors that enter a block of a transformer, a set for each row.

    Args:
        values_BLD: L vectors of the network's width.
        place: `input`: they join the sequence before the block and stay in it, so later blocks see them too;
            `attention`: the first half are keys and the second half values that the block's attention reads beside its
            own.
    """

    values_BLD: Tensor
    place: PromptPlace

    def joined(self, values_BND: Tensor, mask: Tensor | None, seen: float = 1.0) -> tuple[Tensor, Tensor | None]:
        """The sequence with these tokens at its end, and its mask [B, 1, 1, N] with `seen` for them."""
        whole_BND = torch.cat([values_BND, self.values_BLD.to(values_BND.dtype)], 1)
        return whole_BND, mask if mask is None else F.pad(mask, (0, self.values_BLD.shape[1]), value=seen)


Prompts = Mapping[int, Prompt]
"""Block, counted from 0 -> what enters it."""
NO_PROMPTS: Prompts = MappingProxyType({})


class Encoder(nn.Module, ABC):
    """One modality's network. Attributes: `width` (D), `format` (how a raw value becomes its input)."""

    width: int
    format: Format

    @abstractmethod
    def embed(self, x: Tensor | dict[str, Tensor]) -> Tokens: ...

    @abstractmethod
    def embed_extra(self, extra_ED: Tensor) -> Tensor:
        """Bring tokens that are learned outside the encoder to where `embed` ends (B7, B8): [..., E, D] as it is."""

    @abstractmethod
    def encode(self, tokens: Tokens, wanted: Sequence[slice] | None = None, prompts: Prompts = NO_PROMPTS) -> Tensor:
        """Blocks and final norm: [B, N, D], or of the wanted tokens alone [B, W, D]. Prompts' outputs are left out."""

    def prompted_blocks(self, place: PromptPlace) -> int:
        """How many blocks take prompts. Raises UserError where the architecture takes none at that place."""
        raise refuse_prompts(place)

    def train_pooler(self) -> None:
        """Train the pooler that `pool` reads through, where there is one, with the slot axis (packing.py)."""

    @property
    @abstractmethod
    def pooled(self) -> int | None:
        """How many tokens `pool` reads, from the first on; None: all of them."""

    def compile_blocks(self, mode: CompileMode) -> None:
        """Run the blocks compiled while training. Raises UserError where an encoder has no such blocks."""
        refuse_compiling(mode, "encoder")

    @abstractmethod
    def pool(self, values_BND: Tensor, mask_BN: Tensor | None = None) -> Tensor: ...

    @abstractmethod
    def class_embedding(self) -> Tensor:
        """The class token's embedding [D], or a fitting start where the architecture has none."""

    @abstractmethod
    def attention_linears(self) -> list[str]:
        """Full names of the q, k, v and o projections: what LoRA adapts."""

    @abstractmethod
    def token_shape(self) -> tuple[int, int]:
        """(N, D) of the tokens that `embed` gives for a full-length input."""

    def token_grid(self) -> tuple[int, ...]:
        """`Tokens.grid` for a full-length input: (h, w), or (n,); tokens before it (CLS) are not counted."""
        return (self.token_shape()[0],)

    def train(self, mode: bool = True) -> Encoder:
        # Adapters draw their own dropout; a frozen encoder's would make two reads of one input differ.
        return super().train(False)


def refuse_prompts(place: PromptPlace) -> UserError:
    return UserError("this network takes no prompts there", key="method.place", found=place, expected="input")


def refuse_compiling(mode: CompileMode, what: str) -> None:
    """Raises UserError where blocks are to be compiled that there are not."""
    if mode != "off":
        raise UserError(f"this {what} has no blocks that are compiled", key="train.compile", found=mode, expected="off")


def sinusoids(steps: int, width: int) -> Tensor:
    """Places 1 to `steps`: [steps, width], sines beside cosines, a zero column where the width is odd."""
    half = width // 2
    rates_D = torch.exp(torch.arange(half) * (-math.log(10_000) / max(half - 1, 1)))
    angles_ND = torch.arange(1, steps + 1)[:, None] * rates_D
    return F.pad(torch.cat([angles_ND.sin(), angles_ND.cos()], 1), (0, width - 2 * half))
