"""The style of all figures: colours that colour-blind readers can distinguish (Okabe and Ito), plain axes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no screen: reports are written on servers

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmsweep.record.sweep import SweepRecord

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#7A7A7A", "#B8A100")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
INK, GREY, FAINT = "#1f2430", "#8a8f98", "#d9dce1"

_RC: Any = {
    "figure.dpi": 110,
    "savefig.dpi": 160,
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.7,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "text.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 2.0,
    "lines.markersize": 5.0,
    "text.parse_math": False,  # a dollar sign in a class's or a modality's name is no formula
}


@contextmanager
def figure(path: Path, width: float, height: float, columns: int = 1) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure with `columns` panels side by side; it is written to `path` on success and closed in any case."""
    with plt.rc_context(_RC):
        drawing, axes = plt.subplots(
            1, columns, figsize=(width, height), layout="constrained", squeeze=False, sharey=True
        )
        try:
            yield drawing, list(axes[0])
            path.parent.mkdir(parents=True, exist_ok=True)
            drawing.savefig(path)
        finally:
            plt.close(drawing)


def draw_all(
    figures: Mapping[str, Callable[[SweepRecord, Path], Path | None]], record: SweepRecord, folder: Path
) -> dict[str, Path]:
    """Draw the figures that have data as NAME.png: name -> PNG."""
    drawn = {name: draw(record, folder / f"{name}.png") for name, draw in figures.items()}
    return {name: path for name, path in drawn.items() if path}


def grid(drawing: Figure, rows: int, columns: int) -> list[list[Axes]]:
    """Replace a figure's panels by a grid of them."""
    for panel in drawing.axes:
        panel.remove()
    return [list(line) for line in drawing.subplots(rows, columns, squeeze=False)]
