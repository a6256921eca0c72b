"""How pictures and texts become a network's inputs: what the study says, else what the network was made for."""

from __future__ import annotations

from typing import Any, Literal

from mmsweep.data.formats import ImageFormat, TextFormat
from mmsweep.errors import UserError


class FormatOptions:
    """What the study says of inputs; None leaves it to the encoder."""

    def __init__(
        self,
        size: int | None = None,
        length: int | None = None,
        frames: int | None = None,
        fit: Literal["crop", "pad"] = "crop",
    ) -> None:
        self.size, self.length, self.frames, self.fit = size, length, frames, fit


def image_format(
    config: Any,
    preprocessing: dict[str, Any],
    options: FormatOptions,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> ImageFormat:
    """Pictures as a network was trained on: its preprocessing where that is known, else its configuration's size."""
    size = options.size or _side(preprocessing.get("crop_size") or preprocessing.get("size")) or config.image_size
    mean = tuple(preprocessing.get("image_mean", mean))
    return ImageFormat(int(size), mean, tuple(preprocessing.get("image_std", std)), fit=options.fit)


def text_format(
    config: Any, preprocessing: dict[str, Any], folder: str, options: FormatOptions, stretches: bool = False
) -> TextFormat:
    """Texts as a network reads them.

    Args:
        stretches: the network makes positions for longer texts out of those that it has.

    Raises:
        UserError: the study wants longer texts than the network has positions for.
    """
    length = options.length or min(128, config.max_position_embeddings)
    if length > config.max_position_embeddings and not stretches:
        raise UserError(
            "the encoder does not read texts of this length",
            key="data.text.length",
            found=length,
            expected=f"at most {config.max_position_embeddings} tokens",
        )
    return TextFormat(folder, length, lower=bool(preprocessing.get("do_lower_case", True)))


def _side(size: Any) -> int | None:
    """A side from any way preprocessor_config.json writes a size."""
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge")
    return int(size) if size else None
