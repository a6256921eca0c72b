"""The contract of a backbone: the network of all modalities, whose missing inputs a method deals with."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, Self

import torch
from torch import Tensor, nn

from mmsweep.data.dataset import Batch
from mmsweep.data.formats import Format, RasterFormat, SequenceFormat
from mmsweep.errors import UserError
from mmsweep.models.encoder import (
    NO_PROMPTS,
    CompileMode,
    Encoder,
    Pool,
    PromptPlace,
    Prompts,
    Tokens,
    refuse_compiling,
)
from mmsweep.models.input_formats import FormatOptions
from mmsweep.models.lora import Noise, add_lora
from mmsweep.models.packing import PackedLinear

if TYPE_CHECKING:
    from mmsweep.models.mult import MulTOptions


@dataclass(frozen=True)
class EncoderOptions:
    """One modality's encoder, as a study asks for it; fields as study.EncoderSpec."""

    source: str
    name: str
    layers: int | None = None
    pool: Pool = "auto"


@dataclass(frozen=True)
class Blueprint:
    """What a backbone is built from.

    Args:
        kinds: modality -> kind (data.dataset.MODALITY_KINDS), in the dataset's order.
        outputs: C of the prediction.
        inputs: input sizes that the study sets.
        clip_frames: frames a clip.
        encoders: modality -> encoder, for backbones made of encoders.
        weights: where a whole network's checkpoint lies (models/weights.py).
        pretrained: whether that checkpoint's weights are wanted; False: `reset` draws initial values.
        load: False builds it with initial values, for counting and for formats.
        files: False needs nothing on disk where the architecture is known by name.
        rasters: modality -> format, of the modalities of kind "raster".
        window: (H, W) that training sees of them; None: all.
        size: of a backbone that comes in several.
        sequences: modality -> how it is read, of the modalities of kind "sequence".
        mult: the shape of MulT.
    """

    kinds: Mapping[str, str]
    outputs: int
    inputs: FormatOptions
    clip_frames: int = 1
    encoders: Mapping[str, EncoderOptions] = field(default_factory=dict)
    weights: str | None = None
    pretrained: bool = True
    load: bool = True
    files: bool = True
    rasters: Mapping[str, RasterFormat] = field(default_factory=dict)
    window: tuple[int, int] | None = None
    size: str | None = None
    sequences: Mapping[str, SequenceFormat] = field(default_factory=dict)
    mult: MulTOptions | None = None


@dataclass(frozen=True)
class LoraOptions:
    """Fields as study.Lora, `alpha` as a number.

    `padded` is the largest rank of the pack that the trial may join, None: its own.
    """

    rank: int
    alpha: float
    dropout: float
    padded: int | None = None


@dataclass(frozen=True)
class Adaptation:
    """What a trial trains of a backbone's parts.

    Args:
        lora: adapters for every part that is not trained itself; None: none.
        trainable: parts whose own tensors are all trained.
        layer_norms: parts whose LayerNorms are trained (B15).
    """

    lora: LoraOptions | None = None
    trainable: frozenset[str] = frozenset()
    layer_norms: frozenset[str] = frozenset()


class Backbone(nn.Module, ABC):
    """The network of all modalities.

    Attributes:
        modalities: in the dataset's order.
        outputs: the width of the prediction (C).
        formats: modality -> how a raw value becomes its input.
        clip_frames: modality -> token sequences a sample, where there are several (frames of a clip, B13).
        dense: it predicts a map [B, C, H, W], for segmentation, instead of [B, C].
        smallest: pixels a side of the smallest raster that it can read.
    """

    modalities: tuple[str, ...]
    outputs: int
    formats: Mapping[str, Format]
    clip_frames: Mapping[str, int] = MappingProxyType({})
    dense: ClassVar[bool] = False
    smallest: ClassVar[int] = 1

    @classmethod
    def build(cls, blueprint: Blueprint) -> Backbone:
        """A backbone from a study's wishes. Raises UserError where they do not fit it."""
        raise NotImplementedError(cls.__name__)

    @classmethod
    def formats_of(cls, blueprint: Blueprint) -> Mapping[str, Format]:
        """`formats` of the backbone that `build` makes; sooner where nothing has to be built. Raises as `build`."""
        with torch.device("meta"):
            return cls.build(replace(blueprint, load=False)).formats

    @abstractmethod
    def token_shapes(self) -> dict[str, tuple[int, int]]:
        """(N, D) of each modality's tokens (of one sequence), for full-length inputs."""

    def token_grids(self) -> dict[str, tuple[int, ...]]:
        """`Tokens.grid` of each modality for full-length inputs: (h, w) or (n,); CLS and the like come before it."""
        return {m: (n,) for m, (n, _) in self.token_shapes().items()}

    @abstractmethod
    def embed(self, batch: Batch) -> dict[str, Tokens]:
        """Tokens of every modality. What is not present is never read: its tokens are those of zeros."""

    @abstractmethod
    def predict(self, tokens: Mapping[str, Tokens], used_BM: Tensor) -> Tensor:
        """The rest of the network: prediction [B, ...] from the modalities in use."""

    def parts(self) -> dict[str, nn.Module]:
        """The pretrained parts, by the name that `Adaptation` uses; everything else is trained always."""
        return {}

    def attention_linears(self, part: str) -> list[str]:
        """Full names within a part of what LoRA adapts. Raises UserError where the architecture has none to adapt."""
        raise UserError("this backbone takes no adapters", key="model.lora", expected="null")

    def compile_blocks(self, mode: CompileMode) -> None:
        """Run the blocks compiled while training. Raises UserError where a backbone has no such blocks."""
        refuse_compiling(mode, "backbone")

    def reset(self, generator: torch.Generator) -> None:
        """Draw anew, on the CPU, whatever no checkpoint gives."""

    def trial_copy(self, adaptation: Adaptation) -> Self:
        """A copy of its own modules over the same frozen tensors: what one trial may adapt without touching the next.

        Parts whose own tensors the trial trains are copied whole.
        """
        trained = adaptation.trainable | adaptation.layer_norms
        frozen = [part for name, part in self.parts().items() if name not in trained]
        shared = {id(t): t for part in frozen for t in (*part.parameters(), *part.buffers())}
        return copy.deepcopy(self, memo=shared)

    def adapt(self, adaptation: Adaptation, noise: Noise, generator: torch.Generator) -> None:
        """Add adapters and thaw what the trial trains."""
        for name, part in self.parts().items():
            lora = adaptation.lora
            if lora is not None and name not in adaptation.trainable:
                linears = self.attention_linears(name)
                add_lora(part, lora.rank, lora.alpha, lora.dropout, noise, generator, linears, lora.padded)
            norms = layer_norms(part) if name in adaptation.layer_norms else ()
            for own, parameter in part.named_parameters():
                if name in adaptation.trainable or own in norms:
                    parameter.requires_grad_(True)


NO_PART_PROMPTS: Mapping[str, Prompts] = MappingProxyType({})


class PromptedBackbone(Backbone):
    """A backbone of transformers that take prompts at any of their blocks."""

    @abstractmethod
    def prompted(self, place: PromptPlace) -> dict[str, tuple[int, int]]:
        """Part -> (its blocks, its width). Raises UserError where one of them takes no prompts at that place."""

    @abstractmethod
    def predict(
        self, tokens: Mapping[str, Tokens], used_BM: Tensor, prompts: Mapping[str, Prompts] = NO_PART_PROMPTS
    ) -> Tensor:
        """As `Backbone.predict`, with prompts by part."""

    @abstractmethod
    def train_pooler(self) -> None:
        """Train the pretrained pooler that the prediction is read through, if there is one, with the slot axis."""


class EncoderBackbone(PromptedBackbone):
    """A backbone with one encoder a modality and a head on fused class tokens: what CMPT needs.

    Attributes:
        encoders: modality -> Encoder.
        projections: modality -> map from the encoder's width to the common width (identity where equal), of each slot.
        head: the linear classifier h of equation 6, of each slot.
    """

    encoders: nn.ModuleDict
    projections: nn.ModuleDict
    head: PackedLinear
    width: int

    @abstractmethod
    def classes(
        self,
        modality: str,
        tokens: Tokens,
        extra_SED: Tensor | None = None,
        place: str = "last",
        prompts: Prompts = NO_PROMPTS,
    ) -> tuple[Tensor, Tensor]:
        """Encode one modality: (class token [B, D], the E extra tokens' outputs [B, E, D]) in the common width.

        Args:
            extra_SED: each slot's extra tokens, for the rows of that slot.
            place: of the extra tokens, `last` or `first`.
            prompts: with a row for each sample.
        """

    def class_tokens(self, batch: Batch) -> Tensor:
        """Every modality's class token [B, M, D] in the common width."""
        tokens = self.embed(batch)
        return torch.stack([self.classes(m, tokens[m])[0] for m in self.modalities], 1)

    @staticmethod
    def belongs(name: str, modality: str) -> bool:
        """Whether the parameter of a name is of a modality's own: its encoder's, adapters included, or projection's."""
        return name.startswith((f"encoders.{modality}.", f"projections.{modality}."))

    def encoder(self, modality: str) -> Encoder:
        encoder = self.encoders[modality]
        assert isinstance(encoder, Encoder)
        return encoder


def without_absent(value: Tensor, present_B: Tensor) -> Tensor:
    """Zeros where a sample lacks the input. `where` and not a product: NaN times zero is NaN."""
    return torch.where(
        present_B.view(-1, *[1] * (value.dim() - 1)), value, torch.zeros((), dtype=value.dtype, device=value.device)
    )


def layer_norms(module: nn.Module) -> set[str]:
    """Names of the LayerNorms' parameters within a module."""
    return {
        f"{name}.{part}"
        for name, inner in module.named_modules()
        if isinstance(inner, nn.LayerNorm)
        for part, _ in inner.named_parameters(recurse=False)
    }


def draw_linear(linear: nn.Linear | PackedLinear, generator: torch.Generator) -> None:
    """Initial values, drawn on the CPU: normal weights of variance 1 / inputs, zero biases. A packed one has a slot."""
    start = torch.empty(linear.weight.shape, device="cpu")
    start.normal_(std=1.0 / math.sqrt(linear.in_features), generator=generator)
    with torch.no_grad():
        linear.weight.copy_(start)
        if linear.bias is not None:
            linear.bias.zero_()
