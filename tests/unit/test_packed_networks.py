"""Networks of packs: merging and selecting lose nothing, and every slot trains as torch and peft have it."""

from __future__ import annotations

import copy
import dataclasses
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model

from mmsweep.methods import METHODS
from mmsweep.models.few_rows import SteadyLinear
from mmsweep.models.lora import Noise, PackedLoRALinear
from mmsweep.models.options import BACKBONES
from mmsweep.models.packing import PackedLinear, merge, select, single_slot_reason, trained, values_of
from mmsweep.study.sections import Optimizer
from mmsweep.training.optimization import PackedAdamW
from tests.contracts.test_methods import ROWS, make_batch
from tests.unit.packing_helpers import packed_method

pytestmark = pytest.mark.long


@pytest.fixture()
def make(encoder_folders):
    return partial(packed_method, encoder_folders)


def converted(batch, dtype):
    inputs = {m: x if isinstance(x, dict) else x.to(dtype) for m, x in batch.inputs.items()}
    return type(batch)(inputs, batch.present_BM, batch.target, batch.index)


def mean_losses(method, batch, used_BM, S):
    output = method(batch, used_BM)
    align = output.losses["align"]
    task_S = F.cross_entropy(output.prediction, batch.target, reduction="none").view(S, -1).mean(1)
    return task_S + 0.2 * align.values_B.view(S, -1).mean(1)


PAIRS = [
    (b, m) for b in ("dual_encoder", "vilt") for m in sorted(METHODS) if issubclass(BACKBONES[b], METHODS[m].accepts)
]


@pytest.mark.parametrize("backbone", ["dual_encoder", "vilt"])
def test_a_backbone_that_slots_share_has_only_steady_linears(backbone, make):
    """A plain one would round a slot's few rows, of a pooler or a last block, otherwise beside neighbours."""
    method = make("cmpt" if backbone == "dual_encoder" else "mmp", backbone=backbone)
    parts = method.backbone.parts().values()
    linears = [m for part in parts for m in part.modules() if isinstance(m, torch.nn.Linear)]
    assert linears and {type(m) for m in linears} == {SteadyLinear}


@pytest.mark.parametrize(("backbone", "name"), PAIRS)
def test_merged_and_selected_packs_say_what_their_slots_say(backbone, name, make):
    ones = [make(name, rank, seed=rank, backbone=backbone) for rank in (1, 3, 5)]
    batches = [make_batch(ones[0].backbone.modalities, seed=s) for s in range(3)]
    pack = merge(ones)
    inputs = {m: {k: torch.cat([b.inputs[m][k] for b in batches]) for k in x} if isinstance(x, dict)
              else torch.cat([b.inputs[m] for b in batches]) for m, x in batches[0].inputs.items()}  # fmt: skip
    joined = {n: torch.cat([getattr(b, n) for b in batches]) for n in ("present_BM", "target")}
    whole = dataclasses.replace(batches[0], inputs=inputs, **joined)
    used = torch.tensor([[True, True], [True, False], [False, True]]).repeat(2 * 3, 1)
    with torch.no_grad():
        found = pack(whole, used).prediction.view(3, ROWS, -1)
        for s, one in enumerate(ones):
            torch.testing.assert_close(found[s], one(batches[s], used[:ROWS]).prediction)
            own = values_of(pack, s)
            assert own.keys() == values_of(one).keys() and all(
                torch.equal(v, own[n]) for n, v in values_of(one).items()
            )
        part = select(pack, [2, 0])
        twice = batches[0].repeated(2)
        expected = torch.cat([ones[s](batches[0], used[:ROWS]).prediction for s in (2, 0)])
        torch.testing.assert_close(part(twice, used[: 2 * ROWS]).prediction, expected)
    frozen = [{t.name: t.parameter for t in trained(m, frozen=True) if t.owner is None} for m in (ones[0], pack, part)]
    assert all(p.data_ptr() == frozen[0][n].data_ptr() for some in frozen[1:] for n, p in some.items())


def test_ranks_that_are_padded_differently_cannot_merge(make):
    with pytest.raises(ValueError, match="differs between the slots"):
        merge([make(padded=4), make(padded=5)])
    assert single_slot_reason(make()) is None


def test_initial_values_are_those_of_the_true_rank(make):
    padded, plain = values_of(make(rank=2, padded=7)), values_of(make(rank=2, padded=2))
    assert padded.keys() == plain.keys() and all(torch.equal(v, padded[n]) for n, v in plain.items())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_fifty_steps_equal_those_of_peft_without_padding(dtype, tolerance, make, encoder_folders):
    """The middle slot of a padded pack against peft's layers and torch's AdamW; the padding stays zero throughout."""
    ones = [make(rank=rank, seed=rank, dtype=dtype) for rank in (5, 2, 1)]
    theirs = copy.deepcopy(ones[1])
    for encoder in theirs.backbone.encoders.values():
        own = values_of(encoder)
        for name, module in list(encoder.named_modules()):
            if isinstance(module, PackedLoRALinear):
                encoder.get_submodule(name.rpartition(".")[0])._modules[name.rpartition(".")[2]] = module.base_layer
        config = LoraConfig(r=2, lora_alpha=1.5, lora_dropout=0.0, target_modules=encoder.attention_linears())
        inject_adapter_in_model(config, encoder)
        encoder.to(dtype)
        for name, parameter in encoder.named_parameters():
            if "lora_" in name:
                parameter.data.copy_(own[name])
    pack, specs = merge(ones), [Optimizer(lr=lr, weight_decay=0.1) for lr in (0.1, 0.003, 0.02)]
    ours_by = PackedAdamW(trained(pack), specs, pack.undecayed)
    decayed = [p for n, p in theirs.named_parameters() if p.requires_grad and "bias" not in n and "proxies" not in n]
    plain = [p for n, p in theirs.named_parameters() if p.requires_grad and ("bias" in n or "proxies" in n)]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    theirs_by = torch.optim.AdamW(groups, lr=0.003, eps=specs[1].eps)
    for step in range(50):
        batch = converted(make_batch(pack.backbone.modalities, seed=step), dtype)
        used = torch.tensor([[True, True], [True, False], [False, True]]).repeat(2, 1)
        ours_S = mean_losses(pack, batch.repeated(3), used.repeat(3, 1), 3)
        ours_S.sum().backward()
        ours_by.gather()
        ours_by.step([spec.lr for spec in specs])
        theirs_by.zero_grad()
        (expected,) = mean_losses(theirs, batch, used, 1)
        expected.backward()
        theirs_by.step()
        assert ours_S[1].item() == pytest.approx(expected.item(), rel=tolerance), step
    for layer in (m for m in pack.modules() if isinstance(m, PackedLoRALinear)):
        for slot, rank in enumerate((5, 2, 1)):
            assert layer.down.weight[slot, :, rank:].eq(0).all() and layer.up.weight[slot, rank:].eq(0).all()
            assert layer.down.weight[slot, :, :rank].ne(0).all()


def test_the_optimiser_is_torch_s():
    """Every slot as torch.optim.AdamW has it: its own rate, decay and number of steps; clipping as torch's too."""
    g, specs = torch.Generator().manual_seed(3), [Optimizer(lr=0.1, weight_decay=0.3), Optimizer(lr=0.01)]

    class Two(torch.nn.Module):
        def __init__(self, S):
            super().__init__()
            self.inner, self.head = PackedLinear(7, 5).double(), PackedLinear(5, 3).double()

    networks = [Two(1) for _ in specs]
    for p in (p for n in networks for p in n.parameters()):
        p.data.normal_(generator=g)
    pack = merge(networks)
    ours = PackedAdamW(trained(pack), specs)
    torch_s = []
    for network, spec in zip(networks, specs, strict=True):
        parameters = list(network.parameters())
        weights, biases = ([p for p in parameters if (p.dim() == 3) == which] for which in (True, False))
        groups = [{"params": weights, "weight_decay": spec.weight_decay}, {"params": biases, "weight_decay": 0.0}]
        torch_s.append(torch.optim.AdamW(groups, lr=spec.lr, betas=spec.betas, eps=spec.eps))
    for step in range(20):
        for p, *single in zip(pack.parameters(), *(n.parameters() for n in networks), strict=True):
            p.grad = torch.randn(p.shape, generator=g, dtype=torch.float64)
            for s, own in enumerate(single):
                own.grad = p.grad[s : s + 1].clone()
        ours.gather()
        ours.clip([0.5, None])
        ours.step([spec.lr / (1 + step) for spec in specs])
        torch.nn.utils.clip_grad_norm_(networks[0].parameters(), 0.5)
        for optimizer, spec in zip(torch_s, specs, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = spec.lr / (1 + step)
            optimizer.step()
    for s, (network, optimizer) in enumerate(zip(networks, torch_s, strict=True)):
        for name, value in values_of(pack, s).items():
            torch.testing.assert_close(value, values_of(network)[name], rtol=1e-12, atol=1e-12)
        numbered = optimizer.state_dict()["state"]  # what checkpoints of earlier versions hold
        state = ours.state(s)
        assert state.keys() == {f"{i}.{k}" for i, entry in numbered.items() for k in entry}
        for i, entry in numbered.items():
            for key, value in entry.items():
                own = value[0] if value.dim() else value
                torch.testing.assert_close(state[f"{i}.{key}"].double(), own.double(), rtol=1e-12, atol=1e-12)
        restored = PackedAdamW(trained(copy.deepcopy(network)), specs[s : s + 1])
        restored.load(0, state)
        assert all(torch.equal(v, state[k]) for k, v in restored.state(0).items())
        assert restored.steps == [[20] * len(numbered)]


def test_what_an_update_does_not_train_keeps_its_value_and_its_state():
    """As torch's AdamW passes over parameters without a gradient, in one slot and not in the other."""
    g, specs = torch.Generator().manual_seed(3), [Optimizer(lr=0.1, weight_decay=0.3), Optimizer(lr=0.01)]

    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.head = PackedLinear(7, 5).double(), PackedLinear(5, 3).double()

    networks = [Two(), Two()]
    for p in (p for n in networks for p in n.parameters()):
        p.data.normal_(generator=g)
    pack = merge(networks)
    ours = PackedAdamW(trained(pack), specs)
    theirs = []
    for network, spec in zip(networks, specs, strict=True):
        weights, biases = ([p for p in network.parameters() if (p.dim() == 3) == which] for which in (True, False))
        groups = [{"params": weights, "weight_decay": spec.weight_decay}, {"params": biases, "weight_decay": 0.0}]
        theirs.append(torch.optim.AdamW(groups, lr=spec.lr, betas=spec.betas, eps=spec.eps))
    for step in range(12):
        parts = [("inner", "head")[step % 2] if step % 3 else "", "head" if step > 6 else ""]
        for (name, p), *single in zip(pack.named_parameters(), *(n.parameters() for n in networks), strict=True):
            p.grad = torch.randn(p.shape, generator=g, dtype=torch.float64)
            for s, own in enumerate(single):
                own.grad = p.grad[s : s + 1].clone() if name.startswith(parts[s]) else None
        ours.move([lambda name, part=part: name.startswith(part) for part in parts])
        ours.gather()
        ours.clip([0.5, 0.2])
        ours.step([spec.lr for spec in specs])
        for network, optimizer, norm in zip(networks, theirs, (0.5, 0.2), strict=True):
            torch.nn.utils.clip_grad_norm_(network.parameters(), norm)
            optimizer.step()
        for s, network in enumerate(networks):
            for name, value in values_of(pack, s).items():
                torch.testing.assert_close(value, values_of(network)[name], rtol=1e-12, atol=1e-12)
    before = ours.state(1)
    ours.restart(0)
    assert not any(v.any() for v in ours.state(0).values())
    assert all(torch.equal(v, before[k]) for k, v in ours.state(1).items())


def test_dropout_of_each_slot_is_its_own_generator_s():
    x, rates = torch.zeros(3 * 4, 50, 20), [0.0, 0.3, 0.8]

    def noise(*seeds, rows=slice(0, 4)):
        return Noise([torch.Generator().manual_seed(seed) for seed in seeds], 4, rows)

    mask = noise(1, 2, 3).mask(x, rates).view(3, 4, 50, 20)
    assert mask[0].eq(1).all() and math.isclose(mask[2].ne(0).float().mean(), 0.2, abs_tol=0.02)
    assert torch.equal(mask[1], noise(2).mask(x[:4], 0.3))
    part = noise(1, 2, 3, rows=slice(1, 3)).mask(x[:6], rates).view(3, 2, 50, 20)
    assert torch.equal(part, mask[:, 1:3])
