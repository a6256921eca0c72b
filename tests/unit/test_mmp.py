"""MMP's equations against a few lines of independent arithmetic, its costs, and what it does about sizes."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from mmsweep.data.dataset import Batch
from mmsweep.errors import UserError
from mmsweep.methods.mmp import AggregatedProjector, CrossAttention, places
from mmsweep.methods.restoration import Restored, TokenShape, per_sample, put, resize, token_shapes
from mmsweep.models.encoder import Tokens
from tests.unit.restoration_helpers import EVERY, SHAPES, Scenes, scene, solo

WIDTHS = {m: s.width for m, s in SHAPES.items()}


def attend(attention, q_KD, x_ND):
    """Multi-head attention as its definition says it, one head and one query at a time."""
    q, k, v = q_KD @ attention.query.weight.T, x_ND @ attention.key.weight.T, x_ND @ attention.value.weight.T
    d = q.shape[1] // attention.heads
    out = torch.zeros_like(q)
    for h in range(attention.heads):
        part = slice(h * d, (h + 1) * d)
        for i in range(len(q)):
            weights = torch.softmax(torch.stack([q[i, part] @ row[part] / math.sqrt(d) for row in k]), 0)
            out[i, part] = sum(w * row[part] for w, row in zip(weights, v, strict=True))
    return out


@pytest.mark.parametrize("K", [1, 3])
def test_equations_2_to_6_by_hand(K):
    method, batch = scene(aggregated_tokens=K)
    p, tokens = solo(method.projector), method.backbone.embed(batch)
    used = EVERY[torch.arange(7)]
    with torch.no_grad():
        _, restored = method.restore(tokens, used)
        assert set(restored) == set(SHAPES)
        for m, found in restored.items():
            assert found.rows_R.tolist() == [b for b in range(7) if not used[b, list(SHAPES).index(m)]]
            for row, guess_ND in zip(found.rows_R.tolist(), found.values_RND, strict=True):
                blocks = []
                for a in SHAPES:
                    if a == m:
                        continue
                    if not used[row, list(SHAPES).index(a)]:
                        blocks.append(torch.zeros(K, 12))
                        continue
                    own = per_sample(tokens[a], SHAPES[a])
                    t = own.values_BND[row] if own.mask_BN is None else own.values_BND[row][own.mask_BN[row]]
                    x = p.common[a](t)
                    summary = attend(p.summarise[a], p.aggregated[a], x)  # (2)
                    related = attend(p.relate[m], p.aggregated[m], summary)  # (3)
                    blocks.append(attend(p.refine[m], related, x))  # (4)
                c = torch.cat(blocks)  # (5)
                assert c.shape == (2 * K, 12)
                mlp = p.mlp[m]
                hidden = mlp.over_tokens.weight @ c
                hidden = (hidden - hidden.mean(1, keepdim=True)) / (
                    hidden.var(1, unbiased=False, keepdim=True) + 1e-5
                ).sqrt()
                hidden = hidden @ mlp.inner.weight.T + mlp.inner.bias
                hidden = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
                by_hand = hidden @ mlp.outer.weight.T + mlp.outer.bias  # (6)
                assert by_hand.shape == (SHAPES[m].count, SHAPES[m].width)
                torch.testing.assert_close(guess_ND, by_hand, rtol=1e-4, atol=1e-5)


def test_projected_tokens_take_the_real_ones_place():
    """Rows that use a modality keep its tokens to the bit; the others get T̂ whole, with every place valid."""
    method, batch = scene()
    tokens, used = method.backbone.embed(batch), EVERY[torch.arange(7)]
    with torch.no_grad():
        whole, restored = method.restore(tokens, used)
    for column, (m, shape) in enumerate(SHAPES.items()):
        before, after = per_sample(tokens[m], shape), per_sample(whole[m], shape)
        keeps = used[:, column]
        n = before.values_BND.shape[1]
        assert torch.equal(after.values_BND[keeps, :n], before.values_BND[keeps])
        assert torch.equal(after.values_BND[~keeps], restored[m].values_RND)
        if before.mask_BN is not None:
            assert torch.equal(after.mask_BN[keeps, :n], before.mask_BN[keeps]) and after.mask_BN[~keeps].all()
        assert whole[m].sequences == shape.sequences and whole[m].grid == shape.grid


def test_equation_7_by_hand():
    """Only what was masked and is present counts; padding of a text does not."""
    method, batch = scene()
    batch.present_BM[5:] = torch.tensor([[False, True, True], [True, False, True]])  # what the data lacks
    used = (
        batch.present_BM
        & torch.tensor([[1, 1, 1], [0, 1, 1], [1, 0, 1], [0, 0, 1], [1, 0, 0], [0, 1, 1], [1, 0, 0]]).bool()
    )
    with torch.no_grad():
        tokens = method.backbone.embed(batch)
        _, restored = method.restore(tokens, used)
        term = method.alignment(tokens, restored, batch.present_BM)
    masked = batch.present_BM & ~used
    assert term.counted_B.tolist() == masked.any(1).tolist() == [False, True, True, True, True, False, True]
    for row in range(7):
        losses = []
        for column, m in enumerate(SHAPES):
            if not masked[row, column]:
                continue
            real = per_sample(tokens[m], SHAPES[m])
            guess = restored[m].values_RND[restored[m].rows_R.tolist().index(row)]
            keep = slice(None) if real.mask_BN is None else real.mask_BN[row]
            difference = (real.values_BND[row] - guess[: real.values_BND.shape[1]])[keep].abs()
            losses.append(torch.where(difference < 1, difference**2 / 2, difference - 0.5).mean())
        expected = sum(losses) / len(losses) if losses else 0.0
        assert float(term.values_B[row]) == pytest.approx(float(expected), rel=1e-5)


def test_equation_8_and_the_weight_of_the_paper():
    method, batch = scene()
    assert method.weights == {"align": 1.0}
    assert scene(align_weight=0.3)[0].weights == {"align": 0.3}
    used = EVERY[torch.arange(7)]
    output = method(batch, used)
    whole, _ = method.restore(method.backbone.embed(batch), used)
    torch.testing.assert_close(output.prediction, method.backbone.predict(whole, torch.ones_like(used)))
    assert output.losses["align"].values_B.requires_grad
    assert not scene(align_weight=0.0)[0](batch, used).losses["align"].values_B.requires_grad


@pytest.mark.parametrize("name", ["mmp", "linear_projection"])
def test_detached_targets_get_no_gradient_from_alignment(name):
    for detach in (False, True):
        method, batch = scene(name, detach_target=detach)
        tokens = {m: Tokens(t.values_BND.detach().requires_grad_(), t.mask_BN, t.grid, t.sequences)
                  for m, t in method.backbone.embed(batch).items()}  # fmt: skip
        used = torch.tensor([[True, False, True]]).expand(7, -1)
        _, restored = method.restore(tokens, used)
        method.alignment(tokens, restored, batch.present_BM).values_B.sum().backward()
        gradient = tokens["image"].values_BND.grad
        assert (gradient is None or not gradient.any()) if detach else gradient.any()
        assert tokens["text"].values_BND.grad.any()  # a source, not a target


@pytest.mark.parametrize("name", ["mmp", "linear_projection"])
def test_a_batch_that_lacks_nothing_costs_nothing(name, monkeypatch):
    method, batch = scene(name)
    monkeypatch.setattr(type(method.projector), "forward", lambda *_: pytest.fail("projected for nothing"))
    output = method(batch, batch.present_BM)
    assert not output.losses["align"].counted_B.any() and not output.losses["align"].values_B.any()
    tokens = method.backbone.embed(batch)
    assert all(method.restore(tokens, batch.present_BM)[0][m] is tokens[m] for m in tokens)


@pytest.mark.parametrize("name", ["mmp", "linear_projection"])
def test_what_the_data_lacks_is_restored_and_is_no_target(name):
    method, batch = scene(name)
    batch.present_BM[:] = torch.tensor([True, False, True])
    batch.inputs["image"][:] = float("nan")
    output = method(batch, batch.present_BM)
    assert output.prediction.isfinite().all() and not output.losses["align"].counted_B.any()
    _, restored = method.restore(method.backbone.embed(batch), batch.present_BM)
    assert set(restored) == {"image"} and len(restored["image"].rows_R) == 7


def test_every_attention_has_k_queries(monkeypatch):
    """Linear in the tokens: no attention matrix of one modality's tokens against another's."""
    sizes, original = [], F.scaled_dot_product_attention

    def noted(q, k, v, **options):
        sizes.append((q.shape[2], k.shape[2]))
        return original(q, k, v, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", noted)
    method, batch = scene(aggregated_tokens=2)
    method(batch, EVERY[torch.arange(7)])
    assert {q for q, _ in sizes} == {2} and {k for _, k in sizes} == {2, 5, 13, 10}


def test_the_order_of_the_source_s_tokens_is_not_seen():
    """Equations 2 to 4 are attention over a set: where a token lies is known only if the backbone wrote it into it."""
    method, batch = scene(aggregated_tokens=4)
    used = EVERY[[0] * 7].clone()
    used[:, list(SHAPES).index("text")] = False
    turned = dict(batch.inputs)
    for m in ("image", "clip"):  # a text's padding has its place
        turned[m] = batch.inputs[m].flip(1)
    other = Batch(turned, batch.present_BM, batch.target, batch.index)
    _, restored = method.restore(method.backbone.embed(batch), used)
    _, again = method.restore(method.backbone.embed(other), used)
    torch.testing.assert_close(again["text"].values_RND, restored["text"].values_RND)
    placed, _ = scene(aggregated_tokens=4, projector={"positions": True})
    _, before = placed.restore(placed.backbone.embed(batch), used)
    _, after = placed.restore(placed.backbone.embed(other), used)
    assert (after["text"].values_RND - before["text"].values_RND).abs().max() > 1e-3
    linear, _ = scene("linear_projection")
    _, before = linear.restore(linear.backbone.embed(batch), used)
    _, after = linear.restore(linear.backbone.embed(other), used)
    assert (after["text"].values_RND - before["text"].values_RND).abs().max() > 1e-2


def test_places_of_a_grid():
    """Of (row, column), a half each; nothing for CLS, every frame alike, in between on another grid."""
    image = places(SHAPES["image"], (3, 4), 8)
    assert image.shape == (13, 8) and image[0].abs().max() == 0
    grid = image[1:].view(3, 4, 8)
    torch.testing.assert_close(grid[2, :, :2], torch.tensor([math.sin(3), math.sin(3e-4)]).expand(4, 2))
    torch.testing.assert_close(grid[:, 1, 4:6], torch.tensor([math.sin(2), math.sin(2e-4)]).expand(3, 2))
    assert len(grid.flatten(0, 1).unique(dim=0)) == 12
    clip = places(SHAPES["clip"], (2, 2), 8)
    torch.testing.assert_close(clip[:5], clip[5:])
    larger = places(SHAPES["image"], (6, 8), 8)
    assert (
        larger.shape == (49, 8) and 0 < (larger[1:].view(6, 8, 8)[:2, :2].mean((0, 1)) - grid[0, 0]).abs().max() < 0.2
    )
    assert places(SHAPES["text"], (2,), 7).shape == (5, 7)


def test_masks_differ_from_nothing_but_padding():
    attention = CrossAttention(8, 2, residual_norm=False)
    q, x = torch.randn(3, 2, 8), torch.randn(3, 5, 8)
    mask = torch.arange(5)[None] < torch.tensor([5, 2, 1])[:, None]
    padded = attention(q, torch.where(mask[..., None], x, 1e3), mask)
    torch.testing.assert_close(padded[1], attention(q[1:2], x[1:2, :2])[0])
    assert not torch.allclose(padded[1], attention(q, x)[1])
    residual = CrossAttention(8, 2, residual_norm=True)
    residual.load_state_dict(attention.state_dict(), strict=False)
    torch.testing.assert_close(residual(q, x), F.layer_norm(q + attention(q, x), (8,)))


@pytest.mark.parametrize(
    ("grid", "shape"), [((3, 4), SHAPES["image"]), ((2, 2), SHAPES["clip"]), ((4,), SHAPES["text"])]
)
def test_resizing_to_the_same_grid_is_exact(grid, shape):
    values = torch.randn(2, shape.count, shape.width)
    assert resize(values, shape, grid) is values


def test_resizing_a_grid():
    """B34: the prefix stays, the grid is what bilinear interpolation of the picture of tokens gives, frame by frame."""
    shape = SHAPES["image"]
    ramp = torch.arange(12.0).view(1, 12, 1).expand(2, 12, 8)
    values = torch.cat([torch.full((2, 1, 8), 99.0), ramp], 1)
    found = resize(values, shape, (6, 8))
    expected = F.interpolate(torch.arange(12.0).view(1, 1, 3, 4), size=(6, 8), mode="bilinear").flatten()
    assert torch.equal(found[:, 0], values[:, 0]) and found.shape == (2, 49, 8)
    torch.testing.assert_close(found[0, 1:, 3], expected)
    clip = torch.randn(3, 10, 12)
    both = resize(clip, SHAPES["clip"], (4, 4))
    single = resize(clip[:, 5:], TokenShape(5, 12, (2, 2)), (4, 4))
    assert both.shape == (3, 34, 12) and torch.equal(both[:, 17:], single)
    assert resize(torch.randn(1, 5, 6), SHAPES["text"], (8,)).shape == (1, 9, 6)


@pytest.mark.parametrize("name", ["mmp", "linear_projection"])
def test_evaluation_at_another_size_than_training(name):
    method, batch = scene(name, counts={"image": 36})  # a grid of 5 x 7 behind one class token
    used = EVERY[torch.arange(7)]
    output = method.eval()(batch, used)
    assert output.prediction.isfinite().all() and output.losses["align"].values_B.isfinite().all()
    whole, _ = method.restore(method.backbone.embed(batch), used)
    assert whole["image"].values_BND.shape == (7, 36, 8) and whole["image"].grid == (5, 7)


def test_a_text_s_restored_row_is_as_long_as_training_has_it():
    tokens = Tokens(torch.randn(2, 3, 6), torch.tensor([[True, True, False], [True, True, True]]), (2,))
    found, _ = put(tokens, Restored(torch.tensor([1]), torch.ones(1, 5, 6)), SHAPES["text"])
    assert found.values_BND.shape == (2, 5, 6) and found.grid == (4,)
    assert found.mask_BN.tolist() == [[True, True, False, False, False], [True] * 5]
    long = Tokens(torch.randn(2, 7, 6), torch.ones(2, 7, dtype=torch.bool), (6,))
    found, _ = put(long, Restored(torch.tensor([0]), torch.ones(1, 5, 6)), SHAPES["text"])
    assert found.mask_BN.tolist() == [[True] * 5 + [False] * 2, [True] * 7]


def test_clips_of_another_length_are_refused():
    with pytest.raises(UserError, match=r"data.video.frames.*found 3; expected 2"):
        per_sample(Tokens(torch.zeros(6, 5, 12), None, (2, 2), 3), SHAPES["clip"])


@pytest.mark.parametrize(("width", "heads", "D"), [(None, 8, 16), (None, 5, 15), (24, 8, 24), (None, 1, 12)])
def test_the_common_width(width, heads, D):
    """The widest modality's, rounded up to whole heads; modalities that have it already need no map."""
    p = AggregatedProjector(SHAPES, 2, heads, width, False)
    assert all(a.shape == (2, D) for a in p.aggregated.values())
    assert [isinstance(p.common[m], torch.nn.Identity) for m in SHAPES] == [w == D for w in WIDTHS.values()]


def test_parameters_are_what_the_equations_say():
    K, D, M = 3, 12, 3
    p = AggregatedProjector(SHAPES, K, 4, None, False)
    expected = M * K * D + 3 * M * 3 * D * D + sum(w * D + D for w in WIDTHS.values() if w != D)
    for s in SHAPES.values():
        expected += s.count * (M - 1) * K + 2 * D + D * D + D + D * s.width + s.width
    assert sum(parameter.numel() for parameter in p.parameters()) == expected


def test_initial_values_come_from_the_trial_s_generator():
    def values(seed):
        torch.rand(seed)  # the process-wide generator has no say
        p = AggregatedProjector(SHAPES, 2, 4, None, False)
        p.reset(torch.Generator().manual_seed(4))
        return torch.cat([parameter.detach().flatten() for parameter in p.parameters()])

    assert torch.equal(values(1), values(2))


def test_shapes_come_from_the_backbone():
    assert token_shapes(Scenes()) == SHAPES
