"""A host's loop with the real board and real training, without Ray: packs fill, and what breaks is the trial's own."""

from __future__ import annotations

import asyncio
import errno
import resource
import signal
import threading
import time
from types import SimpleNamespace

import pytest
import ray
import torch

from mmsweep.assembly.host import Warm
from mmsweep.record.trial import TrialFolder
from mmsweep.study.packs import Job, pack_key, warm_key
from mmsweep.sweep import worker
from mmsweep.sweep.board import Board, Request
from mmsweep.sweep.place import Place
from mmsweep.training import slot as trial_slot
from mmsweep.training.world import World

pytestmark = pytest.mark.long


class Handle:
    """The board as an actor's handle: it lives in a loop of its own, and `ray.get` has nothing left to wait for."""

    def __init__(self):
        self.board, self.loop = Board(), asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    def __getattr__(self, name):
        method = getattr(self.board, name)
        call = lambda *a: asyncio.run_coroutine_threadsafe(method(*a), self.loop).result(60)  # noqa: E731
        return SimpleNamespace(remote=call)


@pytest.fixture()
def board(monkeypatch):
    context = SimpleNamespace(get_placement_group_id=lambda: "group")
    stand_in = SimpleNamespace(
        get=lambda x: x, exceptions=ray.exceptions, get_runtime_context=lambda: context, is_initialized=lambda: True
    )
    monkeypatch.setattr(worker, "ray", stand_in)
    handle = Handle()
    yield handle
    handle.loop.call_soon_threadsafe(handle.loop.stop)


@pytest.fixture()
def studies(tiny_study):
    base = tiny_study.with_values({"train.epochs": 3, "resources.slots": 3})
    return [base.with_values({"train.seed": n, "train.optimizer.lr": 0.002 * (n + 1)}) for n in range(5)]


def post(board, studies, path, kind="trial", judged=True):
    """Post trials, and judge them as a scheduler would that stops none; their folders."""
    folders = []
    for n, study in enumerate(studies):
        folder = TrialFolder(path / f"{n:04d}")
        folder.create({"id": folder.path.name, "params": {}}, study.to_yaml())
        request = Request(folder.path.name, kind, str(folder.path), study.resolved(), warm_key(study), pack_key(study),
                          len(studies), study.train.epochs, (1, 2) if judged else ())  # fmt: skip
        board.submit.remote(request, [], False)
        folders.append(folder)
    board.expect.remote(False)
    return folders


def serve(board, folders):
    """One host trains until all are over."""

    def drive(folder):
        last, over, reports = 0, False, []
        while not over or reports:
            reports, over = board.follow.remote(folder.path.name, last, 1.0)
            for report in reports:
                last = report["epoch"]
                board.judged.remote(folder.path.name, last)

    def close():
        for follower in followers:
            follower.join()
        board.close.remote()

    followers = [threading.Thread(target=drive, args=(folder,), daemon=True) for folder in folders]
    for thread in (*followers, threading.Thread(target=close, daemon=True)):
        thread.start()
    place = Place(board, "host-0", "mmsweep.assembly.host:Warm", 1, 0, "")
    worker._Host(place, World()).run()


def widths(board):
    return [epoch.width for epoch in board.packing.remote().epochs]


def errors(folders):
    return {folder.path.name: (folder.done() or {}).get("error") for folder in folders}


def test_what_a_trial_computes_does_not_depend_on_the_slots(board, studies, tmp_path):
    folders = post(board, studies, tmp_path / "packed")
    serve(board, folders)
    assert widths(board) == [3, 3, 3, 2, 2, 2]
    for n, study in enumerate(studies):
        single = TrialFolder(tmp_path / "single" / str(n))
        single.create({"id": str(n), "params": {}}, study.to_yaml())
        Warm("cpu", World()).run(Job(str(n), "trial", str(single.path), study), lambda record: False)
        assert [r.metrics for r in folders[n].reports()] == [r.metrics for r in single.reports()]
        assert (folders[n].done() or {})["state"] == "finished"


def test_slots_that_become_free_are_filled_at_the_next_epoch(board, studies, tmp_path):
    folders = post(board, studies, tmp_path)
    board.stop.remote("0001")
    stop = board.board.report

    async def report(name, token, reports):
        if "0002" in reports:
            await board.board.stop("0002")  # after its first epoch
        return await stop(name, token, reports)

    board.board.report = report
    serve(board, folders)
    assert widths(board) == [3, 3, 3, 1] and [len(f.reports()) for f in folders] == [3, 0, 1, 3, 3]


def test_an_objective_that_one_lacks_ends_that_one(board, studies, tmp_path):
    studies[1] = studies[1].with_values({"sweep.objective": {"metric": "val/complete/rmse", "mode": "min"}})
    better = Warm.slot
    folders = post(board, studies[:3], tmp_path)
    with pytest.MonkeyPatch.context() as patch:  # which metric is better is not asked here, but by the driver's check
        patch.setattr(Warm, "slot", lambda self, study, folder: _indifferent(better(self, study, folder)))
        serve(board, folders)
    found = errors(folders)
    assert "no such metric" in str(found["0001"]) and found["0000"] is None and found["0002"] is None
    assert [(f.done() or {})["state"] for f in folders] == ["finished", "failed", "finished"]


def _indifferent(slot):
    slot.better = lambda new, best: False
    return slot


@pytest.mark.parametrize("where", ["joining", "training"])
def test_an_exception_of_one_fails_that_one(where, board, studies, tmp_path, monkeypatch):
    """The pack breaks off, since nobody knows whose it was; each goes on alone until it is cleared."""
    slot, draw = Warm.slot, trial_slot.Member.draw

    def joins(self, study, folder):
        if study.train.seed == 1 and where == "joining":
            raise RuntimeError("it is this one")
        return slot(self, study, folder)

    def draws(member, step):
        if member.slot.train.seed == 1 and member.done == 1:
            raise RuntimeError("it is this one")
        return draw(member, step)

    monkeypatch.setattr(Warm, "slot", joins)
    monkeypatch.setattr(trial_slot.Member, "draw", draws)
    folders = post(board, studies, tmp_path)
    serve(board, folders)
    found = errors(folders)
    assert "RuntimeError: it is this one" in str(found.pop("0001")) and set(found.values()) == {None}
    assert [(f.done() or {})["state"] for f in folders] == ["finished", "failed", *["finished"] * 3]
    assert [len(f.reports()) for f in folders] == [3, 0 if where == "joining" else 1, 3, 3, 3]


def test_memory_that_does_not_suffice_halves_the_slots(board, studies, tmp_path, monkeypatch):
    run_pack, sizes = Warm.run_pack, []

    def tight(self, jobs, report, refill, over):
        sizes.append(len(jobs))
        if len(jobs) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        run_pack(self, jobs, report, refill, over)

    monkeypatch.setattr(Warm, "run_pack", tight)
    folders = post(board, studies, tmp_path)
    serve(board, folders)
    assert sizes[0] == 3 and max(sizes[1:]) == 1 and {(f.done() or {})["state"] for f in folders} == {"finished"}
    capacities = board.packing.remote().capacities
    assert [c.slots for c in capacities] == [3, 1] and "memory" in str(capacities[-1].reason)


def test_finals_of_several_seeds_share_a_pack(board, studies, tmp_path):
    folders = post(board, studies[:3], tmp_path, kind="final", judged=False)
    serve(board, folders)
    assert widths(board) == [3, 3, 3] and all((f.path / "evaluation.json").exists() for f in folders)


def test_slots_are_measured_once_for_all_packs_and_later_sweeps(board, studies, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(worker, "cache_folder", lambda: tmp_path / "cache")

    def slots_for(self, job, most, agree, reached):
        asked.append(job.id)
        reached(1)
        return 2, "4 are only 1.01 times as fast as 2"

    monkeypatch.setattr(Warm, "slots_for", slots_for)
    studies = [study.with_values({"resources.slots": "auto"}) for study in studies]
    serve(board, post(board, studies, tmp_path / "first"))
    assert asked == ["0000"] and max(widths(board)) == 2
    second = Handle()  # another sweep
    serve(second, post(second, studies[:2], tmp_path / "second"))
    assert asked == ["0000"] and max(widths(second)) == 2

    run_pack, failed = Warm.run_pack, []

    def tight(self, jobs, report, refill, over):
        if len(jobs) > 1 and not failed:
            failed.append(len(jobs))
            raise torch.OutOfMemoryError("CUDA out of memory")
        run_pack(self, jobs, report, refill, over)

    monkeypatch.setattr(Warm, "run_pack", tight)
    third, fourth = Handle(), Handle()
    serve(third, post(third, studies[:2], tmp_path / "third"))
    assert asked == ["0000"] and failed == [2] and max(widths(third)) == 1
    serve(fourth, post(fourth, studies[:2], tmp_path / "fourth"))  # that count is measured anew
    assert asked == ["0000", "0000"] and max(widths(fourth)) == 2


def test_a_measurement_that_fails_leaves_one_slot(board, studies, tmp_path, monkeypatch):
    def slots_for(self, job, most, agree, reached):
        reached(0)
        raise RuntimeError("no idea")

    monkeypatch.setattr(Warm, "slots_for", slots_for)
    folders = post(board, studies[:2], tmp_path)
    serve(board, folders)
    assert widths(board) == [1] * 6 and {(f.done() or {})["state"] for f in folders} == {"finished"}
    assert board.packing.remote().capacities == []


def test_a_damaged_folder_fails_its_own_trial(board, studies, tmp_path):
    folders = post(board, studies[:3], tmp_path)
    (folders[1].path / "reports.jsonl").write_text("x\n")
    serve(board, folders)
    assert [(f.done() or {})["state"] for f in folders] == ["finished", "failed", "finished"]
    assert "reports.jsonl" in str(errors(folders)["0001"])


def test_a_device_that_breaks_while_slots_are_counted_fails_no_trial(board, studies, tmp_path, monkeypatch):
    def slots_for(self, job, most, agree, reached):
        reached(4)
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(Warm, "slots_for", slots_for)
    folders = post(board, studies[:2], tmp_path)
    for _ in range(2):  # the worker group starts anew
        with pytest.raises(worker.BrokenDeviceError):
            worker._Host(Place(board, "host-0", "mmsweep.assembly.host:Warm", 1, 0, ""), World()).run()
    serve(board, folders)  # what came through is taken from then on
    assert [(f.done() or {})["state"] for f in folders] == ["finished"] * 2 and max(widths(board)) == 2


def full_disk(member, step):
    """The real thing, without a file system of its own: no file may grow beyond a few bytes from now on."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, resource.RLIM_INFINITY))
    return DRAW(member, step)


def lost_mount(member, step):
    raise OSError(errno.ESTALE, "Stale file handle", str(member.slot.folder.path))


def no_memory(member, step):
    raise MemoryError("Unable to allocate 3 GiB")


DRAW = trial_slot.Member.draw


@pytest.mark.parametrize("fault", [full_disk, lost_mount, no_memory])
@pytest.mark.parametrize("slots", [1, 3])
def test_a_fault_of_the_environment_fails_no_trial(slots, fault, board, studies, tmp_path, monkeypatch):
    """It is told to the driver, and nothing more is given out; resumed, all is as if nothing had happened."""
    studies = [study.with_values({"resources.slots": slots}) for study in studies[:3]]

    def draw(member, step):
        second = member.slot.folder.path.name == "0001" and member.done == 1
        return (fault if second else DRAW)(member, step)

    monkeypatch.setattr(trial_slot.Member, "draw", draw)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    folders = post(board, studies, tmp_path / "struck", judged=False)

    def close():
        while board.status.remote()["outage"] is None:
            time.sleep(0.05)
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        time.sleep(0.5)  # in which the host would take another trial
        board.close.remote()

    threading.Thread(target=close, daemon=True).start()
    try:
        worker._Host(Place(board, "host-0", "mmsweep.assembly.host:Warm", 1, 0, ""), World()).run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    states = [(f.done() or {}).get("state") for f in folders]
    assert states == (["finished", None, None] if slots == 1 else [None] * 3)
    said = {full_disk: "File too large", lost_mount: "Stale file handle", no_memory: "out of memory"}[fault]
    assert said in board.status.remote()["outage"]

    monkeypatch.setattr(trial_slot.Member, "draw", DRAW)
    again = Handle()
    serve(again, post(again, studies, tmp_path / "struck", judged=False))
    fresh = Handle()
    undisturbed = post(fresh, studies, tmp_path / "whole", judged=False)
    serve(fresh, undisturbed)
    assert [(f.done() or {})["state"] for f in folders] == ["finished"] * 3
    for ours, theirs in zip(folders, undisturbed, strict=True):
        assert [r.metrics for r in ours.reports()] == [r.metrics for r in theirs.reports()]
        names = [sorted(p.name for p in f.path.rglob("*") if p.name != ".lock") for f in (ours, theirs)]
        assert names[0] == names[1]  # nothing is left behind
