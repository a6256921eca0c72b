"""Arguments that several verbs share, and functions that read them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmsweep.cli.printing import preparing
from mmsweep.errors import UserError
from mmsweep.study import Study
from mmsweep.study.source import Source

if TYPE_CHECKING:
    from mmsweep.data.prepared import PreparedData
    from mmsweep.record.sweep import SweepRecord

StudyFile = Annotated[Path, typer.Argument(help="A study file (YAML).", metavar="STUDY")]
StudyOrDataset = Annotated[
    Path, typer.Argument(help="A study file (YAML), or a dataset's name.", metavar="STUDY|DATASET")
]
Overrides = Annotated[list[str] | None, typer.Argument(help="key=value, e.g. train.epochs=2", metavar="[KEY=VALUE]...")]
SweepPath = Annotated[Path, typer.Argument(help="A sweep's folder, or its name under ./sweeps.", metavar="SWEEP")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Out = Annotated[Path | None, typer.Option("--out", help="The sweep's folder; default sweeps/<name>.")]


@contextmanager
def studying(file: Path, overrides: list[str] | None) -> Iterator[Study]:
    """Read a study; errors within the context that name a key but no file get the study's file and line."""
    study = Study.load(file, overrides or [])
    try:
        yield study
    except UserError as problem:
        if problem.file is not None:
            raise
        if problem.key is None:
            raise problem.placed(file=file) from problem
        if problem.key.split(".")[0] not in Study.model_fields:  # an option of the command, or an environment variable
            raise
        raise problem.placed(**Source.read(file, overrides or []).place(problem.key)) from problem


def prepared(study: Study) -> PreparedData:
    """A study's prepared data, decoded first if need be; says how long that takes and what is left out."""
    from mmsweep.assembly.build import prepare_data
    from mmsweep.sweep.decoding import with_ray

    with preparing() as progress:
        ready = prepare_data(study, progress, with_ray)
    if omission := ready.omission():
        print(f"warning: {omission}", file=sys.stderr)
    return ready


def sweep_folder(path: Path) -> Path:
    """A sweep's folder, from a path or a name under ./sweeps; sweeps of older versions get their summary."""
    from mmsweep.record.summary import lacks_summary

    folder = path if path.exists() or not (Path("sweeps") / path).exists() else Path("sweeps") / path
    if lacks_summary(folder):
        from mmsweep.sweep.summary import summarize

        summarize(folder)
    return folder


def record_of(path: Path) -> SweepRecord:
    """The record of a sweep, from a path or a name under ./sweeps."""
    from mmsweep.record.sweep import SweepRecord

    return SweepRecord.load(sweep_folder(path))
