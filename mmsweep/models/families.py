"""What differs between pretrained architectures: where their parts are called what. One class a family.

A family is named by transformers' `model_type`. Adding one is a class and a decorator. timm's: `timm_family.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from operator import attrgetter
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from mmsweep.data.formats import AudioFormat, Format, ImageFormat, TextFormat
from mmsweep.errors import UserError
from mmsweep.models.encoder import Tokens
from mmsweep.models.input_formats import FormatOptions, Preprocessing, image_format, text_format
from mmsweep.models.last_block import BlockParts

FAMILIES: dict[str, type[Family]] = {}
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def family(*model_types: str) -> Callable[[type[Family]], type[Family]]:
    def register(cls: type[Family]) -> type[Family]:
        for name in model_types:
            FAMILIES[name] = cls
        return cls

    return register


class Family(ABC):
    """How to build, read and drive one architecture.

    Attributes:
        model: its network's name within transformers, which imports the code, for seconds, when it is first asked for.
        pooler: whether the network has an optional pooling layer.
        prefix: tokens before the grid's (CLS, distillation).
        projections: the names of q, k, v, o within a block.
        heads: where a block keeps the number of its heads.
        norms: the names of what a block applies before attention and before its feed-forward part.
        scales: the names of what it applies to their results.
    """

    prefix: ClassVar[int] = 1
    projections: ClassVar[tuple[str, ...]] = tuple(f"attention.{p}_proj" for p in "qkvo")
    heads: ClassVar[str] = "attention.num_attention_heads"
    norms: ClassVar[tuple[str, str]] = ("layernorm_before", "layernorm_after")
    scales: ClassVar[tuple[str, str] | None] = None
    default_pool: ClassVar[str] = "cls"

    model: ClassVar[str]
    pooler: ClassVar[bool] = False

    @classmethod
    def network(cls) -> Any:
        """The class of the network."""
        return attrgetter(cls.model)(transformers)

    @classmethod
    def config(cls, config: Any) -> Any:
        """The part of a checkpoint's configuration that concerns this network."""
        return config

    @classmethod
    def build(cls, config: Any, pooler: bool = True) -> Any:
        """The network with initial weights."""
        return cls.network()(cls.config(config), **({"add_pooling_layer": pooler} if cls.pooler else {}))

    @classmethod
    def load(cls, folder: str, config: Any, pooler: bool) -> Any:
        """The network with a checkpoint's weights. Raises ValueError as `load_whole`."""
        extra = {"add_pooling_layer": pooler} if cls.pooler else {}
        return load_whole(cls.network(), folder, cls.config(config), **extra)

    @staticmethod
    @abstractmethod
    def blocks(model: Any) -> tuple[str, Any]: ...

    @classmethod
    def parts(cls, block: Any) -> BlockParts | None:
        """A block taken apart, as a pre-norm block computes; None: it must be run whole."""
        query, key, value, out = (block.get_submodule(name) for name in cls.projections)
        before, between = (block.get_submodule(name) for name in cls.norms)
        scale, scale_fed = map(block.get_submodule, cls.scales) if cls.scales else (nn.Identity(), nn.Identity())

        def after(seen: Tensor, own: Tensor) -> Tensor:
            own = scale(out(seen)) + own
            return scale_fed(block.mlp(between(own))) + own

        return BlockParts(attrgetter(cls.heads)(block), before, query, key, value, after)

    @staticmethod
    @abstractmethod
    def embed(model: Any, x: Any) -> Tokens: ...

    @staticmethod
    def before(model: Any, values_BND: Tensor) -> Tensor:
        """What runs between the embeddings and block 1."""
        return values_BND

    @staticmethod
    @abstractmethod
    def after(model: Any, values_BND: Tensor) -> Tensor:
        """The final norm."""

    @staticmethod
    def extra(model: Any, extra_ED: Tensor) -> Tensor:
        return extra_ED

    @staticmethod
    @abstractmethod
    def class_embedding(model: Any) -> Tensor: ...

    @classmethod
    @abstractmethod
    def format(cls, config: Any, preprocessing: Preprocessing, folder: str, options: FormatOptions) -> Format: ...

    @classmethod
    @abstractmethod
    def token_shape(cls, config: Any, fmt: Format) -> tuple[int, int]: ...

    @classmethod
    def has_class_token(cls, model: Any) -> bool:
        """Whether the first token is one for the whole input; registers are no such tokens."""
        return cls.prefix > 0

    @classmethod
    def own_pool(cls, model: Any) -> str:
        """The pooling that a network was trained with."""
        return cls.default_pool

    @classmethod
    def token_grid(cls, config: Any, fmt: Format) -> tuple[int, ...]:
        """How the tokens after the prefix lie: (h, w) or (n,)."""
        return (cls.token_shape(config, fmt)[0] - cls.prefix,)


class PictureFamily(Family):
    mean: ClassVar[tuple[float, ...]] = (0.5, 0.5, 0.5)
    std: ClassVar[tuple[float, ...]] = (0.5, 0.5, 0.5)

    @classmethod
    def format(cls, config: Any, preprocessing: Preprocessing, folder: str, options: FormatOptions) -> Format:
        return image_format(config, preprocessing, options, cls.mean, cls.std)

    @classmethod
    def token_shape(cls, config: Any, fmt: Format) -> tuple[int, int]:
        assert isinstance(fmt, ImageFormat)
        return (fmt.size // config.patch_size) ** 2 + cls.prefix, config.hidden_size

    @classmethod
    def token_grid(cls, config: Any, fmt: Format) -> tuple[int, ...]:
        assert isinstance(fmt, ImageFormat)
        return fmt.size // config.patch_size, fmt.size // config.patch_size

    @classmethod
    def grid(cls, config: Any, x_BCHW: Tensor) -> tuple[int, int]:
        return x_BCHW.shape[-2] // config.patch_size, x_BCHW.shape[-1] // config.patch_size


@family("clip_vision_model", "clip")
class Clip(PictureFamily):
    """CLIP's vision tower. B7: extra tokens enter before the pre-LN. B10: pooled after the post-LN, no projection."""

    projections = tuple(f"self_attn.{p}" for p in ("q_proj", "k_proj", "v_proj", "out_proj"))
    heads, norms = "self_attn.num_heads", ("layer_norm1", "layer_norm2")
    mean, std = CLIP_MEAN, CLIP_STD

    model = "CLIPVisionModel"

    @classmethod
    def config(cls, config: Any) -> Any:
        return getattr(config, "vision_config", config)

    @staticmethod
    def blocks(model: Any) -> tuple[str, Any]:
        return "encoder.layers", model.encoder.layers

    @staticmethod
    def embed(model: Any, x: Tensor) -> Tokens:
        values_BND = model.embeddings(x, interpolate_pos_encoding=True)
        return Tokens(values_BND, None, PictureFamily.grid(model.config, x))

    @staticmethod
    def before(model: Any, values_BND: Tensor) -> Tensor:
        return model.pre_layrnorm(values_BND)

    @staticmethod
    def after(model: Any, values_BND: Tensor) -> Tensor:
        return model.post_layernorm(values_BND)

    @staticmethod
    def class_embedding(model: Any) -> Tensor:
        return model.embeddings.class_embedding


class _LayersAndNorm(PictureFamily):
    @staticmethod
    def after(model: Any, values_BND: Tensor) -> Tensor:
        return model.layernorm(values_BND)

    @staticmethod
    def class_embedding(model: Any) -> Tensor:
        return model.embeddings.cls_token[0, 0]


@family("vit")
class Vit(_LayersAndNorm):
    model = "ViTModel"
    pooler = True

    @staticmethod
    def blocks(model: Any) -> tuple[str, Any]:
        return "layers", model.layers

    @staticmethod
    def embed(model: Any, x: Tensor) -> Tokens:
        return Tokens(model.embeddings(x, interpolate_pos_encoding=True), None, PictureFamily.grid(model.config, x))


@family("dinov2")
class Dinov2(_LayersAndNorm):
    norms, scales = ("norm1", "norm2"), ("layer_scale1", "layer_scale2")
    mean, std = IMAGENET_MEAN, IMAGENET_STD

    model = "Dinov2Model"

    @staticmethod
    def blocks(model: Any) -> tuple[str, Any]:
        return "encoder.layer", model.encoder.layer

    @staticmethod
    def embed(model: Any, x: Tensor) -> Tokens:
        return Tokens(model.embeddings(x), None, PictureFamily.grid(model.config, x))


@family("audio-spectrogram-transformer")
class Ast(_LayersAndNorm):
    """AST. B12: pooled as the mean of the CLS and distillation tokens."""

    prefix = 2
    default_pool = "mean of prefix"

    model = "ASTModel"

    @staticmethod
    def blocks(model: Any) -> tuple[str, Any]:
        return "layers", model.layers

    @staticmethod
    def embed(model: Any, x: Tensor) -> Tokens:
        return Tokens(model.embeddings(x), None, _ast_grid(model.config))

    @classmethod
    def format(cls, config: Any, preprocessing: Preprocessing, folder: str, options: FormatOptions) -> AudioFormat:
        if options.frames not in (None, config.max_length):  # its positions are learned for this grid
            raise UserError(
                "the encoder does not read spectrograms of this length",
                key="data.audio.frames",
                found=options.frames,
                expected=str(config.max_length),
            )
        media = preprocessing.media
        mean, std = media.get("mean", -4.2677393), media.get("std", 4.5689974)
        if not media.get("do_normalize", True):
            mean, std = 0.0, 0.5
        return AudioFormat(media.get("sampling_rate", 16000), config.num_mel_bins, config.max_length, mean, std, "ast")

    @classmethod
    def token_shape(cls, config: Any, fmt: Format) -> tuple[int, int]:
        high, wide = _ast_grid(config)
        return high * wide + cls.prefix, config.hidden_size

    @classmethod
    def token_grid(cls, config: Any, fmt: Format) -> tuple[int, ...]:
        return _ast_grid(config)


@family("bert")
class Bert(Family):
    """BERT. B8: an extra token gets a token type and the embedding norm, no position. B11: last hidden state."""

    projections = tuple(f"attention.{p}" for p in ("self.query", "self.key", "self.value", "output.dense"))

    model = "BertModel"
    pooler = True

    @staticmethod
    def blocks(model: Any) -> tuple[str, Any]:
        return "encoder.layer", model.encoder.layer

    @classmethod
    def parts(cls, block: Any) -> BlockParts:
        """Norms come after the residual sums here."""
        query, key, value, _ = (block.get_submodule(name) for name in cls.projections)

        def after(seen: Tensor, own: Tensor) -> Tensor:
            return block.feed_forward_chunk(block.attention.output(seen, own))

        return BlockParts(block.attention.self.num_attention_heads, nn.Identity(), query, key, value, after)

    @staticmethod
    def embed(model: Any, x: dict[str, Tensor]) -> Tokens:
        return Tokens(model.embeddings(input_ids=x["ids"]), x["mask"], (x["ids"].shape[1] - 1,))

    @staticmethod
    def after(model: Any, values_BND: Tensor) -> Tensor:
        return values_BND

    @staticmethod
    def extra(model: Any, extra_ED: Tensor) -> Tensor:
        return model.embeddings.LayerNorm(extra_ED + model.embeddings.token_type_embeddings.weight[0])

    @staticmethod
    def class_embedding(model: Any) -> Tensor:
        return model.embeddings.LayerNorm.bias  # where the embedding norm centres every token

    @classmethod
    def format(cls, config: Any, preprocessing: Preprocessing, folder: str, options: FormatOptions) -> TextFormat:
        return text_format(config, preprocessing, folder, options)

    @classmethod
    def token_shape(cls, config: Any, fmt: Format) -> tuple[int, int]:
        assert isinstance(fmt, TextFormat)
        return fmt.length, config.hidden_size


@family("whisper")
class Whisper(Family):
    """Whisper's encoder: no class token, so the mean of its own tokens stands for the input."""

    prefix = 0
    default_pool = "mean"
    projections = tuple(f"self_attn.{p}" for p in ("q_proj", "k_proj", "v_proj", "out_proj"))

    model = "models.whisper.modeling_whisper.WhisperEncoder"

    @classmethod
    def parts(cls, block: Any) -> None:
        """All tokens are read: their mean stands for the input."""

    @classmethod
    def load(cls, folder: str, config: Any, pooler: bool) -> Any:
        if any(name.startswith("WhisperEncoder") for name in config.architectures or ()):
            return super().load(folder, config, pooler)
        return load_whole(transformers.WhisperModel, folder, config).encoder

    @staticmethod
    def blocks(model: Any) -> tuple[str, Any]:
        return "layers", model.layers

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
    def format(cls, config: Any, preprocessing: Preprocessing, folder: str, options: FormatOptions) -> AudioFormat:
        most = 2 * config.max_source_positions
        if options.frames is not None and options.frames > most:
            raise UserError(
                "the encoder does not read spectrograms of this length",
                key="data.audio.frames",
                found=options.frames,
                expected=f"at most {most}",
            )
        preprocessing.check({"sampling_rate": 16000, "hop_length": 160, "n_fft": 400, "dither": 0.0}, "spectrograms")
        return AudioFormat(16000, config.num_mel_bins, options.frames or most, kind="whisper")

    @classmethod
    def token_shape(cls, config: Any, fmt: Format) -> tuple[int, int]:
        assert isinstance(fmt, AudioFormat)
        return (fmt.frames + 1) // 2, config.d_model


def load_whole(model: Any, folder: str, config: Any, **options: Any) -> Any:
    """A model of transformers with a checkpoint's weights. Raises ValueError where some are missing or do not fit."""
    options |= {"ignore_mismatched_sizes": True}  # left alone it refuses them too, but names none
    network, info = model.from_pretrained(
        folder, config=config, dtype=torch.float32, output_loading_info=True, **options
    )
    if misfits := sorted(info["mismatched_keys"]):
        name, found, expected = misfits[0]
        raise ValueError(f"another architecture: {name} is {tuple(found)}, its config.json says {tuple(expected)}")
    if missing := sorted(k for k in info["missing_keys"] if "mask_token" not in k):
        raise ValueError(f"the checkpoint lacks {len(missing)} tensors, for example {missing[0]}")
    return network


def _ast_grid(config: Any) -> tuple[int, int]:
    high = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
    return high, (config.max_length - config.patch_size) // config.time_stride + 1
