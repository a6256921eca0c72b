"""What is kept and said of packs: `packing.json`, the sentence of `mmsweep show`, the dry run, the progress lines."""

from __future__ import annotations

import pytest

from mmsweep.assembly.plan import dry_run
from mmsweep.errors import UserError
from mmsweep.record.objective import Objective
from mmsweep.record.packing import FILE, Capacity, MeasuredCapacities, PackEpoch, Packing
from mmsweep.sweep.progress import Progress


def epoch(width, seconds=1.0, *, slots=4, tail=False, kind="trial"):
    return PackEpoch("host-0", "p", kind, 0.0, seconds, width, slots, tail)


def test_the_mean_is_over_time_and_ends_where_the_tail_begins():
    packing = Packing([], [epoch(4, 3.0), epoch(2, 1.0), epoch(1, 9.0, tail=True), epoch(3, 9.0, kind="final")])
    assert packing.width() == (3.5, 4.0)
    assert packing.sentence() == "3.5 of 4 slots were occupied on average while trials were pending"


def test_what_else_is_said():
    assert Packing().sentence() is None
    assert Packing([], [epoch(1, slots=1)]).sentence() is None
    reason = "2 are only 1.02 times as fast as 1"
    found = [Capacity("p", "cpu", 1, reason), Capacity("p", "cpu", 1, reason), Capacity("p", "cpu", 2, "no room")]
    assert Packing(found, [epoch(1, slots=1)]).sentence() == f"one slot a host: {reason}"
    at_once = Packing([], [epoch(3, tail=True), epoch(1, tail=True)])
    assert "up to 3 in 4 slots" in str(at_once.sentence())


def test_seconds_of_a_pack_pass_once():
    assert Packing().shared() == 1.0
    packing = Packing([], [epoch(4, 3.0), epoch(1, 4.0, tail=True), epoch(3, 9.0, kind="final")])
    assert packing.shared() == (3.0 + 4.0) / (4 * 3.0 + 1 * 4.0)


def test_the_file_gives_back_what_was_written(tmp_path):
    assert Packing.load(tmp_path) == Packing()
    packing = Packing([Capacity("p", "cpu", 4, "no room for 8")], [epoch(4)])
    (tmp_path / FILE).write_text(packing.text())
    assert Packing.load(tmp_path) == packing
    (tmp_path / FILE).write_text(packing.text()[:-9])
    with pytest.raises(UserError, match=r"packing.json: not what mmsweep wrote.*may be deleted"):
        Packing.load(tmp_path)


def test_a_measured_count_is_known_on_the_same_machine_and_where_it_says_enough(tmp_path):
    here, found = {"cpu": "EPYC", "torch": "2.15"}, Capacity("p", "cpu", 2, "4 are only 0.8 times as fast as 2", most=9)
    measured = MeasuredCapacities(tmp_path, here)
    assert measured.get("p", "cpu", 9) is None
    measured.put(found)
    again = MeasuredCapacities(tmp_path, dict(here))
    assert again.get("p", "cpu", 9) == again.get("p", "cpu", 64) == found
    assert again.get("q", "cpu", 9) is again.get("p", "gpu", 9) is None
    assert MeasuredCapacities(tmp_path, here | {"torch": "2.16"}).get("p", "cpu", 9) is None
    measured.put(Capacity("p", "cpu", 2, "no more than 2 were asked for", most=2))
    assert again.get("p", "cpu", 2) and again.get("p", "cpu", 9) is None
    measured.forget("p", "cpu")
    measured.forget("p", "cpu")
    assert again.get("p", "cpu", 2) is None


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff", b'{"machine": {}, "capacity": {"slots": 0}}'])
def test_a_damaged_count_is_ignored_and_written_anew(content, tmp_path):
    measured, found = MeasuredCapacities(tmp_path, {"cpu": "EPYC"}), Capacity("p", "cpu", 4, "no room for 8")
    measured.put(found)
    (path,) = (tmp_path / "slots").iterdir()
    foreign = path.read_text().replace("EPYC", "Xeon"), path.read_text().replace('"slots": 4', '"slots": -4')
    for text in [content, *map(str.encode, foreign)]:
        path.write_bytes(text)
        assert measured.get("p", "cpu", 64) is None
    measured.put(found)
    assert measured.get("p", "cpu", 64) == found
    (tmp_path / "slots" / "file").touch()  # where a cache cannot be written, nothing rests on it
    MeasuredCapacities(tmp_path / "slots" / "file", {}).put(found)


def test_a_dry_run_says_how_slots_are_found(tiny_study):
    assert dry_run(tiny_study)["slots"]["asked"] == "auto" and "measures" in dry_run(tiny_study)["slots"]["reason"]
    assert dry_run(tiny_study.with_values({"resources.slots": 6}))["slots"] == {"asked": 6, "reason": None}
    whole = tiny_study.with_values({"model.encoders.text.trainable": True, "resources.slots": 6})
    assert dry_run(whole)["slots"]["asked"] == 1 and "cannot share it" in dry_run(whole)["slots"]["reason"]


@pytest.mark.parametrize("slots", [0, 65, 2.5, "lots", None, True])
def test_numbers_of_slots_that_there_are_not(slots, tiny_study):
    with pytest.raises(
        UserError, match=f"resources.slots: no such number of slots; found {slots!r}.* auto, or 1 to 64"
    ):
        tiny_study.with_values({"resources.slots": slots})


def test_progress_says_slots_and_reasons_once(capsys):
    progress = Progress("s", 4, Objective("val/x", "max"), live=False)
    for _ in range(2):
        progress.slots({"host-0": 4, "host-1": 4})
        progress.reasons(["the backbone is trained"])
    progress.slots({"host-0": 4, "host-1": 2})
    told = [line.split("s] ")[1] for line in capsys.readouterr().err.splitlines()]
    assert told == ["2 hosts, 4 slots each", "one slot a host: the backbone is trained",
                    "host-0: 4 slots, host-1: 2 slots"]  # fmt: skip
