"""The engine on a tiny real dataset: reproducible, resumable to the bit, independent of neighbours and of ranks."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp

from mmsweep.assembly.host import Warm
from mmsweep.errors import UserError
from mmsweep.record.files import json_text
from mmsweep.record.objective import Objective
from mmsweep.record.trial import Report, TrialFolder, deciding_report
from mmsweep.study import Study
from mmsweep.study.packs import Job
from mmsweep.study.sections import Schedule
from mmsweep.training.checkpoint import load_checkpoint, load_weights
from mmsweep.training.optimization import lr_factor
from mmsweep.training.slot import generator
from mmsweep.training.world import World

pytestmark = pytest.mark.long


def run(study, path, kind="trial", report=lambda r: False, warm=None, world=None):
    folder = TrialFolder(path)
    folder.create({"id": "0", "params": {}}, study.to_yaml())
    (warm or Warm("cpu", world or World())).run(Job("0", kind, str(path), study), report)
    return folder


def metrics(folder):
    return [r.metrics for r in folder.reports()]


def weights(folder):
    return load_checkpoint(folder.last_checkpoint())[0]


def same_weights(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def test_same_study_and_seed_twice(tiny_study, tmp_path):
    first, second = run(tiny_study, tmp_path / "a"), run(tiny_study, tmp_path / "b")
    assert metrics(first) == metrics(second) and same_weights(weights(first), weights(second))
    other = run(tiny_study.with_values({"train.seed": 1}), tmp_path / "c")
    assert metrics(first) != metrics(other)


@pytest.mark.parametrize("trained", ["adapters", "train_layernorm", "trainable"])
def test_a_trial_does_not_depend_on_its_neighbours(trained, tiny_study, tmp_path):
    """Also where encoders' own tensors are trained: the host's frozen backbone stays as it was."""
    study, warm = tiny_study, Warm("cpu", World())
    if trained != "adapters":
        study = study.with_values({f"model.encoders.{m}.{trained}": True for m in ("image", "text")})
    alone = run(study, tmp_path / "alone")
    neighbour = study.with_values({"model.lora.rank": 3, "train.seed": 7, "method.name": "plain"})
    run(neighbour, tmp_path / "neighbour", warm=warm)
    torch.rand(11)
    after = run(study, tmp_path / "after", warm=warm)
    assert metrics(alone) == metrics(after) and same_weights(weights(alone), weights(after))


def test_initial_values_are_drawn_on_the_cpu_wherever_the_network_lies(tiny_study, tmp_path):
    """A generator of the CPU cannot fill a tensor of a GPU, and seeds must mean the same on both."""
    backbone = Warm("cpu", World()).ready(tiny_study)[1]
    states = []
    for device in ("cpu", "meta"):
        draws = generator(0, "init", 0)
        backbone.to(device).reset(draws)
        states.append(draws.get_state())
    assert torch.equal(*states)


@pytest.mark.parametrize(
    "method",
    ["cmpt", "linear_projection", "modality_dropout", "plain", "missing_aware_prompts", "ogm_ge", "mla", "mmlora"],
)
def test_resuming_equals_never_having_stopped(method, tiny_study, tmp_path):
    study = tiny_study.with_values({"method.name": method, "train.epochs": 3})
    whole = run(study, tmp_path / "whole")
    stopped = run(study, tmp_path / "stopped", report=lambda r: r.epoch == 1)
    assert len(stopped.reports()) == 1 and stopped.done() is None
    again = run(study, tmp_path / "stopped")
    assert metrics(again) == metrics(whole) and same_weights(weights(again), weights(whole))
    assert again.done() == {"state": "finished", "error": None}


def test_a_kill_between_checkpoint_and_report_costs_that_epoch_only(tiny_study, tmp_path):
    whole = run(tiny_study, tmp_path / "whole")
    killed = run(tiny_study, tmp_path / "killed", report=lambda r: r.epoch == 1)
    shutil.copytree(killed.checkpoint(1), killed.checkpoint(2))  # written, never reported
    with open(killed.path / "reports.jsonl", "a") as file:
        file.write('{"epoch": 2, "metr')  # cut off in the middle
    again = run(tiny_study, tmp_path / "killed")
    assert metrics(again) == metrics(whole) and same_weights(weights(again), weights(whole))


def test_the_best_and_the_last_checkpoint_are_kept(tiny_study, tmp_path):
    study = tiny_study.with_values(
        {"train.epochs": 4, "sweep.objective": {"metric": "val/complete/accuracy", "mode": "max"}}
    )
    folder = run(study, tmp_path / "a")
    values = [m["val/complete/accuracy"] for m in metrics(folder)]
    best = values.index(max(values)) + 1
    assert {p.name for p in (folder.path / "checkpoints").iterdir()} == {f"epoch-{best:04d}", "epoch-0004"}


def test_a_final_is_evaluated_on_test_and_a_trial_is_not(tiny_study, tmp_path):
    trial, final = run(tiny_study, tmp_path / "t"), run(tiny_study, tmp_path / "f", kind="final")
    assert not (trial.path / "evaluation.json").exists()
    record = json.loads((final.path / "evaluation.json").read_text())
    assert record["split"] == "test" and set(record["patterns"]) == {"complete", "missing-text", "missing-image"}
    assert all(m.startswith(("val/", "train/", "epoch")) for m in metrics(final)[0])
    assert metrics(trial) == metrics(final)


def test_divergence_fails_the_trial_with_its_reason(tiny_study, tmp_path):
    folder = run(tiny_study.with_values({"train.optimizer.lr": 2e9}), tmp_path / "a")
    assert folder.done()["state"] == "failed" and "loss" in folder.done()["error"]


GAPS, NO_GAPS = {"rate": 0.5, "type": "both"}, {"available": {"image": 1, "text": 1}}


@pytest.mark.parametrize(
    ("method", "train", "asked", "masks"),
    [
        ("cmpt", GAPS, None, False),  # B3: evidence is CMPT's alone
        ("cmpt", GAPS, True, True),
        ("cmpt", "complete", None, True),
        ("cmpt", "missing-text", None, False),
        ("cmpt", NO_GAPS, None, True),
        ("cmpt", NO_GAPS, False, True),
        ("cmpt", {"rate": 0}, None, True),
        ("cmpt", {"rate": 0.0, "type": "text"}, None, True),
        ("cmpt", {"shares": {"complete": 1.0}, "name": "all"}, None, True),
        ("cmpt", {"missing": []}, None, True),
        ("mmp", GAPS, None, True),
        ("mmp", GAPS, False, False),
        ("linear_projection", GAPS, None, True),
        ("modality_dropout", GAPS, None, True),
        ("plain", GAPS, None, False),
        ("plain", "complete", None, False),
    ],
)
def test_masking_beside_training_gaps(method, train, asked, masks, tiny_study, tmp_path):
    """By the method, and by what the scenario means: whether any pattern but the complete one has a share."""
    values = {"method.name": method, "scenarios.train": train, "method.masking.with_training_gaps": asked}
    slot = Warm("cpu", World()).slot(tiny_study.with_values(values), TrialFolder(tmp_path))
    assert (slot.method.masking is not None) == masks
    assert slot.table_NM.all() == (train not in (GAPS, "missing-text"))


def test_natural_gaps_train_and_say_their_rows(tiny_gaps_study, tmp_path):
    folder = run(tiny_gaps_study, tmp_path / "a", kind="final")
    record = json.loads((folder.path / "evaluation.json").read_text())
    rows = {name: entry["rows"] for name, entry in record["scenarios"].items()}
    assert rows["missing-text"] < rows["complete"] == record["rows"] and rows["missing-image"] < rows["complete"]
    assert all(math.isfinite(v) for m in metrics(folder) for v in m.values())


@pytest.mark.parametrize("fill", ["zeros", "ones", "black", "mean", "nan"])
def test_the_fill_value_changes_nothing(fill, tiny_gaps_study, tmp_path):
    reference = run(tiny_gaps_study, tmp_path / "reference")
    filled = run(tiny_gaps_study.with_values({"data.fill": fill}), tmp_path / fill)
    assert metrics(filled) == metrics(reference)


def test_a_run_on_placeholders_is_trained_and_evaluated_with_them(tiny_gaps_study, tmp_path):
    """On the same rows as one that drops what is absent; here the fill value does change what is learned."""
    base = tiny_gaps_study.with_values({"method": {"name": "modality_dropout"}, "train.epochs": 1})
    found = {}
    for name, values in {"drop": {}, "zeros": {"method.absent": "placeholder"},
                         "ones": {"method.absent": "placeholder", "data.fill": "ones"}}.items():  # fmt: skip
        folder = run(base.with_values(values), tmp_path / name, kind="final")
        assert folder.done() == {"state": "finished", "error": None}
        record = json.loads((folder.path / "evaluation.json").read_text())
        found[name] = metrics(folder)[0]["train/loss"], {k: v["rows"] for k, v in record["scenarios"].items()}
    assert len({loss for loss, _ in found.values()}) == 3 and all(math.isfinite(loss) for loss, _ in found.values())
    assert found["drop"][1] == found["zeros"][1] == found["ones"][1]


@pytest.mark.parametrize(("fill", "value"), [("zeros", 0.0), ("ones", 1.0), ("mean", None)])
def test_the_fill_value_is_the_placeholder_that_is_fed(fill, value, tiny_gaps_study, tmp_path):
    """The data's gaps and masked inputs alike; an absent text is [CLS] [SEP], whatever the fill."""
    study = tiny_gaps_study.with_values({"method": {"name": "plain", "absent": "placeholder"}, "data.fill": fill})
    warm = Warm("cpu", World())
    split, slot = warm.ready(study)[0].splits["train"], warm.slot(study, TrialFolder(tmp_path))
    batch = split.batch(np.arange(len(split)))
    gone_B, all_BM = ~batch.present_BM[:, 0], torch.ones_like(batch.present_BM)
    assert gone_B.any() and not gone_B.all()
    level = batch.inputs["image"][gone_B][0] if value is None else torch.full_like(batch.inputs["image"][0], value)
    fed = batch.with_placeholders(torch.zeros_like(all_BM), slot.method.backbone.modalities)
    assert torch.equal(fed.inputs["image"], level.expand_as(fed.inputs["image"])) and fed.present_BM.all()
    assert fed.inputs["text"]["mask"].sum(1).eq(2).all() and len(fed.inputs["text"]["ids"].unique(dim=0)) == 1
    absent_text = batch.inputs["text"]["ids"][~batch.present_BM[:, 1]]
    assert torch.equal(fed.inputs["text"]["ids"][: len(absent_text)], absent_text)
    slot.method.eval()
    with torch.no_grad():
        as_data = slot.method(dataclasses.replace(batch, present_BM=all_BM), all_BM).prediction
        torch.testing.assert_close(slot.method(batch, batch.present_BM).prediction, as_data)


@pytest.mark.parametrize("scope", ["best", "last"])
def test_the_evaluation_stands_on_the_epoch_that_decides(scope, tiny_study, tmp_path):
    """Evaluating on validation gives that epoch's recorded scores again, not those of whatever weights came last."""
    objective = {"metric": "val/missing-text/accuracy", "scope": scope}
    study = tiny_study.with_values({"train.epochs": 3, "train.optimizer.lr": 0.03, "sweep.objective": objective})
    folder, warm = run(study, tmp_path / "a"), Warm("cpu", World())
    record, _ = warm.evaluate(study, folder, warm.slot(study, folder), "val")
    values = [m[objective["metric"]] for m in metrics(folder)]
    assert record["epoch"] == (3 if scope == "last" else 1 + values.index(max(values)))
    found = {f"val/{s}/{m}": v for s, entry in record["scenarios"].items() for m, v in entry["metrics"].items()}
    recorded = metrics(folder)[record["epoch"] - 1]
    assert found == {name: recorded[name] for name in found}


@pytest.mark.parametrize("task", ["multi_label", "regression"])
def test_other_tasks_train(task, tiny_tasks, tmp_path):
    folder = run(tiny_tasks[task], tmp_path / task, kind="final")
    assert folder.done()["state"] == "finished"
    assert metrics(folder)[-1]["train/loss_task"] < metrics(folder)[0]["train/loss_task"]


def test_clipping_acts_and_balanced_classes_need_no_weights(tiny_study, tmp_path):
    plain = run(tiny_study, tmp_path / "a")
    clipped = run(tiny_study.with_values({"train.clip_norm": 0.01}), tmp_path / "b")
    balanced = run(tiny_study.with_values({"train.class_weights": "balanced"}), tmp_path / "c")
    assert metrics(plain) != metrics(clipped)
    assert metrics(plain) == metrics(balanced)  # the table holds ten of each class: nothing to balance


def _rank(rank, size, study, path, port):
    import os

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=size)
    stopped = run(Study.parse(study), path, kind="final", world=World.current())
    assert rank > 0 or stopped.done()["state"] == "finished"
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("method", ["cmpt", "mmp"])
def test_two_ranks_equal_one(method, tiny_study, tmp_path):
    """Uneven batches and splits included; LoRA dropout and masking on. MMP: a rank may have nothing to restore."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    study = tiny_study.with_values({"method.name": method, "model.lora.dropout": 0.2, "train.batch_size": 7})
    if method == "mmp":
        study = study.with_values({"method.masking.probability": 0.3})
    one = run(study, tmp_path / "one", kind="final")
    mp.spawn(_rank, (2, study.resolved(), tmp_path / "two", port), nprocs=2)
    two = TrialFolder(tmp_path / "two")
    for a, b in zip(metrics(one), metrics(two), strict=True):
        assert a == pytest.approx(b, abs=1e-4)
    for name, value in weights(one).items():
        torch.testing.assert_close(weights(two)[name], value, rtol=1e-3, atol=1e-4)
    on_test = [json.loads((folder.path / "evaluation.json").read_text())["patterns"] for folder in (one, two)]
    for name, entry in on_test[0].items():
        assert on_test[1][name]["metrics"] == pytest.approx(entry["metrics"], abs=1e-4)
        assert on_test[1][name]["rows"] == entry["rows"]


@pytest.mark.parametrize(("step", "factor"), [(0, 0.1), (50, 0.55), (100, 1.0)])
def test_linear_warm_up(step, factor):  # research/methods.md §E
    schedule = Schedule(warmup_epochs=10, warmup="linear", warmup_ratio=0.1)
    assert lr_factor(schedule, step, 1000, 10) == pytest.approx(factor)


def test_constant_warm_up_and_decay():
    schedule = Schedule(warmup_epochs=5, warmup="constant", warmup_ratio=0.1, power=0.9)
    assert [lr_factor(schedule, s, 100, 10) for s in (0, 49)] == [0.1, 0.1]
    assert lr_factor(schedule, 75, 100, 10) == pytest.approx(0.5**0.9)
    assert lr_factor(schedule, 100, 100, 10) == 0.0
    assert lr_factor(Schedule(name="cosine"), 50, 100, 10) == pytest.approx(0.5)
    assert lr_factor(Schedule(name="constant", warmup_steps=4, warmup="linear"), 4, 100, 10) == 1.0


def test_a_checkpoint_of_another_architecture_is_refused(tiny_study, tmp_path):
    warm = Warm("cpu", World())
    folder = run(tiny_study, tmp_path / "a", warm=warm)
    stored = weights(folder)
    wider = warm.slot(tiny_study.with_values({"model.lora.rank": 4}), folder).method
    with pytest.raises(UserError, match=r"another architecture.*found \("):
        load_weights(wider, stored, folder.path)
    plain = warm.slot(tiny_study.with_values({"method.name": "plain"}), folder).method
    with pytest.raises(UserError, match=r"proxies.*unknown tensor"):
        load_weights(plain, stored, folder.path)


def test_done_marks_and_reports_survive_anything(tmp_path):
    folder = TrialFolder(tmp_path / "t")
    folder.create({"id": "x"}, "name: a")
    assert folder.mark_done("finished") and not folder.mark_done("stopped")
    assert folder.done()["state"] == "finished"
    folder.append(Report(1, {"a": 1.0}))
    with open(folder.path / "reports.jsonl", "a") as file:
        file.write('{"epoch"')
    folder.append(Report(2, {"a": math.nan}))
    assert [r.epoch for r in folder.reports()] == [1, 2]
    (folder.path / "reports.jsonl").write_text("nonsense\n")
    with pytest.raises(UserError, match=r"reports.jsonl:1: not a report"):
        folder.reports()


def test_the_last_epoch_decides_where_the_objective_says_so():
    reports = [Report(1, {"m": 0.5}), Report(2, {"m": 0.9}), Report(3, {"m": 0.9}), Report(4, {"m": 0.1})]

    def decided(objective: Objective) -> int:
        return deciding_report(reports, objective).epoch

    assert decided(Objective("m", "max")) == 2 and decided(Objective("m", "min")) == 4
    assert decided(Objective("m", "max", "last")) == 4
    assert deciding_report([Report(1, {"m": math.nan})], Objective("m", "max")) is None


def test_json_has_no_nan():
    assert json.loads(json_text({"a": [math.nan, 1.0], "b": {"c": math.inf}})) == {"a": [None, 1.0], "b": {"c": None}}
