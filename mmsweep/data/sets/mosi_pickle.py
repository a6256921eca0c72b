"""The columns of CMU-MOSI's pickles, checked: features, lengths, labels and ids of a split."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mmsweep.data.array_pickle import array_values
from mmsweep.data.files import Stored, Undecodable, first_line, opened
from mmsweep.errors import UserError

SPLIT_NAMES = {"train": "train", "valid": "val", "test": "test"}


@dataclass(frozen=True)
class Features(Stored):
    """One sequence of the pickle, given as a .npy file.

    Args:
        values: [steps, width].
    """

    values: np.ndarray = field(compare=False, repr=False)

    def read(self) -> bytes:
        content = io.BytesIO()
        np.save(content, self.values, allow_pickle=False)
        return content.getvalue()


def splits_of(path: Path) -> dict[str, dict[str, Any]]:
    """The splits of a file, by its own names of them. Raises UserError."""
    try:
        with opened(path):
            pass
        parts = array_values(path)
    except (Undecodable, ValueError) as error:
        raise UserError(f"the features cannot be read ({first_line(error)})", file=path,
                        expected="a pickle of dicts, lists and NumPy arrays") from None  # fmt: skip
    if not isinstance(parts, dict) or not all(isinstance(parts.get(key), dict) for key in SPLIT_NAMES):
        raise UserError("the pickle does not hold the splits", file=path,
                        found=list(parts)[:10] if isinstance(parts, dict) else type(parts).__name__,
                        expected="train, valid and test, each a dict")  # fmt: skip
    return parts


def column(path: Path, key: str, part: Mapping[str, Any], name: str, rows: int | None = None) -> Any:
    """A list or array of a split. Raises UserError where it is none, or not of so many rows."""
    values: Any = part.get(name)
    listed = isinstance(values, list | tuple) or (isinstance(values, np.ndarray) and values.ndim > 0)
    if not listed or rows not in (None, len(values)):
        found = f"{len(values):,} rows" if listed else values
        raise UserError("a column of the pickle is absent or of another length", file=path, key=f"{key}.{name}",
                        found=found, expected="a list or an array" if rows is None else f"{rows:,} rows")  # fmt: skip
    return values


def features_of(path: Path, key: str, part: Mapping[str, Any], name: str) -> np.ndarray:
    """Features [N, steps, width]. Raises UserError."""
    rows = len(column(path, key, part, "text"))
    array = column(path, key, part, name, rows)
    if not isinstance(array, np.ndarray) or array.ndim != 3 or array.dtype.kind not in "fiu" or 0 in array.shape[1:]:
        found = f"{list(array.shape)} of {array.dtype}" if isinstance(array, np.ndarray) else type(array).__name__
        raise UserError("the features are not numbers [rows, steps, width]", file=path, key=f"{key}.{name}",
                        found=found, expected="an array of three axes")  # fmt: skip
    return array


def lengths_of(path: Path, key: str, part: Mapping[str, Any], modality: str, array: np.ndarray) -> list[int] | None:
    """Steps of every row, where the file states them."""
    rows, steps = array.shape[:2]
    name = f"{modality}_lengths"
    if name in part:
        lengths_N = _numbers(column(path, key, part, name, rows))
    else:  # ids, mask and segment of the words; also for what is aligned with them
        name, words = "text_bert", part.get("text_bert")
        if not isinstance(words, np.ndarray) or words.shape[1:] != (3, steps) or words.dtype.kind not in "fiu":
            return None
        lengths_N = words[:, 1].sum(1)
    if lengths_N.shape != (rows,) or lengths_N.dtype.kind not in "iuf" or not (lengths_N >= 0).all():
        raise UserError("the lengths are not whole numbers, one a row", file=path, key=f"{key}.{name}",
                        found=f"{list(lengths_N.shape)} of {lengths_N.dtype}", expected=f"{rows} numbers")  # fmt: skip
    return [int(length) for length in lengths_N]


def labels_of(path: Path, key: str, part: Mapping[str, Any], rows: int) -> np.ndarray:
    """float64 [N]; MulT's are [N, 1, 1]."""
    name = "regression_labels" if "regression_labels" in part else "labels"
    labels = _numbers(column(path, key, part, name, rows))
    if labels.size != rows or labels.dtype.kind not in "fiu":
        raise UserError("the labels are not one number a row", file=path, key=f"{key}.{name}",
                        found=f"{list(labels.shape)} of {labels.dtype}", expected=f"{rows} numbers")  # fmt: skip
    return labels.reshape(rows).astype(np.float64)


def _numbers(values: Any) -> np.ndarray:
    """An array; of objects where it is ragged, which its reader refuses."""
    try:
        return np.asarray(values)
    except ValueError:
        return np.array(["ragged"], object)


def id_of(value: Any) -> tuple[str, str | None]:
    """(id, video): MMSA writes video$_$clip, MulT [video, start, end] as bytes. The id is empty where it is no text."""
    if isinstance(value, list | tuple | np.ndarray) and getattr(value, "ndim", 1) == 1 and len(value):
        video, *rest = (_text(part) for part in value)
        return (f"{video}[{'-'.join(rest)}]" if rest else video), video or None
    text = _text(value)
    return text, text.rpartition("$_$")[0] or None


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return str(value) if isinstance(value, str | int | float | np.number) else ""
