"""timm's vision transformers as a family of encoders."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mmsweep.data.formats import ImageFormat
from mmsweep.errors import UserError
from mmsweep.models.encoder import Tokens
from mmsweep.models.families import PictureFamily
from mmsweep.models.input_formats import FormatOptions, scaled_format
from mmsweep.models.last_block import BlockParts


class Timm(PictureFamily):
    """timm's VisionTransformer; `attn.qkv` is split on load."""

    projections = ("attn.qkv.q", "attn.qkv.k", "attn.qkv.v", "attn.proj")
    heads, norms, scales = "attn.num_heads", ("norm1", "norm2"), ("ls1", "ls2")

    @classmethod
    def parts(cls, block: Any) -> BlockParts | None:
        """timm has other kinds of blocks and of attention (gated, or with norms of its own): they are run whole."""
        from timm.layers.attention import Attention
        from timm.models.vision_transformer import Block

        attention = block.attn
        norms = (attention.q_norm, attention.k_norm, attention.norm) if type(attention) is Attention else ()
        plain = bool(norms) and all(isinstance(norm, nn.Identity) for norm in norms)
        plain = plain and type(block) is Block and getattr(attention, "gate", None) is None
        return super().parts(block) if plain else None

    @classmethod
    def has_class_token(cls, model: Any) -> bool:
        return model.cls_token is not None

    @classmethod
    def own_pool(cls, model: Any) -> str:
        """timm's `global_pool`: the class token, or a mean; attention pools are left to a mean too."""
        return "cls" if cls.has_class_token(model) and model.global_pool in ("token", "") else "mean"

    @classmethod
    def format_of(cls, model: Any, options: FormatOptions) -> ImageFormat:
        """How a network's pictures are made. Raises UserError where the study wants another size."""
        from timm.data import resolve_data_config

        said = resolve_data_config({}, model=model)
        size, channels = model.patch_embed.img_size[0], model.patch_embed.proj.in_channels
        if options.size not in (None, size):
            raise UserError(
                "timm encoders run at their own size", key="data.image.size", found=options.size, expected=str(size)
            )
        if channels != 3:
            raise UserError("the encoder reads pictures of another number of channels", found=channels, expected="3")
        resize = size if said["crop_mode"] == "squash" else int(size / said["crop_pct"])
        return scaled_format(options, size, resize, tuple(said["mean"]), tuple(said["std"]), said["interpolation"])

    @staticmethod
    def blocks(model: Any) -> tuple[str, Any]:
        return "blocks", model.blocks

    @staticmethod
    def embed(model: Any, x: Tensor) -> Tokens:
        values_BND = model._pos_embed(model.patch_embed(x))
        return Tokens(values_BND, None, model.patch_embed.grid_size)

    @staticmethod
    def before(model: Any, values_BND: Tensor) -> Tensor:
        return model.norm_pre(values_BND)

    @staticmethod
    def after(model: Any, values_BND: Tensor) -> Tensor:
        return model.norm(values_BND)

    @staticmethod
    def class_embedding(model: Any) -> Tensor:
        if model.cls_token is not None:
            return model.cls_token[0, 0]
        places_ND = model.patch_embed.proj.bias[None] if model.pos_embed is None else model.pos_embed[0]
        return places_ND.mean(0)
