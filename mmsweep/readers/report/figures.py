"""Figures of a sweep's finals: metric against share available, scenarios, classes. One PNG each.

Every function returns the PNG's path, or None if it has nothing to draw yet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from mmsweep.readers import wording
from mmsweep.readers.report.maps import predicted_maps
from mmsweep.readers.report.style import COLOURS, GREY, INK, MARKERS, figure
from mmsweep.record.results import Cell
from mmsweep.record.sweep import SweepRecord
from mmsweep.tasks.task import TASKS

MOST_CLASSES = 32  # of more classes, the figure shows those that lose most


def share_available(record: SweepRecord, path: Path) -> Path | None:
    """Metric against the share of rows that have a modality (the papers' Figures 2 and 3).

    One group has a line for each modality; several groups have a panel for each modality and a line for each group. The
    band is the SD over seeds.
    """
    groups = [group for group in record.groups if group.evaluations and group.evaluations[0].curves]
    if not groups:
        return None
    metric = record.metric
    modalities = list(groups[0].evaluations[0].curves)
    several = len(groups) > 1
    columns = len(modalities) if several else 1
    with figure(path, 4.6 * columns if several else 6.4, 3.9, columns) as (_, panels):
        for position, modality in enumerate(modalities):
            panel = panels[position if several else 0]
            for place, group in enumerate(groups):
                style = place if several else position
                points = group.curve(modality, metric)
                label = group.name if several else f"{modality} partly missing"
                _line(panel, metric, points, label, style)
            if several:
                panel.set_title(f"{modality} partly missing")
                panel.set_xlabel(f"rows that have {modality}")
        for panel in panels:
            panel.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            panel.set_xlim(-0.02, 1.02)
        if not several:
            panels[0].set_xlabel("rows that have the modality (all other modalities complete)")
        panels[0].set_ylabel(f"test {wording.metric_label(metric)}")
        panels[0].legend(loc="best")
    return path


def _line(panel: Axes, metric: str, points: Sequence[tuple[float, Cell]], label: str, style: int) -> None:
    shares = [share for share, _ in points]
    means = [wording.scaled(metric, cell.mean) for _, cell in points]
    spreads = [wording.scaled(metric, cell.sd or 0.0) for _, cell in points]
    colour = COLOURS[style % len(COLOURS)]
    panel.plot(shares, means, color=colour, marker=MARKERS[style % len(MARKERS)], label=label, clip_on=False, zorder=3)
    low, high = np.subtract(means, spreads), np.add(means, spreads)
    panel.fill_between(shares, low, high, color=colour, alpha=0.18, linewidth=0)


def scenario_bars(record: SweepRecord, path: Path) -> Path | None:
    """Scores by scenario, a bar for each group; whiskers are the SD over seeds."""
    groups = [group for group in record.groups if group.evaluations]
    if not groups:
        return None
    metric, scenarios = record.metric, groups[0].scenarios()
    thick = 0.8 / len(groups)
    height = 1.1 + len(scenarios) * max(0.34, 0.24 * len(groups))
    with figure(path, 7.2, height) as (_, (panel,)):
        low, top = 0.0, 0.0
        for place, group in enumerate(groups):
            cells = [group.cell(scenario, metric) for scenario in scenarios]
            means = [wording.scaled(metric, cell.mean) if cell else 0.0 for cell in cells]
            spreads = [wording.scaled(metric, cell.sd or 0.0) if cell else 0.0 for cell in cells]
            places = np.arange(len(scenarios)) + (place - (len(groups) - 1) / 2) * thick
            colour = COLOURS[place % len(COLOURS)]
            whiskers = {"ecolor": INK, "elinewidth": 1.0, "capsize": 2.0}
            panel.barh(places, means, thick * 0.92, xerr=spreads, color=colour, error_kw=whiskers, label=group.name)
            low = min(low, *(mean - spread for mean, spread in zip(means, spreads, strict=True)))
            top = max(top, *(mean + spread for mean, spread in zip(means, spreads, strict=True)))
            for y, cell, mean, spread in zip(places, cells, means, spreads, strict=True):
                text = " " + wording.cell(metric, cell)
                panel.annotate(
                    text, (mean + spread, y), xytext=(3, 0), textcoords="offset points", va="center", size=8.5
                )
        panel.set_yticks(range(len(scenarios)), [wording.scenario_label(s) for s in scenarios])
        panel.invert_yaxis()
        panel.grid(visible=False, axis="y")
        panel.set_xlim(1.05 * low, top + 0.18 * (top - low or 1.0))  # a correlation may be negative
        panel.set_xlabel(f"test {wording.metric_label(metric)}")
        if len(groups) > 1:
            panel.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=min(4, len(groups)))
    return path


def per_class(record: SweepRecord, path: Path) -> Path | None:
    """F1 (IoU for maps) of the best group's classes: complete, and with each single modality missing."""
    group = record.best_group
    evaluation = group.first() if group else None
    if group is None or evaluation is None or not evaluation.classes:
        return None
    missing = [f"missing-{modality}" for modality in evaluation.modalities]
    cells = {name: group.per_class(name) for name in ["complete", *missing]}
    cells = {name: scores for name, scores in cells.items() if scores}
    if "complete" not in cells or len(cells) < 2:
        return None
    loss_C = [
        max(
            _finite(cells["complete"][c].mean) - _finite(scores[c].mean)
            for name, scores in cells.items()
            if name != "complete"
        )
        for c in range(len(evaluation.classes))
    ]
    order = sorted(range(len(loss_C)), key=lambda c: -loss_C[c])[:MOST_CLASSES]
    thick = 0.82 / len(cells)
    with figure(path, 7.2, 1.3 + 0.2 * len(cells) * len(order)) as (_, (panel,)):
        for place, (name, scores) in enumerate(cells.items()):
            places = np.arange(len(order)) + (place - (len(cells) - 1) / 2) * thick
            values = [100 * _finite(scores[c].mean) for c in order]
            spreads = [100 * (scores[c].sd or 0.0) for c in order]
            whiskers = {"ecolor": GREY, "elinewidth": 0.8}
            colour = GREY if name == "complete" else COLOURS[place - 1]
            panel.barh(
                places,
                values,
                thick * 0.9,
                xerr=spreads,
                color=colour,
                error_kw=whiskers,
                label=wording.scenario_label(name),
            )
        panel.set_yticks(range(len(order)), [evaluation.classes[c] for c in order])
        panel.invert_yaxis()
        panel.grid(visible=False, axis="y")
        panel.set_ylim(len(order) - 0.4, -0.6)
        panel.set_xlim(0, 100)
        label = (TASKS[evaluation.task].class_metric or ("", "score"))[1] if evaluation.task in TASKS else "score"
        panel.set_xlabel(f"test {label} of the class (%)")
        panel.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=min(3, len(cells)))
    return path


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0


FIGURES = {
    "share_available": share_available,
    "scenarios": scenario_bars,
    "per_class": per_class,
    "maps": predicted_maps,
}
