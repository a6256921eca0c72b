"""Options that several methods share; other options are in their method's file. Needs no torch."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from mmsweep.components import FUSIBLE, Options, Registry, Section

METHODS = Registry("method", "mmsweep.methods")
"""The methods, each in the file of its name."""


class MethodOptions(Options):
    """Options of every method."""

    name: str = Field(description="Name of the method.")


class MaskingOptions(Section):
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
        "method: cmpt stops masking there, as its paper's Table 6 suggests, and so does missing_aware_prompts, whose "
        "paper trains on such gaps; the other methods go on.",
    )


class MaskingMethodOptions(MethodOptions):
    """Options of a method that masks modalities at random in training."""

    masking: Annotated[MaskingOptions, FUSIBLE] = Field(
        MaskingOptions(), description="Modalities that are hidden at random while training."
    )


class AligningMethodOptions(MaskingMethodOptions):
    """Options of a method that predicts tokens of missing modalities and aligns them with the real ones in training."""

    own_weight: ClassVar[float] = 1.0
    """λ of the method's paper."""

    align_weight: Annotated[float | None, FUSIBLE] = Field(
        None,
        ge=0,
        description="λ, weight of the alignment loss; null takes the value of the method's paper (B31).",
    )
    detach_target: bool = Field(
        False, description="Whether gradients stop at the target of the alignment loss (B4, B32)."
    )

    @property
    def alignment(self) -> float:
        """The effective `align_weight`."""
        return self.own_weight if self.align_weight is None else self.align_weight

    def in_force(self, option: str) -> Any:
        return self.alignment if option == "align_weight" else super().in_force(option)
