"""CMNeXt (Zhang et al., CVPR 2023), the backbone of MMP's segmentation: colour as the hub, any number of extras.

    embed     stage 1's patch embedding of every modality: the tokens that MMP restores (B33); grid = (h, w)
    predict   four stages of MiT blocks on the hub and MSPA blocks on the merged extras, rectified (FRM) and fused
              (FFM) after each stage, then SegFormer's head: logits [B, C, H, W] at the input's size

The extras share one patch-embedding convolution per stage. Several extras are weighted by their score predictors and
merged by the maximum at each place (self-query hub). The stage-1 tokens of an unused modality are zeros, and it is left
out of the maximum at every stage; rows of a batch may use different modalities. The hub's blocks are transformers'
SegFormer layers; `parts.py` holds the other parts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from mmsweep.components import misfit, register
from mmsweep.data.dataset import Batch
from mmsweep.data.kinds.raster import RasterFormat
from mmsweep.errors import UserError
from mmsweep.models.backbone import Backbone, without_absent
from mmsweep.models.backbones.cmnext.parts import (
    ChannelNorm,
    Fusion,
    PoolBlock,
    Rectification,
    ScorePredictor,
    SeededDrop,
    SegFormerHead,
    SharedEmbedding,
)
from mmsweep.models.backbones.cmnext.weights import HUB_ONLY, load_published
from mmsweep.models.encoder import Tokens
from mmsweep.models.input_formats import Inputs
from mmsweep.models.lora import Noise, set_noise
from mmsweep.models.options import ModelOptions, NetworkOptions

HEADS, REDUCTIONS, POOL_RATIOS = (1, 2, 5, 8), (8, 4, 2, 1), (8, 8, 4, 4)
DROP_PATH, DROP_HEAD = 0.1, 0.1


@dataclass(frozen=True)
class Size:
    """Widths and depths of the four stages, and the width of the head."""

    widths: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]
    head: int


SIZES = {
    "nano": Size((16, 32, 80, 128), (1, 1, 1, 1), 64),  # mmsweep's own, for CPUs and tests; the others are MiT's
    "b0": Size((32, 64, 160, 256), (2, 2, 2, 2), 256),
    "b1": Size((64, 128, 320, 512), (2, 2, 2, 2), 256),
    "b2": Size((64, 128, 320, 512), (3, 4, 6, 3), 512),
    "b3": Size((64, 128, 320, 512), (3, 4, 18, 3), 512),
    "b4": Size((64, 128, 320, 512), (3, 8, 27, 3), 512),
    "b5": Size((64, 128, 320, 512), (3, 6, 40, 3), 512),
}


class HubStage(nn.Module):
    """One stage of the hub: patch embedding, MiT blocks and a norm."""

    def __init__(self, size: Size, stage: int, drops: Sequence[float]) -> None:
        from transformers import SegformerConfig  # seconds to import
        from transformers.models.segformer import modeling_segformer

        super().__init__()
        width = size.widths[stage]
        options: Any = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "attn_implementation": "sdpa"}
        config = SegformerConfig(**options)
        before, patch, stride = (3, 7, 4) if stage == 0 else (size.widths[stage - 1], 3, 2)
        self.embedding = modeling_segformer.SegformerOverlapPatchEmbeddings(patch, stride, before, width)
        self.blocks = nn.ModuleList(
            modeling_segformer.SegformerLayer(config, width, HEADS[stage], 0.0, REDUCTIONS[stage], 4) for _ in drops
        )
        for block, drop in zip(self.blocks, drops, strict=True):
            block.drop_path = SeededDrop(drop)  # transformers' drop path draws from the process-wide generator
        self.norm = nn.LayerNorm(width)

    def forward(self, values_BND: Tensor, grid: tuple[int, int]) -> Tensor:
        for block in self.blocks:
            values_BND = block(values_BND, *grid)
        return _as_map(self.norm(values_BND), grid)


class ExtraStage(nn.Module):
    """One stage of the extras: shared patch embedding, scores, MSPA blocks, and fusion with the hub."""

    def __init__(self, size: Size, stage: int, extras: int, drops: Sequence[float]) -> None:
        super().__init__()
        width = size.widths[stage]
        before, patch, stride = (3, 7, 4) if stage == 0 else (size.widths[stage - 1], 3, 2)
        self.embedding = SharedEmbedding(before, width, patch, stride, extras)
        self.scores = nn.ModuleList(ScorePredictor(width) for _ in range(extras if extras > 1 else 0))
        self.blocks = nn.ModuleList(PoolBlock(width, POOL_RATIOS[stage], drop) for drop in drops)
        self.norm = ChannelNorm(width)
        self.rectification = Rectification(width)
        self.fusion = Fusion(width, HEADS[stage])

    def merge(self, maps: list[Tensor], used_BE: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(the branch's input, the extras for the next stage), with zeros for unused modalities."""
        used = [without_absent(x, used_BE[:, e]) for e, x in enumerate(maps)]
        if len(used) == 1:
            return used[0], used
        scored = [x + score(x) * x for score, x in zip(self.scores, used, strict=True)]
        low = torch.finfo(scored[0].dtype).min
        candidates = [torch.where(used_BE[:, e, None, None, None], x, low) for e, x in enumerate(scored)]
        largest = torch.stack(candidates).amax(0)
        return without_absent(largest, used_BE.any(1)), [without_absent(x, used_BE[:, e]) for e, x in enumerate(scored)]


@register("cmnext")
class CMNeXt(Backbone):
    """The network; see the top of this file.

    Args:
        formats: modality -> format of its raster; the first is the hub. A single channel is repeated three times; any
            other number than three is mapped to three by a linear layer of our own, learned with the head.
        outputs: C, the number of classes.
        picture: (H, W) of the training inputs.
        size: a name of SIZES.
        generator: draws the initial values; None leaves the network on the meta device.
        published_order: reinterpret the extras between stages as the published code does, which takes [B, C, H, W] for
            [B, H, W, C]; its checkpoints were trained in this way.
    """

    class Options(NetworkOptions):
        shaping: ClassVar[tuple[str, ...]] = ("name", "size")
        source: ClassVar[str] = "file"
        read_with: ClassVar[Mapping[str, tuple[str, Any]]] = {"weights": ("pretrained", True)}

        weights: str | None = Field(
            None, description="A .safetensors file of CMNeXt's weights, or of MiT's weights for the hub only."
        )
        size: Literal["nano", "b0", "b1", "b2", "b3", "b4", "b5"] | None = Field(
            None, description="Size of the network (required): MiT's b0 to b5, or nano, which is small enough for CPUs."
        )

        @model_validator(mode="after")
        def _check_required(self) -> CMNeXt.Options:
            if self.size is None:
                raise misfit("cmnext, which reads rasters, needs a size", "nano, or b0 to b5 (MiT's sizes)", "size")
            if self.pretrained and self.weights is None:
                raise misfit("cmnext needs a file of weights", "weights: FILE.safetensors, or pretrained: false")
            return self

    dense: ClassVar[bool] = True
    smallest: ClassVar[int] = 29  # below it a stage's grid is smaller than the patch that reduces its keys
    hub: Any
    extras: Any

    def __init__(
        self,
        formats: Mapping[str, RasterFormat],
        outputs: int,
        picture: tuple[int, int],
        size: str = "b0",
        generator: torch.Generator | None = None,
        *,
        published_order: bool = False,
    ) -> None:
        super().__init__()
        if min(picture) < self.smallest:
            raise UserError(
                "the picture is too small for MiT's four stages", found=f"{picture[0]} x {picture[1]}",
                expected=f"{self.smallest} pixels a side at least",
            )  # fmt: skip
        self.modalities, self.formats = tuple(formats), dict(formats)
        self.loaded: tuple[str, ...] = ()  # prefixes of the modules with checkpoint values
        self.outputs, self.picture, self.published_order = outputs, picture, published_order
        self.size = SIZES[size]
        depths, extras = self.size.depths, len(formats) - 1
        with torch.device("meta"):  # constructors would draw from the process-wide generator
            rates = [DROP_PATH * i / max(sum(depths) - 1, 1) for i in range(sum(depths))]
            parts = [rates[sum(depths[:s]) : sum(depths[: s + 1])] for s in range(4)]
            self.hub = nn.ModuleList(HubStage(self.size, s, parts[s]) for s in range(4))
            self.extras = nn.ModuleList(ExtraStage(self.size, s, extras, parts[s]) for s in range(4 if extras else 0))
            others = {m: format.channels for m, format in formats.items() if format.channels not in (1, 3)}
            self.bands = nn.ModuleDict({m: nn.Conv2d(count, 3, 1, bias=False) for m, count in others.items()})
            self.head = SegFormerHead(self.size.widths, self.size.head, outputs, DROP_HEAD)
        if generator is not None:
            self.to_empty(device="cpu")
            self.reset(generator)
        for body in self.parts().values():
            body.requires_grad_(False)

    @classmethod
    def build(cls, model: ModelOptions, inputs: Inputs, outputs: int, load: bool = True, files: bool = True) -> CMNeXt:
        """Build it. Raises UserError for other kinds than rasters, small pictures or a checkpoint that does not fit."""
        options = model.backbone
        assert isinstance(options, CMNeXt.Options) and options.size is not None
        if set(inputs.kinds.values()) != {"raster"}:
            raise UserError(
                "cmnext reads only aligned rasters", key="model.backbone.name", found=dict(inputs.kinds),
                expected="modalities of kind raster",
            )  # fmt: skip
        formats = {m: inputs.rasters[m] for m in inputs.kinds}
        picture = inputs.window or next(iter(formats.values())).size
        weights = options.weights if options.pretrained else None
        start = torch.Generator().manual_seed(0) if load else None
        network = cls(formats, outputs, picture, options.size, start, published_order=weights is not None)
        if weights is not None and load:
            network.loaded = load_published(network, Path(weights), "model.backbone.weights")
        return network

    def parts(self) -> dict[str, nn.Module]:
        """Hub and extras; the head and `bands` are always trained."""
        return {"backbone": nn.ModuleList([self.hub, self.extras])}

    def attention_linears(self, part: str) -> list[str]:
        return [
            f"0.{s}.blocks.{i}.attention.{p}_proj" for s in range(4) for i in range(self.size.depths[s]) for p in "qkvo"
        ]

    def adapt(
        self, model: ModelOptions, noise: Noise, generator: torch.Generator, largest_rank: int | None = None
    ) -> None:
        """As in Backbone. Raises UserError if weights without checkpoint values would be frozen."""
        if self.loaded == HUB_ONLY and len(self.extras) and "backbone" not in model.trainable:
            raise UserError(
                "the checkpoint holds only MiT's encoder; the extras' branch would be frozen at its initial values",
                key="model.backbone.trainable", found=False, expected="true",
            )  # fmt: skip
        super().adapt(model, noise, generator, largest_rank)
        set_noise(self, noise)

    def train(self, mode: bool = True) -> CMNeXt:
        """Set the mode; frozen parts keep their running statistics."""
        super().train(mode)
        for body in self.parts().values():
            body.train(mode and any(p.requires_grad for p in self.hub[0].norm.parameters()))
        return self

    def reset(self, generator: torch.Generator) -> None:
        """Draw new values on the CPU for all weights without checkpoint values, as the published training does.

        Linears are normal(0, 0.02) truncated at 2, convolutions normal with variance 2 / fan-out, norms 1 and 0, and
        layer scales 0.01.
        """
        for path, module in self.named_modules():
            if f"{path}.".startswith(self.loaded or ("-",)):
                continue
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.device.type == "meta":
                    continue
                start = torch.zeros(parameter.shape, device="cpu")
                if name.startswith("scale"):
                    start.fill_(1e-2)
                elif name == "weight" and isinstance(module, nn.Linear):
                    nn.init.trunc_normal_(start, std=0.02, generator=generator)
                elif name == "weight" and isinstance(module, nn.Conv1d | nn.Conv2d):
                    fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
                    start.normal_(std=math.sqrt(2.0 / fan_out), generator=generator)
                elif name == "weight":
                    start.fill_(1.0)
                with torch.no_grad():
                    parameter.copy_(start)
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()

    def token_shapes(self) -> dict[str, tuple[int, int]]:
        high, wide = self._training_grid()
        return {m: (high * wide, self.size.widths[0]) for m in self.modalities}

    def token_grids(self) -> dict[str, tuple[int, ...]]:
        return dict.fromkeys(self.modalities, self._training_grid())

    def _training_grid(self) -> tuple[int, int]:
        return (self.picture[0] - 1) // 4 + 1, (self.picture[1] - 1) // 4 + 1

    def embed(self, batch: Batch) -> dict[str, Tokens]:
        tokens = {}
        for column, modality in enumerate(self.modalities):
            x = batch.inputs[modality]
            assert isinstance(x, Tensor)
            x = without_absent(x, batch.present_BM[:, column])
            if modality in self.bands:
                x = self.bands[modality](x)
            elif x.shape[1] == 1:
                x = x.expand(-1, 3, -1, -1)
            if column == 0:
                values_BND, high, wide = self.hub[0].embedding(x)
            else:
                embedded = self.extras[0].embedding(x, column - 1)
                high, wide = embedded.shape[2:]
                values_BND = embedded.flatten(2).transpose(1, 2)
            tokens[modality] = Tokens(values_BND, None, (high, wide), picture=(x.shape[-2], x.shape[-1]))
        return tokens

    def predict(self, tokens: Mapping[str, Tokens], used_BM: Tensor) -> Tensor:
        """Logits [B, C, H, W] at the size of the embedded pictures."""
        first = tokens[self.modalities[0]]
        grid = _grid(first)
        hub = torch.where(used_BM[:, :1, None], first.values_BND, 0.0)
        extras = [_as_map(tokens[m].values_BND, _grid(tokens[m])) for m in self.modalities[1:]]
        used_BE = used_BM[:, 1:]
        stages: list[Tensor] = []
        stage = hub
        for number in range(4):
            if number:
                hub, high, wide = self.hub[number].embedding(stage)
                grid = (high, wide)
                extras = [self.extras[number].embedding(x, e) for e, x in enumerate(extras)]
            stage = self.hub[number](hub, grid)
            if not self.extras:
                stages.append(stage)
                continue
            part = self.extras[number]
            merged, extras = part.merge(extras, used_BE)
            for block in part.blocks:
                merged = block(merged)
            stage, merged = part.rectification(stage, part.norm(merged))
            stages.append(part.fusion(stage, merged))
            extras = [merged] if len(extras) == 1 else [self._carried(x) + merged for x in extras]
            # From stage 2 on, each extra carries the merged branch; `merge` has removed the unused ones.
        return F.interpolate(self.head(stages), self._picture(tokens), mode="bilinear", align_corners=False)

    def _picture(self, tokens: Mapping[str, Tokens]) -> tuple[int, int]:
        """(H, W) of the embedded pictures, or of the training inputs if a method has restored all tokens."""
        known = [t.picture for t in tokens.values() if t.picture is not None]
        grid = _grid(tokens[self.modalities[0]])
        if known or grid == self._training_grid():
            return known[0] if known else self.picture
        return 4 * grid[0], 4 * grid[1]

    def _carried(self, x: Tensor) -> Tensor:
        if not self.published_order:
            return x
        return x.contiguous().reshape(x.shape[0], *x.shape[2:], x.shape[1]).permute(0, 3, 1, 2)


def _grid(tokens: Tokens) -> tuple[int, int]:
    high, wide = tokens.grid
    return high, wide


def _as_map(values_BND: Tensor, grid: tuple[int, int]) -> Tensor:
    return values_BND.transpose(1, 2).unflatten(2, grid)
