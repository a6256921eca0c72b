"""A transformer of any family as an `Encoder`, pretrained or from initial values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmsweep.errors import UserError
from mmsweep.models.compilation import BlockCompiler, block_compiler
from mmsweep.models.encoder import NO_PROMPTS, Encoder, PromptPlace, Prompts, Tokens, refuse_prompts
from mmsweep.models.few_rows import steady
from mmsweep.models.input_formats import Inputs
from mmsweep.models.last_block import SplitBlock, take
from mmsweep.models.options import CompileMode, Pool, Sizes
from mmsweep.models.packing import PackedLinear
from mmsweep.models.weights import locate


class PretrainedEncoder(Encoder):
    """An encoder that runs a network through its `Family`.

    Args:
        source, name: the network (models/weights.py).
        key: the study's key that names it, for messages.
        inputs: sizes that the study sets; of a network from scratch also the one modality that it reads.
        layers: number of blocks to keep, from the first; None keeps all.
        pool: the token that represents the input; auto: the family's rule (B10 to B12).
        weights: False builds the network with initial values, for counting.
        files: False needs no files if the architecture is known by name; the default is `weights`.
        sizes: sizes of a network from scratch.
    """

    network: Any

    def __init__(
        self,
        source: str,
        name: str,
        key: str = "model.encoders",
        inputs: Inputs | None = None,
        layers: int | None = None,
        pool: Pool = "auto",
        weights: bool = True,
        files: bool | None = None,
        sizes: Sizes | None = None,
    ) -> None:
        super().__init__()
        architecture = locate(source, name, key, weights if files is None else files, inputs, sizes)
        self.family = architecture.family
        network: Any = architecture.network(weights)
        self.network = network
        steady(network)
        config = self.family.config_of(network)
        self.format = architecture.format(inputs or Inputs(), config)
        self._token_shape = self.family.token_shape(config, self.format)
        self._token_grid = self.family.token_grid(config, self.format)
        self.prefix = self.family.prefix_of(config)
        self.width = self._token_shape[1]
        blocks = self.blocks
        section = key.removesuffix(".name")
        if layers is not None and layers > len(blocks):
            raise UserError(
                "the encoder has fewer layers", key=f"{section}.layers", found=layers, expected=f"at most {len(blocks)}"
            )
        if layers is not None:
            del blocks[layers:]
        self._pool = self.family.own_pool(network) if pool == "auto" else pool
        if self._pool == "pooler" and getattr(self.network, "pooler", None) is None:
            raise UserError("this encoder has no pooler", key=f"{section}.pool", found=pool, expected="cls or mean")
        if self._pool == "cls" and not self.family.has_class_token(network):
            raise UserError("this encoder has no class token", key=f"{section}.pool", found=pool, expected="mean")
        self.compiler: BlockCompiler | None = None
        self.eval()

    @property
    def blocks(self) -> Any:
        return self.network.get_submodule(self.family.blocks)

    def reset(self, generator: torch.Generator) -> None:
        self.family.reset(self.network, generator)

    def embed(self, x: Tensor | dict[str, Tensor]) -> Tokens:
        """[B, 3, H, W], [B, frames, mel], [B, W], dict(ids, mask [B, L]) to tokens; clips [B, F, 3, H, W] by frames."""
        if isinstance(x, Tensor) and x.dim() == 5:
            tokens = self.family.embed(self.network, x.flatten(0, 1))
            return Tokens(tokens.values_BND, tokens.mask_BN, tokens.grid, sequences=x.shape[1])  # B13
        return self.family.embed(self.network, x)

    def embed_extra(self, extra_ED: Tensor) -> Tensor:
        return self.family.extra(self.network, extra_ED)

    def encode(self, tokens: Tokens, wanted: Sequence[slice] | None = None, prompts: Prompts = NO_PROMPTS) -> Tensor:
        values_BND = self.family.before(self.network, tokens.values_BND)
        count = values_BND.shape[1]
        mask = None if tokens.mask_BN is None else tokens.mask_BN[:, None, None, :]
        blocks = self.blocks
        for i, block in enumerate(blocks):
            learned_BLD, prompt = None, prompts.get(i)
            if prompt is not None and prompt.place == "input":
                values_BND, mask = prompt.joined(values_BND, mask)
            elif prompt is not None:
                learned_BLD = prompt.values_BLD
            computed = wanted if i == len(blocks) - 1 and self.family.parts(block) is not None else None
            if computed is None and learned_BLD is None:
                values_BND = self._run(block, values_BND, mask)
            else:
                values_BND = self._run_split(computed, block, values_BND, mask, learned_BLD)
        if wanted is None:
            values_BND = values_BND[:, :count]
        elif self.family.parts(blocks[-1]) is None:
            values_BND = take(values_BND, wanted)
        return self.family.after(self.network, values_BND)

    def _run(self, block: Any, values_BND: Tensor, mask: Tensor | None) -> Tensor:
        inputs = (values_BND, mask) if self.family.masked else (values_BND,)
        if self.compiler is None:
            return block(*inputs)
        return self.compiler(block, self.family.projections, *inputs)

    def _run_split(
        self,
        wanted: Sequence[slice] | None,
        block: Any,
        values_BND: Tensor,
        mask: Tensor | None,
        learned_BLD: Tensor | None,
    ) -> Tensor:
        split = SplitBlock(block, self.family.parts, wanted)
        if self.compiler is None:
            return split(values_BND, mask, learned_BLD)
        taken = take(values_BND.detach(), split.wanted)  # the input of q and o
        linears = tuple(f"block.{name}" for name in self.family.projections)
        return self.compiler(split, linears, values_BND, mask, learned_BLD, read=(taken, values_BND, values_BND, taken))

    def prompted_blocks(self, place: PromptPlace) -> int:
        if place == "attention" and self.family.parts(self.blocks[0]) is None:
            raise refuse_prompts(place)
        return len(self.blocks)

    def train_pooler(self) -> None:
        if self._pool == "pooler":
            self.network.pooler.dense = PackedLinear.of(self.network.pooler.dense)

    @property
    def pooled(self) -> int | None:
        if self._pool == "mean":
            return None
        return self.prefix if self._pool == "mean of prefix" else 1

    def compile_blocks(self, mode: CompileMode) -> None:
        self.compiler = block_compiler(mode) if self.family.compiled else None

    def pool(self, values_BND: Tensor, mask_BN: Tensor | None = None) -> Tensor:
        if self._pool == "cls":
            return values_BND[:, 0]
        if self._pool == "mean of prefix":
            return values_BND[:, : self.prefix].mean(1)
        if self._pool == "pooler":
            return self.network.pooler(values_BND)
        if mask_BN is None:
            return values_BND[:, self.prefix :].mean(1)
        weight_BN = mask_BN.to(values_BND.dtype)
        return (values_BND * weight_BN[..., None]).sum(1) / weight_BN.sum(1, keepdim=True).clamp(min=1)

    def class_embedding(self) -> Tensor:
        return self.family.class_embedding(self.network)

    def attention_linears(self) -> list[str]:
        family = self.family
        return [f"network.{family.blocks}.{i}.{p}" for i in range(len(self.blocks)) for p in family.projections]

    def token_shape(self) -> tuple[int, int]:
        return self._token_shape

    def token_grid(self) -> tuple[int, ...]:
        return self._token_grid
