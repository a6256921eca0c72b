"""The tables of a sweep as text, and their output as terminal tables, Markdown, LaTeX, CSV and (page.py) HTML."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rich.table
from rich import box
from rich.text import Text

from mmsweep.readers import wording
from mmsweep.readers.markdown import markdown_text
from mmsweep.readers.report.leaderboard import Leaderboard
from mmsweep.record.results import Cell, FinalGroup
from mmsweep.record.sweep import SweepRecord


@dataclass(frozen=True)
class Table:
    """A table of text.

    Args:
        title: the content, with metric and unit.
        columns: headings; the first `left` columns are text, the others numbers.
        rows: one entry per column.
        strong: indices of the rows to emphasise (the winner).
        faint: indices of the rows to dim (stopped early, failed).
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 1
    strong: frozenset[int] = frozenset()
    faint: frozenset[int] = frozenset()

    def to_rich(self) -> rich.table.Table:
        """A table for the terminal."""
        table = rich.table.Table(title=self.title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
        for position, column in enumerate(self.columns):
            is_text = position < self.left
            table.add_column(Text(column), justify="left" if is_text else "right", no_wrap=position == 0 or not is_text)
        for position, row in enumerate(self.rows):
            style = "bold" if position in self.strong else "dim" if position in self.faint else None
            table.add_row(*map(Text, row), style=style)
        return table

    def to_markdown(self) -> str:
        """A pipe table under its title."""
        escaped = [[markdown_text(text) for text in row] for row in [self.columns, *self.rows]]
        marks = ["---" if position < self.left else "---:" for position in range(len(self.columns))]
        lines = [f"| {' | '.join(row)} |" for row in [escaped[0], marks, *escaped[1:]]]
        return f"**{markdown_text(self.title)}**\n\n" + "\n".join(lines) + "\n"

    def to_latex(self) -> str:
        """A booktabs table."""
        spec = "l" * self.left + "r" * (len(self.columns) - self.left)
        rows = [" & ".join(map(_latex, row)) + r" \\" for row in [self.columns, *self.rows]]
        body = [rows[0], r"\midrule", *rows[1:]]
        inner = "\n".join([rf"\begin{{tabular}}{{{spec}}}", r"\toprule", *body, r"\bottomrule", r"\end{tabular}"])
        return f"\\begin{{table}}\n\\centering\n\\caption{{{_latex(self.title)}}}\n{inner}\n\\end{{table}}\n"


def trials_table(record: SweepRecord, limit: int | None = None) -> Table:
    """All trials, best score first; trials without a score come last. Trials that did not finish are dimmed."""
    trials = [*record.ranking, *(trial for trial in record.trials if trial.objective is None)]
    shown = trials[:limit] if limit else trials
    params = {key for trial in trials for key in trial.params}
    keys = [*(key for key in record.summary.search if key in params), *sorted(params - set(record.summary.search))]
    names = wording.short_names(keys)
    best = record.best
    others = [o.metric for o in record.summary.objectives[1:]]
    rows = []
    for trial in shown:
        objective = wording.number(record.metric, trial.objective)
        extra = [wording.number(metric.rsplit("/", 1)[-1], trial.metrics.get(metric)) for metric in others]
        epochs = f"{trial.epoch or '–'} of {trial.curve[-1][0] if trial.curve else 0}"
        values = [wording.param_value(trial.params[key]) if key in trial.params else "" for key in keys]
        rows.append((trial.id, wording.STATES.get(trial.state, trial.state), objective, *extra, epochs, *values))
    unit = " (%)" if wording.is_share(record.metric) else ""
    heading = record.objective.metric.removeprefix("val/")
    constant = next((trial.constant for trial in trials if trial.constant is not None), None)
    return Table(
        f"Trials by validation {heading}"
        + (f" (best {len(shown)} of {len(trials)})" if len(shown) < len(trials) else "")
        + (f"; constant predictor {wording.number(record.metric, constant)}" if constant is not None else ""),
        ("trial", "state", "score" + unit, *others, "epoch", *(names[key] for key in keys)),
        tuple(rows),
        left=2,
        strong=frozenset(i for i, trial in enumerate(shown) if best and trial.id == best.id),
        faint=frozenset(i for i, trial in enumerate(shown) if trial.state != "finished"),
    )


def scenario_table(group: FinalGroup) -> Table:
    """Scenario x metric on test, mean ± SD over seeds; with a column of row counts if these differ."""
    names, scenarios = group.metrics(), group.scenarios()
    cells = {s: [group.cell(s, m) for m in names] for s in scenarios}
    counts = {s: next((c.rows for c in cells[s] if c), 0) for s in scenarios}
    differ = len(set(counts.values())) > 1
    seeds = len(group.evaluations)
    known = any(c is not None and c.constant is not None for row in cells.values() for c in row)
    rows = tuple(
        (
            wording.scenario_label(s),
            *([str(counts[s])] if differ else []),
            *(
                text
                for m, c in zip(names, cells[s], strict=True)
                for text in (wording.cell(m, c), *([_constant(m, [c])] if known else []))
            ),
        )
        for s in scenarios
    )
    spread = f"mean ± SD over {seeds} seeds" if seeds > 1 else "one seed"
    prefix = f"{group.name}: " if group.name != "best" else ""
    n = "" if differ else f", n = {next(iter(counts.values()), 0)}"
    headings = [text for m in names for text in (wording.metric_label(m), *(["constant"] if known else []))]
    columns = ("scenario", *(["n"] if differ else []), *headings)
    return Table(f"{prefix}test scores, {spread}{n}", columns, rows)


def groups_table(record: SweepRecord) -> Table:
    """Scenario x group on test for the sweep's metric."""
    name = record.metric
    groups = [group for group in record.groups if group.evaluations]
    scenarios = groups[0].scenarios() if groups else []
    cells = {s: [group.cell(s, name) for group in groups] for s in scenarios}
    counts = {s: {c.rows for c in row if c} for s, row in cells.items()}
    differ = len(set.union(set(), *counts.values())) > 1
    known = any(c is not None and c.constant is not None for row in cells.values() for c in row)
    rows = tuple(
        (
            wording.scenario_label(s),
            *(["/".join(map(str, sorted(counts[s])))] if differ else []),
            *(wording.cell(name, c) for c in cells[s]),
            *([_constant(name, cells[s])] if known else []),
        )
        for s in scenarios
    )
    seeds = max((len(group.evaluations) for group in groups), default=0)
    title = f"{wording.metric_label(name)} on test, mean{f' ± SD over {seeds} seeds' if seeds > 1 else ''}"
    columns = ("scenario", *(["n"] if differ else []), *(group.name for group in groups))
    return Table(title, (*columns, *(["constant"] if known else [])), rows)


def _constant(metric: str, cells: Sequence[Cell | None]) -> str:
    """The constant predictor's score, or several scores if tuned thresholds make the groups differ."""
    scores = [wording.number(metric, cell.constant) for cell in cells if cell is not None]
    return " / ".join(dict.fromkeys(scores)) or "–"


def comparison_table(board: Leaderboard) -> Table:
    """Differences between groups with paired 95 % bootstrap intervals; bold: significant after Holm's correction."""
    rows = []
    strong = frozenset(position for position, c in enumerate(board.comparisons) if c.significant)
    for c in board.comparisons:
        d = c.difference
        value, low, high = (f"{wording.scaled(board.metric, v):+.1f}" for v in (d.value, d.low, d.high))
        cells = (value, f"[{low}, {high}]", f"{d.p:.2g}", "yes" if c.significant else "no", str(c.rows))
        rows.append((f"{c.a} − {c.b}", wording.scenario_label(c.scenario), *cells))
    title = (
        f"Differences in {wording.metric_label(board.metric)}: paired bootstrap, {board.resampled}; "
        f"{len(strong)} of {len(rows)} comparisons significant at 5 % after Holm's correction"
    )
    columns = ("pair", "scenario", "difference", "95 % interval", "p", "Holm", "n")
    return Table(title, columns, tuple(rows), 2, strong)


def trials_csv(record: SweepRecord) -> str:
    """One line per trial, numbers unrounded."""
    params = sorted({key for trial in record.trials for key in trial.params})
    metrics = sorted({key for trial in record.trials for key in trial.metrics})
    lines: list[list[Any]] = [["trial", "state", "objective", "epoch", "seconds", "mlflow_run_id", *params, *metrics]]
    for t in record.trials:
        values = [*(t.params.get(key, "") for key in params), *(t.metrics.get(key, "") for key in metrics)]
        lines.append(
            [t.id, t.state, _empty(t.objective), _empty(t.epoch), f"{t.seconds:.2f}", t.mlflow_run_id or "", *values]
        )
    return _csv(lines)


def finals_csv(record: SweepRecord) -> str:
    """One line per group, scenario and metric, numbers unrounded."""
    lines: list[list[Any]] = [["group", "scenario", "metric", "mean", "sd", "seeds", "rows", "constant"]]
    for group in record.groups:
        for scenario, row in group.table().items():
            lines += [
                [group.name, scenario, m, c.mean, _empty(c.sd), c.seeds, c.rows, _empty(c.constant)]
                for m, c in row.items()
            ]
    return _csv(lines)


def write_tables(record: SweepRecord, board: Leaderboard, agreement: Sequence[Table], folder: Path) -> list[Path]:
    """Write all available tables into `folder`: CSV with unrounded numbers, Markdown and LaTeX as displayed.

    Args:
        agreement: the record's `agreement_tables`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tables = {"trials": trials_table(record)}
    chosen = record.best_group
    if chosen:
        tables["scenarios"] = scenario_table(chosen)
    if len([g for g in record.groups if g.evaluations]) > 1:
        tables["groups"] = groups_table(record)
    if board.comparisons:
        tables["differences"] = comparison_table(board)
    tables |= {f"agreement_{number}": table for number, table in enumerate(agreement, 1)}
    written = {folder / "trials.csv": trials_csv(record)}
    if chosen:
        written[folder / "scenarios.csv"] = finals_csv(record)
    for name, table in tables.items():
        written[folder / f"{name}.md"] = table.to_markdown()
        written[folder / f"{name}.tex"] = table.to_latex()
    for path, text in written.items():
        path.write_text(text, encoding="utf-8")
    return list(written)


def _empty(value: Any) -> Any:
    return "" if value is None else value


def _csv(lines: list[list[Any]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(lines)
    return buffer.getvalue()


def _latex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "±": r"$\pm$", "−": "$-$", "–": "--", "~": r"\textasciitilde{}", "^": r"\^{}"}
    return "".join(special.get(c, "\\" + c if c in "&%#_{}$" else c) for c in text)
