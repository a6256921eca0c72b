"""Shards: consecutive rows of a split that one process decodes and writes, and the journal of those that are written.

A shard is plain data, so that another process, or a Ray task on another node, can decode it. It writes its rows at
their place in the columns' files, which exist already; nothing but a summary (`Decoded`) comes back.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mmsweep.data.dataset import TARGETS
from mmsweep.data.digests import content_of
from mmsweep.data.files import Undecodable, name_of, reading
from mmsweep.data.kinds.kind import Format, Layout, Parts
from mmsweep.data.kinds.raster import decode_labels
from mmsweep.errors import UserError
from mmsweep.tasks.task import Target

_SHARD_BYTES = 2**25
_SHARD_ROWS = 256

Place = tuple[str, int]
"""A shard's split and its first row."""


@dataclass(frozen=True)
class Shard:
    """Consecutive rows of a split.

    Args:
        folder: of the prepared data.
        split: name of the split.
        start: number of the first row.
        formats: of the modalities that are decoded row by row.
        varied: what augmentation draws from is kept as well.
        layout: the columns that are filled, by their whole names.
        maps: the target, where it is a label map.
        map_size: (H, W) of the label maps.
        resizes_maps: label maps of another size are resized; otherwise they are refused.
        values: raw values by modality, and the label map's as `targets`; None where the row is known to be bad.
    """

    folder: Path
    split: str
    start: int
    formats: Mapping[str, Format]
    varied: bool
    layout: Layout
    maps: Target | None
    map_size: tuple[int, int] | None
    resizes_maps: bool
    values: Sequence[Mapping[str, Any] | None]

    @property
    def place(self) -> Place:
        return self.split, self.start

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class Decoded:
    """What is known of a shard once its rows are written.

    Args:
        split, start, rows: which rows.
        reasons: row of the split -> why it cannot be used.
        sums: modality -> (sums over the rows, how many values were added): see `preparation._means`.
        contents: for each row, the digest of what it was read from, by modality (`digests.content_of`).
        digest: of the rows' bytes in all columns.
    """

    split: str
    start: int
    rows: int
    reasons: Mapping[int, str]
    sums: Mapping[str, tuple[np.ndarray, int]]
    contents: Sequence[Mapping[str, Any]]
    digest: str

    @property
    def place(self) -> Place:
        return self.split, self.start

    def __len__(self) -> int:
        return self.rows


Runner = Callable[[Sequence[Shard]], Iterator[Decoded]]
"""Decodes shards; results may come in any order."""


def rows_of_a_shard(layout: Layout) -> int:
    """How many rows a shard has: at most 256, and fewer where they take more than 32 MiB together."""
    row = sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for _, dtype, shape in layout)
    return max(1, min(_SHARD_ROWS, _SHARD_BYTES // max(1, row)))


def in_threads(shards: Sequence[Shard]) -> Iterator[Decoded]:
    """Decode in this process, each shard's rows in threads: most of decoding and resizing happens without the GIL."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        yield from map(partial(decode, each=pool.map), shards)


def decode(shard: Shard, each: Callable[..., Iterator[Any]] = map) -> Decoded:
    """Decode a shard's rows and write them.

    Args:
        each: `map`, or a pool's.

    Raises:
        UserError: the columns are not on this machine; a package that decodes is not installed.
        OSError: they cannot be written.
    """
    blocks = {name: np.zeros((len(shard), *shape), dtype) for name, dtype, shape in shard.layout}
    reasons: dict[int, str] = {}
    contents: list[Mapping[str, Any]] = []
    sums: dict[str, tuple[np.ndarray, int]] = {}
    for row, (parts, reason, content) in enumerate(_rows(shard, each)):
        contents.append(content)
        if reason is not None:
            reasons[shard.start + row] = reason
        for name, array in parts.items():
            blocks[name][(row, slice(len(array))) if array.ndim else row] = array
            if name in shard.formats:
                _add(sums, name, array)
    for name, block in blocks.items():
        _write(shard.folder / shard.split / f"{name}.npy", shard.start, block)
    return Decoded(shard.split, shard.start, len(shard), reasons, sums, contents, _digest(blocks.values()))


def reasons_of(shard: Shard) -> dict[int, str]:
    """Decode a shard's rows and write nothing; row of the split -> why it cannot be used."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        rows = enumerate(_rows(shard, pool.map), start=shard.start)
        return {row: reason for row, (_, reason, _) in rows if reason is not None}


def _rows(shard: Shard, each: Callable[..., Iterator[Any]]) -> Iterator[tuple[Parts, str | None, dict[str, Any]]]:
    decoders = {
        modality: decoder
        for modality, format in shard.formats.items()
        if (decoder := format.decoder(shard.varied and bool(format.varied_columns()))) is not None
    }
    return each(partial(_row, shard, decoders), shard.values)


def _row(
    shard: Shard, decoders: Mapping[str, Callable[[Any], Parts]], values: Mapping[str, Any] | None
) -> tuple[Parts, str | None, dict[str, Any]]:
    """(arrays by column, why the row cannot be used, digests of what was read)."""
    arrays: Parts = {}
    contents: dict[str, Any] = {}
    place = "target"
    if values is None:
        return {}, None, {}
    if shard.maps and all(values[modality] is None for modality in shard.formats):
        return {}, f"nothing to learn from: every modality is empty ({', '.join(shard.formats)})", {}
    try:
        if shard.maps and shard.map_size:
            with reading("label map", values[TARGETS]):
                arrays[TARGETS] = decode_labels(values[TARGETS], shard.maps, shard.map_size, shard.resizes_maps)
                contents[TARGETS] = content_of(values[TARGETS])
        for modality, decoder in decoders.items():
            place, value, format = modality, values[modality], shard.formats[modality]
            if value is not None:
                parts = _finite(decoder, value, format)
                arrays |= {modality + name: array for name, array in parts.items()}
                contents[modality] = content_of(value, format)
    except Undecodable as error:
        return {}, f"{place}: {error}", {}
    return arrays, None, contents


def _finite(decoder: Callable[[Any], Parts], value: Any, format: Format) -> Parts:
    """A value as it is stored. Raises Undecodable, whatever the decoder raised, and for numbers that are not finite."""
    with reading(format.word, value):
        parts = decoder(value)
    # After the cast to 32 bits: 1e300 is finite before it.
    array = parts[""]
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        index = tuple(np.argwhere(~np.isfinite(array))[0])
        place = ", ".join(f"{axis} {number}" for axis, number in zip(format.axes, index, strict=False))
        raise Undecodable(f"the {format.word} {name_of(value)} holds {array[index]} at {place}")
    return parts


def _add(sums: dict[str, tuple[np.ndarray, int]], modality: str, array: np.ndarray) -> None:
    # Integers sum exactly in any order, floats in the order of rows.
    if array.ndim >= 3:  # pictures, frames and rasters, by channel
        exact = np.int64 if array.dtype.kind in "iu" else np.float64
        part = array.sum(axis=tuple(i for i in range(array.ndim) if i != array.ndim - 3), dtype=exact)
        size = array.size // array.shape[-3]
    else:
        part, size = array.sum(axis=0, dtype=np.float64), len(array)
    total, count = sums.get(modality, (np.zeros_like(part), 0))
    sums[modality] = (total + part, count + size)


def _write(path: Path, start: int, block: np.ndarray) -> None:
    """Write rows at their place. Not through a map: nodes that share a drive would overwrite each other's pages."""
    try:
        column = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise UserError(
            "this machine does not have the folder that data is prepared in", file=path.parent,
            hint="Name a folder that all nodes share in $MMSWEEP_CACHE",
        ) from None  # fmt: skip
    with path.open("r+b") as file:
        file.seek(column.offset + start * block[:1].nbytes)
        file.write(block.tobytes())


def _digest(blocks: Any) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for block in blocks:
        digest.update(np.ascontiguousarray(block).data)
    return digest.hexdigest()


class Journal:
    """The shards that are written, a line of JSON each. A line that a kill cut short counts as absent."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, decoded: Decoded) -> None:
        sums = {modality: (total.tolist(), count) for modality, (total, count) in decoded.sums.items()}
        with self.path.open("a") as file:
            file.write(json.dumps({**asdict(decoded), "sums": sums}) + "\n")

    def read(self, shards: Sequence[Shard]) -> Iterator[Decoded]:
        """Those of the shards whose rows are in the columns as they were written."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        by_place = {shard.place: shard for shard in shards}
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            shard = by_place.get((entry["split"], entry["start"]))
            if shard is not None and len(shard) == entry["rows"] and _stored(shard) == entry["digest"]:
                sums = {m: (np.array(total), count) for m, (total, count) in entry["sums"].items()}
                reasons = {int(row): reason for row, reason in entry["reasons"].items()}
                yield Decoded(**{**entry, "sums": sums, "reasons": reasons})


def _stored(shard: Shard) -> str:
    """The digest of a shard's rows as they lie on disk."""
    paths = (shard.folder / shard.split / f"{name}.npy" for name, _, _ in shard.layout)
    columns = (np.load(path, mmap_mode="r", allow_pickle=False) for path in paths)
    return _digest(column[shard.start : shard.start + len(shard)] for column in columns)
