"""The sweep's folder: opening it for a new or resumed sweep, and its state.

sweeps/<name>/
    study.yaml   what was asked, resolved        sweep.json   name, state, created, trials, mmsweep, mlflow
    optuna.db    Optuna's study                  trials/0000/ …    final/<group>/seed-<k>/ …
    tune/        Ray's own files                 logs/        everything that is not shown
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mmsweep
from mmsweep.errors import UserError
from mmsweep.study import Study
from mmsweep.sweep.names import trial_id
from mmsweep.tracking.address import expanded
from mmsweep.training.checkpoint import TrialFolder, write_whole

# What may differ when a sweep goes on: where and how long it runs, not what it computes.
FREE_ON_RESUME = ("resources.hosts", "resources.slots", "sweep.budget", "tracking")


class SweepFolder:
    """A sweep's folder, held by one driver alone until `release`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.finished = False  # whether everything that is asked for now was done before
        self._lock: Any = None

    @classmethod
    def open(cls, study: Study, path: Path, *, trials: int, resume: bool, extend: int) -> SweepFolder:
        """Make the folder of a new sweep, or take up that of a sweep that goes on.

        Args:
            trials: how many trials a new sweep has.
            resume: go on with what was interrupted.
            extend: so many trials more than the sweep had; implies `resume`.

        Raises:
            UserError: the folder holds a sweep already and neither was asked for, holds none, holds another
                study's, cannot be written, or is held by a running sweep.
        """
        folder = cls(path)
        exists = (path / "study.yaml").exists()
        if exists and not (resume or extend):
            raise UserError(
                "a sweep lies here already",
                file=path,
                hint="Add --resume to go on with it, --extend N for more trials, or another name (name=…) or --out.",
            )
        if extend and not exists:
            raise UserError("no sweep lies here that could be extended", file=path)
        if extend and study.sweep.sampler.name == "grid":
            raise UserError(
                "a grid cannot be extended: it holds every combination", key="sweep.sampler.name", found="grid"
            )
        try:
            for name in ("trials", "logs", "tune"):
                (path / name).mkdir(parents=True, exist_ok=True)
            folder._hold()
        except OSError as error:
            raise UserError(
                f"the sweep's folder cannot be written ({error.strerror})", file=path, key="--out", found=str(path),
                expected="a folder that can be made and written",
            ) from error  # fmt: skip
        try:
            if exists:
                folder._check_unchanged(study)
            else:
                about = {"name": study.name, "created": time.time(), "mmsweep": mmsweep.__version__, "trials": trials}
                folder.update(state="running", **about)
                write_whole(path / "study.yaml", study.to_yaml())  # last: where it stands, a sweep lies
            folder.finished = folder.state.get("state") == "finished" and not extend
            if extend:
                folder.update(trials=max(folder.trials, len(folder.numbers())) + extend)
        except UserError:
            folder.release()
            raise
        return folder

    @property
    def state(self) -> dict[str, Any]:
        """`sweep.json`."""
        path = self.path / "sweep.json"
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise UserError("not valid JSON", file=path, expected="the file as mmsweep wrote it") from error

    def update(self, **values: Any) -> None:
        """Set values of `sweep.json`."""
        write_whole(self.path / "sweep.json", json.dumps({**self.state, **values}, indent=1))

    @property
    def trials(self) -> int:
        return int(self.state["trials"])

    def trial(self, number: int) -> TrialFolder:
        return TrialFolder(self.path / "trials" / trial_id(number))

    def numbers(self) -> list[int]:
        """Numbers of the trials that have a whole folder."""
        paths = (self.path / "trials").glob("[0-9]*")
        return sorted(int(path.name) for path in paths if (path / "trial.json").exists())

    def attempt(self) -> Path:
        """A fresh folder for Ray's own files."""
        path = self.path / "tune" / time.strftime("%Y%m%d-%H%M%S")
        path.mkdir(parents=True, exist_ok=True)
        return path

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    def abandon(self) -> None:
        """Leave no sweep where none began (no server, no GPU): the study may then be corrected and started again."""
        if not self.numbers() and not any((self.path / "final").glob("*/*")):
            for name in ("study.yaml", "sweep.json", "optuna.db"):
                (self.path / name).unlink(missing_ok=True)

    def release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _hold(self) -> None:
        self._lock = open(self.path / ".lock", "w")  # noqa: SIM115 - held until the sweep ends or its driver dies
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            raise UserError("this sweep is running", file=self.path, hint="Look at it with `mmsweep show`.") from None

    def _check_unchanged(self, study: Study) -> None:
        before = Study.load(self.path / "study.yaml")
        changed = differing_keys(before.resolved(), study.resolved())
        changed = [key for key in changed if not key.startswith(FREE_ON_RESUME)]
        if changed:
            key = changed[0]
            raise UserError(
                f"the study has changed since this sweep began ({', '.join(changed)})", file=self.path, key=key,
                found=_at(study.resolved(), key), expected=f"{_at(before.resolved(), key)!r}, as before",
                hint="To go on, say again what was changed on the command line (KEY=VALUE). A changed study needs "
                "another name (name=…) or --out; --extend N adds trials.",
            )  # fmt: skip


def differing_keys(a: Mapping[str, Any], b: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys of the leaves in which two resolved studies differ."""
    keys: list[str] = []
    for key in sorted({*a, *b}):
        old, new = a.get(key), b.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            keys += differing_keys(old, new, f"{prefix}{key}.")
        elif old != new:
            keys.append(f"{prefix}{key}")
    return keys


def _at(values: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key, None where there is none; the search's own keys have dots themselves."""
    if key in values:
        return values[key]
    parts = key.split(".")
    heads = [".".join(parts[:n]) for n in range(1, len(parts))]
    inner = [(values[head], key[len(head) + 1 :]) for head in heads if isinstance(values.get(head), Mapping)]
    return next((found for value, rest in inner if (found := _at(value, rest)) is not None), None)


def inside_ray_job() -> bool:
    """Whether this process is the entrypoint of a submitted Ray job."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def check_lasting(study: Study, out: Path) -> None:
    """Inside a Ray job the working directory is a copy that Ray deletes: results must not go there.

    Raises:
        UserError: `out` or the tracking store would; with the line to add.
    """
    if not inside_ray_job():
        return
    here = Path.cwd().resolve()
    if not out.is_absolute() or out.resolve().is_relative_to(here):
        raise UserError(
            "inside a Ray job the sweep's folder must not lie in the working directory, which Ray deletes",
            key="--out",
            found=str(out),
            expected="an absolute path that outlives the job",
            hint="Add: --out /path/to/sweeps",
        )
    uri = study.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    uri = expanded(uri) if uri else None
    local = uri is None or (uri.startswith("sqlite:///") and not uri.startswith("sqlite:////"))
    if local:
        raise UserError(
            "inside a Ray job MLflow's default store would lie in the working directory, which Ray deletes",
            key="tracking.uri",
            found=uri,
            expected="an absolute store or a server",
            hint=f"Add: tracking.uri=sqlite:///{out.parent / 'mlflow.db'}",
        )
