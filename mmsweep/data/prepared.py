"""Prepared data: memory-mapped columns, and batches made from them.

    data = prepare(builder, {"image": ImageFormat(96), "text": TextFormat(folder, 40)}, cache)
    batch = data.splits["train"].batch(index, "cpu", present=table[index])

`prepare` decodes every row once (`preparation.py`) and keeps the result under `cache/<key>/`; later calls, in any
process, map the same files, once each is found to be as it was written (`wholeness.py`); what is damaged is made again.
Whatever is not present in a batch is the fill value, never the row's own input.
"""

from __future__ import annotations

import contextlib
import logging
import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from mmsweep.data.dataset import SPLITS, BadRow, DatasetBuilder, refusal
from mmsweep.data.digests import cache_key
from mmsweep.data.kinds.kind import FILLS, Format
from mmsweep.data.preparation import Progress, write_prepared
from mmsweep.data.prepared_split import PreparedSplit
from mmsweep.data.wholeness import inspect
from mmsweep.errors import UserError
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
        skipped: rows left out (on_bad="skip").
        folder: where the columns lie.
    """

    splits: dict[str, PreparedSplit]
    target: Target
    modalities: Mapping[str, str]
    fingerprint: str
    split_digest: str = ""
    skipped: list[BadRow] = field(default_factory=list)
    folder: Path = Path()


def prepare(
    builder: DatasetBuilder,
    formats: Mapping[str, Format],
    cache: Path | str,
    *,
    on_bad: Literal["refuse", "skip"] = "refuse",
    fill: Mapping[str, str] | str = "zeros",
    progress: Progress | None = None,
) -> PreparedData:
    """Maps the prepared columns of a dataset, writing them first where they are not there yet.

    Args:
        formats: one per modality of the builder (from the encoders).
        cache: folder of prepared datasets; safe to share between processes.
        on_bad: "refuse" lists every row that cannot be used in one error, "skip" leaves them out and reports them.
        fill: one of FILLS, for all or per modality.
        progress: called with (split, rows done, rows in all) while decoding.

    Raises:
        UserError: bad rows, a split without rows, a format that does not fit its modality, an unwritable cache.
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
        with _sole_writer(folder):
            record, damaged = inspect(folder)  # another process may have written it while this one waited
            if damaged:
                log.warning("prepared data is damaged (%s) and is made again: %s", _few(damaged), folder)
                shutil.rmtree(folder, ignore_errors=True)
            if record is None or damaged:
                record = _write(folder, builder, samples, formats, on_bad, progress)
    # Kept by id: lines of the user's file may have moved since the columns were written.
    origins = {sample.id: sample.origin for name in SPLITS for sample in samples[name]}
    skipped = [*builder.bad_rows, *(BadRow(origins.get(id) or id, reason) for id, reason in record["skipped"])]
    if skipped and on_bad == "refuse":
        raise refusal(skipped)
    for name in SPLITS:
        if not record["rows"][name]:
            if skipped:
                raise refusal(skipped, f"the dataset {builder.name} has no rows in {name}")
            raise UserError(f"the dataset {builder.name} has no rows in {name}", hint=builder.provenance())
    splits = {name: PreparedSplit(folder, name, formats, target, fills) for name in SPLITS}
    _check_random_frames(splits["train"])
    return PreparedData(
        splits, target, dict(builder.modalities), record["fingerprint"], record["split_digest"], skipped, folder
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


def _write(
    folder: Path,
    builder: DatasetBuilder,
    samples: Mapping[str, list[Any]],
    formats: Mapping[str, Format],
    on_bad: str,
    progress: Progress | None,
) -> dict[str, Any]:
    temporary = folder.with_name(f".{folder.name}-{uuid4().hex[:8]}")
    try:
        temporary.mkdir()
        skip = on_bad == "skip"
        bad = write_prepared(temporary, samples, formats, builder.target, skip_bad=skip, progress=progress)
        found = [*builder.bad_rows, *(BadRow(sample.origin or sample.id, reason) for sample, reason in bad)]
        if found and not skip:
            raise refusal(found)
        try:
            temporary.rename(folder)
        except OSError:
            if inspect(folder)[0] is None:  # not just another process that was quicker
                raise
    except OSError as error:
        raise UserError(
            f"the prepared data cannot be written ({error.strerror or error})", file=folder.parent
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    record, damaged = inspect(folder)
    if record is None or damaged:
        raise UserError(f"prepared data is not as it was just written ({_few(damaged)})", file=folder,
                        hint="The disk may be failing; name a folder on another in $MMSWEEP_CACHE")  # fmt: skip
    return record


def _few(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN_FILES]) + (f" and {len(names) - _SHOWN_FILES} more" if names[_SHOWN_FILES:] else "")


@contextlib.contextmanager
def _sole_writer(folder: Path) -> Iterator[None]:
    """Lets one process of a machine decode while the others wait; the lock dies with its holder.

    Only saves work: without locks (some network drives) several may write, and the first to rename wins.
    """
    with contextlib.ExitStack() as lock:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(NoLocksError):
                lock.enter_context(held(folder.parent / f".{folder.name}.lock", math.inf))
                for left in folder.parent.glob(f".{folder.name}-*"):  # by a killed process: nobody else writes now
                    shutil.rmtree(left, ignore_errors=True)
        except OSError as error:
            raise UserError(
                f"the cache for prepared data cannot be written ({error.strerror})",
                file=folder.parent,
                hint="Name a writable folder in $MMSWEEP_CACHE",
            ) from None
        yield


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
