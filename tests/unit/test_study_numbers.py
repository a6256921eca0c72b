"""Numbers without sense, which the study refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from mmsweep.errors import UserError
from mmsweep.study import Study
from mmsweep.study.search import Dimension
from mmsweep.study.study import CHOICES
from tests.unit.study_helpers import small_file


@pytest.fixture()
def file(tmp_path: Path) -> Path:
    return small_file(tmp_path)


@pytest.mark.parametrize(
    "override",
    [
        "resources.hosts=0",
        "resources.hosts=-1",
        "resources.hosts=yes",
        "resources.hosts=1000000",
        "sweep.objective=[]",
        "sweep.objective=[{metric: val/a/b}, {metric: val/c/d}, {metric: val/a/b}]",
        "sweep.trials=1000000000000",
        "sweep.final.seeds=1000000000",
        "train.epochs=1000000000",
        "train.epochs=yes",
        "train.optimizer.betas=[true, 0.9]",
        "train.seed=4294967296",
        "data.text.length=99999999999",
        "sweep.budget.hours=1e300",
        "model.lora.alpha=1e300",
    ],
)
def test_numbers_that_make_no_sense(file: Path, override: str) -> None:
    with pytest.raises(UserError) as problem:
        Study.load(file, [override])
    assert problem.value.key == override.partition("=")[0] and problem.value.file == "command line"


def test_every_number_of_the_schema_has_an_upper_bound() -> None:
    """Whatever field is added: 10^12 is refused, and true is no number."""

    def numbers(schema: type[Any], seen: tuple[type[Any], ...] = ()) -> Any:
        for name, info in schema.model_fields.items():
            kinds = str(info.annotation)
            if schema is not Dimension and ("int" in kinds or "float" in kinds) and "dict" not in kinds:
                yield schema, info.alias or name
            for model in models(info.annotation):
                if model not in seen:
                    yield from numbers(model, (*seen, model))

    def models(annotation: Any) -> list[type[Any]]:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return [annotation]
        return [model for argument in get_args(annotation) for model in models(argument)]

    sections = [Study, *(choice.registry.section(name) for choice in CHOICES for name in choice.registry)]
    found = {number for section in sections for number in numbers(section)}
    assert len(found) > 70
    for schema, name in found:
        for value in (10**12, 1e300, True):
            with pytest.raises(ValidationError) as problem:
                schema.model_validate({name: value})
            assert any(error["loc"][:1] == (name,) for error in problem.value.errors()), (schema, name, value)


@pytest.mark.parametrize("alpha", ["0", "-1", "rnk", "true", ".inf", ".nan", "null", "[1]"])
def test_alpha_is_rank_or_a_number_above_0(file: Path, alpha: str) -> None:
    for override in (f"model.lora.alpha={alpha}", f"model.lora={{rank: 2, alpha: {alpha}}}"):
        with pytest.raises(UserError, match=r"rank, or a number above 0|not true or false|a finite number") as error:
            Study.load(file, [override])
        assert (error.value.key or "").startswith("model.lora")  # that NaN is none is known of the section


def test_alpha_stands_for_a_number(file: Path) -> None:
    """Of a trial's own rank; a study that was written with a number keeps it."""
    study = Study.load(file)
    for rank in (1, 2, 4):
        lora = study.with_values({"model.lora.rank": rank}).model.lora
        assert lora is not None and (lora.alpha, lora.alpha_in_force) == ("rank", rank)
    kept = Study.parse(study.with_values({"model.lora.alpha": 2, "model.lora.rank": 4}).resolved()).model.lora
    assert kept is not None and (kept.alpha, kept.alpha_in_force) == (2.0, 2.0)
