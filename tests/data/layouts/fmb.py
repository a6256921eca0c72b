"""A few scenes as FMB is distributed."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.data.rasters import blocks, save

SIZE = (600, 800)


def write_fmb(root: Path, train: int = 12, test: int = 2) -> Path:
    """Names run over both folders; every other infrared picture is grey saved as colour, the others are grey."""
    folder = root / "FMB"
    for i in range(train + test):
        split, name = "train" if i < train else "test", f"{i:05d}"
        save(folder / split / f"Visible/{name}.png", blocks(SIZE, 3, 255, i).astype(np.uint8))
        thermal = blocks(SIZE, 1, 255, 100 + i).astype(np.uint8)
        save(folder / split / f"Infrared/{name}.png", thermal[..., 0] if i % 2 else thermal.repeat(3, 2))
        labels = blocks(SIZE, 1, 14, 200 + i)[..., 0]
        labels[0, :15] = range(15)
        save(folder / split / f"Label/{name}.png", labels)
        save(folder / split / f"color/{name}.png", blocks(SIZE, 3, 255, 300 + i).astype(np.uint8))
    return root
