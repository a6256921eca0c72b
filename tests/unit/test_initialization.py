"""Two-stage training: a second stage starts from a first one's weights by name, or says why it cannot."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmsweep.assembly.build import make_method
from mmsweep.assembly.checks import check
from mmsweep.assembly.host import Warm
from mmsweep.data.kinds.raster import RasterFormat
from mmsweep.errors import UserError
from mmsweep.methods import METHODS
from mmsweep.models.backbones.cmnext.network import CMNeXt
from mmsweep.models.lora import Noise
from mmsweep.models.options import ModelOptions
from mmsweep.models.packing import values_of
from mmsweep.record.trial import TrialFolder
from mmsweep.study.packs import Job
from mmsweep.training.checkpoint import running_statistics
from mmsweep.training.initialization import digest, start_from, weights_file
from mmsweep.training.world import World


def run(study, path, warm, epochs=None):
    folder = TrialFolder(path)
    folder.create({"id": "0", "params": {}}, study.to_yaml())
    warm.run(Job("0", "trial", str(path), study), lambda r: r.epoch == epochs)
    return folder


@pytest.fixture(scope="module")
def warm():
    return Warm("cpu", World())


@pytest.fixture()
def first(tiny_study, tmp_path, warm):
    """A modality-dropout run of one epoch."""
    study = tiny_study.with_values({"method.name": "modality_dropout", "train.epochs": 1})
    return study, run(study, tmp_path / "first", warm).path


def method_of(study, warm):
    return make_method(study, warm.ready(study)[1])


def test_the_second_stage_starts_where_the_first_ended(first, warm, tiny_study):
    _, path = first
    trained = load_file(weights_file(str(path)))
    second = method_of(tiny_study.with_values({"method.name": "mmp"}), warm)
    projector = {n: v.clone() for n, v in values_of(second).items() if n.startswith("projector.")}
    start_from(second, str(path))
    own = values_of(second)
    assert trained and all(torch.equal(own[n], value) for n, value in trained.items())
    assert projector and all(
        torch.equal(own[n], value) for n, value in projector.items()
    )  # not the first stage's to give
    assert {n for n in second.trainable() if n.startswith("backbone.")} == set(trained)


def test_a_whole_second_stage_trains_and_resumes(first, warm, tiny_study, tmp_path):
    _, path = first
    study = tiny_study.with_values({"method.name": "mmp", "train.init_from": str(path), "train.epochs": 2})
    whole = run(study, tmp_path / "whole", warm)
    run(study, tmp_path / "stopped", warm, epochs=1)
    again = run(study, tmp_path / "stopped", warm)
    assert [r.metrics for r in again.reports()] == [r.metrics for r in whole.reports()]
    fresh = run(study.with_values({"train.init_from": None}), tmp_path / "fresh", warm)
    assert fresh.reports()[0].metrics["train/loss_task"] != whole.reports()[0].metrics["train/loss_task"]


def test_a_file_serves_as_well(first, warm, tiny_study, tmp_path):
    study, path = first
    file = tmp_path / "weights.safetensors"
    file.write_bytes(weights_file(str(path)).read_bytes())
    method = method_of(study.with_values({"train.seed": 5}), warm)
    start_from(method, str(file))
    assert torch.equal(method.backbone.head.weight[0], load_file(file)["backbone.head.weight"])
    assert digest(str(file)) == digest(str(path))


def test_what_is_frozen_here_gets_a_value_of_its_own(first, warm, tiny_study, tmp_path):
    """The host's backbone, which the next trial shares, stays as it was."""
    study, path = first
    weights = load_file(weights_file(str(path)))
    name = next(
        n for n, p in method_of(study, warm).named_parameters() if n.endswith("patch_embeddings.projection.bias")
    )
    weights[name] = torch.full((16,), 7.0)
    save_file(weights, tmp_path / "more.safetensors")
    method = method_of(study, warm)
    start_from(method, str(tmp_path / "more.safetensors"))
    changed = dict(method.named_parameters())[name]
    assert changed.eq(7).all() and not changed.requires_grad and name not in method.trainable()
    assert not dict(method_of(study, warm).named_parameters())[name].eq(7).any()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model.lora.rank": 3}, "a tensor of another shape; found .*; expected"),
        ({"model.lora": None}, "a tensor that has no place in this study; found 'backbone.encoders.image.*lora_A"),
        ({"model.encoders.text.layers": 1}, "a tensor that has no place in this study; found 'backbone.encoders.text"),
        ({"model.encoders.text.train_layernorm": True}, "it lacks a tensor that this study trains; .*LayerNorm"),
    ],
)
def test_another_architecture_is_one_message(values, message, first, warm, tiny_study):
    _, path = first
    study = tiny_study.with_values({"method.name": "mmp", **values})
    with pytest.raises(UserError, match=r"train.init_from: weights of another architecture: " + message) as problem:
        start_from(method_of(study, Warm("cpu", World())), str(path))
    assert "weights.safetensors" in str(problem.value) and "Looked at tensor backbone." in str(problem.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model.lora.rank": 3}, "model.lora.rank is 2 there; .*expected a run with model.lora.rank: 3"),
        ({"model.lora.alpha": 1}, "model.lora.alpha is 2.0 there; .*expected a run with model.lora.alpha: 1.0"),
        ({"model.backbone.name": "vilt", "model.backbone.weights": "x", "model.encoders": {}, "model.lora": None},
         "model.backbone.name is 'dual_encoder' there; .*expected a run with model.backbone.name: 'vilt'"),
    ],
)  # fmt: skip
def test_what_the_studies_say_is_refused_before_anything_starts(values, message, first, tiny_study):
    _, path = first
    check(tiny_study.with_values({"method.name": "mmp", "train.init_from": str(path), "model.lora.alpha": "rank"}))
    with pytest.raises(UserError, match=r"study.yaml: train.init_from: weights of another architecture: " + message):
        check(tiny_study.with_values({"train.init_from": str(path), "method.name": "mmp", **values}))


def test_half_a_projector_is_none(first, warm, tiny_study, tmp_path):
    study = tiny_study.with_values({"method.name": "mmp"})
    whole = {n: v.clone().contiguous() for n, v in values_of(method_of(study, warm)).items()}
    save_file(whole, tmp_path / "whole.safetensors")
    start_from(method_of(study, warm), str(tmp_path / "whole.safetensors"))
    whole.pop("projector.aggregated.image")
    save_file(whole, tmp_path / "half.safetensors")
    with pytest.raises(UserError, match=r"lacks a tensor that this study trains.*projector.aggregated.image"):
        start_from(method_of(study, warm), str(tmp_path / "half.safetensors"))


@pytest.mark.parametrize("freeze", [False, True])
def test_running_statistics_come_along(freeze, tmp_path):
    """Also where the second stage freezes the norms that they are of; the shared network keeps its own."""

    def made(name, network, trainable):
        backbone = {"name": "cmnext", "size": "nano", "weights": "of.safetensors", "trainable": trainable}
        model, noise = ModelOptions(backbone=backbone, lora=None), Noise()
        own = network.trial_copy(model)
        own.adapt(model, noise, torch.Generator())
        return METHODS[name](own, METHODS.options(name), noise, torch.Generator().manual_seed(0))

    scenes = {m: RasterFormat((32, 32)) for m in ("rgb", "relief")}
    shared, other = (CMNeXt(scenes, 3, (32, 32), "nano", torch.Generator().manual_seed(s)) for s in (0, 1))
    first = made("modality_dropout", other, True)
    moved = running_statistics(first)
    for place, values in enumerate(moved.values()):
        values.fill_(place + 3)
    weights = {n: p.detach() for n, p in first.named_parameters()} | moved
    save_file(weights, tmp_path / "first.safetensors")
    before = {n: b.clone() for n, b in shared.named_buffers()}
    second = made("mmp", shared, not freeze)
    start_from(second, str(tmp_path / "first.safetensors"))
    found = second.state_dict()
    assert moved and all(torch.equal(found[n], value) for n, value in weights.items())
    assert all(torch.equal(b, before[n]) for n, b in shared.named_buffers())
    gone = next(n for n in moved if "extras" in n and n.endswith("running_var"))
    save_file({n: v for n, v in weights.items() if n != gone}, tmp_path / "less.safetensors")
    if freeze:  # the network's own stay
        return
    with pytest.raises(UserError, match=rf"lacks a tensor that this study trains.*{gone}"):
        start_from(second, str(tmp_path / "less.safetensors"))


def test_nothing_to_start_from(tmp_path, tiny_study, warm, first):
    study, path = first
    with pytest.raises(UserError, match=r"train.init_from: no trained weights lie here; found .*nowhere"):
        weights_file(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"train.init_from: an environment variable is not set"):
        weights_file("${FIRST_STAGE}/0003")
    search = {"model.lora.rank": {"int": [1, 4]}}
    with pytest.raises(UserError, match=r"search.model.lora.rank: the weights of train.init_from fit one"):
        check(tiny_study.with_values({"method.name": "mmp", "train.init_from": str(path), "search": search}))
    (path / "reports.jsonl").unlink()
    with pytest.raises(UserError, match=r"train.init_from: this run has no epoch to start from"):
        weights_file(str(path))
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    with pytest.raises(UserError, match=r"broken.safetensors: train.init_from: the weights cannot be read"):
        start_from(method_of(study, warm), str(tmp_path / "broken.safetensors"))
    with pytest.raises(UserError, match=r"broken.safetensors: train.init_from: the weights cannot be read"):
        check(tiny_study.with_values({"train.init_from": str(tmp_path / "broken.safetensors")}))
