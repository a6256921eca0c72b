"""Programs run as a user runs them: a command in a process of its own, timed from its start to its end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from ran_on import ROOT


@dataclass(frozen=True)
class Ran:
    """When a command ran: seconds since 1970, and how long it took (on a clock that only goes forward)."""

    began: float
    seconds: float

    @property
    def ended(self) -> float:
        return self.began + self.seconds


def python(words: Sequence[str], inside: Path) -> Ran:
    """`python WORDS` in the folder `inside`, with mmsweep as it stands here; its output goes to `inside`.log.

    Ends the whole program, with the output's end, where the command fails.
    """
    inside.mkdir(parents=True, exist_ok=True)
    paths = [str(ROOT), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in paths if p)}
    # A cluster or a server that the user works with is none of a benchmark's business.
    environment = {k: v for k, v in environment.items() if k not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")}
    log = inside.with_suffix(".log")
    began, clock = time.time(), time.perf_counter()
    with open(log, "a", encoding="utf-8") as file:
        ended = subprocess.run([sys.executable, *words], cwd=inside, env=environment, stdout=file, stderr=file)
    seconds = time.perf_counter() - clock
    if ended.returncode:
        sys.exit(f"`python {' '.join(words)}` ended with {ended.returncode}:\n{log.read_text()[-3000:]}")
    return Ran(began, seconds)


def tune(study: Path, out: Path, changes: Sequence[str] = ()) -> Ran:
    """`mmsweep tune STUDY --out OUT …`, with tracking in a folder beside OUT."""
    return python(["-m", "mmsweep", "tune", str(study), "--out", str(out), *changes], out.with_name(f"{out.name}-in"))


@contextmanager
def place_of(given: Path | None, *, own_cache: bool) -> Iterator[Path]:
    """A folder to keep everything in: the one given, which stays, or a temporary one.

    Args:
        own_cache: prepare data there, and not in the user's cache: for data that a benchmark made up.
    """
    with TemporaryDirectory(prefix="benchmark-") as temporary:
        place = (given or Path(temporary)).absolute()
        place.mkdir(parents=True, exist_ok=True)
        if own_cache:
            os.environ["MMSWEEP_CACHE"] = str(place / "cache")
        yield place
