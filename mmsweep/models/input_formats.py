"""How pictures and texts become a network's inputs: what the study says, else what the network's files say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args

from mmsweep.data.kinds.image import ImageFormat, Resample
from mmsweep.data.kinds.raster import RasterFormat
from mmsweep.data.kinds.sequence import SequenceFormat
from mmsweep.data.kinds.text import TextFormat
from mmsweep.errors import UserError

_RESAMPLES = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""In the order of Pillow's numbers, which preprocessor_config.json holds."""

_TEXT_LENGTH = 128
"""Tokens where the study gives no length and the encoder takes more."""


@dataclass(frozen=True)
class Inputs:
    """What a network is to read: the dataset's modalities, and what the study says of their sizes.

    Args:
        kinds: modality -> kind (a name of data.options.KINDS), in the dataset's order.
        size, fit: of pictures, as `data.image`; a size of None is the one that the network was made for.
        length: tokens of a text, as `data.text.length`.
        frames: of a spectrogram, as `data.audio.frames`.
        clip_frames: frames a clip.
        rasters, sequences: modality -> how it is read, of the modalities of that kind.
        window: (H, W) that training sees of rasters; None: all of them.
    """

    kinds: Mapping[str, str] = field(default_factory=dict)
    size: int | None = None
    fit: Literal["crop", "pad"] = "crop"
    length: int | None = None
    frames: int | None = None
    clip_frames: int = 1
    rasters: Mapping[str, RasterFormat] = field(default_factory=dict)
    sequences: Mapping[str, SequenceFormat] = field(default_factory=dict)
    window: tuple[int, int] | None = None


class Preprocessing:
    """What lies beside a checkpoint about its inputs; nothing where nothing does.

    Attributes:
        media: of pictures or sounds: preprocessor_config.json, or its part of processor_config.json.
        text: of texts: tokenizer_config.json.
        file: where `media` stands, for messages.

    Raises:
        UserError: a file that is no JSON object.
    """

    def __init__(self, folder: Path | None) -> None:
        self.file: Path | None = None
        self.media: dict[str, Any] = {}
        self.text: dict[str, Any] = _object(folder / "tokenizer_config.json") if folder else {}
        for name in ("preprocessor_config.json", "processor_config.json") if folder else ():
            assert folder is not None
            found = _object(folder / name)
            # A processor of several inputs keeps each one's settings by itself.
            found = found.get("image_processor") or found.get("feature_extractor") or found
            if found and not self.media:
                self.media, self.file = found, folder / name

    def check(self, expected: dict[str, Any], what: str) -> None:
        """Raises UserError where a setting is another than the one that is computed here."""
        for key, value in expected.items():
            if self.media.get(key, value) != value:
                raise UserError(
                    f"the encoder wants {what} that mmsweep does not compute",
                    file=self.file, key=key, found=self.media[key], expected=str(value),
                )  # fmt: skip


def _object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise UserError(f"the encoder's settings cannot be read ({error})", file=path) from None
    if not isinstance(content, dict):
        raise UserError("the encoder's settings are no JSON object", file=path)
    return content


def image_format(
    config: Any,
    preprocessing: Preprocessing,
    inputs: Inputs,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> ImageFormat:
    """Pictures as a network was trained on: as its preprocessing says, where that is known, else by its configuration.

    Raises:
        UserError: settings that are not understood, a network of other pictures than square ones in RGB.
    """
    media = {key: value for key, value in preprocessing.media.items() if value is not None}
    channels = getattr(config, "num_channels", 3)
    if channels != 3:
        raise UserError("the encoder reads pictures of another number of channels", file=preprocessing.file,
                        key="num_channels", found=channels, expected="3")  # fmt: skip
    try:
        size, resize = _sizes(media, config)
        mean, std = _levels(media, mean, std)
        resample = _RESAMPLES[media["resample"]] if isinstance(media.get("resample"), int) else "bicubic"
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise UserError(
            f"the encoder's settings for pictures are not understood ({error})", file=preprocessing.file
        ) from None
    return scaled_format(inputs, size, resize, mean, std, resample)


def scaled_format(
    inputs: Inputs, size: int, resize: int, mean: tuple[float, ...], std: tuple[float, ...], resample: str
) -> ImageFormat:
    """The format of a network that sees the middle `size` pixels of pictures whose shorter side is `resize`.

    A size that the study gives keeps their ratio; `fit: pad` shows the whole picture.
    """
    shown = inputs.size or size
    margin = None if inputs.fit == "pad" or resize <= size else round(resize * shown / size)
    known = cast(Resample, resample if resample in get_args(Resample) else "bicubic")
    return ImageFormat(shown, mean, std, margin, fit=inputs.fit, resample=known)


def _sizes(media: dict[str, Any], config: Any) -> tuple[int, int]:
    """(side of what is shown, shorter side before it is cropped)."""
    resize = _side(media.get("size")) if media.get("do_resize", True) else None
    crop = _side(media.get("crop_size")) if media.get("do_center_crop", True) else None
    size = crop or resize or _side(config.image_size)
    if size is None:
        raise ValueError("no size is given")
    return size, resize or size


def _side(size: Any) -> int | None:
    """The side of a square, or the shorter side, in any way in which a size is written."""
    if isinstance(size, dict):
        sides = {size[name] for name in ("height", "width", "shortest_edge") if size.get(name)}
    else:
        sides = set(size) if isinstance(size, list | tuple) else {size} if size else set()
    if len(sides) > 1:
        raise ValueError(f"pictures that are not square: {size}")
    return int(sides.pop()) if sides else None


def _levels(
    media: dict[str, Any], mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) of values in 0..1, whatever range the network's own are in."""
    if not media.get("do_normalize", True):
        mean, std = (0.0,) * 3, (1.0,) * 3
    else:
        mean, std = _three(media.get("image_mean", mean)), _three(media.get("image_std", std))
    if min(std) <= 0:
        raise ValueError(f"image_std must be above 0, found {std}")
    white = 255.0 * float(media.get("rescale_factor", 1 / 255)) if media.get("do_rescale", True) else 255.0
    if abs(white - 1.0) < 1e-6:
        return mean, std
    return tuple(m / white for m in mean), tuple(s / white for s in std)


def _three(values: Any) -> tuple[float, ...]:
    found = (float(values),) * 3 if isinstance(values, int | float) else tuple(float(value) for value in values)
    if len(found) != 3:
        raise ValueError(f"expected three channels, found {values}")
    return found


def text_format(
    config: Any, preprocessing: Preprocessing, folder: str, inputs: Inputs, stretches: bool = False
) -> TextFormat:
    """Texts as a network reads them.

    Args:
        stretches: the network makes positions for longer texts out of those that it has.

    Raises:
        UserError: the study wants longer texts than the network has positions for.
    """
    positions = config.max_position_embeddings
    most = preprocessing.text.get("model_max_length")  # a tokenizer that does not say holds 1e30
    length = inputs.length or min(_TEXT_LENGTH, positions, most if isinstance(most, int) and most > 2 else positions)
    if length > positions and not stretches:
        raise UserError(
            "the encoder does not read texts of this length",
            key="data.text.length",
            found=length,
            expected=f"at most {positions} tokens",
        )
    return TextFormat(folder, length)
