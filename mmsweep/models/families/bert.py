"""BERT."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mmsweep.components import register
from mmsweep.data.kinds.kind import Format
from mmsweep.data.kinds.text import TextFormat
from mmsweep.models.encoder import Tokens
from mmsweep.models.families.family import Family
from mmsweep.models.input_formats import Inputs, Preprocessing, text_format
from mmsweep.models.last_block import BlockParts


@register("bert")
class Bert(Family):
    """Extra tokens get a token type and the embedding norm but no position (B8); the last hidden state counts (B11)."""

    model = "BertModel"
    pooler = True
    blocks = "encoder.layer"
    projections = tuple(f"attention.{p}" for p in ("self.query", "self.key", "self.value", "output.dense"))

    @classmethod
    def parts(cls, block: Any) -> BlockParts:
        """The parts of a post-norm block."""
        query, key, value, _ = (block.get_submodule(name) for name in cls.projections)

        def after(attended: Tensor, x: Tensor) -> Tensor:
            return block.feed_forward_chunk(block.attention.output(attended, x))

        return BlockParts(block.attention.self.num_attention_heads, nn.Identity(), query, key, value, after)

    @staticmethod
    def embed(model: Any, x: dict[str, Tensor]) -> Tokens:
        return Tokens(model.embeddings(input_ids=x["ids"]), x["mask"], (x["ids"].shape[1] - 1,))

    @staticmethod
    def after(model: Any, values_BND: Tensor) -> Tensor:
        return values_BND

    @staticmethod
    def extra(model: Any, extra_ED: Tensor) -> Tensor:
        return model.embeddings.LayerNorm(extra_ED + model.embeddings.token_type_embeddings.weight[0])

    @staticmethod
    def class_embedding(model: Any) -> Tensor:
        return model.embeddings.LayerNorm.bias  # the mean that the embedding norm gives every token

    @classmethod
    def format(cls, config: Any, preprocessing: Preprocessing, folder: str, inputs: Inputs) -> TextFormat:
        return text_format(config, preprocessing, folder, inputs)

    @classmethod
    def token_shape(cls, config: Any, fmt: Format) -> tuple[int, int]:
        assert isinstance(fmt, TextFormat)
        return fmt.length, config.hidden_size
