"""The contract of a backbone: the network of all modalities, whose missing inputs a method deals with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mmsweep.data.dataset import Batch
from mmsweep.models.encoder import Encoder, Tokens


class Backbone(nn.Module, ABC):
    """Attributes: `modalities`, in the dataset's order; `outputs`, the width of the prediction (C)."""

    modalities: tuple[str, ...]
    outputs: int

    @abstractmethod
    def token_shapes(self) -> dict[str, tuple[int, int]]:
        """(N, D) of each modality's tokens, for full-length inputs."""

    @abstractmethod
    def embed(self, batch: Batch) -> dict[str, Tokens]:
        """Tokens of every modality. What is not present is never read: its tokens are those of zeros."""

    @abstractmethod
    def predict(self, tokens: Mapping[str, Tokens], used_BM: Tensor) -> Tensor:
        """The rest of the network: prediction [B, C] (dense: [B, C, H, W]) from the modalities in use."""


class EncoderBackbone(Backbone):
    """A backbone with one encoder a modality and a head on fused class tokens: what CMPT needs.

    Attributes:
        encoders: modality -> Encoder.
        projections: modality -> map from the encoder's width to the common width (identity where equal).
        head: the linear classifier h of equation 6.
    """

    encoders: nn.ModuleDict
    projections: nn.ModuleDict
    head: nn.Linear
    width: int

    @abstractmethod
    def classes(self, modality: str, tokens: Tokens, extra_ED: Tensor | None, place: str) -> tuple[Tensor, Tensor]:
        """Encode one modality: (class token [B, D], the E extra tokens' outputs [B, E, D]) in the common width."""

    def encoder(self, modality: str) -> Encoder:
        encoder = self.encoders[modality]
        assert isinstance(encoder, Encoder)
        return encoder


def without_absent(value: Tensor, present_B: Tensor) -> Tensor:
    """Zeros where a sample lacks the input. `where` and not a product: NaN times zero is NaN."""
    return torch.where(
        present_B.view(-1, *[1] * (value.dim() - 1)), value, torch.zeros((), dtype=value.dtype, device=value.device)
    )
