"""Addresses and names, and stores that cannot be used."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from mmsweep.errors import UserError
from mmsweep.readers.mlflow.address import resolve_uri, shown
from mmsweep.readers.mlflow.naming import metric_name
from mmsweep.readers.mlflow.tracker import Tracker
from tests.unit.mlflow_tracker.runs import tracker

pytestmark = pytest.mark.long


def test_addresses_show_no_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORE_PASSWORD", "hunter2")
    assert resolve_uri("http://ann:${STORE_PASSWORD}@host", tmp_path) == "http://ann:hunter2@host"
    assert shown("http://ann:${STORE_PASSWORD}@host", "") == "http://ann:${STORE_PASSWORD}@host"
    assert shown("http://${USER}:hunter2@host", "") == "http://${USER}:***@host"
    assert shown(None, "postgresql://ann:hu/nt@er2@host/db?x=1&password=hunter2") == (
        "postgresql://ann:***@host/db?x=1&password=***"
    )
    for uri in (f"sqlite:///{tmp_path}/a:b.db", "http://host:5000/mlflow", "postgresql://ann@host:5432/db"):
        assert shown(uri, uri) == uri
    assert "hunter2" not in str(UserError("no", found="http://ann:hunter2@host", hint="mysql://a:hunter2@b/c"))
    for uri, problem in (
        ("http://ann:***@host", "do not hold the"),
        ("http://${NOT_SET_AT_ALL}@host", "is not set"),
    ):
        with pytest.raises(UserError, match=problem):
            resolve_uri(uri, tmp_path)


@pytest.mark.parametrize(
    "uri", ["file:///tmp/mlruns", "./mlruns", "mlruns", "sqlite://", "sqlite:///:memory:", "gopher://x"]
)
def test_stores_that_cannot_be_used_are_refused_by_name(uri: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tracking\.uri") as error:
        Tracker(uri, "demo", tmp_path)
    assert uri in str(error.value)


def test_relative_databases_become_absolute(tmp_path: Path) -> None:
    assert resolve_uri("sqlite:///runs/m.db", tmp_path) == f"sqlite:///{tmp_path}/runs/m.db"
    assert resolve_uri("sqlite:////data/m.db?timeout=9", tmp_path) == "sqlite:////data/m.db?timeout=9"
    assert resolve_uri("http://host:5000/", tmp_path) == "http://host:5000"


def test_a_server_that_is_not_there_is_said_at_once(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(UserError, match=r"tracking\.uri") as error:
        Tracker(uri, "demo", tmp_path)
    assert uri in str(error.value) and "mlflow server" in str(error.value)


def test_a_database_that_is_none_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("this is not a database, it is a text of more than sixteen bytes" * 30)
    with pytest.raises(UserError, match=r"tracking\.uri"):
        tracker(tmp_path)


def test_names_stay_or_become_unique_ones() -> None:
    for name in ("val/image-100_text-30/f1_macro", "model.lora.rank", "train/loss", "test/per class: cat/f1"):
        assert metric_name(name) == name
    assert metric_name("a@b") != metric_name("a=b")
    assert metric_name("a@b") == metric_name("a@b")
    assert "//" not in metric_name("a//b")
