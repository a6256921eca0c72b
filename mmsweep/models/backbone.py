"""The contract of a backbone: the network of all modalities; a method handles its missing inputs."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from mmsweep.components import Registry
from mmsweep.data.dataset import Batch
from mmsweep.data.kinds.kind import Format
from mmsweep.errors import UserError, nearest
from mmsweep.models.encoder import NO_PROMPTS, Encoder, PromptPlace, Prompts, Tokens, refuse_compiling
from mmsweep.models.input_formats import Inputs
from mmsweep.models.lora import Noise, add_lora, set_noise
from mmsweep.models.options import BACKBONES, BackboneOptions, CompileMode, ModelOptions
from mmsweep.models.packing import PackedLinear
from mmsweep.tasks.task import TASKS


class Backbone(nn.Module, ABC):
    """The network of all modalities: one class in one file, registered under the name that studies use.

    Attributes:
        Options: the class of its options.
        encoded: whether it consists of one encoder per modality (`model.encoders`).
        dense: whether it predicts a map [B, C, H, W], for segmentation, instead of [B, C].
        smallest: side in pixels of the smallest raster that it can read.
        modalities: names in the dataset's order.
        outputs: C, the width of the prediction.
        formats: modality -> format of its input.
        clip_frames: modality -> token sequences per sample, for modalities with several (frames of a clip, B13).
    """

    registry: ClassVar[Registry] = BACKBONES
    Options: ClassVar[type[BackboneOptions]] = BackboneOptions
    encoded: ClassVar[bool] = False
    dense: ClassVar[bool] = False
    smallest: ClassVar[int] = 1
    modalities: tuple[str, ...]
    outputs: int
    formats: Mapping[str, Format]
    clip_frames: Mapping[str, int] = MappingProxyType({})

    @classmethod
    def check(cls, model: ModelOptions, modalities: Sequence[str], task: str) -> None:
        """Refuse a study that does not fit this backbone, before the network is built.

        Raises:
            UserError: names the study's key.
        """
        if cls.dense != TASKS[task].dense:
            name, fitting = model.backbone.name, [n for n, other in BACKBONES.items() if other.dense != cls.dense]
            raise UserError(
                f"backbone {name} does not predict {task}", key="model.backbone.name", found=name,
                expected=f"one of {', '.join(fitting)}",
            )  # fmt: skip

    @classmethod
    def build(
        cls, model: ModelOptions, inputs: Inputs, outputs: int, load: bool = True, files: bool = True
    ) -> Backbone:
        """Build a study's backbone with frozen weights.

        Args:
            model: the study's section `model`.
            inputs: the inputs that the network reads.
            outputs: C, the width of the prediction.
            load: False builds it with initial values, for counting and for formats.
            files: False needs no files if the architecture is known by name.

        Raises:
            UserError: inputs that the network cannot read, or missing weights.
        """
        raise NotImplementedError(cls.__name__)

    @classmethod
    def formats_of(cls, model: ModelOptions, inputs: Inputs) -> Mapping[str, Format]:
        """The `formats` of the backbone that `build` makes; subclasses may avoid building it. Raises as `build`."""
        with torch.device("meta"):
            return cls.build(model, inputs, 1, load=False).formats

    @abstractmethod
    def token_shapes(self) -> dict[str, tuple[int, int]]:
        """(N, D) of each modality's token sequence for full-length inputs."""

    def token_grids(self) -> dict[str, tuple[int, ...]]:
        """`Tokens.grid` of each modality for full-length inputs: (h, w) or (n,), without prefix tokens such as CLS."""
        return {m: (n,) for m, (n, _) in self.token_shapes().items()}

    @abstractmethod
    def embed(self, batch: Batch) -> dict[str, Tokens]:
        """Tokens of every modality. An absent input is never read; its tokens are those of zeros."""

    @abstractmethod
    def predict(self, tokens: Mapping[str, Tokens], used_BM: Tensor) -> Tensor:
        """The rest of the network: prediction [B, ...] from the modalities in use."""

    def parts(self) -> dict[str, nn.Module]:
        """The pretrained parts by name: `backbone`, or the encoders' modalities. All other parts are always trained."""
        return {}

    def attention_linears(self, part: str) -> list[str]:
        """Full names of the linears within a part that LoRA adapts. Raises UserError if the backbone takes no LoRA."""
        raise UserError("this backbone takes no adapters", key="model.lora", expected="null")

    def compile_blocks(self, mode: CompileMode) -> None:
        """Compile the blocks for training. Raises UserError if the backbone has no blocks to compile."""
        refuse_compiling(mode, "backbone")

    def reset(self, generator: torch.Generator) -> None:
        """Draw new initial values, on the CPU, for all weights that come from no checkpoint."""

    def trial_copy(self, model: ModelOptions) -> Self:
        """A copy for one trial that shares the frozen tensors; parts that the trial trains are copied completely."""
        trained = model.trainable | model.layer_norms
        frozen = [part for name, part in self.parts().items() if name not in trained]
        shared = {id(t): t for part in frozen for t in (*part.parameters(), *part.buffers())}
        return copy.deepcopy(self, memo=shared)

    def adapt(
        self, model: ModelOptions, noise: Noise, generator: torch.Generator, largest_rank: int | None = None
    ) -> None:
        """Add adapters, unfreeze the weights that the trial trains, and let dropout draw from the trial's own source.

        Args:
            model: the study's section `model`.
            noise: the trial's source of dropout masks.
            generator: draws the adapters' initial values.
            largest_rank: the largest rank in the pack that the trial may join; None: the trial's rank.
        """
        for name, part in self.parts().items():
            lora = model.lora
            if lora is not None and name not in model.trainable:
                linears = self.attention_linears(name)
                add_lora(part, lora.rank, lora.alpha_in_force, lora.dropout, noise, generator, linears, largest_rank)
            norms = layer_norms(part) if name in model.layer_norms else ()
            for inner, parameter in part.named_parameters():
                if name in model.trainable or inner in norms:
                    parameter.requires_grad_(True)
            set_noise(part, noise)


NO_PART_PROMPTS: Mapping[str, Prompts] = MappingProxyType({})


class PromptedBackbone(Backbone):
    """A backbone of transformers that take prompts at any of their blocks."""

    @abstractmethod
    def prompted(self, place: PromptPlace) -> dict[str, tuple[int, int]]:
        """Part -> (number of blocks, width). Raises UserError if a part takes no prompts at that place."""

    @abstractmethod
    def predict(
        self, tokens: Mapping[str, Tokens], used_BM: Tensor, prompts: Mapping[str, Prompts] = NO_PART_PROMPTS
    ) -> Tensor:
        """As `Backbone.predict`, with prompts by part."""

    @abstractmethod
    def train_pooler(self) -> None:
        """Train the pretrained pooler before the prediction, if there is one; it gets the slot axis."""


class EncoderBackbone(PromptedBackbone):
    """A backbone with one encoder per modality and a head on fused class tokens, as CMPT needs.

    Attributes:
        encoders: modality -> Encoder.
        projections: modality -> each slot's map from the encoder's width to the common width (identity if equal).
        head: each slot's linear classifier h of equation 6.
    """

    encoded: ClassVar[bool] = True
    encoders: nn.ModuleDict
    projections: nn.ModuleDict
    head: PackedLinear
    width: int

    @classmethod
    def check(cls, model: ModelOptions, modalities: Sequence[str], task: str) -> None:
        for name in model.encoders:
            problem = "an encoder for a modality that the dataset lacks"
            check_modality(name, modalities, problem, f"model.encoders.{name}")
        for name in modalities:
            if name not in model.encoders:
                raise UserError(
                    "a modality without an encoder", key="model.encoders", found=list(model.encoders),
                    expected=f"one for {name} too",
                )  # fmt: skip
        super().check(model, modalities, task)

    @abstractmethod
    def classes(
        self,
        modality: str,
        tokens: Tokens,
        extra_SED: Tensor | None = None,
        place: str = "last",
        prompts: Prompts = NO_PROMPTS,
    ) -> tuple[Tensor, Tensor]:
        """Encode one modality: (class token [B, D], outputs of the E extra tokens [B, E, D]) in the common width.

        Args:
            extra_SED: each slot's extra tokens.
            place: position of the extra tokens, `last` or `first`.
            prompts: prompts with a row for each sample.
        """

    def class_tokens(self, batch: Batch) -> Tensor:
        """Every modality's class token [B, M, D] in the common width."""
        tokens = self.embed(batch)
        return torch.stack([self.classes(m, tokens[m])[0] for m in self.modalities], 1)

    @staticmethod
    def belongs(name: str, modality: str) -> bool:
        """Whether a parameter belongs to a modality's encoder, adapters included, or to its projection."""
        return name.startswith((f"encoders.{modality}.", f"projections.{modality}."))

    def encoder(self, modality: str) -> Encoder:
        encoder = self.encoders[modality]
        assert isinstance(encoder, Encoder)
        return encoder


def fuse(class_BMD: Tensor, used_BM: Tensor, substitute_BMD: Tensor | None = None) -> Tensor:
    """Equation 5: the sum of class tokens, with the substitute for each unused modality (0 without substitutes)."""
    if substitute_BMD is None:
        substitute_BMD = torch.zeros((), dtype=class_BMD.dtype, device=class_BMD.device)
    return torch.where(used_BM[..., None], class_BMD, substitute_BMD).sum(1)


def check_modality(name: str, modalities: Sequence[str], problem: str, key: str) -> None:
    """Raise UserError with the nearest spelling if the dataset has no such modality."""
    if name not in modalities:
        raise UserError(
            problem, key=key, found=name, expected=f"one of {', '.join(modalities)}",
            hint=nearest(name, modalities),
        )  # fmt: skip


def without_absent(value: Tensor, present_B: Tensor) -> Tensor:
    """The values with zeros for samples that lack the input; by `where`, since NaN times zero is NaN."""
    return torch.where(
        present_B.view(-1, *[1] * (value.dim() - 1)), value, torch.zeros((), dtype=value.dtype, device=value.device)
    )


def layer_norms(module: nn.Module) -> set[str]:
    """Names of all LayerNorm parameters within a module."""
    return {
        f"{name}.{part}"
        for name, inner in module.named_modules()
        if isinstance(inner, nn.LayerNorm)
        for part, _ in inner.named_parameters(recurse=False)
    }


def draw_linear(linear: nn.Linear | PackedLinear, generator: torch.Generator) -> None:
    """Draw initial values on the CPU: normal weights of variance 1 / inputs, zero biases (of the only slot)."""
    start = torch.empty(linear.weight.shape, device="cpu")
    start.normal_(std=1.0 / math.sqrt(linear.in_features), generator=generator)
    with torch.no_grad():
        linear.weight.copy_(start)
        if linear.bias is not None:
            linear.bias.zero_()
