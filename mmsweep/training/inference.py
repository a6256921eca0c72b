"""How a dense prediction is made at test: of the whole picture, of windows that slide over it, at several scales.

Validation always looks at whole pictures once; the other options cost as many passes as they have views.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from mmsweep.data.dataset import Batch
from mmsweep.errors import UserError
from mmsweep.methods.method import Method


@dataclass(frozen=True)
class Inference:
    """Test options of segmentation; the defaults are one pass over the whole picture.

    Args:
        window: side of square windows that slide over the picture; where windows overlap their logits are averaged.
        stride: step from window to window; None: two thirds of the window.
        scales: the picture is seen at each of these sizes (1 is its own); probabilities are averaged.
        flip: each scale is seen mirrored too.
    """

    window: int | None = None
    stride: int | None = None
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    def __post_init__(self) -> None:
        if not self.scales or min(self.scales) <= 0:
            raise UserError("scales must be positive", key="inference.scales", found=list(self.scales))
        if self.stride is not None and (self.window is None or not 0 < self.stride <= self.window):
            raise UserError(
                "windows would leave gaps",
                key="inference.stride",
                found=self.stride,
                expected=f"1 to inference.window ({self.window})",
            )

    @property
    def views(self) -> int:
        """How often the picture is seen, windows not counted."""
        return len(self.scales) * (2 if self.flip else 1)

    def predict_patterns(self, method: Method, batch: Batch, patterns_PM: Tensor) -> Tensor:
        """As Method.predict_patterns; of several views the log of the mean probability."""
        if self.views == 1 and self.window is None and self.scales == (1.0,):
            return method.predict_patterns(batch, patterns_PM)
        size = batch.target.shape[-2:]
        total: Tensor | None = None
        for view, mirrored in self._views(batch, size):
            logits = self._slide(method, view, patterns_PM)
            logits = logits.flip(-1) if mirrored else logits
            flat = F.interpolate(logits.flatten(0, 1).float(), size, mode="bilinear", align_corners=False)
            seen = flat.softmax(1).unflatten(0, logits.shape[:2])
            total = seen if total is None else total + seen
        assert total is not None
        return (total / self.views).log()

    def _views(self, batch: Batch, size: torch.Size) -> Iterator[tuple[Batch, bool]]:
        for scale in self.scales:
            height, width = (max(1, round(side * scale)) for side in size)
            view = _changed(batch, lambda x, to=(height, width): _resized(x, to))  # type: ignore[misc]
            yield view, False
            if self.flip:
                yield _changed(view, lambda x: x.flip(-1)), True

    def _slide(self, method: Method, batch: Batch, patterns_PM: Tensor) -> Tensor:
        height, width = _size(batch)
        if self.window is None or (self.window >= height and self.window >= width):
            return method.predict_patterns(batch, patterns_PM)
        stride = self.stride or max(1, self.window * 2 // 3)
        total: Tensor | None = None
        count_HW = torch.zeros(height, width, device=batch.present_BM.device)
        for top in _starts(height, self.window, stride):
            for left in _starts(width, self.window, stride):
                rows, columns = slice(top, top + self.window), slice(left, left + self.window)
                view = _changed(batch, lambda x, r=rows, c=columns: x[..., r, c])  # type: ignore[misc]
                logits = method.predict_patterns(view, patterns_PM)
                if total is None:
                    total = logits.new_zeros(*logits.shape[:-2], height, width)
                total[..., rows, columns] += logits
                count_HW[rows, columns] += 1
        assert total is not None
        return total / count_HW


WHOLE = Inference()


def _starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin: every `stride`, the last one flush with the end."""
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
