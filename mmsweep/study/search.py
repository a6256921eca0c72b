"""The part of the study file that concerns the sweep: dimensions of the search space, objective, sampler, scheduler."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from mmsweep.components import Section, misfit
from mmsweep.errors import UserError
from mmsweep.record.objective import Mode, Objective, direction, metric_of

MOST_COMBINATIONS = 10_000
_FEW = 32


class Dimension(Section):
    """One line of the search space: one of uniform, log_uniform, int, log_int, choice; `when` makes it conditional."""

    uniform: tuple[float, float] | None = Field(None, description="A number within these bounds, uniformly.")
    log_uniform: tuple[float, float] | None = Field(
        None, description="A number within these bounds, uniformly on a logarithmic scale."
    )
    int_: tuple[int, int] | None = Field(
        None, alias="int", description="A whole number within these bounds, both included."
    )
    log_int: tuple[int, int] | None = Field(
        None, description="A whole number within these bounds, uniformly on a logarithmic scale."
    )
    choice: list[Any] | None = Field(None, min_length=1, max_length=1000, description="One of these values.")
    step: float | None = Field(
        None, gt=0, description="Distance between values, counted from the lower bound; for uniform and int only."
    )
    when: dict[str, Any] = Field(
        default_factory=dict,
        description="Other keys with the value, or list of values, under which this key is searched.",
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
        if self.step is not None and self.kind not in ("uniform", "int"):
            raise misfit(f"step has no meaning for {self.kind}", "no step, or uniform or int", "step", self.step)
        if self.step is not None and self.kind == "int" and self.step % 1:
            raise misfit("the step of an int dimension is not a whole number", "a whole number", "step", self.step)
        if self.step is not None and self.step > self.high - self.low:
            raise misfit("the step is wider than the range", f"at most {self.high - self.low:g}", "step", self.step)
        seen: set[Any] = set()
        for name in map(choice_name, self.choices):
            if name in seen:
                raise misfit("a choice that stands twice", "different values (1, 1.0 and true are one)", "choice", name)
            seen.add(name)
        return self

    @property
    def count(self) -> float:
        """Number of values; infinite if continuous."""
        if self.choice is not None:
            return len(self.choice)
        step = self.step or (1 if self.kind in ("int", "log_int") else 0)
        return 1 + _whole_steps(self.low, self.high, step) if step else math.inf

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

    def contains(self, value: Any) -> bool:
        """Whether a value can be suggested."""
        if self.choice is not None:
            return any(c == value and isinstance(c, bool) == isinstance(value, bool) for c in self.choice)
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.low <= value <= self.high:
            return False
        if self.kind in ("int", "log_int") and value % 1:
            return False
        if self.step is None:
            return True
        steps = (value - self.low) / self.step
        return abs(steps - round(steps)) < 1e-6

    def values(self) -> list[Any]:
        """All values of a finite dimension."""
        if self.choice is not None:
            return list(self.choice)
        step = self.step or 1
        values = [self.low + step * n for n in range(int(self.count))]
        return [int(value) for value in values] if self.kind in ("int", "log_int") else values

    def samples(self) -> list[Any]:
        """Representative values for checks: all of them if there are few, otherwise spread over the range."""
        if self.choice is not None or self.count <= _FEW:
            return self.values()
        if self.count == math.inf:  # fractions that are unlikely to give round numbers
            return [self.low, *(self.low + (self.high - self.low) * f for f in (0.1618, 0.3819, 0.7071)), self.high]
        last, step = int(self.count) - 1, self.step or 1
        values = [self.low + step * n for n in sorted({1, *(last * k // _FEW for k in range(_FEW + 1))})]
        return [int(value) for value in values] if self.kind in ("int", "log_int") else values

    def edges(self) -> list[Any]:
        """The values that decide whether a dimension is valid: the bounds of a range, or every choice."""
        return self.choices if self.choice is not None else [self.low, self.high]


def choice_name(choice: Any) -> Any:
    """A choice in the form that Optuna stores: plain values unchanged, lists and mappings as JSON."""
    plain = choice is None or isinstance(choice, str | int | float | bool)
    return choice if plain else json.dumps(choice, sort_keys=True)


def _whole_steps(low: float, high: float, step: float) -> int:
    """How often a step fits into a range, in decimal arithmetic: 0.1 fits nine times into 0 to 0.9."""
    return int((Decimal(str(high)) - Decimal(str(low))) // Decimal(str(step)))


class Conditions:
    """The conditions (`when`) under which the dimensions of a search space are searched.

    Args:
        search: key -> dimension.
        current: returns the study's value of a key, which counts if the key is not searched.

    Attributes:
        dimensions: the search space, ordered so that conditions refer to earlier dimensions.

    Raises:
        UserError: dimensions depend on each other.
    """

    def __init__(self, search: Mapping[str, Dimension], current: Callable[[str], Any]) -> None:
        self.dimensions = _conditions_first(search)
        self._current = {key: current(key) for dimension in search.values() for key in dimension.when}

    def holds(self, dimension: Dimension, values: Mapping[str, Any]) -> bool:
        """Whether the values chosen so far meet a dimension's condition."""
        for key, wanted in dimension.when.items():
            if key in self.dimensions and key not in values:
                return False  # the key that it depends on is not searched in this configuration
            value = values.get(key, self._current[key])
            if value not in (wanted if isinstance(wanted, list) else [wanted]):
                return False
        return True

    def grid(self) -> list[dict[str, Any]]:
        """Every combination of values once; a key is part of a combination only if its condition holds.

        Raises:
            UserError: there are more than `MOST_COMBINATIONS`.
        """
        points: list[dict[str, Any]] = [{}]
        for key, dimension in self.dimensions.items():
            counts = [dimension.count if self.holds(dimension, point) else 1 for point in points]
            if sum(counts) > MOST_COMBINATIONS:
                raise UserError(
                    "too many combinations for a grid", key="search", found=f"{sum(counts):,.0f} with {key}",
                    expected=f"at most {MOST_COMBINATIONS:,}", hint="Take out choices, or use another sampler.",
                )  # fmt: skip
            values = dimension.values()
            points = [
                {**point, **added}
                for point in points
                for added in ([{key: value} for value in values] if self.holds(dimension, point) else [{}])
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


_SIZE = {"max": "larger", "min": "smaller"}


class ObjectiveOptions(Section):
    metric: str = Field(
        "val/mean_missing/f1_macro",
        description="What trials are ranked by: val/scenario/metric. mean_missing and worst_missing are scenarios too.",
    )
    mode: Mode = Field(
        None,  # type: ignore[arg-type]  # the validator below puts the metric's direction here
        description="Whether the largest value is the best (max) or the smallest (min). Null, the default, follows the "
        "metric; a value that contradicts the metric is refused.",
    )
    scope: Literal["best", "last"] = Field(
        "best", description="Whether a trial's score is that of its best epoch or of its last one."
    )

    @field_validator("metric")
    @classmethod
    def _validation_only(cls, metric: str) -> str:
        if not metric.startswith("val/"):
            raise misfit("selection is on validation only", "a metric that starts with val/")
        return metric

    @field_validator("mode", mode="before")
    @classmethod
    def _as_the_metric_says(cls, mode: Any, info: ValidationInfo) -> Any:
        name = str(info.data.get("metric", ""))
        known = metric_of(name)
        if mode is None:
            return direction(name)
        if known is not None and mode in ("max", "min") and mode != known.mode:
            problem = f"mode {mode} would select the worst trial: a {_SIZE[known.mode]} {known.label} is better"
            raise misfit(problem, f"{known.mode}, or no mode: it follows from the metric")
        return mode


class Sampler(Section):
    name: Literal["tpe", "random", "grid", "gp", "nsgaii"] = Field(
        "tpe", description="Sampler of Optuna that suggests configurations; grid tries every combination."
    )
    seed: int = Field(0, ge=0, description="Seed of the suggestions.")


class Scheduler(Section):
    name: Literal["asha", "median", "none"] = Field(
        description="Which rule stops weak trials early; none stops no trial. A scheduler section must name it."
    )
    grace_epochs: int = Field(
        1, ge=1, description="Epochs before a trial is first judged; must exceed the warm-up. For asha and median."
    )
    reduction_factor: int = Field(3, ge=2, description="For asha: one trial of this many continues at each rung.")


class Budget(Section):
    hours: float | None = Field(
        None,
        gt=0,
        le=100_000,
        description="Hours after which the search ends, the final runs not counted; null: no limit.",
    )


class Final(Section):
    seeds: int = Field(
        3, ge=1, le=1000, description="Training seeds with which the winner is trained again; none was used before."
    )
    per: str | list[str] | None = Field(
        None,
        description="One or several searched keys: the best configuration of each of their (combined) values "
        "is trained again.",
    )

    @property
    def keys(self) -> list[str]:
        """`per` as a list."""
        return [self.per] if isinstance(self.per, str) else list(self.per or [])


class Sweep(Section):
    trials: int = Field(
        20, ge=1, le=100_000, description="Configurations that are trained; a grid trains every combination instead."
    )
    objective: ObjectiveOptions | list[ObjectiveOptions] = Field(
        ObjectiveOptions(),
        description="What makes a configuration the best; a list of objectives gives a Pareto front.",
    )
    sampler: Sampler = Field(Sampler(), description="The rule that suggests configurations.")
    seeds: int = Field(1, ge=1, description="Training seeds of each configuration; this version takes 1 only.")
    duplicates: Literal["skip", "reseed"] = Field(
        "skip",
        description="What happens to a suggestion that was trained before. skip tells Optuna the known score and asks "
        "for another; reseed trains it again with another train.seed.",
    )
    scheduler: Scheduler = Field(Scheduler(name="none"), description="The rule that stops weak trials early.")
    start_from: list[Literal["current"] | dict[str, Any]] = Field(
        ["current"],
        description="First trials of the sweep: current stands for the file's own values; a mapping gives "
        "values by key.",
    )
    budget: Budget = Field(Budget(), description="When the search ends at the latest.")
    final: Final | None = Field(
        Final(),
        description="The final runs: the best configuration is trained again over several seeds and scored on "
        "test. null runs none.",
    )

    @field_validator("objective")
    @classmethod
    def _some_objective(cls, objective: Any) -> Any:
        if objective == []:
            raise misfit("no objective", "{metric: val/…}, or a list of them")
        metrics = [one.metric for one in objective] if isinstance(objective, list) else []
        if twice := sorted({metric for metric in metrics if metrics.count(metric) > 1}):
            raise misfit(f"an objective stands twice: {', '.join(twice)}", "each metric once")
        return objective

    @property
    def objectives(self) -> list[Objective]:
        declared = self.objective if isinstance(self.objective, list) else [self.objective]
        return [Objective(o.metric, o.mode, o.scope) for o in declared]
