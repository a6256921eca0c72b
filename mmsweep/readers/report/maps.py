"""Figure of predicted maps under every pattern of missing modalities."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch
from numpy.typing import NDArray

from mmsweep.readers.report.arrays import read_arrays
from mmsweep.readers.report.style import COLOURS, FAINT, figure, grid
from mmsweep.record.sweep import SweepRecord
from mmsweep.tasks.task import IGNORE

SCENES = 3
ACROSS = 8
CELL = 1.15
"""Side of one picture in inches."""

Array = NDArray[Any]


@dataclass(frozen=True)
class Examples:
    """`examples.npz` of one final run, with R scenes.

    Args:
        inputs: modality -> pictures uint8 [R, H, W, 3].
        truth_RHW: class of each pixel; IGNORE for pixels without a class.
        maps_PRHW: predicted classes under every pattern.
        present_PR: whether a scene has a modality left under a pattern.
        patterns: names of the patterns.
        ids: ids of the scenes.
    """

    inputs: dict[str, Array]
    truth_RHW: Array
    maps_PRHW: Array
    present_PR: Array
    patterns: tuple[str, ...]
    ids: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> Examples:
        """Read the file. Raises UserError if it is damaged."""
        file = read_arrays(path, ("truth_RHW", "maps_PRHW", "present_PR", "patterns", "ids"))
        inputs = {name.removeprefix("input_"): values for name, values in file.items() if name.startswith("input_")}
        patterns, ids = tuple(map(str, file["patterns"])), tuple(map(str, file["ids"]))
        return cls(inputs, file["truth_RHW"], file["maps_PRHW"], file["present_PR"], patterns, ids)


def predicted_maps(record: SweepRecord, path: Path) -> Path | None:
    """Inputs, truth and the best group's predictions under every pattern for SCENES test scenes."""
    group = record.best_group
    evaluation = group.first() if group else None
    file = next((run.folder / "examples.npz" for run in group.runs if run.evaluation), None) if group else None
    if evaluation is None or file is None or not file.exists():
        return None
    examples = Examples.read(file)
    scenes = range(min(SCENES, len(examples.ids)))
    cells = len(examples.inputs) + 1 + len(examples.patterns)
    lines = -(-cells // ACROSS)
    with figure(path, CELL * ACROSS, CELL * (1.25 * lines * len(scenes) + 0.4)) as (drawing, _):
        panels = grid(drawing, lines * len(scenes), ACROSS)
        for scene in scenes:
            _scene([panel for line in panels[scene * lines : (scene + 1) * lines] for panel in line], examples, scene)
        patches = [Patch(color=colour_of(c), label=name) for c, name in enumerate(evaluation.classes[:16])]
        drawing.legend(handles=patches, loc="outside lower center", ncols=min(8, len(patches)), fontsize=8)
    return path


def _scene(panels: list[Axes], examples: Examples, scene: int) -> None:
    truth_HW = examples.truth_RHW[scene]
    shown = [(modality, pictures[scene], "") for modality, pictures in examples.inputs.items()]
    shown.append((f"truth: {examples.ids[scene]}", coloured(truth_HW), ""))
    for p, name in enumerate(examples.patterns):
        if examples.present_PR[p, scene]:
            predicted_HW = examples.maps_PRHW[p, scene]
            labelled_HW = truth_HW != IGNORE
            right = (predicted_HW == truth_HW)[labelled_HW].mean() if labelled_HW.any() else float("nan")
            shown.append((name, coloured(predicted_HW), f"{100 * right:.0f} %"))
    for panel in panels:
        panel.set_axis_off()
    for panel, (title, picture, below) in zip(panels, shown, strict=False):
        panel.imshow(picture, interpolation="nearest")
        panel.set_title(title, fontsize=5.5, fontweight="normal", loc="center", pad=2)
        panel.text(0.5, -0.04, below, transform=panel.transAxes, ha="center", va="top", fontsize=6)


def coloured(labels_HW: Array) -> Array:
    """A map as a picture, float [H, W, 3]; pixels without a class are pale grey."""
    table = np.array([colour_of(c) for c in range(IGNORE)] + [to_rgb(FAINT)])
    return table[labels_HW]


def colour_of(index: int) -> tuple[float, float, float]:
    """A class's colour: the eight colours of the palette, then the same ones darker each time."""
    red, green, blue = to_rgb(COLOURS[index % len(COLOURS)])
    dim = 0.72 ** (index // len(COLOURS))
    return red * dim, green * dim, blue * dim
