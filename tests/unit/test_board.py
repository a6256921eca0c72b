"""The board's rules, without Ray: who gets which trial, what survives a host's death, who waits for whom."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from mmsweep.sweep import board as module
from mmsweep.sweep.board import Board, Request, StaleHost


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(coroutine, 20))


def request(id: str, key: str = "a", epochs: int = 3, judged: bool = True) -> Request:
    at = tuple(range(1, epochs)) if judged else ()
    return Request(id, "trial", f"/nowhere/{id}", {}, key, key, 64, epochs, at)


def report(epoch: int) -> dict[str, Any]:
    return {"epoch": epoch, "metrics": {"val/complete/accuracy": epoch / 10}}


async def taken(board: Board, token: int, key: str | None = "a", host: str = "h") -> Any:
    job = await board.next_request(host, token, key, 0.01)
    return job if isinstance(job, str) else job.id


def test_trials_come_in_order_and_a_lost_answer_is_given_again() -> None:
    async def scene() -> None:
        board = Board()
        token = await board.register("h")
        assert await taken(board, token) == "idle"
        await board.submit(request("0"), [], False)
        await board.submit(request("1"), [], False)
        await board.submit(request("0"), [], False)  # repeated: no second entry
        assert await taken(board, token) == "0"
        assert await taken(board, token) == "0"  # the host asks again: it never got the answer
        await board.over("h", token, "0")
        assert await taken(board, token) == "1"
        await board.close()
        await board.over("h", token, "1")
        assert await taken(board, token) == "closed"

    run(scene())


def test_a_host_keeps_its_backbone_but_nobody_starves() -> None:
    async def scene() -> None:
        board = Board()
        token = await board.register("h")
        await board.submit(request("other", key="b"), [], False)
        for n in range(8):
            await board.submit(request(str(n), key="a"), [], False)
        order = []
        for _ in range(9):
            order.append(await taken(board, token))
            await board.over("h", token, order[-1])
        assert order == ["0", "1", "2", "3", "other", "4", "5", "6", "7"]

    run(scene())


def test_a_host_that_starts_anew_gets_its_trial_first_and_the_old_one_is_refused() -> None:
    async def scene() -> None:
        board = Board()
        old = await board.register("h")
        for n in "01":
            await board.submit(request(n, judged=False), [], False)
        assert await taken(board, old) == "0"
        await board.report("h", old, {"0": report(1)})
        new = await board.register("h")
        with pytest.raises(StaleHost):
            await board.report("h", old, {"0": report(2)})
        assert await taken(board, new, None) == "0"
        await board.replay("h", new, "0", [report(1), report(2)])  # the folder was ahead of the board
        assert await board.follow("0", 0, 0.01) == ([report(1), report(2)], False)

    run(scene())


def test_a_report_waits_for_its_judgement_and_the_last_one_for_nobody() -> None:
    async def scene() -> None:
        board = Board()
        token = await board.register("h")
        await board.submit(request("0", epochs=3), [], False)
        await taken(board, token)
        first = asyncio.create_task(board.report("h", token, {"0": report(1)}))
        await asyncio.sleep(0.05)
        assert not first.done()
        await board.judged("0", 1)
        assert await first == {"0": False}
        second = asyncio.create_task(board.report("h", token, {"0": report(2)}))
        await asyncio.sleep(0.05)
        await board.stop("0")
        assert await second == {"0": True}
        assert await board.report("h", token, {"0": report(3)}) == {"0": False}

    run(scene())


def test_closing_stops_what_trains_and_a_stopped_trial_is_not_given_out_again() -> None:
    async def scene() -> None:
        board = Board()
        token = await board.register("h")
        for n in "01":
            await board.submit(request(n), [], False)
        await taken(board, token)
        await board.stop("0")
        await board.stop("1")
        token = await board.register("h")
        assert await taken(board, token) == "idle"
        assert (await board.outcome("0"))["state"] == "over"
        assert (await board.outcome("1"))["state"] == "over"

    run(scene())


def test_a_trial_that_kills_its_host_again_and_again_is_failed_with_the_last_message() -> None:
    async def scene() -> None:
        board = Board()
        await board.submit(request("0"), [], False)
        for _ in range(module.MAX_CRASHES):
            token = await board.register("h")
            assert await taken(board, token) == "0"
            await board.failed("h", "out of memory")
        token = await board.register("h")
        assert await taken(board, token) == "idle"
        assert "out of memory" in (await board.outcome("0"))["error"]
        assert await board.follow("0", 0, 0.01) == ([], True)

    run(scene())


def test_a_host_that_only_ever_starts_is_fatal_and_a_report_clears_it() -> None:
    async def scene() -> None:
        board = Board()
        for _ in range(module.MAX_FAILED_STARTS + 1):
            token = await board.register("h")
        assert "again and again" in (await board.status())["fatal"]
        await board.submit(request("0", judged=False), [], False)
        await taken(board, token)
        await board.report("h", token, {"0": report(1)})
        assert (await board.status())["fatal"] is None

    run(scene())


def test_a_done_trial_only_replays() -> None:
    async def scene() -> None:
        board = Board()
        await board.submit(request("0"), [report(1), report(2)], True)
        token = await board.register("h")
        assert await taken(board, token) == "idle"
        assert await board.follow("0", 1, 0.01) == ([report(2)], True)

    run(scene())


def test_only_the_epochs_that_a_scheduler_judges_are_waited_for() -> None:
    """One that was passed meanwhile too: what its folder held may have been replayed and not judged yet."""

    async def scene() -> None:
        board = Board()
        token = await board.register("h")
        await board.submit(Request("0", "trial", "/nowhere", {}, "a", "a", 64, 9, (1, 3)), [], False)
        await taken(board, token)
        await board.replay("h", token, "0", [report(1)])
        second = asyncio.create_task(board.report("h", token, {"0": report(2)}))
        await asyncio.sleep(0.05)
        assert not second.done()
        await board.judged("0", 1)
        assert await second == {"0": False}
        third = asyncio.create_task(board.report("h", token, {"0": report(3)}))
        await asyncio.sleep(0.05)
        assert not third.done()
        await board.judged("0", 3)
        assert await third == {"0": False}
        assert await board.report("h", token, {"0": report(4)}) == {"0": False}  # at once

    run(scene())


def test_the_placement_group_of_a_host_is_that_of_its_last_worker_group() -> None:
    async def scene() -> None:
        board = Board()
        for name, group in [("a", "1"), ("b", "2"), ("a", "3")]:
            await board.register(name, group)
        await board.failed("c", "died before it could register")
        assert await board.placement_groups() == {"a": "3", "b": "2"}

    run(scene())
