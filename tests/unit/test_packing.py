"""Packs: what a slot computes knows no neighbours, merging and selecting lose nothing, and peft agrees."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import os
import socket

import pytest
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
import transformers
from peft import LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model

from mmsweep.assembly.host import Warm
from mmsweep.errors import UserError
from mmsweep.methods import METHODS
from mmsweep.models.few_rows import SteadyLinear
from mmsweep.models.lora import Noise, PackedLoRALinear
from mmsweep.models.options import BACKBONES, LoraOptions
from mmsweep.models.packing import PackedLinear, alone, merge, select, trained, values_of
from mmsweep.models.peft_format import export_adapter, import_adapter
from mmsweep.record.trial import TrialFolder
from mmsweep.study import Study
from mmsweep.study.packs import Job, pack_key
from mmsweep.study.sections import Optimizer
from mmsweep.training.checkpoint import load_checkpoint, save_checkpoint
from mmsweep.training.optimization import PackedAdamW
from mmsweep.training.world import World
from tests.contracts.test_methods import CLASSES, ROWS, make_batch, wishes

pytestmark = pytest.mark.long

DIFFERENT = [
    {"model.lora.rank": 1, "train.optimizer.lr": 0.003, "method.align_weight": 0.5, "model.lora.dropout": 0.0},
    {"model.lora.rank": 3, "model.lora.alpha": 0.7, "method.masking.probability": 0.2, "train.seed": 5},
    {"train.clip_norm": 0.05, "train.schedule": {"warmup_steps": 5}, "model.lora.dropout": 0.4, "train.seed": 6},
    {"method.masking.granularity": "batch", "train.optimizer.weight_decay": 0.3, "method.align_weight": 0.0},
    {"model.lora.rank": 3, "train.optimizer.lr": 0.02, "train.seed": 8},
]


def scales(method):
    return {tuple(m.scale_S11.flatten().tolist()) for m in method.modules() if isinstance(m, PackedLoRALinear)}


def test_alpha_rank_keeps_the_scale_whatever_the_rank(studies, tmp_path):
    """The default; in a pack each slot has its own scale, and with a number a larger rank is scaled down."""
    given = [{"rank": 1}, {"rank": 3}, {"rank": 3, "alpha": "rank"}, {"rank": 3, "alpha": 1}, {"rank": 1, "alpha": 0.5}]
    warm = Warm("cpu", World())
    methods = [warm.slot(studies[0].with_values({"model.lora": lora}), TrialFolder(tmp_path)).method for lora in given]
    expected = (1.0, 1.0, 1.0, pytest.approx(1 / 3), 0.5)
    for method, scale in zip(methods, expected, strict=True):
        ((found,),) = scales(method)
        assert found == scale
    ((*found,),) = scales(merge(methods))
    assert tuple(found) == expected
    export_adapter(methods[1].backbone.encoder("text").network, 0, tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["lora_alpha"] == 3.0


@pytest.fixture()
def studies(tiny_values):
    values = {**tiny_values, "search": {"model.lora.rank": {"int": [1, 3]}}}
    values["train"] = {**values["train"], "epochs": 3}
    study = Study.parse(values).with_values({"data.augmentation": {"flip": True, "crop": [0.5, 1.0]}})
    return [study.with_values(given) for given in DIFFERENT]


def job(study, path):
    TrialFolder(path).create({"id": path.name, "params": {}}, study.to_yaml())
    return Job(path.name, "trial", str(path), study)


def run_pack(jobs, report=lambda job, record: False, later=(), **more):
    def told(some):
        return [report(job, record) for job, record in some]

    waiting = list(later)
    Warm("cpu", World()).run_pack(jobs, told, lambda: waiting.pop(0) if waiting else (), **more)
    return [TrialFolder(j.folder) for j in [*jobs, *(j for some in later for j in some)]]


def same(a, b):
    """Equal reports, and checkpoints equal to the bit: weights, the optimiser's state, and which epoch is the best."""
    assert [r.metrics for r in a.reports()] == [r.metrics for r in b.reports()]
    for ours, theirs in zip(load_checkpoint(a.last_checkpoint()), load_checkpoint(b.last_checkpoint()), strict=True):
        assert ours.keys() == theirs.keys()
        assert all(
            torch.equal(v, theirs[k]) if isinstance(v, torch.Tensor) else v == theirs[k] for k, v in ours.items()
        )
    return True


@pytest.mark.parametrize(
    "name",
    ["cmpt", "mmp", "linear_projection", "modality_dropout", "missing_aware_prompts", "ogm_ge", "mla", "mmlora"],
)
def test_a_slot_equals_its_pack_of_one(name, studies, tmp_path):
    """Bitwise, whatever its neighbours are; one of them leaves half-way, and another joins then."""
    studies = [study.with_values({"method.name": name}) for study in studies]

    def report(job, record):
        return job.id == "1" and record.epoch == 1

    jobs = [job(study, tmp_path / "pack" / str(i)) for i, study in enumerate(studies)]
    run_pack(jobs[:4], report, [jobs[4:]])
    for i, study in enumerate(studies):
        single = job(study, tmp_path / "single" / str(i))
        run_pack([single], report)
        assert same(TrialFolder(jobs[i].folder), TrialFolder(single.folder))
        assert len(TrialFolder(single.folder).reports()) == (1 if i == 1 else 3)
    losses = [TrialFolder(j.folder).reports()[0].metrics["train/loss"] for j in jobs]
    assert len(set(losses)) == len(jobs)  # they are different trials


@pytest.mark.parametrize("task", ["regression", "multi_label"])
def test_other_tasks_in_a_pack_equal_packs_of_one(task, tiny_tasks, tmp_path):
    """A regression's head has a single output, where MKL multiplies otherwise; likewise rank 1."""
    studies = [tiny_tasks[task].with_values({"model.lora.rank": 1, "train.seed": seed}) for seed in (0, 1, 2)]
    for i, folder in enumerate(run_pack([job(study, tmp_path / "pack" / str(i)) for i, study in enumerate(studies)])):
        assert same(folder, run_pack([job(studies[i], tmp_path / "single" / str(i))])[0])


def _rank(rank, size, studies, path, port):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=size)
    jobs = [Job(str(i), "trial", str(path / str(i)), Study.parse(values)) for i, values in enumerate(studies)]
    Warm("cpu", World.current()).run_pack(
        jobs, lambda told: [job.id == "1" and record.epoch == 1 for job, record in told]
    )
    torch.distributed.destroy_process_group()


def test_two_ranks_train_the_pack_that_one_does(studies, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    studies = [study.with_values({"train.batch_size": 7}) for study in studies[:3]]
    jobs = {ranks: [job(s, tmp_path / ranks / str(i)) for i, s in enumerate(studies)] for ranks in ("one", "two")}
    run_pack(jobs["one"], lambda job, record: job.id == "1" and record.epoch == 1)
    mp.spawn(_rank, (2, [s.resolved() for s in studies], tmp_path / "two", port), nprocs=2)
    for one, two in zip(*(map(TrialFolder, (j.folder for j in some)) for some in jobs.values()), strict=True):
        assert len(one.reports()) == len(two.reports()) > 0
        for a, b in zip(one.reports(), two.reports(), strict=True):
            assert a.metrics == pytest.approx(b.metrics, abs=1e-4)
        theirs = load_checkpoint(two.last_checkpoint())[0]
        for name, value in load_checkpoint(one.last_checkpoint())[0].items():
            torch.testing.assert_close(theirs[name], value, rtol=1e-3, atol=1e-4)


def test_a_slot_that_diverges_leaves_and_the_rest_go_on(studies, tmp_path):
    wild = studies[1].with_values({"train.optimizer.lr": 2e9})
    ends = {}
    jobs = [job(studies[0], tmp_path / "calm"), job(wild, tmp_path / "wild"), job(studies[3], tmp_path / "also")]
    calm, gone, also = run_pack(jobs, over=lambda job, problem: ends.setdefault(job.id, problem))
    assert gone.done()["state"] == "failed" and "loss" in gone.done()["error"] and gone.reports() == []
    assert ends == {"calm": None, "wild": None, "also": None} and calm.done()["state"] == "finished"
    assert same(calm, run_pack([job(studies[0], tmp_path / "a")])[0])
    assert same(also, run_pack([job(studies[3], tmp_path / "b")])[0])


def test_an_error_of_one_slot_ends_that_slot(studies, tmp_path):
    """In its report, and in the checkpoint that it wants to go on from."""

    def report(job, record):
        if job.id == "picky":
            return UserError("no such metric is computed")
        return False

    ends = {}
    broken = job(studies[2], tmp_path / "broken")
    run_pack([broken], lambda job, record: True)
    strange, state = {"strange": torch.zeros(1)}, {"epoch": 1, "best": {"epoch": 1, "metrics": {}}}
    save_checkpoint(TrialFolder(broken.folder), 1, strange, {}, state)  # whole, and of another architecture
    jobs = [job(studies[0], tmp_path / "picky"), job(studies[1], tmp_path / "other"), broken]
    _, other, _ = run_pack(jobs, report, over=lambda job, problem: ends.setdefault(job.id, str(problem)))
    assert "no such metric" in ends["picky"] and "architecture" in ends["broken"] and ends["other"] == "None"
    assert other.done()["state"] == "finished" and len(other.reports()) == 3


def test_a_pack_that_was_killed_goes_on(studies, tmp_path):
    """Slots at different epochs share a pack, and a slot may come back into another one."""
    first, second = (job(studies[i], tmp_path / "pack" / str(i)) for i in (0, 1))
    run_pack([first, second], lambda job, record: record.epoch == (1 if job.id == "0" else 2))
    again = run_pack([second, first])
    for i, folder in zip((1, 0), again, strict=True):
        assert len(folder.reports()) == 3
        assert same(folder, run_pack([job(studies[i], tmp_path / "single" / str(i))])[0])


def test_a_final_in_a_pack_is_evaluated_as_alone(studies, tmp_path):
    jobs = [Job(**{**vars(job(s, tmp_path / "p" / str(i))), "kind": "final"}) for i, s in enumerate(studies[:2])]
    run_pack(jobs)
    single = Job(**{**vars(job(studies[1], tmp_path / "single")), "kind": "final"})
    run_pack([single])
    texts = [(TrialFolder(j.folder).path / "evaluation.json").read_text() for j in (jobs[1], single)]
    assert texts[0] == texts[1]


def test_what_a_pack_may_differ_in(studies, tiny_study):
    assert len({pack_key(study) for study in studies}) == 1
    others = {
        "train.batch_size": 4,
        "method.name": "mmp",
        "model.encoders.text.layers": 1,
        "scenarios.train": "missing-text",
        "data.text.length": 7,
        "train.epochs": 5,
    }
    for key, value in others.items():
        assert pack_key(studies[0].with_values({key: value})) != pack_key(studies[0]), key
    narrower = tiny_study.with_values({"train.epochs": 3, "data.augmentation": {"flip": True, "crop": [0.5, 1.0]}})
    assert pack_key(narrower) != pack_key(studies[0])  # padded to another rank
    assert pack_key(tiny_study.with_values({"model.lora": None})) != pack_key(tiny_study)


@pytest.mark.parametrize("trains", ["trainable", "train_layernorm"])
def test_a_trained_backbone_has_one_slot_and_says_why(trains, studies, tmp_path):
    jobs = [job(s.with_values({f"model.encoders.text.{trains}": True}), tmp_path / str(i)) for i, s in
            enumerate(studies[:2])]  # fmt: skip
    with pytest.raises(ValueError, match=r"of the backbone are trained themselves \(backbone.encoders.text"):
        run_pack(jobs)


# ---- networks


@pytest.fixture()
def make(encoder_folders):
    def build(name="cmpt", rank=2, padded=5, seed=1, dropout=0.0, dtype=torch.float32, backbone="dual_encoder"):
        g, noise = torch.Generator().manual_seed(seed), Noise()
        torch.manual_seed(0)
        lora = LoraOptions(rank=rank, alpha=1.5, dropout=dropout)
        model, inputs = wishes(backbone, 2, encoder_folders, lora)
        network = BACKBONES[backbone].build(model, inputs, CLASSES)
        network.reset(g)
        network.adapt(model, noise, g, padded)
        method = METHODS[name](network, METHODS.options(name), noise, g).to(dtype)
        for t in trained(method):
            if "lora_B" in t.name:
                t.own(t.parameter.detach(), 0).normal_(std=0.3, generator=g)
        return method

    return build


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
    assert alone(make()) is None


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


# ---- peft's files


def bert(folder):
    return transformers.BertModel.from_pretrained(folder).eval()


def test_an_exported_slot_opens_in_peft(make, encoder_folders, tmp_path):
    pack = merge([make(rank=rank, seed=rank) for rank in (3, 1)])
    network = pack.backbone.encoder("text").network
    ids = torch.randint(5, 30, (2, 6), generator=torch.Generator().manual_seed(0))
    both = network(input_ids=ids.repeat(2, 1)).last_hidden_state.unflatten(0, (2, -1))
    for slot, rank in enumerate((3, 1)):
        export_adapter(network, slot, tmp_path / str(slot))
        theirs = PeftModel.from_pretrained(bert(encoder_folders["bert"]), str(tmp_path / str(slot))).eval()
        assert theirs.peft_config["default"].r == rank and theirs.peft_config["default"].lora_alpha == 1.5
        torch.testing.assert_close(theirs(input_ids=ids).last_hidden_state, both[slot], rtol=1e-5, atol=1e-5)
    assert (both[0] - both[1]).abs().max() > 1e-3


def peft_adapter(encoder_folders, path, linears, **options):
    theirs = get_peft_model(
        bert(encoder_folders["bert"]), LoraConfig(**{"r": 4, "lora_alpha": 7, "target_modules": linears} | options)
    )
    g = torch.Generator().manual_seed(2)
    for name, p in theirs.named_parameters():
        if "lora_" in name:
            p.data.normal_(std=0.2, generator=g)
    theirs.save_pretrained(str(path))
    return theirs.eval()


def test_an_adapter_of_peft_becomes_a_slot(make, encoder_folders, tmp_path):
    pack = merge([make(rank=rank, seed=rank) for rank in (3, 1)])
    encoder = pack.backbone.encoder("text")
    linears = [name.removeprefix("network.") for name in encoder.attention_linears()]
    theirs = peft_adapter(encoder_folders, tmp_path, linears, lora_dropout=0.25)
    before = values_of(pack, 0)
    import_adapter(encoder.network, 1, tmp_path)
    ids = torch.randint(5, 30, (2, 6), generator=torch.Generator().manual_seed(0))
    found = encoder.network(input_ids=ids.repeat(2, 1)).last_hidden_state[2:]
    torch.testing.assert_close(found, theirs(input_ids=ids).last_hidden_state, rtol=1e-5, atol=1e-5)
    layer = next(m for m in encoder.modules() if isinstance(m, PackedLoRALinear))
    assert layer.dropouts == (0.0, 0.25) and layer.alphas == (1.5, 7.0) and layer.down.ranks == (3, 4)
    assert all(torch.equal(v, before[n]) for n, v in values_of(pack, 0).items())


@pytest.mark.parametrize(
    ("options", "message"),
    [({"r": 6}, "rank 6 does not fit into 5"), ({"use_rslora": True}, "use_rslora: an adapter that computes"),
     ({"target_modules": ["query"]}, "lacks tensor")],
)  # fmt: skip
def test_adapters_that_do_not_fit_are_refused(options, message, make, encoder_folders, tmp_path):
    network = make().backbone.encoder("text").network
    linears = [name.removeprefix("network.") for name in make().backbone.encoder("text").attention_linears()]
    peft_adapter(encoder_folders, tmp_path, linears, **options)
    with pytest.raises(UserError, match=message):
        import_adapter(network, 0, tmp_path)
    with pytest.raises(UserError, match="no adapter lies here"):
        import_adapter(network, 0, tmp_path / "nowhere")


def test_dropout_of_each_slot_is_its_own_generator_s():
    x, rates = torch.zeros(3 * 4, 50, 20), [0.0, 0.3, 0.8]

    def noise(*seeds, rows=slice(0, 4)):
        return Noise([torch.Generator().manual_seed(seed) for seed in seeds], 4, rows)

    mask = noise(1, 2, 3).keep(x, rates).view(3, 4, 50, 20)
    assert mask[0].eq(1).all() and math.isclose(mask[2].ne(0).float().mean(), 0.2, abs_tol=0.02)
    assert torch.equal(mask[1], noise(2).keep(x[:4], 0.3))
    part = noise(1, 2, 3, rows=slice(1, 3)).keep(x[:6], rates).view(3, 2, 50, 20)
    assert torch.equal(part, mask[:, 1:3])
