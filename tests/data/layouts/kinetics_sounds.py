"""Kinetics-Sounds: the lists with commas (OGM-GE) or blanks (BalanceMM), and clips as videos or extracted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmsweep.data.options import DATASETS
from tests.data.layouts.clips import write_frames, write_sound, write_spectrogram, write_video

CLASSES, ROWS = 31, {"train": 45, "test": 15}


def ids(split: str) -> list[str]:
    """Ids of the lists' three syntaxes; some begin with `-`, all hold `_`."""
    found = []
    for number in range(ROWS[split]):
        video = f"--{number:03d}-0i_tn" if number % 2 else f"-{number:03d}_4-0iht"
        if split == "test":
            video = video.replace("0i", "9e")
        syntax = number % 3 if split == "test" else 0
        found.append([f"{video}_{number:06d}_{number + 10:06d}", f"{video}_{number}", video][syntax])
    return found


def write_lists(root: Path, separator: str) -> None:
    """CRLF, and no last line end."""
    for split in ("train", "test"):
        lines = [separator.join([id, "10", str(number % CLASSES)]) for number, id in enumerate(ids(split))]
        (root / f"my_{split}.txt").write_bytes("\r\n".join(lines).encode())


def videos(root: Path) -> Any:
    """Trimmed clips in folders of classes; those that the list names by their start are named in Kinetics' way."""
    write_lists(root, ",")
    data = write_video(root / "one.mp4", [40, 120, 200]).read_bytes()
    (root / "one.mp4").unlink()
    for split in ("train", "test"):
        for id in ids(split):
            name = id
            if id[11:].count("_") == 1:
                start = int(id[12:])
                name = f"{id[:11]}_{start:06d}_{start + 10:06d}"
            folder = root / "clips" / f"class {len(id)}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{name}.mp4").write_bytes(data)
    return DATASETS.options("kinetics_sounds", root=str(root))


def extracted(root: Path) -> Any:
    """A folder of 1-fps frames a clip, and a .wav or a stored filter bank."""
    write_lists(root, " ")
    for split in ("train", "test"):
        for number, id in enumerate(ids(split)):
            write_frames(root / "visual" / split / id, [number % 200, number % 200 + 20])
            if number % 2:
                write_spectrogram(root / "audio" / split / f"{id}.npy", 36, seed=number)
            else:
                write_sound(root / "audio" / split / f"{id}.wav", 0.2)
    return DATASETS.options("kinetics_sounds", root=str(root))
