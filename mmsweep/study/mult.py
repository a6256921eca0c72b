"""What a study says of the backbone `mult`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from mmsweep.components import Section, misfit

Rate = Annotated[float, Field(ge=0, lt=1)]


class MulTSpec(Section):
    """The shape of `mult`; the defaults are MMSA's for CMU-MOSI (research/methods.md §5.3)."""

    width: int = Field(50, ge=2, description="of every modality's tokens")
    heads: int = Field(10, ge=1, description="of every attention; a divisor of width")
    levels: int = Field(4, ge=1, description="layers from one modality to another; at least three follow")
    kernel: int = Field(5, ge=1, description="of the convolutions before them")
    attention_dropout: float = Field(0.3, ge=0, lt=1, description="where no key_dropout is given")
    key_dropout: dict[str, Rate] = Field(
        {"audio": 0.2, "vision": 0.0}, description="attention dropout where this modality is attended to"
    )
    input_dropout: dict[str, Rate] = Field({"text": 0.5}, description="before a modality's convolution")
    embedding_dropout: float = Field(0.2, ge=0, lt=1, description="of tokens with their positions")
    output_dropout: float = Field(0.5, ge=0, lt=1, description="within the block before the head")

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> MulTSpec:
        if self.width % self.heads:
            raise misfit(f"{self.heads} heads cannot share a width of {self.width}", "heads that divide width")
        return self
