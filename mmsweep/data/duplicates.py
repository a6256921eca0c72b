"""Finds rows with the same inputs in more than one split, by the content of their files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mmsweep.data.dataset import Sample
from mmsweep.data.files import Stored, Undecodable
from mmsweep.data.raster_files import Stack, Window
from mmsweep.data.splitting import repeated


def repeated_contents(splits: Mapping[str, list[Sample]]) -> Iterator[dict[str, list[Sample]]]:
    """Split -> rows, for every set of equal inputs in more than one split; reads files whose sizes are equal."""
    for likely in repeated(splits, _size):
        yield from repeated(likely, _content)


def _size(value: Any) -> Any:
    """An input as cheaply as it can be told apart: a file by its size."""
    if isinstance(value, Stored):
        return value.size
    if isinstance(value, Stack | Window):
        return _by_file(value, _size)
    return value.stat().st_size if _is_file(value) else value


def _by_file(value: Stack | Window, identity: Callable[[Any], Any]) -> Any:
    if isinstance(value, Window):
        return identity(value.path), value.top, value.left, value.height, value.width
    return tuple(_by_file(part, identity) if isinstance(part, Window) else identity(part) for part in value.parts)


def _content(value: Any) -> Any:
    if isinstance(value, Stored):
        try:
            return hashlib.sha256(value.read()).digest()
        except Undecodable:
            return value
    if isinstance(value, Stack | Window):
        return _by_file(value, _content)
    if not _is_file(value):
        return value
    try:
        return hashlib.sha256(value.read_bytes()).digest()
    except OSError:
        return value


def _is_file(value: Any) -> bool:
    """Whether the value is the path of a regular file. `Path.is_file` would raise for some names."""
    return isinstance(value, Path) and os.path.isfile(value)
