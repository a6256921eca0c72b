"""The study's search: dimensions as they are read, and what cannot be searched or swept."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmsweep.errors import UserError
from mmsweep.study import Study
from tests.unit.study_helpers import changed, small_file


@pytest.fixture()
def file(tmp_path: Path) -> Path:
    return small_file(tmp_path)


def test_dimensions_as_they_are_read(file: Path) -> None:
    search = Study.load(file).search
    assert {key: d.kind for key, d in search.items()} == {
        "method.align_weight": "log_uniform",
        "model.lora.rank": "choice",
        "train.epochs": "int",
        "method.masking.probability": "uniform",
    }
    assert (search["train.epochs"].low, search["train.epochs"].high, search["train.epochs"].step) == (2, 6, 2)
    assert search["model.lora.rank"].edges() == [1, 2, 4] and search["method.align_weight"].edges() == [0.01, 1]
    assert search["method.masking.probability"].when == {"method.name": "cmpt"}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{uniform: [0, 1], choice: [1]}", "exactly one of uniform"),
        ("{}", "exactly one of uniform"),
        ("{uniform: [1, 0]}", "a lower bound below the upper"),
        ("{uniform: [1, 1]}", "a lower bound below the upper"),
        ("{log_uniform: [0, 1]}", "a lower bound above 0"),
        ("{uniform: [0, 1, 2]}", "uniform"),
        ("{choice: []}", "at least 1"),
        ("{choise: [1]}", "Did you mean 'choice'?"),
        ("{uniform: [0, .inf]}", "finite"),
        ("{uniform: [0, 1], step: 0}", "greater than 0"),
        ("{uniform: [0, 1], when: {method.nome: cmpt}}", "`when` names an unknown key"),
        ("[0, 1]", "search.method.align_weight"),
        ("{log_uniform: [0.1, 1], step: 0.1}", "step has no meaning for log_uniform; found 0.1"),
        ("{log_int: [1, 8], step: 2}", "step has no meaning for log_int"),
        ("{choice: [0.1, 0.2], step: 0.1}", "step has no meaning for choice"),
        ("{int: [0, 8], step: 0.5}", "the step of an int dimension is not a whole number; found 0.5"),
        ("{int: [0, 8], step: 2.5}", "the step of an int dimension is not a whole number; found 2.5"),
        ("{uniform: [0, 1], step: 2}", "the step is wider than the range"),
        ("{int: [no, 8]}", "not true or false"),
        ("{int: [1.5, 8]}", "fractional part"),
        ("{choice: [1, true]}", "a choice that stands twice"),
        ("{choice: [1, 1.0]}", "a choice that stands twice"),
    ],
)
def test_wrong_dimensions(file: Path, line: str, words: str) -> None:
    changed(file, "{log_uniform: [1e-2, 1]}", line)
    with pytest.raises(UserError) as problem:
        Study.load(file)
    assert words in str(problem.value), str(problem.value)
    assert problem.value.file == file and problem.value.line == 21


def test_a_misspelt_key_in_the_search_is_an_unknown_key(file: Path) -> None:
    changed(file, "method.align_weight: {log", "method.align_wieght: {log")
    with pytest.raises(UserError, match=r"align_wieght: unknown key.*Did you mean 'align_weight'") as problem:
        Study.load(file)
    assert problem.value.line == 21


@pytest.mark.parametrize("key", ["sweep.trials", "resources.cpus", "name", "scenarios.evaluate", "tracking.uri"])
def test_what_cannot_be_searched(file: Path, key: str) -> None:
    with pytest.raises(UserError, match="cannot be searched") as problem:
        Study.load(changed(file, "model.lora.rank: {choice: [1, 2, 4]}", f"{key}: {{choice: [1]}}"))
    assert problem.value.key == f"search.{key}" and problem.value.line == 22


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["sweep.seeds=2"], "sweep.seeds"),
        (["sweep.final.per=method.name"], "sweep.final.per"),
        (
            ["sweep.objective=[{metric: val/a/b}, {metric: val/c/d}]", "sweep.scheduler={name: asha}"],
            "sweep.scheduler",
        ),
        (["sweep.sampler.name=grid"], "search.method.align_weight"),
        (["train.schedule.warmup_epochs=1", "sweep.scheduler={name: asha}"], "sweep.scheduler.grace_epochs"),
        (["train.schedule.warmup_epochs=10"], "train.schedule.warmup_epochs"),
    ],
)
def test_sweeps_that_cannot_be(file: Path, overrides: list[str], key: str) -> None:
    with pytest.raises(UserError) as problem:
        Study.load(file, overrides)
    assert problem.value.key == key


def test_warmup_in_steps_is_not_held_against_asha(file: Path) -> None:
    overrides = ["train.schedule={warmup_epochs: 1, warmup_steps: 3}", "sweep.scheduler={name: asha, grace_epochs: 1}"]
    assert Study.load(file, overrides).sweep.scheduler.grace_epochs == 1
