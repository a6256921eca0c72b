"""Files of rows: only regular files are opened, and whatever a reader raises becomes a reason for people."""

from __future__ import annotations

import errno
import io
import re
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import UnidentifiedImageError

from mmsweep.errors import UserError

LFS_POINTER = b"version https://git-lfs"
"""How a git-LFS pointer begins: what a zip download of a repository holds in a large file's place."""

_LONGEST_NAME = 200
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_OF_THE_MACHINE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.ESTALE)
"""Errors that say nothing about the row."""


class Undecodable(Exception):
    """A value that cannot be read; str() is the reason, without the row's place."""


@dataclass(frozen=True)
class Stored(ABC):
    """A value within a larger file, such as a member of a tar archive. It is read when it is decoded.

    Args:
        container: the larger file.
        name: the value's own name in it.
        size: in bytes, to tell values apart without reading them.
    """

    container: Path
    name: str
    size: int

    @abstractmethod
    def read(self) -> bytes:
        """The value as a file of its own would hold it. Raises Undecodable."""

    def __str__(self) -> str:
        return f"{self.container}:{self.name}"


@dataclass(frozen=True)
class Segment:
    """A part of a recording.

    Args:
        path: video file, sound, stored spectrogram, or folder of frames.
        start, end: seconds from the recording's beginning.
        length: seconds that a folder of frames covers; other recordings know it themselves.
    """

    path: Path
    start: float
    end: float
    length: float | None = None

    def __str__(self) -> str:
        return f"{self.path} ({self.start:g} to {self.end:g} s)"


def path_of(value: str | Path | Segment) -> Path:
    """The file or folder that holds a value."""
    return value.path if isinstance(value, Segment) else Path(value)


@contextmanager
def reading(what: str, value: Any) -> Iterator[None]:
    """Turns whatever a reader raises into `Undecodable`, which names the value.

    Decoders raise what they like on damaged files (struct.error, KeyError, MemoryError for a size that a header makes
    up). What the user has to mend elsewhere (UserError) and faults of the machine stay what they are.
    """
    try:
        yield
    except (Undecodable, UserError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _OF_THE_MACHINE:
            raise
        raise Undecodable(f"the {what} {name_of(value)} cannot be decoded ({first_line(error)})") from None


@contextmanager
def opened(value: str | Path | bytes | Stored) -> Iterator[IO[bytes]]:
    """A file, a value within a file, or the bytes themselves, to be read from the start.

    Raises:
        Undecodable: absent, unreadable, empty, no regular file (links are followed; a pipe would never end), or only a
            git-LFS pointer (as in zip downloads of repositories).
    """
    if isinstance(value, bytes | Stored):
        content = value if isinstance(value, bytes) else value.read()
        shown = f"a value of {len(content)} bytes" if isinstance(value, bytes) else f"the file {name_of(value)}"
        _check_head(content[:64], shown)
        yield io.BytesIO(content)
        return
    path = regular(value)
    try:
        file = path.open("rb")
    except OSError as error:
        raise _unreadable(value, error) from None
    with file:
        _check_head(file.read(64), f"the file {name_of(value)}")
        file.seek(0)
        yield file


def regular(value: str | Path) -> Path:
    """The path of a regular file. Raises Undecodable where it is none."""
    try:
        mode = Path(value).stat().st_mode
    except (OSError, ValueError) as error:  # ValueError: a NUL or half a surrogate pair in the name
        raise _unreadable(value, error) from None
    if not stat.S_ISREG(mode):
        found = next((kind for test, kind in _KINDS if test(mode)), "something else")
        raise Undecodable(f"{name_of(value)} is {found}; expected a file")
    return Path(value)


def _unreadable(value: str | Path, error: OSError | ValueError) -> Undecodable:
    if isinstance(error, OSError) and error.errno in _OF_THE_MACHINE:
        raise error
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return Undecodable(f"the file {name_of(value)} does not exist")
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return Undecodable(f"the file {name_of(value)} cannot be read ({printable(reason)})")


def _check_head(head: bytes, shown: str) -> None:
    if not head:
        raise Undecodable(f"{shown} is empty")
    if head.startswith(LFS_POINTER):
        raise Undecodable(f"{shown} is a git-LFS pointer, not the data; fetch it with `git lfs pull`")


def load_array(value: str | Path | bytes, what: str) -> np.ndarray:
    """The numbers of a .npy file (or its bytes).

    Raises:
        Undecodable: unreadable, another format (pickles and archives of arrays too), or not real numbers.
    """
    with opened(value) as file:
        try:
            array: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
        except Exception as error:
            raise Undecodable(f"the {what} {name_of(value)} is not a .npy array ({first_line(error)})") from None
    if array.dtype.kind not in "fiu":
        raise Undecodable(f"the {what} {name_of(value)} does not hold numbers; found {array.dtype}")
    return array


def name_of(value: Any) -> str:
    """A value's name in messages; a caption where a file name belongs is cut."""
    if isinstance(value, bytes):
        return "given as bytes"
    text = printable(str(value))
    return text if len(text) <= _LONGEST_NAME else f"{text[:_LONGEST_NAME]}…"


def printable(text: str) -> str:
    """Text that any terminal takes: half surrogate pairs and control characters escaped."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def first_line(error: BaseException) -> str:
    """What went wrong, in a line for people."""
    if isinstance(error, UnidentifiedImageError):
        return "no known picture format"  # Pillow's own words name an object in memory
    return printable((str(error).splitlines() or [type(error).__name__])[0][:160])


def natural_key(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sort key in which frame-9 comes before frame-10; names with equal numbers, 7 and 007, follow their spelling."""
    parts = re.split(r"([0-9]+)", name)
    digits = [part.lstrip("0") for part in parts[1::2]]  # compared by length, then by digit: as their numbers
    keys = [(1, 0, part) for part in parts]
    keys[1::2] = [(0, len(number), number) for number in digits]
    return keys, name
