"""What cannot be searched, and what a dimension's values are."""

from __future__ import annotations

from typing import Any

import optuna
import pytest

from mmsweep.errors import UserError
from mmsweep.study.search import Dimension
from mmsweep.study.space import SearchSpace, check_search
from tests.unit.search_helpers import searched

pytestmark = pytest.mark.long


def test_a_step_counts_in_decimal_numbers() -> None:
    for dimension, count in [
        ({"uniform": [0, 0.9], "step": 0.1}, 10),
        ({"uniform": [0, 1], "step": 0.3}, 4),
        ({"int": [1, 8], "step": 2}, 4),
        ({"int": [1, 8]}, 8),
        ({"log_int": [1, 8]}, 8),
    ]:
        assert Dimension.model_validate(dimension).count == count


def test_optuna_samples_what_the_space_says() -> None:
    """The values that `samples` lists are those that Optuna draws, for each kind with a step."""
    for key, dimension in [
        ("train.epochs", {"int": [1, 8], "step": 2}),
        ("train.epochs", {"int": [1, 9], "step": 4}),
        ("method.align_weight", {"uniform": [0, 0.9], "step": 0.25}),
        ("train.epochs", {"log_int": [1, 5]}),
    ]:
        s = searched({key: dimension}, sweep__start_from=[])
        check_search(s)
        told = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
        drawn = {SearchSpace(s)(told.ask())[key] for _ in range(200)}
        assert drawn == set(s.search[key].samples()) and all(map(s.search[key].contains, drawn))


@pytest.mark.parametrize(
    ("search", "values", "key", "words"),
    [
        ({"train.clip_norm": {"uniform": [1, 2]}}, {}, "search.train.clip_norm", "found None; expected a value in [1"),
        ({"model.lora.rank": {"int": [1, 8]}}, {"model__lora": None}, "search.model.lora.rank", "model.lora is null"),
        ({"model.encoders.sound.layers": {"int": [1, 8]}}, {}, "search.model.encoders.sound.layers", "no value"),
        (
            {"train.optimizer.betas": {"choice": [[0.9, 0.99]]}, "train.optimizer": {"choice": [{}]}},
            {},
            "search.train.optimizer.betas",
            "within another one",
        ),
        ({"model.lora.rank": {"uniform": [1, 8]}}, {}, "search.model.lora.rank", "fractional"),
        (
            {"method.projector.width": {"int": [8, 64]}},
            {"method": {"name": "mmp", "projector": {"width": 8}}},
            None,
            "8 heads",
        ),
        ({"train.epochs": {"int": [1, 4], "when": {"method.name": "mmp"}}}, {}, None, "never holds; found 'mmp'"),
        (
            {
                "train.epochs": {"int": [1, 4], "when": {"method.name": ["cmpt", "plian"]}},
                "method.name": {"choice": ["cmpt", "plain"]},
            },
            {},
            "search.train.epochs.when.method.name",
            "found 'plian'",
        ),
        ({"train.epochs": {"int": [1, 4], "when": {"train.epochs": 4}}}, {}, None, "depend on each other"),
        ({"train.epochs": {"int": [1, 3], "step": 2}}, {}, "search.train.epochs", "in steps of 2 from 1"),
    ],
)
def test_spaces_that_cannot_be_searched(
    search: dict[str, Any], values: dict[str, Any], key: str | None, words: str
) -> None:
    values = {"train__epochs": 4, **values}
    with pytest.raises(UserError) as problem:
        check_search(searched(search, **values))
    assert words in str(problem.value)
    assert key is None or problem.value.key == key


@pytest.mark.parametrize(
    ("point", "words"),
    [
        ({"model.lora.rnak": 2}, "sweep.start_from.0.model.lora.rnak: this key is not searched"),
        ({"model.lora.rank": 9}, "sweep.start_from.0.model.lora.rank: a starting point lies outside"),
        ({"model.lora.rank": 2.5}, "expected a whole number in [1, 8]"),
        ({"model.lora.rank": True}, "found True"),
        ({"method.name": "cmpt", "method.aggregated_tokens": 8}, "beside the other values"),
    ],
)
def test_starting_points_that_would_have_no_effect(point: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as problem:
        check_search(searched(sweep__start_from=[point]))
    assert words in str(problem.value)


def test_starting_points_that_would_be_dropped() -> None:
    with pytest.raises(UserError, match="more starting points than trials"):
        check_search(searched(sweep__start_from=["current", {"model.lora.rank": 2}], sweep__trials=1))
    grid = {"model.lora.rank": {"choice": [1, 2]}}
    with pytest.raises(UserError, match="a grid has no starting points"):
        check_search(searched(grid, sweep__start_from=[{"model.lora.rank": 2}], sweep__sampler__name="grid"))


def test_a_grid_of_billions_is_refused_before_it_is_laid_out() -> None:
    choices = {"choice": list(range(1, 901))}
    keys = ("train.seed", "scenarios.seed", "train.batch_size")
    with pytest.raises(UserError, match=r"too many combinations for a grid; found '810,000 with"):
        check_search(searched(dict.fromkeys(keys, choices), sweep__sampler__name="grid"))
