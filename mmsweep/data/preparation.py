"""Writes prepared columns: every row decoded once, in its native type, into memory-mappable .npy files.

Layout of a prepared folder (written under a temporary name, then renamed, so that it is whole or absent):

    prepared.json              formats, rows, digests, statistics, skipped rows, checksums of all files
    train/ids.json             ids and groups, in order       (the same for val/ and test/)
    train/targets.npy          int64 [N] | float32 [N,C] | float32 [N] | uint8 [N,H,W] (label maps)
    train/natural.npy          bool [N,M]
    train/image.npy            uint8 [N,3,H,W]                 (or <audio>.npy, <video>.npy)
    train/image.varied.npy     what augmentation draws from, as `training_layout` says (train/ only)
    train/height.npy           uint8 or uint16 [N,C,H,W]       (rasters, in their own type)
    train/<sequence>.npy       float32 [N,T,F], and <sequence>.length.npy int32 [N]
    train/text.ids.npy         int32 [N,L], and text.mask.npy bool [N,L]
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from mmsweep.data.clips import decode_kept_frames, decode_video
from mmsweep.data.columns import TARGETS, Layout, check_names, column_layout, map_size, training_layout
from mmsweep.data.dataset import SPLITS, Sample
from mmsweep.data.decoding import decode_image, decode_whole, sound_decoder
from mmsweep.data.derived import sequence_decoder
from mmsweep.data.digests import CODE_VERSION, content_digest, split_digest
from mmsweep.data.files import Undecodable, name_of, reading
from mmsweep.data.formats import (
    KINDS,
    AudioFormat,
    Format,
    ImageFormat,
    RasterFormat,
    SequenceFormat,
    TextFormat,
    VideoFormat,
)
from mmsweep.data.rasters import decode_labels, decode_raster
from mmsweep.data.texts import Encode, text_encoder
from mmsweep.data.wholeness import seal
from mmsweep.errors import UserError
from mmsweep.tasks.task import Target

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
    decoders = {modality: _decoder(format) for modality, format in formats.items()}
    kept: dict[str, list[Sample]] = {}
    statistics: dict[str, Any] = {}
    for name in SPLITS:
        (folder / name).mkdir(parents=True)
        maps = target if target.kind == "map" else None
        samples, targets = (splits[name], []) if maps else _with_valid_targets(splits[name], target, bad)
        columns = _Columns(folder / name, samples, formats, maps, training=name == "train")
        good = columns.decode(decoders, bad, lambda done, total, name=name: progress and progress(name, done, total))  # type: ignore[misc]
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
        if isinstance(format, TextFormat):
            ids_NL, mask_NL = text_encoder(format)([""])
            length = int(mask_NL.sum())
            statistics[modality] = {"empty": ids_NL[0, :length].tolist(), "pad": ids_NL[0, length:].tolist()[:1]}
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
    def bytes_of(layout: Callable[[str, Format], Layout]) -> int:
        columns = [column for modality, format in formats.items() for column in layout(modality, format)]
        return sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for _, dtype, shape in columns)

    needed = bytes_of(column_layout) * sum(map(len, splits.values())) + bytes_of(training_layout) * len(splits["train"])
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            "the disk has no room for the prepared data",
            file=folder.parent,
            found=f"{free / 1e9:.1f} GB free",
            expected=f"{needed / 1e9:.1f} GB",
            hint="Name a folder on a larger disk in $MMSWEEP_CACHE",
        )


# ---- columns -------------------------------------------------------------------------------------------------------


def _decoder(format: Format) -> Callable[[Any], np.ndarray] | None:
    if isinstance(format, ImageFormat):
        return lambda value: decode_image(value, format)
    if isinstance(format, VideoFormat):
        return lambda value: decode_video(value, format)
    if isinstance(format, RasterFormat):
        return lambda value: decode_raster(value, format)
    if isinstance(format, AudioFormat):
        return sound_decoder(format)
    if isinstance(format, SequenceFormat):
        return sequence_decoder(format)
    return None  # texts are tokenised many at once


def _training_decoder(format: Format) -> Callable[[Any], tuple[np.ndarray, float]] | None:
    """A function from a raw value to what augmentation draws from, and its log(width / height)."""
    if isinstance(format, ImageFormat) and training_layout("", format):
        return lambda value: decode_whole(value, format)
    if isinstance(format, VideoFormat) and training_layout("", format):
        return lambda value: decode_kept_frames(value, format)
    return None


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
        for modality, format in formats.items():
            layout = column_layout(modality, format) + (training_layout(modality, format) if training else [])
            for name, dtype, shape in layout:
                self.arrays[name] = _create(folder / f"{name}.npy", dtype, (len(samples), *shape))
        varied = {m: _training_decoder(f) for m, f in formats.items()} if training else {}
        self.varied = {modality: decoder for modality, decoder in varied.items() if decoder is not None}
        if maps:
            self.map_size = map_size(formats)
            self.arrays[TARGETS] = _create(folder / f"{TARGETS}.npy", np.uint8, (len(samples), *self.map_size))

    def decode(
        self,
        decoders: Mapping[str, Callable[[Any], np.ndarray] | None],
        bad: BadSamples,
        progress: Callable[[int, int], object],
    ) -> np.ndarray:
        """Fills the columns; returns bool [N], which rows are good. Adds the others to `bad`, in the order of rows."""
        reasons: dict[int, str] = {}
        for modality, format in self.formats.items():
            if isinstance(format, TextFormat):
                self._tokenise(modality, format, reasons)
        slow = {m: d for m, d in decoders.items() if d is not None}

        def one(row: int) -> tuple[dict[str, np.ndarray], str | None]:
            if row in reasons:
                return {}, reasons[row]
            arrays = {}
            sample, place = self.samples[row], TARGETS[:-1]
            if self.maps and all(value is None for value in sample.values.values()):
                return {}, f"nothing to learn from: every modality is empty ({', '.join(self.formats)})"
            try:
                if self.maps:
                    with reading("label map", sample.target):
                        arrays[TARGETS] = decode_labels(sample.target, self.maps, self.map_size)
                for modality, decoder in slow.items():
                    place, value = modality, sample.values.get(modality)
                    if value is not None:
                        arrays[modality] = _decoded(decoder, value, self.formats[modality])
                    if value is not None and modality in self.varied:
                        with reading(KINDS[type(self.formats[modality])], value):
                            pixels, aspect = self.varied[modality](value)
                        arrays[f"{modality}.varied"], arrays[f"{modality}.aspect"] = pixels, np.array(aspect)
            except Undecodable as error:
                return {}, f"{place}: {error}"
            return arrays, None

        # Threads: decoding and resizing happen in C without the interpreter's lock. Results come back in order, so sums
        # and the list of bad rows do not depend on timing; windows bound what waits in memory.
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for start in range(0, len(self.samples) if slow or self.maps else 0, _WINDOW):
                rows = range(start, min(start + _WINDOW, len(self.samples)))
                for row, (arrays, reason) in zip(rows, pool.map(one, rows), strict=True):
                    if reason is not None:
                        reasons[row] = reason
                    for name, array in arrays.items():
                        if f"{name}.length" in self.arrays:
                            self.arrays[f"{name}.length"][row] = len(array)
                            self.arrays[name][row, : len(array)] = array
                        else:
                            self.arrays[name][row] = array
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

    def _tokenise(self, modality: str, format: TextFormat, reasons: dict[int, str]) -> None:
        encode = text_encoder(format)
        for start in range(0, len(self.samples), _TEXTS):
            chunk = [sample.values.get(modality) or "" for sample in self.samples[start : start + _TEXTS]]
            try:
                ids, mask = encode(chunk)
            except Exception:  # some text among them cannot be encoded: half a surrogate pair, or no text
                ids, mask = _one_by_one(encode, chunk, lambda row, why, start=start: reasons.setdefault(  # type: ignore[misc]
                    start + row, f"{modality}: {why}"))  # fmt: skip
            self.arrays[f"{modality}.ids"][start : start + len(chunk)] = ids
            self.arrays[f"{modality}.mask"][start : start + len(chunk)] = mask

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
_TEXTS = 4096
_UNITS = {"audio": ("sound", "frame", "mel bin"), "sequence": ("sequence", "step", "column")}
"""Kinds of columns that hold floats: their word, and what their two axes count."""


def _decoded(decoder: Callable[[Any], np.ndarray], value: Any, format: Format) -> np.ndarray:
    """A value as it is stored. Raises Undecodable, whatever the decoder raised, and for numbers that are not finite."""
    kind = KINDS[type(format)]
    with reading(_UNITS.get(kind, (kind,))[0], value):
        array = decoder(value)
    # After the cast to 32 bits: 1e300 is finite before it.
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        word, rows, columns = _UNITS[kind]
        row, column = np.argwhere(~np.isfinite(array))[0]
        raise Undecodable(f"the {word} {name_of(value)} holds {array[row, column]} at {rows} {row}, {columns} {column}")
    return array


def _one_by_one(encode: Encode, texts: list[Any], bad: Callable[[int, str], object]) -> tuple[np.ndarray, np.ndarray]:
    """The texts' ids and masks; those of a text that cannot be encoded are an empty text's, and `bad` is told why."""
    parts = []
    for row, text in enumerate(texts):
        try:
            with reading("text", name_of(text)):
                parts.append(encode([text]))
        except Undecodable as error:
            bad(row, str(error))
            parts.append(encode([""]))
    ids, masks = zip(*parts, strict=True)
    return np.concatenate(ids), np.concatenate(masks)


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
