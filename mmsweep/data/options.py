"""What a study says of its data: options that datasets share. A dataset's own stand in its file. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any, Literal

from pydantic import Field, create_model

from mmsweep.components import Options, Registry, Section


class AugmentationOptions(Section):
    """What is varied while training."""

    crop: tuple[float, float] | None = Field(
        None,
        description="Smallest and largest area of a random crop, as shares of the whole picture, for example "
        "[0.5, 1.0]; the crop is resized to what the encoder sees. null crops nothing. Prepared training pictures and "
        "frames are then also kept whole, at twice the encoder's pixels, and take three times the disk space",
    )
    flip: bool = Field(False, description="Mirror half of the pictures, clips and rasters, chosen at random")
    random_frames: bool = Field(
        False,
        description="Show random frames of each training clip instead of uniform ones. They are drawn from all of its "
        "frames, or from 8 × `data.video.frames` uniform ones of a longer clip: so many are prepared and kept on disk",
    )
    window: int | None = Field(
        None, ge=8, description="Side in pixels of the part of rasters that a training step sees; null: all of them"
    )
    scale: tuple[float, float] | None = Field(
        None, description="Smallest and largest factor by which rasters are enlarged at random; null enlarges nothing"
    )


KINDS = Registry("kind of modality", "mmsweep.data.kinds", key="kind")
"""The kinds of modalities, each in the file of its name."""


class Datasets(Registry):
    """The datasets. A dataset's section holds its own options and the sections of the kinds of its modalities."""

    def section(self, name: str) -> type[Any]:
        dataset = self[name]
        return _with_readings(dataset.Options, readings(dataset.modalities.values() or KINDS))


def readings(kinds: Iterable[str]) -> tuple[tuple[str, type[Section]], ...]:
    """Sections of `data` that say how modalities of some kinds are read, by their keys."""
    keys = {key for kind in kinds for key in (kind, *KINDS[kind].also_read_by)}
    return tuple((key, KINDS[key].Reading) for key in sorted(keys) if KINDS[key].Reading is not None)


@cache
def _with_readings(options: type[Options], sections: tuple[tuple[str, type[Section]], ...]) -> type[Options]:
    """Options with the section of each kind that they do not declare themselves."""
    added: dict[str, Any] = {
        key: (section, Field(section(), description=section.__doc__))
        for key, section in sections
        if key not in options.model_fields
    }
    return create_model(options.__name__, __base__=options, __doc__=options.__doc__, **added)


DATASETS = Datasets("dataset", "mmsweep.data.sets", key="dataset")
"""The datasets, each in the file of its name."""


class DatasetOptions(Options):
    """Options of every dataset."""

    dataset: str = Field(description="Name of the dataset (`mmsweep data list` lists them); manifest is your own file.")
    task: str | None = Field(
        None, description="What is predicted, for a dataset with several tasks; null takes the dataset's default."
    )
    fill: Literal["zeros", "ones", "black", "mean", "nan"] = Field(
        "zeros",
        description="Placeholder of an absent input, which the network reads where method.absent is placeholder (B19). "
        "zeros (after normalisation) is both papers' choice, ones that of Lee et al.'s code; black is a black picture, "
        "mean the mean of the training rows, nan is for tests. An absent text is always the empty text.",
    )
    on_bad: Literal["refuse", "skip"] = Field(
        "refuse", description="What happens where rows cannot be read. refuse stops, skip leaves these rows out."
    )
    augmentation: AugmentationOptions = Field(AugmentationOptions(), description="What is varied while training.")

    def reading(self, kind: str) -> Any:
        """The section about a kind; its defaults where the dataset has no modality of it."""
        return getattr(self, kind, None) or KINDS[kind].Reading()


class FolderOptions(DatasetOptions):
    """Of a dataset that is read from a folder."""

    root: str | None = Field(None, description="Folder of the raw data.")


class CarvedOptions(FolderOptions):
    """Of a dataset that is read from a folder and (partly) split here."""

    split_seed: int = Field(0, ge=0, description="Seed of the splits that are carved here.")
