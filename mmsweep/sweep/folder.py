"""The sweep's folder: opening it for a new or resumed sweep, and its state.

sweeps/<name>/
    study.yaml   what was asked, resolved        sweep.json   name, state, created, trials, mmsweep, mlflow
    optuna.db    Optuna's study                  summary.json what readers need of the study
    tune/        Ray's own files                 trials/0000/ …    final/<group>/seed-<k>/ …
    logs/        everything that is not shown
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mmsweep
from mmsweep.errors import UserError
from mmsweep.readers.mlflow.address import expanded
from mmsweep.record.files import read_record, write_atomically
from mmsweep.record.lock import HeldError, held
from mmsweep.record.summary import FILE as SUMMARY
from mmsweep.record.sweep import SweepFile, SweepRecord, TrackingFile
from mmsweep.record.trial import TrialFolder, trial_id
from mmsweep.study import Study
from mmsweep.sweep.summary import summarize, summary_of

DATA_FACTS = {
    "dataset_fingerprint": "the data has",
    "split_digest": "the splits of the data have",
    "init_from_digest": "the weights of train.init_from have",
}
"""Of `assembly.facts`, what must stay as it is when a sweep goes on, with the words for it."""
# What may differ when a sweep goes on: where and how long it runs, not what it computes (DATA_FACTS say which rows).
FREE_ON_RESUME = ("resources.hosts", "resources.slots", "sweep.budget", "bootstrap", "tracking", "data.max_bad")


class SweepFolder:
    """A sweep's folder, held by one driver alone until `release`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.finished = False  # whether everything that is asked for now was done before
        self.notes: list[str] = []  # what was damaged and made again, a sentence each
        self._lock = contextlib.ExitStack()
        self._added = 0  # trials, by --extend

    @classmethod
    def open(
        cls, study: Study, path: Path, *, trials: int, resume: bool, extend: int, overrides: Sequence[str] = ()
    ) -> SweepFolder:
        """Make the folder of a new sweep, or take up that of a sweep that goes on.

        Args:
            trials: how many trials a new sweep has.
            resume: go on with what was interrupted.
            extend: so many trials more than the sweep had; implies `resume`.
            overrides: the command line's `key=value`; a new sweep writes down the keys, for `as_it_began`.

        Raises:
            UserError: the folder holds a sweep already and neither was asked for, holds none, holds another
                study's, cannot be written, is held by a running sweep, or has a damaged record.
        """
        folder = cls(path)
        exists = (path / "study.yaml").exists()
        if not exists and folder.began():
            raise UserError("the sweep's study is missing", file=path / "study.yaml", hint="Its trials lie beside it.")
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
            folder._lock.enter_context(held(path / ".lock"))
        except HeldError:
            raise UserError("this sweep is running", file=path, hint="Look at it with `mmsweep show`.") from None
        except OSError as error:
            raise UserError(
                f"the sweep's folder cannot be written ({error.strerror})", file=path, key="--out", found=str(path),
                expected="a folder that can be made and written",
            ) from error  # fmt: skip
        try:
            if exists:
                folder._check_unchanged(study)
                folder._check_records(study, trials)
            else:
                about = {"name": study.name, "created": time.time(), "mmsweep": mmsweep.__version__, "trials": trials}
                folder.update(state="running", **about, overrides=[_key(override) for override in overrides])
                summary_of(study).write(path)
                write_atomically(path / "study.yaml", study.to_yaml())  # last: where it stands, a sweep lies
            folder.finished = folder.state.get("state") == "finished" and not extend
            if extend:
                before = folder.trials
                folder.update(trials=max(before, len(folder.numbers())) + extend)
                folder._added = folder.trials - before
        except UserError:
            folder.release()
            raise
        return folder

    @property
    def state(self) -> dict[str, Any]:
        """`sweep.json`."""
        return dict(read_record(self.path / "sweep.json", SweepFile) or {})

    def update(self, **values: Any) -> None:
        """Set values of `sweep.json`."""
        write_atomically(self.path / "sweep.json", json.dumps({**self.state, **values}, indent=1))

    @property
    def trials(self) -> int:
        return int(self.state["trials"])

    def trial(self, number: int) -> TrialFolder:
        return TrialFolder(self.path / "trials" / trial_id(number))

    def numbers(self) -> list[int]:
        """Numbers of the trials that have a whole folder."""
        paths = (self.path / "trials").glob("[0-9]*")
        return sorted(int(path.name) for path in paths if TrialFolder(path).exists())

    def began(self) -> bool:
        """Whether a trial or a final run lies here."""
        return bool(self.numbers()) or any((self.path / "final").glob("*/*"))

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
        if not self.began():
            for name in ("study.yaml", SUMMARY, "sweep.json", "optuna.db"):
                (self.path / name).unlink(missing_ok=True)

    def release(self) -> None:
        self._lock.close()

    def check_data(self, facts: Mapping[str, str]) -> None:
        """Refuse data that is not what the sweep began with; a new sweep's is written down.

        Args:
            facts: `assembly.facts`, of which those in DATA_FACTS are compared.

        Raises:
            UserError: the data, its splits or the weights to start from have changed.
        """
        found = {name: facts[name] for name in DATA_FACTS if name in facts}
        before = self.state.get("data") or self._tracked_data()
        for name, what in DATA_FACTS.items():
            if name in before and name in found and before[name] != found[name]:
                self.update(trials=self.trials - self._added)  # what is refused was never asked for
                raise UserError(
                    f"{what} changed since this sweep began", file=self.path,
                    found=f"{name} {found[name]}", expected=f"{before[name]}, as before",
                    hint="Trials on both cannot be ranked together. Restore what there was, or start a sweep under "
                    "another name (name=…) or --out.",
                )  # fmt: skip
        self.update(data={**found, **before})

    def _tracked_data(self) -> dict[str, str]:
        """What an older mmsweep, or a lost sweep.json, leaves only among the tags that MLflow was told."""
        tracking = read_record(self.path / "tracking.json", TrackingFile)
        written = tracking.get("tags") or {} if tracking else {}
        tags = {name.removeprefix("mmsweep."): tag for name, tag in written.items()}
        return {name: tags[name] for name in DATA_FACTS if name in tags} if self.began() else {}

    def _check_records(self, study: Study, trials: int) -> None:
        """Read every record once, so that a damaged one is refused before anything starts; make sweep.json again."""
        if not (self.path / "sweep.json").exists():
            count = max([trials, *(number + 1 for number in self.numbers())])
            created = (self.path / "study.yaml").stat().st_mtime
            about = {"name": study.name, "created": created, "mmsweep": mmsweep.__version__, "trials": count}
            self.update(state="interrupted", **about)
            self.notes.append("sweep.json was missing; it was made again from the study and the trials' folders")
        summarize(self.path)
        SweepRecord.load(self.path).packing  # noqa: B018 - reads it
        for file in [*self.path.glob("trials/*/trial.json"), *self.path.glob("final/*/*/trial.json")]:
            TrialFolder(file.parent).study_yaml()
        if "trials" not in self.state:
            raise UserError(
                "not what mmsweep wrote", file=self.path / "sweep.json", key="trials", expected="a number of trials",
                hint="Delete the file, and it is made again.",
            )  # fmt: skip

    def _check_unchanged(self, study: Study) -> None:
        before = Study.load(self.path / "study.yaml")
        changed = [key for key in differing_keys(before.resolved(), study.resolved()) if not _is_free(key)]
        if changed:
            raise _changed(changed, before, study, self.path)


def _changed(keys: Sequence[str], before: Study, study: Study, path: Path) -> UserError:
    return UserError(
        f"the study has changed since this sweep began ({', '.join(keys)})", file=path, key=keys[0],
        found=_at(study.resolved(), keys[0]), expected=f"{_at(before.resolved(), keys[0])!r}, as before",
        hint="To go on, take the change back. A changed study needs another name (name=…) or --out; --extend N adds "
        "trials.",
    )  # fmt: skip


def _is_free(key: str) -> bool:
    return key.startswith(FREE_ON_RESUME)


def _key(override: str) -> str:
    return override.partition("=")[0].strip()


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


def as_it_began(study: Study, path: Path, overrides: Sequence[str]) -> tuple[Study, list[str]]:
    """The study with which a sweep goes on: what its first command changed of the file need not be said again.

    Args:
        study: what the command names, overrides applied.
        path: the sweep's folder; where no sweep lies, `study` is returned.
        overrides: `key=value` of the command line.

    Returns:
        The study, and what the first command changed and this one does not: "key=value instead of value".

    Raises:
        UserError: an override contradicts the sweep, or the file has changed.
    """
    if not (path / "study.yaml").exists():
        return study, []
    began, first = Study.load(path / "study.yaml"), SweepFolder(path).state.get("overrides", [])
    old, new, given = began.resolved(), study.resolved(), [_key(override) for override in overrides]
    different = differing_keys(old, new)
    now = [key for key in different if any(_overlap(key, other) for other in given)]
    kept = [key for key in different if key not in now and any(_overlap(key, other) for other in first)]
    if contradicting := [key for key in now if not _is_free(key)]:
        raise _changed(contradicting, began, study, path).placed(file="command line")
    if changed := [key for key in different if key not in (*now, *kept) and not _is_free(key)]:
        raise _changed(changed, began, study, path)
    own = began.with_values({key: _at(new, key) for key in different if key not in kept})
    return own, [f"{key}={_json(_at(old, key))} instead of {_json(_at(new, key))}" for key in kept]


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _overlap(key: str, other: str) -> bool:
    return key == other or key.startswith(f"{other}.") or other.startswith(f"{key}.")


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
