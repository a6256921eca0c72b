"""A few scenes as MCubeS is distributed, at its own size."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.data.rasters import blocks, save

SIZE = (1024, 1224)
COUNTS = {"train": 3, "val": 1, "test": 1}


def write_mcubes(root: Path, lists: str = "list_folder") -> Path:
    """Scene 0 has PNG files of 16 bits, the others of 8; sines are float32 and cosines float64, as is their angle.

    The left 192 columns of label maps hold 77, which stands for no class: nobody may read them.
    """
    folder = root / "multimodal_dataset"
    names = [f"outscene1208_{i}_0000000150" for i in range(sum(COUNTS.values()))]
    for i, name in enumerate(names):
        deep = i == 0
        top, dtype = (65535, np.uint16) if deep else (255, np.uint8)
        save(folder / f"polL_color/{name}.png", blocks(SIZE, 3, top, i).astype(dtype))
        save(folder / f"NIR_warped/{name}.png", blocks(SIZE, 1, top, 10 + i)[..., 0].astype(dtype))
        angle = blocks(SIZE, 1, 1000, 20 + i)[..., 0] / 1000 * np.pi
        save(folder / f"polL_aolp_sin/{name}.npy", np.sin(2 * angle).astype(np.float32))
        save(folder / f"polL_aolp_cos/{name}.npy", np.cos(2 * angle))
        save(folder / f"polL_dolp/{name}.npy", (blocks(SIZE, 1, 1000, 30 + i)[..., 0] / 1000).astype(np.float32))
        labels = blocks(SIZE, 1, 19, 40 + i)[..., 0]
        labels[labels == 7] = 255
        labels[:, :192] = 77
        save(folder / f"GT/{name}.png", labels)
    (folder / lists).mkdir()
    (folder / lists / "all.txt").write_text("\n".join(names))
    for split, count in COUNTS.items():
        (folder / lists / f"{split}.txt").write_text("\n".join(names[:count]) + ("\n" if split == "train" else ""))
        names = names[count:]
    return root
