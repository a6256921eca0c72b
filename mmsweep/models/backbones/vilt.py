"""ViLT: one transformer over the tokens of a text and a picture (Kim et al. 2021), transformers' ViltModel.

    embed      each modality's embedding layer: word or patch, position and modality-type embeddings
    predict    the blocks over [text tokens, image tokens], final norm, pooler on the text's class token, a linear head

For texts longer than the checkpoint's 40 positions (`data.text.length`), positions are interpolated.

Unlike transformers' `visual_embed`, which shuffles the patches by the process-wide generator, this file keeps all
patches in order. Attention does not depend on their order, so the outputs are equal.

An unused modality's tokens are masked from attention. The text's class token stays, because the prediction is read at
its position; it is a constant, the embedding of [CLS] at position 0, whatever the sample's text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from mmsweep.components import register
from mmsweep.data.dataset import Batch
from mmsweep.data.kinds.image import ImageFormat
from mmsweep.data.kinds.text import TextFormat
from mmsweep.errors import UserError
from mmsweep.models.backbone import NO_PART_PROMPTS, PromptedBackbone, draw_linear, without_absent
from mmsweep.models.compilation import BlockCompiler, block_compiler
from mmsweep.models.encoder import NO_PROMPTS, PromptPlace, Prompts, Tokens
from mmsweep.models.families.family import load_whole
from mmsweep.models.few_rows import steady
from mmsweep.models.input_formats import Inputs, Preprocessing, image_format, text_format
from mmsweep.models.last_block import BlockParts, SplitBlock
from mmsweep.models.options import CompileMode, ModelOptions, NetworkOptions
from mmsweep.models.packing import PackedLinear
from mmsweep.models.weights import find, has_pooler

_LINEARS = (*(f"attention.attention.{p}" for p in ("query", "key", "value")), "attention.output.dense")
"""The linears of a block that LoRA adapts, in the order of their calls."""


@register("vilt")
class ViLT(PromptedBackbone):
    """The network; see the top of this file.

    Args:
        network: transformers' network; it is frozen here, and `adapt` may unfreeze it (B25).
        kinds: modality -> `text` or `image`, one of each, in the dataset's order.
        formats: modality -> format; sizes determine the token counts.
        outputs: C, the width of the prediction.
        class_id: id of [CLS] in the vocabulary.
        pretrained: if False, `reset` draws the network's values too.
    """

    Options = NetworkOptions
    network: Any

    def __init__(
        self,
        network: transformers.ViltModel,
        kinds: Mapping[str, str],
        formats: Mapping[str, ImageFormat | TextFormat],
        outputs: int,
        class_id: int = 0,
        pretrained: bool = True,
    ) -> None:
        super().__init__()
        self.modalities = tuple(kinds)
        self.text = next(m for m, kind in kinds.items() if kind == "text")
        self.image = next(m for m, kind in kinds.items() if kind == "image")
        self.formats, self.outputs, self.class_id, self.pretrained = dict(formats), outputs, class_id, pretrained
        self.network = network
        self.compiler: BlockCompiler | None = None
        self.head = PackedLinear(network.config.hidden_size, outputs)
        text = self.formats[self.text]
        assert isinstance(text, TextFormat)
        _stretch(self.network.embeddings.text_embeddings, text.length)
        steady(self.network)
        self.network.requires_grad_(False)

    @classmethod
    def build(cls, model: ModelOptions, inputs: Inputs, outputs: int, load: bool = True, files: bool = True) -> ViLT:
        """Build it. Raises UserError unless there are one text, one picture, a checkpoint and sizes that fit."""
        kinds, options = inputs.kinds, model.backbone
        assert isinstance(options, NetworkOptions)
        if sorted(kinds.values()) != ["image", "text"]:
            raise UserError(
                "vilt reads one text and one picture",
                key="model.backbone.name",
                found=dict(kinds),
                expected="image, text",
            )
        key = "model.backbone.weights"
        if options.weights is None:
            raise UserError(
                "vilt needs a checkpoint",
                key=key,
                found=None,
                expected="a folder or a name such as dandelin/vilt-b32-mlm",
            )
        folder, config = find(options.source, options.weights, key, files)
        if config.model_type != "vilt":
            raise UserError(
                "not a checkpoint of ViLT", file=folder, key=key, found=config.model_type, expected="model_type vilt"
            )
        formats: dict[str, ImageFormat | TextFormat] = {}
        for modality, kind in kinds.items():
            make = _image_format if kind == "image" else _text_format
            formats[modality] = make(config, folder, inputs)
        pooler = not options.pretrained or folder is None or has_pooler(folder)
        if load and options.pretrained and folder is not None:
            network = load_whole(transformers.ViltModel, str(folder), config, add_pooling_layer=pooler)
        else:
            network = transformers.ViltModel(config, add_pooling_layer=pooler)
        class_id = _class_id(folder) if load and folder is not None else 0
        return cls(network, kinds, formats, outputs, class_id, options.pretrained)

    def parts(self) -> dict[str, nn.Module]:
        return {"backbone": self.network}

    def attention_linears(self, part: str) -> list[str]:
        count = self.network.config.num_hidden_layers
        return [f"encoder.layer.{i}.{name}" for i in range(count) for name in _LINEARS]

    def compile_blocks(self, mode: CompileMode) -> None:
        self.compiler = block_compiler(mode)

    def prompted(self, place: PromptPlace) -> dict[str, tuple[int, int]]:
        return {"backbone": (self.network.config.num_hidden_layers, self.network.config.hidden_size)}

    def train_pooler(self) -> None:
        if self.network.pooler is not None:
            self.network.pooler.dense = PackedLinear.of(self.network.pooler.dense)

    def reset(self, generator: torch.Generator) -> None:
        draw_linear(self.head, generator)
        if not self.pretrained:
            for module in self.network.modules():
                for name, parameter in module.named_parameters(recurse=False):
                    _draw(module, name, parameter, self.network.config.initializer_range, generator)

    def train(self, mode: bool = True) -> ViLT:
        super().train(mode)
        self.network.eval()  # adapters have their own dropout, drawn from the trial's generator
        return self

    def token_shapes(self) -> dict[str, tuple[int, int]]:
        width = self.network.config.hidden_size
        return {m: (1 + math.prod(grid), width) for m, grid in self.token_grids().items()}

    def token_grids(self) -> dict[str, tuple[int, ...]]:
        grids: dict[str, tuple[int, ...]] = {}
        for modality, form in self.formats.items():
            if isinstance(form, ImageFormat):
                side = form.size // self.network.config.patch_size
                grids[modality] = (side, side)
            elif isinstance(form, TextFormat):
                grids[modality] = (form.length - 1,)
        return grids

    def embed(self, batch: Batch) -> dict[str, Tokens]:
        tokens = {}
        for column, modality in enumerate(self.modalities):
            x, present_B = batch.inputs[modality], batch.present_BM[:, column]
            if isinstance(x, Tensor):
                tokens[modality] = self._embed_image(without_absent(x, present_B))
            else:
                tokens[modality] = self._embed_text(without_absent(x["ids"], present_B), x["mask"])
        return tokens

    def predict(
        self, tokens: Mapping[str, Tokens], used_BM: Tensor, prompts: Mapping[str, Prompts] = NO_PART_PROMPTS
    ) -> Tensor:
        text, image = tokens[self.text], tokens[self.image]
        has_text_B, has_image_B = (used_BM[:, self.modalities.index(m)] for m in (self.text, self.image))
        assert text.mask_BN is not None
        text_mask_BN = text.mask_BN & has_text_B[:, None]
        text_mask_BN[:, 0] = True
        class_ids_B1 = torch.full_like(has_text_B[:, None], self.class_id, dtype=torch.int64)
        class_B1D = self._embed_text(class_ids_B1).values_BND
        first_B1D = torch.where(has_text_B[:, None, None], text.values_BND[:, :1], class_B1D.to(text.values_BND.dtype))
        values_BND = torch.cat([first_B1D, text.values_BND[:, 1:], image.values_BND.to(text.values_BND.dtype)], 1)
        image_mask_BN = has_image_B[:, None].expand(-1, image.values_BND.shape[1])
        mask_BN = torch.cat([text_mask_BN, image_mask_BN], 1)
        values_BND = torch.where(mask_BN[..., None], values_BND, torch.zeros_like(values_BND))  # 0 * NaN is NaN
        bias_BN = torch.zeros_like(mask_BN, dtype=values_BND.dtype).masked_fill(~mask_BN, float("-inf"))
        values_BND = self.network.layernorm(self._encode(values_BND, bias_BN, prompts.get("backbone", NO_PROMPTS)))
        class_BD = values_BND[:, 0] if self.network.pooler is None else self.network.pooler(values_BND)
        return self.head(class_BD)

    def _encode(self, values_BND: Tensor, bias_BN: Tensor, prompts: Prompts) -> Tensor:
        """The blocks over one sequence; input prompts stay at its end, after text and picture."""
        bias: Tensor | None = bias_BN[:, None, None]
        for i, block in enumerate(self.network.encoder.layer):
            prompt = prompts.get(i)
            if prompt is not None and prompt.place == "input":
                values_BND, bias = prompt.joined(values_BND, bias, seen=0.0)
            if prompt is None or prompt.place == "input":
                inputs = values_BND, bias
                out = block(*inputs) if self.compiler is None else self.compiler(block, _LINEARS, *inputs)
                values_BND = out[0]
                continue
            split, arguments = SplitBlock(block, _parts, None), (values_BND, bias, prompt.values_BLD)
            linears = tuple(f"block.{name}" for name in _LINEARS)
            values_BND = split(*arguments) if self.compiler is None else self.compiler(split, linears, *arguments)
        return values_BND

    def _embed_text(self, ids_BN: Tensor, mask_BN: Tensor | None = None) -> Tokens:
        embeddings = self.network.embeddings
        values_BND = embeddings.text_embeddings(input_ids=ids_BN) + embeddings.token_type_embeddings.weight[0]
        return Tokens(values_BND, mask_BN, (ids_BN.shape[1] - 1,))

    def _embed_image(self, x_BCHW: Tensor) -> Tokens:
        embeddings = self.network.embeddings
        patches_BDhw = embeddings.patch_embeddings(x_BCHW)
        grid = (patches_BDhw.shape[-2], patches_BDhw.shape[-1])
        side = self.network.config.image_size // self.network.config.patch_size
        position_1DSS = embeddings.position_embeddings[:, 1:].transpose(1, 2).unflatten(2, (side, side))
        if grid != (side, side):  # as in transformers
            position_1DSS = F.interpolate(position_1DSS, size=grid, mode="bilinear", align_corners=True)
        class_B1D = (embeddings.cls_token + embeddings.position_embeddings[:, :1]).expand(len(x_BCHW), -1, -1)
        values_BND = torch.cat([class_B1D, (patches_BDhw + position_1DSS).flatten(2).transpose(1, 2)], 1)
        return Tokens(values_BND + embeddings.token_type_embeddings.weight[1], None, grid)


def _parts(block: Any) -> BlockParts:
    attention = block.attention.attention

    def after(attended_BND: Tensor, x_BND: Tensor) -> Tensor:
        x_BND = block.attention.output(attended_BND, x_BND) + x_BND
        return block.output(block.intermediate(block.layernorm_after(x_BND)), x_BND)

    return BlockParts(
        attention.num_attention_heads, block.layernorm_before, attention.query, attention.key, attention.value, after
    )


def _image_format(config: Any, folder: Path | None, inputs: Inputs) -> ImageFormat:
    form = image_format(config, Preprocessing(folder), inputs, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    if form.size % config.patch_size:
        raise UserError(
            "the picture does not divide into patches",
            key="data.image.size",
            found=form.size,
            expected=f"a multiple of {config.patch_size}",
        )
    return form


def _text_format(config: Any, folder: Path | None, inputs: Inputs) -> TextFormat:
    return text_format(config, Preprocessing(folder), str(folder or ""), inputs, stretches=True)


def _stretch(embeddings: Any, length: int) -> None:
    """Interpolate ViLT's text positions if `length` exceeds them.

    The interpolation is bilinear, as in the code of Lee et al. (CVPR 2023), whose studies read up to 1024 tokens with a
    network trained on 40.
    """
    old_ND = embeddings.position_embeddings.weight.detach()
    if length <= len(old_ND):
        return
    size = (length, old_ND.shape[1])
    new_ND = F.interpolate(old_ND[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
    embeddings.position_embeddings = nn.Embedding.from_pretrained(new_ND, freeze=False)
    embeddings.position_ids = torch.arange(length, device=old_ND.device)[None]
    embeddings.token_type_ids = torch.zeros(1, length, dtype=torch.int64, device=old_ND.device)


def _class_id(folder: Path) -> int:
    from transformers import AutoTokenizer  # seconds to import

    try:
        number = AutoTokenizer.from_pretrained(str(folder), local_files_only=True).cls_token_id
    except (OSError, ValueError) as error:
        raise UserError(f"the tokenizer cannot be read ({str(error).splitlines()[0]})", file=folder) from error
    if number is None:
        raise UserError("the tokenizer has no class token", file=folder, expected="a class token such as [CLS]")
    return int(number)


def _draw(module: nn.Module, name: str, parameter: nn.Parameter, std: float, generator: torch.Generator) -> None:
    """Draw an initial value as the architecture's authors do, from the trial's generator."""
    if parameter.device.type == "meta":
        return
    with torch.no_grad():
        if isinstance(module, nn.LayerNorm):
            parameter.fill_(1.0 if name == "weight" else 0.0)
        elif name == "bias":
            parameter.zero_()
        else:
            parameter.copy_(torch.empty(parameter.shape).normal_(std=std, generator=generator))
