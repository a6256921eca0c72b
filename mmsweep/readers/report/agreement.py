"""How far predictions move when a modality is missing, and how near its stand-in comes (MMP, supplement S3).

Two comparisons for every test row that has everything, by cosine similarity and mean squared error, over all rows and
over the rows of each class: the scores with all real inputs against the scores when one modality is taken away and the
method makes do without it; and the tokens of that modality against what the method puts in their place (MMP and linear
projection predicted tokens, CMPT the proxies of a class token). Seeds are averaged. Nothing is run again: final runs
keep their predictions under every pattern, and how near their stand-ins came.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mmsweep.availability import pattern_rows
from mmsweep.readers.report.arrays import read_arrays
from mmsweep.readers.report.bootstrap import Array, Predicted
from mmsweep.readers.tables import Table
from mmsweep.record.results import TrialRecord
from mmsweep.record.sweep import SweepRecord

EVERY_ROW = "all rows"


@dataclass(frozen=True)
class Agreement:
    """Args:
    missing: the modality that was taken away.
    rows: a class, or EVERY_ROW.
    cosine: of the score vectors, mean over rows; NaN for a single number, which has no direction.
    mse: of the scores, mean over rows.
    count: rows.
    """

    missing: str
    rows: str
    cosine: float
    mse: float
    count: int


Found = dict[tuple[str, str], Agreement]
"""(missing modality, class or EVERY_ROW) -> agreement."""


def agreement(predicted: Predicted, modalities: Sequence[str], classes: Sequence[str] = ()) -> Found:
    """Of the scores of complete rows; classes without such a row are left out."""
    complete_N = predicted.natural_NM.all(1)
    scores_PNC = predicted.statistics_PN[:, complete_N].astype(np.float64)
    whole_NC = scores_PNC[0]
    cosine_MN, mse_MN = [], []
    for column in range(len(modalities)):
        wanted_M = np.arange(len(modalities)) != column
        other_NC = scores_PNC[int((pattern_rows(modalities) == wanted_M).all(1).argmax())]
        mse_MN.append(((other_NC - whole_NC) ** 2).mean(1))
        norms_N = np.linalg.norm(whole_NC, axis=1) * np.linalg.norm(other_NC, axis=1)
        cosine_N = (whole_NC * other_NC).sum(1) / np.maximum(norms_N, 1e-12)
        cosine_MN.append(cosine_N if whole_NC.shape[1] > 1 else np.full(len(whole_NC), np.nan))
    return _by_rows(modalities, np.array(cosine_MN), np.array(mse_MN), _rows_of(predicted, classes))


def stand_in_agreement(
    path: Path, predicted: Predicted, modalities: Sequence[str], classes: Sequence[str] = ()
) -> Found:
    """The same of tokens and their stand-ins, from a final run's stand_ins.npz (training/stand_ins.py).

    Raises:
        UserError: the file is damaged.
    """
    kept = read_arrays(path, ("cosine_MN", "mse_MN"))
    cosine_MN, mse_MN = kept["cosine_MN"].astype(np.float64), kept["mse_MN"].astype(np.float64)
    complete_N = predicted.natural_NM.all(1)
    return _by_rows(modalities, cosine_MN[:, complete_N], mse_MN[:, complete_N], _rows_of(predicted, classes))


def _rows_of(predicted: Predicted, classes: Sequence[str]) -> dict[str, Array]:
    """EVERY_ROW and each class -> which of the complete rows; a map's pixels have classes, its row has none."""
    complete_N = predicted.natural_NM.all(1)
    chosen = {EVERY_ROW: np.ones(int(complete_N.sum()), bool)}
    if not predicted.maps:
        chosen |= {name: _of_class(predicted.targets[complete_N], c) for c, name in enumerate(classes)}
    return chosen


def _by_rows(modalities: Sequence[str], cosine_MN: Array, mse_MN: Array, chosen: dict[str, Array]) -> Found:
    return {
        (modality, name): Agreement(
            modality, name, float(cosine_MN[m, rows_N].mean()), float(mse_MN[m, rows_N].mean()), int(rows_N.sum())
        )
        for m, modality in enumerate(modalities)
        for name, rows_N in chosen.items()
        if rows_N.any()
    }


def agreement_tables(record: SweepRecord) -> list[Table]:
    """Of scores, then of stand-ins: all groups over all rows, and the winner by class. Only what was kept."""
    read = {group.name: [_of_run(run) for run in group.runs] for group in record.groups}
    scores = {name: _mean([own for own, _ in runs if own]) for name, runs in read.items()}
    stand_ins = {name: _mean([own for _, own in runs if own]) for name, runs in read.items()}
    best = record.best_group.name if record.best_group else None
    return [
        *_tables("Scores with everything against scores without one modality", scores, best),
        *_tables("Tokens of a modality against what stands in for them", stand_ins, best),
    ]


def _tables(title: str, found: dict[str, list[Agreement]], best: str | None) -> list[Table]:
    """One of all groups, one of the winner by class; none where nothing was kept."""
    overall = tuple(
        (name, part.missing, _number(part.cosine), f"{part.mse:.4f}", str(part.count))
        for name, parts in found.items()
        for part in parts
        if part.rows == EVERY_ROW
    )
    if not overall:
        return []
    tables = [Table(title, ("group", "missing", "cosine", "MSE", "n"), overall, 2)]
    by_class = [part for part in found.get(best or "", []) if part.rows != EVERY_ROW]
    if by_class:
        missing = list(dict.fromkeys(part.missing for part in by_class))
        cells = {(part.missing, part.rows): part for part in by_class}
        rows = tuple(
            (
                name,
                *(_number(cells[m, name].cosine) for m in missing),
                *(f"{cells[m, name].mse:.4f}" for m in missing),
                str(cells[missing[0], name].count),
            )
            for name in dict.fromkeys(part.rows for part in by_class)
        )
        heads = (*(f"cosine, no {m}" for m in missing), *(f"MSE, no {m}" for m in missing))
        tables.append(Table(f"{title}, {best} by class", ("class", *heads, "n"), rows))
    return tables


def _of_run(run: TrialRecord) -> tuple[Found, Found]:
    """(of its scores, of its stand-ins); empty where they were not kept, and scores of maps, which are matrices."""
    path, beside = run.folder / "predictions.npz", run.folder / "stand_ins.npz"
    if run.evaluation is None or not path.exists():
        return {}, {}
    predicted, modalities, classes = Predicted.read(path), run.evaluation.modalities, run.evaluation.classes
    scores = {} if predicted.maps else agreement(predicted, modalities, classes)
    return scores, stand_in_agreement(beside, predicted, modalities, classes) if beside.exists() else {}


def _mean(seeds: Sequence[Found]) -> list[Agreement]:
    """The mean over seeds, which all have the same rows."""
    return [
        replace(
            first,
            cosine=float(np.mean([seed[key].cosine for seed in seeds])),
            mse=float(np.mean([seed[key].mse for seed in seeds])),
        )
        for key, first in (seeds[0].items() if seeds else ())
    ]


def _of_class(targets: Array, place: int) -> Array:
    return targets == place if targets.ndim == 1 else targets[:, place] > 0.5


def _number(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.3f}"
