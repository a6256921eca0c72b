"""MMP: masked modality projection (arXiv 2410.03010), as DESIGN §4 restores its equations.

Symbols: T_m -> tokens[m].values; A_m -> aggregated[m]; K -> method.aggregated_tokens; P_m -> common[m]; CA ->
CrossAttention; 𝒜 and ℳ -> the modalities that a row uses, and does not; D -> method.projector.width.

    (2) summarise: a used: Â_a = CA_a(A_a, P_a T_a)
    (3) relate: m not used, a used: Z_{m←a} = CA_m(A_m, Â_a)
    (4) refine: R_{m←a} = CA_m(Z_{m←a}, P_a T_a)
    (5) C_m: the R_{m←a} one after the other in modality order, zeros in the place of an unused a: [(M-1)K, D]
    (6) T̂_m = MLP_m(C_m): linear over the token axis to N_m, LayerNorm, D -> D, GELU, D -> D_m
    (7) Smooth-L1 between T_m and T̂_m, averaged over ℳ   (restoration.py)
    (8) task loss + λ alignment, λ = 1

Weights of (2) belong to the source, those of (3), (4) and (6) to the target. Every attention has K queries, so time and
memory are linear in the tokens. (2) to (4) see the source's tokens as a set: where a token lies is known only as far as
the backbone writes it into the token. ViT and BERT do, by position embeddings; MiT's patch embedding (CMNeXt) does not.
`method.projector.positions` adds it, beyond the paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from mmsweep.components import Section, misfit, register
from mmsweep.methods.options import AligningMethodOptions
from mmsweep.methods.restoration import Projector, Restored, Restoring, Sequence, TokenShape, resize
from mmsweep.models.backbone import draw_linear
from mmsweep.models.encoder import sinusoids
from mmsweep.transfer import sent


class CrossAttention(nn.Module):
    """Multi-head attention from queries [R, K, D] to keys and values of [R, N, D]: W_q, W_k, W_v and no more (B30).

    Args:
        width: D, a multiple of heads.
        residual_norm: add the queries to the result and normalise it.
    """

    def __init__(self, width: int, heads: int, residual_norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.norm = nn.LayerNorm(width) if residual_norm else None

    def forward(self, queries_RKD: Tensor, x_RND: Tensor, mask_RN: Tensor | None = None) -> Tensor:
        """[R, K, D]; keys whose mask is False are ignored."""
        q, k, v = (
            linear(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for linear, y in ((self.query, queries_RKD), (self.key, x_RND), (self.value, x_RND))
        )
        mask = None if mask_RN is None else mask_RN[:, None, None, :]
        out_RKD = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        return out_RKD if self.norm is None else self.norm(queries_RKD + out_RKD)


class TokenMLP(nn.Module):
    """Equation 6: [R, J, D] -> [R, N, D_m]."""

    def __init__(self, inputs: int, tokens: int, width: int, out_width: int) -> None:
        super().__init__()
        # No bias here: it would add the same value to all D entries of a token, which the norm removes.
        self.over_tokens = nn.Linear(inputs, tokens, bias=False)
        self.norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, width)
        self.outer = nn.Linear(width, out_width)

    def forward(self, x_RJD: Tensor) -> Tensor:
        tokens_RND = self.over_tokens(x_RJD.transpose(1, 2)).transpose(1, 2)
        return self.outer(F.gelu(self.inner(self.norm(tokens_RND))))


class AggregatedProjector(Projector):
    """Equations 2 to 6.

    Args:
        shapes: of every modality's tokens, in the dataset's order.
        count: K.
        heads: of the attentions.
        width: D; None: the widest modality's, rounded up to whole heads. A modality of that width needs no P_m.
        residual_norm: as CrossAttention.
        positions: add sinusoids of their place to P_a T_a.
    """

    def __init__(
        self,
        shapes: dict[str, TokenShape],
        count: int,
        heads: int,
        width: int | None,
        residual_norm: bool,
        positions: bool = False,
    ) -> None:
        super().__init__()
        self.shapes, self.positions = shapes, positions
        D = width or -(-max(s.width for s in shapes.values()) // heads) * heads

        def attention() -> CrossAttention:
            return CrossAttention(D, heads, residual_norm)

        self.common = nn.ModuleDict(
            {m: nn.Identity() if s.width == D else nn.Linear(s.width, D) for m, s in shapes.items()}
        )
        self.aggregated = nn.ParameterDict({m: nn.Parameter(torch.empty(count, D)) for m in shapes})
        self.summarise = nn.ModuleDict({m: attention() for m in shapes})
        self.relate = nn.ModuleDict({m: attention() for m in shapes})
        self.refine = nn.ModuleDict({m: attention() for m in shapes})
        inputs = (len(shapes) - 1) * count
        self.mlp = nn.ModuleDict({m: TokenMLP(inputs, s.count, D, s.width) for m, s in shapes.items()})

    def reset(self, generator: torch.Generator) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                draw_linear(module, generator)
        for parameter in self.aggregated.parameters():
            # Unit variance: with a smaller one, all K queries would attend uniformly at the start.
            with torch.no_grad():
                parameter.copy_(torch.empty(parameter.shape, device="cpu").normal_(generator=generator))

    def forward(self, tokens: Mapping[str, Sequence], used_BM: Tensor) -> dict[str, Restored]:
        needy_B = (~used_BM).any(1)
        # B29: each pass starts from the parameters A_m; no state is kept between passes.
        sources: dict[str, tuple[Tensor, Tensor, Tensor | None, Tensor]] = {}
        for column, a in enumerate(self.shapes):
            row_B = used_BM[:, column] & needy_B
            rows_R = row_B.nonzero()[:, 0]
            if not len(rows_R):
                continue
            mask_BN, taken_R = tokens[a].mask_BN, sent(rows_R, tokens[a].values_BND.device)
            mask_RN = None if mask_BN is None else mask_BN[taken_R]
            x_RND = self.common[a](tokens[a].values_BND[taken_R])
            if self.positions:
                places_ND = places_on(self.shapes[a], tokens[a].grid, x_RND.shape[2], x_RND.device, x_RND.dtype)
                x_RND = x_RND + places_ND[: x_RND.shape[1]]
            summary_RKD = self.summarise[a](self._queries(a, len(rows_R)), x_RND, mask_RN)  # (2)
            place_B = row_B.cumsum(0) - 1  # a row of the batch -> its row in x
            sources[a] = x_RND, summary_RKD, mask_RN, place_B
        restored = {}
        for column, m in enumerate(self.shapes):
            rows_R = (~used_BM[:, column]).nonzero()[:, 0]
            if len(rows_R):
                blocks = [self._refined(m, a, rows_R, sources.get(a), used_BM) for a in self.shapes if a != m]
                restored[m] = Restored(rows_R, self.mlp[m](torch.cat(blocks, 1)))  # (5), (6)
        return restored

    def _queries(self, m: str, rows: int) -> Tensor:
        return self.aggregated[m].expand(rows, -1, -1)

    def _refined(
        self, m: str, a: str, rows_R: Tensor, source: tuple[Tensor, Tensor, Tensor | None, Tensor] | None, used: Tensor
    ) -> Tensor:
        """R_{m←a} [R, K, D] for the rows that lack m; zeros where they lack a too."""
        K, D = self.aggregated[m].shape
        zeros_RKD = self.aggregated[m].new_zeros(len(rows_R), K, D)
        if source is None:
            return zeros_RKD
        x_SND, summary_SKD, mask_SN, place_B = source
        has_R = used[rows_R, list(self.shapes).index(a)]
        if not has_R.any():
            return zeros_RKD
        index_Q, place_Q = (sent(x, x_SND.device) for x in (place_B[rows_R[has_R]], has_R.nonzero()[:, 0]))
        related_QKD = self.relate[m](self._queries(m, len(index_Q)), summary_SKD[index_Q])  # (3)
        mask_QN = None if mask_SN is None else mask_SN[index_Q]
        refined_QKD = self.refine[m](related_QKD, x_SND[index_Q], mask_QN)  # (4)
        return zeros_RKD.to(refined_QKD.dtype).index_copy(0, place_Q, refined_QKD)


class ProjectorOptions(Section):
    """Every field is an open question of the paper (research/methods.md §B)."""

    heads: int = Field(8, ge=1, description="Heads of each cross-attention (B30).")
    width: int | None = Field(
        None,
        ge=1,
        description="D, the width common to all modalities. null takes that of the widest modality, rounded up to "
        "whole heads.",
    )
    residual_norm: bool = Field(
        False, description="Whether each cross-attention adds its queries and a LayerNorm (B30)."
    )
    positions: bool = Field(
        False,
        description="Whether sinusoids of their place are added to the source's tokens. Not in the paper, whose "
        "projector sees a set.",
    )

    @model_validator(mode="after")
    def _whole_heads(self) -> ProjectorOptions:
        if self.width is not None and self.width % self.heads:
            raise misfit(f"width {self.width} does not divide into {self.heads} heads", "a multiple of heads")
        return self


@register("mmp")
class MMP(Restoring):
    """Predicts tokens of missing modalities by cross-attention to the available ones; see the top of this file.

    `method.align_weight: 0` is the ablation without alignment: the term is reported and trains nothing.
    """

    class Options(AligningMethodOptions):
        aggregated_tokens: int = Field(8, ge=1, description="K, learned tokens that summarise a modality.")
        projector: ProjectorOptions = Field(ProjectorOptions(), description="The network from tokens to tokens.")

    undecayed = ("projector.aggregated.",)
    options: Options

    def make_projector(self, shapes: dict[str, TokenShape]) -> Projector:
        return AggregatedProjector(shapes, self.options.aggregated_tokens, **dict(self.options.projector))


@lru_cache(maxsize=64)
def places_on(shape: TokenShape, grid: tuple[int, ...], width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """`places` on a device, cached."""
    with torch.inference_mode(False):
        return sent(places(shape, grid, width).to(dtype), device)


def places(shape: TokenShape, grid: tuple[int, ...], width: int) -> Tensor:
    """Sinusoids of every token's position on a grid, [N, width]; for (h, w), rows and columns share the width.

    Prefix tokens get zeros. On another grid than training's, the values are interpolated like the tokens (B34).
    """
    axes = [sinusoids(steps, width // len(shape.grid)) for steps in shape.grid]
    inner_ND = axes[0]
    if len(axes) == 2:
        (h, w), (rows_HD, columns_WD) = shape.grid, axes
        inner_ND = torch.cat([rows_HD[:, None].expand(h, w, -1), columns_WD.expand(h, w, -1)], -1).flatten(0, 1)
    whole_ND = F.pad(inner_ND, (0, width - inner_ND.shape[1], shape.prefix, 0)).repeat(shape.sequences, 1)
    return resize(whole_ND[None], shape, grid)[0] if len(grid) == 2 else whole_ND
