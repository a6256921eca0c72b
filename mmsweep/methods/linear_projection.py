"""Linear projection: the "LP" rung of MMP's Table 5, in place of its cross-attentions.

    T̂_m = mean over the used a of  S_{m←a} (T_a W_{m←a} + b_{m←a})

A token of m is a linear combination of the used modalities' tokens. W maps widths, D_a -> D_m. S maps the token axis,
N_a -> N_m, and is there only where the counts differ (the paper's §3.3): modalities whose tokens lie on one grid are
mapped place by place, at a cost linear in the tokens. Alignment as in MMP: `method.align_weight`, 0 for the rung
without.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmsweep.components import register
from mmsweep.methods.options import AligningMethodOptions
from mmsweep.methods.restoration import Projector, Restored, Restoring, Sequence, TokenShape, resize
from mmsweep.models.backbone import draw_linear
from mmsweep.transfer import sent


class LinearProjector(Projector):
    """One linear map for every ordered pair of modalities; `shapes` are in the dataset's order."""

    def __init__(self, shapes: dict[str, TokenShape]) -> None:
        super().__init__()
        self.shapes = shapes
        pairs = [(m, a) for m in shapes for a in shapes if a != m]
        self.widths = nn.ModuleDict({_pair(m, a): nn.Linear(shapes[a].width, shapes[m].width) for m, a in pairs})
        self.counts = nn.ModuleDict(
            {
                _pair(m, a): nn.Linear(shapes[a].count, shapes[m].count, bias=False)
                for m, a in pairs
                if not self._same_places(m, a)
            }
        )

    def _same_places(self, m: str, a: str) -> bool:
        one, other = self.shapes[m], self.shapes[a]
        return (one.count, one.grid, one.sequences) == (other.count, other.grid, other.sequences)

    def reset(self, generator: torch.Generator) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                draw_linear(module, generator)

    def forward(self, tokens: Mapping[str, Sequence], used_BM: Tensor) -> dict[str, Restored]:
        restored = {}
        for column, (m, shape) in enumerate(self.shapes.items()):
            rows_R = (~used_BM[:, column]).nonzero()[:, 0]
            if not len(rows_R):
                continue
            device = tokens[m].values_BND.device
            sum_RND = torch.zeros(len(rows_R), shape.count, shape.width, device=device)
            for place, a in enumerate(self.shapes):
                has_R = used_BM[rows_R, place]
                if a != m and has_R.any():
                    found_QND = self._mapped(m, a, tokens[a], sent(rows_R[has_R], device))
                    place_Q = sent(has_R.nonzero()[:, 0], device)
                    sum_RND = sum_RND.to(found_QND.dtype).index_add(0, place_Q, found_QND)
            used_R = sent(used_BM[rows_R].sum(1), device)
            restored[m] = Restored(rows_R, sum_RND / used_R[:, None, None])
        return restored

    def _mapped(self, m: str, a: str, source: Sequence, rows_Q: Tensor) -> Tensor:
        """S (T_a W + b) of some rows, on m's training grid; padding is zero and adds nothing."""
        own, values_QND = self.shapes[a], source.values_BND[rows_Q]
        if source.mask_BN is None:
            now = TokenShape(
                values_QND.shape[1], own.width, source.grid, own.sequences
            )  # evaluation may change the size
            values_QND = resize(values_QND, now, own.grid)
        mapped_QND = self.widths[_pair(m, a)](values_QND)
        if source.mask_BN is not None:
            mapped_QND = torch.where(source.mask_BN[rows_Q, :, None], mapped_QND, torch.zeros_like(mapped_QND))
            mapped_QND = F.pad(mapped_QND, (0, 0, 0, own.count - mapped_QND.shape[1]))
        if _pair(m, a) not in self.counts:
            return mapped_QND
        return self.counts[_pair(m, a)](mapped_QND.transpose(1, 2)).transpose(1, 2)


def _pair(m: str, a: str) -> str:
    return f"{m}_from_{a}"


@register("linear_projection")
class LinearProjection(Restoring):
    """Predicts tokens of missing modalities by one linear map per pair; see the top of this file."""

    class Options(AligningMethodOptions):
        pass

    def make_projector(self, shapes: dict[str, TokenShape]) -> Projector:
        return LinearProjector(shapes)
