"""The part of the study file that concerns the data: which dataset, how its inputs are read, the user's own files."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from mmsweep.study_source import Section, misfit


class ImageOptions(Section):
    size: int | None = Field(None, ge=8, description="pixels a side; null: what the encoder was made for")
    fit: Literal["crop", "pad"] = Field("crop", description="not square: show the middle, or all of it on white")


class TextOptions(Section):
    length: int | None = Field(None, ge=4, description="tokens, [CLS] and [SEP] included; null: the encoder's default")
    field: str | None = Field(None, description="which text of a dataset that has several")


class AudioOptions(Section):
    frames: int | None = Field(None, ge=8, description="spectrogram frames; null: what the encoder was made for")
    language: str | None = Field(None, description="of a dataset spoken in several; null: the dataset's own")


class VideoOptions(Section):
    frames: int = Field(3, ge=1, description="frames a clip")


class Augmentation(Section):
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


class ManifestColumn(Section):
    kind: Literal["image", "text", "audio", "video", "sequence"] = Field(description="what the column holds")
    column: str = Field(description="file names relative to the file, or texts; an empty cell: not there")
    length: int | None = Field(None, ge=1, description="sequence: most steps (longer ones are cut)")
    width: int | None = Field(None, ge=1, description="sequence: features a step")

    @model_validator(mode="after")
    def _sequences_have_a_size(self) -> ManifestColumn:
        sizes = self.length, self.width
        if self.kind == "sequence" and None in sizes:
            raise misfit("a sequence needs its size", "length (most steps) and width (features a step)")
        if self.kind != "sequence" and sizes != (None, None):
            raise misfit(f"{self.kind} has no length and width", "neither, or kind: sequence")
        return self


class ManifestTarget(Section):
    task: Literal["single_label", "multi_label", "regression"] = Field(description="a class, labels, or a number")
    column: str = Field(description="the column that holds it")
    separator: str = Field("|", description="between the labels of a multi_label cell")
    classes: list[str] | None = Field(None, description="in the order of the outputs; null: those that occur, sorted")
    signed: bool = Field(False, description="regression: the sign means something (sentiment): Has0 and Non0 metrics")

    @model_validator(mode="after")
    def _only_numbers_have_a_sign(self) -> ManifestTarget:
        if self.signed and self.task != "regression":
            raise misfit(f"{self.task} has no sign", "signed: false, or task: regression")
        return self


class ManifestSplit(Section):
    column: str | None = Field(None, description="says train, val or test; without it the shares below are carved")
    train: float | None = Field(None, description="share of the rows")
    val: float | None = Field(None, description="share of the rows")
    test: float | None = Field(None, description="share of the rows; the three sum to 1")
    seed: int | None = Field(None, description="of the carving; null: data.split_seed")


class ManifestGroup(Section):
    column: str = Field(description="rows with equal values never stand in two splits")


class Data(Section):
    dataset: str = Field(description="a name of `mmsweep data list`; manifest: your own file")
    root: str | None = Field(None, description="where the raw data lies")
    task: str | None = Field(None, description="for datasets with several tasks")
    image: ImageOptions = Field(ImageOptions(), description="how pictures are read")
    text: TextOptions = Field(TextOptions(), description="how texts are read")
    audio: AudioOptions = Field(AudioOptions(), description="how sounds are read")
    video: VideoOptions = Field(VideoOptions(), description="how clips are read")
    fill: Literal["zeros", "ones", "black", "mean", "nan"] = Field(
        "zeros", description="what stands for an absent input (B19)"
    )
    on_bad: Literal["refuse", "skip"] = Field("refuse", description="rows that cannot be read: stop, or leave them out")
    split_seed: int = Field(0, ge=0, description="of splits that are carved here")
    augmentation: Augmentation = Field(Augmentation(), description="what is varied while training")
    # the user's own data (dataset: manifest)
    path: str | None = Field(None, description="manifest: the CSV, JSONL or Parquet file with a row per sample")
    modalities: dict[str, ManifestColumn] | None = Field(None, description="manifest: name -> column, in order")
    target: ManifestTarget | None = Field(None, description="manifest: what is predicted")
    split: ManifestSplit | None = Field(None, description="manifest: where a row belongs; null: 0.8, 0.1, 0.1, carved")
    group: ManifestGroup | None = Field(None, description="manifest: what must not be cut by the splits")

    @model_validator(mode="after")
    def _manifest_is_whole(self) -> Data:
        own = {k: getattr(self, k) for k in ("path", "modalities", "target")}
        if self.dataset == "manifest" and (gaps := [k for k, v in own.items() if v is None]):
            raise misfit(f"dataset manifest needs {', '.join(gaps)}", "path, modalities and target")
        own |= {"split": self.split, "group": self.group}
        if self.dataset != "manifest" and (extra := [k for k, v in own.items() if v is not None]):
            raise misfit(f"{', '.join(extra)}: only for dataset manifest", "dataset: manifest, or no such key")
        return self
