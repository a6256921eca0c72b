"""Writes prepared columns: every row decoded once, in its native type, into memory-mappable .npy files.

Layout of a prepared folder (written under a temporary name, then renamed, so that it is whole or absent):

    prepared.json              formats, rows, digests, statistics, bad rows, checksums of all files
    train/ids.json             ids and groups, in order       (the same for val/ and test/)
    train/targets.npy          int64 [N] | float32 [N,C] | float32 [N] | uint8 [N,H,W] (label maps)
    train/natural.npy          bool [N,M]
    train/image.npy            uint8 [N,3,H,W]                 (or <audio>.npy, <video>.npy)
    train/image.varied.npy     what augmentation draws from, as `Format.varied_columns` says (train/ only)
    train/height.npy           uint8 or uint16 [N,C,H,W]       (rasters, in their own type)
    train/<sequence>.npy       float32 [N,T,F], and <sequence>.length.npy int32 [N]
    train/text.ids.npy         int32 [N,L], and text.mask.npy bool [N,L]

Rows are decoded in shards (`shards.py`), in any order and by any process that sees the folder. A journal beside the
folder lists the shards that are written; preparation that was interrupted continues with the others.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from mmsweep.data.dataset import SPLITS, TARGETS, Sample
from mmsweep.data.digests import CODE_VERSION, content_digest, split_digest
from mmsweep.data.files import Undecodable, name_of, reading
from mmsweep.data.kinds.kind import Format, Layout, Parts
from mmsweep.data.shards import Decoded, Journal, Runner, Shard, in_threads, reasons_of, rows_of_a_shard
from mmsweep.data.wholeness import seal
from mmsweep.errors import UserError
from mmsweep.tasks.task import Target

BadSamples = list[tuple[Sample, str]]
"""Rows that cannot be used, and why."""

Progress = Callable[[int, int], None]
"""Called with (rows done, rows in all), of all splits together."""


def write_prepared(
    folder: Path,
    splits: Mapping[str, list[Sample]],
    formats: Mapping[str, Format],
    target: Target,
    *,
    progress: Progress | None = None,
    run: Runner = in_threads,
) -> None:
    """Fill `folder`, leaving out the rows that cannot be used; the record lists these rows.

    Args:
        folder: a new folder, or one that an interrupted call with the same arguments has left.
        run: decodes shards.
    """
    check_names(formats)
    journal = Journal(folder.with_name(f"{folder.name}.jsonl"))
    if not (folder.exists() and journal.path.exists()):
        shutil.rmtree(folder, ignore_errors=True)
        journal.path.unlink(missing_ok=True)
        folder.mkdir()
        _require_space(folder, splits, formats)
    bad: BadSamples = []
    maps = target if target.kind == "map" else None
    usable, targets = {}, {}
    for name in SPLITS:
        (folder / name).mkdir(exist_ok=True)
        usable[name], targets[name] = (splits[name], []) if maps else _with_valid_targets(splits[name], target, bad)
    columns = {name: _Columns(folder, name, usable[name], formats, maps) for name in SPLITS}
    shards = [shard for name in SPLITS for shard in columns[name].shards()]
    written = {shard.place: shard for shard in journal.read(shards)}
    total = sum(map(len, usable.values()))
    if progress:
        progress(sum(map(len, written.values())), total)
    for decoded in run([shard for shard in shards if shard.place not in written]):
        journal.add(decoded)
        written[decoded.place] = decoded
        if progress:
            progress(sum(map(len, written.values())), total)
    kept: dict[str, list[Sample]] = {}
    contents: dict[str, list[Mapping[str, Any]]] = {}
    statistics: dict[str, Any] = {}
    for name in SPLITS:
        parts = [written[shard.place] for shard in shards if shard.split == name]
        good_N = columns[name].close(parts, bad)
        kept[name] = [sample for sample, good in zip(usable[name], good_N, strict=True) if good]
        rows = [content for part in parts for content in part.contents] or [{}] * len(good_N)
        contents[name] = [content for content, good in zip(rows, good_N, strict=True) if good]
        natural_NM = _write_rows(folder / name, kept[name], formats)
        if not maps:
            _write_targets(folder / name, [t for t, good in zip(targets[name], good_N, strict=True) if good], target)
        if name == "train":
            statistics = _means(parts)
            for modality, measured in _measured(folder / name, formats, natural_NM).items():
                statistics[modality] = statistics.get(modality, {}) | measured
    places = {id(sample): place for place, sample in enumerate(sample for name in SPLITS for sample in splits[name])}
    bad.sort(key=lambda pair: places[id(pair[0])])
    for modality, format in formats.items():
        if own := format.statistics():
            statistics[modality] = own
    record = {
        "code_version": CODE_VERSION,
        "fingerprint": content_digest(kept, formats, target, contents),
        "split_digest": split_digest({name: [sample.id for sample in kept[name]] for name in SPLITS}),
        "formats": {modality: format.key() for modality, format in formats.items()},
        "statistics": statistics,
        "rows": {name: len(kept[name]) for name in SPLITS},
        "skipped": [[sample.id, reason] for sample, reason in bad],
    }
    seal(folder, record)
    journal.path.unlink(missing_ok=True)


def unusable(
    name: str, samples: list[Sample], formats: Mapping[str, Format], target: Target
) -> Iterator[tuple[Sample, str]]:
    """The rows of a split that cannot be used, and why: every value is decoded, and nothing is written."""
    bad: BadSamples = []
    maps = target if target.kind == "map" else None
    usable = samples if maps else _with_valid_targets(samples, target, bad)[0]
    yield from bad
    with TemporaryDirectory() as folder:
        (Path(folder) / name).mkdir()
        columns = _Columns(Path(folder), name, usable, formats, maps)
        yield from ((usable[row], reason) for row, reason in sorted(columns.reasons.items()))
        for shard in columns.shards():
            yield from ((usable[row], reason) for row, reason in sorted(reasons_of(shard).items()))


def _require_space(folder: Path, splits: Mapping[str, list[Sample]], formats: Mapping[str, Format]) -> None:
    # A mapped file on a full disk ends the process (SIGBUS) instead of raising.
    rows = sum(map(len, splits.values()))
    train = len(splits["train"])
    needed = sum(rows * _bytes(f.columns()) + train * _bytes(f.varied_columns()) for f in formats.values())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            "the disk has no room for the prepared data",
            file=folder.parent,
            found=f"{free / 1e9:.1f} GB free",
            expected=f"{needed / 1e9:.1f} GB",
            hint="Name a folder on a larger disk in $MMSWEEP_CACHE",
        )


def _bytes(columns: Layout) -> int:
    """Of a row."""
    return sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for _, dtype, shape in columns)


# ---- columns -------------------------------------------------------------------------------------------------------


def check_names(formats: Mapping[str, Format]) -> None:
    """Raises UserError where a modality's name would make another file than one of its own in the split's folder."""
    taken = {TARGETS, "natural"}
    for modality, format in formats.items():
        stems = {modality + name for name, _, _ in format.columns() + format.varied_columns()}
        if (
            Path(modality).name != modality
            or not modality.strip(".")
            or "\0" in modality
            or "\\" in modality
            or stems & taken
        ):
            raise UserError(
                "the name of this modality cannot be that of a file of prepared data",
                key=f"data.modalities.{modality}", expected="letters, digits and _, and no name that is taken",
            )  # fmt: skip
        taken |= stems


def map_size(formats: Mapping[str, Format]) -> tuple[int, int]:
    """(H, W) of the rasters, and so of the label maps.

    Raises:
        UserError: no raster, or rasters of several sizes.
    """
    sizes = {modality: format.map_size for modality, format in formats.items() if format.map_size is not None}
    if len(set(sizes.values())) != 1:
        raise UserError(
            "a label map needs rasters, all of one size",
            key="data.modalities",
            found={m: f"{h} x {w}" for m, (h, w) in sizes.items()},
            hint="data.raster.size resizes all of them" if sizes else None,
        )
    return next(iter(sizes.values()))


class _Columns:
    """The columns of one split while they are written.

    Raises:
        UserError: a value of a kind that is encoded many at once (a text) needs files that are not there.
    """

    def __init__(
        self, folder: Path, name: str, samples: list[Sample], formats: Mapping[str, Format], maps: Target | None
    ) -> None:
        self.folder, self.name, self.samples, self.formats, self.maps = folder, name, samples, formats, maps
        self.varied = name == "train"
        self.map_size = map_size(formats) if maps else None
        self.resizes_maps = any(format.resizes_maps for format in formats.values())
        self.reasons: dict[int, str] = {}
        self.layout: Layout = []  # of all columns, by their whole names
        self.decoded: dict[str, Layout] = {}  # modality -> columns that shards fill
        for modality, format in formats.items():
            columns = format.columns() + (format.varied_columns() if self.varied else [])
            own = [(modality + column, dtype, shape) for column, dtype, shape in columns]
            self.layout += own
            encode = format.decoder_of_many()
            if encode is None:
                self.decoded[modality] = own
            else:
                self._encode(modality, encode, own)
        if self.map_size:
            self.decoded[TARGETS] = [(TARGETS, np.uint8, self.map_size)]
            self.layout += self.decoded[TARGETS]
        for columns in self.decoded.values():
            for column, dtype, shape in columns:
                _create(self._path(column), dtype, (len(samples), *shape))

    def shards(self) -> list[Shard]:
        """The rows in shards; none where no column is filled by decoding."""
        layout = [column for columns in self.decoded.values() for column in columns]
        size = rows_of_a_shard(layout)
        read = {modality: self.formats[modality] for modality in self.decoded if modality != TARGETS}
        return [
            Shard(
                self.folder, self.name, start, read, self.varied, layout, self.maps, self.map_size, self.resizes_maps,
                [self._value(row) for row in range(start, min(start + size, len(self.samples)))],
            )
            for start in range(0, len(self.samples) if self.decoded else 0, size)
        ]  # fmt: skip

    def close(self, decoded: Sequence[Decoded], bad: BadSamples) -> np.ndarray:
        """Drop the rows that cannot be used; returns bool [N], which rows are kept. The others are added to `bad`."""
        reasons = {**{row: reason for part in decoded for row, reason in part.reasons.items()}, **self.reasons}
        bad.extend((self.samples[row], reasons[row]) for row in sorted(reasons))
        good_N = np.array([row not in reasons for row in range(len(self.samples))], bool)
        for column, dtype, shape in self.layout:
            path = self._path(column)
            if not good_N.any():
                path.unlink(missing_ok=True)  # a column without rows has no file
            elif not good_N.all():
                array = np.load(path, mmap_mode="r", allow_pickle=False)
                kept = _create(path.with_suffix(".kept"), dtype, (int(good_N.sum()), *shape))
                for to, row in enumerate(np.flatnonzero(good_N)):
                    kept[to] = array[row]
                path.with_suffix(".kept").replace(path)
        return good_N

    def _value(self, row: int) -> Mapping[str, Any] | None:
        """What a shard reads of a row; None where the row is known to be bad."""
        if row in self.reasons:
            return None
        sample = self.samples[row]
        values = {modality: sample.values.get(modality) for modality in self.decoded if modality != TARGETS}
        return values | {TARGETS: sample.target} if self.maps else values

    def _encode(self, modality: str, encode: Callable[[Sequence[Any]], Parts], columns: Layout) -> None:
        word = self.formats[modality].word
        arrays = {name: _create(self._path(name), dtype, (len(self.samples), *shape)) for name, dtype, shape in columns}
        for start in range(0, len(self.samples), _MANY):
            chunk = [sample.values.get(modality) for sample in self.samples[start : start + _MANY]]
            try:
                parts = encode(chunk)
            except Exception:  # some value among them cannot be decoded: half a surrogate pair, or no text
                parts, bad = _one_by_one(encode, chunk, word)
                for row, reason in bad.items():
                    self.reasons.setdefault(start + row, f"{modality}: {reason}")
            for name, array in parts.items():
                arrays[modality + name][start : start + len(chunk)] = array

    def _path(self, column: str) -> Path:
        return self.folder / self.name / f"{column}.npy"


_MANY = 4096


def _means(decoded: Sequence[Decoded]) -> dict[str, Any]:
    """Per modality the mean over the rows: of channels (pictures 0..255, rasters), mel bins or features."""
    sums: dict[str, tuple[np.ndarray, int]] = {}
    for part in decoded:
        for modality, (total, count) in part.sums.items():
            before, rows = sums.get(modality, (np.zeros_like(total), 0))
            sums[modality] = before + total, rows + count
    return {modality: {"mean": (total / count).tolist()} for modality, (total, count) in sums.items()}


def _one_by_one(
    decode: Callable[[Sequence[Any]], Parts], values: Sequence[Any], word: str
) -> tuple[Parts, dict[int, str]]:
    """What values become one at a time, and why some cannot: these become what a row without a value does."""
    rows: list[Parts] = []
    bad: dict[int, str] = {}
    for row, value in enumerate(values):
        try:
            with reading(word, name_of(value)):
                rows.append(decode([value]))
        except Undecodable as error:
            bad[row] = str(error)
            rows.append(decode([None]))
    return {name: np.concatenate([parts[name] for parts in rows]) for name in rows[0]}, bad


def _create(path: Path, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    """A column on disk, mapped. One of the right shape that an interrupted preparation left is kept as it is."""
    if 0 in shape:  # an empty file cannot be mapped
        return np.zeros(shape, dtype)
    try:
        array: np.ndarray = np.load(path, mmap_mode="r+", allow_pickle=False)
        if array.shape == shape and array.dtype == dtype:
            return array
    except (OSError, ValueError):
        pass
    return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)


def _with_valid_targets(samples: list[Sample], target: Target, bad: BadSamples) -> tuple[list[Sample], list[Any]]:
    fine, targets = [], []
    for sample in samples:
        try:
            targets.append(target.encode(sample.target))
        except UserError as error:
            bad.append((sample, f"target: {error}"))
            continue
        if all(value is None for value in sample.values.values()):
            bad.append((sample, "every modality is empty"))
            targets.pop()
            continue
        fine.append(sample)
    return fine, targets


def _measured(folder: Path, formats: Mapping[str, Format], natural_NM: np.ndarray) -> dict[str, dict[str, Any]]:
    """What formats want to know of the whole training columns, by modality."""
    found = {}
    for place, (modality, format) in enumerate(formats.items()):
        path = folder / f"{modality}.npy"
        if path.is_file():
            found[modality] = format.measured(np.load(path, mmap_mode="r", allow_pickle=False), natural_NM[:, place])
    return {modality: own for modality, own in found.items() if own}


def _write_rows(folder: Path, samples: list[Sample], formats: Mapping[str, Format]) -> np.ndarray:
    """Returns bool [N,M], which modalities the rows have."""
    natural = [[sample.values.get(modality) is not None for modality in formats] for sample in samples]
    natural_NM = np.array(natural, bool).reshape(len(samples), len(formats))
    np.save(folder / "natural.npy", natural_NM, allow_pickle=False)
    rows = {"ids": [sample.id for sample in samples], "groups": [sample.group for sample in samples]}
    (folder / "ids.json").write_text(json.dumps(rows))
    return natural_NM


def _write_targets(folder: Path, targets: list[Any], target: Target) -> None:
    np.save(folder / f"{TARGETS}.npy", target.array(targets), allow_pickle=False)
