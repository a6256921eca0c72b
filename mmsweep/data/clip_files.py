"""Finds the files of clips by the clips' names: videos, or the frames and sounds that somebody extracted from them.

Datasets of clips circulate as videos, as a folder of frames and a sound file per clip, and as mixtures of both, under
folders of any name. Only the last part of a path counts: `<clip>.mp4`, `<clip>.wav`, or a folder `<clip>` of pictures.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import Field

from mmsweep.data.containers import VIDEO_SUFFIXES
from mmsweep.data.files import LFS_POINTER
from mmsweep.data.kinds.video import IMAGE_SUFFIXES
from mmsweep.data.options import CarvedOptions
from mmsweep.errors import UserError

SOUND_SUFFIXES = (".wav", ".flac", ".ogg", ".npy", ".mp3", ".m4a")
"""In order of preference: a clip's .wav is read before its .mp3. A .npy array is a log-mel spectrogram."""

_LONGEST_POINTER = 1024

ABSENT = "has no file"
"""How the reason ends for which a row without files is bad."""


class ClipOptions(CarvedOptions):
    """Options of a dataset of clips. Some clips have vanished since the lists were written."""

    max_bad: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Largest share of rows that may be unreadable, such as clips that have vanished since the lists "
        "were written. They are left out, counted and listed in a file beside the prepared data. A larger share stops.",
    )


class Clip(NamedTuple):
    """The files of a clip; None where there is none."""

    video: Path | None
    frames: Path | None
    sound: Path | None

    @property
    def problem(self) -> str | None:
        """Why the clip cannot be read, after its name; None where it can."""
        paths = [path for path in self.values().values() if path is not None]
        if not paths:
            return ABSENT
        for path in paths:
            if is_pointer(path):
                return f"cannot be read: {path.name} is a git-LFS pointer, not the data; run `git lfs pull`"
        return None

    def values(self) -> dict[str, Path | None]:
        """What is read of the clip. What was extracted is read before the video."""
        return {"audio": self.sound or self.video, "video": self.frames or self.video}


class ClipFiles:
    """The videos, folders of frames and sounds below a folder, by name.

    Args:
        root: searched with all folders below it; links are followed.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._videos: dict[str, list[Path]] = {}
        self._sounds: dict[str, list[Path]] = {}
        self._frames: dict[str, list[Path]] = {}
        seen: set[tuple[int, int]] = set()
        for folder, folders, names in os.walk(root, followlinks=True):
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in seen:  # a link to a folder above it
                folders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            folders.sort()
            pictures = False
            for name in sorted(names):
                stem, suffix = os.path.splitext(name)
                suffix = suffix.lower()
                if suffix in VIDEO_SUFFIXES:
                    self._videos.setdefault(stem, []).append(Path(folder, name))
                elif suffix in SOUND_SUFFIXES:
                    self._sounds.setdefault(stem, []).append(Path(folder, name))
                pictures = pictures or suffix in IMAGE_SUFFIXES
            if pictures:
                self._frames.setdefault(Path(folder).name, []).append(Path(folder))

    def names(self) -> list[str]:
        """All clips, by name."""
        return sorted({*self._videos, *self._sounds, *self._frames})

    def find(self, *names: str) -> Clip:
        """The files of the clip that is known by any of these names, the first ones first.

        Raises:
            UserError: two files, or two folders, claim to be the same part of the clip.
        """
        return Clip(self._one(self._videos, names), self._one(self._frames, names), self._one(self._sounds, names))

    def _one(self, found: Mapping[str, list[Path]], names: Sequence[str]) -> Path | None:
        paths = next((found[name] for name in names if name in found), [])
        if not paths:
            return None
        rank = min(map(_preference, paths))
        best = [path for path in paths if _preference(path) == rank]
        if len(best) > 1:
            raise UserError(
                f"the clip {best[0].stem} is there {len(best)} times", key="data.root",
                found=", ".join(str(path.relative_to(self.root)) for path in best), expected="one of them",
                hint="Move the others away, or let data.root be the folder of the right ones",
            )  # fmt: skip
        return best[0]


def _preference(path: Path) -> int:
    suffix = path.suffix.lower()
    return SOUND_SUFFIXES.index(suffix) if suffix in SOUND_SUFFIXES else 0


def is_pointer(path: Path) -> bool:
    """Whether a file is a git-LFS pointer, as in zip downloads of repositories; files that are none are not opened."""
    try:
        if path.stat().st_size > _LONGEST_POINTER or not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(len(LFS_POINTER)) == LFS_POINTER
    except OSError:
        return False
