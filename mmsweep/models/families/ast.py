"""AST, the audio spectrogram transformer."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mmsweep.components import register
from mmsweep.data.kinds.audio import AudioFormat
from mmsweep.data.kinds.kind import Format
from mmsweep.errors import UserError
from mmsweep.models.encoder import Tokens
from mmsweep.models.families.family import PictureFamily
from mmsweep.models.input_formats import Inputs, Preprocessing


@register("audio-spectrogram-transformer")
class Ast(PictureFamily):
    """Pooling is the mean of the CLS and distillation tokens (B12)."""

    model = "ASTModel"
    blocks = "layers"
    prefix = 2
    default_pool = "mean of prefix"

    @staticmethod
    def embed(model: Any, x: Tensor) -> Tokens:
        return Tokens(model.embeddings(x), None, _grid(model.config))

    @classmethod
    def format(cls, config: Any, preprocessing: Preprocessing, folder: str, inputs: Inputs) -> AudioFormat:
        if inputs.frames not in (None, config.max_length):  # the positions are learned for one grid
            raise UserError(
                "the encoder does not read spectrograms of this length",
                key="data.audio.frames",
                found=inputs.frames,
                expected=str(config.max_length),
            )
        media = preprocessing.media
        mean, std = media.get("mean", -4.2677393), media.get("std", 4.5689974)
        if not media.get("do_normalize", True):
            mean, std = 0.0, 0.5
        return AudioFormat(media.get("sampling_rate", 16000), config.num_mel_bins, config.max_length, mean, std, "ast")

    @classmethod
    def token_shape(cls, config: Any, fmt: Format) -> tuple[int, int]:
        high, wide = _grid(config)
        return high * wide + cls.prefix, config.hidden_size

    @classmethod
    def token_grid(cls, config: Any, fmt: Format) -> tuple[int, ...]:
        return _grid(config)


def _grid(config: Any) -> tuple[int, int]:
    high = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
    return high, (config.max_length - config.patch_size) // config.time_stride + 1
