"""The trial's folder: the truth about a trial, on which resume, replay and the report stand.

    trials/0003/
        trial.json         id, number, params, kind, seed: written before the trial is handed to anyone
        study.yaml         the trial's resolved study
        reports.jsonl      one line an epoch; a line is written after its checkpoint is whole on disk
        checkpoints/       epoch-0003/{weights.safetensors, resume.safetensors, resume.json, manifest.json}; best and
                           last are kept
        done.json          finished | stopped | failed; the first mark wins
        evaluation.json    the evaluation on test (final runs), with predictions.npz beside it

No file here is a pickle, and every file appears whole or not at all (written under another name, then renamed). What a
disk damages later is found by the checksums in a checkpoint's manifest: training goes on from the newest whole one.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmsweep.environment_faults import environment_fault
from mmsweep.errors import UserError
from mmsweep.metrics import Mode, is_better
from mmsweep.models.packing import values_of
from mmsweep.record.files import (
    CheckpointFile,
    DoneFile,
    TrialFile,
    parse_record,
    permit,
    read_content,
    read_record,
    write_whole,
)

MANIFEST = "manifest.json"
WEIGHTS, RESUME, STATE = "weights.safetensors", "resume.safetensors", "resume.json"
State = Literal["finished", "stopped", "failed"]


@dataclass(frozen=True)
class Report:
    """What a trial says after an epoch.

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


class TrialFolder:
    """One trial's folder; see the top of this file for what lies in it."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def create(self, trial: dict[str, Any], study_yaml: str) -> None:
        """Lay the folder out; a folder that exists already keeps everything it has."""
        (self.path / "checkpoints").mkdir(parents=True, exist_ok=True)
        if not (self.path / "study.yaml").exists():
            write_whole(self.path / "study.yaml", study_yaml)
        if not (self.path / "trial.json").exists():
            write_whole(self.path / "trial.json", json.dumps(trial, indent=1, sort_keys=True))

    def exists(self) -> bool:
        """Whether a trial lies here. Raises UserError where there are records of one, and not what it was."""
        if (self.path / "trial.json").exists():
            return True
        for name in ("reports.jsonl", "done.json"):
            if (self.path / name).exists():
                raise UserError("the file is missing", file=self.path / "trial.json", hint=f"{name} lies beside it.")
        return False

    def trial(self) -> dict[str, Any]:
        return dict(read_record(self.path / "trial.json", TrialFile) or {})

    @property
    def _reports_file(self) -> Path:
        return self.path / "reports.jsonl"

    def reports(self) -> list[Report]:
        """All whole reports in order; a last line cut off by a kill is not a report."""
        *lines, _ = (read_content(self._reports_file) or b"").split(b"\n")
        return [
            parse_record(line, Report, file=self._reports_file, line=number, problem="not a report")
            for number, line in enumerate(lines, 1)
        ]

    def append(self, report: Report) -> None:
        """Record a report durably. Its checkpoint must be on disk before."""
        path, whole = self._reports_file, _lines(self.reports())
        if path.exists() and path.stat().st_size != len(whole.encode()):
            write_whole(path, whole)  # drop a half-written last line, or the next one would be glued to it
        with open(path, "a", encoding="utf-8") as file:
            file.write(_lines([report]))
            file.flush()
            os.fsync(file.fileno())

    def done(self) -> dict[str, Any] | None:
        mark = read_record(self.path / "done.json", DoneFile)
        return None if mark is None else {"error": None, **mark}

    def mark_done(self, state: State, error: str | None = None) -> bool:
        """Mark the trial's end; the first mark wins (a stop that arrives after the last epoch changes nothing).

        Returns:
            Whether this call's mark is the one that stands.
        """
        temporary = self.path / f".done.{os.getpid()}"
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            write_whole(temporary, json.dumps({"state": state, "error": error}))
            os.link(temporary, self.path / "done.json")  # unlike rename, a link fails where a mark stands already
        except FileExistsError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def clear_done(self) -> None:
        """Take a failure's mark away, so that the trial is served again (`--retry-failed`)."""
        (self.path / "done.json").unlink(missing_ok=True)

    def last_checkpoint(self) -> Path | None:
        """The newest whole checkpoint that a report vouches for; see `damage`."""
        return self._sound()[0]

    def damage(self) -> list[str]:
        """Why training does not go on from the last report's checkpoint, a sentence for each that is passed over."""
        return self._sound()[1]

    def _sound(self) -> tuple[Path | None, list[str]]:
        """The newest checkpoint that is whole, and so is the one of the best epoch until then; what is wrong with those
        after it. Of the epochs before the last report, most checkpoints were deleted when better ones were written."""
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
        """What is wrong with the best checkpoint as of this one; without it the run could not be evaluated."""
        state = read_record(folder / STATE, CheckpointFile)
        best = state.get("best") if state else None
        return damage(self.checkpoint(best["epoch"])) if best else None

    def settle(self) -> list[str]:
        """Forget the reports after the last whole checkpoint: their epochs are trained again, to the same values.

        Call it where the folder is held alone, before training goes on.

        Returns:
            What was passed over and where the trial goes on, a sentence each; empty where nothing is damaged.
        """
        folder, problems = self._sound()
        reports = self.reports()
        kept = [r for r in reports if folder is not None and r.epoch <= _epoch(folder)]
        if len(kept) < len(reports):
            write_whole(self._reports_file, _lines(kept))
            problems.append(f"it goes on after epoch {kept[-1].epoch}" if kept else "it starts anew")
        return problems

    def checkpoint(self, epoch: int) -> Path:
        return self.path / "checkpoints" / f"epoch-{epoch:04d}"

    def save_checkpoint(
        self, epoch: int, weights: dict[str, torch.Tensor], resume: dict[str, torch.Tensor], state: dict[str, Any]
    ) -> str:
        """Write a checkpoint whole.

        Args:
            epoch: the epoch it stands after, counted from 1.
            weights: what was trained, by parameter name.
            resume: the optimiser's and generators' tensors.
            state: what else exact resume needs, JSON-able.

        Returns:
            The checkpoint's folder relative to the trial's folder.
        """
        target = self.checkpoint(epoch)
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            for name, tensors in ((WEIGHTS, weights), (RESUME, resume)):
                save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary / name)
                permit(temporary / name)
                with open(temporary / name, "rb") as file:
                    os.fsync(file.fileno())  # the report line that vouches for them is synced too
            write_whole(temporary / STATE, json.dumps(state))
            manifest = {name: _checksum(temporary / name) for name in (WEIGHTS, RESUME, STATE)}
            write_whole(temporary / MANIFEST, json.dumps(manifest, indent=1))  # last: it says that the others are whole
            shutil.rmtree(target, ignore_errors=True)
            os.replace(temporary, target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)  # a full disk needs the space
            raise
        return str(target.relative_to(self.path))

    def keep_checkpoints(self, epochs: set[int]) -> None:
        """Delete the checkpoints of all other epochs, and what a kill left half-written."""
        keep = {self.checkpoint(epoch).name for epoch in epochs}
        for path in (self.path / "checkpoints").glob("*epoch-*"):
            if path.name not in keep:
                shutil.rmtree(path, ignore_errors=True)


def _lines(reports: Sequence[Report]) -> str:
    return "".join(json.dumps(asdict(report)) + "\n" for report in reports)


def _epoch(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("epoch-"))


def deciding_report(reports: Sequence[Report], metric: str, mode: Mode, scope: str = "best") -> Report | None:
    """The report that a trial is judged by; None where no report has a finite value.

    With scope `best` the one with the best value of the metric, the earliest of equals; with `last` the last one.
    """
    best: Report | None = None
    if scope == "last":
        reports = reports[-1:]
    for report in reports:
        value = report.metrics.get(metric, math.nan)
        if not math.isnan(value) and (best is None or is_better(value, best.metrics[metric], mode)):
            best = report
    return best


def load_checkpoint(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], dict[str, Any]]:
    """Read a checkpoint: (weights, resume tensors, resume state). Raises UserError where it is not whole."""
    check_files(folder, WEIGHTS, RESUME, STATE)
    state = read_record(folder / STATE, CheckpointFile)
    try:
        return load_file(folder / WEIGHTS), load_file(folder / RESUME), dict(state or {})
    except (OSError, ValueError, SafetensorError) as error:
        raise _unreadable(folder, str(error)) from error


def check_files(folder: Path, *names: str) -> bool:
    """Compare files of a checkpoint with the checksums in its manifest.

    Returns:
        Whether there are any: a checkpoint of an older mmsweep has no manifest.

    Raises:
        UserError: a file is missing, damaged or cannot be read.
    """
    try:
        for name in names:
            if not (folder / name).is_file():
                raise _unreadable(folder, f"{name} is missing")
        manifest = read_record(folder / MANIFEST, dict[str, str])
        for name in names:
            if manifest is not None and _checksum(folder / name) != manifest.get(name):
                raise _unreadable(folder, f"{name} differs from its checksum in {MANIFEST}")
    except OSError as error:
        raise _unreadable(folder, str(error)) from error
    return manifest is not None


def _unreadable(folder: Path, reason: str) -> UserError:
    return UserError(f"the checkpoint cannot be read ({reason})", file=folder, expected="a checkpoint folder")


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, as a sentence; None where it is whole.

    Raises:
        UserError: nothing is known of it, since the disk or the memory gave out.
    """
    try:
        if not check_files(folder, WEIGHTS, RESUME, STATE):
            load_checkpoint(folder)
    except UserError as problem:
        if environment_fault(problem):
            raise
        return f"{os.path.relpath(str(problem.file), folder.parents[1])}: {problem.problem}"
    return None


def _checksum(path: Path) -> str:
    """SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def running_statistics(method: nn.Module) -> dict[str, Tensor]:
    """Buffers that training moves: means and variances of the batch norms that it trains."""
    return {
        f"{name}.{buffer}": values
        for name, module in method.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and any(p.requires_grad for p in module.parameters())
        for buffer, values in module.named_buffers(recurse=False)
    }


def load_weights(method: nn.Module, weights: dict[str, Tensor], where: object) -> None:
    """Put a checkpoint's trained tensors into a method of one slot; what it keeps of the task is the task's to read.

    Raises:
        UserError: the checkpoint is of another architecture; names the first tensor that does not fit.
    """
    own = values_of(method) | running_statistics(method)
    weights = {name: value for name, value in weights.items() if not name.startswith("task.")}
    for name in sorted(own.keys() ^ weights.keys()):
        side = "lacks" if name in own else "holds an unknown"
        raise UserError(
            f"a checkpoint of another architecture: it {side} tensor",
            file=where,
            key=name,
            expected="the tensors that its study.yaml trains",
        )
    for name, value in own.items():
        if value.shape != weights[name].shape:
            raise UserError(
                "a checkpoint of another architecture",
                file=where,
                key=name,
                found=tuple(weights[name].shape),
                expected=str(tuple(value.shape)),
            )
        value.copy_(weights[name])
