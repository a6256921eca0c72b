"""Formats of a network's pictures and texts, from the study's options and the network's own preprocessing files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

from mmsweep.data.kinds.image import ImageFormat, Resample
from mmsweep.data.kinds.raster import RasterFormat
from mmsweep.data.kinds.sequence import SequenceFormat
from mmsweep.data.kinds.table import TableFormat
from mmsweep.data.kinds.text import TextFormat
from mmsweep.errors import UserError

_RESAMPLES = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""Pillow's filters by their numbers, which preprocessor_config.json holds."""

_TEXT_LENGTH = 128
"""Default length of a text in tokens, for encoders that take at least as many."""


@dataclass(frozen=True)
class Inputs:
    """The inputs of a network: the dataset's modalities and the sizes that the study sets.

    Args:
        kinds: modality -> kind (a name of data.options.KINDS), in the dataset's order.
        size, fit: the study's `data.image`; a size of None is the network's own.
        length: tokens of a text, the study's `data.text.length`.
        frames: frames of a spectrogram, the study's `data.audio.frames`.
        clip_frames: frames of a clip.
        rasters, sequences, tables: modality -> format, for the modalities of that kind.
        window: (H, W) of the window that training cuts from rasters; None: whole rasters.
    """

    kinds: Mapping[str, str] = field(default_factory=dict)
    size: int | None = None
    fit: Literal["crop", "pad"] = "crop"
    length: int | None = None
    frames: int | None = None
    clip_frames: int = 1
    rasters: Mapping[str, RasterFormat] = field(default_factory=dict)
    sequences: Mapping[str, SequenceFormat] = field(default_factory=dict)
    tables: Mapping[str, TableFormat] = field(default_factory=dict)
    window: tuple[int, int] | None = None

    def of(self, modality: str) -> Inputs:
        """What the network of one modality is to read."""
        tables = {modality: self.tables[modality]} if modality in self.tables else {}
        return replace(self, kinds={modality: self.kinds[modality]}, tables=tables)


class Preprocessing:
    """The preprocessing settings in a checkpoint's folder; empty without files.

    Attributes:
        media: settings of pictures or sounds, from preprocessor_config.json or processor_config.json.
        text: settings of texts, from tokenizer_config.json.
        file: the file of `media`, for messages.

    Raises:
        UserError: a file that holds no JSON object.
    """

    def __init__(self, folder: Path | None) -> None:
        self.file: Path | None = None
        self.media: dict[str, Any] = {}
        self.text: dict[str, Any] = _object(folder / "tokenizer_config.json") if folder else {}
        for name in ("preprocessor_config.json", "processor_config.json") if folder else ():
            assert folder is not None
            settings = _object(folder / name)
            # A processor of several inputs nests the settings of each one.
            settings = settings.get("image_processor") or settings.get("feature_extractor") or settings
            if settings and not self.media:
                self.media, self.file = settings, folder / name

    def check(self, expected: dict[str, Any], what: str) -> None:
        """Raise UserError if a setting differs from what mmsweep computes."""
        for key, value in expected.items():
            if self.media.get(key, value) != value:
                raise UserError(
                    f"the encoder needs {what} that mmsweep does not compute",
                    file=self.file, key=key, found=self.media[key], expected=str(value),
                )  # fmt: skip


def _object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise UserError(f"the encoder's settings cannot be read ({error})", file=path) from None
    if not isinstance(content, dict):
        raise UserError("the encoder's settings are not a JSON object", file=path)
    return content


def image_format(
    config: Any,
    preprocessing: Preprocessing,
    inputs: Inputs,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> ImageFormat:
    """The format of the pictures that a network was trained on, from its preprocessing or else its configuration.

    Raises:
        UserError: settings that are not understood, or a network for pictures that are not square or not RGB.
    """
    media = {key: value for key, value in preprocessing.media.items() if value is not None}
    channels = getattr(config, "num_channels", 3)
    if channels != 3:
        raise UserError("the encoder does not read RGB pictures", file=preprocessing.file,
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
    """The format of a network that reads the central `size` pixels of pictures whose shorter side is `resize`.

    A size set by the study keeps the ratio of both; `fit: pad` shows the whole picture.
    """
    shown = inputs.size or size
    margin = None if inputs.fit == "pad" or resize <= size else round(resize * shown / size)
    known = cast(Resample, resample if resample in get_args(Resample) else "bicubic")
    return ImageFormat(shown, mean, std, margin, fit=inputs.fit, resample=known)


def _sizes(media: dict[str, Any], config: Any) -> tuple[int, int]:
    """(side of the cropped picture, shorter side before cropping)."""
    resize = _side(media.get("size")) if media.get("do_resize", True) else None
    crop = _side(media.get("crop_size")) if media.get("do_center_crop", True) else None
    size = crop or resize or _side(config.image_size)
    if size is None:
        raise ValueError("they hold no size")
    return size, resize or size


def _side(size: Any) -> int | None:
    """The side of a square, or the shorter side, from any notation of a size; None without one."""
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
    """(mean, std) for values in 0..1, converted from the network's own range."""
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
    channels = (float(values),) * 3 if isinstance(values, int | float) else tuple(float(value) for value in values)
    if len(channels) != 3:
        raise ValueError(f"expected three channels, found {values}")
    return channels


def text_format(
    config: Any, preprocessing: Preprocessing, folder: str, inputs: Inputs, stretches: bool = False
) -> TextFormat:
    """The format of a network's texts.

    Args:
        stretches: whether the network can interpolate its positions for longer texts.

    Raises:
        UserError: the study's texts are longer than the network's positions.
    """
    positions = config.max_position_embeddings
    most = preprocessing.text.get("model_max_length")  # 1e30 if the tokenizer has no limit
    length = inputs.length or min(_TEXT_LENGTH, positions, most if isinstance(most, int) and most > 2 else positions)
    if length > positions and not stretches:
        raise UserError(
            "the encoder does not read texts of this length",
            key="data.text.length",
            found=length,
            expected=f"at most {positions} tokens",
        )
    return TextFormat(folder, length)
