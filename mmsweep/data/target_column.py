"""What the user's own file says of the target: its task, its column, and how the column is read."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from mmsweep.components import Section, misfit
from mmsweep.data.cells import BadCell, class_name, file_of, labels_of, number_of
from mmsweep.tasks.task import IGNORE, TASKS, Target, TargetKind


class TargetColumn(Section):
    task: str = Field(description="What is predicted: single_label, multi_label, regression or another task's name.")
    column: str = Field(
        description="Name of the column. single_label: a text or a number, where 1 and 1.0 are the class `1` and the "
        "text `01` is another. multi_label: names joined by the separator, or a list of texts as JSON, Parquet or "
        "Python writes it; an empty cell has no label, and lists of numbers are refused. regression: a finite number. "
        "segmentation: the file of a label map with one channel (PNG, TIFF or .npy), as large as the rasters."
    )
    separator: str = Field("|", min_length=1, description="Text between the labels of a multi_label cell.")
    classes: list[str] | int | None = Field(
        None,
        description="Classes in the order of the outputs; a row with another class is a bad row. null takes the "
        "classes that occur, sorted, numbers by their value. segmentation: the names or the number of the classes, "
        "which has to be given.",
    )
    offset: int = Field(0, ge=0, description="segmentation: value of the first class in the label maps.")
    ignore: int | list[int] = Field(
        IGNORE, description="segmentation: value or values of the label maps that stand for no class."
    )
    signed: bool = Field(False, description="regression: the sign means something (sentiment): Has0 and Non0 metrics")

    @field_validator("task")
    @classmethod
    def _is_known(cls, task: str) -> str:
        if task not in TASKS:
            raise misfit("wrong value", f"one of {', '.join(TASKS)}")
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
        if not names:
            raise misfit("the list of classes is empty", "one class at least")
        return names

    @model_validator(mode="after")
    def _options_fit_the_task(self) -> TargetColumn:
        if self.signed and self.kind != "number":
            raise misfit(f"{self.task} has no sign", "signed: false, or task: regression")
        if self.classes is not None and self.kind == "number":
            raise misfit(f"{self.task} has no classes", "no such key, or another task", "classes", self.classes)
        if self.kind == "map":
            self._check_map()
            return self
        if isinstance(self.classes, int):
            raise misfit(f"{self.task} needs names of classes", "a list, or null", "classes", self.classes)
        if self.classes is not None and self.kind == "class" and len(self.classes) < 2:
            raise misfit("one class leaves nothing to predict", "two classes at least", "classes", self.classes)
        for option, usual in (("offset", 0), ("ignore", IGNORE)):
            if getattr(self, option) != usual:
                problem = f"{self.task} has no label maps"
                raise misfit(problem, "no such key, or task: segmentation", option, getattr(self, option))
        return self

    def _check_map(self) -> None:
        count = len(self.names)
        if self.classes is None:
            raise misfit("label maps do not say which classes there are", "their names, or their number", "classes")
        if not 2 <= count <= IGNORE:
            raise misfit("a label map has 2 to 255 classes", "2 to 255", "classes", self.classes)
        if min(self.ignored, default=0) < 0 or max([*self.ignored, self.offset + count - 1]) > 65535:
            raise misfit("label maps hold values from 0 to 65535", "values from 0 to 65535", "ignore", self.ignore)
        if clash := [value for value in self.ignored if self.offset <= value < self.offset + count]:
            problem = f"the value {clash[0]} stands for a class and for no class"
            expected = f"values other than {self.offset} to {self.offset + count - 1}, or another offset"
            raise misfit(problem, expected, "ignore", self.ignore)

    @property
    def names(self) -> tuple[str, ...]:
        """The classes as the study lists them; of a number of classes, the values of the label maps."""
        if isinstance(self.classes, int):
            return tuple(str(self.offset + index) for index in range(min(self.classes, IGNORE + 1)))
        return tuple(self.classes or ())

    @property
    def ignored(self) -> list[int]:
        """The values of label maps that stand for no class."""
        return [self.ignore] if isinstance(self.ignore, int) else list(self.ignore)

    @property
    def declared(self) -> Target | None:
        """The target, where the study says enough; None where the file tells the classes."""
        if self.kind == "number":
            return Target(self.task, signed=self.signed)
        if self.kind == "map" and (self.offset, self.ignored) != (0, [IGNORE]):
            classes = [(self.offset + index, index) for index in range(len(self.names))]
            return Target(self.task, self.names, (*((value, IGNORE) for value in self.ignored), *classes))
        return Target(self.task, self.names) if self.classes is not None else None

    def value(self, cell: Any, folder: Path) -> Any:
        """The target of a cell that is not empty; files are relative to the folder. Raises BadCell."""
        if self.kind == "map":
            file = file_of(cell)
            return folder / file if isinstance(file, str) and file else file
        readers: dict[str, Callable[[Any], Any]] = {
            "class": class_name,
            "labels": partial(labels_of, separator=self.separator),
            "number": number_of,
        }
        return readers[self.kind](cell)

    @property
    def kind(self) -> TargetKind:
        """What the target of the task is."""
        kind: TargetKind = TASKS[self.task].target_kind
        return kind
