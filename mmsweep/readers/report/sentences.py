"""What a sweep's report says in words: the answer, what ran, how the winner was chosen, what makes it reproducible."""

from __future__ import annotations

from datetime import UTC, datetime

from mmsweep.readers import wording
from mmsweep.readers.report.bootstrap import LEVEL
from mmsweep.readers.report.leaderboard import Leaderboard
from mmsweep.record.results import Cell, FinalGroup
from mmsweep.record.sweep import SweepRecord


def headline(record: SweepRecord) -> str:
    """The sweep's answer in a sentence."""
    chosen = record.best_group
    if chosen is None:
        best = record.best
        if best is None or best.objective is None:
            return "No trial has reported yet."
        score = wording.score(record.metric, best.objective)
        where = wording.scenario_label(record.objective.metric.split("/")[1])
        test = "No test result yet" if record.summary.final else "No test result, as no final runs are asked for"
        beaten = best.constant is None or record.objective.better(best.objective, best.constant)
        constant = (
            ""
            if beaten
            else f" It does not beat the constant predictor ({wording.number(record.metric, best.constant)})."
        )
        return f"{test}. Best on validation so far: trial {best.id}, {score} ({where}).{constant}"
    return f"{_kept(record, chosen)} {shortfall(record, chosen)}".strip()


def shortfall(record: SweepRecord, group: FinalGroup) -> str:
    """Where a group does not beat the constant predictor; "" where it always does, or where that is not known."""
    metric, evaluation = record.metric, group.first()
    cells = {s: cell for s in group.scenarios() if (cell := group.cell(s, metric)) is not None}
    judged = {s: beats for s, cell in cells.items() if (beats := cell.beats_constant(metric)) is not None}
    lost = [s for s, beats in judged.items() if not beats]
    if evaluation is None or not lost:
        return ""
    said = wording.constant_words(evaluation.task)
    told = [
        f"{wording.scenario_label(s)} ({wording.number(metric, cells[s].mean)} against "
        f"{wording.number(metric, cells[s].constant)})"
        for s in lost[:3]
    ]
    more = [f"{len(lost) - 3} more"] if len(lost) > 3 else []
    where = "any scenario" if len(lost) == len(judged) else "every scenario"
    return (
        f"It does not beat the constant predictor, which always says {said}, in {where}: {wording.joined(told + more)}."
    )


def rivals(record: SweepRecord) -> str:
    """All groups by their mean over the missing patterns; "" where there is one group."""
    cells = [(g.name, cell) for g in record.groups if (cell := g.cell("mean_missing", record.metric)) is not None]
    if len(cells) < 2:
        return ""
    cells.sort(key=lambda pair: record.objective.rank(pair[1].mean))
    told = [f"{name} {wording.cell(record.metric, cell)}" for name, cell in cells]
    known = [cell.constant for _, cell in cells if cell.constant is not None]
    constant = f" The constant predictor has {wording.number(record.metric, known[0])}." if known else ""
    return f"Mean {wording.metric_label(record.metric)} over the missing patterns: {wording.joined(told)}.{constant}"


def _kept(record: SweepRecord, group: FinalGroup) -> str:
    """As in: With text missing, cmpt keeps 52.8 of its 75.1 % F1-macro; with image missing, 74.6."""
    evaluation, metric = group.first(), record.metric
    complete = group.cell("complete", metric)
    if evaluation is None or complete is None:
        return "The finals have been evaluated; the study lists no complete scenario to compare with."
    names = [f"missing-{modality}" for modality in evaluation.modalities]
    if len(names) > 3:  # one clause each would be a list, not an answer
        names = ["worst_missing", "mean_missing"]
    found = [(name, cell) for name in names if (cell := group.cell(name, metric)) is not None]
    found.sort(key=lambda pair: -record.objective.rank(pair[1].mean))  # the worst is told first
    who = "the best configuration" if group.name == "best" else f"{group.name} (best on validation)"
    text = "; ".join(
        _clause(metric, name, cell, complete, who if position == 0 else "")
        for position, (name, cell) in enumerate(found)
    )
    return text[:1].upper() + text[1:] + "."


def _clause(metric: str, name: str, cell: Cell, complete: Cell, who: str) -> str:
    """`who` is said in the first clause only."""
    when = (
        f"with {name.removeprefix('missing-')} missing" if name.startswith("missing-") else f"in the {name[:-8]} case"
    )
    value, whole = wording.number(metric, cell.mean), wording.number(metric, complete.mean)
    if not who:
        return f"{when}, {value}"
    if wording.is_share(metric) and cell.mean <= complete.mean:  # only of a share can something be kept
        return f"{when}, {who} keeps {value} of its {wording.score(metric, complete.mean)}"
    return f"{when}, {who} has {wording.score(metric, cell.mean)} instead of {whole}"


def state_sentence(record: SweepRecord) -> str:
    """What ran, and what is still to come."""
    words = {"finished": "finished", "stopped": "stopped early", "failed": "failed"}
    counts = [f"{record.count(state)} {word}" for state, word in words.items() if record.count(state)]
    left = len(record.trials) - sum(map(record.count, words))
    counts += [f"{left} {'running' if record.state == 'running' else 'interrupted'}"] if left else []
    searched = f"{len(record.trials)} of {record.planned} trials: {wording.joined(counts) or 'none yet'}."
    text = searched if record.planned else "One configuration, no search."
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
    """How the winner was chosen, sentence by sentence."""
    summary = record.summary
    better = {"max": "larger", "min": "smaller"}
    if not record.planned:
        return ["The configuration was given, not selected.", _validation_part(record)]
    lines = [
        f"A trial's score is its {o.scope} validation value of {o.metric}; {better[o.mode]} is better."
        for o in summary.objectives
    ]
    if summary.scheduler != "none":
        lines.append(
            f"{summary.scheduler.upper()} stopped weak trials, none before epoch {summary.grace_epochs}. "
            "Trials stopped early are marked and never win over one that ran to its end."
        )
    read = "is read by final runs only" if summary.final else "was not read: the study asks for no final runs"
    lines.append(f"Selection saw validation only. Test {read}.")
    lines.append(_validation_part(record))
    seeds = sorted({run.seed for group in record.groups for run in group.runs})
    if seeds and record.planned:
        used = wording.joined([str(seed) for seed in seeds])
        lines.append(f"Finals were trained with seeds {used}, which the search had not used.")
    return lines


def _validation_part(record: SweepRecord) -> str:
    splits = record.summary.splits
    if record.summary.dataset == "manifest":
        whole = ", groups kept whole" if splits.groups else ""
        if splits.column:
            carved = "where it names no validation rows, they are carved from training"
            return f"The splits are those of the file's column {splits.column}; {carved}{whole}."
        return f"Training, validation and test are carved by shares with seed {splits.seed}{whole}."
    if splits.validation_rows is not None:
        return f"The validation part ({splits.validation_rows:,} rows) comes with the dataset."
    return f"The dataset has no validation part; one is carved from training with data.split_seed {splits.seed}."


def bootstrap_part(board: Leaderboard) -> str:
    """What the intervals and p-values of the comparisons mean."""
    seeds = "" if "seeds" in board.over else ", their seeds averaged"
    text = f"Each interval is the middle 95 % of {board.resampled}; both groups are scored on the same rows{seeds}. "
    if "seeds" in board.over:
        text += "Each group's seeds are drawn anew in each resample, so the interval also covers how training varies. "
    else:
        text += "It does not cover how much training varies, which is the SD in the table above. "
    text += (
        f"p is two-sided. Holm's correction accounts for all {len(board.comparisons)} comparisons of the table; "
        "bold: significant at 5 % after it."
    )
    if len(board.comparisons) / LEVEL > board.resamples + 1:
        text += f" With so many, none can be: no p-value is below {1 / (board.resamples + 1):.1g}."
    return text


def facts(record: SweepRecord) -> list[tuple[str, str]]:
    """What one needs to make the numbers again."""
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
