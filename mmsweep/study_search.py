"""The part of the study file that concerns the sweep: dimensions of the search space, objective, sampler, scheduler."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from mmsweep.errors import UserError
from mmsweep.study_source import Section, misfit


class Dimension(Section):
    """One line of the search space: one of uniform, log_uniform, int, log_int, choice; `when` makes it conditional."""

    uniform: tuple[float, float] | None = Field(None, description="a number within the bounds")
    log_uniform: tuple[float, float] | None = Field(None, description="its logarithm is uniform")
    int_: tuple[int, int] | None = Field(None, alias="int", description="a whole number, bounds included")
    log_int: tuple[int, int] | None = Field(None, description="a whole number, its logarithm uniform")
    choice: list[Any] | None = Field(None, min_length=1, description="one of these values")
    step: float | None = Field(None, gt=0, description="of uniform and int: from the lower bound on")
    when: dict[str, Any] = Field(
        default_factory=dict, description="key: value or list of values under which it is searched"
    )

    @model_validator(mode="after")
    def _one_kind(self) -> Dimension:
        kinds = [k for k in ("uniform", "log_uniform", "int_", "log_int", "choice") if getattr(self, k) is not None]
        if len(kinds) != 1:
            raise misfit("not a dimension", "exactly one of uniform, log_uniform, int, log_int, choice")
        if self.choice is None and not self.low < self.high:
            raise misfit("an empty range", "a lower bound below the upper bound")
        if kinds[0].startswith("log") and self.low <= 0:
            raise misfit("a logarithmic range that reaches 0", "a lower bound above 0")
        return self

    @property
    def count(self) -> float:
        """How many values there are; infinitely many of a continuous one."""
        if self.choice is not None:
            return len(self.choice)
        step = self.step or (1 if self.kind in ("int", "log_int") else 0)
        return 1 + (self.high - self.low) // step if step else math.inf

    @property
    def kind(self) -> Literal["uniform", "log_uniform", "int", "log_int", "choice"]:
        for name in ("uniform", "log_uniform", "log_int", "choice"):
            if getattr(self, name) is not None:
                return name  # type: ignore[return-value]
        return "int"

    @property
    def low(self) -> float:
        return (self.uniform or self.log_uniform or self.int_ or self.log_int or (0.0, 0.0))[0]

    @property
    def high(self) -> float:
        return (self.uniform or self.log_uniform or self.int_ or self.log_int or (0.0, 0.0))[1]

    @property
    def choices(self) -> list[Any]:
        return list(self.choice or [])

    def edges(self) -> list[Any]:
        """Values that must be valid for the whole range to be: the bounds, or every choice."""
        return self.choices if self.choice is not None else [self.low, self.high]


class Conditions:
    """Which dimensions of a search space are searched beside which values (`when`).

    Args:
        search: key -> dimension.
        current: gives the study's own value of a key, which counts where that key is not searched.

    Attributes:
        dimensions: the search space, what others depend on first.

    Raises:
        UserError: dimensions that depend on each other.
    """

    def __init__(self, search: Mapping[str, Dimension], current: Callable[[str], Any]) -> None:
        self.dimensions = _conditions_first(search)
        self._current = {key: current(key) for dimension in search.values() for key in dimension.when}

    def holds(self, dimension: Dimension, values: Mapping[str, Any]) -> bool:
        """Whether a dimension's condition is met by the values chosen so far."""
        for key, wanted in dimension.when.items():
            if key in self.dimensions and key not in values:
                return False  # what it depends on is itself switched off
            value = values.get(key, self._current[key])
            if value not in (wanted if isinstance(wanted, list) else [wanted]):
                return False
        return True

    def grid(self) -> list[dict[str, Any]]:
        """Every combination of the choices, each once: a key stands only where its condition holds."""
        points: list[dict[str, Any]] = [{}]
        for key, dimension in self.dimensions.items():
            choices = [choice for i, choice in enumerate(dimension.choices) if choice not in dimension.choices[:i]]
            points = [
                {**point, **added}
                for point in points
                for added in ([{key: choice} for choice in choices] if self.holds(dimension, point) else [{}])
            ]
        return points


def _conditions_first(search: Mapping[str, Dimension]) -> dict[str, Dimension]:
    ordered: dict[str, Dimension] = {}
    waiting = dict(search)
    while waiting:
        free = [key for key, dimension in waiting.items() if not set(dimension.when) & set(waiting)]
        if not free:
            raise UserError("conditions that depend on each other", key=f"search.{next(iter(waiting))}.when")
        ordered.update({key: waiting.pop(key) for key in free})
    return ordered


class Objective(Section):
    metric: str = Field("val/mean_missing/f1_macro", description="val/scenario/metric; mean_missing, worst_missing too")
    mode: Literal["max", "min"] = Field("max", description="what is better")
    scope: Literal["best", "last"] = Field("best", description="a trial's score: of its best epoch, or of its last")

    @field_validator("metric")
    @classmethod
    def _validation_only(cls, metric: str) -> str:
        if not metric.startswith("val/"):
            raise misfit("selection is on validation only", "a metric that starts with val/")
        return metric


class Sampler(Section):
    name: Literal["tpe", "random", "grid", "gp", "nsgaii"] = Field(
        "tpe", description="Optuna's; grid: every combination"
    )
    seed: int = Field(0, ge=0, description="of what it suggests")


class Scheduler(Section):
    name: Literal["asha", "median", "none"] = Field("asha", description="which stops weak trials early; none: no trial")
    grace_epochs: int = Field(1, ge=1, description="epochs before a trial is judged; more than the warm-up")
    reduction_factor: int = Field(3, ge=2, description="asha: one of so many goes on at each rung")


class Budget(Section):
    hours: float | None = Field(
        None, gt=0, description="the search ends after so many, the final runs not counted; null: no limit"
    )


class Final(Section):
    seeds: int = Field(3, ge=1, description="training seeds of the winner, none of which the sweep has used")
    per: str | list[str] | None = Field(
        None, description="searched keys: the best configuration of each of their (combined) values is re-trained"
    )

    @property
    def keys(self) -> list[str]:
        """`per` as a list."""
        return [self.per] if isinstance(self.per, str) else list(self.per or [])


class Sweep(Section):
    trials: int = Field(20, ge=1, description="configurations that are trained; a grid counts its own")
    objective: Objective | list[Objective] = Field(Objective(), description="what is best; a list: a Pareto front")
    sampler: Sampler = Field(Sampler(), description="who suggests configurations")
    seeds: int = Field(1, ge=1, description="training seeds of a configuration; 1 in this version")
    scheduler: Scheduler = Field(Scheduler(name="none"), description="who stops weak trials")
    start_from: list[Literal["current"] | dict[str, Any]] = Field(
        ["current"], description="the first trials: current is the file's own values; or key: value"
    )
    budget: Budget = Field(Budget(), description="when the sweep ends at the latest")
    final: Final | None = Field(Final(), description="the winner, trained again and read on test; null: not")

    @property
    def objectives(self) -> list[Objective]:
        return self.objective if isinstance(self.objective, list) else [self.objective]
