"""The MLflow tracker against a real server."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmsweep.readers.mlflow.address import check_store
from mmsweep.readers.mlflow.tracker import Tracker
from mmsweep.record.trial import Report
from tests.unit.mlflow_tracker.runs import METRICS, attached, children, train, trial

pytestmark = pytest.mark.long


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")  # a machine that tests is busy
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{tmp_path}/mlflow.db",
        "--artifacts-destination",
        str(tmp_path / "a"),
    ]
    with open(tmp_path / "server.log", "w") as output:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=output, stderr=output, start_new_session=True)
    try:
        deadline = time.monotonic() + 180
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=30).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "server.log").read_text()
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_the_same_sweep_on_a_real_server(
    server: str, sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Named with a user and a password, which no file and no message shows."""
    monkeypatch.setenv("STORE_PASSWORD", "hunter2")
    named = server.replace("//", "//ann:${STORE_PASSWORD}@")
    check_store(named, tmp_path)
    writer = Tracker(named, "demo", tmp_path)
    assert writer.ui_command() == named
    writer.start(sweep, {"dataset": "d", "dataset_fingerprint": "f"})
    folder = trial(sweep, "0000", {f"p{i}": i for i in range(120)})  # more than one request takes
    folder.append(Report(1, {**METRICS, **{f"val/s{i}/f1_macro": i / 1200 for i in range(1200)}}))
    train(folder, 0.9, first=2, done="finished")
    writer.end("finished")
    assert writer.warnings == []
    assert "hunter2" not in "".join(capfd.readouterr())
    assert not [p for p in (tmp_path / "sweeps").rglob("*") if p.is_file() and "hunter2" in p.read_text()]
    writer.uri = server
    run = children(writer)["0000"]
    assert (run.info.status, len(run.data.params), len(run.data.metrics)) == ("FINISHED", 120, 1205)
    assert "weights.safetensors" in attached(writer, run)
