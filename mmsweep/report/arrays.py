"""The .npz files that final runs leave for the report."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmsweep.errors import UserError


def read_arrays(path: Path, wanted: Iterable[str] = ()) -> dict[str, NDArray[Any]]:
    """Every array of an .npz file by its name, nothing unpickled.

    Raises:
        UserError: the file is missing, damaged, or lacks one of `wanted`.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"the file cannot be read ({error})", file=path, expected=f"a whole {path.name}") from error
    missing = [name for name in wanted if name not in found]
    if missing:
        raise UserError("the file lacks arrays", file=path, found=sorted(found), expected=", ".join(missing))
    return found
