"""Clips become arrays: some frames of a folder of pictures or of a video file (`mmsweep[video]`), read as pictures.

Raises `Undecodable` as `decoding.py` does.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from mmsweep.data.decoding import check_size, fit_square, open_picture, whole_square
from mmsweep.data.files import Undecodable, name_of, reading, regular
from mmsweep.data.formats import VideoFormat
from mmsweep.errors import UserError

Frame = TypeVar("Frame")

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def decode_video(value: str | Path, format: VideoFormat) -> np.ndarray:
    """uint8 [f,3,H,W]: the middle frame of each of f equal parts of the clip (frames repeat in shorter clips)."""

    def choose(count: int) -> list[int]:
        return uniform_frames(count, format.frames)

    return np.stack(_frames(value, choose, format.image.size, lambda frame: fit_square(frame, format.image)))


def decode_kept_frames(value: str | Path, format: VideoFormat) -> tuple[np.ndarray, float]:
    """What augmentation draws from: uint8 [k,3,H,W], k distinct frames where `format.kept` says how many at most.

    Also log(width / height) of the frames, which `image.whole` hides. Raises as `decode_video`.
    """
    image, most = format.image, format.kept

    def choose(count: int) -> list[int]:
        return uniform_frames(count, format.frames if most is None else min(count, most))

    def fit(frame: Image.Image) -> tuple[np.ndarray, float]:
        return (fit_square(frame, image), 0.0) if image.whole is None else whole_square(frame, image)

    frames = _frames(value, choose, image.whole or image.size, fit)
    return np.stack([pixels for pixels, _ in frames]), frames[0][1]


def _frames(
    value: str | Path, choose: Callable[[int], list[int]], side: int, fit: Callable[[Image.Image], Frame]
) -> list[Frame]:
    """Frames of a folder of pictures or of a video file, each fitted as soon as it is decoded.

    Args:
        choose: from the number of frames to the places of those that are wanted, in order.
        side: as `open_picture`.
    """
    with reading("clip", value):
        path = Path(value)
        if not path.is_dir():
            return _file_frames(regular(path), choose, fit)
        # Numbers compare as numbers (frame-10 after frame-9); an unsorted listing is a known bug of others' loaders.
        names = sorted(
            (p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES), key=lambda p: natural_key(p.name)
        )
        if not names:
            raise Undecodable(f"the folder {name_of(path)} holds no frames")
        return [fit(open_picture(names[i], side)) for i in choose(len(names))]


def uniform_frames(count: int, wanted: int) -> list[int]:
    """Middle of each of `wanted` equal parts of `count` frames."""
    return [int((k + 0.5) * count / wanted) for k in range(wanted)]


def natural_key(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sort key in which frame-9 comes before frame-10; names with equal numbers, 7 and 007, follow their spelling."""
    parts = re.split(r"([0-9]+)", name)
    digits = [part.lstrip("0") for part in parts[1::2]]  # compared by length, then by digit: as their numbers
    keys = [(1, 0, part) for part in parts]
    keys[1::2] = [(0, len(number), number) for number in digits]
    return keys, name


def _file_frames(path: Path, choose: Callable[[int], list[int]], fit: Callable[[Image.Image], Frame]) -> list[Frame]:
    try:
        import av
    except ImportError:
        raise UserError("video files need the package av", file=path, hint="pip install 'mmsweep[video]'") from None
    with av.open(str(path)) as clip:
        if not clip.streams.video:
            raise Undecodable(f"the clip {name_of(path)} has no pictures")
        context = clip.streams.video[0].codec_context
        check_size((context.width, context.height), "clip", path)
        count = sum(1 for _ in clip.decode(video=0))  # containers' own frame counts cannot be trusted
    if count == 0:
        raise Undecodable(f"the clip {name_of(path)} has no frames")
    chosen = choose(count)
    frames: dict[int, Frame] = {}
    with av.open(str(path)) as clip:
        for index, frame in enumerate(clip.decode(video=0)):
            if index in chosen:
                frames[index] = fit(frame.to_image())
    return [frames[index] for index in chosen]
