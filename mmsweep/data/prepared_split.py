"""One split of prepared data: its mapped columns, and batches made from them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmsweep.data.augmentation import Augmentation, Draws
from mmsweep.data.dataset import TARGETS, Batch
from mmsweep.data.kinds.kind import FILLS, Format, Input, Rows, Varied
from mmsweep.data.preparation import map_size
from mmsweep.data.raw_batch import Normalisation, RawBatch
from mmsweep.errors import UserError
from mmsweep.tasks.task import Target


class PreparedSplit:
    """One split's columns, mapped. Pickles as the name of its folder.

    Attributes:
        natural_NM: bool, what the data itself has; columns in the dataset's order of modalities.
        targets: int64 [N], float32 [N,C], float32 [N], or uint8 [N,H,W] label maps (mapped).
        ids, groups: of the rows.
    """

    def __init__(
        self, folder: Path, name: str, formats: Mapping[str, Format], target: Target, fills: Mapping[str, str]
    ) -> None:
        self.folder, self.name, self.target, self.fills = folder, name, target, dict(fills)
        self.natural_NM: np.ndarray = np.load(folder / name / "natural.npy", allow_pickle=False)
        rows = json.loads((folder / name / "ids.json").read_text())
        self.ids: list[str] = rows["ids"]
        self.groups: list[str | None] = rows["groups"]
        self._statistics = json.loads((folder / "prepared.json").read_text())["statistics"]
        self.formats = {modality: self._fitted(modality, format) for modality, format in formats.items()}
        self._columns: dict[str, dict[str, np.ndarray]] = {}  # modality -> name -> column
        self._longest: dict[str, int] = {}
        self.targets: np.ndarray
        if target.kind == "map":
            self.targets = _map(folder / name / f"{TARGETS}.npy", np.uint8, (len(self.ids), *map_size(self.formats)))
        else:
            self.targets = np.load(folder / name / f"{TARGETS}.npy", allow_pickle=False)
        for modality, format in self.formats.items():
            columns = format.columns() + (format.varied_columns() if name == "train" else [])
            self._columns[modality] = {
                column: _map(folder / name / f"{modality}{column}.npy", dtype, (len(self.ids), *shape))
                for column, dtype, shape in columns
            }
        self._placeholders = {m: self._placeholder(m, format) for m, format in self.formats.items()}
        self._normalisation = Normalisation(self.formats, target, self._placeholders)

    def __len__(self) -> int:
        return len(self.ids)

    def __reduce__(self) -> tuple[Any, ...]:
        return PreparedSplit, (self.folder, self.name, self.formats, self.target, self.fills)

    def batch(
        self,
        index: np.ndarray | Tensor,
        device: str | torch.device = "cpu",
        augmentation: Augmentation | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        present: np.ndarray | Tensor | None = None,
        *,
        rows: slice | np.ndarray | Tensor | None = None,
        one_length: bool = False,
    ) -> Batch:
        """The rows `index` on `device`, normalised, with the fill value wherever a modality is not present.

        Arguments as `raw`.
        """
        raw = self.raw(index, augmentation, generator, present, rows=rows, one_length=one_length)
        return self.batch_of(raw, device)

    def batch_of(self, raw: RawBatch, device: str | torch.device) -> Batch:
        """The second half of `batch`: what a device makes of the first. A raw batch is used once."""
        return self._normalisation.batch(raw, torch.device(device))

    def raw(
        self,
        index: np.ndarray | Tensor,
        augmentation: Augmentation | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        present: np.ndarray | Tensor | None = None,
        *,
        rows: slice | np.ndarray | Tensor | None = None,
        one_length: bool = False,
    ) -> RawBatch:
        """The host's half of `batch`: the rows as they are stored, and the random numbers of their augmentation.

        Args:
            index: int64 [B], rows of the split: the whole batch over all ranks.
            augmentation, generator: of the training split only, prepared with the augmentation's `kept_formats`. Draws
                are made for the whole batch, on the CPU. Of several generators, each draws for an equal share of the
                batch: a slot's rows.
            present: bool [B,M], what a scenario leaves; taken together with what the data has.
            rows: which of the B rows to make (a rank's share); None: all.
            one_length: texts are as long as the split's longest, not the batch's: nothing depends on a row's mates.
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
        columns: dict[str, dict[str, Tensor]] = {}
        absent: dict[str, Tensor] = {}
        varied = None if augmentation is None or draws is None else Varied(augmentation, draws)
        for place, (modality, format) in enumerate(self.formats.items()):
            present_B = present_BM[:, place]
            longest = self.longest(modality) if one_length else None
            stored, placeholder = self._columns[modality], self._placeholders[modality]
            parts = format.read(Rows(stored, index_B, present_B, varied, placeholder, longest, modality))
            if parts:
                columns[modality] = parts
            if parts and not format.filled_on_host and not present_B.all():
                absent[modality] = torch.from_numpy(np.flatnonzero(~present_B))
        target, kept = torch.from_numpy(self.targets[index_B]), torch.from_numpy(index_B)
        return RawBatch(columns, absent, torch.from_numpy(present_BM), target, kept, varied)

    def column(self, modality: str, part: str = "") -> np.ndarray:
        """What is stored: a raster's values in the file's own type [N,C,H,W]; of texts `.ids` or `.mask`."""
        return self._columns[modality][part]

    def drawn_from(self, modality: str) -> tuple[int, int] | None:
        """(most frames of a clip that random ones are drawn from, frames shown); None where none are drawn."""
        return self.formats[modality].drawn_from(self._columns[modality])

    def longest(self, modality: str) -> int:
        """Tokens of the split's longest text."""
        if modality not in self._longest:
            columns, placeholder = self._columns[modality], self._placeholders[modality]
            self._longest[modality] = self.formats[modality].longest(columns, placeholder)
        return self._longest[modality]

    def _draw(
        self,
        rows: int,
        augmentation: Augmentation | None,
        generator: torch.Generator | Sequence[torch.Generator] | None,
    ) -> Draws | None:
        if augmentation is None:
            return None
        if generator is None:
            raise ValueError("augmentation draws from an explicit generator")
        if self.name != "train" or augmentation.kept_formats(self.formats) != self.formats:
            raise ValueError("this augmentation needs a training split that was prepared with its `kept_formats`")
        generators = [generator] if isinstance(generator, torch.Generator) else generator
        kept = {m: f.draws for m, f in self.formats.items() if f.draws is not None}
        return Draws.together([augmentation.draw(rows // len(generators), g, kept) for g in generators])

    def _fitted(self, modality: str, format: Format) -> Format:
        try:
            return format.fitted(self._statistics.get(modality, {}))
        except UserError as problem:
            raise problem.placed(key=f"data.modalities.{modality}") from None

    def _placeholder(self, modality: str, format: Format) -> Input:
        statistics = self._statistics.get(modality, {})
        if self.fills[modality] == "mean" and not statistics:
            raise UserError(
                f"no training row has {modality}, so there is no mean of it", key="data.fill", found="mean",
                expected=f"one of {', '.join(name for name in FILLS if name != 'mean')}",
            )  # fmt: skip
        return format.placeholder(self.fills[modality], statistics)


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
