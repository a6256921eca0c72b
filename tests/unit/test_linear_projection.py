"""The linear projection against a few lines of independent arithmetic."""

from __future__ import annotations

import torch

from mmsweep.methods import METHODS
from mmsweep.methods.restoration import TokenShape, per_sample
from mmsweep.models.lora import Noise
from tests.unit.restoration_helpers import EVERY, SHAPES, Scenes, scene, solo


def test_linear_projection_by_hand():
    method, batch = scene("linear_projection")
    p, tokens, used = solo(method.projector), method.backbone.embed(batch), EVERY[torch.arange(7)]
    assert set(p.counts) == set(p.widths)  # no two modalities here share their places
    with torch.no_grad():
        _, restored = method.restore(tokens, used)
        for m, found in restored.items():
            for row, guess_ND in zip(found.rows_R.tolist(), found.values_RND, strict=True):
                parts = []
                for column, a in enumerate(SHAPES):
                    if a != m and used[row, column]:
                        own, pair = per_sample(tokens[a], SHAPES[a]), f"{m}_from_{a}"
                        n = own.values_BND.shape[1] if own.mask_BN is None else int(own.mask_BN[row].sum())
                        mapped = own.values_BND[row, :n] @ p.widths[pair].weight.T + p.widths[pair].bias
                        parts.append(p.counts[pair].weight[:, :n] @ mapped)
                torch.testing.assert_close(guess_ND, torch.stack(parts).mean(0), rtol=1e-4, atol=1e-5)


def test_linear_projection_of_one_grid_is_linear_in_the_tokens():
    shapes = {m: TokenShape(100, 8, (10, 10)) for m in ("rgb", "depth")}
    method = METHODS["linear_projection"](
        Scenes(shapes), METHODS.options("linear_projection"), Noise(), torch.Generator()
    )
    assert not method.projector.counts
    assert sum(p.numel() for p in method.projector.parameters()) == 2 * (8 * 8 + 8)
