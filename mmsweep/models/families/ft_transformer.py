"""FT-Transformer for tables (Gorishniy et al., NeurIPS 2021, arXiv 2106.11959), trained from initial values.

    number x_j    ─► x_j W_j + b_j        an empty cell: E_j + b_j                       a token a column
    category c_j  ─► W_j[c_j] + b_j       empty and unknown ones have rows of their own
    [CLS], tokens ─► pre-norm blocks, the first without the norm before attention; ReGLU ─► final norm

What stands for a table is [CLS] after the final norm. The paper has a ReLU and a linear layer after it; here the
backbone's head follows. The rows of empty cells and of unknown categories begin at zero, so that such a cell says
nothing but its column until training rows teach it more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmsweep.components import register
from mmsweep.data.kinds.kind import Format
from mmsweep.data.kinds.table import EMPTY, UNKNOWN, TableFormat
from mmsweep.errors import UserError
from mmsweep.models.encoder import LEARNED, Tokens
from mmsweep.models.families.family import Family
from mmsweep.models.input_formats import Inputs, Preprocessing
from mmsweep.models.last_block import BlockParts, SplitBlock
from mmsweep.models.lora import Noise, SeededDropout
from mmsweep.models.options import Sizes


@dataclass(frozen=True)
class Shape:
    """A network's `config`: the table that it reads, and its sizes."""

    table: TableFormat
    sizes: Sizes


class Tokenizer(nn.Module):
    """float32 [B, 2F + C], as `TableFormat` says, to tokens [B, F + C, D]."""

    offsets: Tensor

    def __init__(self, table: TableFormat, width: int) -> None:
        super().__init__()
        numbers, self.F = len(table.numeric), len(table.numeric)
        self.number = nn.Parameter(torch.empty(numbers, width))
        self.empty = nn.Parameter(torch.empty(numbers, width))
        self.category = nn.Parameter(torch.empty(sum(table.codes), width))
        self.bias = nn.Parameter(torch.empty(len(table.names), width))
        self.register_buffer(
            "offsets", torch.tensor([0, *accumulate(table.codes)][:-1], dtype=torch.int64), persistent=False
        )

    def forward(self, x_BW: Tensor) -> Tensor:
        number_BF1, filled_BF1 = x_BW[:, : self.F, None], x_BW[:, self.F : 2 * self.F, None]
        codes_BC = x_BW[:, 2 * self.F :].long() + self.offsets
        parts = [number_BF1 * self.number + (1 - filled_BF1) * self.empty, F.embedding(codes_BC, self.category)]
        return torch.cat(parts, 1) + self.bias

    def reset(self, generator: torch.Generator) -> None:
        bound = 1 / math.sqrt(self.bias.shape[1])
        for values in (self.number, self.category, self.bias):
            _draw(values, bound, generator)
        with torch.no_grad():
            self.empty.zero_()
            for code in (EMPTY, UNKNOWN):
                self.category[self.offsets + code] = 0.0


class Block(nn.Module):
    """[B, N, D] to [B, N, D].

    Args:
        first: attention reads its input as it is.
    """

    def __init__(self, sizes: Sizes, first: bool) -> None:
        super().__init__()
        width, hidden, noise = sizes.width, int(sizes.width * sizes.hidden), Noise()
        self.heads = sizes.heads
        self.norm = nn.Identity() if first else nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.norm_between = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)
        rates = (sizes.attention_dropout, sizes.hidden_dropout, sizes.residual_dropout)
        self.attention_drop, self.hidden_drop, self.residual_drop = (SeededDropout(rate, noise) for rate in rates)

    def forward(self, values_BND: Tensor, mask: Tensor | None = None) -> Tensor:
        return SplitBlock(self, Block.parts, None)(values_BND, mask)

    def parts(self) -> BlockParts:
        def after(seen: Tensor, own: Tensor) -> Tensor:
            own = own + self.residual_drop(self.out(seen))
            gate, value = self.up(self.norm_between(own)).chunk(2, -1)
            return own + self.residual_drop(self.down(self.hidden_drop(gate * F.relu(value))))

        return BlockParts(self.heads, self.norm, self.query, self.key, self.value, after, self.attention_drop)


class Network(nn.Module):
    """Tokenizer, blocks and final norm; `config` is its shape."""

    def __init__(self, config: Shape) -> None:
        super().__init__()
        self.config, width = config, config.sizes.width
        self.cls = nn.Parameter(torch.empty(width))
        self.tokenizer = Tokenizer(config.table, width)
        self.blocks = nn.ModuleList(Block(config.sizes, i == 0) for i in range(config.sizes.layers))
        self.norm = nn.LayerNorm(width)
        self.register_buffer(LEARNED, config.table.stored())


@register("ft_transformer")
class FtTransformer(Family):
    fresh = True
    compiled = False
    blocks = "blocks"
    projections = ("query", "key", "value", "out")

    @classmethod
    def shape(cls, inputs: Inputs, sizes: Sizes) -> Shape:
        (kind,) = inputs.kinds.values()
        if kind != "table":
            raise UserError(f"this network reads table, and the modality is {kind}",
                            expected=f"a network that reads {kind}")  # fmt: skip
        (table,) = inputs.tables.values()
        return Shape(table, sizes)

    @classmethod
    def build(cls, config: Shape, pooler: bool = True) -> Network:
        return Network(config)

    @classmethod
    def reset(cls, model: Any, generator: torch.Generator) -> None:
        """Uniform, ± 1 / sqrt(inputs), as the authors' code has it; biases of attention are zero, norms neutral."""
        _draw(model.cls, 1 / math.sqrt(len(model.cls)), generator)
        model.tokenizer.reset(generator)
        for name, module in model.named_modules():
            if isinstance(module, nn.LayerNorm):
                with torch.no_grad():
                    module.weight.fill_(1.0)
                    module.bias.zero_()
            elif isinstance(module, nn.Linear):
                bound = 1 / math.sqrt(module.in_features)
                _draw(module.weight, bound, generator)
                _draw(module.bias, 0.0 if name.endswith(cls.projections) else bound, generator)

    @classmethod
    def parts(cls, block: Any) -> BlockParts:
        return block.parts()

    @staticmethod
    def embed(model: Any, x: Tensor) -> Tokens:
        tokens_BND = model.tokenizer(x)
        cls_B1D = model.cls.expand(len(x), 1, -1)
        return Tokens(torch.cat([cls_B1D, tokens_BND], 1), None, (tokens_BND.shape[1],))

    @staticmethod
    def after(model: Any, values_BND: Tensor) -> Tensor:
        return model.norm(values_BND)

    @staticmethod
    def class_embedding(model: Any) -> Tensor:
        return model.cls

    @classmethod
    def format(cls, config: Shape, preprocessing: Preprocessing, folder: str, inputs: Inputs) -> TableFormat:
        return config.table

    @classmethod
    def token_shape(cls, config: Shape, fmt: Format) -> tuple[int, int]:
        return len(config.table.names) + cls.prefix, config.sizes.width


def _draw(values: Tensor, bound: float, generator: torch.Generator) -> None:
    """Uniform within ± bound, drawn on the CPU."""
    with torch.no_grad():
        values.copy_(torch.empty(values.shape, device="cpu").uniform_(-bound, bound, generator=generator))
