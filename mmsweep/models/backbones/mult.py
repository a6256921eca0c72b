"""MulT: the multimodal transformer for unaligned sequences (Tsai et al., ACL 2019), with MMSA's default sizes.

    x_m [B, T_m, F_m] ─ conv1d, kernel 5, no padding, no bias ─► tokens_m [B, N_m, D]        `embed` ends here (B35)
    for each target t and each other source s:  h_{t←s} = crossmodal transformer, queries of t, keys and values of s
    h_t = concat over s ─► transformer of width (M - 1) D ─► its last valid step
    concat over t ─► residual block ─► linear                                                `predict`

M may be any number from 2 (the paper has three). Layers are pre-norm; queries and keys share a layer's first norm; a
query at step i sees keys up to step i + |N_s - N_t|, as in the reference. Default sizes: research/methods.md §5.3.

Differences from the reference: padding is never attended to, and the last *valid* step is read (the reference attends
to padding and reads the last padded step); dropout masks come from the trial's own generator.

An unused modality has no influence: as a source its attention adds nothing, and as a target its queries are zeros with
their positions, as for an input of zeros in the reference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from mmsweep.components import Section, misfit, register
from mmsweep.data.dataset import Batch
from mmsweep.data.kinds.kind import Format
from mmsweep.data.kinds.sequence import SequenceFormat
from mmsweep.errors import UserError
from mmsweep.models.backbone import Backbone, check_modality
from mmsweep.models.encoder import Tokens, sinusoids
from mmsweep.models.input_formats import Inputs
from mmsweep.models.lora import Noise, SeededDropout, set_noise
from mmsweep.models.options import BackboneOptions, ModelOptions
from mmsweep.transfer import sent

Rate = Annotated[float, Field(ge=0, lt=1)]


class MulTOptions(Section):
    """Sizes and dropouts of `mult`; the defaults are MMSA's for CMU-MOSI (research/methods.md §5.3)."""

    width: int = Field(50, ge=2, description="Width of every modality's tokens (D).")
    heads: int = Field(10, ge=1, description="Heads of every attention; their number divides the width.")
    levels: int = Field(
        4, ge=1, description="Layers of each crossmodal transformer; each target's own transformer has at least three."
    )
    kernel: int = Field(
        5, ge=1, description="Kernel size of the input convolutions in steps; T steps give T - kernel + 1 tokens."
    )
    positions: bool = Field(
        True,
        description="Whether sinusoids of their positions are added to the tokens. MulT's authors do so; MMSA's MulT, "
        "whose scores papers on CMU-MOSI report, does not.",
    )
    attention_dropout: float = Field(
        0.3,
        ge=0,
        lt=1,
        description="Dropout of attention weights, in crossmodal layers only for sources without a key_dropout.",
    )
    key_dropout: dict[str, Rate] = Field(
        {"audio": 0.2, "vision": 0.0},
        description="Dropout of attention weights by source modality, in crossmodal layers.",
    )
    input_dropout: dict[str, Rate] = Field({"text": 0.5}, description="Dropout of inputs by modality.")
    embedding_dropout: float = Field(0.2, ge=0, lt=1, description="Dropout of tokens after adding positions.")
    output_dropout: float = Field(0.5, ge=0, lt=1, description="Dropout within the residual block before the head.")

    @model_validator(mode="after")
    def _check_heads(self) -> MulTOptions:
        if self.width % self.heads:
            raise misfit(f"{self.heads} heads cannot share a width of {self.width}", "heads that divide width")
        return self


@register("mult")
class MulT(Backbone):
    """The network; see the top of this file.

    Args:
        formats: modality -> format of its sequences, in the dataset's order; two or more.
        outputs: C, the width of the prediction.
        options: sizes and dropouts.
        noise: the trial's source of dropout masks; None: no dropout.
        generator: draws the initial values; None leaves that to `reset`.

    Raises:
        UserError: fewer than two modalities, sequences shorter than the kernel.
    """

    class Options(BackboneOptions):
        mult: MulTOptions = Field(MulTOptions(), description="Sizes and dropouts of the network.")

    def __init__(
        self,
        formats: Mapping[str, Format],
        outputs: int,
        options: MulTOptions | None = None,
        noise: Noise | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.options = options = options or MulTOptions()
        self.sequences = _checked(formats, options)
        self.formats: Mapping[str, Format] = dict(formats)
        self.modalities = tuple(formats)
        self.outputs = outputs
        noise = noise or Noise()
        width, names = options.width, self.modalities
        self.convolutions = nn.ModuleDict(
            {m: nn.Conv1d(f.width, width, options.kernel, bias=False) for m, f in self.sequences.items()}
        )
        self.input_dropouts = nn.ModuleDict({m: SeededDropout(options.input_dropout.get(m, 0.0), noise) for m in names})
        self.crossmodal = nn.ModuleDict(
            {
                t: nn.ModuleDict(
                    {
                        s: Transformer(width, options, options.levels, _key_dropout(options, s), noise)
                        for s in names
                        if s != t
                    }
                )
                for t in names
            }
        )
        wide = (len(names) - 1) * width
        self.memory = nn.ModuleDict(
            {t: Transformer(wide, options, max(options.levels, 3), options.attention_dropout, noise) for t in names}
        )
        self.hidden = nn.Linear(len(names) * wide, len(names) * wide)
        self.back = nn.Linear(len(names) * wide, len(names) * wide)
        self.output_dropout = SeededDropout(options.output_dropout, noise)
        self.head = nn.Linear(len(names) * wide, outputs)
        if generator is not None:
            self.reset(generator)

    @classmethod
    def check(cls, model: ModelOptions, modalities: Sequence[str], task: str) -> None:
        """As in Backbone. The dropouts' defaults name MOSI's modalities and are not checked."""
        super().check(model, modalities, task)
        dropouts = _options(model).model_dump(include={"key_dropout", "input_dropout"}, exclude_defaults=True)
        for key, by_modality in dropouts.items():
            for name in by_modality:
                check_modality(name, modalities, "unknown modality", f"model.backbone.mult.{key}")

    @classmethod
    def build(cls, model: ModelOptions, inputs: Inputs, outputs: int, load: bool = True, files: bool = True) -> MulT:
        for modality, kind in inputs.kinds.items():
            if kind != "sequence":
                raise UserError(
                    "MulT reads only sequences",
                    key="model.backbone.name",
                    found=f"mult for {modality}, which is {kind}",
                    expected="modalities of kind sequence, or another backbone",
                )
        return cls({modality: inputs.sequences[modality] for modality in inputs.kinds}, outputs, _options(model))

    def adapt(
        self, model: ModelOptions, noise: Noise, generator: torch.Generator, largest_rank: int | None = None
    ) -> None:
        """Set the trial's source of dropout masks; all weights are always trained."""
        set_noise(self, noise)

    def reset(self, generator: torch.Generator) -> None:
        """Draw new values on the CPU: Xavier uniform within transformers, ± 1 / sqrt(inputs) elsewhere."""
        for name, module in self.named_modules():
            if isinstance(module, nn.LayerNorm):
                with torch.no_grad():
                    module.weight.fill_(1.0)
                    module.bias.zero_()
            elif isinstance(module, nn.Linear | nn.Conv1d):
                inside = name.startswith(("crossmodal.", "memory."))
                inputs, outputs = module.weight[0].numel(), module.weight.shape[0]
                # The reference draws q, k and v as one matrix of three times the height.
                height = 3 * outputs if name.rsplit(".", 1)[-1] in ("query", "key", "value") else outputs
                _draw(module.weight, math.sqrt(6 / (inputs + height)) if inside else 1 / math.sqrt(inputs), generator)
                if module.bias is not None:
                    _draw(module.bias, 0.0 if inside else 1 / math.sqrt(inputs), generator)

    def token_shapes(self) -> dict[str, tuple[int, int]]:
        return {m: (f.length - self.options.kernel + 1, self.options.width) for m, f in self.sequences.items()}

    def embed(self, batch: Batch) -> dict[str, Tokens]:
        tokens = {}
        for column, modality in enumerate(self.modalities):
            x = batch.inputs[modality]
            assert isinstance(x, dict)
            valid_BT = x["mask"] & batch.present_BM[:, column, None]
            values_BTF = torch.where(valid_BT[..., None], x["values"], torch.zeros_like(x["values"]))
            values_BTF = self.input_dropouts[modality](values_BTF)
            values_BND = self.convolutions[modality](values_BTF.transpose(1, 2)).transpose(1, 2)
            n = values_BND.shape[1]
            # Token i begins at step i, so the mask of tokens is that of the first n steps.
            tokens[modality] = Tokens(values_BND, valid_BT[:, :n], (n,))
        return tokens

    def predict(self, tokens: Mapping[str, Tokens], used_BM: Tensor) -> Tensor:
        values: dict[str, Tensor] = {}
        masks: dict[str, Tensor] = {}
        for column, m in enumerate(self.modalities):
            used_B = used_BM[:, column]
            values_BND = tokens[m].values_BND
            values[m] = torch.where(used_B[:, None, None], values_BND, torch.zeros_like(values_BND))
            mask_BN = tokens[m].mask_BN
            if mask_BN is None:
                mask_BN = torch.ones(values_BND.shape[:2], dtype=torch.bool, device=values_BND.device)
            # Zeros of unused modalities, and restored tokens of absent ones, fill the whole grid.
            masks[m] = mask_BN | ~used_B[:, None] | ~mask_BN.any(1, keepdim=True)
        last_BD = torch.cat([self._target(t, values, masks, used_BM) for t in self.modalities], 1)
        return self.head(self.back(self.output_dropout(F.relu(self.hidden(last_BD)))) + last_BD)

    def _target(
        self, target: str, values: Mapping[str, Tensor], masks: Mapping[str, Tensor], used_BM: Tensor
    ) -> Tensor:
        """One target's last valid step: [B, (M - 1) D]."""
        query_BND, mask_BN = values[target], masks[target]
        columns = {m: column for column, m in enumerate(self.modalities)}
        networks = self.crossmodal[target]
        assert isinstance(networks, nn.ModuleDict)
        parts = [
            network(query_BND, values[source], masks[source], used_BM[:, columns[source]])
            for source, network in networks.items()
        ]
        mixed_BND = torch.cat(parts, -1)
        out_BND = self.memory[target](mixed_BND, mixed_BND, mask_BN, torch.ones_like(used_BM[:, 0]))
        last_B = (mask_BN * torch.arange(1, mask_BN.shape[1] + 1, device=mask_BN.device)).argmax(1)
        return out_BND[torch.arange(len(out_BND), device=out_BND.device), last_B]


class Transformer(nn.Module):
    """Layers of attention from one sequence to another (or to itself)."""

    def __init__(self, width: int, options: MulTOptions, levels: int, attention_dropout: float, noise: Noise) -> None:
        super().__init__()
        self.width, self.positions = width, options.positions
        self.dropout = SeededDropout(options.embedding_dropout, noise)
        self.layers = nn.ModuleList(Layer(width, options.heads, attention_dropout, noise) for _ in range(levels))
        self.norm = nn.LayerNorm(width)

    def forward(self, query_BND: Tensor, key_BSD: Tensor, mask_BS: Tensor, used_B: Tensor) -> Tensor:
        """The queries after all layers [B, N, D].

        Args:
            query_BND: the sequence that attends.
            key_BSD: the sequence that is attended to; the same tensor as `query_BND` for self-attention.
            mask_BS: valid keys; at least one per row.
            used_B: rows whose keys may be read; in other rows attention adds nothing.
        """
        n, s = query_BND.shape[1], key_BSD.shape[1]
        steps_N, steps_S = (torch.arange(count, device=query_BND.device) for count in (n, s))
        seen_NS = steps_S <= steps_N[:, None] + abs(s - n)
        allowed_B1NS = (seen_NS & mask_BS[:, None])[:, None]
        itself = key_BSD is query_BND
        x_BND = self.dropout(self._placed(query_BND))
        keys_BSD = x_BND if itself else self.dropout(self._placed(key_BSD))
        for layer in self.layers:
            x_BND = layer(x_BND, x_BND if itself else keys_BSD, allowed_B1NS, used_B)
        return self.norm(x_BND)

    def _placed(self, x_BND: Tensor) -> Tensor:
        x_BND = x_BND * math.sqrt(self.width)
        if not self.positions:
            return x_BND
        return x_BND + _sinusoids_on(x_BND.shape[1], self.width, x_BND.device, x_BND.dtype)


class Layer(nn.Module):
    """Pre-norm attention and feed-forward; queries and keys share a norm."""

    def __init__(self, width: int, heads: int, attention_dropout: float, noise: Noise) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.dropout = SeededDropout(attention_dropout, noise)
        self.second_norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x_BND: Tensor, key_BSD: Tensor, allowed_B1NS: Tensor, used_B: Tensor) -> Tensor:
        added_BND = self.attention(self.norm(x_BND), self.norm(key_BSD), allowed_B1NS)
        x_BND = x_BND + torch.where(used_B[:, None, None], added_BND, torch.zeros_like(added_BND))
        return x_BND + self.down(F.relu(self.up(self.second_norm(x_BND))))

    def attention(self, query_BND: Tensor, key_BSD: Tensor, allowed_B1NS: Tensor) -> Tensor:
        q, k, v = (
            linear(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for linear, x in ((self.query, query_BND), (self.key, key_BSD), (self.value, key_BSD))
        )
        if self.dropout.active:
            # torch's dropout of attention weights would draw from the process-wide generator.
            scores_BHNS = (q @ k.transpose(-1, -2)) / math.sqrt(q.shape[-1])
            weights_BHNS = scores_BHNS.masked_fill(~allowed_B1NS, -math.inf).softmax(-1)
            mixed_BHND = self.dropout(weights_BHNS) @ v
        else:
            mixed_BHND = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed_B1NS)
        return self.out(mixed_BHND.transpose(1, 2).flatten(2))


@lru_cache(maxsize=64)
def _sinusoids_on(steps: int, width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):
        return sent(sinusoids(steps, width).to(dtype), device)


def _options(model: ModelOptions) -> MulTOptions:
    assert isinstance(model.backbone, MulT.Options)
    return model.backbone.mult


def _key_dropout(options: MulTOptions, source: str) -> float:
    return options.key_dropout.get(source, options.attention_dropout)


def _draw(parameter: Tensor, bound: float, generator: torch.Generator) -> None:
    start = torch.empty(parameter.shape, device="cpu").uniform_(-bound, bound, generator=generator)
    with torch.no_grad():
        parameter.copy_(start)


def _checked(formats: Mapping[str, Format], options: MulTOptions) -> dict[str, SequenceFormat]:
    if len(formats) < 2:
        raise UserError(
            "MulT attends from one modality to another",
            key="data.modalities",
            found=list(formats),
            expected="two or more",
        )
    sequences: dict[str, SequenceFormat] = {}
    for modality, format in formats.items():
        if not isinstance(format, SequenceFormat):
            raise UserError(
                "MulT reads only sequences",
                key=f"data.modalities.{modality}.kind",
                found=format.kind,
                expected="sequence",
            )
        if format.length < options.kernel:
            raise UserError(
                "the sequences are shorter than MulT's kernel",
                key=f"data.modalities.{modality}.length", found=format.length, expected=f"{options.kernel} or more",
            )  # fmt: skip
        sequences[modality] = format
    return sequences
