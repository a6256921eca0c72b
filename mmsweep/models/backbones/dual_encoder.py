"""One encoder per modality, additive fusion of class tokens, and a linear head (CMPT, equations 1, 3, 5, 6)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, cast

import torch
from torch import Tensor, nn

from mmsweep.components import register
from mmsweep.data.dataset import Batch
from mmsweep.data.kinds.image import ImageFormat
from mmsweep.data.kinds.kind import Format
from mmsweep.data.kinds.video import VideoFormat
from mmsweep.models.backbone import NO_PART_PROMPTS, EncoderBackbone, draw_linear, fuse, without_absent
from mmsweep.models.encoder import NO_PROMPTS, Encoder, Prompt, PromptPlace, Prompts, Tokens
from mmsweep.models.input_formats import Inputs
from mmsweep.models.last_block import wanted_tokens
from mmsweep.models.options import CompileMode, ModelOptions
from mmsweep.models.packing import PackedLinear, by_slot
from mmsweep.models.pretrained import PretrainedEncoder
from mmsweep.models.weights import locate


@register("dual_encoder")
class DualEncoder(EncoderBackbone):
    """The backbone; see the top of this file.

    Args:
        encoders: modality -> encoder, in the dataset's order; two or more.
        outputs: C, the width of the prediction.
        generator: draws the initial values of head and projections; None leaves that to `reset`.
        clip_frames: modality -> number of frames of its clips.
    """

    def __init__(
        self,
        encoders: Mapping[str, Encoder],
        outputs: int,
        generator: torch.Generator | None = None,
        clip_frames: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        self.clip_frames = dict(clip_frames)
        self.modalities = tuple(encoders)
        self.outputs = outputs
        self.encoders = nn.ModuleDict(dict(encoders))
        self.formats = _clips({m: e.format for m, e in encoders.items()}, clip_frames)
        self.width = max(e.width for e in encoders.values())
        self.projections = nn.ModuleDict(
            {
                m: nn.Identity() if e.width == self.width else PackedLinear(e.width, self.width)
                for m, e in encoders.items()
            }
        )
        self.head = PackedLinear(self.width, outputs)
        for parameter in self.encoders.parameters():
            parameter.requires_grad_(False)
        if generator is not None:
            self.reset(generator)

    @classmethod
    def build(
        cls, model: ModelOptions, inputs: Inputs, outputs: int, load: bool = True, files: bool = True
    ) -> DualEncoder:
        encoders = {m: _encoder(model, inputs, m, load, files) for m in inputs.kinds}
        return cls(encoders, outputs, clip_frames=_clip_frames(inputs))

    @classmethod
    def formats_of(cls, model: ModelOptions, inputs: Inputs) -> Mapping[str, Format]:
        return _clips({m: _format(model, inputs, m) for m in inputs.kinds}, _clip_frames(inputs))

    def parts(self) -> dict[str, nn.Module]:
        return dict(self.encoders.items())

    def attention_linears(self, part: str) -> list[str]:
        return self.encoder(part).attention_linears()

    def compile_blocks(self, mode: CompileMode) -> None:
        for modality in self.modalities:
            self.encoder(modality).compile_blocks(mode)

    def reset(self, generator: torch.Generator) -> None:
        """Draw new values for head, projections and encoders without a checkpoint."""
        for module in (self.head, *self.projections.values()):
            if isinstance(module, PackedLinear):
                draw_linear(module, generator)
        for modality in self.modalities:
            self.encoder(modality).reset(generator)

    def token_shapes(self) -> dict[str, tuple[int, int]]:
        return {m: self.encoder(m).token_shape() for m in self.modalities}

    def token_grids(self) -> dict[str, tuple[int, ...]]:
        return {m: self.encoder(m).token_grid() for m in self.modalities}

    def embed(self, batch: Batch) -> dict[str, Tokens]:
        tokens = {}
        for column, modality in enumerate(self.modalities):
            x, present_B = batch.inputs[modality], batch.present_BM[:, column]
            if isinstance(x, Tensor):
                x = without_absent(x, present_B)
            tokens[modality] = self.encoder(modality).embed(x)
        return tokens

    def prompted(self, place: PromptPlace) -> dict[str, tuple[int, int]]:
        return {m: (self.encoder(m).prompted_blocks(place), self.encoder(m).width) for m in self.modalities}

    def train_pooler(self) -> None:
        for modality in self.modalities:
            self.encoder(modality).train_pooler()

    def classes(
        self,
        modality: str,
        tokens: Tokens,
        extra_SED: Tensor | None = None,
        place: str = "last",
        prompts: Prompts = NO_PROMPTS,
    ) -> tuple[Tensor, Tensor]:
        encoder = self.encoder(modality)
        n, extras = tokens.values_BND.shape[1], 0 if extra_SED is None else extra_SED.shape[1]
        mask_BN, frames = tokens.mask_BN, tokens.sequences
        if extra_SED is not None:
            embedded_SED = encoder.embed_extra(extra_SED).to(tokens.values_BND.dtype)
            extra_BED = by_slot(embedded_SED, tokens.values_BND.shape[0])
            tokens = tokens.with_extra(extra_BED, cast(Literal["last", "first"], place))
        wanted = wanted_tokens(n, encoder.pooled, extras, place)
        if frames > 1:  # every frame of a clip gets its sample's prompts
            prompts = {i: Prompt(p.values_BLD.repeat_interleave(frames, 0), p.place) for i, p in prompts.items()}
        values_BWD = encoder.encode(tokens, wanted, prompts)
        count = values_BWD.shape[1] - extras
        start = extras if place == "first" else 0
        extra_out_BED = values_BWD[:, count:] if place == "last" else values_BWD[:, :extras]
        class_BD = encoder.pool(values_BWD[:, start : start + count], mask_BN if wanted is None else None)
        if frames > 1:  # B13: each frame is encoded separately; a clip's tokens are the means over its frames
            class_BD = class_BD.unflatten(0, (-1, frames)).mean(1)
            extra_out_BED = extra_out_BED.unflatten(0, (-1, frames)).mean(1)
        project = self.projections[modality]
        return project(class_BD), project(extra_out_BED)

    def predict(
        self, tokens: Mapping[str, Tokens], used_BM: Tensor, prompts: Mapping[str, Prompts] = NO_PART_PROMPTS
    ) -> Tensor:
        classes = [self.classes(m, tokens[m], prompts=prompts.get(m, NO_PROMPTS))[0] for m in self.modalities]
        return self.head(fuse(torch.stack(classes, 1), used_BM))


def _key(modality: str) -> str:
    return f"model.encoders.{modality}.name"


def _encoder(model: ModelOptions, inputs: Inputs, modality: str, load: bool, files: bool) -> PretrainedEncoder:
    e = model.encoders[modality]
    own = inputs.of(modality)
    return PretrainedEncoder(e.source, e.name, _key(modality), own, e.layers, e.pool, load, files, e.sizes)


def _format(model: ModelOptions, inputs: Inputs, modality: str) -> Format:
    """An encoder's format, from its configuration if possible, because importing a network's code takes seconds.

    If the study sets layers or pool, which the encoder may refuse, it is built without weights.
    """
    options = model.encoders[modality]
    own = inputs.of(modality)
    architecture = locate(options.source, options.name, _key(modality), inputs=own, sizes=options.sizes)
    if architecture.family.described and options.layers is None and options.pool == "auto":
        return architecture.format(inputs)
    with torch.device("meta"):
        return _encoder(model, inputs, modality, load=False, files=True).format


def _clip_frames(inputs: Inputs) -> dict[str, int]:
    return {m: inputs.clip_frames for m, kind in inputs.kinds.items() if kind == "video"}


def _clips(formats: Mapping[str, Format], frames: Mapping[str, int]) -> dict[str, Format]:
    """The formats with those of clips, which an encoder of pictures reads frame by frame."""
    return {m: VideoFormat(cast(ImageFormat, f), frames[m]) if m in frames else f for m, f in formats.items()}
