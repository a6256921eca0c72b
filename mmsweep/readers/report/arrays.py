"""Reads the .npz files that final runs write for the report."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmsweep.errors import UserError

# Raised by numpy and zipfile on damaged bytes: a size beyond memory, an unknown compression, a broken stream …
_UNREADABLE = (
    *(OSError, EOFError, ValueError, KeyError, SyntaxError, MemoryError, NotImplementedError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error, struct.error),
)


def read_arrays(path: Path, wanted: Iterable[str] = ()) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz file by name, read without unpickling.

    Raises:
        UserError: the file is missing, damaged, or lacks one of `wanted`.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except _UNREADABLE as error:
        raise UserError(f"the file cannot be read ({error})", file=path, expected=f"an intact {path.name}") from error
    missing = [name for name in wanted if name not in arrays]
    if missing:
        raise UserError("the file lacks arrays", file=path, found=sorted(arrays), expected=", ".join(missing))
    return arrays
