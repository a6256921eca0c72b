"""The study's section `model`: backbone, encoders and adapters. It needs no torch.

Each backbone's own options are in its file (`models/backbones/`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
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
    """The options that determine the weights' shapes; `train.init_from` needs a run with the same values."""


class NetworkOptions(BackboneOptions):
    """Options of a backbone that is a single pretrained network."""

    source: ClassVar[str] = "transformers"
    """The source of `weights` (models/weights.py)."""

    weights: str | None = Field(
        None, description="The network's checkpoint: a hub name, a folder, or `package:NAME/path`."
    )
    pretrained: bool = Field(
        True,
        description="Whether the checkpoint's weights are loaded. false reads only its configuration and draws the "
        "weights from train.seed.",
    )
    trainable: bool = Field(
        False, description="Whether all weights of the network are trained instead of frozen (B25)."
    )

    @model_validator(mode="after")
    def _check_trained(self) -> NetworkOptions:
        if not self.pretrained and not self.trainable:
            raise misfit("a frozen network with initial values", "trainable: true")
        return self


class Sizes(Section):
    """The sizes of an encoder that starts from initial values; the defaults are a scaled-down FT-Transformer's."""

    width: int = Field(64, ge=2, description="Width of a token; 192 in the paper.")
    layers: int = Field(3, ge=1, description="Blocks; 3 in the paper.")
    heads: int = Field(8, ge=1, description="Heads of attention; they divide the width; 8 in the paper.")
    hidden: float = Field(4 / 3, gt=0, description="Width of the feed-forward part as a multiple of the token's.")
    attention_dropout: float = Field(0.2, ge=0, lt=1, description="Dropout probability of attention weights.")
    hidden_dropout: float = Field(0.1, ge=0, lt=1, description="Dropout probability within the feed-forward part.")
    residual_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout probability of what a block adds.")

    @model_validator(mode="after")
    def _fit_together(self) -> Sizes:
        if self.width % self.heads:
            raise misfit(f"{self.heads} heads cannot share a width of {self.width}", "heads that divide width")
        if int(self.width * self.hidden) < 1:
            raise misfit("too narrow a feed-forward part", f"at least {1 / self.width:g}", "hidden", self.hidden)
        return self


class EncoderOptions(Section):
    """One modality's encoder."""

    source: Literal["transformers", "timm", "mmsweep", "scratch"] = Field(
        "transformers",
        description="Library that implements the encoder; mmsweep: an encoder shipped with it; scratch: a network of "
        "mmsweep's own that starts from initial values and is trained.",
    )
    name: str = Field(
        description="A hub name, a folder, `package:NAME/path`, a timm name, or the name of a shipped encoder; of "
        "scratch: ft_transformer, which reads tables."
    )
    layers: int | None = Field(None, ge=1, description="Number of layers to keep, from the first; null keeps all.")
    pool: Pool = Field(
        "auto",
        description="Token that represents the input. auto uses the token that the encoder was trained with, or the "
        "mean of its tokens (without registers) if it has no class token.",
    )
    trainable: bool = Field(False, description="Whether all weights of the encoder are trained instead of frozen.")
    train_layernorm: bool = Field(False, description="Whether the encoder's LayerNorms are trained too (B15).")
    sizes: Sizes | None = Field(None, description="Sizes of a network from scratch; null takes the defaults.")

    @model_validator(mode="before")
    @classmethod
    def _starts_from_something(cls, values: Any) -> Any:
        """A network from scratch is trained and has sizes; a checkpoint has its own."""
        if not isinstance(values, Mapping):
            return values
        if values.get("source") != "scratch":
            if (sizes := values.get("sizes")) is not None:
                raise misfit("a checkpoint has sizes of its own", "no such key, or source: scratch", "sizes", sizes)
            return values
        if values.get("trainable") is False:
            raise misfit("a frozen network with initial values", "trainable: true, or no such key", "trainable", False)
        return {**values, "trainable": True, "sizes": values.get("sizes") or {}}


class LoraOptions(Section):
    """LoRA adapters of every frozen part."""

    rank: Annotated[int, FUSIBLE] = Field(
        1, ge=1, description="Rank of the two matrices whose product changes a weight."
    )
    alpha: Annotated[float | Literal["rank"], FUSIBLE] = Field(
        "rank",
        description="The change is multiplied by alpha / rank. `rank` keeps this factor at 1 for every rank, so a "
        "search over ranks compares them at the same scale; with a number, larger ranks are scaled down.",
    )
    dropout: Annotated[float, FUSIBLE] = Field(
        0.1, ge=0, lt=1, description="Dropout probability of the adapters' input."
    )

    @field_validator("alpha", mode="before")
    @classmethod
    def _check_alpha(cls, alpha: Any) -> Any:
        number = isinstance(alpha, int | float) and not isinstance(alpha, bool) and 0 < alpha < math.inf
        if alpha != "rank" and not number:
            raise misfit("this cannot scale the adapters", "rank, or a number above 0")
        return alpha

    @property
    def alpha_in_force(self) -> float:
        """The value of `alpha` as a number."""
        return float(self.rank if self.alpha == "rank" else self.alpha)


class ModelOptions(Section):
    """The section `model` of a study."""

    backbone: Annotated[SerializeAsAny[BackboneOptions], Choice(BACKBONES, "model.backbone", "dual_encoder")] = Field(
        default_factory=lambda: BACKBONES.options("dual_encoder"),
        description="The network of all modalities. The default, dual_encoder, has an encoder for each modality.",
    )
    encoders: dict[str, EncoderOptions] = Field(
        default_factory=dict, description="The encoder of each modality, for backbones that consist of encoders."
    )
    lora: LoraOptions | None = Field(
        LoraOptions(), description="Adapters on q, k, v and o of the attention in frozen parts; null adds none."
    )

    @field_validator("encoders")
    @classmethod
    def _check_encoders(cls, encoders: dict[str, EncoderOptions], info: ValidationInfo) -> dict[str, EncoderOptions]:
        backbone = info.data.get("backbone")
        if backbone is not None and BACKBONES[backbone.name].encoded != bool(encoders):
            encoded = ", ".join(name for name, other in BACKBONES.items() if other.encoded)
            needs = "takes no encoders" if encoders else "needs an encoder for each modality"
            raise misfit(f"backbone {backbone.name} {needs}", f"encoders with backbone {encoded} only")
        return encoders

    @property
    def trainable(self) -> frozenset[str]:
        """The pretrained parts that are trained completely: `backbone`, or the encoders' modalities."""
        network = {"backbone"} if isinstance(self.backbone, NetworkOptions) and self.backbone.trainable else set()
        return frozenset(network | {name for name, encoder in self.encoders.items() if encoder.trainable})

    @property
    def layer_norms(self) -> frozenset[str]:
        """The pretrained parts whose LayerNorms are trained (B15)."""
        return frozenset(name for name, encoder in self.encoders.items() if encoder.train_layernorm)

    def networks(self) -> Iterator[tuple[str, str, str]]:
        """(source, name, key of the study) of every pretrained network in the section (models/weights.py)."""
        for modality, encoder in self.encoders.items():
            if encoder.source != "scratch":
                yield encoder.source, encoder.name, f"model.encoders.{modality}.name"
        network = self.backbone
        if isinstance(network, NetworkOptions) and network.weights is not None and network.pretrained:
            yield network.source, network.weights, "model.backbone.weights"
