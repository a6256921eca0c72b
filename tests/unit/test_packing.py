"""Packs: what a slot computes knows no neighbours, whatever happens to them."""

from __future__ import annotations

import json
import os
import socket

import pytest
import torch
import torch.multiprocessing as mp

from mmsweep.assembly.host import Warm
from mmsweep.errors import UserError
from mmsweep.models.lora import PackedLoRALinear
from mmsweep.models.packing import merge
from mmsweep.models.peft_format import export_adapter
from mmsweep.record.trial import TrialFolder
from mmsweep.study import Study
from mmsweep.study.packs import Job, pack_key
from mmsweep.training.checkpoint import load_checkpoint, save_checkpoint
from mmsweep.training.world import World

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
