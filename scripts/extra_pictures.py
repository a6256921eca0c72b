#!/usr/bin/env python3
"""Draw the pictures that train the shipped image encoder beside Open Clip Art, with their names.

    python scripts/extra_pictures.py --iconify DIR --tuxpaint DIR --out extra.npz          # needs resvg-py

DIR of --iconify holds npm tarballs: `npm pack @iconify-json/NAME@VERSION` of the sets in SETS (emoji and icon sets, one
JSON of SVG drawings each). DIR of --tuxpaint is `usr/share/tuxpaint/stamps` of Debian's tuxpaint-stamps-default (GPL-2:
the pictures may teach, they are not shipped). Writes pixels (uint8 [N,112,112,3] on white), names and sets, in a fixed
shuffled order. Variants by skin tone are left out; every flag of the `flag` set is called "flag".
"""

from __future__ import annotations

import argparse
import io
import json
import re
import tarfile
from multiprocessing import Pool
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

SIDE = 112
SETS = {
    "emojione": "1.2.3", "emojione-v1": "1.2.3", "flag": "1.2.12", "flat-color-icons": "1.2.3",
    "fluent-color": "1.2.21", "fluent-emoji": "1.2.7", "fluent-emoji-flat": "1.2.6", "fxemoji": "1.2.2",
    "game-icons": "1.2.4", "healthicons": "1.2.13", "maki": "1.2.5", "noto": "1.2.9", "noto-v1": "1.2.5",
    "openmoji": "1.2.29", "streamline-ultimate-color": "1.2.2", "twemoji": "1.2.5",
}  # fmt: skip


class Drawing(NamedTuple):
    """A picture to be rasterised: SVG text, or a file."""

    source: str | Path
    name: str
    set: str


def left_out(icons: str, name: str) -> bool:
    """Variants that repeat a drawing of the same set."""
    if re.search(r"skin-tone|skin", name) and icons != "healthicons":
        return True
    if icons.startswith("fluent-emoji") and re.search(r"-(light|medium|dark)$", name):
        return True
    if icons == "healthicons" and (name.endswith("-24px") or "outline" in name):
        return True
    if icons == "flag" and name.endswith("-1x1"):
        return True
    return icons == "fluent-color" and not name.endswith(("-48", "-32"))


def spoken(icons: str, name: str) -> str:
    """A file's name as words."""
    if icons == "flag":
        return "flag"
    words = re.sub(r" (4x3|\d+)$", "", re.sub(r"[-_]+", " ", name))
    words = re.sub(r"^flag (for )?(.*)", r"flag of \2", words)
    return words.strip().rstrip(".").strip("“”").lower()


def iconify(folder: Path) -> list[Drawing]:
    """The drawings of all sets in `folder`."""
    drawings = []
    for icons, version in SETS.items():
        with tarfile.open(folder / f"iconify-json-{icons}-{version}.tgz") as archive:
            member = archive.extractfile("package/icons.json")
            assert member is not None
            data = json.load(member)
        for name, icon in data["icons"].items():
            if icon.get("hidden") or left_out(icons, name):
                continue
            width, height = (icon.get(side, data.get(side, 16)) for side in ("width", "height"))
            box, scale = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}", SIDE / max(width, height)
            svg = (
                '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
                f'viewBox="{box}" width="{width * scale}" height="{height * scale}">'
                f"{icon['body'].replace('currentColor', '#000')}</svg>"
            )
            drawings.append(Drawing(svg, spoken(icons, name), icons))
    return drawings


def stamps(folder: Path) -> list[Drawing]:
    """Tux Paint's stamps with the first line of their text."""
    drawings = []
    for path in sorted([*folder.rglob("*.png"), *folder.rglob("*.svg")]):
        if "_mirror" in path.name or "_flip" in path.name:
            continue
        text = path.with_suffix(".txt")
        first = text.read_text(errors="replace").splitlines()[0] if text.exists() else path.stem
        drawings.append(Drawing(path, spoken("tuxpaint", first), "tuxpaint"))
    return drawings


def draw(drawing: Drawing) -> np.ndarray | None:
    """uint8 [112,112,3], centred on white; None for what cannot be drawn or leaves nothing to see."""
    import resvg_py

    try:
        if isinstance(drawing.source, str):
            encoded = bytes(resvg_py.svg_to_bytes(svg_string=drawing.source))
        elif drawing.source.suffix == ".svg":
            encoded = bytes(resvg_py.svg_to_bytes(svg_path=str(drawing.source)))
        else:
            encoded = drawing.source.read_bytes()
        picture = Image.open(io.BytesIO(encoded)).convert("RGBA")
    except (OSError, ValueError, RuntimeError):
        return None
    paper = Image.new("RGBA", picture.size, "white")
    paper.alpha_composite(picture)
    scale = SIDE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    square = Image.new("RGB", (SIDE, SIDE), "white")
    square.paste(paper.convert("RGB").resize(size, Image.LANCZOS), ((SIDE - size[0]) // 2, (SIDE - size[1]) // 2))
    pixels = np.asarray(square)
    return pixels if pixels.min() < 240 else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iconify", type=Path, required=True)
    parser.add_argument("--tuxpaint", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    drawings = iconify(arguments.iconify) + (stamps(arguments.tuxpaint) if arguments.tuxpaint else [])
    with Pool(2) as pool:
        pixels = pool.map(draw, drawings, chunksize=50)
    kept = [i for i, picture in enumerate(pixels) if picture is not None]
    order = np.random.default_rng(0).permutation(kept)
    np.savez(
        arguments.out,
        pixels=np.stack([pixels[i] for i in order]),
        names=np.array([drawings[i].name for i in order]),
        sets=np.array([drawings[i].set for i in order]),
    )
    print(f"{len(order)} pictures with {len({drawings[i].name for i in order})} names of {len(drawings)} drawings")


if __name__ == "__main__":
    main()
