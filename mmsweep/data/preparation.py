"""Writes prepared columns: every row decoded once, in its native type, into memory-mappable .npy files.

Layout of a prepared folder (written under a temporary name, then renamed, so that it is whole or absent):

    prepared.json              formats, rows, digests, statistics, skipped rows, checksums of all files
    train/ids.json             ids and groups, in order       (the same for val/ and test/)
    train/targets.npy          int64 [N] | float32 [N,C] | float32 [N] | uint8 [N,H,W] (label maps)
    train/natural.npy          bool [N,M]
    train/image.npy            uint8 [N,3,H,W]                 (or <audio>.npy, <video>.npy)
    train/image.varied.npy     what augmentation draws from, as `Format.varied_columns` says (train/ only)
    train/height.npy           uint8 or uint16 [N,C,H,W]       (rasters, in their own type)
    train/<sequence>.npy       float32 [N,T,F], and <sequence>.length.npy int32 [N]
    train/text.ids.npy         int32 [N,L], and text.mask.npy bool [N,L]
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from mmsweep.data.dataset import SPLITS, Sample
from mmsweep.data.digests import CODE_VERSION, content_digest, split_digest
from mmsweep.data.files import Undecodable, name_of, reading
from mmsweep.data.kinds.kind import Format, Layout, Parts
from mmsweep.data.kinds.raster import decode_labels
from mmsweep.data.wholeness import seal
from mmsweep.errors import UserError
from mmsweep.tasks.task import Target

TARGETS = "targets"
"""The column of targets; no modality may have this name."""

BadSamples = list[tuple[Sample, str]]
"""Rows that cannot be used, and why."""

Progress = Callable[[str, int, int], None]
"""Called with (split, rows done, rows in all)."""


def write_prepared(
    folder: Path,
    splits: Mapping[str, list[Sample]],
    formats: Mapping[str, Format],
    target: Target,
    *,
    skip_bad: bool,
    progress: Progress | None = None,
) -> BadSamples:
    """Fills `folder` (empty). Returns the bad rows; unless `skip_bad`, the folder is of no use when there are any."""
    check_names(formats)
    _require_space(folder, splits, formats)
    bad: BadSamples = []
    kept: dict[str, list[Sample]] = {}
    statistics: dict[str, Any] = {}
    for name in SPLITS:
        (folder / name).mkdir(parents=True)
        maps = target if target.kind == "map" else None
        samples, targets = (splits[name], []) if maps else _with_valid_targets(splits[name], target, bad)
        columns = _Columns(folder / name, samples, formats, maps, training=name == "train")
        good = columns.decode(bad, lambda done, total, name=name: progress and progress(name, done, total))  # type: ignore[misc]
        if bad and not skip_bad:
            continue  # only the list of bad rows is still of interest
        columns.close(good)
        kept[name] = [sample for sample, fine in zip(samples, good, strict=True) if fine]
        _write_rows(folder / name, kept[name], formats)
        if not maps:
            _write_targets(folder / name, [t for t, fine in zip(targets, good, strict=True) if fine], target)
        if name == "train":
            statistics = columns.statistics()
    if bad and not skip_bad:
        return bad
    for modality, format in formats.items():
        if own := format.statistics():
            statistics[modality] = own
    record = {
        "code_version": CODE_VERSION,
        "fingerprint": content_digest(kept, formats, target),
        "split_digest": split_digest({name: [sample.id for sample in kept[name]] for name in SPLITS}),
        "formats": {modality: format.key() for modality, format in formats.items()},
        "statistics": statistics,
        "rows": {name: len(kept[name]) for name in SPLITS},
        "skipped": [[sample.id, reason] for sample, reason in bad],
    }
    seal(folder, record)
    return bad


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
        )
    return next(iter(sizes.values()))


class _Columns:
    """The columns of one split while they are written."""

    def __init__(
        self,
        folder: Path,
        samples: list[Sample],
        formats: Mapping[str, Format],
        maps: Target | None = None,
        training: bool = False,
    ) -> None:
        self.folder, self.samples, self.formats, self.maps = folder, samples, formats, maps
        self.arrays: dict[str, np.ndarray] = {}
        self.sums: dict[str, tuple[np.ndarray, int]] = {}
        self.decoders: dict[str, Callable[[Any], Parts]] = {}
        for modality, format in formats.items():
            varied = training and bool(format.varied_columns())
            for name, dtype, shape in format.columns() + (format.varied_columns() if varied else []):
                self.arrays[modality + name] = _create(folder / f"{modality}{name}.npy", dtype, (len(samples), *shape))
            if (decoder := format.decoder(varied)) is not None:
                self.decoders[modality] = decoder
        if maps:
            self.map_size = map_size(formats)
            self.arrays[TARGETS] = _create(folder / f"{TARGETS}.npy", np.uint8, (len(samples), *self.map_size))

    def decode(self, bad: BadSamples, progress: Callable[[int, int], object]) -> np.ndarray:
        """Fills the columns; returns bool [N], which rows are good. Adds the others to `bad`, in the order of rows."""
        reasons: dict[int, str] = {}
        for modality, format in self.formats.items():
            if (decode := format.decoder_of_many()) is not None:
                self._decode_many(modality, decode, reasons)

        def one(row: int) -> tuple[Parts, str | None]:
            if row in reasons:
                return {}, reasons[row]
            arrays: Parts = {}
            sample, place = self.samples[row], TARGETS[:-1]
            if self.maps and all(value is None for value in sample.values.values()):
                return {}, f"nothing to learn from: every modality is empty ({', '.join(self.formats)})"
            try:
                if self.maps:
                    with reading("label map", sample.target):
                        arrays[TARGETS] = decode_labels(sample.target, self.maps, self.map_size)
                for modality, decoder in self.decoders.items():
                    place, value = modality, sample.values.get(modality)
                    if value is not None:
                        parts = _decoded(decoder, value, self.formats[modality])
                        arrays |= {modality + name: array for name, array in parts.items()}
            except Undecodable as error:
                return {}, f"{place}: {error}"
            return arrays, None

        # Threads: decoding and resizing happen in C without the interpreter's lock. Results come back in order, so sums
        # and the list of bad rows do not depend on timing; windows bound what waits in memory.
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for start in range(0, len(self.samples) if self.decoders or self.maps else 0, _WINDOW):
                rows = range(start, min(start + _WINDOW, len(self.samples)))
                for row, (arrays, reason) in zip(rows, pool.map(one, rows), strict=True):
                    if reason is not None:
                        reasons[row] = reason
                    for name, array in arrays.items():
                        self.arrays[name][(row, slice(len(array))) if array.ndim else row] = array
                        if name in self.formats:
                            self._add(name, array)
                progress(rows.stop, len(self.samples))
        bad.extend((self.samples[row], reasons[row]) for row in sorted(reasons))
        return np.array([row not in reasons for row in range(len(self.samples))], bool)

    def statistics(self) -> dict[str, Any]:
        """Per modality the mean of what is there: channels of pictures (0..255) and rasters, mel bins, features."""
        return {modality: {"mean": (total / count).tolist()} for modality, (total, count) in self.sums.items()}

    def close(self, good_N: np.ndarray) -> None:
        """Flushes, leaving out the rows that are not good."""
        for name, array in self.arrays.items():
            path = self.folder / f"{name}.npy"
            if not good_N.any():
                path.unlink(missing_ok=True)  # as `_create`: a column without rows has no file
            elif not good_N.all():
                kept = _create(path.with_suffix(".kept"), array.dtype, (int(good_N.sum()), *array.shape[1:]))
                for to, row in enumerate(np.flatnonzero(good_N)):
                    kept[to] = array[row]
                _flush(kept)
                path.with_suffix(".kept").replace(path)
            else:
                _flush(array)
        self.arrays.clear()

    def _decode_many(self, modality: str, decode: Callable[[Sequence[Any]], Parts], reasons: dict[int, str]) -> None:
        word = self.formats[modality].word
        for start in range(0, len(self.samples), _MANY):
            chunk = [sample.values.get(modality) for sample in self.samples[start : start + _MANY]]
            try:
                parts = decode(chunk)
            except Exception:  # some value among them cannot be decoded: half a surrogate pair, or no text
                parts, bad = _one_by_one(decode, chunk, word)
                for row, reason in bad.items():
                    reasons.setdefault(start + row, f"{modality}: {reason}")
            for name, array in parts.items():
                self.arrays[modality + name][start : start + len(chunk)] = array

    def _add(self, modality: str, array: np.ndarray) -> None:
        # Pictures sum as integers (exact in any order); sounds in the order of rows.
        if array.dtype in (np.uint8, np.uint16):
            part = array.sum(axis=tuple(i for i in range(array.ndim) if i != array.ndim - 3), dtype=np.int64)
            size = array.size // array.shape[-3]
        else:
            part, size = array.sum(axis=0, dtype=np.float64), len(array)
        total, count = self.sums.get(modality, (np.zeros_like(part), 0))
        self.sums[modality] = (total + part, count + size)


_WINDOW = 256
_MANY = 4096


def _decoded(decoder: Callable[[Any], Parts], value: Any, format: Format) -> Parts:
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
    if 0 in shape:  # an empty file cannot be mapped
        return np.zeros(shape, dtype)
    return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)


def _flush(array: np.ndarray) -> None:
    if isinstance(array, np.memmap):
        array.flush()


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


def _write_rows(folder: Path, samples: list[Sample], formats: Mapping[str, Format]) -> None:
    natural = [[sample.values.get(modality) is not None for modality in formats] for sample in samples]
    np.save(folder / "natural.npy", np.array(natural, bool).reshape(len(samples), len(formats)), allow_pickle=False)
    rows = {"ids": [sample.id for sample in samples], "groups": [sample.group for sample in samples]}
    (folder / "ids.json").write_text(json.dumps(rows))


def _write_targets(folder: Path, targets: list[Any], target: Target) -> None:
    np.save(folder / f"{TARGETS}.npy", target.array(targets), allow_pickle=False)
