"""The contract of a dataset: where its samples are, what is to be predicted, and what a batch of them looks like.

A dataset is one class in one file under `sets/`. It says what is known without its data (the card), declares its
options, and reads names, texts and labels; decoding, caching, batching and absence belong to `prepared.py`:

    @register("food101")
    class Food101(DatasetBuilder):
        name = "food101"
        modalities = {"image": "image", "text": "text"}
        class Options(FolderOptions): …
        def splits(self): …
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmsweep.components import Registry
from mmsweep.data.kinds.kind import Format
from mmsweep.data.options import DATASETS, DatasetOptions
from mmsweep.errors import UserError
from mmsweep.tasks.task import Target

SPLITS = ("train", "val", "test")

TARGETS = "targets"
"""The prepared column of targets; no modality may have this name."""

_SHOWN_ROWS = 20


@dataclass(frozen=True)
class Sample:
    """One row, undecoded.

    Args:
        id: unique within the dataset.
        values: modality -> raw value, or None where the data itself has none. Image: path or bytes; text: str; audio:
            path of a sound or of a video with a sound track, or bytes; video: path of a folder of frames or of a file;
            both may be `files.Segment`s; raster: path, bytes, or a `Window` or `Stack` of `raster_files.py`; sequence:
            path or bytes of a .npy array (or what the builder's format derives it from); table: a tuple of its cells,
            None where one is empty (`kinds.table.TableRow`). What may be bytes may also be a `files.Stored`, which
            reads them when they are decoded.
        target: class name, list of labels, number, or the label map as a raster's value.
        group: rows of a group never stand in two splits; None means that the row is its own group.
        origin: "file.csv:17", for messages.
    """

    id: str
    values: Mapping[str, Any]
    target: Any
    group: str | None = None
    origin: str = ""


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used, and why."""

    origin: str
    reason: str

    def __str__(self) -> str:
        return f"{self.origin}: {self.reason}"


def refusal(
    rows: Sequence[BadRow], consequence: str | None = None, *, limit: str = "", file: Path | None = None
) -> UserError:
    """One error that lists the rows (at most 20) and counts all of them.

    Args:
        consequence: what cannot be done without these rows, where leaving them out is no way.
        limit: how many rows there are, and the share of them that may be left out.
        file: where all of them are listed.
    """
    shown = "".join(f"\n  {row}" for row in rows[:_SHOWN_ROWS])
    rest = f"\n  … and {len(rows) - _SHOWN_ROWS:,} more" if len(rows) > _SHOWN_ROWS else ""
    count = "1 row cannot be used" if len(rows) == 1 else f"{len(rows):,} rows cannot be used"
    way = f"Without them {consequence}" if consequence else "Correct them, or raise data.max_bad to leave them out"
    listed = f" All are listed in {file}." if file and rest else ""
    return UserError(f"{count}{f' ({limit})' if limit else ''}:{shown}{rest}\n", hint=f"{way}.{listed}")


@dataclass(frozen=True)
class DatasetCard:
    """What is known of a dataset without its data.

    Args:
        name: as in the study.
        title: one line for people.
        modalities: name -> kind (a name of KINDS), in order; empty where only the user's file can tell.
        target: what is predicted; None where only the user's file can tell.
        rows: published (or shipped) rows per split.
        formats: how modalities are read, where the dataset says it rather than an encoder. Formats that are learned
            from the training rows are added once the data is read.
        get: how to get the data.
        licence: what its distributor allows.
        layout: what a folder of it looks like.
    """

    name: str
    title: str
    modalities: Mapping[str, str]
    target: Target | None
    rows: Mapping[str, int] = field(default_factory=dict)
    formats: Mapping[str, Format] = field(default_factory=dict)
    get: str = ""
    licence: str = ""
    layout: str = ""


class DatasetBuilder:
    """A dataset: its card, and what reads its names, texts and labels from where the user keeps them.

    Attributes:
        Options: the class of its options.
        name, title, modalities, target, rows, formats, get, licence, layout: as the card's; `card` gives what depends
            on the options.
        options: what the study says.
        root: the folder that the study names; None: it names none.
        bad_rows: what `splits()` left out because it could not be read as a row (file:line and why); `prepare` counts
            them with the rows that cannot be decoded.
    """

    registry: ClassVar[Registry] = DATASETS
    Options: ClassVar[type[DatasetOptions]] = DatasetOptions
    name: ClassVar[str]
    title: ClassVar[str] = ""
    get: ClassVar[str] = ""
    licence: ClassVar[str] = ""
    layout: ClassVar[str] = ""
    modalities: Mapping[str, str] = {}
    target: Target
    rows: Mapping[str, int] = {}
    formats: Mapping[str, Format] = {}
    bad_rows: tuple[BadRow, ...] = ()

    @classmethod
    def card(cls, options: Any = None) -> DatasetCard:
        """What is known without the data, for a study's options or in general."""
        target = getattr(cls, "target", None)
        formats = cls.formats_of(options)
        if options is not None:
            formats = {modality: format.read_as(options.reading(format.kind)) for modality, format in formats.items()}
        return DatasetCard(
            cls.name, cls.title, cls.modalities, target, cls.rows, formats, cls.get, cls.licence, cls.layout
        )

    @classmethod
    def formats_of(cls, options: Any) -> Mapping[str, Format]:
        """How the modalities are read whose data says it, for a study's options; None: in general."""
        return cls.formats

    def __init__(self, options: Any) -> None:
        """
        Raises:
            UserError: an environment variable in `root` is not set.
        """
        root: str | None = getattr(options, "root", None)
        if root and "${" in root:
            raise UserError("an environment variable is not set", key="data.root", found=root,
                            hint=f"It says where the raw data lies. {self.get}".rstrip())  # fmt: skip
        card = self.card(options)
        self.options, self.root = options, Path(root) if root else None
        self.modalities, self.rows, self.formats = card.modalities, card.rows, card.formats
        if card.target is not None:
            self.target = card.target

    def splits(self) -> dict[str, list[Sample]]:
        """Samples of "train", "val" and "test", in a fixed order.

        Raises:
            UserError: naming file and line of what is missing or malformed.
        """
        raise NotImplementedError(self.name)

    def provenance(self) -> str:
        """Where the data came from and how it was split, in a sentence or two (for the report)."""
        raise NotImplementedError(self.name)


@dataclass
class Batch:
    """What a network gets.

    Args:
        inputs: modality -> tensor (image [B,3,H,W], audio [B,F,mel], video [B,f,3,H,W], raster [B,C,H,W], table [B,W])
            or dict (text: ids [B,L], mask [B,L]; sequence: values [B,T,F], mask [B,T]).
        present_BM: bool, which inputs may be read; columns in the dataset's order of modalities. The others
            hold the fill value.
        target: int64 [B], float32 [B,C], float32 [B], or int64 [B,H,W] (label maps; IGNORE where there is no class).
        index: int64 [B], the rows' place in their split.
        host_BM: `present_BM` as the host knows it, so that nobody need ask the device; None: it does not.
        placeholders: modality -> the input that stands for its absence (`data.fill`; the empty text), without the batch
            axis: broadcastable over an input, or a dict of its parts. Texts: ids and mask of full length.
    """

    inputs: dict[str, Tensor | dict[str, Tensor]]
    present_BM: Tensor
    target: Tensor
    index: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    host_BM: Tensor | None = None
    placeholders: Mapping[str, Tensor | Mapping[str, Tensor]] = field(default_factory=dict)

    def present_on_host(self) -> Tensor:
        """`present_BM` on the host; waits for the device only where the host does not know it."""
        return self.present_BM.cpu() if self.host_BM is None else self.host_BM

    def __len__(self) -> int:
        return int(self.present_BM.shape[0])

    def with_placeholders(self, used_BM: Tensor, modalities: Sequence[str]) -> Batch:
        """These rows for a network that is fed placeholders: each unused input is one, and everything is present.

        Args:
            used_BM: bool, on the rows' device.
            modalities: names of the columns.
        """
        inputs = dict(self.inputs)
        for column, modality in enumerate(modalities):
            inputs[modality] = _placed(self.inputs[modality], self.placeholders[modality], used_BM[:, column])
        host_BM = None if self.host_BM is None else torch.ones_like(self.host_BM)
        return replace(self, inputs=inputs, present_BM=torch.ones_like(self.present_BM), host_BM=host_BM)

    def repeated(self, times: int) -> Batch:
        """These rows one time after the other: what each slot of a pack reads in evaluation."""
        if times == 1:
            return self

        def again(x: Tensor) -> Tensor:
            return x.repeat(times, *[1] * (x.dim() - 1))

        inputs: dict[str, Tensor | dict[str, Tensor]] = {
            m: {k: again(v) for k, v in x.items()} if isinstance(x, dict) else again(x) for m, x in self.inputs.items()
        }
        host_BM = None if self.host_BM is None else again(self.host_BM)
        return Batch(inputs, again(self.present_BM), again(self.target), again(self.index), host_BM, self.placeholders)


def _placed(
    x: Tensor | dict[str, Tensor], placeholder: Tensor | Mapping[str, Tensor], used_B: Tensor
) -> Tensor | dict[str, Tensor]:
    """An input with its placeholder in the rows that do not use it. `where`, since NaN times zero is NaN."""
    if isinstance(x, Tensor):
        assert isinstance(placeholder, Tensor)
        return torch.where(used_B.view(-1, *[1] * (x.dim() - 1)), x, placeholder.to(x.dtype))
    assert isinstance(placeholder, Mapping)
    # Texts are cut to their batch's longest, which is never shorter than the empty text.
    parts = {k: v[: x["ids"].shape[1]] for k, v in placeholder.items()} if "ids" in x else placeholder
    return {k: torch.where(used_B.view(-1, *[1] * (v.dim() - 1)), v, parts[k].to(v.dtype)) for k, v in x.items()}
