"""Digests of a dataset: the name of its prepared folder, and its fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from mmsweep.data.dataset import SPLITS, TARGETS, Sample
from mmsweep.data.files import Segment, Stored
from mmsweep.data.kinds.kind import Format
from mmsweep.data.raster_files import Stack, Window
from mmsweep.tasks.task import Target

CODE_VERSION = 2
"""Raise it when the same input would give other columns: old caches are then left alone."""


def cache_key(splits: Mapping[str, list[Sample]], formats: Mapping[str, Format], target: Target) -> str:
    """Name of the prepared folder: cheap to compute, changes whenever a column could.

    Files count by path, size and time of change (reading them all at every start would take minutes).
    """
    return _digest(splits, formats, target, lambda split, row, name, value: _stamp(value, formats.get(name)))


def content_digest(
    splits: Mapping[str, list[Sample]],
    formats: Mapping[str, Format],
    target: Target,
    contents: Mapping[str, Sequence[Mapping[str, Any]]],
) -> str:
    """The data's fingerprint: equal on every machine that holds the same content, wherever it lies.

    Args:
        contents: for every split and row, `content_of` of what was decoded, by modality (label maps: `targets`).
    """
    return _digest(splits, formats, target, lambda split, row, name, value: contents[split][row].get(name, value))


def content_of(value: Any, format: Format | None = None) -> Any:
    """Digests of the files that a value names; the value itself where it names none. A label map has no format."""
    return value if value is None or (format and not format.from_files) else _file_content(value)


def split_digest(splits: Mapping[str, list[str]]) -> str:
    """Digest of which ids stand in which split, in order."""
    return hashlib.sha256(json.dumps([[name, splits[name]] for name in SPLITS]).encode()).hexdigest()[:24]


def ids_digest(ids: Iterable[str]) -> str:
    """Digest of the ids of one split, in order."""
    return hashlib.sha256(json.dumps(list(ids)).encode()).hexdigest()[:16]


def _start(formats: Mapping[str, Format], target: Target) -> Any:
    head: list[Any] = [CODE_VERSION, {m: f.key() for m, f in formats.items()}, list(formats)]
    head += [target.task, target.classes]
    if target.label_values:
        head.append(target.label_values)
    return hashlib.sha256(json.dumps(head, sort_keys=True).encode())


def _digest(
    splits: Mapping[str, list[Sample]],
    formats: Mapping[str, Format],
    target: Target,
    part: Callable[[str, int, str, Any], Any],
) -> str:
    """Digest of formats, target and rows; `part` says what stands for a value (split, row, modality, raw value)."""
    digest = _start(formats, target)
    for split in SPLITS:
        _feed(digest, "split", split)
        for row, sample in enumerate(splits[split]):
            wanted = sorted(sample.target) if isinstance(sample.target, (set, frozenset)) else sample.target
            _feed(digest, sample.id, sample.group,
                  part(split, row, TARGETS, wanted) if target.kind == "map" else wanted)  # fmt: skip
            for modality in formats:
                _feed(digest, modality, part(split, row, modality, sample.values.get(modality)))
    return digest.hexdigest()[:24]


def _feed(digest: Any, *parts: Any) -> None:
    digest.update(json.dumps(parts, default=str).encode() + b"\n")


def _stamp(value: Any, format: Format | None) -> Any:
    return value if value is None or (format and not format.from_files) else _file_stamp(value)


def _file_stamp(value: Any) -> Any:
    if isinstance(value, bytes):
        return _file_content(value)
    if isinstance(value, Stack):
        return [_file_stamp(part) for part in value.parts]
    if isinstance(value, Window):
        return [_file_stamp(value.path), value.top, value.left, value.height, value.width]
    if isinstance(value, Stored):
        return [*_file_stamp(value.container), value.name, value.size]
    if isinstance(value, Segment):
        return [_file_stamp(value.path), value.start, value.end, value.length]
    path = Path(value)
    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        stats = [(str(file), file.stat()) for file in files]
        return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]
    except (OSError, ValueError):  # ValueError: a NUL in the name, or half a surrogate pair
        return [str(path), "absent"]


def _file_content(value: Any) -> Any:
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    if isinstance(value, Stack):
        return [_file_content(part) for part in value.parts]
    if isinstance(value, Window):
        return [
            _whole_file(value.path, value.path.stat().st_mtime_ns),
            value.top,
            value.left,
            value.height,
            value.width,
        ]
    if isinstance(value, Stored):  # as a file of its own
        return [hashlib.sha256(value.read()).hexdigest()]
    if isinstance(value, Segment):
        return [_file_content(value.path), value.start, value.end, value.length]
    path = Path(value)
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [_sha256(file) for file in files if file.is_file()]


@lru_cache(maxsize=32)
def _whole_file(path: Path, changed: int) -> str:
    """Digest of a file that many windows are cut from."""
    return _sha256(path)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
