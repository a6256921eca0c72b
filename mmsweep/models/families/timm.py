"""timm's plain vision transformers.

They have no transformers configuration; `config` is the network, or the name of a network to build.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmsweep.components import register
from mmsweep.data.kinds.image import ImageFormat
from mmsweep.data.kinds.kind import Format
from mmsweep.errors import UserError
from mmsweep.models.encoder import Tokens
from mmsweep.models.families.family import PictureFamily
from mmsweep.models.input_formats import Inputs, Preprocessing, scaled_format
from mmsweep.models.last_block import BlockParts
from mmsweep.models.weights import hub_folder, hub_name_of_timm


@register("timm")
class Timm(PictureFamily):
    """timm's VisionTransformer, whose `attn.qkv` is split on loading."""

    described = False
    blocks = "blocks"
    masked = False
    projections = ("attn.qkv.q", "attn.qkv.k", "attn.qkv.v", "attn.proj")
    heads, norms, scales = "attn.num_heads", ("norm1", "norm2"), ("ls1", "ls2")

    @classmethod
    def config_of(cls, model: Any) -> Any:
        return model

    @classmethod
    def build(cls, config: Any, pooler: bool = True) -> Any:
        return _network(config, weights=False)

    @classmethod
    def load(cls, folder: str, config: Any, pooler: bool) -> Any:
        return _network(config, weights=True)

    @classmethod
    def parts(cls, block: Any) -> BlockParts | None:
        """The parts of a plain block; None for timm's other blocks and attentions (gated, or with norms)."""
        from timm.layers.attention import Attention
        from timm.models.vision_transformer import Block

        attention = block.attn
        norms = (attention.q_norm, attention.k_norm, attention.norm) if type(attention) is Attention else ()
        plain = bool(norms) and all(isinstance(norm, nn.Identity) for norm in norms)
        plain = plain and type(block) is Block and getattr(attention, "gate", None) is None
        return super().parts(block) if plain else None

    @classmethod
    def prefix_of(cls, config: Any) -> int:
        return config.num_prefix_tokens

    @classmethod
    def has_class_token(cls, model: Any) -> bool:
        return model.cls_token is not None

    @classmethod
    def own_pool(cls, model: Any) -> str:
        """timm's `global_pool`: the class token or a mean; a mean also replaces attention pooling."""
        return "cls" if cls.has_class_token(model) and model.global_pool in ("token", "") else "mean"

    @classmethod
    def format(cls, config: Any, preprocessing: Preprocessing, folder: str, inputs: Inputs) -> ImageFormat:
        """The format of a network's pictures. Raises UserError if the study sets another size."""
        from timm.data import resolve_data_config

        data = resolve_data_config({}, model=config)
        size, channels = config.patch_embed.img_size[0], config.patch_embed.proj.in_channels
        if inputs.size not in (None, size):
            raise UserError(
                "timm encoders run at their own size", key="data.image.size", found=inputs.size, expected=str(size)
            )
        if channels != 3:
            raise UserError("the encoder does not read RGB pictures", key="channels", found=channels, expected="3")
        resize = size if data["crop_mode"] == "squash" else int(size / data["crop_pct"])
        return scaled_format(inputs, size, resize, tuple(data["mean"]), tuple(data["std"]), data["interpolation"])

    @classmethod
    def token_shape(cls, config: Any, fmt: Format) -> tuple[int, int]:
        return config.patch_embed.num_patches + config.num_prefix_tokens, config.embed_dim

    @classmethod
    def token_grid(cls, config: Any, fmt: Format) -> tuple[int, ...]:
        return tuple(config.patch_embed.grid_size)

    @staticmethod
    def embed(model: Any, x: Tensor) -> Tokens:
        values_BND = model._pos_embed(model.patch_embed(x))  # timm has no public function between patches and blocks
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
        positions_ND = model.patch_embed.proj.bias[None] if model.pos_embed is None else model.pos_embed[0]
        return positions_ND.mean(0)


class SplitQKV(nn.Module):
    """timm's fused q, k, v projection as three linears with equal outputs, so that each gets its own adapter (B14)."""

    def __init__(self, fused: nn.Linear) -> None:
        super().__init__()
        width = fused.out_features // 3
        for index, name in enumerate(("q", "k", "v")):
            part = nn.Linear(fused.in_features, width, bias=fused.bias is not None, device=fused.weight.device)
            with torch.no_grad():
                part.weight.copy_(fused.weight[index * width : (index + 1) * width])
                if fused.bias is not None:
                    part.bias.copy_(fused.bias[index * width : (index + 1) * width])
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([part(x) for part in self.children()], -1)


def _network(name: str, weights: bool) -> nn.Module:
    """A timm model. Raises UserError if timm has no such model or it is no plain vision transformer."""
    import timm

    overlay: dict[str, Any] = {}
    try:
        if weights and (hub_name := hub_name_of_timm(name)):
            overlay = {"file": str(hub_folder(hub_name, [], "") / "model.safetensors")}
        model: Any = timm.create_model(name, pretrained=weights, num_classes=0, pretrained_cfg_overlay=overlay)
    except UserError:
        raise
    except Exception as error:  # timm's readers raise many kinds
        raise UserError(
            f"timm cannot provide this model ({str(error).splitlines()[0]})",
            found=name,
            expected="one of timm.list_models('vit_*'), or a folder as local-dir:FOLDER",
        ) from error
    # Others, with rotary positions or parallel blocks, would fail or compute something else.
    fused = isinstance(model, timm.models.VisionTransformer) and all(
        isinstance(getattr(getattr(block, "attn", None), "qkv", None), nn.Linear) for block in model.blocks
    )
    if not fused:
        raise UserError(
            "not one of timm's plain vision transformers",
            found=name,
            expected="a name such as vit_base_patch16_224 or deit_small_patch16_224",
        )
    for block in model.blocks:
        with torch.device(block.attn.qkv.weight.device):
            block.attn.qkv = SplitQKV(block.attn.qkv)
    return model
