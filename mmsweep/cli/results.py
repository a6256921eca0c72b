"""The verbs for results: evaluate, report, show, best."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmsweep.cli.common import AsJson, SweepPath, record_of, sweep_folder
from mmsweep.cli.printing import out, print_record
from mmsweep.errors import UserError
from mmsweep.record.files import json_text


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
    constant = {**record["constant"]["patterns"], **record["constant"]["scenarios"]}
    for name, entry in {**record["scenarios"], **record["patterns"], **record["scenarios"]}.items():
        scores = (entry["metrics"], constant[name])
        table.add_row(name, str(entry["rows"]), *(f"{score[m]:.4f}" for m in metrics for score in scores))
    for name in ("mean_missing", "worst_missing"):
        scores = (record[name], record["constant"][name])
        table.add_row(name, "", *(f"{score[m]:.4f}" for m in metrics for score in scores))
    table.caption = f"constant: a predictor that always predicts {constant_words(record['task'])}, on the same rows"
    out.print(table)


def report(
    sweep: SweepPath,
    over: Annotated[str, typer.Option(help="What intervals resample: some of rows, groups and seeds.")] = "",
) -> None:
    """Write a sweep's report again: report/index.html, figures and tables."""
    from mmsweep.readers.report.bootstrap import OVER
    from mmsweep.readers.report.page import write_report

    names = [name.strip() for name in over.split(",")] if over else []
    if not set(names) <= set(OVER):
        raise UserError("this cannot be resampled", key="--over", found=over, expected=f"some of {', '.join(OVER)}")
    print(write_report(sweep_folder(sweep), names))


def show(sweep: SweepPath, as_json: AsJson = False) -> None:
    """Show a sweep's trials and test scores."""
    record = record_of(sweep)
    if as_json:
        print(json_text(record.to_json()))
    else:
        print_record(record)


def best(sweep: SweepPath, as_json: AsJson = False) -> None:
    """Print the best configuration as a study file, which `mmsweep train` trains to the same score."""
    record = record_of(sweep)
    text = record.best_study_yaml()
    if text is None or record.best is None:
        raise UserError("no trial has a score yet", file=record.folder)
    if as_json:
        import yaml

        print(json_text({"trial": record.best.to_json(), "study": yaml.safe_load(text)}))
    else:
        score = f"{record.objective.metric} = {record.best.objective} (validation)"
        print(f"# trial {record.best.id} of {record.name}: {score}\n{text}", end="")
