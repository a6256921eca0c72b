"""Dense prediction at test: on the whole image, with a sliding window, at several scales, flipped.

Validation always predicts on whole images once; the options of `study.sections.Inference` need one pass per view.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from mmsweep.data.dataset import Batch
from mmsweep.methods.method import Method
from mmsweep.study.sections import Inference

WHOLE = Inference()


def predict_patterns(inference: Inference, method: Method, batch: Batch, patterns_PM: Tensor) -> Tensor:
    """Like Method.predict_patterns; for several views, the log of their mean probability."""
    if inference == WHOLE:
        return method.predict_patterns(batch, patterns_PM)
    size = batch.target.shape[-2:]
    total: Tensor | None = None
    for view, mirrored in _views(inference, batch, size):
        logits = _slide(inference, method, view, patterns_PM)
        logits = logits.flip(-1) if mirrored else logits
        flat = F.interpolate(logits.flatten(0, 1).float(), size, mode="bilinear", align_corners=False)
        probability = flat.softmax(1).unflatten(0, logits.shape[:2])
        total = probability if total is None else total + probability
    assert total is not None
    return (total / inference.views).log()


def _views(inference: Inference, batch: Batch, size: torch.Size) -> Iterator[tuple[Batch, bool]]:
    for scale in inference.scales:
        height, width = (max(1, round(side * scale)) for side in size)
        view = _changed(batch, lambda x, to=(height, width): _resized(x, to))  # type: ignore[misc]
        yield view, False
        if inference.flip:
            yield _changed(view, lambda x: x.flip(-1)), True


def _slide(inference: Inference, method: Method, batch: Batch, patterns_PM: Tensor) -> Tensor:
    (height, width), window = _size(batch), inference.window
    if window is None or (window >= height and window >= width):
        return method.predict_patterns(batch, patterns_PM)
    stride = inference.stride or max(1, window * 2 // 3)
    total: Tensor | None = None
    count_HW = torch.zeros(height, width, device=batch.present_BM.device)
    for top in _starts(height, window, stride):
        for left in _starts(width, window, stride):
            rows, columns = slice(top, top + window), slice(left, left + window)
            view = _changed(batch, lambda x, r=rows, c=columns: x[..., r, c])  # type: ignore[misc]
            logits = method.predict_patterns(view, patterns_PM)
            if total is None:
                total = logits.new_zeros(*logits.shape[:-2], height, width)
            total[..., rows, columns] += logits
            count_HW[rows, columns] += 1
    assert total is not None
    return total / count_HW


def _starts(length: int, window: int, stride: int) -> list[int]:
    """Start positions of windows: every `stride`, the last one aligned with the end."""
    last = max(0, length - window)
    return [*range(0, last, stride), last]


def _changed(batch: Batch, change: object) -> Batch:
    assert callable(change)
    inputs = {m: change(x) if isinstance(x, Tensor) else x for m, x in batch.inputs.items()}
    return replace(batch, inputs=inputs)


def _resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    return x if x.shape[-2:] == size else F.interpolate(x, size, mode="bilinear", align_corners=False)


def _size(batch: Batch) -> tuple[int, int]:
    height, width = next(x.shape[-2:] for x in batch.inputs.values() if isinstance(x, Tensor))
    return int(height), int(width)
