"""Clips as arrays of a few frames, from a video file (`mmsweep[video]`) or a folder of pictures.

Frames are read as pictures are, and `Undecodable` is raised in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from mmsweep.components import Section, register
from mmsweep.data.augmentation import Augmentation
from mmsweep.data.cells import BadCell
from mmsweep.data.containers import read_frames
from mmsweep.data.files import Segment, Undecodable, name_of, natural_key, path_of, reading
from mmsweep.data.kinds.image import ImageFormat, check_size, fit_square, open_picture, whole_square
from mmsweep.data.kinds.kind import Column, Format, Layout, Parts, Rows, Varied
from mmsweep.errors import UserError
from mmsweep.transfer import Resident

Frame = TypeVar("Frame")

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")

KEPT_FRAMES = 8
"""How many frames are prepared for each random one that is shown."""


@register("video")
@dataclass(frozen=True)
class VideoFormat(Format):
    """Clips: column uint8 [N,f,3,H,W]; batch float32 [B,f,3,H,W], each frame as `image` says.

    Args:
        image: how a frame is read.
        frames: f, the frames that the network sees: the middle one of each of f equal parts of the clip, or a random
            one of each with `Augmentation(random_frames=True)`.
        pool: size of a second column of training frames that random ones are drawn from: up to so many, uniform over
            the clip. None keeps no such column, unless `image.whole` asks for one.
    """

    image: ImageFormat
    frames: int = 3
    pool: int | None = None

    kind: ClassVar[str] = "video"
    word: ClassVar[str] = "video"
    size_key: ClassVar[str] = "data.image.size"
    also_read_by: ClassVar[tuple[str, ...]] = ("image",)
    from_folders: ClassVar[bool] = True
    has_black: ClassVar[bool] = True

    class Options(Column):
        def value(self, cell: Any, folder: Path) -> Any:
            value = super().value(cell, folder)
            if isinstance(value, bytes):
                raise BadCell("a clip must be a file name; found bytes")
            return value

    class Reading(Section):
        """How clips are read."""

        frames: int = Field(3, ge=1, description="Frames of a clip.")

    def __post_init__(self) -> None:
        if self.frames < 1 or (self.pool is not None and self.pool < self.frames):
            raise UserError(
                "a clip needs at least one frame, and as many kept as are shown",
                key="frames",
                found=(self.frames, self.pool),
            )

    def key(self) -> dict[str, Any]:
        key = {"kind": self.kind, "image": self.image.key(), "stored": self.frames}
        return key if self.pool is None else {**key, "kept": self.pool}

    def columns(self) -> Layout:
        return [("", np.uint8, (self.frames, 3, self.image.size, self.image.size))]

    def varied_columns(self) -> Layout:
        """As for pictures; `.varied.length` is the number of distinct frames of a clip in `.varied`."""
        if self.image.whole is None and self.pool is None:
            return []
        side = self.image.whole or self.image.size
        shape = (self.pool or self.frames, 3, side, side)
        columns: Layout = [(".varied", np.uint8, shape), (".aspect", np.float32, ())]
        return columns + ([(".varied.length", np.int32, ())] if self.pool else [])

    def kept(self, augmentation: Augmentation) -> VideoFormat:
        pool = KEPT_FRAMES * self.frames if augmentation.random_frames else None
        return replace(self, image=self.image.kept(augmentation), pool=pool)

    def decoder(self, varied: bool) -> Callable[[Any], Parts]:
        def decode(value: Any) -> Parts:
            parts = {"": decode_video(value, self)}
            if varied and self.varied_columns():
                parts[".varied"], aspect = decode_kept_frames(value, self)
                parts[".aspect"] = np.array(aspect)
                if self.pool:
                    parts[".varied.length"] = np.array(len(parts[".varied"]))
            return parts

        return decode

    @property
    def draws(self) -> int | None:
        return self.pool

    def drawn_from(self, columns: Mapping[str, np.ndarray]) -> tuple[int, int] | None:
        return None if self.pool is None else (int(columns[".varied.length"].max()), self.frames)

    def read(self, rows: Rows) -> dict[str, Tensor]:
        if rows.varied is None or self.pool is None or not rows.present_B.any():
            return self.image.read(rows)
        kept_B = torch.from_numpy(rows.columns[".varied.length"][rows.index_B])
        frames_BF = rows.varied.augmentation.frames(rows.modality, self.frames, rows.varied.draws, kept_B).numpy()
        values = torch.from_numpy(rows.columns[".varied"][rows.index_B[:, None], frames_BF])
        return {"values": values, "aspect": torch.from_numpy(rows.columns[".aspect"][rows.index_B])}

    def constants(self) -> tuple[Resident, ...]:
        return self.image.constants()

    def shown(self, parts: dict[str, Tensor], varied: Varied | None, constants: tuple[Resident, ...]) -> Tensor:
        return self.image.shown(parts, varied, constants)

    def level(self, values: Sequence[float]) -> Tensor:
        return self.image.level(values)


def decode_video(value: str | Path | Segment, format: VideoFormat) -> np.ndarray:
    """uint8 [f,3,H,W]: the middle frame of each of f equal parts of the clip (frames repeat in shorter clips)."""

    def choose(count: int) -> list[int]:
        return uniform_frames(count, format.frames)

    return np.stack(_frames(value, choose, format.image.size, lambda frame: fit_square(frame, format.image)))


def decode_kept_frames(value: str | Path | Segment, format: VideoFormat) -> tuple[np.ndarray, float]:
    """The frames that augmentation draws from: uint8 [k,3,H,W], at most `format.pool` distinct ones.

    Also log(width / height) of the frames, which is lost where `image.whole` stretches them to squares.
    """
    image, most = format.image, format.pool

    def choose(count: int) -> list[int]:
        return uniform_frames(count, format.frames if most is None else min(count, most))

    def fit(frame: Image.Image) -> tuple[np.ndarray, float]:
        return (fit_square(frame, image), 0.0) if image.whole is None else whole_square(frame, image)

    frames = _frames(value, choose, image.whole or image.size, fit)
    return np.stack([pixels for pixels, _ in frames]), frames[0][1]


def _frames(
    value: str | Path | Segment, choose: Callable[[int], list[int]], side: int, fit: Callable[[Image.Image], Frame]
) -> list[Frame]:
    """Frames of a folder of pictures or of a video file, each fitted as soon as it is decoded.

    Args:
        choose: gives the places of the wanted frames, in order, for the number of frames that there are.
        side: as `open_picture`.
    """
    with reading("clip", value):
        path = path_of(value)
        if not path.is_dir():
            return read_frames(value, choose, fit, lambda size: check_size(size, "clip", value))
        # Numbers compare as numbers (frame-10 after frame-9); an unsorted listing is a known bug of others' loaders.
        names = sorted(
            (p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES), key=lambda p: natural_key(p.name)
        )
        if isinstance(value, Segment) and value.length:
            first, last = (round(at / value.length * len(names)) for at in (value.start, value.end))
            names = names[first : max(last, first + 1)]
        if not names:
            raise Undecodable(f"the folder {name_of(value)} holds no frames")
        return [fit(open_picture(names[i], side)) for i in choose(len(names))]


def uniform_frames(count: int, wanted: int) -> list[int]:
    """Middle of each of `wanted` equal parts of `count` frames."""
    return [int((k + 0.5) * count / wanted) for k in range(wanted)]
