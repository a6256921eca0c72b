"""Prints the plan of a study and the record of a sweep."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

# Files and pipes have no width; the default of 80 columns would cut tables.
out = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else 140)


REPORT_SECONDS = 10.0
"""Between two lines about data that is being prepared, where there is no terminal."""


@contextmanager
def preparing() -> Iterator[Callable[[int, int], None]]:
    """Show on stderr how far preparing data is, and how long it will take: a bar in a terminal, else a line at times.

    Yields a function of (rows done, rows in all).
    """
    console = Console(stderr=True, highlight=False)
    begun = shown = time.monotonic()
    first: int | None = None  # rows that an interrupted preparation had done
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), "rows, left:", TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("preparing data", total=None)

        def progress(done: int, total: int) -> None:
            nonlocal shown, first
            first = done if first is None else first
            bar.update(task, completed=done, total=total)
            now = time.monotonic()
            if not console.is_terminal and now - shown >= REPORT_SECONDS and done > first:
                left = (now - begun) / (done - first) * (total - done)
                console.print(f"preparing data: {done:,} of {total:,} rows, about {left:,.0f} s left")
                shown = now

        yield progress


def print_plan(plan: Mapping[str, Any]) -> None:
    """Print the plan of `assembly/plan.dry_run`."""
    from rich.table import Table

    steps = plan["steps_per_trial"] or "?"
    out.print(f"[bold]{plan['name']}[/bold]: {plan['trials']} trials on {plan['hosts']} host(s), {steps} steps each")
    slots = plan["slots"]
    out.print(f"slots of a host: {slots['asked']}" + (f" ({slots['reason']})" if slots["reason"] else ""))
    for problem in plan["missing"]:
        out.print(f"not on this machine yet: {problem}", markup=False)
    if (parameters := plan["parameters"]) is not None:
        table = Table(title=f"{parameters['total']:,} parameters, {parameters['trainable']:,} trainable")
        table.add_column("part")
        table.add_column("parameters", justify="right")
        table.add_column("share", justify="right")
        for part, count in parameters["by_part"].items():
            table.add_row(part, f"{count:,}", f"{count / parameters['total']:.2%}")
        out.print(table)
        out.print("tokens: " + ", ".join(f"{m} {n:,}" for m, n in plan["tokens"].items()))
        memory = {name: f"{size / 2**20:,.0f} MiB" for name, size in plan["memory"].items()}
        out.print(
            f"memory of a worker, roughly: {memory['total']} ({memory['weights']} weights, {memory['optimizer']} "
            f"gradients and optimizer, {memory['activations']} activations)"
        )
    for split, scenarios in plan["scenarios"].items():
        for name, counts in scenarios.items():
            out.print(f"{split} {name}: " + ", ".join(f"{n} {p}" for p, n in counts.items()))
    for key, dimension in plan["search"].items():
        out.print(f"search {key}: {dimension}", markup=False)


def print_record(record: Any) -> None:
    """Print a SweepRecord: the best trials and the final runs' test scores."""
    from mmsweep.readers.report.sentences import shortfall
    from mmsweep.readers.tables import groups_table, scenario_table, trials_table

    if record.trials:
        out.print(trials_table(record, limit=20).to_rich())
    finals = [g for g in record.groups if g.evaluations]
    if len(finals) > 1:
        out.print(groups_table(record).to_rich())
    for group in finals:
        out.print(scenario_table(group).to_rich())
        if text := shortfall(record, group):
            out.print(f"{group.name}: {text}", markup=False)
    if packs := record.packing.sentence():
        print(f"packs: {packs}")
    for group, run in failed_finals(record):
        print(f"final/{group}/seed-{run.seed} failed: {run.error}")


def failed_finals(record: Any) -> list[tuple[str, Any]]:
    """The failed final runs as (group, run)."""
    return [(group.name, run) for group in record.groups for run in group.runs if run.state == "failed"]
