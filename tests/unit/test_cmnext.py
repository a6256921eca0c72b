"""CMNeXt: sizes, published names, the arithmetic of its parts, what an unused modality may not do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from mmsweep.data.dataset import Batch
from mmsweep.data.kinds.raster import RasterFormat
from mmsweep.errors import UserError
from mmsweep.models.backbones.cmnext.network import SIZES, CMNeXt
from mmsweep.models.backbones.cmnext.parts import Fusion, PoolBlock, Rectification, ScorePredictor, SeededDrop
from mmsweep.models.backbones.cmnext.weights import load_published, published_names
from mmsweep.models.input_formats import Inputs
from mmsweep.models.lora import Noise, set_noise
from mmsweep.models.options import ModelOptions

pytestmark = pytest.mark.long

CHANNELS = {"rgb": 3, "height": 1, "relief": 3, "night": 1}


def rasters(*modalities: str, size: tuple[int, int] = (32, 40)) -> dict[str, RasterFormat]:
    colour, grey = RasterFormat(size), RasterFormat(size, 1, "uint8", (0.0,), (1.0,))
    return {m: grey if CHANNELS.get(m, 3) == 1 else colour for m in modalities}


def network(M: int = 4, size: str = "nano", seed: int = 0, **options: bool) -> CMNeXt:
    return CMNeXt(rasters(*list(CHANNELS)[:M]), 5, (32, 40), size, torch.Generator().manual_seed(seed), **options)


def of_cmnext(**options: Any) -> ModelOptions:
    return ModelOptions(backbone={"name": "cmnext", "size": "nano", **options}, lora=None)


def batch_of(backbone: CMNeXt, rows: int = 3, size: tuple[int, int] = (32, 40)) -> Batch:
    g = torch.Generator().manual_seed(1)
    inputs = {m: torch.randn(rows, CHANNELS[m], *size, generator=g) for m in backbone.modalities}
    return Batch(inputs, torch.ones(rows, len(inputs), dtype=torch.bool), torch.zeros(rows, *size, dtype=torch.long))


@pytest.mark.parametrize(
    ("size", "modalities", "classes", "millions"),
    # DELIVER's table of models: CMNeXt-B2 with colour, + depth, + event, + LiDAR.
    [("b2", 1, 25, 25.79), ("b2", 2, 25, 58.69), ("b2", 3, 25, 58.72), ("b2", 4, 25, 58.73)],
)
def test_sizes_are_the_published_ones(size: str, modalities: int, classes: int, millions: float) -> None:
    with torch.device("meta"):
        backbone = CMNeXt(rasters(*map(str, range(modalities))), classes, (512, 512), size)
    assert round(sum(p.numel() for p in backbone.parameters()) / 1e6, 2) == millions


@pytest.mark.parametrize(
    ("size", "picture", "tokens"),  # methods.md §5.1
    [("b2", (512, 512), 16_384), ("b2", (1024, 1024), 65_536), ("b4", (480, 640), 19_200), ("b3", (600, 800), 30_000)],
)
def test_tokens_of_the_papers_pictures(size: str, picture: tuple[int, int], tokens: int) -> None:
    with torch.device("meta"):
        backbone = CMNeXt(rasters("rgb", "depth"), 40, picture, size)
    assert backbone.token_shapes() == {"rgb": (tokens, 64), "depth": (tokens, 64)}


@pytest.mark.parametrize("M", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(32, 40), (75, 75), (30, 45)])
def test_logits_have_the_pictures_size(M: int, size: tuple[int, int]) -> None:
    backbone = network(M).eval()
    batch = batch_of(backbone, 2, size)
    tokens = backbone.embed(batch)
    for m, values in tokens.items():
        high, wide = values.grid
        assert values.values_BND.shape == (2, high * wide, 16) and (high, wide) == (-(-size[0] // 4), -(-size[1] // 4))
        assert m in backbone.token_shapes()
    assert backbone.predict(tokens, batch.present_BM).shape == (2, 5, *size)
    assert batch_of(backbone).inputs["rgb"].shape[-2:] == backbone.picture
    assert backbone.embed(batch_of(backbone))["rgb"].values_BND.shape[1:] == backbone.token_shapes()["rgb"]


def test_initial_values_come_from_the_generator_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one, two, other = network(seed=3), network(seed=3), network(seed=4)
    assert torch.equal(before, torch.get_rng_state())
    for (name, a), b, c in zip(one.state_dict().items(), two.state_dict().values(), other.state_dict().values(),
                               strict=True):  # fmt: skip
        assert a.isfinite().all() and torch.equal(a, b), name
        drawn = name.endswith("weight") and "norm" not in name and "mix.4" not in name
        assert torch.equal(a, c) != drawn, name


def test_an_unused_modality_says_nothing() -> None:
    """Whatever its tokens hold, at every stage; and one that is used does."""
    backbone = network().eval()
    batch = batch_of(backbone)
    tokens = backbone.embed(batch)
    for column, m in enumerate(backbone.modalities):
        used = torch.ones(3, 4, dtype=torch.bool)
        used[1, column] = False
        changed = dict(tokens)
        values = tokens[m].values_BND.clone()
        values[1] = float("nan")
        changed[m] = type(tokens[m])(values, None, tokens[m].grid, picture=tokens[m].picture)
        with torch.no_grad():
            assert torch.equal(backbone.predict(tokens, used), backbone.predict(changed, used))
            whole = backbone.predict(tokens, torch.ones_like(used))
            difference = (whole - backbone.predict(tokens, used)).flatten(1).abs().amax(1)
        assert difference[1] > 1e-3 and difference[0] < 1e-5 and difference[2] < 1e-5


def test_the_largest_is_taken_of_what_is_used() -> None:
    backbone = network()
    g = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, 16, 3, 4, generator=g) - 5 for _ in range(3)]  # all negative: a zero would win
    part = backbone.extras[0]
    scored = [x + score(x) * x for x, score in zip(maps, part.scores, strict=True)]
    used = torch.tensor([[True, True, False], [False, False, True]])
    merged, carried = part.merge(maps, used)
    torch.testing.assert_close(merged[0], torch.maximum(scored[0][0], scored[1][0]))
    torch.testing.assert_close(merged[1], scored[2][1])
    assert (carried[2][0] == 0).all() and (carried[0][1] == 0).all()
    torch.testing.assert_close(carried[2][1], scored[2][1])
    none, _ = part.merge(maps, torch.zeros(2, 3, dtype=torch.bool))
    assert (none == 0).all()


def test_rectification_is_the_papers() -> None:
    part, g = Rectification(4), torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 4, 3, 5, generator=g), torch.randn(2, 4, 3, 5, generator=g)
    both = torch.cat([a, b], 1)
    pooled = torch.cat([F.adaptive_avg_pool2d(both, 1), F.adaptive_max_pool2d(both, 1)], 1).flatten(1)
    channels = part.channels(pooled).sigmoid().reshape(2, 2, 4).permute(1, 0, 2)[..., None, None]
    places = part.places(both).sigmoid().reshape(2, 2, 1, 3, 5).permute(1, 0, 2, 3, 4)
    found = part(a, b)
    torch.testing.assert_close(found[0], a + 0.5 * channels[1] * b + 0.5 * places[1] * b)
    torch.testing.assert_close(found[1], b + 0.5 * channels[0] * a + 0.5 * places[0] * a)


def test_fusion_attends_across_in_linear_cost() -> None:
    part, g = Fusion(4, 1).eval(), torch.Generator().manual_seed(0)
    a, b = torch.randn(1, 4, 2, 3, generator=g), torch.randn(1, 4, 2, 3, generator=g)
    x, y = (v.flatten(2)[0].T for v in (a, b))
    (kept_x, given_x), (kept_y, given_y) = (part.split[i](v).relu().chunk(2, -1) for i, v in enumerate((x, y)))
    key, value = part.key_value[1](given_y).chunk(2, -1)
    taken = given_x @ ((key.T @ value) / 2).softmax(0)
    own = part.norms[0](x + part.join[0](torch.cat([kept_x, taken], -1)))
    key, value = part.key_value[0](given_x).chunk(2, -1)
    taken = given_y @ ((key.T @ value) / 2).softmax(0)
    other = part.norms[1](y + part.join[1](torch.cat([kept_y, taken], -1)))
    merged = torch.cat([own, other], -1).T.reshape(1, 8, 2, 3)
    torch.testing.assert_close(part(a, b), part.norm(part.residual(merged) + part.mix(merged)))


def test_pool_block_is_the_published_one() -> None:
    part, g = PoolBlock(4, 2, 0.0).eval(), torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 13, 12, generator=g)
    normed = part.norm1(x)
    seen = part.attention.depthwise(normed)
    pools = [torch.nn.AvgPool2d(k, 1, k // 2, count_include_pad=False)(seen) for k in (3, 7, 11)]
    attended = part.attention.mix(seen + sum(pools)).sigmoid() * normed + normed
    x1 = x + part.scale1.view(-1, 1, 1) * attended
    mixed = part.channel_mix(x1.mean((2, 3)).unsqueeze(1)).sigmoid().transpose(1, 2).unsqueeze(-1) * x1
    hidden = part.contract(F.gelu(part.depthwise(part.expand(part.norm2(x1)))))
    torch.testing.assert_close(part(x), mixed + part.scale2.view(-1, 1, 1) * hidden)


def test_scores_lie_between_0_and_1() -> None:
    score = ScorePredictor(4)(torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(0)))
    assert score.shape == (2, 1, 5, 6) and (score > 0).all() and (score < 1).all()


def test_dropout_is_the_trials_own() -> None:
    backbone, noise = network(), Noise()
    set_noise(backbone, noise)
    batch = batch_of(backbone, 6)

    def run(seed: int | None) -> torch.Tensor:
        torch.rand(3)
        noise.generators = [] if seed is None else [torch.Generator().manual_seed(seed)]
        noise.total, noise.rows = 6, slice(0, 6)
        return backbone.predict(backbone.embed(batch), batch.present_BM).detach()

    assert torch.equal(run(1), run(1)) and not torch.equal(run(1), run(2)) and torch.equal(run(None), run(None))
    drop = SeededDrop(0.5, channels=True)
    drop.noise = Noise([torch.Generator().manual_seed(0)], 4, slice(0, 4))
    kept = drop(torch.ones(4, 8, 2, 2))
    assert set(kept.unique().tolist()) == {0.0, 2.0} and (kept == kept[:, :, :1, :1]).all()


def published(backbone: CMNeXt) -> dict[str, torch.Tensor]:
    """Our tensors under their published names, keys and values joined."""
    out: dict[str, torch.Tensor] = {}
    for own, theirs in published_names(backbone).items():
        value, (name, _, half) = backbone.state_dict()[own], theirs.partition("[")
        out[name] = torch.cat([out[name], value]) if half.startswith("1") else value.clone()
    return out


def test_published_names_and_shapes() -> None:
    """A sample of the names and shapes in DELIVER's code, for B2 with four modalities and 25 classes."""
    with torch.device("meta"):
        backbone = CMNeXt(rasters("img", "depth", "event", "lidar"), 25, (64, 64), "b2")
    found = {name: tuple(value.shape) for name, value in published(backbone).items()}
    expected = {
        "backbone.patch_embed1.proj.weight": (64, 3, 7, 7),
        "backbone.patch_embed4.norm.bias": (512,),
        "backbone.block1.2.attn.kv.weight": (128, 64),
        "backbone.block1.0.attn.sr.weight": (64, 64, 8, 8),
        "backbone.block3.5.attn.norm.weight": (320,),
        "backbone.block4.1.mlp.dwconv.dwconv.weight": (2048, 1, 3, 3),
        "backbone.norm3.weight": (320,),
        "backbone.extra_downsample_layers.0.proj.module.weight": (64, 3, 7, 7),
        "backbone.extra_downsample_layers.3.norm.ln_2.weight": (512,),
        "backbone.extra_score_predictor.1.score_nets.2.0.weight": (128, 1, 3, 3),
        "backbone.extra_score_predictor.1.score_nets.0.1.bias": (1,),
        "backbone.extra_block1.0.norm1.running_mean": (64,),
        "backbone.extra_block1.0.layer_scale_1": (64,),
        "backbone.extra_block2.3.attn.conv0.weight": (128, 1, 7, 7),
        "backbone.extra_block2.3.attn.conv4.weight": (128, 128, 1, 1),
        "backbone.extra_block3.0.c_nets.0.weight": (1, 1, 3),
        "backbone.extra_block3.0.mlp.fc1.weight": (1280, 320, 1, 1),
        "backbone.extra_norm2.weight": (128,),
        "backbone.FRMs.0.channel_weights.mlp.0.weight": (256, 256),
        "backbone.FRMs.0.channel_weights.mlp.2.weight": (128, 256),
        "backbone.FRMs.3.spatial_weights.mlp.2.weight": (2, 512, 1, 1),
        "backbone.FFMs.2.cross.channel_proj1.weight": (640, 320),
        "backbone.FFMs.2.cross.cross_attn.kv2.weight": (640, 320),
        "backbone.FFMs.2.cross.end_proj2.weight": (320, 640),
        "backbone.FFMs.2.channel_emb.residual.weight": (320, 640, 1, 1),
        "backbone.FFMs.2.channel_emb.channel_embed.4.running_var": (320,),
        "decode_head.linear_c4.proj.weight": (512, 512),
        "decode_head.linear_fuse.conv.weight": (512, 2048, 1, 1),
        "decode_head.linear_fuse.bn.weight": (512,),
        "decode_head.linear_pred.weight": (25, 512, 1, 1),
    }
    assert {name: found.get(name) for name in expected} == expected
    assert len(set(published_names(backbone).values())) == len(backbone.state_dict())


def test_published_weights_come_in_whole(tmp_path) -> None:
    source, target = network(seed=1), network(seed=2)
    save_file({name: value.contiguous() for name, value in published(source).items()}, tmp_path / "a.safetensors")
    load_published(target, tmp_path / "a.safetensors", "model.backbone.weights")
    assert all(torch.equal(a, b) for a, b in zip(source.state_dict().values(), target.state_dict().values(),
                                                 strict=True))  # fmt: skip


def test_an_encoder_alone_fills_the_hub(tmp_path) -> None:
    source, target, fresh = network(seed=1), network(seed=2), network(seed=2)
    hub = {n.removeprefix("backbone."): v.contiguous() for n, v in published(source).items()
           if n.startswith(("backbone.patch", "backbone.block", "backbone.norm"))}  # fmt: skip
    save_file(hub | {"head.weight": torch.zeros(2)}, tmp_path / "mit.safetensors")
    load_published(target, tmp_path / "mit.safetensors", "model.backbone.weights")
    assert all(torch.equal(a, b) for a, b in zip(source.hub.state_dict().values(), target.hub.state_dict().values(),
                                                 strict=True))  # fmt: skip
    assert torch.equal(target.head.classify.weight, fresh.head.classify.weight)


def test_an_encoder_alone_is_not_frozen_beside_initial_values(tmp_path) -> None:
    """A trial's `reset` would also draw them anew in the tensors that it shares with the next trial."""
    hub = {n.removeprefix("backbone."): v.contiguous() for n, v in published(network()).items()
           if n.startswith(("backbone.patch", "backbone.block", "backbone.norm"))}  # fmt: skip
    save_file(hub, tmp_path / "mit.safetensors")
    for M in (1, 2):
        scenes = rasters(*list(CHANNELS)[:M])
        inputs = Inputs(dict.fromkeys(scenes, "raster"), rasters=scenes)
        whole, model = (of_cmnext(weights=str(tmp_path / "mit.safetensors"), trainable=t) for t in (True, False))
        CMNeXt.build(whole, inputs, 5).adapt(whole, Noise(), torch.Generator())
        frozen = CMNeXt.build(model, inputs, 5)
        if M == 1:  # no extras
            frozen.adapt(model, Noise(), torch.Generator())
            continue
        with pytest.raises(UserError, match=r"model.backbone.trainable: .*only MiT's encoder.*found False; expected"):
            frozen.adapt(model, Noise(), torch.Generator())


@pytest.mark.parametrize("wrong", ["size", "extras", "pickle", "absent", "deeper", "deeper hub", "more extras"])
def test_other_checkpoints_are_refused(wrong: str, tmp_path, monkeypatch) -> None:
    """Also those that hold everything that is looked for, and more."""
    path = tmp_path / ("a.pth" if wrong == "pickle" else "a.safetensors")
    monkeypatch.setitem(SIZES, "deep", replace(SIZES["nano"], depths=(1, 1, 2, 1)))
    size = {"size": "b0", "deeper": "deep", "deeper hub": "deep"}.get(wrong, "nano")
    source = network({"extras": 3}.get(wrong, 4), size)
    if wrong == "deeper hub":
        hub = {n.removeprefix("backbone."): v.contiguous() for n, v in published(source).items()
               if n.startswith(("backbone.patch", "backbone.block", "backbone.norm"))}  # fmt: skip
        save_file(hub, path)
    elif wrong not in ("pickle", "absent"):
        save_file({n: v.contiguous() for n, v in published(source).items()}, path)
    with pytest.raises(UserError) as caught:
        load_published(network(3 if wrong == "more extras" else 4), path, "model.backbone.weights")
    text = str(caught.value)
    assert path.name in text and "model.backbone.weights" in text
    assert {
        "size": "another architecture",
        "extras": "ln_2",
        "pickle": "safetensors",
        "absent": "cannot be read",
        "deeper": "tensors too many; found 'backbone.block3.1.attn",
        "deeper hub": "tensors too many; found 'block3.1.attn",
        "more extras": "tensors too many; found 'backbone.extra_downsample_layers.0.norm.ln_2",
    }[wrong] in text


def test_published_order_is_the_reference_code_s() -> None:
    """There [B, C, H, W] is read as [B, H, W, C] between stages: checkpoints of several extras were trained so."""
    x = torch.arange(2 * 4 * 2 * 3, dtype=torch.float32).reshape(2, 4, 2, 3)
    assert torch.equal(network(published_order=True)._carried(x), x.reshape(2, 2, 3, 4).permute(0, 3, 1, 2))
    assert torch.equal(network()._carried(x), x)
    assert list(SIZES["b2"].depths) == [3, 4, 6, 3]


def test_training_reaches_every_parameter_and_statistic() -> None:
    g = torch.Generator().manual_seed(0)
    backbone = CMNeXt(rasters(*CHANNELS, size=(64, 64)), 5, (64, 64), "nano", g)
    frozen = {n for n, p in backbone.named_parameters() if not p.requires_grad}
    assert frozen == {n for n, _ in backbone.named_parameters() if not n.startswith("head.")}
    before = {n: v.clone() for n, v in backbone.named_buffers() if n.endswith("running_mean")}
    backbone.train()
    batch = batch_of(backbone, 4, (64, 64))
    used = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 0], [0, 1, 1, 1], [1, 0, 0, 0]]).bool()
    backbone.predict(backbone.embed(batch), used)
    assert all(torch.equal(v, before[n]) != n.startswith("head.") for n, v in backbone.named_buffers() if n in before)
    backbone.adapt(of_cmnext(pretrained=False, trainable=True), Noise(), g)
    backbone.train()
    backbone.predict(backbone.embed(batch), used).square().mean().backward()
    assert not any(torch.equal(v, before[n]) for n, v in backbone.named_buffers() if n in before)
    idle = {n for n, p in backbone.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    assert {n for n in idle if not n.endswith("k_proj.bias")} == set()  # softmax does not see a bias of all keys
