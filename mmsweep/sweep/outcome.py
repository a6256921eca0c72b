"""How a sweep ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from mmsweep.record.sweep import SweepRecord


@dataclass(frozen=True)
class SweepOutcome:
    """How a sweep (or a single training) ended.

    Args:
        state: finished | interrupted (the folder's own state is "finished" where only the report was cut off).
        folder: the sweep's folder.
        mlflow_run_id: the parent run.
        ui_command: shows the runs.
        warnings: what went wrong without ending the sweep (a tracking server that did not answer).
        signal: number of the signal that interrupted it.
        reason: what interrupted it, where that was no signal.
    """

    state: str
    folder: Path
    mlflow_run_id: str
    ui_command: str
    warnings: list[str] = field(default_factory=list)
    signal: int | None = None
    reason: str | None = None

    @property
    def record(self) -> SweepRecord:
        return SweepRecord.load(self.folder)
