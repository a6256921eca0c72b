"""What a study says of the network: the backbone, its encoders, the adapters. Needs no torch.

The options of each backbone stand in its file (`models/backbones/`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, SerializeAsAny, ValidationInfo, field_validator, model_validator

from mmsweep.components import FUSIBLE, Choice, Options, Registry, Section, misfit

BACKBONES = Registry("backbone", "mmsweep.models.backbones")
"""The backbones, each in the file or folder of its name."""
Pool = Literal["auto", "cls", "mean", "pooler"]
CompileMode = Literal["off", "default", "reduce-overhead"]
"""`train.compile` (compilation.py)."""


class BackboneOptions(Options):
    """Options of every backbone."""

    name: str = Field(description="Name of the backbone.")
    shaping: ClassVar[tuple[str, ...]] = ("name",)
    """The options that weights depend on: a run may start from the weights of another that agrees on them."""


class NetworkOptions(BackboneOptions):
    """Of a backbone that is one pretrained network."""

    source: ClassVar[str] = "transformers"
    """Where `weights` come from (models/weights.py)."""

    weights: str | None = Field(
        None, description="The network's checkpoint: a hub name, a folder or `package:NAME/path`."
    )
    pretrained: bool = Field(
        True,
        description="Whether the checkpoint's weights are loaded; false draws initial values from train.seed and reads "
        "only the configuration of `weights`.",
    )
    trainable: bool = Field(False, description="Whether all its weights are trained instead of frozen (B25).")

    @model_validator(mode="after")
    def _learns(self) -> NetworkOptions:
        if not self.pretrained and not self.trainable:
            raise misfit("a frozen network with initial values", "trainable: true")
        return self


class EncoderOptions(Section):
    """One modality's encoder."""

    source: Literal["transformers", "timm", "mmsweep"] = Field(
        "transformers", description="Whose implementation it is; mmsweep: an encoder that ships with it."
    )
    name: str = Field(
        description="A hub name, a folder, `package:NAME/path`, a timm name, or the name of an encoder that ships."
    )
    layers: int | None = Field(None, ge=1, description="Number of layers to keep, from the first; null keeps all.")
    pool: Pool = Field(
        "auto",
        description="Token that stands for the input. auto: the one that the encoder was trained with, the mean of its "
        "tokens where it has no class token (registers are none).",
    )
    trainable: bool = Field(False, description="Whether all its weights are trained instead of frozen.")
    train_layernorm: bool = Field(False, description="Whether its LayerNorms are trained beside the adapters (B15).")


class LoraOptions(Section):
    """Adapters of every part that is not trained itself."""

    rank: Annotated[int, FUSIBLE] = Field(
        1, ge=1, description="Rank of the two matrices whose product is the change of a weight."
    )
    alpha: Annotated[float | Literal["rank"], FUSIBLE] = Field(
        "rank",
        description="The change is multiplied by alpha / rank. `rank` keeps that factor at 1 for every rank, also "
        "where the rank is searched; with a number a larger rank is scaled down.",
    )
    dropout: Annotated[float, FUSIBLE] = Field(
        0.1, ge=0, lt=1, description="Dropout probability of the adapters' input."
    )

    @field_validator("alpha", mode="before")
    @classmethod
    def _some_scale(cls, alpha: Any) -> Any:
        number = isinstance(alpha, int | float) and not isinstance(alpha, bool) and 0 < alpha < math.inf
        if alpha != "rank" and not number:
            raise misfit("no such scale of the adapters", "rank, or a number above 0")
        return alpha

    @property
    def alpha_in_force(self) -> float:
        """The number that `alpha` stands for."""
        return float(self.rank if self.alpha == "rank" else self.alpha)


class ModelOptions(Section):
    """The section `model` of a study."""

    backbone: Annotated[SerializeAsAny[BackboneOptions], Choice(BACKBONES, "model.backbone", "dual_encoder")] = Field(
        default_factory=lambda: BACKBONES.options("dual_encoder"),
        description="The network of all modalities. Left out: dual_encoder, which has an encoder for each modality.",
    )
    encoders: dict[str, EncoderOptions] = Field(
        default_factory=dict, description="The encoder of each modality, for backbones that are made of encoders."
    )
    lora: LoraOptions | None = Field(
        LoraOptions(), description="Adapters on q, k, v and o of the attention of frozen parts; null: none."
    )

    @field_validator("encoders")
    @classmethod
    def _where_they_belong(cls, encoders: dict[str, EncoderOptions], info: ValidationInfo) -> dict[str, EncoderOptions]:
        backbone = info.data.get("backbone")
        if backbone is not None and BACKBONES[backbone.name].encoded != bool(encoders):
            made = ", ".join(name for name, one in BACKBONES.items() if one.encoded)
            problem = f"backbone {backbone.name} has no place for encoders"
            if not encoders:
                problem = f"backbone {backbone.name} needs an encoder for each modality"
            raise misfit(problem, f"encoders with model.backbone.name: {made}, none with another")
        return encoders

    @property
    def trainable(self) -> frozenset[str]:
        """The pretrained parts whose own tensors are all trained: `backbone`, or the encoders' modalities."""
        own = {"backbone"} if isinstance(self.backbone, NetworkOptions) and self.backbone.trainable else set()
        return frozenset(own | {name for name, encoder in self.encoders.items() if encoder.trainable})

    @property
    def layer_norms(self) -> frozenset[str]:
        """The pretrained parts whose LayerNorms are trained (B15)."""
        return frozenset(name for name, encoder in self.encoders.items() if encoder.train_layernorm)

    def networks(self) -> Iterator[tuple[str, str, str]]:
        """(source, name, key of the study) of everything pretrained that it names (models/weights.py)."""
        for modality, encoder in self.encoders.items():
            yield encoder.source, encoder.name, f"model.encoders.{modality}.name"
        if isinstance(own := self.backbone, NetworkOptions) and own.weights is not None and own.pretrained:
            yield own.source, own.weights, "model.backbone.weights"
