"""CREMA-D: the repository's AudioWAV and VideoFlash, or frames and sounds, with either published pair of lists."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmsweep.data.options import DATASETS
from tests.data.layouts.clips import write_frames, write_sound, write_video

WORDS = {"ANG": "Anger", "DIS": "Disgust", "FEA": "Fear", "HAP": "Happy", "NEU": "Neutral", "SAD": "Sad"}
ACTORS, SENTENCES = range(1001, 1011), ("DFA", "IEO")


def clips() -> list[str]:
    """Ten actors, two sentences, six emotions; one name ends in a single letter, as one of CREMA-D's does."""
    names = [f"{actor}_{sentence}_{code}_XX" for actor in ACTORS for sentence in SENTENCES for code in WORDS]
    names[-1] = names[-1][:-1]
    return names


def parts() -> dict[str, list[str]]:
    names = clips()
    return {"train": [n for k, n in enumerate(names) if k % 5], "test": [n for k, n in enumerate(names) if k % 5 == 0]}


def write_ogm(root: Path) -> None:
    """OGM-GE's lists, with CRLF."""
    for split, names in parts().items():
        lines = [f"{name},{name.split('_')[2]}" for name in names]
        (root / f"{split}.csv").write_bytes("\r\n".join([*lines, ""]).encode())


def write_mla(root: Path) -> None:
    """MLA's lists, without a last line end."""
    for split, names in parts().items():
        lines = [f"{name}.flv {WORDS[name.split('_')[2]]}" for name in names]
        (root / f"my_{split}_cre.txt").write_text("\n".join(lines))


def write_repository(root: Path) -> None:
    """A few clips are written and the others are copies: every file has the true format."""
    video = write_video(root / "one.flv", [40, 120, 200] * 2).read_bytes()
    sound = write_sound(root / "one.wav", 0.5).read_bytes()
    for folder in ("VideoFlash", "AudioWAV", "AudioMP3"):
        (root / folder).mkdir()
    for number, name in enumerate(clips()):
        (root / "VideoFlash" / f"{name}.flv").write_bytes(video)
        (root / "AudioWAV" / f"{name}.wav").write_bytes(sound)
        if number == 0:  # the .wav is read, not this
            write_sound(root / "AudioMP3" / f"{name}.mp3", 0.3)
    (root / "one.flv").unlink()
    (root / "one.wav").unlink()


def repository_ogm(root: Path) -> Any:
    write_repository(root)
    write_ogm(root)
    return DATASETS.options("cremad", root=str(root))


def repository_actors(root: Path) -> Any:
    """Without lists."""
    write_repository(root)
    return DATASETS.options("cremad", root=str(root), split="actors")


def frames_mla(root: Path) -> Any:
    """Image-01-FPS and .wav; some clips have sound alone, others frames alone."""
    write_mla(root)
    for number, name in enumerate(clips()):
        if number % 10 != 3:
            write_frames(root / "Image-01-FPS" / name, [number, number + 50])
        if number % 10 != 7:
            write_sound(root / "AudioWAV" / f"{name}.wav", 0.2)
    return DATASETS.options("cremad", root=str(root))
