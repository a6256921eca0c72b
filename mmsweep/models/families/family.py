"""The contract of a family, which holds what differs between pretrained architectures, such as names of their parts.

A family is one class in one file, registered under the transformers `model_type`s that it supports:

    @register("vit")
    class Vit(PictureFamily): ...
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from operator import attrgetter
from typing import Any, ClassVar

import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn

from mmsweep.components import Registry
from mmsweep.data.kinds.image import ImageFormat
from mmsweep.data.kinds.kind import Format
from mmsweep.errors import UserError
from mmsweep.models.encoder import Tokens
from mmsweep.models.input_formats import Inputs, Preprocessing, image_format
from mmsweep.models.last_block import BlockParts
from mmsweep.models.options import Sizes

FAMILIES = Registry("encoder family", "mmsweep.models.families")
"""The families by model type."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Family(ABC):
    """Builds, loads and runs the networks of one architecture.

    The `config` of a method is the network's configuration, or for timm, whose networks have none, the network itself.

    Attributes:
        model: name of the network's class in transformers; its first use imports the code, which takes seconds.
        pooler: whether the network has an optional pooling layer.
        fresh: whether its networks are mmsweep's own and start from initial values, without a checkpoint
            (`source: scratch`).
        compiled: whether `train.compile` compiles its blocks; False for small networks with dropout.
        described: whether the configuration alone determines the input format.
        prefix: number of tokens before the grid (CLS, distillation).
        blocks: name of the list of blocks.
        masked: whether a block takes a mask of tokens.
        projections: names of q, k, v and o within a block.
        heads: name of the number of heads within a block.
        norms: names of the norms before attention and before the feed-forward part.
        scales: names of the layer scales after attention and after the feed-forward part; None without them.
        default_pool: the pooling that the networks were trained with.
    """

    registry: ClassVar[Registry] = FAMILIES
    model: ClassVar[str]
    pooler: ClassVar[bool] = False
    fresh: ClassVar[bool] = False
    compiled: ClassVar[bool] = True
    described: ClassVar[bool] = True
    prefix: ClassVar[int] = 1
    blocks: ClassVar[str]
    masked: ClassVar[bool] = True
    projections: ClassVar[tuple[str, ...]] = tuple(f"attention.{p}_proj" for p in "qkvo")
    heads: ClassVar[str] = "attention.num_attention_heads"
    norms: ClassVar[tuple[str, str]] = ("layernorm_before", "layernorm_after")
    scales: ClassVar[tuple[str, str] | None] = None
    default_pool: ClassVar[str] = "cls"

    @classmethod
    def network(cls) -> Any:
        """The network's class."""
        return attrgetter(cls.model)(transformers)

    @classmethod
    def config(cls, config: Any) -> Any:
        """This network's part of a checkpoint's configuration."""
        return config

    @classmethod
    def config_of(cls, model: Any) -> Any:
        """A network's `config`."""
        return model.config

    @classmethod
    def build(cls, config: Any, pooler: bool = True) -> Any:
        """The network with initial weights."""
        return cls.network()(cls.config(config), **({"add_pooling_layer": pooler} if cls.pooler else {}))

    @classmethod
    def load(cls, folder: str, config: Any, pooler: bool) -> Any:
        """The network with a checkpoint's weights. Raises as `load_whole`."""
        extra = {"add_pooling_layer": pooler} if cls.pooler else {}
        return load_whole(cls.network(), folder, cls.config(config), **extra)

    @classmethod
    def shape(cls, inputs: Inputs, sizes: Sizes) -> Any:
        """The `config` of a fresh network that reads the one modality of `inputs`. Raises UserError where it cannot."""
        raise NotImplementedError(cls.__name__)

    @classmethod
    def reset(cls, model: Any, generator: torch.Generator) -> None:
        """Draw a fresh network's values anew, on the CPU; those of a checkpoint stay what they are."""
        return None

    @classmethod
    def parts(cls, block: Any) -> BlockParts | None:
        """The parts of a pre-norm block; None if the block can only run as a whole."""
        query, key, value, out = (block.get_submodule(name) for name in cls.projections)
        before, between = (block.get_submodule(name) for name in cls.norms)
        scale, scale_fed = map(block.get_submodule, cls.scales) if cls.scales else (nn.Identity(), nn.Identity())

        def after(attended: Tensor, x: Tensor) -> Tensor:
            x = scale(out(attended)) + x
            return scale_fed(block.mlp(between(x))) + x

        return BlockParts(attrgetter(cls.heads)(block), before, query, key, value, after)

    @staticmethod
    @abstractmethod
    def embed(model: Any, x: Any) -> Tokens: ...

    @staticmethod
    def before(model: Any, values_BND: Tensor) -> Tensor:
        """The layers between the embeddings and the first block."""
        return values_BND

    @staticmethod
    @abstractmethod
    def after(model: Any, values_BND: Tensor) -> Tensor:
        """The final norm."""

    @staticmethod
    def extra(model: Any, extra_ED: Tensor) -> Tensor:
        """`Encoder.embed_extra` of the network."""
        return extra_ED

    @staticmethod
    @abstractmethod
    def class_embedding(model: Any) -> Tensor: ...

    @classmethod
    @abstractmethod
    def format(cls, config: Any, preprocessing: Preprocessing, folder: str, inputs: Inputs) -> Format: ...

    @classmethod
    @abstractmethod
    def token_shape(cls, config: Any, fmt: Format) -> tuple[int, int]: ...

    @classmethod
    def prefix_of(cls, config: Any) -> int:
        """The `prefix` of a network."""
        return cls.prefix

    @classmethod
    def has_class_token(cls, model: Any) -> bool:
        """Whether the first token represents the whole input; registers do not."""
        return cls.prefix > 0

    @classmethod
    def own_pool(cls, model: Any) -> str:
        """The pooling that this network was trained with."""
        return cls.default_pool

    @classmethod
    def token_grid(cls, config: Any, fmt: Format) -> tuple[int, ...]:
        """The grid of the tokens after the prefix: (h, w) or (n,)."""
        return (cls.token_shape(config, fmt)[0] - cls.prefix,)


class PictureFamily(Family):
    """Vision transformers, with a class token before the patches; the defaults are those of ViT."""

    mean: ClassVar[tuple[float, ...]] = (0.5, 0.5, 0.5)
    std: ClassVar[tuple[float, ...]] = (0.5, 0.5, 0.5)

    @staticmethod
    def embed(model: Any, x: Tensor) -> Tokens:
        return Tokens(model.embeddings(x, interpolate_pos_encoding=True), None, PictureFamily.grid(model.config, x))

    @staticmethod
    def after(model: Any, values_BND: Tensor) -> Tensor:
        return model.layernorm(values_BND)

    @staticmethod
    def class_embedding(model: Any) -> Tensor:
        return model.embeddings.cls_token[0, 0]

    @classmethod
    def format(cls, config: Any, preprocessing: Preprocessing, folder: str, inputs: Inputs) -> Format:
        return image_format(config, preprocessing, inputs, cls.mean, cls.std)

    @classmethod
    def token_shape(cls, config: Any, fmt: Format) -> tuple[int, int]:
        assert isinstance(fmt, ImageFormat)
        return (fmt.size // config.patch_size) ** 2 + cls.prefix, config.hidden_size

    @classmethod
    def token_grid(cls, config: Any, fmt: Format) -> tuple[int, ...]:
        assert isinstance(fmt, ImageFormat)
        return fmt.size // config.patch_size, fmt.size // config.patch_size

    @staticmethod
    def grid(config: Any, x_BCHW: Tensor) -> tuple[int, int]:
        return x_BCHW.shape[-2] // config.patch_size, x_BCHW.shape[-1] // config.patch_size


def load_whole(model: Any, folder: str, config: Any, **options: Any) -> Any:
    """A transformers model with a checkpoint's weights. Raises UserError if tensors are missing or do not fit."""
    options |= {"ignore_mismatched_sizes": True}  # the error below names the tensor; transformers' own does not
    try:
        network, info = model.from_pretrained(
            folder, config=config, dtype=torch.float32, output_loading_info=True, **options
        )
        if misfits := sorted(info["mismatched_keys"]):
            name, found, expected = misfits[0]
            raise ValueError(f"another architecture: {name} is {tuple(found)}, its config.json says {tuple(expected)}")
        if missing := sorted(k for k in info["missing_keys"] if "mask_token" not in k):
            raise ValueError(f"the checkpoint lacks {len(missing)} tensors, for example {missing[0]}")
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        problem = f"the network's weights cannot be loaded ({str(error).splitlines()[0]})"
        raise UserError(problem, file=folder, expected="a complete checkpoint") from error
    return network
