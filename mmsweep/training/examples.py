"""A few test scenes with predictions under every pattern, which the report shows as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmsweep.availability import pattern_name, pattern_rows, patterns
from mmsweep.data.kinds.raster import RasterFormat
from mmsweep.data.prepared_split import PreparedSplit
from mmsweep.methods.method import Method
from mmsweep.study.sections import Inference
from mmsweep.training.inference import predict_patterns

EXAMPLES = 4


@torch.inference_mode()
def write_examples(
    folder: Path, method: Method, split: PreparedSplit, device: torch.device, inference: Inference
) -> None:
    """Write examples.npz: predicted maps uint8 [P,R,H,W], the truth [R,H,W] and each raster as a picture [R,H,W,3].

    The R scenes are evenly spaced over the split, so they are the same for every method, seed and sweep.
    """
    index = np.unique(((np.arange(EXAMPLES) + 0.5) * len(split) / EXAMPLES).astype(int))
    modalities = method.backbone.modalities
    method.eval()
    method.noise.off()
    batch = split.batch(index, device)
    maps = [
        predict_patterns(inference, method, batch, torch.from_numpy(row[None]).to(device))[0].argmax(1)
        for row in pattern_rows(modalities)
    ]
    arrays: dict[str, Any] = {f"input_{m}": _pictures(split, m, index) for m in modalities}
    present_PR = (pattern_rows(modalities)[:, None] & split.natural_NM[index]).any(-1)
    temporary = folder / ".examples.npz"
    arrays["maps_PRHW"] = torch.stack(maps).cpu().numpy().astype(np.uint8)
    arrays["truth_RHW"] = np.asarray(split.targets[index])
    arrays["ids"] = np.array([split.ids[i] for i in index])
    arrays["present_PR"] = present_PR
    arrays["patterns"] = np.array([pattern_name(p, modalities) for p in patterns(modalities)])
    np.savez_compressed(temporary, **arrays)
    temporary.replace(folder / "examples.npz")


def _pictures(split: PreparedSplit, modality: str, index: np.ndarray) -> np.ndarray:
    """uint8 [R,H,W,3]: 8-bit colour unchanged; else three channels, or one as grey, each scaled to its range here."""
    format, values = split.formats[modality], split.column(modality)[index]
    assert isinstance(format, RasterFormat)
    if format.channels == 3 and format.dtype == "uint8":
        return np.ascontiguousarray(values.transpose(0, 2, 3, 1))
    values = values[:, : 3 if format.channels >= 3 else 1].astype(np.float32)
    low, high = values.min((0, 2, 3), keepdims=True), values.max((0, 2, 3), keepdims=True)
    levels = ((values - low) * (255 / np.where(high > low, high - low, 1))).astype(np.uint8).transpose(0, 2, 3, 1)
    return np.repeat(levels, 3 // levels.shape[-1], -1)
