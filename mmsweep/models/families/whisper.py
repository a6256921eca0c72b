"""Whisper's encoder."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
import transformers
from torch import Tensor

from mmsweep.components import register
from mmsweep.data.kinds.audio import AudioFormat
from mmsweep.data.kinds.kind import Format
from mmsweep.errors import UserError
from mmsweep.models.encoder import Tokens
from mmsweep.models.families.family import Family, load_whole
from mmsweep.models.input_formats import Inputs, Preprocessing


@register("whisper")
class Whisper(Family):
    """It has no class token; the mean of all tokens represents the input."""

    model = "models.whisper.modeling_whisper.WhisperEncoder"
    blocks = "layers"
    prefix = 0
    default_pool = "mean"
    projections = tuple(f"self_attn.{p}" for p in ("q_proj", "k_proj", "v_proj", "out_proj"))

    @classmethod
    def parts(cls, block: Any) -> None:
        """None, since pooling reads all tokens."""

    @classmethod
    def load(cls, folder: str, config: Any, pooler: bool) -> Any:
        if any(name.startswith("WhisperEncoder") for name in config.architectures or ()):
            return super().load(folder, config, pooler)
        return load_whole(transformers.WhisperModel, folder, config).encoder

    @staticmethod
    def embed(model: Any, x: Tensor) -> Tokens:
        hidden = F.gelu(model.conv2(F.gelu(model.conv1(x.transpose(1, 2))))).transpose(1, 2)
        n = hidden.shape[1]
        return Tokens(hidden + model.embed_positions.weight[:n], None, (n,))

    @staticmethod
    def after(model: Any, values_BND: Tensor) -> Tensor:
        return model.layer_norm(values_BND)

    @staticmethod
    def class_embedding(model: Any) -> Tensor:
        return model.embed_positions.weight.mean(0)

    @classmethod
    def format(cls, config: Any, preprocessing: Preprocessing, folder: str, inputs: Inputs) -> AudioFormat:
        most = 2 * config.max_source_positions
        if inputs.frames is not None and inputs.frames > most:
            raise UserError(
                "the encoder does not read spectrograms of this length",
                key="data.audio.frames",
                found=inputs.frames,
                expected=f"at most {most}",
            )
        preprocessing.check({"sampling_rate": 16000, "hop_length": 160, "n_fft": 400, "dither": 0.0}, "spectrograms")
        return AudioFormat(16000, config.num_mel_bins, inputs.frames or most, recipe="whisper")

    @classmethod
    def token_shape(cls, config: Any, fmt: Format) -> tuple[int, int]:
        assert isinstance(fmt, AudioFormat)
        return (fmt.frames + 1) // 2, config.d_model
