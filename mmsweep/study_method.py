"""The part of the study file that concerns the method: what is done about missing modalities, and its masking."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from mmsweep.study_source import Section, misfit


class MaskingSpec(Section):
    probability: float = Field(
        0.667,
        ge=0,
        le=1,
        description="Probability that a sample (or a batch) loses something; 0 turns masking off (B2).",
    )
    granularity: Literal["sample", "batch"] = Field(
        "sample", description="Whether each sample draws its own pattern, or the whole batch shares one (B1)."
    )
    distribution: Literal["uniform", "one"] = Field(
        "uniform",
        description="What is removed. uniform: every proper subset of the present modalities is equally likely to "
        "remain; one: exactly one modality is removed. With two modalities both mean the same.",
    )
    with_training_gaps: bool | None = Field(
        None,
        description="Whether masking stays on where scenarios.train leaves gaps of its own (B3). null follows the "
        "method: cmpt stops masking there, as its paper's Table 6 suggests; the other methods go on.",
    )


class Proxy(Section):
    """CMPT's proxy tokens; every field is an open question of the paper (research/methods.md §B)."""

    init: Literal["normal", "cls"] = Field("normal", description="B6: normal(0, 0.02), or the class embedding")
    trainable: bool = Field(True, description="B6: false keeps their initial values")
    place: Literal["last", "first"] = Field("last", description="B7: last keeps CLS at index 0")


class ProjectorSpec(Section):
    """How `mmp` predicts tokens; every field is an open question of its paper (research/methods.md §B)."""

    heads: int = Field(8, ge=1, description="B30: of its cross-attentions")
    width: int | None = Field(
        None, ge=1, description="D, common to all modalities; null: the widest modality's, rounded up to whole heads"
    )
    residual_norm: bool = Field(False, description="B30: add the queries and a LayerNorm to each cross-attention")
    positions: bool = Field(
        False,
        description="add sinusoids of their place to the source's tokens; not in the paper, whose projector sees a set",
    )

    @model_validator(mode="after")
    def _whole_heads(self) -> ProjectorSpec:
        if self.width is not None and self.width % self.heads:
            raise misfit(f"width {self.width} does not divide into {self.heads} heads", "a multiple of heads")
        return self


class MethodSpec(Section):
    name: str = Field(description="cmpt, mmp, linear_projection, modality_dropout or plain")
    align_weight: float | None = Field(
        None, ge=0, description="λ of the alignment loss; null: as in the method's paper, 0.2 for cmpt and 1 (B31) else"
    )
    absent: Literal["drop", "placeholder"] = Field(
        "drop",
        description="What the fusion gets for an absent or masked modality. drop: nothing. placeholder: the modality's "
        "placeholder (data.fill, or the empty text) runs through the network and is fused like a real input, as in "
        "both papers' baselines. Only for plain and modality_dropout: the other methods bring their own tokens.",
    )
    masking: MaskingSpec = Field(MaskingSpec(), description="Modalities that are hidden at random while training.")
    detach_target: bool = Field(False, description="B4, B32: stop gradients into the alignment target")
    proxy: Proxy = Field(Proxy(), description="cmpt's tokens that stand for the other modalities")
    aggregated_tokens: int = Field(8, ge=1, description="K of mmp: learned tokens that summarise a modality")
    projector: ProjectorSpec = Field(ProjectorSpec(), description="mmp's network from tokens to tokens")

    @property
    def alignment(self) -> float:
        """`align_weight` in force."""
        if self.align_weight is not None:
            return self.align_weight
        return 0.2 if self.name == "cmpt" else 1.0
