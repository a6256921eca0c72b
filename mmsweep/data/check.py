"""What `mmsweep data check` finds: counts, absent and unreadable files, classes, natural gaps, splits that overlap.

Changes nothing. Label maps are read, since they alone hold the classes; inputs are decoded only where a study's formats
are given."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mmsweep.data.dataset import SPLITS, DatasetBuilder, Sample
from mmsweep.data.digests import ids_digest
from mmsweep.data.duplicates import repeated_contents
from mmsweep.data.files import Stored, Undecodable, opened
from mmsweep.data.kinds.kind import Format
from mmsweep.data.kinds.raster import decode_labels
from mmsweep.data.options import DATASETS, KINDS
from mmsweep.data.preparation import unusable
from mmsweep.data.raster_files import files_of
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


@dataclass(frozen=True)
class Finding:
    """A line of the result.

    Args:
        text: what was found.
        grade: `note`; `warning`, which needs attention; or `error`: the data cannot be used like this.
        rows: the rows that cannot be used because of it, by id. They are an error only where they are more than
            `data.max_bad` allows; up to there `prepare` leaves them out.
    """

    text: str
    grade: Literal["note", "warning", "error"] = "note"
    rows: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return self.text if self.grade == "note" else f"{self.grade}: {self.text}"


@dataclass(frozen=True)
class Check:
    """What `check` found.

    Args:
        rows: of each split, as found.
        expected: published rows of a split, where they are known.
        digests: of each split's ids, in order.
    """

    dataset: str
    rows: Mapping[str, int]
    expected: Mapping[str, int]
    digests: Mapping[str, str]
    findings: list[Finding]

    @property
    def lines(self) -> list[str]:
        return [str(finding) for finding in self.findings]

    @property
    def usable(self) -> bool:
        return all(finding.grade != "error" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        findings = [{"grade": finding.grade, "text": finding.text} for finding in self.findings]
        return {**vars(self), "findings": findings, "usable": self.usable}


def check(builder: DatasetBuilder, max_bad: float = 0.01, formats: Mapping[str, Format] | None = None) -> Check:
    """Read a dataset's rows and say what is missing, damaged or suspicious.

    Args:
        max_bad: largest share of rows that may be unusable.
        formats: decode every value as well, in these formats (a study's encoders make them).

    Raises:
        UserError: the dataset cannot be read at all.
    """
    splits = builder.splits()
    findings = [
        Finding(builder.provenance()),
        *_counts(builder, splits),
        *_bad_rows(builder),
        *(_files(builder, splits) if formats is None else _values(builder, splits, formats)),
        *_gaps(builder, splits),
        *_suspicions(builder, splits),
        *_targets(builder, splits),
        *_identities(splits),
        *_repeated(splits),
    ]
    rows = {name: len(splits[name]) for name in SPLITS}
    total = sum(rows.values()) + len(builder.bad_rows)
    bad = len(frozenset[str]().union(*(finding.rows for finding in findings)))
    grade: Literal["warning", "error"] = "error" if bad > max_bad * total else "warning"
    graded = [replace(finding, grade=grade) if finding.rows else finding for finding in findings]
    if bad:
        allowed = f"data.max_bad allows {max_bad:.2%}"
        graded.append(Finding(f"{bad:,} of {total:,} rows cannot be used ({bad / total:.2%}); {allowed}", grade))
    graded += [Finding(f"there is no row in {name}", "error") for name in SPLITS if not rows[name]]
    digests = {name: ids_digest(sample.id for sample in splits[name]) for name in SPLITS}
    return Check(builder.name, rows, dict(builder.rows), digests, graded)


def _counts(builder: DatasetBuilder, splits: Mapping[str, list[Sample]]) -> Iterator[Finding]:
    published = dict(builder.rows)
    if "train" in published and "val" not in published:  # validation is carved from what was published as training
        yield _count("train and val", len(splits["train"]) + len(splits["val"]), published.pop("train"))
    for name in SPLITS:
        yield _count(name, len(splits[name]), published.get(name))


def _count(name: str, rows: int, expected: int | None) -> Finding:
    if expected is None:
        return Finding(f"{name}: {rows:,} rows")
    if rows == expected:
        return Finding(f"{name}: {rows:,} rows, as expected")
    return Finding(f"{name}: {rows:,} rows; expected are {expected:,} ({rows - expected:+,})", "warning")


def _bad_rows(builder: DatasetBuilder) -> Iterator[Finding]:
    if bad := builder.bad_rows:
        rows = frozenset(f"bad row {number}" for number in range(len(bad)))  # they have no id, and no other finding
        yield Finding(f"{len(bad)} rows cannot be used: {_list(map(str, bad))}", rows=rows)


def _files(builder: DatasetBuilder, splits: Mapping[str, list[Sample]]) -> Iterator[Finding]:
    """Files that are absent, empty, a git-LFS pointer or no file at all. What they hold is not decoded."""
    texts = {m for m, format in builder.formats.items() if not format.from_files}
    texts |= {m for m, kind in builder.modalities.items() if not KINDS[kind].from_files}
    folders = {m for m, kind in builder.modalities.items() if KINDS[kind].from_folders}
    absent: dict[str, str] = {}
    unreadable: dict[str, str] = {}
    seen = 0
    for sample in (sample for name in SPLITS for sample in splits[name]):
        values = {m: sample.values.get(m) for m in builder.modalities if m not in texts}
        if builder.target.kind == "map":
            values["target"] = sample.target
        for modality, value in values.items():
            seen += isinstance(value, Stored)  # its container was read to list it
            for path in files_of(value):
                seen += 1
                mode = _mode(path)
                if mode is None:
                    absent[sample.id] = f"{sample.origin}: {path}"
                elif not (stat.S_ISDIR(mode) and modality in folders):
                    try:
                        with opened(path):
                            pass
                    except Undecodable as problem:
                        unreadable[sample.id] = f"{sample.origin}: {problem}"
    if absent:
        yield Finding(f"{len(absent)} of {seen:,} files do not exist: {_list(absent.values())}", rows=frozenset(absent))
    if unreadable:
        text = f"{len(unreadable)} of {seen:,} files cannot be read: {_list(unreadable.values())}"
        yield Finding(text, rows=frozenset(unreadable))
    if seen and not absent and not unreadable:
        yield Finding(f"all {seen:,} files exist")


def _values(
    builder: DatasetBuilder, splits: Mapping[str, list[Sample]], formats: Mapping[str, Format]
) -> Iterator[Finding]:
    """Values that cannot be decoded."""
    reasons = {
        sample.id: f"{sample.origin}: {reason}"
        for name in SPLITS
        for sample, reason in unusable(name, splits[name], formats, builder.target)
    }
    total = sum(map(len, splits.values()))
    if reasons:
        text = f"{len(reasons)} of {total:,} rows cannot be decoded: {_list(reasons.values())}"
        yield Finding(text, rows=frozenset(reasons))
    else:
        yield Finding(f"all {total:,} rows can be decoded")


def _mode(path: str | Path) -> int | None:
    """The kind of a file, as `stat` gives it; None where there is none, or where none can have this name."""
    try:
        return os.stat(path).st_mode
    except (OSError, ValueError):
        return None


def _gaps(builder: DatasetBuilder, splits: Mapping[str, list[Sample]]) -> Iterator[Finding]:
    for name in SPLITS:
        rows = splits[name]
        for modality in builder.modalities:
            gaps = sum(sample.values.get(modality) is None for sample in rows)
            if gaps:
                yield Finding(f"{name}: {modality} is missing in {gaps:,} rows ({gaps / len(rows):.1%})")
            if gaps == len(rows) and rows:
                yield Finding(f"{name}: no row has {modality}", "warning")
        complete = sum(all(sample.values.get(m) is not None for m in builder.modalities) for sample in rows)
        if complete < len(rows):
            yield Finding(f"{name}: {complete:,} of {len(rows):,} rows are complete")


def _suspicions(builder: DatasetBuilder, splits: Mapping[str, list[Sample]]) -> Iterator[Finding]:
    """What kinds find in their raw values."""
    for modality, format in builder.formats.items():
        rows = {name: [sample.values.get(modality) for sample in splits[name]] for name in SPLITS}
        for text, grade in format.findings(rows):
            yield Finding(f"{modality}: {text}", grade)


def _targets(builder: DatasetBuilder, splits: Mapping[str, list[Sample]]) -> Iterator[Finding]:
    target = builder.target
    if target.kind == "map":
        yield from _maps(builder, splits)
        return
    if target.kind == "number":
        numbers = [float(sample.target) for sample in splits["train"]]
        if numbers:
            mean = sum(numbers) / len(numbers)
            yield Finding(f"train: targets from {min(numbers):g} to {max(numbers):g}, mean {mean:g}")
            if min(numbers) == max(numbers):
                yield Finding("every training row has the same target: there is nothing to learn", "warning")
        return
    yield from _names(target.classes)
    counts = {name: Counter(_labels(splits[name])) for name in SPLITS}
    train, rows = counts["train"], len(splits["train"])
    if train:
        label, most = train.most_common(1)[0]
        share = f"{most:,} of {rows:,} rows ({most / rows:.1%})"
        yield Finding(f"train: {len(target.classes)} classes; the largest is {label!r} with {share}")
    few = [f"{label!r} ({train[label]})" for label in target.classes if train[label] < _FEW]
    if few:
        yield Finding(f"{len(few)} classes have fewer than {_FEW} training rows: {_list(few)}", "warning")
    for name in ("val", "test"):
        absent = [repr(label) for label in target.classes if not counts[name][label]]
        if absent:
            yield Finding(f"{name} has no row of {len(absent)} classes: {_list(absent)}", "warning")
    if target.kind == "labels":
        joined = [repr(label) for label in target.classes if re.search(r"[,;|\t]", label)]
        if joined and all(len(sample.target) < 2 for name in SPLITS for sample in splits[name]):
            yield Finding(f"no row has two labels; several in one? {_list(joined)} (data.target.separator)", "warning")
        for name in SPLITS:
            bare = sum(not sample.target for sample in splits[name])
            if bare:
                yield Finding(f"{name}: {bare:,} rows have no label (they count as negative for every class)")
    elif len(target.classes) > max(20, rows / 2):
        yield Finding("almost every row has a class of its own; is the target a number (task: regression)?", "warning")


_ABSENT = ("nan", "none", "null", "na", "n/a", "<na>", "nat")
"""How programs write absent values as text."""


def _names(classes: Sequence[str]) -> Iterator[Finding]:
    """Classes that look alike (the same but for case, blanks, Unicode's spelling, or as numbers), or like no value."""
    alike: dict[str, list[str]] = {}
    for name in classes:
        plain = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
        with contextlib.suppress(ValueError, OverflowError):
            plain = f"{float(plain):.15g}"
        alike.setdefault(plain, []).append(repr(name))
    if pairs := [" and ".join(names) for names in alike.values() if len(names) > 1]:
        yield Finding(f"{len(pairs)} classes are spelt in several ways: {_list(pairs)}", "warning")
    if absent := [repr(name) for name in classes if name.casefold() in _ABSENT]:
        yield Finding(
            f"a class may stand for rows without a value: {_list(absent)}; an empty cell would say so", "warning"
        )


def _maps(builder: DatasetBuilder, splits: Mapping[str, list[Sample]]) -> Iterator[Finding]:
    """Share of each class in a split's label maps, and the maps that cannot be used."""
    classes = builder.target.classes
    shown = [(f.map_size, f.resizes_maps) for f in builder.formats.values() if f.map_size]
    size, resize = shown[0] if shown else ((0, 0), False)
    yield Finding(f"rasters: {size[0]} x {size[1]} pixels; a class a pixel, of {len(classes)}")
    for name in SPLITS:
        pixels_C = np.zeros(IGNORE + 1, np.int64)
        bad: dict[str, str] = {}
        for sample in splits[name]:
            try:
                pixels_C += np.bincount(
                    decode_labels(sample.target, builder.target, size, resize).ravel(), minlength=IGNORE + 1
                )
            except Undecodable as problem:
                bad[sample.id] = f"{sample.origin}: {problem}"
        if bad:
            text = f"{name}: {len(bad)} label maps cannot be used: {_list(bad.values())}"
            yield Finding(text, rows=frozenset(bad))
        labelled = pixels_C[: len(classes)].sum()
        if labelled:
            shares = ", ".join(f"{c} {n / labelled:.1%}" for c, n in zip(classes, pixels_C, strict=False))
            without = (
                f"; {pixels_C[IGNORE] / pixels_C.sum():.1%} of the pixels have no class" if pixels_C[IGNORE] else ""
            )
            yield Finding(f"{name}: {shares}{without}")
        absent = [repr(c) for c, n in zip(classes, pixels_C, strict=False) if not n]
        if absent:
            yield Finding(f"{name} has no pixel of {len(absent)} classes: {_list(absent)}", "warning")


def _identities(splits: Mapping[str, list[Sample]]) -> Iterator[Finding]:
    ids = Counter(sample.id for name in SPLITS for sample in splits[name])
    twice = [repr(id) for id, count in ids.items() if count > 1]
    if twice:
        yield Finding(f"{len(twice)} ids stand twice: {_list(twice)}", "warning")
    homes: dict[str, set[str]] = {}
    for name in SPLITS:
        for sample in splits[name]:
            if sample.group is not None:
                homes.setdefault(sample.group, set()).add(name)
    crossing = [repr(group) for group, where in homes.items() if len(where) > 1]
    if crossing:
        yield Finding(f"{len(crossing)} groups stand in more than one split: {_list(crossing)}", "warning")
    elif homes:
        yield Finding(f"{len(homes):,} groups, none in two splits")


def _repeated(splits: Mapping[str, list[Sample]]) -> Iterator[Finding]:
    places = [
        " and ".join(f"{samples[0].origin} ({name})" for name, samples in rows.items())
        for rows in repeated_contents(splits)
    ]
    if places:
        yield Finding(
            f"{len(places)} times the same inputs stand in more than one split: {_list(places)}; rows that "
            "belong together can be kept in one split with data.group", "warning",
        )  # fmt: skip


def _labels(rows: list[Sample]) -> Iterator[str]:
    for sample in rows:
        yield from [sample.target] if isinstance(sample.target, str) else sample.target


def _list(items: Iterable[str]) -> str:
    items = list(items)
    rest = f", … ({len(items)} in all)" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + rest
