"""Connecting to Ray in the background. What takes Ray seconds is a wait here; the whole is in tests/end_to_end."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmsweep.ending import Interrupt, Interrupted
from mmsweep.errors import UserError
from mmsweep.sweep import cluster


@pytest.fixture
def ray_is_up(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set when the stand-in for Ray has started."""
    up = threading.Event()

    def start() -> None:
        time.sleep(0.2)
        up.set()

    monkeypatch.setattr(cluster, "_start", start)
    return up


def test_what_is_done_meanwhile_does_not_wait_and_connect_does(ray_is_up: threading.Event) -> None:
    with cluster.connecting():
        assert not ray_is_up.is_set()
        with cluster.connect():
            assert ray_is_up.is_set()


def test_a_refusal_meanwhile_leaves_no_ray_half_started(ray_is_up: threading.Event) -> None:
    with pytest.raises(UserError, match="no such data"), cluster.connecting():
        raise UserError("no such data")
    assert ray_is_up.is_set() and cluster._begun is None


def test_a_cluster_that_does_not_answer_is_told_by_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> None:
        raise UserError("Ray cannot be reached")

    monkeypatch.setattr(cluster, "_start", refused)
    with cluster.connecting(), pytest.raises(UserError, match="cannot be reached"), cluster.connect():
        raise AssertionError("not connected")
    with pytest.raises(UserError, match="cannot be reached"), cluster.connect():
        raise AssertionError("not connected")


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("127.0.0.1:{closed}", "nothing listens at 127.0.0.1:{closed}"),
        ("ray://127.0.0.1:{closed}", "nothing listens at 127.0.0.1:{closed}"),
        ("no.such.host.invalid:6379", "there is no host no.such.host.invalid"),
    ],
)
def test_a_dead_address_is_told_at_once(monkeypatch: pytest.MonkeyPatch, address: str, told: str) -> None:
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        closed = taken.getsockname()[1]
        monkeypatch.setenv("RAY_ADDRESS", address.format(closed=closed))
        with pytest.raises(UserError, match=f"RAY_ADDRESS: Ray cannot be reached .{told.format(closed=closed)}"):
            cluster._start()


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Lets what is stuck in Ray go on; the process that it is left behind in is this one."""
    event = threading.Event()
    monkeypatch.setattr(cluster, "_left_behind", False)
    monkeypatch.setattr(cluster, "_leave_ray", lambda: setattr(cluster, "_left_behind", True))
    yield event
    event.set()


@pytest.mark.parametrize("address", [None, "127.0.0.1:6379"])
def test_a_ray_that_does_not_answer_is_given_up(
    monkeypatch: pytest.MonkeyPatch, stuck: threading.Event, address: str | None
) -> None:
    monkeypatch.setattr(cluster, "_start", stuck.wait)
    monkeypatch.setattr(cluster, "START_SECONDS", 0.3)
    monkeypatch.setattr(cluster, "STALL_SECONDS", 0.2)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match=r"did not (start|answer) within 0 s"), cluster.connect():
        raise AssertionError("not connected")
    assert cluster.left_behind()


def started(pid: int) -> cluster._Process:
    return cluster._Process(pid, "0", os.getpid(), "python")


def test_a_ray_whose_processes_appear_one_by_one_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, ray_is_up: threading.Event
) -> None:
    """As on a busy machine."""
    numbers = iter(range(1000))
    monkeypatch.setattr(cluster, "START_SECONDS", 0.0)
    monkeypatch.setattr(cluster, "_children", lambda parents: {started(n) for n in range(next(numbers))})
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(cluster.ray, "shutdown", lambda: None)
    with cluster.connect():
        assert ray_is_up.is_set()


def test_a_process_of_ray_s_that_has_ended_is_noticed_before_anybody_waits_for_it() -> None:
    child = subprocess.Popen(["sleep", "60"])
    process = cluster._running(child.pid)
    assert process and process.name == "sleep" and process in cluster._children({os.getpid()})
    liveness = cluster.Liveness.__new__(cluster.Liveness)
    liveness._servers, liveness._place = {process}, None
    assert liveness.gone() is None
    child.kill()
    until = time.monotonic() + 20
    while (gone := liveness.gone()) is None:
        assert time.monotonic() < until
    assert gone == "Ray's process sleep ended" and child.wait() and cluster._running(child.pid) is None


def test_without_a_private_name_ray_s_lines_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(cluster.ray, "_private")
    cluster._let_ray_print(False)


def test_a_signal_ends_the_wait_for_ray(ray_is_up: threading.Event) -> None:
    interrupt = Interrupt()
    interrupt.number = signal.SIGTERM
    with pytest.raises(Interrupted), cluster.connect(interrupt):
        raise AssertionError("not waited for")
    assert ray_is_up.is_set()  # and ended, or its processes would be left


def test_work_that_ends_is_as_if_it_had_been_called() -> None:
    assert cluster.attended(lambda: 3, Interrupt(), lambda: None) == 3
    with pytest.raises(OSError, match="its own"):
        cluster.attended(lambda: (_ for _ in ()).throw(OSError("its own")), Interrupt(), lambda: None)
    assert not cluster.left_behind()


def test_work_on_a_cluster_that_is_gone_is_left_behind(monkeypatch: pytest.MonkeyPatch, stuck: threading.Event) -> None:
    monkeypatch.setattr(cluster, "GONE_SECONDS", 0.1)
    with pytest.raises(cluster.ClusterGoneError, match="raylet ended"):
        cluster.attended(stuck.wait, Interrupt(), lambda: "raylet ended")
    with pytest.raises(cluster.ClusterGoneError):  # it may write nothing any more
        cluster.check_attended()


def test_what_fails_because_the_cluster_is_gone_says_so() -> None:
    def fails() -> None:
        raise OSError("connection reset")

    with pytest.raises(cluster.ClusterGoneError, match="raylet ended"):
        cluster.attended(fails, Interrupt(), lambda: "raylet ended")


def test_work_that_does_not_hear_a_signal_is_left_behind(
    monkeypatch: pytest.MonkeyPatch, stuck: threading.Event
) -> None:
    monkeypatch.setattr(cluster, "STOP_SECONDS", 0.1)
    with Interrupt().listening() as interrupt:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted):
            cluster.attended(stuck.wait, interrupt, lambda: None)
    assert cluster.left_behind() and not interrupt.at_once


def test_what_was_left_behind_goes_on_logging_to_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stuck: threading.Event
) -> None:
    for name in ("", "ray"):
        logger = logging.getLogger(name)
        monkeypatch.setattr(logger, "handlers", logger.handlers)
    with pytest.raises(KeyError), cluster.logged_to(tmp_path / "driver.log"):
        cluster._left_behind = True  # `stuck` takes it back
        raise KeyError
    logging.getLogger("mmsweep.sweep").warning("the board does not answer")
    assert "the board does not answer" in (tmp_path / "driver.log").read_text()


def test_what_is_written_past_python_goes_to_the_log(tmp_path: Path) -> None:
    shown = sys.stderr
    with cluster.ray_lines_to(tmp_path / "logs" / "driver.log"):
        os.write(2, b"*** SIGTERM received ***\n")
    assert sys.stderr is shown and "SIGTERM received" in (tmp_path / "logs" / "driver.log").read_text()
