"""A small folder laid out as Tux Paint's stamps are: drawings of our own, in every category."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np

from mmsweep.data.sets.tuxpaint import CLASSES
from tests.data.files import write_picture


def write_sound(path: Path, pitch: float, seconds: float = 0.2, rate: int = 8_000) -> Path:
    """A tone as 16-bit WAV."""
    tone = np.sin(2 * np.pi * pitch * np.arange(int(seconds * rate)) / rate)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((tone * 20_000).astype("<i2").tobytes())
    return path


def write_stamps(root: Path, each: int = 8) -> Path:
    """`each` stamps in every category, below `root` as dpkg -x would lay them.

    The first two of a category share a name; every fifth is not spoken; the third is also spoken in Spanish; one is
    mirrored; one picture has no name.
    """
    folder = root / "usr/share/tuxpaint/stamps"
    for number, category in enumerate(CLASSES):
        for i in range(each):
            stem = folder / category / "kind" / f"stamp-{i}"
            write_picture(stem.with_suffix(".png"), ("red", "green", "blue")[i % 3], seed=10 * number + i)
            name = f"A {category} thing." if i < 2 else f"A {category}, number {i}."
            stem.with_suffix(".txt").write_text(f"{name}\nfr.utf8=Une chose.\n", encoding="utf-8")
            if i % 5:
                write_sound(stem.with_name(f"stamp-{i}_desc_fr.wav"), 200 + 50 * number + 5 * i)
        write_sound(folder / category / "kind" / "stamp-2_desc_es.wav", 300)
        write_picture(folder / category / "kind" / "stamp-3_mirror.png", "red")
        write_picture(folder / category / "kind" / "nameless.png", "red")
    return root
