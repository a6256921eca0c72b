"""What every method must keep on every backbone it accepts, for as many modalities (2 to 4) as the backbone reads."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mmsweep.availability import pattern_rows
from mmsweep.data.dataset import Batch
from mmsweep.data.kinds.raster import RasterFormat
from mmsweep.methods import METHODS
from mmsweep.models.input_formats import Inputs
from mmsweep.models.lora import Noise
from mmsweep.models.options import BACKBONES, LoraOptions, ModelOptions

pytestmark = pytest.mark.long

FAMILIES = {"image": "vit", "text": "bert", "audio": "ast", "clip": "clip"}
KINDS = {"image": "image", "text": "text", "audio": "audio", "clip": "video"}
FRAMES, TEXT_LENGTH = 3, 9
ROWS, CLASSES = 6, 5
SCENE = (64, 64)  # the smallest on which every attention of CMNeXt has two keys
SIZES = {
    "dual_encoder": (2, 3, 4),
    "vilt": (2,),
    "cmnext": (2, 3, 4),
}  # a new backbone: its line here, and what `wishes` needs for it
# (MulT reads sequences and nothing else: its methods are in test_mult.py)


def wishes(backbone, M, folders, lora=None) -> tuple[ModelOptions, Inputs]:
    """What a study says of a backbone for M modalities, and what the backbone is to read."""
    model = {"lora": lora and lora.model_dump()}
    if backbone == "cmnext":
        grey = {m: RasterFormat(SCENE, 1, "uint16", (0.0,), (1.0,)) for m in ("height", "night", "heat")[: M - 1]}
        rasters = {"rgb": RasterFormat(SCENE)} | grey
        own = BACKBONES.options("cmnext", size="nano", pretrained=False, trainable=True)
        frozen = own.model_copy(update={"trainable": False})  # as if its values came from a checkpoint
        return ModelOptions(**model, backbone=frozen), Inputs(dict.fromkeys(rasters, "raster"), rasters=rasters)
    modalities = list(KINDS)[:M]
    if backbone == "dual_encoder":
        model["encoders"] = {m: {"name": folders[FAMILIES[m]]} for m in modalities}
    else:
        model["backbone"] = {"name": backbone, "weights": folders[backbone]}
    return ModelOptions(**model), Inputs({m: KINDS[m] for m in modalities}, length=TEXT_LENGTH, clip_frames=FRAMES)


def make_batch(modalities, rows=ROWS, seed=0):
    g = torch.Generator().manual_seed(seed)
    inputs = {}
    for m in modalities:
        if m in ("rgb", "height", "night", "heat"):
            inputs[m] = torch.randn(rows, 3 if m == "rgb" else 1, *SCENE, generator=g)
        elif m == "text":
            lengths = torch.tensor([7, 4, 5, 6, 3, 7])[:rows, None]
            inputs[m] = {"ids": torch.randint(5, 30, (rows, 7), generator=g), "mask": torch.arange(7)[None] < lengths}
        else:
            shape = {"image": (3, 16, 16), "audio": (36, 26), "clip": (3, 3, 16, 16)}[m]
            inputs[m] = torch.randn(rows, *shape, generator=g)
    target = torch.randint(0, CLASSES, (rows, *SCENE) if "rgb" in modalities else (rows,), generator=g)
    present = torch.ones(rows, len(modalities), dtype=torch.bool)
    stand_ins = {m: x for m, x in placeholders(KINDS).items() if m in modalities}
    return Batch(inputs, present, target, torch.arange(rows), placeholders=stand_ins)


def some_rows(batch, inputs, rows):
    return replace(batch, inputs=inputs, present_BM=batch.present_BM[rows], target=batch.target[rows])


def placeholders(modalities):
    """What stands for an absent input: 0.3 in pictures and sounds, [CLS] [SEP] as text."""
    empty = {"ids": torch.tensor([2, 3] + [0] * (TEXT_LENGTH - 2)), "mask": torch.arange(TEXT_LENGTH) < 2}
    return {m: empty if m == "text" else torch.tensor(0.3) for m in modalities}


@pytest.fixture()
def make(encoder_folders):
    def build(name, M, backbone="dual_encoder", rank=2, dropout=0.0, **spec):
        g, noise = torch.Generator().manual_seed(5), Noise()
        lora = LoraOptions(rank=rank, alpha=rank, dropout=dropout)
        model, inputs = wishes(backbone, M, encoder_folders, lora)
        network = BACKBONES[backbone].build(model, inputs, CLASSES)
        network.reset(g)
        network.adapt(model, noise, g)
        method = METHODS[name](network, METHODS.options(name, **spec), noise, g)
        with torch.no_grad():  # adapters start at zero, where no test could see them
            for n, p in method.named_parameters():
                if "lora_B" in n:
                    p.normal_(std=0.3, generator=g)
        return method, make_batch(network.modalities)

    return build


PAIRS = [(n, b) for n in sorted(METHODS) for b in SIZES if issubclass(BACKBONES[b], METHODS[n].accepts)]
CASES = pytest.mark.parametrize(("name", "backbone", "M"), [(n, b, M) for n, b in PAIRS for M in SIZES[b]])
ALL = pytest.mark.parametrize(("name", "backbone"), PAIRS)
FROZEN = ("backbone.encoders.", "backbone.network.", "backbone.hub.", "backbone.extras.")
RESTORING = {"mmp", "linear_projection"}
ALWAYS_FED = {name for name, method in METHODS.items() if method.always_feeds}
OWN = {name: {"projector"} for name in RESTORING} | {
    "cmpt": {"proxies"},
    "mmlora": {"heads"},
    "mla": {"projection"},
    "missing_aware_prompts": {"prompts"},
}
"""What a method brings, beside the backbone."""
STILL = {"mmlora": "backbone.head.", "mla": "projection."}
"""What does not train, though it is no pretrained part."""


def total(method, batch, used):
    output = method(batch, used)
    loss = torch.nn.functional.cross_entropy(output.prediction, batch.target)
    for term, weight in method.weights.items():
        t = output.losses[term]
        loss = loss + weight * (t.values_B * t.counted_B).sum() / t.counted_B.sum().clamp(min=1)
    return loss


def size(prediction):
    """Of the largest logit: what rounding is measured by, since tens of thousands of a map's pass near zero."""
    return max(1.0, prediction.abs().max().item())


@CASES
def test_patterns_at_once_equal_patterns_one_by_one(name, backbone, M, make):
    method, batch = make(name, M, backbone)
    patterns = torch.from_numpy(pattern_rows(method.backbone.modalities))
    with torch.no_grad():
        at_once = method.predict_patterns(batch, patterns)
        one_by_one = torch.stack([method(batch, batch.present_BM & p).prediction for p in patterns])
    assert at_once.shape == (2**M - 1, ROWS, CLASSES, *batch.target.shape[1:])
    torch.testing.assert_close(at_once, one_by_one, rtol=1e-5, atol=1e-6)
    assert (at_once[0] - at_once[-1]).abs().max() > 1e-3


@CASES
def test_what_is_absent_is_never_read(name, backbone, M, make):
    """NaN in an absent input changes no loss, gradient or prediction."""
    method, batch = make(name, M, backbone)
    present = torch.from_numpy(pattern_rows(method.backbone.modalities))[torch.arange(ROWS) % (2**M - 1)]
    results = []
    for fill in (0.0, float("nan")):
        inputs = {}
        for column, m in enumerate(method.backbone.modalities):
            x, gone = batch.inputs[m], ~present[:, column]
            if isinstance(x, dict):
                ids = torch.where(gone[:, None], 5 if fill == 0.0 else 9, x["ids"])
                inputs[m] = {"ids": ids, "mask": x["mask"]}
            else:
                inputs[m] = torch.where(gone.view(-1, *[1] * (x.dim() - 1)), fill, x)
        method.zero_grad(set_to_none=True)
        filled = replace(batch, inputs=inputs, present_BM=present)
        loss = total(method, filled, present)
        loss.backward()
        gradients = {n: p.grad.clone() for n, p in method.named_parameters() if p.grad is not None}
        results.append((loss.detach(), method(filled, present).prediction.detach(), gradients))
    (loss, prediction, gradients), (loss_nan, prediction_nan, gradients_nan) = results
    assert torch.isfinite(loss_nan)
    torch.testing.assert_close(loss, loss_nan, rtol=0, atol=0)
    torch.testing.assert_close(prediction, prediction_nan, rtol=0, atol=0)
    assert gradients.keys() == gradients_nan.keys()
    for n in gradients:
        torch.testing.assert_close(gradients[n], gradients_nan[n], rtol=0, atol=0, msg=n)


@CASES
def test_stand_ins_match_what_they_stand_for(name, backbone, M, make):
    """Methods that replace say by what, for every modality, token by token; it does not come from that modality."""
    method, batch = make(name, M, backbone)
    method.eval()
    with torch.no_grad():
        found = method.stand_ins(batch)
        assert set(found) == (set(method.backbone.modalities) if name in RESTORING | {"cmpt"} else set())
        for m, pair in found.items():
            assert pair.real_BND.shape == pair.guess_BND.shape and len(pair.real_BND) == ROWS
            x = batch.inputs[m]
            other = {"ids": x["ids"].flip(0), "mask": x["mask"]} if isinstance(x, dict) else x.flip(0)
            changed = Batch(batch.inputs | {m: other}, batch.present_BM, batch.target, batch.index)
            again = method.stand_ins(changed)[m]
            torch.testing.assert_close(again.guess_BND, pair.guess_BND)
            assert (again.real_BND - pair.real_BND).abs().max() > 1e-3


@CASES
def test_a_row_does_not_depend_on_its_batch_mates(name, backbone, M, make):
    method, batch = make(name, M, backbone)
    method.eval()  # batch norms are meant to look at the batch while training
    patterns = torch.from_numpy(pattern_rows(method.backbone.modalities))
    used = patterns[torch.arange(ROWS) % len(patterns)]
    batch.present_BM &= used | patterns[(2 * torch.arange(ROWS) + 1) % len(patterns)]  # gaps of the data's own
    assert (batch.present_BM & ~used).any() and not batch.present_BM.all()
    with torch.no_grad():
        together = method(batch, used).prediction
        for row in range(ROWS):
            one = {
                m: {k: v[row : row + 1] for k, v in x.items()} if isinstance(x, dict) else x[row : row + 1]
                for m, x in batch.inputs.items()
            }
            alone = method(
                replace(
                    batch, inputs=one, present_BM=batch.present_BM[row : row + 1], target=batch.target[row : row + 1]
                ),
                used[row : row + 1],
            ).prediction
            torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=1e-5 * size(together))


@CASES
@pytest.mark.parametrize("natural", [False, True])
def test_gradients_reach_exactly_what_is_trained(natural, name, backbone, M, make):
    """Where masking leaves the patterns, and where the data has no more than they do."""
    method, batch = make(name, M, backbone)
    patterns = torch.from_numpy(pattern_rows(method.backbone.modalities))
    used = patterns[torch.arange(ROWS) % len(patterns)]
    if natural:
        batch.present_BM[:] = used
    total(method, batch, used).backward()
    trained = set(method.trainable())
    moved = {n for n, p in method.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    frozen = {n for n, p in method.named_parameters() if not p.requires_grad}
    assert moved == trained
    still = (STILL[name],) if name in STILL else ()
    assert all("lora_" not in n and n.startswith((*FROZEN, *still)) for n in frozen)
    own = {n for n, _ in method.named_parameters() if not n.startswith("backbone.")}
    head = {n for n, _ in method.named_parameters() if n.startswith(("backbone.head.", "heads."))}
    pooler = {n for n in trained if ".pooler." in n}
    assert {n for n in trained if "lora_" not in n} == {
        n for n in head | own | pooler if not n.startswith(still)
    } and head
    assert bool(pooler) == (name == "missing_aware_prompts" and backbone == "vilt")
    assert {n.split(".")[0] for n in own} == OWN.get(name, set())


@CASES
def test_what_is_not_used_changes_no_prediction(name, backbone, M, make):
    """The masked modality's content may be anything: only alignment looks at it."""
    method, batch = make(name, M, backbone)
    other = make_batch(method.backbone.modalities, seed=9)
    used = torch.from_numpy(pattern_rows(method.backbone.modalities))[torch.arange(ROWS) % (2**M - 1)]
    inputs = {}
    for column, m in enumerate(method.backbone.modalities):
        x, gone = batch.inputs[m], ~used[:, column]
        if isinstance(x, dict):
            inputs[m] = {"ids": torch.where(gone[:, None], other.inputs[m]["ids"], x["ids"]), "mask": x["mask"]}
        else:
            inputs[m] = torch.where(gone.view(-1, *[1] * (x.dim() - 1)), other.inputs[m], x)
    with torch.no_grad():
        expected = method(batch, used).prediction
        found = method(replace(batch, inputs=inputs), used).prediction
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@ALL
def test_dropout_comes_from_the_trial_s_own_generator(name, backbone, make):
    method, batch = make(name, 2, backbone, dropout=0.5, **({"adapters": True} if name in ALWAYS_FED else {}))

    def run(seed):
        torch.rand(3)
        method.noise.generators = [torch.Generator().manual_seed(seed)]
        method.noise.total, method.noise.rows = ROWS, slice(0, ROWS)
        return method(batch, batch.present_BM).prediction.detach()

    assert torch.equal(run(1), run(1)) and not torch.equal(run(1), run(2))
    method.noise.off()
    assert torch.equal(method(batch, batch.present_BM).prediction, method(batch, batch.present_BM).prediction)


@ALL
def test_dropout_masks_do_not_depend_on_the_ranks(name, backbone, make):
    method, batch = make(name, 2, backbone, dropout=0.5)
    method.eval()  # each rank's batch norms see its own rows while training; dropout goes by `noise` alone

    patterns = torch.from_numpy(pattern_rows(method.backbone.modalities))
    # The second half of the batch uses everything: its rank restores nothing, and draws the same masks all the same.
    used = torch.where(torch.arange(ROWS)[:, None] < 2, patterns[1 + torch.arange(ROWS) % 2], batch.present_BM)

    def run(rows):
        method.noise.generators, method.noise.total, method.noise.rows = [torch.Generator().manual_seed(4)], ROWS, rows
        method.noise.missing_M = (~used).any(0)
        part = {
            m: {k: v[rows] for k, v in x.items()} if isinstance(x, dict) else x[rows] for m, x in batch.inputs.items()
        }
        return method(some_rows(batch, part, rows), used[rows]).prediction.detach()

    whole = run(slice(0, ROWS))
    parts = torch.cat([run(slice(0, 2)), run(slice(2, ROWS))])
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6 * size(whole))


@ALL
def test_bfloat16_autocast_runs(name, backbone, make):
    method, batch = make(name, 2, backbone)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert method(batch, batch.present_BM).prediction.isfinite().all()


FEEDING = [(n, b) for n, b in PAIRS if "absent" in METHODS[n].Options.model_fields]
FED = pytest.mark.parametrize(("name", "backbone", "M"), [(n, b, M) for n, b in FEEDING for M in SIZES[b]])


def patterned(method, batch):
    """What is present and what is used of it, different in each row."""
    patterns_PM = torch.from_numpy(pattern_rows(method.backbone.modalities))
    used_BM = patterns_PM[torch.arange(ROWS) % len(patterns_PM)]
    return used_BM | patterns_PM[(2 * torch.arange(ROWS) + 1) % len(patterns_PM)], used_BM


def test_the_baselines_feed_placeholders_and_the_others_bring_their_own_tokens():
    assert set(METHODS.with_option("absent")) == {"plain", "modality_dropout"}


@FED
def test_a_fed_placeholder_is_an_input_like_any_other(name, backbone, M, make):
    """Absent and masked inputs are as if the data held the placeholder there: loss, gradients and all patterns."""
    method, batch = make(name, M, backbone, absent="placeholder")
    modalities = method.backbone.modalities
    present_BM, used_BM = patterned(method, batch)
    real = {}
    for column, (m, stand_in) in enumerate(placeholders(modalities).items()):
        x, gone = batch.inputs[m], ~used_BM[:, column]
        if isinstance(x, dict):
            real[m] = {k: torch.where(gone[:, None], stand_in[k][: v.shape[1]], v) for k, v in x.items()}
        else:
            real[m] = torch.where(gone.view(-1, *[1] * (x.dim() - 1)), 0.3, x)
    found = []
    for inputs, present, used in ((batch.inputs, present_BM, used_BM), (real, batch.present_BM, batch.present_BM)):
        given = Batch(inputs, present, batch.target, batch.index, placeholders=placeholders(modalities))
        method.zero_grad(set_to_none=True)
        loss = total(method, given, used)
        loss.backward()
        found.append([loss.detach(), *(p.grad.clone() for p in method.parameters() if p.grad is not None)])
    assert len(found[0]) == len(found[1]) > 1
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@FED
def test_what_is_absent_is_never_read_where_placeholders_are_fed(name, backbone, M, make):
    method, batch = make(name, M, backbone, absent="placeholder")
    modalities, other = method.backbone.modalities, make_batch(method.backbone.modalities, seed=9)
    present_BM, used_BM = patterned(method, batch)
    predictions = []
    for fill in (0.0, float("nan")):
        inputs = {}
        for column, m in enumerate(modalities):
            x, gone = batch.inputs[m], ~present_BM[:, column]
            if isinstance(x, dict):
                text = other.inputs[m] if fill != 0.0 else x
                inputs[m] = {k: torch.where(gone[:, None], text[k], v) for k, v in x.items()}
            else:
                inputs[m] = torch.where(gone.view(-1, *[1] * (x.dim() - 1)), fill, x)
        given = Batch(inputs, present_BM, batch.target, batch.index, placeholders=placeholders(modalities))
        patterns_PM = torch.from_numpy(pattern_rows(modalities))
        found = method.predict_patterns(given, patterns_PM).detach()
        possible_PB = (patterns_PM[:, None] & present_BM).any(-1)
        predictions.append([method(given, used_BM).prediction.detach(), found[possible_PB]])
    assert all(p.isfinite().all() for p in predictions[1])
    for one, with_nan in zip(*predictions, strict=True):
        torch.testing.assert_close(one, with_nan, rtol=0, atol=0)


@FED
def test_patterns_at_once_equal_patterns_one_by_one_where_placeholders_are_fed(name, backbone, M, make):
    method, batch = make(name, M, backbone, absent="placeholder")
    dropping, _ = make(name, M, backbone)
    given = Batch(batch.inputs, batch.present_BM, batch.target, placeholders=placeholders(method.backbone.modalities))
    patterns_PM = torch.from_numpy(pattern_rows(method.backbone.modalities))
    method.eval(), dropping.eval()
    with torch.no_grad():
        at_once = method.predict_patterns(given, patterns_PM)
        one_by_one = torch.stack([method(given, batch.present_BM & p).prediction for p in patterns_PM])
        dropped = dropping.predict_patterns(given, patterns_PM)
    torch.testing.assert_close(at_once, one_by_one, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(at_once[0], dropped[0], rtol=1e-5, atol=1e-6)  # with everything there, no difference
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(at_once[1:], dropped[1:], strict=True))
