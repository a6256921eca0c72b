"""How many slots a host has: doubled while that pays and fits, and found without touching a trial."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from mmsweep.assembly.host import Warm
from mmsweep.record.trial import TrialFolder
from mmsweep.study.packs import Job
from mmsweep.training import capacity
from mmsweep.training.capacity import measure
from mmsweep.training.world import World

pytestmark = pytest.mark.long

CPU = torch.device("cpu")


class Bench:
    """A clock that steps move by what they cost, and a memory of so many slots."""

    def __init__(self, monkeypatch, cost, room=10**6):
        self.now, self.tried, self.cost, self.room = 0.0, [], cost, room
        self.size = 0
        monkeypatch.setattr(capacity, "time", SimpleNamespace(perf_counter=lambda: self.now))
        monkeypatch.setattr(capacity._Memory, "doubles", lambda memory: 2 * self.size <= self.room)

    def steps(self, slots):
        self.tried.append(slots)
        self.size = slots
        while True:
            self.now += self.cost(slots)
            yield


def test_doubling_ends_where_it_pays_no_more(monkeypatch):
    bench = Bench(monkeypatch, lambda s: 0.1 + 0.05 * s)  # 15, 20, 30, 50, 90, 170 … ms for 1, 2, 4 … slots
    reached = []
    slots, reason = measure(bench.steps, 64, CPU, reached=reached.append)
    rates = {s: s / bench.cost(s) for s in (1, 2, 4, 8, 16, 32, 64)}
    best = next(s for s in rates if rates.get(2 * s, 0) < 1.1 * rates[s])
    assert slots == best == 16 and "32 are only 1.0" in reason
    assert bench.tried == [1, 2, 1, 4, 2, 8, 4, 16, 8, 32]  # a gain is believed when the smaller pack is as slow again
    assert reached == [0, 1, 2, 4, 8, 16]


def test_a_machine_that_was_busier_at_first_is_no_gain(monkeypatch):
    bench = Bench(monkeypatch, lambda s: 0.1 * s * (2 if len(bench.tried) == 1 else 1))
    assert measure(bench.steps, 64, CPU) == (1, "2 are only 1.00 times as fast as 1")


@pytest.mark.parametrize(("cost", "expected"), [(lambda s: 1.0 * s, 1), (lambda s: 1e-3, 64)])
def test_its_ends(cost, expected, monkeypatch):
    assert measure(Bench(monkeypatch, cost).steps, 64, CPU)[0] == expected


@pytest.mark.parametrize(("cost", "expected"), [(0.125, 4), (0.75, 3), (1.5, 2), (2.5, 1)])
def test_slow_steps_are_timed_less_often(cost, expected, monkeypatch):
    bench = Bench(monkeypatch, lambda slots: cost)
    assert measure(bench.steps, 1, CPU)[0] == 1
    assert bench.now == cost * (1 + expected)  # one before the clock starts


def test_no_more_than_trials_and_room(monkeypatch):
    bench = Bench(monkeypatch, lambda s: 1e-3)
    assert measure(bench.steps, 6, CPU)[0] == 4 and max(bench.tried) == 4
    bench = Bench(monkeypatch, lambda s: 1e-3, room=8)
    slots, reason = measure(bench.steps, 64, CPU)
    assert slots == 8 and "memory would not suffice for 16" in reason and max(bench.tried) == 8


def test_memory_that_ends_ends_the_doubling(monkeypatch):
    def cost(slots):
        if slots > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 1e-3

    slots, reason = measure(Bench(monkeypatch, cost).steps, 64, CPU)
    assert slots == 4 and "memory does not suffice for 8" in reason
    with pytest.raises(torch.OutOfMemoryError):  # not even one
        measure(Bench(monkeypatch, lambda s: cost(9)).steps, 64, CPU)
    with pytest.raises(torch.OutOfMemoryError):  # other ranks wait: their group starts anew
        measure(Bench(monkeypatch, cost).steps, 64, CPU, ranks=2)


def test_a_machines_memory_can_be_read():
    memory = capacity._Memory(CPU)
    before = capacity._peak()
    kept = torch.ones(30_000_000)
    assert capacity._peak() > before and capacity._available() > 0 and kept.numel()
    assert memory.left > 0 and memory.doubles()
    memory.left = 1
    assert not memory.doubles()


@pytest.fixture()
def job(tiny_study, tmp_path):
    def make(**changes):
        study = tiny_study.with_values({key.replace("__", "."): value for key, value in changes.items()})
        folder = TrialFolder(tmp_path / "trials" / f"{len(list(tmp_path.glob('trials/*'))):04d}")
        folder.create({"id": folder.path.name, "params": {}}, study.to_yaml())
        return Job(folder.path.name, "trial", str(folder.path), study)

    return make


def test_measuring_touches_nothing_of_the_trial(job, tmp_path, monkeypatch):
    """Neither its folder nor a random number of it: it trains to the same metrics afterwards."""
    monkeypatch.setattr(capacity, "SECONDS", 0.05)
    first, second = job(resources__slots="auto"), job()
    warm, before = Warm("cpu", World()), sorted(tmp_path.rglob("*"))
    state, sizes = torch.get_rng_state(), []
    slots, reason = warm.slots_for(first, 8, reached=sizes.append)
    assert slots in (1, 2, 4, 8, 16, 32, 64) and reason and sizes[:2] == [0, 1]
    assert sorted(tmp_path.rglob("*")) == before and torch.equal(torch.get_rng_state(), state)
    warm.run(first, lambda record: False)
    Warm("cpu", World()).run(second, lambda record: False)
    assert [r.metrics for r in TrialFolder(first.folder).reports()] == [
        r.metrics for r in TrialFolder(second.folder).reports()
    ]


def test_what_is_asked_for_is_taken_and_a_trained_backbone_has_one_slot(job):
    warm = Warm("cpu", World())
    assert warm.slots_for(job(resources__slots=5), 8) == (5, None)
    slots, reason = warm.slots_for(job(resources__slots=5, model__encoders__text__trainable=True), 8)
    assert slots == 1 and "trials cannot share it" in str(reason)


def test_ranks_take_equally_many_steps_though_their_clocks_differ(monkeypatch):
    """Each step is a collective: rank 0's clock decides for all."""
    taken, words = [], []
    for tick in (0.3, 0.9):  # rank 0, then a rank whose clock runs faster
        bench = Bench(monkeypatch, lambda s, tick=tick: tick)
        told = iter(words)

        def agree(word, told=told, leads=not taken):
            return words.append(word) or word if leads else next(told)

        steps = []

        def counted(slots, bench=bench, steps=steps):
            for _ in bench.steps(slots):
                steps.append(slots)
                yield

        measure(counted, 4, CPU, ranks=2, agree=agree)
        taken.append(steps)
    assert taken[0] == taken[1] and len(taken[0]) > 3
