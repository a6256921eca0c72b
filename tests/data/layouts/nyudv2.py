"""A few scenes as SA-Gate packages NYUDv2, with both syntaxes of its lists."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.data.rasters import blocks, save

SIZE = (480, 640)


def write_nyudv2(root: Path, pairs: bool = True, train: int = 12, test: int = 2) -> Path:
    """`pairs`: lists hold TAB pairs and CRLF; else bare names and no final line end. Scenes are numbered from 1.

    Every label map holds 0 (no class) to 40, one also 255; the HHA of scene 1 is grey.
    """
    folder = root / "NYUDepthv2"
    for i in range(1, train + test + 1):
        save(folder / f"RGB/{i}.jpg", blocks(SIZE, 3, 255, i).astype(np.uint8))
        hha = blocks(SIZE, 1 if i == 1 else 3, 255, 100 + i).astype(np.uint8)
        save(folder / f"HHA/{i}.jpg", hha[..., 0] if i == 1 else hha)
        save(folder / f"Depth/{i}.npy", blocks(SIZE, 1, 9, 200 + i)[..., 0].astype(np.float32) + i)
        labels = blocks(SIZE, 1, 40, 300 + i)[..., 0]
        labels[0, :41] = range(41)
        if i == 2:
            labels[0, 41] = 255
        save(folder / f"Label/{i}.png", labels)
    for name, numbers in (("train", range(1, train + 1)), ("test", range(train + 1, train + test + 1))):
        lines = [f"RGB/{i}.jpg\tLabel/{i}.png" if pairs else str(i) for i in numbers]
        text = "".join(f"{line}\r\n" for line in lines) if pairs else "\n".join(lines)
        (folder / f"{name}.txt").write_bytes(text.encode())
    return root
