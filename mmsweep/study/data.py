"""The part of the study file that concerns the data: which dataset, how its inputs are read, the user's own files."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from mmsweep.components import Section, misfit
from mmsweep.data.cells import BadCell, class_name
from mmsweep.data.modality_names import misnamed
from mmsweep.tasks.task import TASKS


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
    kind: Literal["image", "text", "audio", "video", "sequence"] = Field(description="What the column holds.")
    column: str = Field(
        description="Name of the column. text: texts, UTF-8 bytes or numbers. The other kinds: file names relative to "
        "the manifest, the file's bytes, or the records {bytes, path} of Hugging Face datasets. A cell that is blank, "
        "null or an empty list is an absent modality; any other list or mapping makes the row a bad one."
    )
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
    task: str = Field(description="What is predicted: single_label, multi_label, regression or another task's name.")
    column: str = Field(
        description="Name of the column. single_label: a text or a number, where 1 and 1.0 are the class `1` and the "
        "text `01` is another. multi_label: names joined by the separator, or a list of texts as JSON, Parquet or "
        "Python writes it; an empty cell has no label, and lists of numbers are refused. regression: a finite number."
    )
    separator: str = Field("|", min_length=1, description="Text between the labels of a multi_label cell.")
    classes: list[str] | None = Field(
        None,
        min_length=1,
        description="Classes in the order of the outputs; a row with another class is a bad row. null: those that "
        "occur, sorted, numbers by their value.",
    )
    signed: bool = Field(False, description="regression: the sign means something (sentiment): Has0 and Non0 metrics")

    @field_validator("task")
    @classmethod
    def _of_one_cell(cls, task: str) -> str:
        known = [name for name, one in TASKS.items() if one.target_kind != "map"]
        if task not in known:
            raise misfit("wrong value", f"one of {', '.join(known)}")
        return task

    @field_validator("classes", mode="before")
    @classmethod
    def _numbers_are_names(cls, classes: Any) -> Any:
        if not isinstance(classes, list):
            return classes
        try:
            names = [class_name(name) for name in classes]
        except BadCell as problem:
            raise misfit(f"this is no name for a class: {problem}", "texts or numbers") from None
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise misfit(f"the class {twice[0]!r} is listed twice", "each class once")
        return names

    @model_validator(mode="after")
    def _options_fit_the_task(self) -> ManifestTarget:
        kind = TASKS[self.task].target_kind
        if self.signed and kind != "number":
            raise misfit(f"{self.task} has no sign", "signed: false, or task: regression")
        if self.classes is not None and kind == "number":
            raise misfit(f"{self.task} has no classes", "no such key, or another task", "classes", self.classes)
        if self.classes is not None and kind == "class" and len(self.classes) < 2:
            raise misfit("one class leaves nothing to predict", "two classes at least", "classes", self.classes)
        return self


class ManifestSplit(Section):
    column: str | None = Field(
        None,
        description="Name of the column that says train, val (valid, validation, dev) or test. Where it names no "
        "validation rows, a tenth of the training rows is carved off. null: the shares below are carved.",
    )
    train: float | None = Field(None, gt=0, lt=1, description="Share of the rows that train.")
    val: float | None = Field(None, gt=0, lt=1, description="Share of the rows that validate.")
    test: float | None = Field(None, gt=0, lt=1, description="Share of the rows that test; the three sum to 1.")
    seed: int | None = Field(None, ge=0, description="Seed of the carving; null: data.split_seed.")
    stratify: bool | None = Field(
        None,
        description="Whether carved splits keep the shares within every class; null: yes for single_label, no "
        "otherwise. Where it is on, the splits follow the target as well: another target column moves some rows.",
    )

    @property
    def problem(self) -> tuple[str, str] | None:
        """What is wrong with the rule, and what would be right; None where it can be followed."""
        shares = [share for share in (self.train, self.val, self.test) if share is not None]
        if self.column is not None and shares:
            return "the splits come from a column or from shares", "column, or train, val and test"
        if self.column is None and shares and (len(shares) < 3 or not math.isclose(sum(shares), 1.0, abs_tol=1e-6)):
            return "the shares of train, val and test must sum to 1", "all three, with the sum 1"
        return None


class ManifestGroup(Section):
    column: str = Field(description="Name of the column; rows with equal values never stand in two splits.")


class ManifestId(Section):
    column: str = Field(
        description="Name of the column with a text or a number that no other row has. Splits that are carved follow "
        "it, and rows are known by it."
    )


class Data(Section):
    dataset: str = Field(description="a name of `mmsweep data list`; manifest: your own file")
    root: str | None = Field(None, description="where the raw data lies")
    task: str | None = Field(None, description="for datasets with several tasks")
    image: ImageOptions = Field(ImageOptions(), description="how pictures are read")
    text: TextOptions = Field(TextOptions(), description="how texts are read")
    audio: AudioOptions = Field(AudioOptions(), description="how sounds are read")
    video: VideoOptions = Field(VideoOptions(), description="how clips are read")
    fill: Literal["zeros", "ones", "black", "mean", "nan"] = Field(
        "zeros",
        description="Placeholder of an absent input, which the network reads where method.absent is placeholder (B19). "
        "zeros (after normalisation) is both papers' choice, ones that of Lee et al.'s code; black is a black picture, "
        "mean the mean of the training rows, nan is for tests. An absent text is always the empty text.",
    )
    on_bad: Literal["refuse", "skip"] = Field("refuse", description="rows that cannot be read: stop, or leave them out")
    split_seed: int = Field(0, ge=0, description="of splits that are carved here")
    augmentation: Augmentation = Field(Augmentation(), description="what is varied while training")
    # the user's own data (dataset: manifest)
    path: str | None = Field(None, description="manifest: the CSV, JSONL or Parquet file with a row per sample")
    modalities: dict[str, ManifestColumn] | None = Field(
        None,
        description="manifest: the columns that are inputs, by name, in order. A name is a letter followed by letters, "
        "digits or _, and no word that PyTorch or mmsweep uses itself, such as type, targets or both.",
    )
    target: ManifestTarget | None = Field(None, description="manifest: what is predicted")
    split: ManifestSplit | None = Field(
        None, description="manifest: where a row belongs; null: 0.8, 0.1 and 0.1 of the rows, carved by hash."
    )
    group: ManifestGroup | None = Field(None, description="manifest: what must not be cut by the splits")
    id: ManifestId | None = Field(
        None,
        description="manifest: what names a row. null: the row's whole content, columns that the study does not use "
        "included, so that carved splits stay as they are when a modality is added to the study; a changed file moves "
        "the rows that changed.",
    )

    @model_validator(mode="before")
    @classmethod
    def _modalities_have_names(cls, values: Any) -> Any:
        modalities = values.get("modalities") if isinstance(values, dict) else None
        if isinstance(modalities, dict) and (problem := misnamed(list(modalities))):
            raise misfit(problem.why, problem.expected, "modalities", problem.name)
        return values

    @model_validator(mode="after")
    def _manifest_is_whole(self) -> Data:
        own = {k: getattr(self, k) for k in ("path", "modalities", "target")}
        if self.dataset == "manifest" and (gaps := [k for k, v in own.items() if v is None]):
            raise misfit(f"dataset manifest needs {', '.join(gaps)}", "path, modalities and target")
        own |= {"split": self.split, "group": self.group, "id": self.id}
        if self.dataset != "manifest" and (extra := [k for k, v in own.items() if v is not None]):
            raise misfit(f"{', '.join(extra)}: only for dataset manifest", "dataset: manifest, or no such key")
        if self.split and self.split.problem:
            raise misfit(*self.split.problem, "split", self.split.model_dump(exclude_defaults=True))
        if self.split and self.split.stratify and self.target and TASKS[self.target.task].target_kind != "class":
            problem = f"{self.target.task} has no classes to stratify by"
            raise misfit(problem, "stratify: false, or task: single_label", "split.stratify", True)
        return self
