"""What `mmsweep data check` finds: counts, missing files, classes, natural gaps. Changes nothing, and of the inputs
decodes nothing; label maps are read, since the classes stand nowhere else."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmsweep.data.dataset import SPLITS, DatasetBuilder, Sample
from mmsweep.data.files import Undecodable
from mmsweep.data.kinds.raster import Window, decode_labels
from mmsweep.data.options import DATASETS, KINDS
from mmsweep.data.splitting import repeated
from mmsweep.errors import UserError
from mmsweep.tasks.task import IGNORE

_FEW = 5
"""A class with fewer training rows than this is named."""

_SHOWN = 5


def named_builder(name: str, overrides: Sequence[str] = ()) -> DatasetBuilder | None:
    """The builder of a dataset that is named instead of a study; None where no dataset has that name.

    Raises:
        UserError: the data is not where it is looked for (saying how to get it), or an override that only a study has.
    """
    if name not in DATASETS or Path(name).exists():
        return None
    fields, given = DATASETS.section(name).model_fields, {}
    for override in overrides:
        key, _, value = override.partition("=")
        if key != "data.root" or "root" not in fields:
            raise UserError("only a study has this key", key=key, expected="data.root=FOLDER, or a study file")
        given["root"] = str(Path(value).expanduser())
    wanted = [key for key, field in fields.items() if field.is_required() and key != DATASETS.key]
    if wanted:
        raise UserError(f"dataset {name} needs {', '.join(wanted)}", key="data", expected="a study file")
    builder: DatasetBuilder = DATASETS[name](DATASETS.options(name, **given))
    return builder


def check(builder: DatasetBuilder, on_bad: str = "refuse") -> list[str]:
    """Findings, a line each; those that need attention start with "warning: ", those without which nothing
    can be prepared with "error: " (under `on_bad: skip` such rows are left out, and they are warnings).

    Raises:
        UserError: the dataset cannot be read at all.
    """
    splits = builder.splits()
    findings = [builder.provenance()]
    findings += _counts(builder, splits)
    grade = "warning" if on_bad == "skip" else "error"
    findings += _bad_rows(builder, grade)
    findings += _files(builder, splits, grade)
    findings += _gaps(builder, splits)
    findings += _targets(builder, splits, grade)
    findings += _identities(splits)
    findings += _repeated(splits)
    return findings


def _counts(builder: DatasetBuilder, splits: Mapping[str, list[Sample]]) -> Iterator[str]:
    for name in SPLITS:
        found, expected = len(splits[name]), builder.rows.get(name)
        if expected is None:
            yield f"{name}: {found:,} rows"
        elif found == expected:
            yield f"{name}: {found:,} rows, as expected"
        else:
            yield f"warning: {name}: {found:,} rows; expected are {expected:,} ({found - expected:+,})"


def _bad_rows(builder: DatasetBuilder, grade: str) -> Iterator[str]:
    if builder.bad_rows:
        yield f"{grade}: {len(builder.bad_rows)} rows cannot be used: {_list(map(str, builder.bad_rows))}"


def _files(builder: DatasetBuilder, splits: Mapping[str, list[Sample]], grade: str) -> Iterator[str]:
    words = {m for m, format in builder.formats.items() if not format.from_files}
    words |= {m for m, kind in builder.modalities.items() if not KINDS[kind].from_files}
    folders = {m for m, kind in builder.modalities.items() if KINDS[kind].from_folders}
    absent, irregular = [], []
    seen = 0
    for name in SPLITS:
        for sample in splits[name]:
            values = {m: sample.values.get(m) for m in builder.modalities if m not in words}
            if builder.target.kind == "map":
                values["target"] = sample.target
            for modality, value in values.items():
                path = value.path if isinstance(value, Window) else value
                if isinstance(path, str | Path):
                    seen += 1
                    mode = _mode(path)
                    if mode is None:
                        absent.append(f"{sample.origin}: {path}")
                    elif not (stat.S_ISREG(mode) or (stat.S_ISDIR(mode) and modality in folders)):
                        irregular.append(f"{sample.origin}: {path}")
    if absent:
        yield f"{grade}: {len(absent)} of {seen:,} files do not exist: {_list(absent)}"
    if irregular:
        yield f"{grade}: {len(irregular)} of {seen:,} files are no regular files: {_list(irregular)}"
    if seen and not absent and not irregular:
        yield f"all {seen:,} files exist"


def _mode(path: str | Path) -> int | None:
    """The kind of a file, as `stat` gives it; None where there is none, or where none can have this name."""
    try:
        return os.stat(path).st_mode
    except (OSError, ValueError):
        return None


def _gaps(builder: DatasetBuilder, splits: Mapping[str, list[Sample]]) -> Iterator[str]:
    for name in SPLITS:
        rows = splits[name]
        for modality in builder.modalities:
            gaps = sum(sample.values.get(modality) is None for sample in rows)
            if gaps:
                yield f"{name}: {modality} is missing in {gaps:,} rows ({gaps / len(rows):.1%})"
            if gaps == len(rows) and rows:
                yield f"warning: {name}: no row has {modality}"
        complete = sum(all(sample.values.get(m) is not None for m in builder.modalities) for sample in rows)
        if complete < len(rows):
            yield f"{name}: {complete:,} of {len(rows):,} rows are complete"


def _targets(builder: DatasetBuilder, splits: Mapping[str, list[Sample]], grade: str) -> Iterator[str]:
    target = builder.target
    if target.kind == "map":
        yield from _maps(builder, splits, grade)
        return
    if target.kind == "number":
        numbers = [float(sample.target) for sample in splits["train"]]
        if numbers:
            yield f"train: targets from {min(numbers):g} to {max(numbers):g}, mean {sum(numbers) / len(numbers):g}"
            if min(numbers) == max(numbers):
                yield "warning: every training row has the same target: there is nothing to learn"
        return
    yield from _names(target.classes)
    counts = {name: Counter(_labels(splits[name])) for name in SPLITS}
    train, rows = counts["train"], len(splits["train"])
    if train:
        label, most = train.most_common(1)[0]
        share = f"{most:,} of {rows:,} rows ({most / rows:.1%})"
        yield f"train: {len(target.classes)} classes; the largest is {label!r} with {share}"
    few = [f"{label!r} ({train[label]})" for label in target.classes if train[label] < _FEW]
    if few:
        yield f"warning: {len(few)} classes have fewer than {_FEW} training rows: {_list(few)}"
    for name in ("val", "test"):
        absent = [repr(label) for label in target.classes if not counts[name][label]]
        if absent:
            yield f"warning: {name} has no row of {len(absent)} classes: {_list(absent)}"
    if target.kind == "labels":
        joined = [repr(label) for label in target.classes if re.search(r"[,;|\t]", label)]
        if joined and all(len(sample.target) < 2 for name in SPLITS for sample in splits[name]):
            yield f"warning: no row has two labels; several in one? {_list(joined)} (data.target.separator)"
        for name in SPLITS:
            bare = sum(not sample.target for sample in splits[name])
            if bare:
                yield f"{name}: {bare:,} rows have no label (they count as negative for every class)"
    elif len(target.classes) > max(20, rows / 2):
        yield "warning: almost every row has a class of its own; is the target a number (task: regression)?"


_ABSENT = ("nan", "none", "null", "na", "n/a", "<na>", "nat")
"""How programs write absent values as text."""


def _names(classes: Sequence[str]) -> Iterator[str]:
    """Classes that look alike (the same but for case, blanks, Unicode's spelling, or as numbers), or like no value."""
    alike: dict[str, list[str]] = {}
    for name in classes:
        plain = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
        with contextlib.suppress(ValueError, OverflowError):
            plain = f"{float(plain):.15g}"
        alike.setdefault(plain, []).append(repr(name))
    if pairs := [" and ".join(names) for names in alike.values() if len(names) > 1]:
        yield f"warning: {len(pairs)} classes are spelt in several ways: {_list(pairs)}"
    if absent := [repr(name) for name in classes if name.casefold() in _ABSENT]:
        yield f"warning: a class may stand for rows without a value: {_list(absent)}; an empty cell would say so"


def _maps(builder: DatasetBuilder, splits: Mapping[str, list[Sample]], grade: str) -> Iterator[str]:
    """Share of each class in a split's label maps, and the first map that cannot be used."""
    classes = builder.target.classes
    size = next((format.map_size for format in builder.formats.values() if format.map_size), (0, 0))
    yield f"rasters: {size[0]} x {size[1]} pixels; a class a pixel, of {len(classes)}"
    for name in SPLITS:
        pixels_C = np.zeros(IGNORE + 1, np.int64)
        bad = []
        for sample in splits[name]:
            try:
                pixels_C += np.bincount(
                    decode_labels(sample.target, builder.target, size).ravel(), minlength=IGNORE + 1
                )
            except Undecodable as problem:
                bad.append(f"{sample.origin}: {problem}")
        if bad:
            yield f"{grade}: {name}: {len(bad)} label maps cannot be used: {bad[0]}"
        labelled = pixels_C[: len(classes)].sum()
        if labelled:
            shares = ", ".join(f"{c} {n / labelled:.1%}" for c, n in zip(classes, pixels_C, strict=False))
            without = (
                f"; {pixels_C[IGNORE] / pixels_C.sum():.1%} of the pixels have no class" if pixels_C[IGNORE] else ""
            )
            yield f"{name}: {shares}{without}"
        absent = [repr(c) for c, n in zip(classes, pixels_C, strict=False) if not n]
        if absent:
            yield f"warning: {name} has no pixel of {len(absent)} classes: {_list(absent)}"


def _identities(splits: Mapping[str, list[Sample]]) -> Iterator[str]:
    ids = Counter(sample.id for name in SPLITS for sample in splits[name])
    twice = [repr(id) for id, count in ids.items() if count > 1]
    if twice:
        yield f"warning: {len(twice)} ids stand twice: {_list(twice)}"
    homes: dict[str, set[str]] = {}
    for name in SPLITS:
        for sample in splits[name]:
            if sample.group is not None:
                homes.setdefault(sample.group, set()).add(name)
    crossing = [repr(group) for group, where in homes.items() if len(where) > 1]
    if crossing:
        yield f"warning: {len(crossing)} groups stand in more than one split: {_list(crossing)}"
    elif homes:
        yield f"{len(homes):,} groups, none in two splits"


def _repeated(splits: Mapping[str, list[Sample]]) -> Iterator[str]:
    """Rows with the same inputs in more than one split, by the files' content where sizes leave it open."""
    places: list[str] = []
    for likely in repeated(splits, _size):
        for rows in repeated(likely, _content):
            places.append(" and ".join(f"{samples[0].origin} ({name})" for name, samples in rows.items()))
    if places:
        yield (
            f"warning: {len(places)} times the same inputs stand in more than one split: {_list(places)}; rows that "
            "belong together can be kept in one split with data.group"
        )


def _size(value: Any) -> Any:
    """An input as cheaply as it can be told apart: a file by its size."""
    mode = _mode(value) if isinstance(value, Path) else None
    return os.stat(value).st_size if mode is not None and stat.S_ISREG(mode) else value


def _content(value: Any) -> Any:
    mode = _mode(value) if isinstance(value, Path) else None
    if mode is None or not stat.S_ISREG(mode):
        return value
    try:
        return hashlib.sha256(value.read_bytes()).digest()
    except OSError:
        return value


def _labels(rows: list[Sample]) -> Iterator[str]:
    for sample in rows:
        yield from [sample.target] if isinstance(sample.target, str) else sample.target


def _list(items: Iterable[str]) -> str:
    items = list(items)
    rest = f", … ({len(items)} in all)" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + rest
