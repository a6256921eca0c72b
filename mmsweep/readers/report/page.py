"""The report: one self-contained HTML page, made from the sweep's folder alone."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import yaml

from mmsweep.errors import UserError
from mmsweep.readers import tables, wording
from mmsweep.readers.report.agreement import agreement_tables
from mmsweep.readers.report.figures import FIGURES
from mmsweep.readers.report.leaderboard import Leaderboard
from mmsweep.readers.report.published import published_table
from mmsweep.readers.report.search_figures import SEARCH_FIGURES, importance_note
from mmsweep.readers.report.sentences import bootstrap_part, facts, group_means, headline, selection, state_sentence
from mmsweep.readers.report.style import draw_all
from mmsweep.record.files import write_atomically
from mmsweep.record.results import FinalGroup
from mmsweep.record.sweep import SweepRecord


@dataclass(frozen=True)
class Figure:
    """A picture on the page; `data` is the PNG in base64."""

    title: str
    caption: str
    data: str


def write_report(folder: str | Path, over: Sequence[str] = ()) -> Path:
    """Write `report/index.html`, `report/*.png` and `report/tables/*` of a sweep, finished or not.

    Args:
        over: what intervals resample; replaces the study's `bootstrap.over`.

    Returns:
        The page's path.

    Raises:
        UserError: `folder` holds no sweep, a file in it is damaged, the report cannot be written, or the finals cannot
            be resampled as `over` asks.
    """
    record = SweepRecord.load(folder)
    target = record.folder / "report"
    try:
        target.mkdir(exist_ok=True)
        board = Leaderboard.of(record, over=over)
        drawn = draw_all({**FIGURES, **SEARCH_FIGURES}, record, target)
        agreement = agreement_tables(record)
        tables.write_tables(record, board, agreement, target / "tables")
        index = target / "index.html"
        write_atomically(index, render(record, board, agreement, drawn))
    except OSError as error:
        raise UserError(f"the report cannot be written ({error.strerror})", file=target) from error
    return index


def render(
    record: SweepRecord, board: Leaderboard, agreement: Sequence[tables.Table], drawn: Mapping[str, Path]
) -> str:
    """The page's HTML."""
    several = len([group for group in record.groups if group.evaluations]) > 1
    chosen = record.best_group
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mmsweep.readers.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(
        name=record.name,
        headline=headline(record),
        group_means=group_means(record),
        state=state_sentence(record),
        unfinished=record.state != "finished" or chosen is None,
        scenarios=tables.groups_table(record) if several else tables.scenario_table(chosen) if chosen else None,
        all_scenarios=[tables.scenario_table(g) for g in record.groups if g.evaluations] if several else [],
        constant=_constant(chosen),
        comparisons=tables.comparison_table(board) if board.comparisons else None,
        bootstrap=bootstrap_part(board),
        agreement=agreement,
        board_note=board.note if several else "",
        figures={name: _figure(name, path) for name, path in drawn.items()},
        importance_note=importance_note(record),
        best=record.best,
        best_objective=_validation(record),
        best_params=_params(record),
        best_yaml=record.best_study_yaml(),
        selection=selection(record),
        trials=tables.trials_table(record),
        published=published_table(record),
        facts=facts(record),
        tables_digests=_digests(record),
        folder=str(record.folder.absolute()),
    )


def _constant(group: FinalGroup | None) -> str:
    """What the constant predictor predicts, in words; "" if it was not scored."""
    evaluation = group.first() if group else None
    return wording.constant_words(evaluation.task) if evaluation and evaluation.constants else ""


def _digests(record: SweepRecord) -> list[tuple[str, str, str]]:
    evaluation = record.best_group.first() if record.best_group else None
    if evaluation is None:
        return []
    described = {n: ", ".join(f"{p} {c}" for p, c in s.shares.items()) for n, s in evaluation.scenarios.items()}
    return [(wording.scenario_label(n), described[n], s.table) for n, s in evaluation.scenarios.items()]


def _validation(record: SweepRecord) -> str:
    score = record.best.objective if record.best else None
    return wording.score(record.metric, score) if score is not None else "–"


def _params(record: SweepRecord) -> str:
    """The winner's searched values as YAML."""
    if record.best is None:
        return ""
    return yaml.safe_dump(dict(record.best.params), sort_keys=False, default_flow_style=False)


def _figure(name: str, path: Path) -> Figure:
    title, caption = CAPTIONS[name]
    return Figure(title, caption, base64.b64encode(path.read_bytes()).decode("ascii"))


CAPTIONS = {
    "share_available": (
        "Score as a modality goes missing",
        "Test score against the share of rows that have a modality; the other modalities are complete. The band is the "
        "SD over seeds.",
    ),
    "scenarios": ("Scores by scenario", "Test score of each scenario; whiskers are the SD over seeds."),
    "per_class": (
        "Score by class when a modality is missing",
        "F1 (IoU for maps) of each class on complete data and with one modality missing; the classes that lose most "
        "come first.",
    ),
    "maps": (
        "Predicted maps when modalities are missing",
        "Evenly spaced test scenes: the inputs, the truth, and the first seed's prediction from each set of modalities "
        "with its pixel accuracy.",
    ),
    "history": (
        "Score by trial",
        "Validation score of each trial in the order of their start, and the best finished trial so far.",
    ),
    "curves": (
        "Trials by epoch",
        "Validation score after each epoch; a triangle marks where the scheduler stopped a trial.",
    ),
    "importance": (
        "Parameter importance",
        "Share of the variance of finished trials' scores that each parameter explains alone (fANOVA); whiskers span "
        "90 % of the trees.",
    ),
    "parallel": (
        "Trials by parameter values",
        "A line for each trial through its values. Darker lines score better; dashed trials were stopped early.",
    ),
}
