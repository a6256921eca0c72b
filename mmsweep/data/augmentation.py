"""Random crops, flips, colours and frames: on the batch, on its device, from a generator that is handed in.

All random numbers of a batch are drawn on the CPU for the *whole* global batch and then cut to a rank's rows, so that
a trial sees the same pictures on one rank or on four, on a CPU or on a GPU. One draw serves all pictures of a row, so
that aligned modalities (colour and depth) stay aligned. Never used in evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmsweep.errors import UserError
from mmsweep.transfer import Resident, sent


@dataclass(frozen=True)
class Augmentation:
    """What is varied while training. All off by default.

    Args:
        crop_scale: area of a random crop as a share of the whole picture, [low, high]; None: no crop.
        crop_ratio: its width / height, [low, high] around 1. A picture that is too narrow or too flat for a crop of
            that area and ratio gives the largest crop of the ratio.
        flip: probability of a horizontal flip.
        brightness, contrast, saturation: each factor is drawn from [1 - x, 1 + x].
        random_frames: clips show kept frames drawn at random (in order) instead of uniform ones.
        window: (height, width) that training sees of rasters and their label map; None: all of them.
        scale: rasters are enlarged by a factor drawn from [low, high] before the window is cut; below 1 the window may
            reach beyond them: there inputs are 0 and pixels have no class.
    """

    crop_scale: tuple[float, float] | None = None
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    random_frames: bool = False
    window: tuple[int, int] | None = None
    scale: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.crop_scale is not None and not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise UserError("crop_scale must rise within (0, 1]", key="crop_scale", found=self.crop_scale)
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise UserError("crop_ratio must rise and be positive", key="crop_ratio", found=self.crop_ratio)
        if self.scale is not None and not 0 < self.scale[0] <= self.scale[1]:
            raise UserError("scale must rise and be positive", key="scale", found=self.scale)
        if self.scale is not None and self.crop_scale is not None:
            raise UserError(
                "crop and scale both choose what is seen", key="scale", found=self.scale, expected="one of them"
            )
        if self.window is not None and min(self.window) < 1:
            raise UserError("the window must be positive", key="window", found=self.window)
        if not 0 <= self.flip <= 1:
            raise UserError("flip is a probability", key="flip", found=self.flip, expected="0 to 1")
        for name in ("brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError("the strength must lie within 0 and 1", key=name, found=getattr(self, name))

    def kept_formats(self, formats: Mapping[str, Any]) -> dict[str, Any]:
        """The formats with room for what is drawn: whole pictures for crops, more frames for random ones.

        Training pictures are then kept twice: as evaluation shows them, and with twice as many pixels for crops. How
        much is kept does not depend on the options' values, so configurations that differ in them share the columns.
        """
        return {name: format.kept(self) for name, format in formats.items()}

    @property
    def changes_pictures(self) -> bool:
        return self.crop_scale is not None or self.flip > 0 or self._colours

    @property
    def _colours(self) -> bool:
        return max(self.brightness, self.contrast, self.saturation) > 0

    def draw(self, rows: int, generator: torch.Generator, kept_frames: Mapping[str, int] | None = None) -> Draws:
        """Random numbers for `rows` rows. How far the generator moves depends on `rows` and the formats only.

        Args:
            kept_frames: modality -> random numbers of its own (of a clip: the most frames that are kept).
        """
        uniform_BK = torch.rand(rows, _COLUMNS, generator=generator)
        frames = {name: torch.rand(rows, count, generator=generator) for name, count in (kept_frames or {}).items()}
        return Draws(uniform_BK, frames)

    def pictures(self, pictures: Tensor, draws: Draws, size: int, aspect_B: Tensor | None = None) -> Tensor:
        """uint8 [B,3,H,W] or [B,F,3,H,W] -> [..., size, size], uint8, or float in 0..255 after a crop or colours.

        Args:
            aspect_B: log(width / height) that pictures had before they were stretched to a square; None: they were not.
        """
        frames = pictures.shape[1] if pictures.ndim == 5 else 1
        host_BK = draws.uniform_BK.repeat_interleave(frames, 0)
        uniform_BK = sent(host_BK, pictures.device)
        flat = pictures.reshape(-1, *pictures.shape[-3:])
        if self.crop_scale is not None:
            flat = F.grid_sample(
                flat.float(),
                self._grid(uniform_BK, (size, size), None if aspect_B is None else aspect_B.repeat_interleave(frames)),
                mode="bilinear",
                padding_mode="border",
                align_corners=False,
            )
        elif self.flip > 0:
            flipped = self._flipped(host_BK, flat.device)
            flat = flat.index_copy(0, flipped, flat[flipped].flip(-1))
        if self._colours:
            flat = self._recolour(flat.float(), uniform_BK)
        return flat.reshape(*pictures.shape[:-3], *flat.shape[-3:])

    def rasters(self, values: Tensor, draws: Draws) -> Tensor:
        """Normalised rasters [B,C,H,W] -> [B,C,h,w]; one draw serves all rasters of a row and its label map."""
        return self._seen(values, draws, "bilinear")

    def labels(self, labels: Tensor, draws: Draws, outside: int) -> Tensor:
        """Label maps [B,H,W] -> [B,h,w], int64: the nearest pixel's class, `outside` beyond the map."""
        seen = self._seen(labels[:, None].float() - outside, draws, "nearest") + outside
        return seen[:, 0].round().long()

    def _seen(self, values: Tensor, draws: Draws, mode: str) -> Tensor:
        size = self.window or (values.shape[-2], values.shape[-1])
        if self.crop_scale is None and self.scale is None and size == tuple(values.shape[-2:]):
            flipped = self._flipped(draws.uniform_BK, values.device)
            return values.index_copy(0, flipped, values[flipped].flip(-1))
        uniform_BK = sent(draws.uniform_BK, values.device)
        if self.crop_scale is not None:
            grid = self._grid(uniform_BK, size)
        else:
            grid = self._window_grid(uniform_BK, values, size)
        return F.grid_sample(values, grid, mode=mode, padding_mode="zeros", align_corners=False)

    def _flipped(self, host_BK: Tensor, device: torch.device) -> Tensor:
        """Which rows are mirrored; decided on the host, since how many they are decides a shape."""
        return sent((host_BK[:, _FLIP] < self.flip).nonzero()[:, 0], device)

    def _window_grid(self, uniform_BK: Tensor, values: Tensor, size: tuple[int, int]) -> Tensor:
        low, high = self.scale or (1.0, 1.0)
        factor_B = low + (high - low) * uniform_BK[:, _AREA]
        sides: list[tuple[Tensor, Tensor]] = []
        for length, shown, column in zip(values.shape[-2:], size, (_TOP, _LEFT), strict=True):
            visible_B = shown / factor_B  # pixels of the raster that the window covers
            start_B = ((length - visible_B) * uniform_BK[:, column]).round()  # whole pixels: scale 1 copies values
            sides.append((visible_B / length, (2 * start_B + visible_B) / length - 1))
        (height_B, y_B), (width_B, x_B) = sides
        return self._affine(uniform_BK, width_B, height_B, x_B, y_B, size)

    def frames(self, modality: str, wanted: int, draws: Draws, kept_B: Tensor) -> Tensor:
        """int64 [B, wanted]: which of the kept frames to show, in order of time; some twice where there are too few.

        Args:
            kept_B: how many distinct frames a clip has.
        """
        order_BF = draws.frames[modality]
        order_BF = order_BF.masked_fill(torch.arange(order_BF.shape[1]) >= kept_B[:, None], 2.0)  # above every draw
        drawn_BF = order_BF.argsort(dim=1, stable=True)[:, :wanted].sort(dim=1).values
        # As `uniform_frames`, in whole numbers.
        uniform_BF = (2 * torch.arange(wanted) + 1) * kept_B[:, None].long() // (2 * wanted)
        return torch.where((kept_B >= wanted)[:, None], drawn_BF, uniform_BF)

    def _grid(self, uniform_BK: Tensor, size: tuple[int, int], aspect_B: Tensor | None = None) -> Tensor:
        assert self.crop_scale is not None
        low, high = self.crop_scale
        area_B = low + (high - low) * uniform_BK[:, _AREA]
        log_low, log_high = math.log(self.crop_ratio[0]), math.log(self.crop_ratio[1])
        # Logarithms of width / height, relative to the picture's own: a square crop of a wide picture is a narrow part.
        shape_B = torch.zeros_like(area_B) if aspect_B is None else aspect_B
        fits_B = -area_B.log()  # beyond it a crop of this area is wider or higher than the picture
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

    def _recolour(self, flat: Tensor, uniform_BK: Tensor) -> Tensor:
        def factor(strength: float, column: int) -> Tensor:
            return (1 + strength * (2 * uniform_BK[:, column] - 1))[:, None, None, None]

        grey_weights = _GREY.on(flat.device)
        flat = flat * factor(self.brightness, _BRIGHTNESS)
        mean = (flat * grey_weights).sum(1, keepdim=True).mean((2, 3), keepdim=True)
        flat = mean + (flat - mean) * factor(self.contrast, _CONTRAST)
        grey = (flat * grey_weights).sum(1, keepdim=True)
        flat = grey + (flat - grey) * factor(self.saturation, _SATURATION)
        return flat.clamp(0, 255)


@dataclass(frozen=True)
class Draws:
    """The random numbers of a batch.

    Args:
        uniform_BK: float [B, K], one column a decision.
        frames: modality -> float [B, F].
    """

    uniform_BK: Tensor
    frames: Mapping[str, Tensor]

    @classmethod
    def together(cls, parts: Sequence[Draws]) -> Draws:
        """The numbers of several batches, one after the other."""
        frames = {name: torch.cat([p.frames[name] for p in parts]) for name in parts[0].frames}
        return cls(torch.cat([p.uniform_BK for p in parts]), frames)

    def rows(self, rows: slice | Tensor) -> Draws:
        """The numbers of some rows (a rank's)."""
        return Draws(self.uniform_BK[rows], {name: values[rows] for name, values in self.frames.items()})


# A column for every decision, used or not: switching one on leaves the others' numbers as they were.
_AREA, _RATIO, _LEFT, _TOP, _FLIP, _BRIGHTNESS, _CONTRAST, _SATURATION = range(8)
_COLUMNS = 8
_GREY = Resident(torch.tensor([0.299, 0.587, 0.114])[None, :, None, None])
