"""Similarity of predicted and real tokens of a missing modality (MMP, supplement S3)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmsweep.data.prepared_split import PreparedSplit
from mmsweep.methods.method import Method, StandIn


@torch.inference_mode()
def write_stand_ins(folder: Path, method: Method, split: PreparedSplit, batch_size: int, device: torch.device) -> None:
    """Write stand_ins.npz: cosine similarity and mean squared error of each row's predicted tokens, by modality.

    Both are float32 [M,N], means over a row's tokens; NaN for incomplete rows, which lack real tokens to compare with.
    No file is written for a method that predicts no tokens.
    """
    modalities = method.backbone.modalities
    method.eval()
    method.noise.off()
    complete_R = np.flatnonzero(np.asarray(split.natural_NM).all(1))
    cosine_MN = np.full((len(modalities), len(split)), np.nan, np.float32)
    mse_MN = cosine_MN.copy()
    for start in range(0, len(complete_R), batch_size):
        index = complete_R[start : start + batch_size]
        stand_ins = method.stand_ins(split.batch(index, device))
        for place, modality in enumerate(modalities):
            if modality in stand_ins:
                cosine_B, mse_B = similarity(stand_ins[modality])
                cosine_MN[place, index], mse_MN[place, index] = cosine_B.cpu(), mse_B.cpu()
    if np.isnan(cosine_MN).all():
        return
    temporary = folder / ".stand_ins.npz"
    np.savez_compressed(temporary, modalities=np.array(modalities), cosine_MN=cosine_MN, mse_MN=mse_MN)
    temporary.replace(folder / "stand_ins.npz")


def similarity(pair: StandIn) -> tuple[Tensor, Tensor]:
    """(cosine similarity [B], mean squared error [B]) of predicted and real tokens, each a mean over tokens."""
    real_BND, guess_BND = pair.real_BND.float(), pair.guess_BND.float()
    cosine_BN = F.cosine_similarity(real_BND, guess_BND, dim=-1)
    mse_BN = (real_BND - guess_BND).square().mean(-1)
    if pair.mask_BN is None:
        return cosine_BN.mean(1), mse_BN.mean(1)
    weight_BN = pair.mask_BN.to(cosine_BN.dtype)
    count_B = weight_BN.sum(1).clamp(min=1)
    return (cosine_BN * weight_BN).sum(1) / count_B, (mse_BN * weight_BN).sum(1) / count_B
