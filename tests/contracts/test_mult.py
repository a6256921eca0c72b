"""MulT as a backbone, for M = 2, 3 and 4 sequences: shape and size, what it may read, what trains, what it computes."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmsweep.availability import pattern_rows
from mmsweep.data.dataset import Batch
from mmsweep.data.kinds.image import ImageFormat
from mmsweep.data.kinds.sequence import SequenceFormat
from mmsweep.errors import UserError
from mmsweep.methods import METHODS
from mmsweep.methods.method import Method
from mmsweep.models.backbones.mult import Layer, MulT, MulTOptions
from mmsweep.models.encoder import Tokens, sinusoids
from mmsweep.models.lora import Noise
from mmsweep.models.options import ModelOptions

SEQUENCES = {
    "text": SequenceFormat(9, 6),
    "audio": SequenceFormat(14, 3),
    "vision": SequenceFormat(11, 4),
    "pulse": SequenceFormat(7, 2),
}
MOSI = {"text": SequenceFormat(50, 768), "audio": SequenceFormat(500, 5), "vision": SequenceFormat(375, 20)}
SMALL = MulTOptions(width=8, heads=2, levels=2, kernel=3)
ROWS = 8
SIZES = pytest.mark.parametrize("M", [2, 3, 4])
EVERY = pytest.mark.parametrize("name", sorted(n for n, m in METHODS.items() if issubclass(MulT, m.accepts)))


def make(M: int, options: MulTOptions = SMALL, outputs: int = 1) -> tuple[MulT, Noise]:
    noise = Noise()
    formats = {m: SEQUENCES[m] for m in list(SEQUENCES)[:M]}
    return MulT(formats, outputs, options, noise, torch.Generator().manual_seed(3)), noise


def make_method(name: str, M: int) -> Method:
    network, noise = make(M)
    options = METHODS.options(name, **({"projector": {"width": 8, "heads": 2}} if name == "mmp" else {}))
    return METHODS[name](network, options, noise, torch.Generator().manual_seed(6))


def total(method: Method, batch: Batch, used_BM: Tensor) -> tuple[Tensor, Tensor]:
    """(prediction, loss with the method's own terms)."""
    output = method(batch, used_BM)
    loss = F.mse_loss(output.prediction[:, 0], batch.target)
    for term, weight in method.weights.items():
        t = output.losses[term]
        loss = loss + weight * (t.values_B * t.counted_B).sum() / t.counted_B.sum().clamp(min=1)
    return output.prediction.detach(), loss


def make_batch(M: int, seed: int = 0, present_BM: Tensor | None = None, fill: float = 0.0) -> Batch:
    """Rows of every length from one step on; padding and absent rows hold `fill`."""
    g = torch.Generator().manual_seed(seed)
    present_BM = torch.ones(ROWS, M, dtype=torch.bool) if present_BM is None else present_BM
    inputs: dict[str, Tensor | dict[str, Tensor]] = {}
    for column, m in enumerate(list(SEQUENCES)[:M]):
        length, width = SEQUENCES[m].length, SEQUENCES[m].width
        steps_B = torch.cat([torch.tensor([1, length]), torch.randint(1, length + 1, (ROWS - 2,), generator=g)])
        mask_BT = (torch.arange(length) < steps_B[:, None]) & present_BM[:, column, None]
        values_BTF = torch.randn(ROWS, length, width, generator=g)
        inputs[m] = {"values": torch.where(mask_BT[..., None], values_BTF, fill), "mask": mask_BT}
    return Batch(inputs, present_BM, torch.randn(ROWS, generator=g), torch.arange(ROWS))


def mixed(M: int) -> Tensor:
    rows_PM = torch.from_numpy(pattern_rows(list(SEQUENCES)[:M]))
    return rows_PM[torch.arange(ROWS) % len(rows_PM)]


def row_of(batch: Batch, row: int) -> Batch:
    inputs: dict[str, Tensor | dict[str, Tensor]] = {}
    for m, x in batch.inputs.items():
        assert isinstance(x, dict)
        inputs[m] = {name: part[row : row + 1] for name, part in x.items()}
    return Batch(inputs, batch.present_BM[row : row + 1], batch.target[row : row + 1])


# ---- shape and size


def parameters(widths: list[int], D: int, levels: int, kernel: int, outputs: int) -> int:
    """Counted by hand, layer by layer."""
    M = len(widths)

    def transformer(d: int, layers: int) -> int:
        attention = 4 * (d * d + d)
        feed_forward = (4 * d * d + 4 * d) + (4 * d * d + d)
        return layers * (attention + feed_forward + 2 * 2 * d) + 2 * d

    convolutions = sum(kernel * width * D for width in widths)
    crossmodal = M * (M - 1) * transformer(D, levels)
    memory = M * transformer((M - 1) * D, max(levels, 3))
    wide = M * (M - 1) * D
    return convolutions + crossmodal + memory + 2 * (wide * wide + wide) + (wide * outputs + outputs)


def test_mosi_s_size() -> None:
    with torch.device("meta"):
        network = MulT(MOSI, 1)
    assert network.token_shapes() == {"text": (46, 50), "audio": (496, 50), "vision": (371, 50)}
    found = sum(p.numel() for p in network.parameters())
    # 198,250 convolutions + 6 x 122,700 crossmodal + 3 x 485,400 after them + 2 x 90,300 residual + 301 head
    assert found == parameters([768, 5, 20], 50, 4, 5, 1) == 2_571_551


@SIZES
@pytest.mark.parametrize("levels", [1, 4])
def test_parameters_by_hand(M: int, levels: int) -> None:
    network, _ = make(M, MulTOptions(width=6, heads=3, levels=levels, kernel=2), outputs=3)
    widths = [f.width for f in network.sequences.values()]
    assert sum(p.numel() for p in network.parameters()) == parameters(widths, 6, levels, 2, 3)


@SIZES
def test_tokens_are_those_promised(M: int) -> None:
    network, _ = make(M, outputs=4)
    tokens = network.embed(make_batch(M))
    for m, (n, d) in network.token_shapes().items():
        assert tokens[m].values_BND.shape == (ROWS, n, d) and tokens[m].grid == (n,)
        mask_BN = tokens[m].mask_BN
        assert mask_BN is not None and mask_BN.any(1).all()
    assert network.predict(tokens, torch.ones(ROWS, M, dtype=torch.bool)).shape == (ROWS, 4)


def test_initial_values_come_from_the_generator() -> None:
    torch.manual_seed(1)
    one, _ = make(3)
    torch.manual_seed(2)
    two, _ = make(3)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    other = MulT(one.formats, 1, SMALL, None, torch.Generator().manual_seed(4))
    differ = [n for n, p in other.named_parameters() if not torch.equal(p, one.get_parameter(n))]
    untouched = {n for n, p in other.named_parameters() if n not in differ}
    assert all("norm" in n or n.endswith(".bias") for n in untouched)


# ---- what it computes


def test_attention_is_torch_s() -> None:
    layer = Layer(8, 2, 0.0, Noise())
    g = torch.Generator().manual_seed(0)
    for p in layer.parameters():
        torch.nn.init.normal_(p, std=0.4, generator=g)
    query, key = torch.randn(3, 5, 8, generator=g), torch.randn(3, 6, 8, generator=g)
    allowed = torch.rand(3, 1, 5, 6, generator=g) < 0.6
    allowed[..., 0] = True
    found = layer.attention(query, key, allowed)
    expected, _ = F.multi_head_attention_forward(
        query.transpose(0, 1), key.transpose(0, 1), key.transpose(0, 1), 8, 2,
        None, torch.cat([layer.query.bias, layer.key.bias, layer.value.bias]), None, None, False, 0.0,
        layer.out.weight, layer.out.bias, attn_mask=~allowed[:, 0].repeat_interleave(2, 0),
        use_separate_proj_weight=True, q_proj_weight=layer.query.weight, k_proj_weight=layer.key.weight,
        v_proj_weight=layer.value.weight,
    )  # fmt: skip
    torch.testing.assert_close(found, expected.transpose(0, 1), rtol=1e-5, atol=1e-6)


def test_both_ways_to_attend_agree() -> None:
    """With dropout the weights are made by hand; a rate next to nothing shows that they are the same."""
    layer = Layer(8, 2, 1e-9, noise := Noise())
    x = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))
    allowed = torch.ones(3, 1, 5, 5, dtype=torch.bool).tril()
    quick = layer.attention(x, x, allowed)
    noise.generators, noise.total, noise.rows = [torch.Generator()], 3, slice(0, 3)
    assert layer.dropout.active
    torch.testing.assert_close(layer.attention(x, x, allowed), quick, rtol=1e-5, atol=1e-6)


def test_sinusoids() -> None:
    table = sinusoids(4, 7)
    rates = [1.0, 10_000 ** (-1 / 2), 1e-4]
    for place in range(4):
        expected = [f((place + 1) * r) for f in (math.sin, math.cos) for r in rates] + [0.0]
        assert table[place].tolist() == pytest.approx(expected, abs=1e-5)


def test_a_step_sees_the_past_and_the_difference_of_lengths() -> None:
    """The gradient of query step i reaches key j where j <= i + |S - N|, and no other."""
    network, _ = make(2)
    transformer = network.crossmodal["text"]["audio"]  # type: ignore[index]
    g = torch.Generator().manual_seed(0)
    query = torch.randn(1, 4, 8, generator=g)
    for s in (4, 6, 3):
        key = torch.randn(1, s, 8, generator=g, requires_grad=True)
        for i in range(4):
            out = transformer(query, key, torch.ones(1, s, dtype=torch.bool), torch.tensor([True]))
            (gradient,) = torch.autograd.grad(out[0, i].square().sum(), key)
            reached = (gradient[0].abs().sum(1) > 1e-9).tolist()
            assert reached == [j <= i + abs(s - 4) for j in range(s)]


@pytest.mark.parametrize("positions", [True, False])
def test_without_positions_the_order_of_keys_is_not_seen(positions: bool) -> None:
    """The last query sees every key; MMSA's MulT has no positions, its authors' has (methods.md §H)."""
    network, _ = make(2, SMALL.model_copy(update={"positions": positions}))
    transformer = network.crossmodal["text"]["audio"]  # type: ignore[index]
    g = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 5, 8, generator=g), torch.randn(2, 5, 8, generator=g)
    mask, used = torch.ones(2, 5, dtype=torch.bool), torch.ones(2, dtype=torch.bool)
    forward, back = (transformer(query, k, mask, used)[:, -1] for k in (key, key.flip(1)))
    assert ((forward - back).abs().max() < 1e-5) == (not positions)


def test_dropout_comes_from_the_trial_s_own_generator() -> None:
    network, noise = make(3)
    batch = make_batch(3)

    def run(seed: int | None) -> Tensor:
        torch.rand(3)
        noise.generators = [] if seed is None else [torch.Generator().manual_seed(seed)]
        noise.total, noise.rows = ROWS, slice(0, ROWS)
        return network.predict(network.embed(batch), batch.present_BM).detach()

    assert torch.equal(run(1), run(1)) and not torch.equal(run(1), run(2)) and torch.equal(run(None), run(None))
    network.adapt(ModelOptions(backbone={"name": "mult"}), other := Noise(), torch.Generator())
    before = run(1)
    assert torch.equal(before, run(2)) and not other.generators


# ---- what it may read


@SIZES
@EVERY
def test_what_is_absent_is_never_read(name: str, M: int) -> None:
    """NaN in absent inputs and in padding changes no prediction and no gradient."""
    results = []
    for fill in (0.0, float("nan")):
        method = make_method(name, M)
        batch = make_batch(M, present_BM=mixed(M), fill=fill)
        prediction, loss = total(method, batch, batch.present_BM)
        loss.backward()
        results.append((prediction, {n: p.grad for n, p in method.named_parameters()}))
    (zeros, gradients), (nans, gradients_nan) = results
    assert zeros.isfinite().all() and torch.equal(zeros, nans)
    for n, gradient in gradients.items():
        other = gradients_nan[n]
        assert gradient is not None and other is not None and torch.equal(gradient, other), n


@SIZES
def test_what_is_not_used_is_never_read(M: int) -> None:
    """Tokens of a modality out of use may hold anything; of one in use, each counts."""
    network, _ = make(M)
    batch, used_BM = make_batch(M), mixed(M)
    tokens = network.embed(batch)
    reference = network.predict(tokens, used_BM)
    spoilt = {
        m: Tokens(torch.where(used_BM[:, c, None, None], t.values_BND, float("nan")), t.mask_BN, t.grid)
        for c, (m, t) in enumerate(tokens.items())
    }
    assert torch.equal(network.predict(spoilt, used_BM), reference)
    g = torch.Generator().manual_seed(1)
    for c, (m, t) in enumerate(tokens.items()):
        moved_BND = t.values_BND + torch.randn(t.values_BND.shape, generator=g)
        other = dict(tokens) | {m: Tokens(moved_BND, t.mask_BN, t.grid)}
        changed = (network.predict(other, used_BM) - reference).abs().amax(1) > 1e-6
        assert torch.equal(changed, used_BM[:, c])


@SIZES
@EVERY
def test_a_row_does_not_depend_on_its_batch_mates(name: str, M: int) -> None:
    method = make_method(name, M)
    rows_PM, used_BM = torch.from_numpy(pattern_rows(list(SEQUENCES)[:M])), mixed(M)
    batch = make_batch(M, present_BM=used_BM | rows_PM[(2 * torch.arange(ROWS) + 1) % len(rows_PM)])
    with torch.no_grad():
        together = method(batch, used_BM).prediction
        for row in range(ROWS):
            alone = method(row_of(batch, row), used_BM[row : row + 1]).prediction
            torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=1e-5)


@SIZES
def test_restored_tokens_fill_their_grid(M: int) -> None:
    """What a method puts where the data has nothing is read whole, mask or no mask."""
    network, _ = make(M)
    present_BM = torch.ones(ROWS, M, dtype=torch.bool)
    present_BM[:, 0] = False
    tokens = network.embed(make_batch(M, present_BM=present_BM))
    restored = torch.randn(tokens["text"].values_BND.shape, generator=torch.Generator().manual_seed(1))
    used_BM = torch.ones_like(present_BM)
    found = [
        network.predict(dict(tokens) | {"text": Tokens(restored, mask_BN, tokens["text"].grid)}, used_BM)
        for mask_BN in (None, tokens["text"].mask_BN, torch.ones(restored.shape[:2], dtype=torch.bool))
    ]
    assert found[0].isfinite().all() and torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@SIZES
@EVERY
def test_patterns_at_once_equal_patterns_one_by_one(name: str, M: int) -> None:
    method = make_method(name, M)
    batch, patterns_PM = make_batch(M), torch.from_numpy(pattern_rows(method.backbone.modalities))
    with torch.no_grad():
        found = method.predict_patterns(batch, patterns_PM)
        for index, pattern_M in enumerate(patterns_PM):
            alone = method(batch, batch.present_BM & pattern_M).prediction
            torch.testing.assert_close(found[index], alone, rtol=0, atol=1e-6)
    assert found.shape == (2**M - 1, ROWS, 1)
    assert torch.pdist(found.flatten(1)).min() > 1e-3  # no two patterns say the same


# ---- what trains


@SIZES
@EVERY
def test_gradients_reach_every_parameter(name: str, M: int) -> None:
    method = make_method(name, M)
    total(method, make_batch(M), mixed(M))[1].backward()
    still = {n for n, p in method.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    # The key's bias shifts all scores of a query alike, which softmax cannot see.
    assert {n for n in still if not n.endswith(".key.bias")} == set()
    assert set(method.trainable()) == {n for n, _ in method.named_parameters()}


def test_an_unused_source_trains_nothing_of_its_own() -> None:
    network, _ = make(3)
    batch = make_batch(3)
    used_BM = torch.tensor([[True, False, True]]).expand(ROWS, 3)
    network.predict(network.embed(batch), used_BM).square().sum().backward()
    silent = ("convolutions.audio.", "crossmodal.text.audio.layers.0.value", "crossmodal.vision.audio.layers.0.out")
    for name, p in network.named_parameters():
        if name.startswith(silent):
            assert p.grad is None or p.grad.abs().sum() == 0, name


def test_it_learns_what_stands_in_one_sequence() -> None:
    """A few steps on one batch: the loss falls by half."""
    network, _ = make(2)
    batch = make_batch(2)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = F.l1_loss(network.predict(network.embed(batch), batch.present_BM)[:, 0], batch.target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


# ---- wrong inputs


@pytest.mark.parametrize(
    ("formats", "options", "message"),
    [
        ({"text": SEQUENCES["text"]}, SMALL, "attends from one modality to another"),
        (
            {"text": SEQUENCES["text"], "image": ImageFormat(8)},
            SMALL,
            r"data.modalities.image.kind: MulT reads only sequences",
        ),
        (SEQUENCES, MulTOptions(width=8, heads=2, kernel=8), r"data.modalities.pulse.length.*found 7.*8 or more"),
    ],
)
def test_wrong_inputs_are_one_message(formats, options: MulTOptions, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        MulT(formats, 1, options)
    assert "\n" not in str(caught.value)
