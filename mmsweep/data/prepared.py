"""Prepared data: memory-mapped columns, and batches made from them.

    data = prepare(builder, {"image": ImageFormat(96), "text": TextFormat(folder, 40)}, cache)
    batch = data.splits["train"].batch(index, "cpu", present=table[index])

`prepare` decodes every row once (`preparation.py`) and keeps the result under `cache/<key>/`; later calls, in any
process, map the same files. Whatever is not present in a batch is the fill value, never the row's own input.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mmsweep.data.augmentation import Augmentation, Draws, centre_crop
from mmsweep.data.dataset import SPLITS, BadRow, Batch, DatasetBuilder, Target
from mmsweep.data.decoding import uniform_frames
from mmsweep.data.formats import KINDS, AudioFormat, Format, ImageFormat, TextFormat, VideoFormat
from mmsweep.data.preparation import Progress, cache_key, column_layout, write_prepared
from mmsweep.errors import UserError

FILLS = ("zeros", "ones", "black", "mean", "nan")
"""What stands in for an absent input, after normalisation: zeros | ones | a black picture | the training set's mean |
NaN (tests: nothing absent may be read). An absent text is always the empty text."""

_SHOWN_ROWS = 20


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
    record = _read_record(folder)
    if record is None:
        with _sole_writer(folder):
            record = _read_record(folder)  # another process may have written it while this one waited
            if record is None:
                record = _write(folder, builder, samples, formats, on_bad, progress)
    # Kept by id: lines of the user's file may have moved since the columns were written.
    origins = {sample.id: sample.origin for name in SPLITS for sample in samples[name]}
    skipped = [*builder.bad_rows, *(BadRow(origins.get(id) or id, reason) for id, reason in record["skipped"])]
    if skipped and on_bad == "refuse":
        raise refusal(skipped)
    for name in SPLITS:
        if not record["rows"][name]:
            raise UserError(f"the dataset {builder.name} has no rows in {name}", hint=builder.provenance())
    splits = {name: PreparedSplit(folder, name, formats, target, fills) for name in SPLITS}
    return PreparedData(
        splits, target, dict(builder.modalities), record["fingerprint"], record["split_digest"], skipped, folder
    )


def refusal(rows: list[BadRow]) -> UserError:
    """One error that lists the rows (at most 20) and counts all of them."""
    shown = "".join(f"\n  {row}" for row in rows[:_SHOWN_ROWS])
    rest = f"\n  … and {len(rows) - _SHOWN_ROWS} more" if len(rows) > _SHOWN_ROWS else ""
    count = "1 row cannot be used" if len(rows) == 1 else f"{len(rows)} rows cannot be used"
    return UserError(f"{count}:{shown}{rest}\n", hint="Correct them, or leave them out with data.on_bad=skip")


class PreparedSplit:
    """One split's columns, mapped. Pickles as the name of its folder.

    Attributes:
        natural_NM: bool, what the data itself has; columns in the dataset's order of modalities.
        targets: int64 [N], float32 [N,C] or float32 [N].
        ids, groups: of the rows.
    """

    def __init__(
        self, folder: Path, name: str, formats: Mapping[str, Format], target: Target, fills: Mapping[str, str]
    ) -> None:
        self.folder, self.name, self.formats, self.target, self.fills = folder, name, dict(formats), target, dict(fills)
        self.natural_NM: np.ndarray = np.load(folder / name / "natural.npy", allow_pickle=False)
        self.targets: np.ndarray = np.load(folder / name / "targets.npy", allow_pickle=False)
        rows = json.loads((folder / name / "ids.json").read_text())
        self.ids: list[str] = rows["ids"]
        self.groups: list[str | None] = rows["groups"]
        self._statistics = json.loads((folder / "prepared.json").read_text())["statistics"]
        self._columns: dict[str, np.ndarray] = {}
        for modality, format in self.formats.items():
            for column, dtype, shape in column_layout(modality, format):
                self._columns[column] = _map(folder / name / f"{column}.npy", dtype, (len(self.ids), *shape))
        self._fill = {m: self._fill_value(m, f) for m, f in self.formats.items() if not isinstance(f, TextFormat)}

    def __len__(self) -> int:
        return len(self.ids)

    def __reduce__(self) -> tuple[Any, ...]:
        return PreparedSplit, (self.folder, self.name, self.formats, self.target, self.fills)

    def batch(
        self,
        index: np.ndarray | Tensor,
        device: str | torch.device = "cpu",
        augmentation: Augmentation | None = None,
        generator: torch.Generator | None = None,
        present: np.ndarray | Tensor | None = None,
        *,
        rows: slice | np.ndarray | Tensor | None = None,
    ) -> Batch:
        """The rows `index` on `device`, normalised, with the fill value wherever a modality is not present.

        Args:
            index: int64 [B], rows of the split: the whole batch over all ranks.
            augmentation, generator: training only; draws are made for the whole batch, on the CPU.
            present: bool [B,M], what a scenario leaves; taken together with what the data has.
            rows: which of the B rows to make (a rank's share); None: all.
        """
        index_B = np.asarray(index, np.int64)
        present_BM = self.natural_NM[index_B]
        if present is not None:
            present_BM = present_BM & np.asarray(present, bool)
        draws = self._draw(len(index_B), augmentation, generator)
        if rows is not None:
            chosen = rows if isinstance(rows, slice) else np.asarray(rows, np.int64)
            index_B, present_BM = index_B[chosen], present_BM[chosen]
            draws = draws.rows(chosen if isinstance(chosen, slice) else torch.from_numpy(chosen)) if draws else None
        device = torch.device(device)
        inputs: dict[str, Tensor | dict[str, Tensor]] = {}
        for column, (modality, format) in enumerate(self.formats.items()):
            present_B = present_BM[:, column]
            if isinstance(format, TextFormat):
                inputs[modality] = self._text(modality, format, index_B, present_B, device)
            else:
                inputs[modality] = self._dense(modality, format, index_B, present_B, device, augmentation, draws)
        target = torch.from_numpy(self.targets[index_B])
        return Batch(
            inputs, torch.from_numpy(present_BM).to(device), target.to(device), torch.from_numpy(index_B).to(device)
        )

    def _draw(self, rows: int, augmentation: Augmentation | None, generator: torch.Generator | None) -> Draws | None:
        if augmentation is None:
            return None
        if generator is None:
            raise ValueError("augmentation draws from an explicit generator")
        clips = {m: f.stored_frames for m, f in self.formats.items() if isinstance(f, VideoFormat)}
        return augmentation.draw(rows, generator, clips if augmentation.random_frames else None)

    def _text(
        self, modality: str, format: TextFormat, index_B: np.ndarray, present_B: np.ndarray, device: torch.device
    ) -> dict[str, Tensor]:
        ids_BL = self._columns[f"{modality}.ids"][index_B]
        mask_BL = self._columns[f"{modality}.mask"][index_B]
        if not present_B.all():
            empty = self._statistics[modality]["empty"]
            ids_BL[~present_B], mask_BL[~present_B] = 0, False
            ids_BL[~present_B, len(empty) :] = (self._statistics[modality]["pad"] or [0])[0]
            ids_BL[~present_B, : len(empty)] = empty
            mask_BL[~present_B, : len(empty)] = True
        length = int(mask_BL.sum(1).max(initial=1)) if format.trim else format.length
        ids = torch.from_numpy(ids_BL[:, :length].astype(np.int64))
        mask = torch.from_numpy(np.ascontiguousarray(mask_BL[:, :length]))
        return {"ids": ids.to(device), "mask": mask.to(device)}

    def _dense(
        self,
        modality: str,
        format: ImageFormat | AudioFormat | VideoFormat,
        index_B: np.ndarray,
        present_B: np.ndarray,
        device: torch.device,
        augmentation: Augmentation | None,
        draws: Draws | None,
    ) -> Tensor:
        column = self._columns[modality]
        fill = self._fill[modality].to(device)
        picture = format.image if isinstance(format, VideoFormat) else format
        if not present_B.any():
            shape = self._shown_shape(format)
            return fill.expand(len(index_B), *shape).contiguous()
        if isinstance(format, VideoFormat):
            frames_BF = self._frames(modality, format, len(index_B), augmentation, draws)
            values = torch.from_numpy(column[index_B[:, None], frames_BF]).to(device)
        else:
            values = torch.from_numpy(column[index_B]).to(device)
        if isinstance(picture, ImageFormat):
            values = self._normalised(values, picture, augmentation, draws)
        if not present_B.all():
            values[torch.from_numpy(np.flatnonzero(~present_B)).to(device)] = fill
        return values

    def _normalised(
        self, values: Tensor, format: ImageFormat, augmentation: Augmentation | None, draws: Draws | None
    ) -> Tensor:
        if augmentation is not None and augmentation.changes_pictures and draws is not None:
            values = augmentation.pictures(values, draws, format.size)
        else:
            values = centre_crop(values, format.size)
        std = values.new_tensor(format.std, dtype=torch.float32)[:, None, None]
        shift = -values.new_tensor(format.mean, dtype=torch.float32)[:, None, None] / std
        # In place on the fresh float copy: ten times as fast on a CPU as mixed-type or out-of-place arithmetic.
        return values.float().mul_(1 / (255 * std)).add_(shift)

    def _frames(
        self, modality: str, format: VideoFormat, count: int, augmentation: Augmentation | None, draws: Draws | None
    ) -> np.ndarray:
        if augmentation is not None and augmentation.random_frames and draws is not None:
            return augmentation.frames(modality, format.frames, draws).numpy()
        uniform = uniform_frames(format.stored_frames, format.frames)
        return np.broadcast_to(np.array(uniform), (count, format.frames))

    def _shown_shape(self, format: ImageFormat | AudioFormat | VideoFormat) -> tuple[int, ...]:
        if isinstance(format, AudioFormat):
            return format.frames, format.mel_bins
        if isinstance(format, VideoFormat):
            return format.frames, 3, format.image.size, format.image.size
        return 3, format.size, format.size

    def _fill_value(self, modality: str, format: ImageFormat | AudioFormat | VideoFormat) -> Tensor:
        """Float32, broadcastable over an input."""
        fill = self.fills[modality]
        if fill in ("zeros", "ones", "nan"):
            return torch.tensor({"zeros": 0.0, "ones": 1.0, "nan": float("nan")}[fill])
        if isinstance(format, AudioFormat):
            return torch.tensor(self._mean(modality), dtype=torch.float32)
        picture = format.image if isinstance(format, VideoFormat) else format
        level = [0.0, 0.0, 0.0] if fill == "black" else self._mean(modality)
        shown = [(v / 255 - m) / s for v, m, s in zip(level, picture.mean, picture.std, strict=True)]
        return torch.tensor(shown, dtype=torch.float32)[:, None, None]

    def _mean(self, modality: str) -> list[float]:
        if modality not in self._statistics:
            raise UserError(
                f"no training row has {modality}, so there is no mean of it", key="data.fill", found="mean",
                expected=f"one of {', '.join(name for name in FILLS if name != 'mean')}",
            )  # fmt: skip
        return list(self._statistics[modality]["mean"])


# ---- writing once --------------------------------------------------------------------------------------------------


def _write(
    folder: Path,
    builder: DatasetBuilder,
    samples: Mapping[str, list[Any]],
    formats: Mapping[str, Format],
    on_bad: str,
    progress: Progress | None,
) -> dict[str, Any]:
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        skip = on_bad == "skip"
        bad = write_prepared(temporary, samples, formats, builder.target, skip_bad=skip, progress=progress)
        found = [*builder.bad_rows, *(BadRow(sample.origin or sample.id, reason) for sample, reason in bad)]
        if found and not skip:
            raise refusal(found)
        temporary.chmod(0o755)
        try:
            temporary.rename(folder)
        except OSError:
            if _read_record(folder) is None:  # not just another process that was quicker
                raise
    except OSError as error:
        raise UserError(
            f"the prepared data cannot be written ({error.strerror or error})", file=folder.parent
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    record = _read_record(folder)
    assert record is not None
    return record


@contextlib.contextmanager
def _sole_writer(folder: Path) -> Iterator[None]:
    """Lets one process of a machine decode while the others wait; the lock dies with its holder.

    Only saves work: without locks (some network drives) several may write, and the first to rename wins.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder.parent / f".{folder.name}.lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(
            f"the cache for prepared data cannot be written ({error.strerror})",
            file=folder.parent,
            hint="Name a writable folder in $MMSWEEP_CACHE",
        ) from None
    try:
        locked = False
        with contextlib.suppress(OSError, ImportError):
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)
            locked = True
        if locked:  # what a killed process left; nobody else writes now
            for left in folder.parent.glob(f".{folder.name}-*"):
                shutil.rmtree(left, ignore_errors=True)
            if folder.exists() and _read_record(folder) is None:
                shutil.rmtree(folder, ignore_errors=True)
        yield
    finally:
        os.close(lock)


def _read_record(folder: Path) -> dict[str, Any] | None:
    """prepared.json, or None where the folder is absent or damaged."""
    try:
        record = json.loads((folder / "prepared.json").read_text())
        return record if isinstance(record, dict) and {"rows", "fingerprint", "skipped"} <= record.keys() else None
    except (OSError, ValueError):
        return None


def _map(path: Path, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    if 0 in shape:
        return np.zeros(shape, dtype)
    try:
        array = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError) as error:
        raise UserError(f"a prepared column is damaged ({error})", file=path, hint="Delete its folder") from None
    if array.shape != shape or array.dtype != np.dtype(dtype):
        raise UserError("a prepared column has another shape", file=path, found=array.shape, expected=str(shape))
    return array


def _in_order(builder: DatasetBuilder, formats: Mapping[str, Format]) -> dict[str, Format]:
    """The formats in the dataset's order of modalities, each of the right kind."""
    if set(formats) != set(builder.modalities):
        raise UserError(
            f"every modality of {builder.name} needs a format (an encoder)",
            found=sorted(formats),
            expected=", ".join(builder.modalities),
        )
    for modality, kind in builder.modalities.items():
        if KINDS[type(formats[modality])] != kind:
            raise UserError(f"the encoder does not read {kind}", key=modality, found=KINDS[type(formats[modality])])
    return {modality: formats[modality] for modality in builder.modalities}


def _fills(fill: Mapping[str, str] | str, formats: Mapping[str, Format]) -> dict[str, str]:
    chosen = {modality: fill if isinstance(fill, str) else fill.get(modality, "zeros") for modality in formats}
    unknown = [] if isinstance(fill, str) else [name for name in fill if name not in formats]
    if unknown:
        raise UserError("unknown modality", key="data.fill", found=unknown[0], expected=", ".join(formats))
    for modality, value in chosen.items():
        if value not in FILLS:
            raise UserError("unknown fill value", key="data.fill", found=value, expected=", ".join(FILLS))
        if value == "black" and isinstance(formats[modality], AudioFormat):
            raise UserError("a sound cannot be black", key="data.fill", expected=f"another value for {modality}")
    return chosen
