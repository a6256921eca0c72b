"""Connecting to Ray in the background. What takes Ray seconds is a wait here; the whole is in tests/end_to_end."""

from __future__ import annotations

import threading
import time

import pytest

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
