"""OGM-GE: on-the-fly gradient modulation with generalisation enhancement (Peng et al., CVPR 2022, arXiv 2203.15332).

The logits of additive fusion, W Σ_m z_m + b, fall apart by modality: s_m = softmax(W z_m + b / M). In every step

    score_m   mean of s_m at the true class, over the batch's rows that use m
    ρ_m       score_m / mean of the other modalities' scores   (of two: the paper's ratio)
    k_m       1 - tanh(α ρ_m) where ρ_m > 1, else 1
    gradient of m's own matrices  ←  k_m gradient + N(0, std(gradient)²)

so the modality that is ahead learns more slowly, and the noise compensates for the smaller noise of its gradient.
m's own matrices are its encoder's adapters and its projection; the shared head is not modulated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from pydantic import Field, model_validator
from torch import Tensor

from mmsweep.components import misfit, register
from mmsweep.data.dataset import Batch
from mmsweep.methods.method import Method, Output, Update
from mmsweep.methods.options import MethodOptions
from mmsweep.models.backbone import EncoderBackbone, fuse
from mmsweep.models.lora import Noise
from mmsweep.models.packing import by_slot
from mmsweep.transfer import sent


@register("ogm_ge")
class OGMGE(Method):
    """Slows down the modality that is ahead; see the top of this file."""

    class Options(MethodOptions):
        alpha: float = Field(0.8, ge=0, description="α: how strongly a modality that is ahead is slowed down.")
        noise: bool = Field(True, description="Whether noise is added (GE); false is OGM alone.")
        first_epoch: int = Field(0, ge=0, description="The first epoch with modulation, counted from 0.")
        last_epoch: int | None = Field(None, ge=0, description="The last epoch with modulation; null: the run's last.")

        @model_validator(mode="after")
        def _in_order(self) -> OGMGE.Options:
            if self.last_epoch is not None and self.last_epoch < self.first_epoch:
                raise misfit(
                    "modulation ends before it begins", "first_epoch or later", "last_epoch", self.last_epoch
                )  # fmt: skip
            return self

    accepts = EncoderBackbone
    targets = frozenset({"class", "labels"})
    backbone: EncoderBackbone
    options: Options

    def __init__(self, backbone: EncoderBackbone, options: Options, noise: Noise, generator: torch.Generator) -> None:
        super().__init__(backbone, options, noise, generator)
        self._scores_KSM: Tensor | None = None

    def forward(self, batch: Batch, used_BM: Tensor) -> Output:
        used_BM = sent(used_BM, batch.present_BM.device)
        return Output(self.backbone.head(fuse(self.backbone.class_tokens(batch), used_BM)))

    def predict_patterns(self, batch: Batch, patterns_PM: Tensor) -> Tensor:
        """All patterns from one pass of each encoder."""
        class_BMD = self.backbone.class_tokens(batch)
        used_PBM = patterns_PM[:, None] & batch.present_BM
        return torch.stack([self.backbone.head(fuse(class_BMD, used_BM)) for used_BM in used_PBM])

    def steps(self, batch: Batch, used_BM: Tensor) -> Iterator[Output]:
        used_BM = sent(used_BM, batch.present_BM.device)
        class_BMD = self.backbone.class_tokens(batch)
        with torch.no_grad():
            S, M = self.backbone.head.weight.shape[0], len(self.backbone.modalities)
            bias_BC = by_slot(self.backbone.head.bias, len(batch))
            logits_BMC = self.backbone.head(class_BMD) - (1 - 1 / M) * bias_BC[:, None]
            score_BM = torch.where(used_BM, true_probability(logits_BMC, batch.target), 0.0)
            # Sums and counts, so that ranks can be added up.
            self._scores_KSM = torch.stack([score_BM, used_BM.to(score_BM.dtype)]).unflatten(1, (S, -1)).sum(2)
        yield Output(self.backbone.head(fuse(class_BMD, used_BM)))

    def after_backward(self, updates: Sequence[Update], total: Callable[[Tensor], Tensor]) -> None:
        device = next(iter(updates[0].gradients.values())).device
        here_KSM, self._scores_KSM = self._scores_KSM, None
        if here_KSM is None:
            here_KSM = torch.zeros(2, len(updates), len(self.backbone.modalities), device=device)
        sum_SM, count_SM = total(here_KSM)
        k_SM = coefficients(sum_SM / count_SM.clamp(min=1), self.options.alpha)
        last = self.options.last_epoch
        for k_M, update in zip(k_SM, updates, strict=True):
            if update.epoch < self.options.first_epoch or (last is not None and update.epoch > last):
                continue
            for k, modality in zip(k_M, self.backbone.modalities, strict=True):
                for name, gradient in update.gradients.items():
                    if self.backbone.belongs(name.removeprefix("backbone."), modality) and gradient.dim() > 1:
                        self._modulate(gradient, k, update.generator)

    def _modulate(self, gradient: Tensor, k: Tensor, generator: torch.Generator) -> None:
        """Scale a gradient in place and add noise with the standard deviation that it had before."""
        spread = gradient.std()
        gradient.mul_(k)
        if self.options.noise:
            noise = torch.empty(gradient.shape, device=gradient.device).normal_(generator=generator)
            gradient.add_(noise.mul_(spread + 1e-8))


def true_probability(logits_BMC: Tensor, target: Tensor) -> Tensor:
    """[B, M]: the probability of the true class; for several labels, the mean over the labels."""
    logits_BMC = logits_BMC.float()
    if target.dim() == 2:
        p_BMC = logits_BMC.sigmoid()
        return torch.where(target[:, None] > 0.5, p_BMC, 1 - p_BMC).mean(-1)
    index_BM1 = target[:, None, None].expand(-1, logits_BMC.shape[1], 1)
    return logits_BMC.softmax(-1).gather(-1, index_BM1).squeeze(-1)


def coefficients(score_SM: Tensor, alpha: float) -> Tensor:
    """k [S, M] from the modalities' scores."""
    others_SM = (score_SM.sum(1, keepdim=True) - score_SM) / (score_SM.shape[1] - 1)
    ratio_SM = score_SM / others_SM.clamp(min=torch.finfo(score_SM.dtype).tiny)
    return torch.where(ratio_SM > 1, 1 - torch.tanh(alpha * ratio_SM), torch.ones_like(ratio_SM))
