"""The report's sentences: the answer, what ran, how the winner was selected, what reproduces it."""

from __future__ import annotations

from datetime import UTC, datetime

from mmsweep.readers import wording
from mmsweep.readers.report.bootstrap import LEVEL
from mmsweep.readers.report.leaderboard import Leaderboard
from mmsweep.record.results import Cell, FinalGroup
from mmsweep.record.sweep import SweepRecord


def headline(record: SweepRecord) -> str:
    """The sweep's answer in one sentence or two."""
    group = record.best_group
    if group is None:
        best = record.best
        if best is None or best.objective is None:
            return "No trial has reported yet."
        score = wording.score(record.metric, best.objective)
        scenario = wording.scenario_label(record.objective.metric.split("/")[1])
        test = "No test result yet" if record.summary.final else "No test result; the study has no final runs"
        constant = ""
        if best.constant is not None and not record.objective.better(best.objective, best.constant):
            constant = f" It does not beat the constant predictor ({wording.number(record.metric, best.constant)})."
        return f"{test}. Best on validation so far: trial {best.id}, {score} ({scenario}).{constant}"
    return f"{_retained(record, group)} {shortfall(record, group)}".strip()


def shortfall(record: SweepRecord, group: FinalGroup) -> str:
    """The scenarios in which a group does not beat the constant predictor; "" if there are none or it is unknown."""
    metric, evaluation = record.metric, group.first()
    cells = {s: cell for s in group.scenarios() if (cell := group.cell(s, metric)) is not None}
    judged = {s: beats for s, cell in cells.items() if (beats := cell.beats_constant(metric)) is not None}
    lost = [s for s, beats in judged.items() if not beats]
    if evaluation is None or not lost:
        return ""
    constant = wording.constant_words(evaluation.task)
    named = [
        f"{wording.scenario_label(s)} ({wording.number(metric, cells[s].mean)} against "
        f"{wording.number(metric, cells[s].constant)})"
        for s in lost[:3]
    ] + ([f"{len(lost) - 3} more"] if len(lost) > 3 else [])
    which = "any scenario" if len(lost) == len(judged) else "every scenario"
    return (
        f"It does not beat the constant predictor, which always predicts {constant}, in {which}: "
        f"{wording.joined(named)}."
    )


def group_means(record: SweepRecord) -> str:
    """Each group's mean over the missing patterns, best first; "" for a single group."""
    cells = [(g.name, cell) for g in record.groups if (cell := g.cell("mean_missing", record.metric)) is not None]
    if len(cells) < 2:
        return ""
    cells.sort(key=lambda pair: record.objective.rank(pair[1].mean))
    scores = [f"{name} {wording.cell(record.metric, cell)}" for name, cell in cells]
    known = [cell.constant for _, cell in cells if cell.constant is not None]
    constant = f" The constant predictor has {wording.number(record.metric, known[0])}." if known else ""
    return f"Mean {wording.metric_label(record.metric)} over the missing patterns: {wording.joined(scores)}.{constant}"


def _retained(record: SweepRecord, group: FinalGroup) -> str:
    """For example: With text missing, cmpt keeps 52.8 of its 75.1 % F1-macro; with image missing, 74.6."""
    evaluation, metric = group.first(), record.metric
    complete = group.cell("complete", metric)
    if evaluation is None or complete is None:
        return "The finals have been evaluated; the study lists no complete scenario to compare with."
    names = [f"missing-{modality}" for modality in evaluation.modalities]
    if len(names) > 3:  # too many for a sentence
        names = ["worst_missing", "mean_missing"]
    cells = [(name, cell) for name in names if (cell := group.cell(name, metric)) is not None]
    cells.sort(key=lambda pair: -record.objective.rank(pair[1].mean))  # worst first
    subject = "the best configuration" if group.name == "best" else f"{group.name} (best on validation)"
    text = "; ".join(
        _clause(metric, name, cell, complete, subject if position == 0 else "")
        for position, (name, cell) in enumerate(cells)
    )
    return text[:1].upper() + text[1:] + "."


def _clause(metric: str, name: str, cell: Cell, complete: Cell, subject: str) -> str:
    """One clause of the headline; only the first one has a subject."""
    when = (
        f"with {name.removeprefix('missing-')} missing" if name.startswith("missing-") else f"in the {name[:-8]} case"
    )
    value = wording.number(metric, cell.mean)
    if not subject:
        return f"{when}, {value}"
    if wording.is_share(metric) and cell.mean <= complete.mean:  # "keeps x of y" needs a proportion that falls
        return f"{when}, {subject} keeps {value} of its {wording.score(metric, complete.mean)}"
    before = wording.number(metric, complete.mean)
    return f"{when}, {subject} has {wording.score(metric, cell.mean)} instead of {before}"


def state_sentence(record: SweepRecord) -> str:
    """What ran, and what is left to run."""
    ended = ("finished", "stopped", "failed")
    counts = [f"{record.count(s)} {wording.STATES.get(s, s)}" for s in ended if record.count(s)]
    left = len(record.trials) - sum(map(record.count, ended))
    counts += [f"{left} {'running' if record.state == 'running' else 'interrupted'}"] if left else []
    text = "One configuration, no search."
    if record.planned:
        text = f"{len(record.trials)} of {record.planned} trials: {wording.joined(counts) or 'none yet'}."
    runs = [run for group in record.groups for run in group.runs]
    if runs:
        done = sum(run.evaluation is not None for run in runs)
        text += f" {done} of {len(runs)} final runs evaluated on test."
    elif record.summary.final:
        text += " No final run has started."
    if record.state != "finished":
        text += f" The sweep is {record.state}; this page shows what its folder holds so far."
    return text


def selection(record: SweepRecord) -> list[str]:
    """How the winner was selected, sentence by sentence."""
    summary = record.summary
    better = {"max": "larger", "min": "smaller"}
    if not record.planned:
        return ["The study fixes the configuration; nothing was selected.", _validation_part(record)]
    lines = [
        f"A trial's score is its {o.scope} validation value of {o.metric}; {better[o.mode]} is better."
        for o in summary.objectives
    ]
    if summary.scheduler != "none":
        lines.append(
            f"{summary.scheduler.upper()} stopped weak trials, none before epoch {summary.grace_epochs}. "
            "Stopped trials are marked and never win over a finished one."
        )
    test = "Only final runs use test data." if summary.final else "Test data was not used; the study has no final runs."
    lines.append(f"Selection used validation data only. {test}")
    lines.append(_validation_part(record))
    seeds = sorted({run.seed for group in record.groups for run in group.runs})
    if seeds and record.planned:
        lines.append(f"Finals were trained with seeds {wording.joined(list(map(str, seeds)))}, unused in the search.")
    return lines


def _validation_part(record: SweepRecord) -> str:
    splits = record.summary.splits
    if record.summary.dataset == "manifest":
        groups = "; groups stay together" if splits.groups else ""
        if splits.column:
            return (
                f"The file's column {splits.column} defines the splits. If it names no validation rows, they are taken "
                f"from training{groups}."
            )
        return f"Training, validation and test rows were split by shares with seed {splits.seed}{groups}."
    if splits.validation_rows is not None:
        return f"The validation split ({splits.validation_rows:,} rows) comes with the dataset."
    return f"The dataset has no validation split; data.split_seed {splits.seed} takes one from training."


def bootstrap_part(board: Leaderboard) -> str:
    """The meaning of the intervals and p-values of the comparisons."""
    text = f"Each interval is the middle 95 % of {board.resampled}; both groups are scored on the same rows. "
    if "seeds" in board.over:
        text += "Each resample draws the seeds of each group, so the interval also covers the variation of training. "
    else:
        text += "Seeds are averaged; the SD in the table above shows the variation of training. "
    text += (
        f"p is two-sided. Holm's correction accounts for all {len(board.comparisons)} comparisons of the table; "
        "bold rows are significant at 5 % after it."
    )
    if len(board.comparisons) / LEVEL > board.resamples + 1:
        text += f" With so many comparisons none can be: the smallest p-value is {1 / (board.resamples + 1):.1g}."
    return text


def facts(record: SweepRecord) -> list[tuple[str, str]]:
    """The facts that reproduce the numbers, as (name, value)."""
    summary, tags = record.summary, dict(record.tracking.get("tags") or {})
    evaluation = record.best_group.first() if record.best_group else None
    shown = {
        "dataset": summary.dataset + (f" ({summary.task})" if summary.task else ""),
        "modalities": ", ".join(evaluation.modalities if evaluation else summary.modalities),
        "test rows": str(evaluation.rows) if evaluation else "",
        "seeds": ", ".join(f"{name} {seed}" for name, seed in summary.seeds.items()),
        "study digest": summary.digest,
        "created": _moment(record.meta.get("created")),
        "time trained": wording.duration(record.packing.shared() * sum(t.seconds for t in record.trials))
        if record.trials
        else "",
        "packs": record.packing.sentence() or "",
        "MLflow store": str(record.tracking.get("uri", "")),
        "MLflow run": str(record.tracking.get("run_id", "")),
    }
    rest = {key.removeprefix("mmsweep."): str(value) for key, value in sorted(tags.items())}
    rest = {key: value for key, value in rest.items() if key not in shown}
    return [(key, value) for key, value in {**shown, **rest}.items() if value]


def _moment(seconds: object) -> str:
    if not isinstance(seconds, (int, float)):
        return str(seconds or "")
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
