"""The defining property of each baseline that trains in a way of its own."""

from __future__ import annotations

import math

import pytest
import torch

from mmsweep.assembly.checks import check_sweep
from mmsweep.assembly.host import Warm
from mmsweep.availability import pattern_rows
from mmsweep.errors import UserError
from mmsweep.methods import METHODS
from mmsweep.methods.method import Update
from mmsweep.methods.mla import weighted
from mmsweep.methods.ogm_ge import coefficients, true_probability
from mmsweep.models.backbones.vilt import _parts
from mmsweep.models.last_block import SplitBlock
from mmsweep.models.packing import values_of
from mmsweep.record.trial import TrialFolder
from mmsweep.study import Study
from mmsweep.study.packs import pack_key
from mmsweep.study.space import SearchSpace
from mmsweep.training.engine import EvaluationPlan, _Pack
from mmsweep.training.slot import Member
from mmsweep.training.world import World
from tests.contracts.test_methods import ROWS, make  # noqa: F401

NOWHERE = TrialFolder("nowhere")


def pack_of(study, done=0):
    """A pack of one, at the beginning of an epoch."""
    warm = Warm("cpu", World())
    data, _ = warm.ready(study)
    pack = _Pack(data, EvaluationPlan((), 0), torch.device("cpu"), World())
    pack.join([Member(warm.slot(study, NOWHERE), data)])
    pack.members[0].done = done
    pack._begin()
    return pack


def moved(pack, steps=1):
    before = {n: v.clone() for n, v in values_of(pack.method).items()}
    for step in range(steps):
        pack._step(step, pack._share(step))
    return {n for n, v in values_of(pack.method).items() if not torch.equal(v, before[n])}


# ---- what a study says


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("ogm_ge", {"alpha": 0.3, "noise": False, "first_epoch": 1, "last_epoch": 2}),
        ("mla", {"epsilon": 0.5, "orthogonal": False}),
        ("mmlora", {"unimodal_epochs": 1}),
        ("missing_aware_prompts", {"place": "attention", "length": 4, "layers": [0], "init": "normal"}),
    ],
)
def test_a_study_sets_the_options(name, given, tiny_study):
    values = {**tiny_study.resolved(), "method": {"name": name, **given}, "search": {}}
    values["train"]["epochs"] = 3
    if name == "missing_aware_prompts":
        values["model"]["lora"] = None
    study = Study.parse(values)
    check_sweep(study)
    assert {key: study.resolved()["method"][key] for key in given} == given
    method = Warm("cpu", World()).slot(study, NOWHERE).method
    assert method.options == METHODS.options(name, **given)
    for key in given:  # each may be searched; trials that differ in it train apart
        searched = Study.parse({**values, "search": {f"method.{key}": {"choice": [given[key]]}}})
        assert list(SearchSpace(searched).dimensions) == [f"method.{key}"]
        default = study.with_values({f"method.{key}": METHODS.options(name).model_dump(mode="json")[key]})
        assert pack_key(study) != pack_key(default)


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("ogm_ge", {"first_epoch": 3, "last_epoch": 2}, r"last_epoch: modulation ends before it begins; found 2"),
        ("ogm_ge", {"masking": {"probability": 0.5}}, "masking: unknown key"),
        ("mmlora", {"unimodal_epochs": 0}, "unimodal_epochs: wrong value; found 0"),
        ("missing_aware_prompts", {"place": "attention", "length": 3}, "length of 3 does not divide"),
        ("missing_aware_prompts", {"layers": [1, 1]}, r"layers: a block gets prompts twice; found \[1, 1\]"),
        ("missing_aware_prompts", {"layers": []}, "layers: wrong value"),
        ("missing_aware_prompts", {"layers": [-1]}, "layers.0: wrong value; found -1"),
    ],
)
def test_what_no_method_can_do_is_refused(name, given, words, tiny_study):
    with pytest.raises(UserError, match=f"method.*{words}"):
        Study.parse({**tiny_study.resolved(), "method": {"name": name, **given}, "search": {}})


# ---- OGM-GE


def test_the_coefficient_of_hand_made_logits():
    """Two rows of truth 0: softmax gives 3/4 and 1/4 to the first modality, 1/2 twice to the second."""
    logits = torch.tensor([[[math.log(3.0), 0.0], [0.0, 0.0]], [[0.0, math.log(3.0)], [0.0, 0.0]]])
    p_BM = true_probability(logits, torch.tensor([0, 0]))
    torch.testing.assert_close(p_BM, torch.tensor([[0.75, 0.5], [0.25, 0.5]]))
    k = coefficients(torch.tensor([[0.6, 0.3], [0.3, 0.6], [0.4, 0.4]]), alpha=0.5)
    slow = 1 - math.tanh(0.5 * 2)
    torch.testing.assert_close(k, torch.tensor([[slow, 1.0], [1.0, slow], [1.0, 1.0]]))
    three = coefficients(torch.tensor([[0.8, 0.5, 0.3]]), alpha=1.0)  # against the mean of the others
    torch.testing.assert_close(three, torch.tensor([[1 - math.tanh(2.0), 1.0, 1.0]]))
    several = true_probability(torch.tensor([[[0.0, math.log(3.0)]]]), torch.tensor([[1.0, 0.0]]))
    torch.testing.assert_close(several, torch.tensor([[0.375]]))


@pytest.mark.parametrize("noise", [True, False])
def test_only_the_modality_ahead_is_slowed_down(noise, make):  # noqa: F811
    method, _ = make("ogm_ge", 2, alpha=0.5, noise=noise, first_epoch=1)
    method._scores_KSM = torch.tensor([[[6.0, 3.0]], [[10.0, 10.0]]])
    names = [n for n, _ in method.named_parameters() if "lora_" in n or "head" in n]
    g = torch.Generator().manual_seed(0)
    before = {n: torch.randn(40, 30, generator=g) for n in names}
    given = {n: v.clone() for n, v in before.items()}
    method.after_backward([Update(given, 0, g)], lambda x: x)
    assert all(torch.equal(v, before[n]) for n, v in given.items())  # not yet
    method._scores_KSM = torch.tensor([[[6.0, 3.0]], [[10.0, 10.0]]])
    method.after_backward([Update(given, 1, g)], lambda x: x)
    for name, value in given.items():
        k = 1 - math.tanh(1.0) if ".image." in name else 1.0
        difference = value - k * before[name]
        if "head" in name:
            assert torch.equal(value, before[name])
        elif noise:
            assert difference.std() == pytest.approx(before[name].std().item(), rel=0.1)
        else:
            torch.testing.assert_close(difference, torch.zeros_like(difference))


# ---- MLA


def test_the_head_learns_at_right_angles_to_what_it_has_seen(make):  # noqa: F811
    method, batch = make("mla", 3, epsilon=1e-6)
    width = method.backbone.width
    seen, g = [], torch.Generator().manual_seed(0)
    for _ in method.steps(batch, batch.present_BM):
        seen.append(method._features_SE[0, :-1] / ROWS)
        gradient = torch.randn(5, width, generator=g)
        given = gradient.clone()
        method.after_backward([Update({"backbone.head.weight": given}, 0, g)], lambda x: x)
        for feature in seen[:-1]:
            assert (given @ feature).norm() < 1e-2 * (gradient @ feature).norm()
        if len(seen) == 1:
            torch.testing.assert_close(given, gradient)
    assert len(seen) == method.updates == 3


def test_each_update_moves_one_modality_and_the_head(tiny_study):
    pack = pack_of(tiny_study.with_values({"method.name": "mla"}))
    share = pack._share(0)
    batch = pack.data.splits["train"].batch_of(share.raw, pack.device)
    outputs = pack.method.steps(batch, share.used_RM)
    for number, modality in enumerate(pack.method.backbone.modalities):
        before = {n: v.clone() for n, v in values_of(pack.method).items()}
        pack._update(0, number, batch, outputs)
        names = {n for n, v in values_of(pack.method).items() if not torch.equal(v, before[n])}
        assert any(modality in n for n in names) and any("head" in n for n in names)
        assert all(n.startswith("backbone.head.") or f".{modality}." in n for n in names)


def test_surer_modalities_weigh_more():
    logits = torch.tensor([[[4.0, 0.0, 0.0], [0.0, 0.1, 0.0]]])
    p = logits.softmax(-1)
    weight = (p * p.log()).sum(-1).softmax(1)
    torch.testing.assert_close(
        weighted(logits, torch.tensor([[True, True]]), False), (weight[..., None] * logits).sum(1)
    )
    assert weight[0, 0] > weight[0, 1]
    torch.testing.assert_close(weighted(logits, torch.tensor([[False, True]]), False), logits[:, 1])
    assert weighted(logits, torch.tensor([[False, False]]), False).eq(0).all()


# ---- MMLoRA


def test_each_phase_trains_what_it_claims(tiny_study):
    study = tiny_study.with_values({"method.name": "mmlora", "train.epochs": 3})
    for done, modality in enumerate(("image", "text")):
        names = moved(pack_of(study, done), 3)
        assert names == {
            n
            for n in values_of(pack_of(study, done).method)
            if f".{modality}." in n and ".joint." not in n and not n.startswith("backbone.head.")
        } | {f"heads.{modality}.{p}" for p in ("weight", "bias")}
    pack = pack_of(study, 2)
    assert moved(pack, 3) == {n for n in values_of(pack.method) if ".joint." in n or n.startswith("heads.")}


def test_phases_fill_the_epochs(make):  # noqa: F811
    method, _ = make("mmlora", 3)
    assert [(p.name, p.epochs) for p in method.phases(10)] == [
        ("only-image", 2), ("only-text", 2), ("only-audio", 2), ("joint", 4)
    ]  # fmt: skip
    with pytest.raises(UserError, match="leave none for the joint phase"):
        method.phases(3)


# ---- missing-aware prompts


@pytest.mark.parametrize("place", ["input", "attention"])
@pytest.mark.parametrize("backbone", ["dual_encoder", "vilt"])
def test_a_row_reads_the_prompts_of_its_pattern_and_no_others(backbone, place, make):  # noqa: F811
    method, batch = make("missing_aware_prompts", 2, backbone, place=place, length=4)
    patterns = torch.from_numpy(pattern_rows(method.backbone.modalities))
    used = patterns[torch.arange(ROWS) % 3]
    code = (used * torch.tensor([1, 2])).sum(1) - 1
    for p in range(3):
        method.zero_grad()
        method(batch, used).prediction[code == p].square().sum().backward()
        for prompt in method.prompts.values():
            touched = prompt.grad[0].flatten(1).abs().sum(1) > 0
            assert touched.tolist() == [q == p for q in range(3)]
    added = sum(p.shape[2] * p.shape[3] for p in method.prompts.values()) if place == "input" else 0
    assert method.extra_tokens == added / 2  # of each of two modalities; a dry run counts them
    trained = method.trainable()
    assert not any("lora_" in n or ".encoder.layer" in n for n in trained)
    with pytest.raises(UserError, match="no block"):
        make("missing_aware_prompts", 2, backbone, layers=[9])


@pytest.mark.parametrize("backbone", ["dual_encoder", "vilt"])
def test_prompts_of_attention_change_the_prediction_by_keys_and_by_values(backbone, make):  # noqa: F811
    method, batch = make("missing_aware_prompts", 2, backbone, place="attention", length=2, layers=[0])
    with torch.no_grad():
        plain = method.backbone.predict(method.backbone.embed(batch), batch.present_BM)
        seen = method(batch, batch.present_BM).prediction
        for prompt in method.prompts.values():
            prompt[..., 1:, :] = 0.0
        moved_away = method(batch, batch.present_BM).prediction
    assert (seen - plain).abs().max() > 1e-4 and (moved_away - seen).abs().max() > 1e-5


def test_vilt_s_block_taken_apart_is_the_block(make):  # noqa: F811
    method, _ = make("missing_aware_prompts", 2, "vilt", place="attention", length=2)
    block = method.backbone.network.encoder.layer[0]
    x_BND = torch.randn(3, 7, method.backbone.network.config.hidden_size, generator=torch.Generator().manual_seed(0))
    bias = torch.zeros(3, 1, 1, 7).masked_fill(torch.arange(7) > 4, float("-inf"))
    with torch.no_grad():
        torch.testing.assert_close(SplitBlock(block, _parts, None)(x_BND, bias), block(x_BND, bias)[0])
