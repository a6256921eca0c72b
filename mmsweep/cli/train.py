"""The verbs that train: tune, train, submit."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from mmsweep.cli.common import AsJson, Out, Overrides, StudyFile, prepared, studying
from mmsweep.cli.printing import failed_finals, print_plan, print_record
from mmsweep.ending import print_interrupted, resume_command
from mmsweep.errors import UserError
from mmsweep.record.files import json_text
from mmsweep.study import Study


def tune(
    study_file: StudyFile,
    overrides: Overrides = None,
    out_folder: Out = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan; load and start nothing.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Resume the sweep in its folder.")] = False,
    extend: Annotated[int, typer.Option("--extend", min=0, help="Resume with N more trials.", metavar="N")] = 0,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="With --resume: train failed trials again.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Sweep a study's search space, train the winner with several seeds, evaluate it on test, write the report."""
    if retry_failed and not (resume or extend):
        raise UserError(
            "a new sweep has no failed trials", key="--retry-failed", expected="also --resume or --extend N"
        )
    with studying(study_file, overrides) as study:
        if dry_run:
            from mmsweep.assembly.plan import dry_run as plan_of

            plan = plan_of(study)
            print(json_text(plan)) if as_json else print_plan(plan)
            return
        from mmsweep.assembly.checks import check_sweep, require_weights
        from mmsweep.sweep.start import run_sweep

        folder = out_folder or Path("sweeps") / study.name
        if resume or extend:
            study = _as_it_began(study, folder, overrides)
        check_sweep(study)
        require_weights(study)
        outcome = run_sweep(
            study,
            folder,
            resume=resume or extend > 0,
            extend=extend,
            retry_failed=retry_failed,
            **_shared(study, overrides, as_json),
        )
    conclude(outcome, " --retry-failed", as_json)


def train(
    study_file: StudyFile,
    overrides: Overrides = None,
    out_folder: Out = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume from the last checkpoint.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train a study's configuration once, without its search space, and evaluate it on test."""
    from mmsweep.assembly.checks import check_training, require_weights
    from mmsweep.sweep.start import train_one

    with studying(study_file, overrides) as study:
        folder = out_folder or Path("sweeps") / f"{study.name}-train"
        if resume:
            study = _as_it_began(study, folder, overrides)
        check_training(study)
        require_weights(study)
        outcome = train_one(study, folder, resume=resume, **_shared(study, overrides, as_json))
    conclude(outcome, "", as_json)


def submit(
    study_file: StudyFile,
    overrides: Overrides = None,
    address: Annotated[str, typer.Option(help="The cluster's dashboard.")] = "http://127.0.0.1:8265",
    out_folder: Annotated[Path | None, typer.Option("--out", help="An absolute path that outlives the job.")] = None,
    print_only: Annotated[bool, typer.Option("--print", help="Print the command only.")] = False,
) -> None:
    """Print and run the `ray job submit` command that tunes this study on a cluster."""
    with studying(study_file, overrides) as study:
        from mmsweep.assembly.checks import check_sweep

        check_sweep(study)
    if out_folder is None or not out_folder.is_absolute():
        raise UserError(
            "a job's working directory is a copy that Ray deletes",
            key="--out",
            found=None if out_folder is None else str(out_folder),
            expected="an absolute path that outlives the job",
        )
    command = ["ray", "job", "submit", "--address", address, "--working-dir", ".", "--"]
    command += ["python", "-m", "mmsweep", "tune", str(study_file), *(overrides or []), "--out", str(out_folder)]
    print(shlex.join(command))
    if not print_only:
        raise typer.Exit(subprocess.run(command, check=False).returncode)


def _shared(study: Study, overrides: list[str] | None, as_json: bool) -> dict[str, Any]:
    """The arguments common to a sweep and a single training."""
    from mmsweep.assembly.host import facts

    return {
        "live": not as_json,
        "describe": lambda: facts(study, prepared(study)),
        "overrides": overrides or [],
    }


def _as_it_began(study: Study, folder: Path, overrides: list[str] | None) -> Study:
    from mmsweep.sweep.folder import as_it_began

    resumed, values = as_it_began(study, folder.absolute(), overrides or [])
    if values:
        print(f"The sweep keeps its first values: {', '.join(values)}", file=sys.stderr)
    return resumed


def conclude(outcome: Any, retry: str, as_json: bool) -> None:
    """Print a sweep's results and how to resume it; `retry` is the option that retries failed finals."""
    record = outcome.record
    if as_json:
        print(json_text(record.to_json()))
    else:
        print_record(record)
        for warning in outcome.warnings:
            print(f"warning: {warning}")
        index = outcome.folder / "report" / "index.html"
        if index.exists():
            print(f"report: {index}")
        print(f"runs:   {outcome.ui_command}")
    if outcome.state != "finished":
        print_interrupted(sys.argv[1:], outcome.reason)
        raise typer.Exit(128 + outcome.signal if outcome.signal else 1)
    if failed_finals(record):
        print(f"Final runs failed. Retry them with: {resume_command(sys.argv[1:])}{retry}", file=sys.stderr)
        raise typer.Exit(1)
