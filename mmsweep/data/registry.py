"""From a dataset's name to its card (what it is, without any data) and its builder (what reads it).

A dataset is one file under `sets/` with one decorated function:

    @register_dataset("food101", card=lambda options: CARD)
    def food101(options: DatasetOptions) -> DatasetBuilder: ...

Cards stand in for data that is not on disk: `mmsweep data list` prints them, dry runs count with them.
"""

from __future__ import annotations

import difflib
import fnmatch
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from mmsweep.data.dataset import DatasetBuilder
from mmsweep.data.formats import RasterFormat, SequenceFormat
from mmsweep.data.options import DatasetOptions
from mmsweep.errors import UserError
from mmsweep.tasks.task import Target


@dataclass(frozen=True)
class DatasetCard:
    """What is known of a dataset without its data.

    Args:
        name: as in the study.
        title: one line for people.
        modalities: name -> kind, in order.
        target: what is predicted; None where only the user's file can tell.
        sequences: how its modalities of kind "sequence" are read.
        rows: published (or shipped) rows per split.
        rasters: of the modalities of kind "raster", how they are stored and normalised.
        get: how to get the data.
        layout: what a folder of it looks like.
        reader: whether this version reads it.
        reads: the keys of a study that say how this dataset, and not every one, is read.
    """

    name: str
    title: str
    modalities: Mapping[str, str]
    target: Target | None
    rows: Mapping[str, int] = field(default_factory=dict)
    rasters: Mapping[str, RasterFormat] = field(default_factory=dict)
    sequences: Mapping[str, SequenceFormat] = field(default_factory=dict)
    get: str = ""
    layout: str = ""
    reader: bool = True
    reads: tuple[str, ...] = ("data.root", "data.split_seed")


CardMaker = Callable[[DatasetOptions], DatasetCard]
BuilderMaker = Callable[[DatasetOptions], DatasetBuilder]


@dataclass(frozen=True)
class _Entry:
    card: CardMaker
    builder: BuilderMaker


_ENTRIES: dict[str, _Entry] = {}


def register_dataset(name: str, *, card: CardMaker) -> Callable[[BuilderMaker], BuilderMaker]:
    """Decorator of the function that makes a dataset's builder."""

    def keep(builder: BuilderMaker) -> BuilderMaker:
        _ENTRIES[name] = _Entry(card, builder)
        return builder

    return keep


def datasets(pattern: str = "*") -> list[str]:
    """Names of the registered datasets that match a wildcard, sorted."""
    return sorted(name for name in _entries() if fnmatch.fnmatch(name, pattern))


def dataset_card(name: str, options: DatasetOptions | None = None) -> DatasetCard:
    """The card of a dataset.

    Raises:
        UserError: unknown name (with the nearest spelling and the list), unknown task.
    """
    return _entry(name).card(options or DatasetOptions())


def build_dataset(name: str, options: DatasetOptions | None = None) -> DatasetBuilder:
    """The builder of a dataset.

    Raises:
        UserError: unknown name, a dataset that this version cannot read yet, options that do not fit.
    """
    return _entry(name).builder(options or DatasetOptions())


def not_read_yet(card: DatasetCard) -> UserError:
    """What a declared dataset without a reader answers."""
    return UserError(
        f"{card.name} is declared (its plan can be shown with --dry-run) but this version does not read it from disk",
        key="data.dataset",
        found=card.name,
        hint="Until then, list its files in a CSV, JSONL or Parquet file and use dataset: manifest",
    )


def _entry(name: str) -> _Entry:
    entries = _entries()
    if name not in entries:
        near = difflib.get_close_matches(name, entries, n=1)
        raise UserError(
            "unknown dataset",
            key="data.dataset",
            found=name,
            expected="one of " + ", ".join(sorted(entries)),
            hint=f"Did you mean {near[0]!r}?" if near else None,
        )
    return entries[name]


def _entries() -> dict[str, _Entry]:
    # Imported on first use: the files of sets/ import this module for its decorator.
    from mmsweep.data import sets

    for module in pkgutil.iter_modules(sets.__path__):
        importlib.import_module(f"{sets.__name__}.{module.name}")
    return _ENTRIES


def _openclipart_card(options: DatasetOptions) -> DatasetCard:
    from mmsweep.data.sets.openclipart import OpenClipart

    builder = OpenClipart(task=options.task or "single_label")
    return DatasetCard(
        name="openclipart",
        title="Open Clip Art: drawings with title and description (public domain)",
        modalities=builder.modalities,
        target=builder.target,
        rows=builder.expected,
        get="ships with the package",
        layout="one archive inside the package; tasks single_label (default) and multi_label",
        reads=(),
    )


@register_dataset("openclipart", card=_openclipart_card)
def _openclipart(options: DatasetOptions) -> DatasetBuilder:
    from mmsweep.data.sets.openclipart import OpenClipart

    return OpenClipart(task=options.task or "single_label")
