"""The command line: each verb parses, calls one function, prints. The only place that catches errors for people."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from mmsweep.ending import exit_code, resume_command, say_interrupted
from mmsweep.errors import UserError
from mmsweep.record.files import json_text
from mmsweep.study import Study
from mmsweep.study.source import Source
from mmsweep.terminal import failed_finals, out, print_plan, print_record

if TYPE_CHECKING:
    from mmsweep.record.sweep import SweepRecord


class _Carried(Exception):
    """Carries to `main` what Typer would turn into an end of its own: Ctrl-C, and EOFError, which it takes for that."""


class _Verbs(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, EOFError) as end:
            raise _Carried from end


app = typer.Typer(
    cls=_Verbs,
    add_completion=True,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Which configuration keeps working when a modality is missing: sweeps with Ray, Optuna and MLflow.",
)
data_app = typer.Typer(no_args_is_help=True, help="Datasets: what there is, what is found, prepare once.")
app.add_typer(data_app, name="data")

StudyFile = Annotated[Path, typer.Argument(help="A study file (YAML).", metavar="STUDY")]
StudyOrDataset = Annotated[
    Path, typer.Argument(help="A study file (YAML), or a dataset's name.", metavar="STUDY|DATASET")
]
Overrides = Annotated[list[str] | None, typer.Argument(help="key=value, e.g. train.epochs=2", metavar="[KEY=VALUE]...")]
SweepPath = Annotated[Path, typer.Argument(help="A sweep's folder, or its name under ./sweeps.", metavar="SWEEP")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Out = Annotated[Path | None, typer.Option("--out", help="The sweep's folder; default sweeps/<name>.")]


@app.command()
def tune(
    study_file: StudyFile,
    overrides: Overrides = None,
    out_folder: Out = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan; load and start nothing.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the sweep in its folder.")] = False,
    extend: Annotated[int, typer.Option("--extend", min=0, help="Go on, with N trials more.", metavar="N")] = 0,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="With --resume: train failed trials again.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Sweep a study's search space, re-train the winner over seeds, evaluate it on test, write the report."""
    if retry_failed and not (resume or extend):
        raise UserError(
            "a new sweep has no failed trials", key="--retry-failed", expected="--resume or --extend N with it"
        )
    with _studying(study_file, overrides) as study:
        if dry_run:
            from mmsweep.assembly.plan import dry_run as plan_of

            plan = plan_of(study)
            print(json_text(plan)) if as_json else print_plan(plan)
            return
        from mmsweep.assembly.build import prepare_data
        from mmsweep.assembly.checks import check_sweep, require_weights
        from mmsweep.assembly.host import facts
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
            live=not as_json,
            describe=lambda: facts(study, prepare_data(study)),
            overrides=overrides or [],
        )
    _conclude(outcome, " --retry-failed", as_json)


@app.command()
def train(
    study_file: StudyFile,
    overrides: Overrides = None,
    out_folder: Out = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train a study's own configuration once and evaluate it on test."""
    from mmsweep.assembly.build import prepare_data
    from mmsweep.assembly.checks import check_training, require_weights
    from mmsweep.assembly.host import facts
    from mmsweep.sweep.start import train_one

    with _studying(study_file, overrides) as study:
        folder = out_folder or Path("sweeps") / f"{study.name}-train"
        if resume:
            study = _as_it_began(study, folder, overrides)
        check_training(study)
        require_weights(study)
        outcome = train_one(
            study,
            folder,
            resume=resume,
            live=not as_json,
            describe=lambda: facts(study, prepare_data(study)),
            overrides=overrides or [],
        )
    _conclude(outcome, "", as_json)


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="A trial's or final run's folder.", metavar="RUN")],
    split: Annotated[str, typer.Option(help="val or test")] = "test",
    device: Annotated[str, typer.Option(help="cpu or cuda:0")] = "cpu",
    as_json: AsJson = False,
) -> None:
    """Evaluate a run's best checkpoint under every pattern and scenario of its study."""
    from mmsweep.assembly.host import evaluate_run

    if split not in ("val", "test"):
        raise UserError("no such split", key="--split", found=split, expected="val or test")
    record = evaluate_run(run, split, device)
    if as_json:
        print(json_text(record))
        return
    from rich.table import Table

    from mmsweep.readers.wording import constant_words

    metrics = list(record["mean_missing"])
    table = Table(title=f"{run}: {split}, epoch {record['epoch']}")
    for column in ("scenario", "n", *(text for m in metrics for text in (m, "constant"))):
        table.add_column(column, justify="left" if column == "scenario" else "right")
    constant = record["constant"]
    for name, entry in {
        **record["scenarios"],
        **{k: v for k, v in record["patterns"].items() if k not in record["scenarios"]},
    }.items():
        same = {**constant["patterns"], **constant["scenarios"]}[name]
        table.add_row(name, str(entry["rows"]), *(f"{v[m]:.4f}" for m in metrics for v in (entry["metrics"], same)))
    for name in ("mean_missing", "worst_missing"):
        table.add_row(name, "", *(f"{v[m]:.4f}" for m in metrics for v in (record[name], constant[name])))
    table.caption = f"constant: a predictor that always says {constant_words(record['task'])}, on the same rows"
    out.print(table)


@app.command()
def report(sweep: SweepPath) -> None:
    """Write a sweep's report again: report/index.html, pictures and tables."""
    from mmsweep.readers.report.page import write_report

    print(write_report(_sweep(sweep)))


@app.command()
def show(sweep: SweepPath, as_json: AsJson = False) -> None:
    """Show a sweep's trials and test scores; starts nothing."""
    record = _record(sweep)
    if as_json:
        print(json_text(record.to_json()))
    else:
        print_record(record)


@app.command()
def best(sweep: SweepPath, as_json: AsJson = False) -> None:
    """Print the best configuration as a study file; `mmsweep train` re-runs it to the same score."""
    record = _record(sweep)
    text = record.best_study_yaml()
    if text is None or record.best is None:
        raise UserError("no trial has a score yet", file=record.folder)
    if as_json:
        import yaml

        print(json_text({"trial": record.best.to_json(), "study": yaml.safe_load(text)}))
    else:
        value = record.best.objective
        print(
            f"# trial {record.best.id} of {record.name}: {record.objective.metric} = {value} (validation)\n{text}",
            end="",
        )


@app.command()
def validate(
    files: Annotated[list[Path], typer.Argument(help="Study files.", metavar="FILE...")], as_json: AsJson = False
) -> None:
    """Check study files without starting anything; every problem is named with its file, line and key."""
    problems = {}
    for file in files:
        try:
            with _studying(file, None) as study:
                from mmsweep.assembly.checks import check_sweep

                check_sweep(study)
                from mmsweep.assembly.checks import missing_weights

                missing = missing_weights(study)
            if not as_json:
                print(f"{file}: ok, {len(study.search)} searched keys")
                for problem in missing:
                    print(f"{file}: not on this machine yet: {problem}")
        except UserError as problem:
            problems[str(file)] = str(problem)
    if as_json:
        print(json_text({str(f): problems.get(str(f)) for f in files}))
    else:
        for text in problems.values():
            print(f"mmsweep: {text}", file=sys.stderr)
    if problems:
        raise typer.Exit(2)


@app.command()
def submit(
    study_file: StudyFile,
    overrides: Overrides = None,
    address: Annotated[str, typer.Option(help="The cluster's dashboard.")] = "http://127.0.0.1:8265",
    out_folder: Annotated[Path | None, typer.Option("--out", help="An absolute folder that outlives the job.")] = None,
    print_only: Annotated[bool, typer.Option("--print", help="Print the command only.")] = False,
) -> None:
    """Print and run the `ray job submit` that tunes this study on a cluster."""
    with _studying(study_file, overrides) as study:
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


@data_app.command("list")
def data_list(as_json: AsJson = False) -> None:
    """The datasets that studies may name."""
    from mmsweep.data.registry import dataset_card, datasets

    cards = [dataset_card(name) for name in datasets()]
    if as_json:
        print(json_text([asdict(card) for card in cards]))
        return
    for card in cards:
        rows = ", ".join(f"{n} {split}" for split, n in card.rows.items())
        kinds = ", ".join(card.modalities) or "any"
        out.print(f"[bold]{card.name}[/bold]: {card.title}\n  modalities: {kinds}; rows: {rows or 'yours'}")
        out.print(f"  get: {card.get}" + ("" if card.reader else " (not read yet: dry runs only)"), markup=False)


@data_app.command("check")
def data_check(study_file: StudyOrDataset, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Read a study's dataset (or one by its name: tuxpaint data.root=…) and say what was found and what is missing."""
    from mmsweep.assembly.build import make_builder
    from mmsweep.data.check import check, named_builder

    if (builder := named_builder(str(study_file), overrides or [])) is not None:
        findings = check(builder)
    else:
        with _studying(study_file, overrides) as study:
            findings = check(make_builder(study), study.data.on_bad)
    print(json_text(findings) if as_json else "\n".join(findings))
    if any(line.startswith("error: ") for line in findings):
        raise typer.Exit(1)


@data_app.command("prepare")
def data_prepare(study_file: StudyOrDataset, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Decode a study's dataset once, into the cache that training maps."""
    from mmsweep.assembly.build import prepare_data
    from mmsweep.data.check import named_builder

    if (builder := named_builder(str(study_file), overrides or [])) is not None:
        raise UserError(
            "the data is here; how its rows are prepared depends on a study's encoders",
            found=builder.name,
            expected=f"a study whose data.dataset is {builder.name}",
        )
    with _studying(study_file, overrides) as study:
        data = prepare_data(study)
    rows = {name: len(split) for name, split in data.splits.items()}
    if as_json:
        print(
            json_text(
                {
                    "rows": rows,
                    "fingerprint": data.fingerprint,
                    "skipped": len(data.skipped),
                    "folder": str(data.folder),
                }
            )
        )
    else:
        print(f"{', '.join(f'{n} {s}' for s, n in rows.items())} rows in {data.folder} ({len(data.skipped)} skipped)")


def main() -> None:
    """Run the command line; exits with 0, 1 (something failed), 2 (wrong input), 130, 143 or 129 (by a signal)."""
    try:
        code = app(standalone_mode=False)
    except UserError as problem:
        print(f"mmsweep: {problem}", file=sys.stderr)
        sys.exit(2)
    except typer.Exit as end:
        sys.exit(end.exit_code)
    except (_Carried, KeyboardInterrupt, typer.Abort) as end:
        if isinstance(end.__cause__, EOFError):
            sys.exit(_unexpected(end.__cause__))
        say_interrupted(sys.argv[1:])
        sys.exit(exit_code(end.__cause__ or end))
    except OSError as problem:  # a disk that is full or gone, a path that cannot be
        named = f"{problem.filename}: " if problem.filename is not None else ""
        print(f"mmsweep: {named}{problem.strerror or problem}", file=sys.stderr)
        sys.exit(1)
    except Exception as problem:
        if not hasattr(problem, "format_message"):
            sys.exit(_unexpected(problem))
        if not problem.format_message():  # no verb: the help was printed
            sys.exit(2)
        print(f"mmsweep: {problem.format_message()}", file=sys.stderr)
        sys.exit(2)
    sys.exit(code if isinstance(code, int) else 0)


def _unexpected(problem: Exception) -> int:
    """Say in one line what no check foresaw, and where its traceback lies; $MMSWEEP_DEBUG raises it instead."""
    if os.environ.get("MMSWEEP_DEBUG"):
        raise problem
    reason = " ".join(str(problem).split())[:300]
    with tempfile.NamedTemporaryFile("w", prefix="mmsweep-", suffix=".log", delete=False, encoding="utf-8") as file:
        file.writelines(traceback.format_exception(problem))
    print(f"mmsweep: {type(problem).__name__}: {reason or 'no reason given'} (traceback: {file.name})", file=sys.stderr)
    return 1


@contextmanager
def _studying(file: Path, overrides: list[str] | None) -> Iterator[Study]:
    """Read a study; what is refused of it within, by a floor that knows keys but no files, gets file and line."""
    study = Study.load(file, overrides or [])
    try:
        yield study
    except UserError as problem:
        if problem.file is not None:
            raise
        if problem.key is None:
            raise problem.placed(file=file) from problem
        if problem.key.split(".")[0] not in Study.model_fields:  # an option, or a variable of the environment
            raise
        raise problem.placed(**Source.read(file, overrides or []).place(problem.key)) from problem


def _as_it_began(study: Study, folder: Path, overrides: list[str] | None) -> Study:
    from mmsweep.sweep.folder import as_it_began

    own, kept = as_it_began(study, folder.absolute(), overrides or [])
    if kept:
        print(f"The sweep goes on as it began: {', '.join(kept)}", file=sys.stderr)
    return own


def _sweep(path: Path) -> Path:
    """A sweep's folder from a path or a name under ./sweeps; one that an older mmsweep began gets its summary."""
    from mmsweep.record.summary import lacks_summary

    folder = path if path.exists() or not (Path("sweeps") / path).exists() else Path("sweeps") / path
    if lacks_summary(folder):
        from mmsweep.sweep.summary import summarize

        summarize(folder)
    return folder


def _record(path: Path) -> SweepRecord:
    from mmsweep.record.sweep import SweepRecord

    return SweepRecord.load(_sweep(path))


def _conclude(outcome: Any, retry: str, as_json: bool) -> None:
    """Say how a sweep ended, and how to go on; `retry` is what the command needs to try again what failed."""
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
        say_interrupted(sys.argv[1:], outcome.reason)
        raise typer.Exit(128 + outcome.signal if outcome.signal else 1)
    if failed_finals(record):
        print(f"Final runs failed. To try them again: {resume_command(sys.argv[1:])}{retry}", file=sys.stderr)
        raise typer.Exit(1)


if __name__ == "__main__":
    main()
