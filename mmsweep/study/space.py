"""The study's search space: suggestions, starting points and checks."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from typing import Any

from mmsweep.errors import UserError, nearest
from mmsweep.study import Study
from mmsweep.study.search import MOST_COMBINATIONS, Conditions, Dimension, choice_name


class SearchSpace(Conditions):
    """The study's search space as Optuna's define-by-run function.

    >>> SearchSpace(study)(optuna_trial)  # doctest: +SKIP
    {"method.name": "mmp", "method.aggregated_tokens": 8}

    A dimension with `when` is suggested only if its condition holds for the values suggested so far, or for the
    study's value of a key that is not searched.
    """

    def __init__(self, study: Study) -> None:
        super().__init__(study.search, study.value)

    def __call__(self, trial: Any) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, dimension in self.dimensions.items():
            if self.holds(dimension, values):
                values[key] = self._suggest(trial, key, dimension)
        return values

    def _suggest(self, trial: Any, key: str, dimension: Dimension) -> Any:
        if dimension.kind == "choice":
            names = [choice_name(choice) for choice in dimension.choices]
            return dimension.choices[names.index(trial.suggest_categorical(key, names))]
        if dimension.kind in ("int", "log_int"):
            low, high, step = int(dimension.low), int(dimension.high), int(dimension.step or 1)
            return trial.suggest_int(key, low, high, step=step, log=dimension.kind == "log_int")
        return trial.suggest_float(
            key, dimension.low, dimension.high, step=dimension.step, log=dimension.kind == "log_uniform"
        )

    def untried(self, tried: Collection[str]) -> list[dict[str, Any]] | None:
        """Configurations whose `identity` was not tried; None if the space is too large to list."""
        if math.prod(d.count for d in self.dimensions.values()) > MOST_COMBINATIONS:
            return None
        return [values for values in self.grid() if identity(values) not in tried]

    def point(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Values in the form in which Optuna enqueues them: only keys whose conditions hold, choices by name.

        Raises:
            UserError: a value lies outside of its dimension.
        """
        chosen: dict[str, Any] = {}
        for key, dimension in self.dimensions.items():
            if key in values and self.holds(dimension, chosen):
                _check_inside(key, dimension, values[key])
                chosen[key] = values[key]
        return {k: choice_name(v) if self.dimensions[k].kind == "choice" else v for k, v in chosen.items()}


def _check_inside(key: str, dimension: Dimension, value: Any) -> None:
    if dimension.contains(value):
        return
    if dimension.kind == "choice":
        expected = str(dimension.choices)
    else:
        whole = "whole number" if dimension.kind in ("int", "log_int") else "value"
        steps = f" in steps of {dimension.step:g} from {dimension.low:g}" if dimension.step else ""
        expected = f"a {whole} in [{dimension.low:g}, {dimension.high:g}]{steps}"
    raise UserError(
        "a starting point lies outside of the search space",
        key=f"search.{key}",
        found=value,
        expected=expected,
        hint="Widen the search, change the value, or take `current` out of sweep.start_from.",
    )


def identity(params: Mapping[str, Any]) -> str:
    """A text that is equal for equal configurations; floats are compared to twelve digits."""
    return json.dumps({k: f"{v:.12g}" if isinstance(v, float) else v for k, v in params.items()}, sort_keys=True)


def starting_points(study: Study) -> list[dict[str, Any]]:
    """The first configurations to try: `sweep.start_from`, or the whole grid.

    Raises:
        UserError: a key is not searched, or a value lies outside of its dimension.
    """
    space, given = SearchSpace(study), study.sweep.start_from
    if study.sweep.sampler.name == "grid":
        if any(isinstance(point, dict) for point in given):
            raise UserError("a grid has no starting points: it tries every combination", key="sweep.start_from")
        return [space.point(values) for values in space.grid()]
    if len(given) > study.sweep.trials:
        raise UserError(
            "more starting points than trials", key="sweep.start_from", found=len(given),
            expected=f"at most {study.sweep.trials} (sweep.trials)",
        )  # fmt: skip
    current = {key: study.value(key) for key in study.search} if given else {}
    return [
        _given_point(space, current, point, f"sweep.start_from.{index}")
        if isinstance(point, dict)
        else space.point(current)
        for index, point in enumerate(given)
    ]


def _given_point(
    space: SearchSpace, current: Mapping[str, Any], given: Mapping[str, Any], place: str
) -> dict[str, Any]:
    """The study's values, updated with given ones. Raises UserError if one of these would have no effect."""
    for key in given:
        if key not in space.dimensions:
            raise UserError(
                "this key is not searched", key=f"{place}.{key}", found=key,
                expected=f"one of {', '.join(space.dimensions)}",
                hint=nearest(key, space.dimensions, 0.5),
            )  # fmt: skip
        try:
            _check_inside(key, space.dimensions[key], given[key])
        except UserError as problem:
            raise problem.placed(key=f"{place}.{key}", hint=None) from None
    point = space.point({**current, **given})
    for key in given:
        if key not in point:
            raise UserError(
                "this key is not searched beside the other values", key=f"{place}.{key}", found=given[key],
                expected=f"values that meet {space.dimensions[key].when}",
            )  # fmt: skip
    return point


def check_search(study: Study) -> None:
    """Refuse a search space whose values would be refused or changed when the sweep runs.

    Raises:
        UserError: names the key.
    """
    if study.sweep.duplicates == "reseed" and "train.seed" in study.search:
        raise UserError(
            "a searched train.seed cannot be changed for a suggestion that repeats", key="sweep.duplicates",
            found="reseed", expected="skip",
        )  # fmt: skip
    for key, dimension in study.search.items():
        _check_place(study, key)
        _check_condition(study, key, dimension)
    space = SearchSpace(study)
    for key, dimension in space.dimensions.items():
        for value in dimension.samples():
            try:
                study.configured({**condition_values(study, key), key: value})
            except UserError as error:
                raise UserError(
                    f"the search space holds an impossible value ({error.problem})", key=f"search.{key}", found=value,
                    expected=error.expected, hint=error.hint,
                ) from None  # fmt: skip
    starting_points(study)


def condition_values(study: Study, key: str) -> dict[str, Any]:
    """Values of other searched keys that satisfy a key's condition (`when`) and the conditions of these keys."""
    values: dict[str, Any] = {}
    for other, wanted in study.search[key].when.items():
        if other in study.search:
            options = wanted if isinstance(wanted, list) else [wanted]
            values |= {
                **condition_values(study, other),
                other: next(w for w in options if study.search[other].contains(w)),
            }
    return values


def _check_place(study: Study, key: str) -> None:
    """Refuse a searched key without a value in the study, or within another searched key."""
    parts = key.split(".")
    for n in range(1, len(parts)):
        parent = ".".join(parts[:n])
        if parent in study.search:
            raise UserError("a searched key within another one", key=f"search.{key}", found=parent)
        if n > 1 and _value(study, parent) is None:
            raise UserError(
                f"{parent} is null, so nothing in it can be searched", key=f"search.{key}",
                expected=f"a section {parent}",
            )  # fmt: skip
    try:
        study.value(key)
    except KeyError:
        raise UserError(
            "this key has no value in the study", key=f"search.{key}", expected=f"{key} with the value to start from"
        ) from None


def _value(study: Study, key: str) -> Any:
    try:
        return study.value(key)
    except KeyError:
        return {}


def _check_condition(study: Study, key: str, dimension: Dimension) -> None:
    """Refuse a condition with an impossible value, under which the key would never be searched."""
    for other, wanted in dimension.when.items():
        options = wanted if isinstance(wanted, list) else [wanted]
        if other in study.search:
            strange = [w for w in options if not study.search[other].contains(w)]
            expected = f"values of search.{other}"
        else:
            value = study.value(other)
            strange = [] if value in options else options
            expected = f"{value!r}, which is its value, or a search over {other}"
        if strange or not options:
            raise UserError(
                "a condition that never holds", key=f"search.{key}.when.{other}", found=strange[0] if strange else [],
                expected=expected,
            )  # fmt: skip
