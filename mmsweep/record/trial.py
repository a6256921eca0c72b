"""A trial's folder: the record of a trial from which resume, replay and the report read.

    trials/0003/
        trial.json         id, number, params, kind, seed: written before the trial is submitted
        study.yaml         the trial's resolved study
        reports.jsonl      one line per epoch, written once its checkpoint is complete on disk
        checkpoints/       epoch-0003/{weights.safetensors, resume.safetensors, resume.json, manifest.json}; the best
                           and the last are kept
        done.json          finished | stopped | failed; the first mark wins
        evaluation.json    the evaluation on test (final runs), with predictions.npz beside it

No file here is a pickle, and every file is written atomically (under another name, then renamed). The checksums in a
checkpoint's manifest reveal later damage by a disk: training continues from the newest intact checkpoint.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from mmsweep.errors import UserError
from mmsweep.record.checkpoint import STATE, CheckpointFile, damage, epoch_of
from mmsweep.record.files import OPEN, parse_record, read_content, read_record, write_atomically
from mmsweep.record.objective import Objective

State = Literal["finished", "stopped", "failed"]


class TrialFile(TypedDict):
    """`trial.json`: the identity of a trial."""

    __pydantic_config__ = OPEN  # type: ignore[misc]
    id: str
    params: dict[str, Any]
    number: NotRequired[int | None]
    kind: NotRequired[Literal["trial", "final"]]
    seed: int
    optuna: NotRequired[int]


class DoneFile(TypedDict):
    """`done.json`: how a trial ended."""

    __pydantic_config__ = OPEN  # type: ignore[misc]
    state: State
    error: NotRequired[str | None]


@dataclass(frozen=True)
class Report:
    """A trial's report on an epoch.

    Args:
        epoch: the epoch that ended, counted from 1.
        metrics: `split/scenario/metric` and `train/...` values.
        checkpoint: the checkpoint's folder, relative to the trial's folder.
        seconds: wall time of the epoch, evaluation included.
    """

    epoch: int
    metrics: dict[str, float] = field(default_factory=dict)
    checkpoint: str | None = None
    seconds: float = 0.0


def trial_id(number: int) -> str:
    """The id of trial 3 is "0003"."""
    return f"{number:04d}"


class TrialFolder:
    """One trial's folder; the top of this file lists its content."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def create(self, trial: dict[str, Any], study_yaml: str) -> None:
        """Create the folder and its files; existing files are kept."""
        (self.path / "checkpoints").mkdir(parents=True, exist_ok=True)
        if not (self.path / "study.yaml").exists():
            write_atomically(self.path / "study.yaml", study_yaml)
        if not (self.path / "trial.json").exists():
            self._write(trial)

    def exists(self) -> bool:
        """Whether the folder holds a trial. Raises UserError if it has records but no `trial.json`."""
        if (self.path / "trial.json").exists():
            return True
        for name in ("reports.jsonl", "done.json"):
            if (self.path / name).exists():
                raise UserError("the file is missing", file=self.path / "trial.json", hint=f"{name} lies beside it.")
        return False

    def trial(self) -> dict[str, Any]:
        """The content of `trial.json`."""
        return dict(read_record(self.path / "trial.json", TrialFile) or {})

    def update(self, **values: Any) -> None:
        """Set values of `trial.json`."""
        self._write({**self.trial(), **values})

    def _write(self, trial: Mapping[str, Any]) -> None:
        write_atomically(self.path / "trial.json", json.dumps(trial, indent=1, sort_keys=True))

    def study_yaml(self) -> str:
        """The trial's resolved study. Raises UserError if the file is missing or damaged."""
        file = self.path / "study.yaml"
        text = (read_content(file) or b"\xff").decode("utf-8", "replace")
        if "\ufffd" in text:
            raise UserError("the study of a trial is missing or damaged", file=file)
        return text

    @property
    def _reports_file(self) -> Path:
        return self.path / "reports.jsonl"

    def reports(self) -> list[Report]:
        """All complete reports in order; a last line cut off by a kill is ignored."""
        *lines, _ = (read_content(self._reports_file) or b"").split(b"\n")
        return [
            parse_record(line, Report, file=self._reports_file, line=number, problem="not a report")
            for number, line in enumerate(lines, 1)
        ]

    def append(self, report: Report) -> None:
        """Record a report durably. Its checkpoint must already be on disk."""
        path, complete = self._reports_file, _lines(self.reports())
        if path.exists() and path.stat().st_size != len(complete.encode()):
            write_atomically(path, complete)  # drop a half-written last line, or the next one would be appended to it
        with open(path, "a", encoding="utf-8") as file:
            file.write(_lines([report]))
            file.flush()
            os.fsync(file.fileno())

    def done(self) -> dict[str, Any] | None:
        mark = read_record(self.path / "done.json", DoneFile)
        return None if mark is None else {"error": None, **mark}

    def mark_done(self, state: State, error: str | None = None) -> bool:
        """Mark the trial as ended; the first mark wins (a stop that arrives after the last epoch changes nothing).

        Returns:
            Whether this call set the mark.
        """
        temporary = self.path / f".done.{os.getpid()}"
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            write_atomically(temporary, json.dumps({"state": state, "error": error}))
            os.link(temporary, self.path / "done.json")  # unlike rename, link fails if there is a mark already
        except FileExistsError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def clear_done(self) -> None:
        """Remove the mark of a failed trial so that it is run again (`--retry-failed`)."""
        (self.path / "done.json").unlink(missing_ok=True)

    def last_checkpoint(self) -> Path | None:
        """The newest intact checkpoint that a report names; see `damage`."""
        return self._intact()[0]

    def damage(self) -> list[str]:
        """Why training does not continue from the last report's checkpoint: a sentence for each skipped checkpoint."""
        return self._intact()[1]

    def _intact(self) -> tuple[Path | None, list[str]]:
        """The newest checkpoint that is intact together with the best one at that time, and what is wrong with later
        ones. Most checkpoints of earlier epochs no longer exist: only the best and the last are kept."""
        reports, problems = self.reports(), list[str]()
        for report in reversed(reports):
            folder = self.path / (report.checkpoint or "")
            if report.checkpoint is None or (report is not reports[-1] and not folder.exists()):
                continue
            problem = damage(folder) or self._damage_of_best(folder)
            if problem is None:
                return folder, problems
            if problem not in problems:
                problems.append(problem)
        return None, problems

    def _damage_of_best(self, folder: Path) -> str | None:
        """What is wrong with the checkpoint that was the best at this one's epoch; evaluation needs it."""
        state = read_record(folder / STATE, CheckpointFile)
        best = state.get("best") if state else None
        return damage(self.checkpoint(best["epoch"])) if best else None

    def settle(self) -> list[str]:
        """Drop the reports after the last intact checkpoint: their epochs are trained again, to the same values.

        The caller must hold the folder's lock and call this before training continues.

        Returns:
            Sentences that say what was skipped and where the trial continues; empty if nothing is damaged.
        """
        folder, problems = self._intact()
        reports = self.reports()
        kept = [r for r in reports if folder is not None and r.epoch <= epoch_of(folder)]
        if len(kept) < len(reports):
            write_atomically(self._reports_file, _lines(kept))
            problems.append(f"it continues after epoch {kept[-1].epoch}" if kept else "it starts over")
        return problems

    def checkpoint(self, epoch: int) -> Path:
        return self.path / "checkpoints" / f"epoch-{epoch:04d}"

    def keep_checkpoints(self, epochs: set[int]) -> None:
        """Delete the checkpoints of all other epochs, and half-written ones."""
        keep = {self.checkpoint(epoch).name for epoch in epochs}
        for path in (self.path / "checkpoints").glob("*epoch-*"):
            if path.name not in keep:
                shutil.rmtree(path, ignore_errors=True)


def _lines(reports: Sequence[Report]) -> str:
    return "".join(json.dumps(asdict(report)) + "\n" for report in reports)


def deciding_report(reports: Sequence[Report], objective: Objective) -> Report | None:
    """The report that decides a trial's score; None if no report has a value of the objective's metric.

    With scope `best` it is the one with the best value (the earliest if tied), with `last` the last one.
    """
    best: Report | None = None
    for report in reports[-1:] if objective.scope == "last" else reports:
        value = report.metrics.get(objective.metric, math.nan)
        if not math.isnan(value) and (best is None or objective.better(value, best.metrics[objective.metric])):
            best = report
    return best
