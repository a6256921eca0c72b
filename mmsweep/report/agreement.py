"""How far predictions move when a modality is missing (MMP, supplement S3).

For every test row that has everything, the prediction with all real inputs is compared with the prediction when one
modality is taken away and the method makes do without it: cosine similarity and mean squared error of the score
vectors, over all rows and over the rows of each class. Seeds are averaged. Nothing is run again: final runs keep their
predictions under every pattern.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmsweep.availability import pattern_rows
from mmsweep.report.bootstrap import Array, Predicted
from mmsweep.report.finals import FinalGroup
from mmsweep.report.record import SweepRecord
from mmsweep.report.tables import Table

EVERY_ROW = "all rows"
TASKS = ("single_label", "multi_label", "regression")


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


def agreement(
    predicted: Predicted, modalities: Sequence[str], classes: Sequence[str] = ()
) -> dict[tuple[str, str], Agreement]:
    """(missing modality, class or EVERY_ROW) -> agreement; classes without a complete row are left out."""
    complete_N = predicted.natural_NM.all(1)
    scores_PNC = predicted.scores_PNC[:, complete_N].astype(np.float64)
    whole_NC = scores_PNC[0]
    chosen = {EVERY_ROW: np.ones(len(whole_NC), bool)}
    chosen |= {name: _of_class(predicted.targets[complete_N], c) for c, name in enumerate(classes)}
    found: dict[tuple[str, str], Agreement] = {}
    for column, modality in enumerate(modalities):
        wanted_M = np.arange(len(modalities)) != column
        place = int((pattern_rows(modalities) == wanted_M).all(1).argmax())
        other_NC = scores_PNC[place]
        error_N = ((other_NC - whole_NC) ** 2).mean(1)
        if whole_NC.shape[1] > 1:
            norms_N = np.linalg.norm(whole_NC, axis=1) * np.linalg.norm(other_NC, axis=1)
            cosine_N = (whole_NC * other_NC).sum(1) / np.maximum(norms_N, 1e-12)
        else:
            cosine_N = np.full(len(whole_NC), np.nan)
        for name, rows_N in chosen.items():
            if rows_N.any():
                found[modality, name] = Agreement(
                    modality, name, float(cosine_N[rows_N].mean()), float(error_N[rows_N].mean()), int(rows_N.sum())
                )
    return found


def agreement_tables(record: SweepRecord) -> list[Table]:
    """A table over all rows for every group, then one by class for the winner; none where there are no predictions."""
    found = {group.name: _of_group(group) for group in record.groups}
    found = {name: parts for name, parts in found.items() if parts}
    if not found:
        return []
    overall = tuple(
        (name, part.missing, _number(part.cosine), f"{part.mse:.4f}", str(part.count))
        for name, parts in found.items()
        for part in parts
        if part.rows == EVERY_ROW
    )
    tables = [
        Table(
            "Predictions with everything against predictions without one modality",
            ("group", "missing", "cosine", "MSE", "n"),
            overall,
            2,
        )
    ]
    best = found.get(record.best_group.name) if record.best_group else None
    by_class = [part for part in best or [] if part.rows != EVERY_ROW]
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
        tables.append(Table("The same by class", ("class", *heads, "n"), rows))
    return tables


def _of_group(group: FinalGroup) -> list[Agreement]:
    """The mean over the seeds of a group; all seeds have the same rows."""
    seeds = []
    for run in group.runs:
        path = Path(run.folder) / "predictions.npz"
        if run.evaluation is not None and run.evaluation.task in TASKS and path.exists():
            classes = run.evaluation.classes
            seeds.append(agreement(Predicted.read(path), run.evaluation.modalities, classes))
    if not seeds:
        return []
    return [
        Agreement(
            first.missing,
            first.rows,
            float(np.mean([seed[key].cosine for seed in seeds])),
            float(np.mean([seed[key].mse for seed in seeds])),
            first.count,
        )
        for key, first in seeds[0].items()
    ]


def _of_class(targets: Array, place: int) -> Array:
    return targets == place if targets.ndim == 1 else targets[:, place] > 0.5


def _number(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.3f}"
