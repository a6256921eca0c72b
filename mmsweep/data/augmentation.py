"""Random crops, flips, scales and frames of training batches, on the batch's device, from an explicit generator.

All random numbers are drawn on the CPU for the *whole* global batch, and each rank takes those of its rows. A trial
therefore sees the same pictures on one rank or four, on a CPU or a GPU. All pictures of a row share one draw, which
keeps aligned modalities (colour and depth) aligned.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmsweep.transfer import sent

_LOG_RATIOS = (math.log(3 / 4), math.log(4 / 3))
"""Limits of a crop's log(width / height)."""


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training batches (`data.augmentation`); all are off by default.

    Args:
        crop: smallest and largest area of a random crop as shares of the whole picture; None: no crop. Its width /
            height is between 3/4 and 4/3. A picture too narrow or too flat for this gives the largest such crop.
        flip: probability of a horizontal flip.
        random_frames: whether clips show a random frame of each of their equal parts instead of the middle one.
        window: (height, width) of the window cut from rasters and their label map; None: no window.
        scale: smallest and largest factor by which rasters are enlarged before the window is cut. Below 1 the window
            may reach beyond them; inputs are 0 and pixels have no class there.
    """

    crop: tuple[float, float] | None = None
    flip: float = 0.0
    random_frames: bool = False
    window: tuple[int, int] | None = None
    scale: tuple[float, float] | None = None

    def kept_formats(self, formats: Mapping[str, Any]) -> dict[str, Any]:
        """The formats enlarged for random draws: whole pictures for crops, more frames for random ones.

        Training pictures are then prepared twice: as in evaluation, and with twice as many pixels for crops. The size
        does not depend on the options' values, so configurations that differ in them share the prepared columns.
        """
        return {name: format.kept(self) for name, format in formats.items()}

    @property
    def changes_pictures(self) -> bool:
        return self.crop is not None or self.flip > 0

    def draw(self, rows: int, generator: torch.Generator, kept_frames: Mapping[str, int] | None = None) -> Draws:
        """Random numbers for `rows` rows; the generator advances by an amount that depends on `rows` and formats only.

        Args:
            kept_frames: modality -> number of random numbers per row (the largest number of kept frames of a clip).
        """
        uniform_BK = torch.rand(rows, _COLUMNS, generator=generator)
        frames = {name: torch.rand(rows, count, generator=generator) for name, count in (kept_frames or {}).items()}
        return Draws(uniform_BK, frames)

    def pictures(self, pictures: Tensor, draws: Draws, size: int, aspect_B: Tensor | None = None) -> Tensor:
        """uint8 [B,3,H,W] or [B,F,3,H,W] -> [..., size, size], uint8, or float in 0..255 after a crop.

        Args:
            aspect_B: log(width / height) of pictures before they were stretched to a square; None if they were not.
        """
        frames = pictures.shape[1] if pictures.ndim == 5 else 1
        host_BK = draws.uniform_BK.repeat_interleave(frames, 0)
        flat = pictures.reshape(-1, *pictures.shape[-3:])
        if self.crop is not None:
            aspect_B = None if aspect_B is None else aspect_B.repeat_interleave(frames)
            grid = self._grid(sent(host_BK, pictures.device), (size, size), aspect_B)
            flat = F.grid_sample(flat.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
        elif self.flip > 0:
            flipped = self._flipped(host_BK, flat.device)
            flat = flat.index_copy(0, flipped, flat[flipped].flip(-1))
        return flat.reshape(*pictures.shape[:-3], *flat.shape[-3:])

    def rasters(self, values: Tensor, draws: Draws) -> Tensor:
        """Normalised rasters [B,C,H,W] -> [B,C,h,w]; all rasters of a row and its label map share one draw."""
        return self._sample(values, draws, "bilinear")

    def labels(self, labels: Tensor, draws: Draws, outside: int) -> Tensor:
        """Label maps [B,H,W] -> [B,h,w], int64: the nearest pixel's class, or `outside` beyond the map."""
        sampled = self._sample(labels[:, None].float() - outside, draws, "nearest") + outside
        return sampled[:, 0].round().long()

    def _sample(self, values: Tensor, draws: Draws, mode: str) -> Tensor:
        size = self.window or (values.shape[-2], values.shape[-1])
        if self.crop is None and self.scale is None and size == tuple(values.shape[-2:]):
            flipped = self._flipped(draws.uniform_BK, values.device)
            return values.index_copy(0, flipped, values[flipped].flip(-1))
        uniform_BK = sent(draws.uniform_BK, values.device)
        grid = self._window_grid(uniform_BK, values, size) if self.crop is None else self._grid(uniform_BK, size)
        return F.grid_sample(values, grid, mode=mode, padding_mode="zeros", align_corners=False)

    def _flipped(self, host_BK: Tensor, device: torch.device) -> Tensor:
        """Indices of the rows to mirror; selected on the host, since their number determines a shape."""
        return sent((host_BK[:, _FLIP] < self.flip).nonzero()[:, 0], device)

    def _window_grid(self, uniform_BK: Tensor, values: Tensor, size: tuple[int, int]) -> Tensor:
        low, high = self.scale or (1.0, 1.0)
        factor_B = low + (high - low) * uniform_BK[:, _AREA]
        sides: list[tuple[Tensor, Tensor]] = []
        for length, shown, column in zip(values.shape[-2:], size, (_TOP, _LEFT), strict=True):
            visible_B = shown / factor_B  # pixels of the raster that the window covers
            start_B = ((length - visible_B) * uniform_BK[:, column]).round()  # whole pixels, so scale 1 copies values
            sides.append((visible_B / length, (2 * start_B + visible_B) / length - 1))
        (height_B, y_B), (width_B, x_B) = sides
        return self._affine(uniform_BK, width_B, height_B, x_B, y_B, size)

    def frames(self, modality: str, wanted: int, draws: Draws, kept_B: Tensor) -> Tensor:
        """Indices of the kept frames to show, int64 [B, wanted]: one drawn from each of `wanted` equal parts of a clip.

        A clip of fewer frames shows what evaluation shows, some frames twice.

        Args:
            kept_B: number of distinct frames of each clip.
        """
        kept_B1, part = kept_B[:, None].long(), torch.arange(wanted + 1)
        bounds_BF = part * kept_B1 // wanted
        sizes_BF = bounds_BF.diff(dim=1)
        drawn_BF = bounds_BF[:, :-1] + (draws.frames[modality][:, :wanted] * sizes_BF).long()
        # As `uniform_frames`, in whole numbers.
        uniform_BF = (2 * part[:-1] + 1) * kept_B1 // (2 * wanted)
        return torch.where((kept_B >= wanted)[:, None], drawn_BF, uniform_BF)

    def _grid(self, uniform_BK: Tensor, size: tuple[int, int], aspect_B: Tensor | None = None) -> Tensor:
        assert self.crop is not None
        low, high = self.crop
        area_B = low + (high - low) * uniform_BK[:, _AREA]
        log_low, log_high = _LOG_RATIOS
        # Logarithms of width / height, relative to the picture's: a square crop of a wide picture is a narrow part.
        shape_B = torch.zeros_like(area_B) if aspect_B is None else aspect_B
        fits_B = -area_B.log()  # the ratio beyond which a crop of this area exceeds the picture
        ratio_B = log_low + (log_high - log_low) * uniform_BK[:, _RATIO]
        ratio_B = ratio_B.clamp(shape_B - fits_B, shape_B + fits_B).clamp(log_low, log_high) - shape_B
        width_B, height_B = (area_B * ratio_B.exp()).sqrt(), (area_B / ratio_B.exp()).sqrt()
        larger_B = torch.maximum(width_B, height_B).clamp(min=1.0)
        width_B, height_B = width_B / larger_B, height_B / larger_B
        # grid_sample counts from -1 to 1: a crop of width w may have its centre within ±(1 - w).
        x_B = (2 * uniform_BK[:, _LEFT] - 1) * (1 - width_B)
        y_B = (2 * uniform_BK[:, _TOP] - 1) * (1 - height_B)
        return self._affine(uniform_BK, width_B, height_B, x_B, y_B, size)

    def _affine(
        self, uniform_BK: Tensor, width_B: Tensor, height_B: Tensor, x_B: Tensor, y_B: Tensor, size: tuple[int, int]
    ) -> Tensor:
        sign_B = torch.where(uniform_BK[:, _FLIP] < self.flip, -1.0, 1.0)
        zero_B = torch.zeros_like(x_B)
        theta = torch.stack(
            [torch.stack([sign_B * width_B, zero_B, x_B], 1), torch.stack([zero_B, height_B, y_B], 1)], dim=1
        )
        return F.affine_grid(theta, [len(theta), 3, *size], align_corners=False)


@dataclass(frozen=True)
class Draws:
    """The random numbers of a batch.

    Args:
        uniform_BK: float [B, K], a column for each decision.
        frames: modality -> float [B, F].
    """

    uniform_BK: Tensor
    frames: Mapping[str, Tensor]

    @classmethod
    def together(cls, parts: Sequence[Draws]) -> Draws:
        """The numbers of several batches in one."""
        frames = {name: torch.cat([p.frames[name] for p in parts]) for name in parts[0].frames}
        return cls(torch.cat([p.uniform_BK for p in parts]), frames)

    def rows(self, rows: slice | Tensor) -> Draws:
        """The numbers of a rank's rows."""
        return Draws(self.uniform_BK[rows], {name: values[rows] for name, values in self.frames.items()})


# All columns are always drawn, so that switching an option on leaves the numbers of the others as they were. The last
# three are unused; they keep the numbers of older studies.
_AREA, _RATIO, _LEFT, _TOP, _FLIP = range(5)
_COLUMNS = 8
