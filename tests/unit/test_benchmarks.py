"""Benchmarks measure what they say: the same trials, the engine's own steps, the same model outside, whole accounts."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import mmimdb_full
import pack_fill
import peft_reference
import sweep_overhead
import trials_per_hour
from outside import Ran
from pack_steps import PackSteps, product_rate, seconds_of, slot_studies
from ran_on import Machine, device_of, in_words, table
from sizes import study_file

from mmsweep.assembly.host import Warm
from mmsweep.data.options import DATASETS
from mmsweep.record.packing import PackEpoch
from mmsweep.study import Study
from mmsweep.study.space import starting_points
from mmsweep.training.world import World


@pytest.fixture()
def warm():
    return Warm("cpu", World())


def test_a_packs_steps_are_its_trials_own(warm, tiny_study):
    studies = slot_studies(tiny_study, 3)
    pack, ones = PackSteps(warm, studies), [PackSteps(warm, [study]) for study in studies]
    assert pack.rows == 3 * ones[0].rows == 24
    for _ in range(4):  # over the end of an epoch: 30 rows in batches of 8
        losses_SK = pack.step()
        assert torch.equal(losses_SK, torch.cat([one.step() for one in ones]))
    assert len(set(losses_SK[:, 0].tolist())) == 3
    before = ones[0].next_rows()
    batch = ones[0].batch()
    assert batch.index.tolist() == before.tolist()
    assert pack.batch().target.shape == (24,)


def test_the_reference_is_the_same_model(warm, tiny_study):
    study = tiny_study.with_values(peft_reference.PLAIN)
    losses = peft_reference.check(warm, study, 5)
    assert losses == [pytest.approx((ours, ours), rel=1e-5) for ours, _ in losses]
    assert len({ours for ours, _ in losses}) == 5
    other = study.with_values({"train.optimizer.lr": 1e-4})
    assert abs(peft_reference.check(warm, other, 5)[-1][1] - losses[-1][1]) > 1e-3  # what agrees does depend on values
    reference = peft_reference.make_reference(warm, study, 0)
    assert all(torch.isfinite(reference.step()) for _ in range(5))  # its own loader, with dropout


def test_trials_are_points_of_the_space_each_once(tiny_study, tmp_path):
    study = Study.load(study_file("quickstart", tmp_path))
    points = trials_per_hour.draw_points(study, 12)
    assert points == trials_per_hour.draw_points(study, 12)
    assert points[0] == {key: study.value(key) for key in study.search}
    assert len({str(point) for point in points}) == 12
    given = study.with_values({"sweep.start_from": points, "sweep.trials": len(points)})
    assert starting_points(given) == points  # none lies outside
    folders = trials_per_hour.lay_out(study, points, tmp_path)
    assert Study.load(folders[3] / "study.yaml").resolved() == study.with_values(points[3]).resolved()


def test_variants_that_trained_something_else_are_found_out():
    epoch = {"val/complete/accuracy": 0.5, "train/loss": 1.0, "train/lr": 0.1}
    same = [[epoch, epoch], [epoch]]
    assert trials_per_hour.in_words(trials_per_hour.difference(same, same)) == "equal"
    near = [[epoch, epoch | {"val/complete/accuracy": 0.49}], [epoch]]
    assert trials_per_hour.in_words(trials_per_hour.difference(same, near)) == "within 1.0e-02 (loss 0.0e+00)"
    for other in ([[epoch], [epoch]], [[epoch, epoch]], [[epoch, {}], [epoch]]):
        assert not trials_per_hour.difference(same, other)["same_epochs"]


def test_what_needs_a_gpu_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="needs a GPU"):
        device_of("cuda")
    options = argparse.Namespace(variants=None, slots=["2"], device="cpu")
    assert trials_per_hour.chosen(options) == ["packed-2", "warm", "process", "torchtrainer", "guide"]
    assert "fractional (it needs --device cuda)" in capsys.readouterr().err
    options.variants = ["warm", "fractional"]
    with pytest.raises(SystemExit, match="--variants fractional"):
        trials_per_hour.chosen(options)


def epoch(host, ended, seconds, width=1, slots=1, tail=False):
    return PackEpoch(host, "p", "trial", ended, seconds, width, slots, tail)


def test_a_sweeps_wall_is_accounted_for():
    """Two hosts from second 100 to 150: one trains 20 s of it, the other 10 s."""
    epochs = [epoch("a", 120, 10), epoch("b", 122, 10), epoch("a", 131, 10)]
    parts = sweep_overhead.parts_of(epochs, Ran(100.0, 50.0))
    assert sum(parts[name] for name in sweep_overhead.PARTS) == pytest.approx(1)
    assert parts["hosts"] == 2 and parts["gaps"] == [1]
    assert parts["epochs"] == pytest.approx(30 / 100)
    assert parts["start"] == pytest.approx((10 + 12) / 100)
    assert parts["between"] == pytest.approx(1 / 100)
    assert parts["waiting"] == pytest.approx(9 / 100)
    assert parts["end"] == pytest.approx(2 * 19 / 100)
    assert parts["overhead"] == pytest.approx(61 / 91)
    assert parts["over_epochs"] == pytest.approx(100 / 30)


def test_filling_counts_seconds():
    epochs = [epoch("a", 10, 3.0, width=4, slots=4), epoch("a", 11, 1.0, width=2, slots=4)]
    assert pack_fill.filled(epochs) == {"epochs": 2, "seconds": 4, "width": 3.5, "slots": 4, "share": 3.5 / 4}
    assert pack_fill.filled([]) is None


def test_times_and_rates_are_of_one_call():
    calls = []
    assert len(seconds_of(lambda: calls.append(1), torch.device("cpu"), 0.0, 3)) == 3
    assert len(calls) == 1 + 3
    assert product_rate(torch.device("cpu"), "fp32", [64]) > 0


def test_a_page_says_what_it_ran_on():
    facts = Machine().facts(threads=1)
    assert f"{facts['cores']} cores" in in_words(facts) and "load average" in in_words(facts)
    assert table(["a", "b"], [[1, None]]) == ["| a | b |", "| --- | --- |", "| 1 |  |"]


@pytest.mark.parametrize("layout", ["folder", "tar", "tar.gz"])
def test_an_invented_mmimdb_is_whole(layout, tmp_path):
    lists = {"train": ["0000007", "0000003"], "dev": ["0000001"], "test": ["0000009"]}
    (tmp_path / "split.json").write_text(json.dumps({name: [*ids, "0000010"] for name, ids in lists.items()}))
    assert mmimdb_full.chosen(tmp_path / "split.json", 4) == {**lists, "train": lists["train"]}
    root = mmimdb_full.generate(tmp_path, lists, layout)
    builder = DATASETS["mmimdb"](DATASETS.options("mmimdb", root=str(root)))
    found = {name: [row.id for row in rows] for name, rows in builder.splits().items()}
    assert found == {"train": lists["train"], "val": lists["dev"], "test": lists["test"]} and not builder.bad_rows
    assert all(row.values["text"] and row.target for rows in builder.splits().values() for row in rows)


def test_memory_that_no_file_backs_is_counted():
    before = mmimdb_full.anonymous_bytes()
    block = np.ones(2**23)
    assert 0.9 * block.nbytes < mmimdb_full.anonymous_bytes() - before < 1.5 * block.nbytes
