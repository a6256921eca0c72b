"""The board's rules for packs, without Ray: who joins whom, who waits for whom, and whom a crash blames."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

from mmsweep.record.packing import Capacity
from mmsweep.sweep import board as module
from mmsweep.sweep.board import Board
from tests.unit.test_board import report, request, run, taken


async def open_board(*ids: str, hosts: str = "h", slots: int = 4, judged: bool = True, pack: str = "a") -> Any:
    """A board with requests and hosts that have so many slots; their tokens."""
    board = Board()
    tokens = {}
    for host in hosts:
        tokens[host] = await board.register(host)
        await board.capacity(host, tokens[host], Capacity(pack, "cpu", slots))
    for id in ids:
        await board.submit(request(id, pack, judged=judged), [], False)
    return (board, *tokens.values())


async def joined(board: Board, token: int, have: str, free: int, seconds: float = 0.01, host: str = "h") -> list[str]:
    return [p.id for p in await board.fill(host, token, list(have), free, seconds)]


def reports(epoch: int, ids: str) -> dict[str, dict[str, Any]]:
    return {id: report(epoch) | {"seconds": 2.0} for id in ids}


def test_a_pack_fills_in_order_and_a_lost_answer_is_given_again() -> None:
    async def scene() -> None:
        board, token = await open_board(*"01234")
        assert await taken(board, token) == "0"
        assert await joined(board, token, "0", 2) == ["1", "2"]
        assert await joined(board, token, "0", 2) == ["1", "2"]  # the host asks again: it never got the answer
        assert await joined(board, token, "012", 0) == []
        await board.over("h", token, "1")
        assert await joined(board, token, "02", 1) == ["3"]
        assert await taken(board, token) == "0"  # what a host that lost all memory of its pack would hear

    run(scene())


def test_a_pack_waits_for_no_more_than_can_come() -> None:
    async def scene() -> None:
        board, token = await open_board("0")
        await taken(board, token)
        asked = asyncio.create_task(joined(board, token, "0", 3, seconds=10))
        for id in "123":
            await asyncio.sleep(0.01)
            assert not asked.done()
            await board.submit(request(id), [], False)
        assert await asked == ["1", "2", "3"]  # as soon as all slots are full
        await board.over("h", token, "3")
        asked = asyncio.create_task(joined(board, token, "012", 1, seconds=10))
        await asyncio.sleep(0.01)
        await board.expect(False)
        assert await asked == []  # the driver has no more

    run(scene())


def test_nobody_waits_for_trials_that_the_driver_may_not_give() -> None:
    """As many are open as there are slots: those in between are of another kind."""

    async def scene() -> None:
        board, token = await open_board("0", slots=2)
        await taken(board, token)
        await board.submit(request("other", "b"), [], False)
        asked = asyncio.create_task(joined(board, token, "0", 1, seconds=1000))
        for _ in range(100):
            await asyncio.sleep(0)
        assert asked.done() and await asked == []

    run(scene())


def test_a_pack_drains_for_one_that_was_passed_over_too_often() -> None:
    async def scene() -> None:
        board, token = await open_board("0", "1", slots=2)
        assert await taken(board, token) == "0" and await joined(board, token, "0", 1) == ["1"]
        await board.submit(request("other", "b"), [], False)
        running = 1
        for n in range(2, 2 + module.MAX_SKIPS):
            await board.submit(request(str(n)), [], False)
            await board.over("h", token, str(running))
            assert await joined(board, token, "0", 1) == [str(n)]
            running = n
        await board.submit(request("late"), [], False)
        await board.over("h", token, str(running))
        assert await joined(board, token, "0", 1) == []
        await board.over("h", token, "0")
        assert await taken(board, token) == "other"
        assert await joined(board, token, ["other"], 1) == []  # of another pack
        await board.over("h", token, "other")
        assert await taken(board, token) == "late"

    run(scene())


def test_hosts_share_what_waits() -> None:
    async def scene() -> None:
        board, first, second = await open_board("0", "1", hosts="hi")
        assert await taken(board, first) == "0" and await taken(board, second, host="i") == "1"
        wanted = [asyncio.create_task(joined(board, t, h, 3, 0.2, host)) for t, h, host in
                  ((first, "0", "h"), (second, "1", "i"))]  # fmt: skip
        await asyncio.sleep(0.01)
        for id in "2345":
            await board.submit(request(id), [], False)
        assert sorted(map(len, await asyncio.gather(*wanted))) == [2, 2]

    run(scene())


def test_three_finals_on_two_hosts_take_one_round() -> None:
    """A host that asks again and again for its first gets one, also between two of its calls."""

    async def scene() -> None:
        board, first, second = await open_board(hosts="hi", slots=4)
        assert await taken(board, first) == await taken(board, second, host="i") == "idle"
        for id in "012":
            await board.submit(request(id), [], False)
        await board.expect(False)
        assert await taken(board, first) == "0" and await joined(board, first, "0", 3) == ["1"]
        assert await taken(board, second, host="i") == "2" and await joined(board, second, "2", 3, host="i") == []

    run(scene())


def test_a_report_of_a_pack_waits_for_all_judgements_at_once() -> None:
    async def scene() -> None:
        board, token = await open_board(*"012")
        await taken(board, token)
        await joined(board, token, "0", 2)
        asked = asyncio.create_task(board.report("h", token, reports(1, "012")))
        await asyncio.sleep(0.02)
        for id in "012":  # each can be judged before the others are
            assert (await board.follow(id, 0, 0.01))[0][0]["epoch"] == 1
        await board.judged("2", 1)
        await board.stop("0")
        await asyncio.sleep(0.02)
        assert not asked.done()
        await board.judged("1", 1)
        assert await asked == {"0": True, "1": False, "2": False}
        await board.over("h", token, "0")
        again = asyncio.create_task(board.report("h", token, reports(1, "12")))  # repeated
        assert await again == {"1": False, "2": False}
        assert await board.report("h", token, reports(3, "12")) == {"1": False, "2": False}  # their last epoch

    run(scene())


def test_a_killed_host_gives_all_its_trials_back_in_order() -> None:
    async def scene() -> None:
        board, token = await open_board(*"0123", judged=False)
        await taken(board, token)
        await joined(board, token, "0", 2)
        await board.stop("1")
        await board.over("h", token, "0")
        token = await board.register("h")
        assert (await board.outcome("1"))["state"] == "over"  # stopped: not given out again
        assert await taken(board, token, None) == "2"
        assert await joined(board, token, "2", 3) == ["3"]

    run(scene())


def test_a_trial_that_kills_its_host_takes_no_neighbour_with_it() -> None:
    async def scene() -> None:
        board, token = await open_board(*"012", judged=False)
        packs = []
        while (first := await taken(board, token, None)) != "idle":
            pack = [first, *await joined(board, token, first, 4)]
            packs.append(pack)
            if "1" in pack:  # the culprit
                await board.failed("h", "out of memory")
                token = await board.register("h")
                await board.capacity("h", token, Capacity("a", "cpu", 4))
                continue
            await board.report("h", token, reports(1, "".join(pack)))
            pack += await joined(board, token, "".join(pack), 4)  # it may have neighbours again, not the suspects
            for id in pack:
                await board.over("h", token, id)
        assert packs == [["0", "1", "2"], ["0", "1", "2"], ["0"], ["1"], ["2"]]
        outcomes = {id: (await board.outcome(id))["error"] for id in "012"}
        assert outcomes["0"] is None and outcomes["2"] is None and "out of memory" in outcomes["1"]

    run(scene())


def test_a_pack_that_broke_off_goes_on_one_by_one_where_one_may_be_to_blame() -> None:
    async def scene() -> None:
        board, token = await open_board(*"012", judged=False)
        await taken(board, token)
        await joined(board, token, "0", 2)
        await board.requeue("h", token, list("012"), False)
        await board.requeue("h", token, list("012"), False)  # repeated
        assert await taken(board, token) == "0" and await joined(board, token, "0", 2) == ["1", "2"]
        await board.requeue("h", token, list("012"), True)
        assert await taken(board, token) == "0" and await joined(board, token, "0", 2) == []
        await board.report("h", token, reports(1, "0"))  # it was none of its doing
        await board.submit(request("3"), [], False)
        assert await joined(board, token, "0", 2) == ["3"]

    run(scene())


def test_a_host_that_dies_measuring_is_not_the_trials_doing() -> None:
    async def scene() -> None:
        board = Board()
        token = await board.register("h")
        assert (await board.status())["slots"] == {}
        await board.submit(request("0"), [], False)
        for n in range(module.MAX_CRASHES):
            await taken(board, token)
            await board.probing("h", token, Capacity("a", "cpu", 8, "died at 16"))
            assert await board.known_capacity("h", token, "a", "cpu", 64) is None or n > 1
            token = await board.register("h")
        assert await taken(board, token) == "0"
        assert await board.known_capacity("h", token, "a", "cpu", 64) == Capacity("a", "cpu", 8, "died at 16")
        assert await board.known_capacity("h", token, "a", "gpu", 64) is None
        await board.capacity("h", token, Capacity("a", "cpu", 4, "the memory did not suffice for more"))
        known = await board.known_capacity("h", token, "a", "cpu", 64)
        assert known and known.slots == 4 and (await board.status())["slots"] == {"h": 4}

    run(scene())


def test_how_full_packs_were_is_written_down_while_trials_waited() -> None:
    async def scene() -> None:
        board, token = await open_board(*"0123", judged=False)
        await taken(board, token)
        await joined(board, token, "0", 3)
        await board.report("h", token, reports(1, "0123"))
        await board.report("h", token, reports(1, "0123"))  # repeated: counted once
        await board.report("h", token, reports(2, "01"))
        await board.expect(False)
        await board.submit(request("4"), [], False)
        await board.report("h", token, reports(3, "01"))  # one waits still
        await board.stop("4")
        await board.report("h", token, reports(4, "0"))
        packing = await board.packing()
        assert [(e.width, e.slots, e.tail) for e in packing.epochs] == [
            (4, 4, False), (2, 4, False), (2, 4, False), (1, 4, True)]  # fmt: skip
        assert packing.sentence() == "2.7 of 4 slots were occupied on average while trials were pending"

    run(scene())


def test_a_board_starts_without_torch() -> None:
    """It is waited for at every sweep's start; torch would take seconds and half a gigabyte."""
    found = subprocess.run([sys.executable, "-c", "import sys, mmsweep.sweep.board; print('torch' in sys.modules)"],
                           capture_output=True, text=True, check=True)  # fmt: skip
    assert found.stdout.strip() == "False"


def test_a_repeated_requeue_takes_nothing_from_another_host() -> None:
    async def scene() -> None:
        board, first, second = await open_board("0", "1", hosts="hi")
        assert await taken(board, first) == "0" and await joined(board, first, "0", 1) == ["1"]
        await board.requeue("h", first, ["0", "1"], True)
        assert await taken(board, second, host="i") == "0"
        await board.requeue("h", first, ["0", "1"], True)  # another rank says the same, later
        assert await taken(board, first) == "1" and await taken(board, second, host="i") == "0"
        assert not board._queue

    run(scene())


def test_what_little_use_ended_is_measured_again_where_there_is_more() -> None:
    """A sweep of two trials that is extended; the memory's word holds for any number."""

    async def scene() -> None:
        board, token = await open_board("0")
        await board.capacity("h", token, Capacity("a", "else", 2, most=2))
        assert await board.known_capacity("h", token, "a", "else", 2)
        assert await board.known_capacity("h", token, "a", "else", 16) is None
        await board.capacity("h", token, Capacity("a", "else", 4, "no room for 8", most=16))
        known = await board.known_capacity("h", token, "a", "else", 64)
        assert known and known.slots == 4

    run(scene())
