"""Prepared data: memory-mapped columns, and batches made from them.

    data = prepare(builder, {"image": ImageFormat(96), "text": TextFormat(folder, 40)}, cache)
    batch = data.splits["train"].batch(index, "cpu", present=table[index])

`prepare` decodes every row once (`preparation.py`) and keeps the result under `cache/<key>/`; later calls, in any
process, map the same files, once each is found to be as it was written (`wholeness.py`); what is damaged is made again.
Whatever is not present in a batch is the fill value, never the row's own input.
"""

from __future__ import annotations

import contextlib
import csv
import io
import logging
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from mmsweep.data.dataset import SPLITS, BadRow, DatasetBuilder, refusal
from mmsweep.data.digests import cache_key
from mmsweep.data.kinds.kind import FILLS, Format
from mmsweep.data.preparation import Progress, write_prepared
from mmsweep.data.prepared_split import PreparedSplit
from mmsweep.data.shards import Runner, in_threads
from mmsweep.data.wholeness import inspect
from mmsweep.errors import UserError
from mmsweep.record.files import write_atomically
from mmsweep.record.lock import NoLocksError, held
from mmsweep.tasks.task import Target

log = logging.getLogger("mmsweep.data")

_SHOWN_FILES = 5


@dataclass(frozen=True)
class PreparedData:
    """A dataset, ready.

    Args:
        splits: "train", "val", "test".
        modalities: name -> kind, in the dataset's order.
        fingerprint: of the content: ids, targets, groups, values, formats. Equal on every machine with the same data.
        split_digest: of which ids stand in which split.
        skipped: rows that cannot be used and are left out.
        rows: how many rows there were, the skipped ones included.
        folder: where the columns lie.
    """

    splits: dict[str, PreparedSplit]
    target: Target
    modalities: Mapping[str, str]
    fingerprint: str
    split_digest: str = ""
    skipped: list[BadRow] = field(default_factory=list)
    rows: int = 0
    folder: Path = Path()

    @property
    def bad_rows_file(self) -> Path:
        """The list of the skipped rows."""
        return bad_rows_file(self.folder)

    def omission(self) -> str | None:
        """A sentence about the skipped rows; None where there are none."""
        if not self.skipped:
            return None
        share = len(self.skipped) / self.rows
        return (
            f"{len(self.skipped):,} of {self.rows:,} rows cannot be used and are left out ({share:.2%}): "
            f"{self.bad_rows_file}"
        )


def prepare(
    builder: DatasetBuilder,
    formats: Mapping[str, Format],
    cache: Path | str,
    *,
    max_bad: float = 0.01,
    fill: Mapping[str, str] | str = "zeros",
    progress: Progress | None = None,
    run: Runner = in_threads,
) -> PreparedData:
    """Maps the prepared columns of a dataset, writing them first where they are not there yet.

    Args:
        formats: one per modality of the builder (from the encoders).
        cache: folder of prepared datasets; safe to share between processes.
        max_bad: largest share of rows that may be left out because they cannot be used. They are listed in a file
            beside the prepared folder.
        fill: one of FILLS, for all or per modality.
        progress: called with (rows done, rows in all) while decoding.
        run: decodes the shards.

    Raises:
        UserError: too many bad rows, a split without rows, a format that does not fit its modality, a cache that cannot
            be written.
    """
    formats = _in_order(builder, formats)
    fills = _fills(fill, formats)
    samples = builder.splits()
    missing = [name for name in SPLITS if name not in samples]
    if missing:
        raise UserError(f"the dataset {builder.name} gives no split {missing[0]!r}", found=sorted(samples))
    target = builder.target
    cache = Path(cache).expanduser().absolute()
    folder = cache / cache_key(samples, formats, target)
    record, damaged = inspect(folder)
    if record is None or damaged:
        with _sole_writer(folder) as partial:
            record, damaged = inspect(folder)  # another process may have written it while this one waited
            if damaged:
                log.warning("prepared data is damaged (%s) and is made again: %s", _few(damaged), folder)
                shutil.rmtree(folder, ignore_errors=True)
            if record is None or damaged:
                record = _write(partial, folder, builder, samples, formats, progress, run)
    # Kept by id: lines of the user's file may have moved since the columns were written.
    origins = {sample.id: sample.origin for name in SPLITS for sample in samples[name]}
    skipped = [*builder.bad_rows, *(BadRow(origins.get(id) or id, reason) for id, reason in record["skipped"])]
    rows = len(builder.bad_rows) + sum(map(len, samples.values()))
    _list_bad_rows(folder, skipped)
    if len(skipped) > max_bad * rows:
        raise refusal(skipped, limit=f"of {rows:,}; data.max_bad allows {max_bad:.2%}", file=bad_rows_file(folder))
    for name in SPLITS:
        if not record["rows"][name]:
            if skipped:
                raise refusal(skipped, f"the dataset {builder.name} has no rows in {name}")
            raise UserError(f"the dataset {builder.name} has no rows in {name}", hint=builder.provenance())
    splits = {name: PreparedSplit(folder, name, formats, target, fills) for name in SPLITS}
    _check_random_frames(splits["train"])
    return PreparedData(
        splits, target, dict(builder.modalities), record["fingerprint"], record["split_digest"], skipped, rows, folder
    )


def _check_random_frames(train: PreparedSplit) -> None:
    """Refuse random frames where no clip has more frames than are shown."""
    found = [frames for frames in map(train.drawn_from, train.formats) if frames is not None]
    if found and all(most <= shown for most, shown in found):
        raise UserError(
            f"no training clip has more frames than the {max(shown for _, shown in found)} that are shown",
            key="data.augmentation.random_frames",
            found=True,
            expected=f"false, or data.video.frames below {max(most for most, _ in found)}",
        )


# ---- writing once --------------------------------------------------------------------------------------------------


def bad_rows_file(folder: Path) -> Path:
    """Where the rows are listed that a prepared folder leaves out."""
    return folder.with_name(f"{folder.name}.bad_rows.csv")


def _list_bad_rows(folder: Path, rows: Sequence[BadRow]) -> None:
    path, text = bad_rows_file(folder), io.StringIO()
    csv.writer(text).writerows([("row", "reason"), *((row.origin, row.reason) for row in rows)])
    with contextlib.suppress(OSError):  # a cache that is only read keeps the list of who wrote it
        if rows and not (path.exists() and path.read_text(errors="replace") == text.getvalue()):
            write_atomically(path, text.getvalue())
        elif not rows:
            path.unlink(missing_ok=True)


def _write(
    partial: Path,
    folder: Path,
    builder: DatasetBuilder,
    samples: Mapping[str, list[Any]],
    formats: Mapping[str, Format],
    progress: Progress | None,
    run: Runner,
) -> dict[str, Any]:
    try:
        write_prepared(partial, samples, formats, builder.target, progress=progress, run=run)
        try:
            partial.rename(folder)
        except OSError:
            if inspect(folder)[0] is None:  # not just another process that was quicker
                raise
    except OSError as error:
        raise UserError(
            f"the prepared data cannot be written ({error.strerror or error})", file=folder.parent
        ) from error
    record, damaged = inspect(folder)
    if record is None or damaged:
        raise UserError(f"prepared data is not as it was just written ({_few(damaged)})", file=folder,
                        hint="The disk may be failing; name a folder on another in $MMSWEEP_CACHE")  # fmt: skip
    return record


def _few(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN_FILES]) + (f" and {len(names) - _SHOWN_FILES} more" if names[_SHOWN_FILES:] else "")


@contextlib.contextmanager
def _sole_writer(folder: Path) -> Iterator[Path]:
    """Let one process of a machine decode while the others wait; yields the folder to write, renamed once complete.

    The lock is released when its holder dies. Its partial folder stays, and the next holder continues with it. Where
    there are no locks (some network drives), each process writes a folder of its own, and the first to rename wins.
    """
    with contextlib.ExitStack() as lock:
        partial = folder.with_name(f".{folder.name}.partial")
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            try:
                lock.enter_context(held(folder.parent / f".{folder.name}.lock", math.inf))
            except NoLocksError:
                partial = partial.with_name(f"{partial.name}-{uuid4().hex[:8]}")
                lock.callback(shutil.rmtree, partial, ignore_errors=True)
        except OSError as error:
            raise UserError(
                f"the cache for prepared data cannot be written ({error.strerror})",
                file=folder.parent,
                hint="Name a writable folder in $MMSWEEP_CACHE",
            ) from None
        yield partial


def _in_order(builder: DatasetBuilder, formats: Mapping[str, Format]) -> dict[str, Format]:
    """The formats in the dataset's order of modalities, each of the right kind."""
    if set(formats) != set(builder.modalities):
        raise UserError(
            f"every modality of {builder.name} needs a format (an encoder)",
            found=sorted(formats),
            expected=", ".join(builder.modalities),
        )
    for modality, kind in builder.modalities.items():
        if formats[modality].kind != kind:
            raise UserError(f"the encoder does not read {kind}", key=modality, found=formats[modality].kind)
    return {modality: formats[modality] for modality in builder.modalities}


def _fills(fill: Mapping[str, str] | str, formats: Mapping[str, Format]) -> dict[str, str]:
    chosen = {modality: fill if isinstance(fill, str) else fill.get(modality, "zeros") for modality in formats}
    unknown = [] if isinstance(fill, str) else [name for name in fill if name not in formats]
    if unknown:
        raise UserError("unknown modality", key="data.fill", found=unknown[0], expected=", ".join(formats))
    for modality, value in chosen.items():
        if value not in FILLS:
            raise UserError("unknown fill value", key="data.fill", found=value, expected=", ".join(FILLS))
        if value == "black" and not formats[modality].has_black:
            raise UserError(
                f"{formats[modality].kind} cannot be black",
                key="data.fill",
                expected=f"another value for {modality}",
            )
    return chosen
