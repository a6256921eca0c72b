"""How a missing modality changes predictions, and how similar predicted tokens are to real ones (MMP, supplement S3).

Two comparisons use cosine similarity and mean squared error on the complete test rows, over all rows and by class. The
first compares scores with all modalities and without one. The second compares this modality's tokens with the method's
prediction of them (tokens in MMP and linear projection, proxies of the class token in CMPT). Seeds are averaged. No
model runs: final runs store their predictions under every pattern and the similarity of their tokens.
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
    """Similarity with and without one modality, averaged over rows.

    Args:
        missing: the missing modality.
        rows: a class, or EVERY_ROW.
        cosine: cosine similarity of the vectors; NaN for a single number, which has no direction.
        mse: their mean squared error.
        count: number of rows.
    """

    missing: str
    rows: str
    cosine: float
    mse: float
    count: int


Agreements = dict[tuple[str, str], Agreement]
"""(missing modality, class or EVERY_ROW) -> agreement."""


def agreement(predicted: Predicted, modalities: Sequence[str], classes: Sequence[str] = ()) -> Agreements:
    """Agreement of the scores of complete rows; classes without a complete row are left out."""
    complete_N = predicted.natural_NM.all(1)
    scores_PNC = predicted.statistics_PN[:, complete_N].astype(np.float64)
    full_NC = scores_PNC[0]
    cosine_MN, mse_MN = [], []
    for column in range(len(modalities)):
        present_M = np.arange(len(modalities)) != column
        reduced_NC = scores_PNC[int((pattern_rows(modalities) == present_M).all(1).argmax())]
        mse_MN.append(((reduced_NC - full_NC) ** 2).mean(1))
        norms_N = np.linalg.norm(full_NC, axis=1) * np.linalg.norm(reduced_NC, axis=1)
        cosine_N = (full_NC * reduced_NC).sum(1) / np.maximum(norms_N, 1e-12)
        cosine_MN.append(cosine_N if full_NC.shape[1] > 1 else np.full(len(full_NC), np.nan))
    return _by_rows(modalities, np.array(cosine_MN), np.array(mse_MN), _rows_of(predicted, classes))


def stand_in_agreement(
    path: Path, predicted: Predicted, modalities: Sequence[str], classes: Sequence[str] = ()
) -> Agreements:
    """Agreement of real and predicted tokens, from a final run's stand_ins.npz (training/stand_ins.py).

    Raises:
        UserError: the file is damaged.
    """
    arrays = read_arrays(path, ("cosine_MN", "mse_MN"))
    cosine_MN, mse_MN = arrays["cosine_MN"].astype(np.float64), arrays["mse_MN"].astype(np.float64)
    complete_N = predicted.natural_NM.all(1)
    return _by_rows(modalities, cosine_MN[:, complete_N], mse_MN[:, complete_N], _rows_of(predicted, classes))


def _rows_of(predicted: Predicted, classes: Sequence[str]) -> dict[str, Array]:
    """Selections of the complete rows by name: EVERY_ROW and each class (for maps, only pixels have a class)."""
    complete_N = predicted.natural_NM.all(1)
    selections = {EVERY_ROW: np.ones(int(complete_N.sum()), bool)}
    if not predicted.maps:
        selections |= {name: _of_class(predicted.targets[complete_N], c) for c, name in enumerate(classes)}
    return selections


def _by_rows(modalities: Sequence[str], cosine_MN: Array, mse_MN: Array, selections: dict[str, Array]) -> Agreements:
    return {
        (modality, name): Agreement(
            modality, name, float(cosine_MN[m, rows_N].mean()), float(mse_MN[m, rows_N].mean()), int(rows_N.sum())
        )
        for m, modality in enumerate(modalities)
        for name, rows_N in selections.items()
        if rows_N.any()
    }


def agreement_tables(record: SweepRecord) -> list[Table]:
    """Tables of scores and of tokens: all groups over all rows, and the winner by class, if the runs stored them."""
    read = {group.name: [_of_run(run) for run in group.runs] for group in record.groups}
    scores = {name: _mean([run for run, _ in runs if run]) for name, runs in read.items()}
    tokens = {name: _mean([run for _, run in runs if run]) for name, runs in read.items()}
    best = record.best_group.name if record.best_group else None
    return [
        *_tables("Similarity of scores with all modalities and without one", scores, best),
        *_tables("Similarity of predicted and real tokens", tokens, best),
    ]


def _tables(title: str, groups: dict[str, list[Agreement]], best: str | None) -> list[Table]:
    """A table of all groups and one of the winner by class; none if no run stored anything."""
    overall = tuple(
        (name, part.missing, _number(part.cosine), f"{part.mse:.4f}", str(part.count))
        for name, parts in groups.items()
        for part in parts
        if part.rows == EVERY_ROW
    )
    if not overall:
        return []
    tables = [Table(title, ("group", "missing", "cosine", "MSE", "n"), overall, 2)]
    by_class = [part for part in groups.get(best or "", []) if part.rows != EVERY_ROW]
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


def _of_run(run: TrialRecord) -> tuple[Agreements, Agreements]:
    """Agreement of a run's scores and of its tokens; empty if it stored none. Maps have no scores to compare."""
    path, tokens = run.folder / "predictions.npz", run.folder / "stand_ins.npz"
    if run.evaluation is None or not path.exists():
        return {}, {}
    predicted, modalities, classes = Predicted.read(path), run.evaluation.modalities, run.evaluation.classes
    scores = {} if predicted.maps else agreement(predicted, modalities, classes)
    return scores, stand_in_agreement(tokens, predicted, modalities, classes) if tokens.exists() else {}


def _mean(seeds: Sequence[Agreements]) -> list[Agreement]:
    """The mean over seeds; all seeds have the same rows."""
    return [
        replace(
            first,
            cosine=float(np.mean([seed[key].cosine for seed in seeds])),
            mse=float(np.mean([seed[key].mse for seed in seeds])),
        )
        for key, first in (seeds[0].items() if seeds else ())
    ]


def _of_class(targets: Array, index: int) -> Array:
    return targets == index if targets.ndim == 1 else targets[:, index] > 0.5


def _number(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.3f}"
