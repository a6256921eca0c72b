"""The trial's folder: the truth about a trial, on which resume, replay and the report stand.

    trials/0003/
        trial.json         id, number, params, kind, seed: written before the trial is handed to anyone
        study.yaml         the trial's resolved study
        reports.jsonl      one line an epoch; a line is written after its checkpoint is whole on disk
        checkpoints/       epoch-0003/{weights.safetensors, resume.safetensors, resume.json}; best and last are kept
        done.json          finished | stopped | failed; the first mark wins
        evaluation.json    the evaluation on test (final runs), with predictions.npz beside it

No file here is a pickle, and every file appears whole or not at all (written under another name, then renamed).
"""

from __future__ import annotations

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

from mmsweep.errors import UserError
from mmsweep.models.packing import values_of

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


def write_whole(path: Path, text: str) -> None:
    """Write `text` so that a reader sees the old file or the new one, never a part (rename is atomic on POSIX)."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


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
        return (self.path / "trial.json").exists()

    def trial(self) -> dict[str, Any]:
        return self._json("trial.json") or {}

    def reports(self) -> list[Report]:
        """All whole reports in order; a last line cut off by a kill is not a report."""
        path = self.path / "reports.jsonl"
        if not path.exists():
            return []
        reports: list[Report] = []
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(keepends=True), 1):
            if not line.endswith("\n"):
                break
            try:
                reports.append(Report(**json.loads(line)))
            except (ValueError, TypeError) as error:
                raise UserError(
                    "not a report", file=path, line=number, found=line[:80], expected="a JSON object"
                ) from error
        return reports

    def append(self, report: Report) -> None:
        """Record a report durably. Its checkpoint must be on disk before."""
        path = self.path / "reports.jsonl"
        whole = "".join(json.dumps(asdict(r)) + "\n" for r in self.reports())
        if path.exists() and path.stat().st_size != len(whole.encode()):
            write_whole(path, whole)  # drop a half-written last line, or the next one would be glued to it
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(report)) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def done(self) -> dict[str, Any] | None:
        return self._json("done.json")

    def mark_done(self, state: State, error: str | None = None) -> bool:
        """Mark the trial's end; the first mark wins (a stop that arrives after the last epoch changes nothing).

        Returns:
            Whether this call's mark is the one that stands.
        """
        temporary = self.path / f".done.{os.getpid()}"
        self.path.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps({"state": state, "error": error}))
        try:
            os.link(temporary, self.path / "done.json")  # unlike rename, a link fails where a mark stands already
        except FileExistsError:
            return False
        finally:
            temporary.unlink()
        return True

    def clear_done(self) -> None:
        """Take a failure's mark away, so that the trial is served again (`--retry-failed`)."""
        (self.path / "done.json").unlink(missing_ok=True)

    def last_checkpoint(self) -> Path | None:
        """The newest checkpoint that a report vouches for."""
        for report in reversed(self.reports()):
            if report.checkpoint and (self.path / report.checkpoint / "resume.json").exists():
                return self.path / report.checkpoint
        return None

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
        save_file({k: v.detach().cpu().contiguous() for k, v in weights.items()}, temporary / "weights.safetensors")
        save_file({k: v.detach().cpu().contiguous() for k, v in resume.items()}, temporary / "resume.safetensors")
        for name in ("weights.safetensors", "resume.safetensors"):
            with open(temporary / name, "rb") as file:
                os.fsync(file.fileno())  # the report line that vouches for them is synced too
        write_whole(temporary / "resume.json", json.dumps(state))
        shutil.rmtree(target, ignore_errors=True)
        os.replace(temporary, target)
        return str(target.relative_to(self.path))

    def keep_checkpoints(self, epochs: set[int]) -> None:
        """Delete the checkpoints of all other epochs, and what a kill left half-written."""
        keep = {self.checkpoint(epoch).name for epoch in epochs}
        for path in (self.path / "checkpoints").glob("*epoch-*"):
            if path.name not in keep:
                shutil.rmtree(path, ignore_errors=True)

    def _json(self, name: str) -> dict[str, Any] | None:
        path = self.path / name
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise UserError("not valid JSON", file=path, expected="the file as mmsweep wrote it") from error
        return dict(value)


def is_better(value: float, best: float, mode: str) -> bool:
    """Whether a metric's value beats the best so far; NaN never does, and anything beats NaN."""
    if math.isnan(value) or math.isnan(best):
        return not math.isnan(value)
    return value > best if mode == "max" else value < best


def deciding_report(reports: Sequence[Report], metric: str, mode: str, scope: str = "best") -> Report | None:
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
    try:
        weights = load_file(folder / "weights.safetensors")
        resume = load_file(folder / "resume.safetensors")
        return weights, resume, json.loads((folder / "resume.json").read_text())
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(
            f"the checkpoint cannot be read ({error})", file=folder, expected="a checkpoint folder"
        ) from error


def running_statistics(method: nn.Module) -> dict[str, Tensor]:
    """Buffers that training moves: means and variances of the batch norms that it trains."""
    return {
        f"{name}.{buffer}": values
        for name, module in method.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and any(p.requires_grad for p in module.parameters())
        for buffer, values in module.named_buffers(recurse=False)
    }


def load_weights(method: nn.Module, weights: dict[str, Tensor], where: object) -> None:
    """Put a checkpoint's trained tensors into a method of one slot.

    Raises:
        UserError: the checkpoint is of another architecture; names the first tensor that does not fit.
    """
    own = values_of(method) | running_statistics(method)
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
