"""What the user's own file says of the target: its task, its column, and how the column is read."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator, model_validator

from mmsweep.components import Section, misfit
from mmsweep.data.cells import BadCell, class_name
from mmsweep.tasks.task import TASKS, TargetKind


class TargetColumn(Section):
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
        description="Classes in the order of the outputs; a row with another class is a bad row. null takes the "
        "classes that occur, sorted, numbers by their value.",
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
    def _options_fit_the_task(self) -> TargetColumn:
        if self.signed and self.kind != "number":
            raise misfit(f"{self.task} has no sign", "signed: false, or task: regression")
        if self.classes is not None and self.kind == "number":
            raise misfit(f"{self.task} has no classes", "no such key, or another task", "classes", self.classes)
        if self.classes is not None and self.kind == "class" and len(self.classes) < 2:
            raise misfit("one class leaves nothing to predict", "two classes at least", "classes", self.classes)
        return self

    @property
    def kind(self) -> TargetKind:
        """What the target of the task is."""
        kind: TargetKind = TASKS[self.task].target_kind
        return kind
