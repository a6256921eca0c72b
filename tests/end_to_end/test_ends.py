"""The ways a sweep can end on a real Ray, each in a driver of its own; only the epochs sleep (`sleeping.py`)."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest
import ray

from tests.end_to_end.test_packs import pack_study, reported, undisturbed
from tests.end_to_end.test_sweep import mlflow_runs, place, trained  # noqa: F401

sys.path.insert(0, str(Path(__file__).parent))
from sleeping import held

HERE = Path(__file__).parent
pytestmark = [pytest.mark.slow, pytest.mark.faults]
WORDS = "nothing is lost. Resume it with: mmsweep tune s.yaml --resume"

DRIVER = """
import os, signal, sys
from pathlib import Path
import typer
from mmsweep import __main__ as process, cli
from mmsweep.cli.train import conclude
from mmsweep.ending import exit_code, print_interrupted
from mmsweep.study import Study
from mmsweep.sweep.start import run_sweep

def describe():
    if "prepare" in sys.argv:
        os.kill(os.getpid(), signal.SIGTERM)
    return {}

def main():
    try:
        asked = Study.load(Path("asked.yaml"))
        out = run_sweep(asked, Path("s"), resume=True, live=False, warm="sleeping:SleepingWarm", describe=describe)
        sys.argv = ["mmsweep", "tune", "s.yaml"]
        conclude(out, "", False)
        sys.exit(0)
    except typer.Exit as end:
        sys.exit(end.exit_code)
    except KeyboardInterrupt as end:
        print_interrupted(["tune", "s.yaml"])
        sys.exit(exit_code(end))

process.main = main
process.run()
"""


def drive(place: Path, *words: str) -> subprocess.Popen[str]:  # noqa: F811
    path = f"{HERE}{os.pathsep}{HERE.parents[1]}"
    environment = {**os.environ, "PYTHONPATH": path, "SLEEPING_EPOCH": "0.1"}
    command = [sys.executable, "-c", DRIVER, *words]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, cwd=place, text=True, stdout=pipe, stderr=subprocess.STDOUT)


def family(driver: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(driver.pid).children(recursive=True)


def titled(processes: Sequence[psutil.Process], title: str) -> list[psutil.Process]:
    found = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            if title in process.name() or title in " ".join(process.cmdline()):
                found.append(process)
    return found


def send(number: signal.Signals, processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)


def left(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    found = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


@contextlib.contextmanager
def driven(place: Path, epoch: int) -> Iterator[subprocess.Popen[str]]:  # noqa: F811
    """A driver whose trials have all come to an epoch, and wait there."""
    with held(place) as hold:
        hold(epoch)
        driver = drive(place)
        try:
            until = time.monotonic() + 200
            while sum(len(path.read_text().splitlines()) >= epoch for path in place.glob("s/*/**/reports.jsonl")) < 3:
                assert driver.poll() is None and time.monotonic() < until, driver.communicate()[0]
                time.sleep(0.1)
            yield driver
        finally:
            driver.kill()


def ended(driver: subprocess.Popen[str], processes: Sequence[psutil.Process], seconds: float) -> tuple[int, str]:
    """The exit status and what was shown, once nothing is left of it."""
    text = driver.communicate(timeout=seconds)[0]
    until = time.monotonic() + 15
    while left(processes):
        assert time.monotonic() < until, left(processes)
        time.sleep(0.1)
    return driver.returncode, text


def test_every_end_of_a_sweep_is_told_and_costs_nothing(place: Path) -> None:  # noqa: F811
    """One sweep that ends in six ways, one after the other, and then is finished."""
    ray.shutdown()
    asked = pack_study([0.1, 0.2, 0.3], name="ends", resources__slots=3, train__epochs=6)
    (place / "asked.yaml").write_text(asked.to_yaml())

    driver = drive(place, "prepare")  # in the course of which Ray starts
    assert ended(driver, [], 100)[0] == 143
    assert not (place / "s" / "study.yaml").exists()

    ends = [
        (1, "everybody", signal.SIGTERM, 143, ""),  # as SLURM sends it to all processes of a job
        (2, "raylet", signal.SIGKILL, 1, "Ray's process raylet ended"),
        (3, "gcs_server", signal.SIGKILL, 1, "Ray's process gcs_server ended"),
        (4, "Board", signal.SIGKILL, 1, "the sweep's queue"),
        (5, "driver", signal.SIGHUP, 129, ""),
    ]
    for epoch, whom, number, code, reason in ends:
        with driven(place, epoch) as driver:
            processes = family(driver)
            if epoch == 1:  # nobody else can reach a Ray of our own
                ports = [c for p in processes for c in p.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
                assert ports and {c.laddr.ip.removeprefix("::ffff:") for c in ports} == {"127.0.0.1"}
            me = psutil.Process(driver.pid)
            send(number, {"everybody": [*processes, me], "driver": [me]}.get(whom) or titled(processes, whom))
            status, text = ended(driver, processes, 60)
        assert status == code and text.splitlines()[-1].endswith(WORDS) and reason in text, text
        for noise in ("Traceback", "***", "(raylet)", "core_worker"):
            assert noise not in text, text
        assert json.loads((place / "s" / "sweep.json").read_text())["state"] == "interrupted"
        assert set(mlflow_runs(place, place / "s").values()) == {"KILLED"}
        assert not list(place.glob("s/trials/*/done.json"))

    driver = drive(place)
    status, text = ended(driver, [], 100)
    assert status == 0, text
    assert reported(place / "s") == undisturbed(place / "s", place / "single")
    for name, epochs in trained(place / "s").items():
        assert epochs == list(range(1, 7)), name  # no epoch twice
    assert set(mlflow_runs(place, place / "s").values()) == {"FINISHED"}
