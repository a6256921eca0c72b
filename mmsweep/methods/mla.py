"""MLA: multimodal learning with alternating unimodal adaptation (Zhang et al., CVPR 2024, arXiv 2311.10707).

training   a batch is as many updates as there are modalities. Each trains one modality's encoder and the head h,
           which all share, by the loss of h(z_m) alone, over the rows that have m
head       its gradient G is replaced by G P. P projects away the directions of the mean features z̄ of all updates
           before: with q = P z̄,  P ← P - q qᵀ / (ε + z̄ᵀ q);  P = I at the start
test       logits Σ_m w_m h(z_m) over the modalities at hand, w = softmax(-entropy of softmax h(z_m))
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from mmsweep.components import register
from mmsweep.data.dataset import Batch
from mmsweep.methods.method import Method, Output, Update
from mmsweep.methods.options import MethodOptions
from mmsweep.models.backbone import EncoderBackbone
from mmsweep.models.lora import Noise
from mmsweep.models.packing import PackedParameters
from mmsweep.transfer import sent

HEAD = "backbone.head."


@register("mla")
class MLA(Method):
    """One modality at a time, with a shared head; see the top of this file."""

    class Options(MethodOptions):
        epsilon: float = Field(0.1, gt=0, description="ε of the projection: larger removes seen directions less fully.")
        orthogonal: bool = Field(True, description="Whether the head's gradient is projected; false is the ablation.")

    accepts = EncoderBackbone
    targets = frozenset({"class", "labels"})
    memory = frozenset({"projection.head"})
    backbone: EncoderBackbone
    options: Options

    def __init__(self, backbone: EncoderBackbone, options: Options, noise: Noise, generator: torch.Generator) -> None:
        super().__init__(backbone, options, noise, generator)
        self.updates = len(backbone.modalities)
        start_DD = torch.eye(backbone.width, device=backbone.head.weight.device)
        self.projection = PackedParameters()  # P [S, D, D]
        self.projection["head"] = nn.Parameter(start_DD[None], requires_grad=False)
        self._features_SE: Tensor | None = None

    def forward(self, batch: Batch, used_BM: Tensor) -> Output:
        logits_BMC = self.backbone.head(self.backbone.class_tokens(batch))
        used_BM = sent(used_BM, batch.present_BM.device)
        return Output(weighted(logits_BMC, used_BM, several=batch.target.dim() == 2))

    def predict_patterns(self, batch: Batch, patterns_PM: Tensor) -> Tensor:
        """All patterns from one pass of each encoder."""
        logits_BMC = self.backbone.head(self.backbone.class_tokens(batch))
        used_PBM = patterns_PM[:, None] & batch.present_BM
        return torch.stack([weighted(logits_BMC, used_BM, batch.target.dim() == 2) for used_BM in used_PBM])

    def steps(self, batch: Batch, used_BM: Tensor) -> Iterator[Output]:
        used_BM = sent(used_BM, batch.present_BM.device)
        S = self.backbone.head.weight.shape[0]
        for column, modality in enumerate(self.backbone.modalities):
            class_BD, _ = self.backbone.classes(modality, self.backbone.embed(batch)[modality])
            used_B1 = used_BM[:, column, None]
            with torch.no_grad():  # sum and count, so that ranks can be added up
                feature_BE = torch.cat([torch.where(used_B1, class_BD.float(), 0.0), used_B1.float()], 1)
                self._features_SE = feature_BE.unflatten(0, (S, -1)).sum(1)
            yield Output(self.backbone.head(class_BD), counted_B=used_BM[:, column])

    def step_trains(self, update: int) -> Callable[[str], bool]:
        modality = self.backbone.modalities[update]
        return lambda name: name.startswith(HEAD) or self.backbone.belongs(name.removeprefix("backbone."), modality)

    def after_backward(self, updates: Sequence[Update], total: Callable[[Tensor], Tensor]) -> None:
        P_SDD, here_SE = self.projection["head"], self._features_SE
        self._features_SE = None
        if not self.options.orthogonal:
            return
        if here_SE is None:
            here_SE = torch.zeros(len(updates), P_SDD.shape[1] + 1, device=P_SDD.device)
        sums_SE = total(here_SE)
        mean_SD = sums_SE[:, :-1] / sums_SE[:, -1:].clamp(min=1)
        with torch.no_grad():
            for P_DD, mean_D, update in zip(P_SDD, mean_SD, updates, strict=True):
                gradient_CD = update.gradients[f"{HEAD}weight"]
                gradient_CD.copy_(gradient_CD @ P_DD)
                seen_D = P_DD @ mean_D
                P_DD.sub_(torch.outer(seen_D, seen_D) / (self.options.epsilon + mean_D @ seen_D))


def weighted(logits_BMC: Tensor, used_BM: Tensor, several: bool) -> Tensor:
    """[B, C]: the used modalities' logits, weighted by certainty; zeros if none is used.

    Args:
        several: whether labels are independent, so that their entropies are summed.
    """
    exact_BMC = logits_BMC.float()
    if several:
        log_p, log_q = nn.functional.logsigmoid(exact_BMC), nn.functional.logsigmoid(-exact_BMC)
        entropy_BM = -(log_p.exp() * log_p + log_q.exp() * log_q).sum(-1)
    else:
        log_p = exact_BMC.log_softmax(-1)
        entropy_BM = -(log_p.exp() * log_p).sum(-1)
    none_B1 = ~used_BM.any(1, keepdim=True)
    weight_BM = (-entropy_BM).masked_fill(~(used_BM | none_B1), float("-inf")).softmax(1)
    return torch.where(used_BM[..., None], weight_BM[..., None] * exact_BMC, 0.0).sum(1)
