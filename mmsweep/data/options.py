"""The options of `data` that datasets share; each dataset's own are in its file. It needs no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, create_model, field_validator, model_validator

from mmsweep.components import Options, Registry, Section, misfit


class AugmentationOptions(Section):
    """Random changes of training data."""

    crop: tuple[float, float] | None = Field(
        None,
        description="Smallest and largest area of a random crop as shares of the whole picture, for example "
        "[0.5, 1.0]; the crop is resized to the encoder's size. null disables cropping. With crops, prepared training "
        "pictures and frames are also stored whole at twice the encoder's pixels, which takes three times the disk "
        "space.",
    )
    flip: bool = Field(False, description="Whether a random half of pictures, clips and rasters is mirrored.")
    random_frames: bool = Field(
        False,
        description="Whether each training clip is divided into `data.video.frames` equal parts and shows a random "
        "frame of each instead of the middle one. They are drawn from all frames of the clip, or from 8 × "
        "`data.video.frames` uniform ones of a longer clip; these are all stored on disk.",
    )
    window: int | None = Field(
        None, ge=8, description="Side in pixels of the window that training cuts from rasters; null uses whole rasters."
    )
    scale: tuple[float, float] | None = Field(
        None, description="Smallest and largest factor by which rasters are enlarged at random; null disables this."
    )

    @field_validator("crop", "scale")
    @classmethod
    def _check_limits(cls, limits: tuple[float, float] | None, info: ValidationInfo) -> tuple[float, float] | None:
        largest, words = (1.0, "within (0, 1]") if info.field_name == "crop" else (math.inf, "above 0")
        if limits is not None and not 0 < limits[0] <= limits[1] <= largest:
            raise misfit(f"the two numbers must rise {words}", "the smaller number first")
        return limits

    @model_validator(mode="after")
    def _check_exclusive(self) -> AugmentationOptions:
        if self.crop and self.scale:
            raise misfit("crop and scale both select a part of rasters", "one of them", "scale", self.scale)
        return self


KINDS = Registry("kind of modality", "mmsweep.data.kinds", key="kind")
"""The kinds of modalities, each in the file of its name."""


class Datasets(Registry):
    """The datasets. A dataset's section holds its own options and the sections of the kinds of its modalities."""

    def section(self, name: str) -> type[Any]:
        dataset = self[name]
        return _with_readings(dataset.Options, readings(dataset.modalities.values() or KINDS))


def readings(kinds: Iterable[str]) -> tuple[tuple[str, type[Section]], ...]:
    """The sections of `data` on how modalities of these kinds are read, by key."""
    keys = {key for kind in kinds for key in (kind, *KINDS[kind].also_read_by)}
    return tuple((key, KINDS[key].Reading) for key in sorted(keys) if KINDS[key].Reading is not None)


@cache
def _with_readings(options: type[Options], sections: tuple[tuple[str, type[Section]], ...]) -> type[Options]:
    """Options with the sections of kinds that they do not declare themselves."""
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

    retired: ClassVar[Mapping[tuple[str, Any], tuple[str, Any]]] = {
        ("on_bad", "refuse"): ("max_bad", 0.0),
        ("on_bad", "skip"): ("max_bad", 1.0),
    }

    dataset: str = Field(description="Name of the dataset (`mmsweep data list` lists them); manifest is your own file.")
    task: str | None = Field(
        None, description="Target of the prediction, for a dataset with several; null takes the dataset's default."
    )
    fill: Literal["zeros", "ones", "black", "mean", "nan"] = Field(
        "zeros",
        description="Placeholder of an absent input, which the network reads if method.absent is placeholder (B19). "
        "zeros (after normalisation) is both papers' choice, ones that of Lee et al.'s code; black is a black picture, "
        "mean the mean of the training rows, nan is for tests. An absent text is always the empty text.",
    )
    max_bad: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Largest share of rows that may be unreadable (a damaged or absent file, an unknown label). They "
        "are left out, counted and listed in a file beside the prepared data. A larger share stops, and 0 stops at the "
        "first.",
    )
    augmentation: AugmentationOptions = Field(AugmentationOptions(), description="Random changes of training data.")

    def reading(self, kind: str) -> Any:
        """The section of a kind, or its defaults if the dataset has no modality of this kind; None if it has none."""
        section = KINDS[kind].Reading
        return getattr(self, kind, None) or (section and section())


class FolderOptions(DatasetOptions):
    """Options of a dataset that is read from a folder."""

    root: str | None = Field(None, description="Folder of the raw data.")


class CarvedOptions(FolderOptions):
    """Options of a dataset in a folder that does not define all of its splits."""

    split_seed: int = Field(0, ge=0, description="Seed of the splits that the dataset does not define itself.")
