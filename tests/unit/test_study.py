"""The study file: what is read is what was written; overrides, environment, numbers, lines, values of trials."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel, ValidationError

import mmsweep
from mmsweep.errors import UserError
from mmsweep.study import Study
from mmsweep.study.search import Dimension
from mmsweep.study.source import Source
from mmsweep.study.study import CHOICES

TEXT = """\
name: small
data: {dataset: openclipart, text: {length: 24}}
model:
  encoders:
    image: {source: mmsweep, name: clipart_image}
    text:
      source: mmsweep
      name: clipart_text
method:
  name: cmpt
  align_weight: 2e-1
train:
  optimizer: {lr: 1E-3, weight_decay: .5}
  schedule: {power: 9.0e-1}
scenarios:
  evaluate:
    - complete
    - {missing: text}
    - {available: {image: 1.0, text: 0.3}}
search:
  method.align_weight: {log_uniform: [1e-2, 1]}
  model.lora.rank: {choice: [1, 2, 4]}
  train.epochs: {int: [2, 6], step: 2}
  method.masking.probability: {uniform: [0, 0.9], when: {method.name: cmpt}}
"""


@pytest.fixture()
def file(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(TEXT)
    return path


def changed(file: Path, old: str, new: str) -> Path:
    text = file.read_text()
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))
    return file


# ---- round trip


def test_what_is_resolved_gives_the_same_study(file: Path, tmp_path: Path) -> None:
    study = Study.load(file)
    assert Study.parse(study.resolved()) == study
    assert Study.parse(json.loads(json.dumps(study.resolved()))) == study  # through a job's JSON
    again = tmp_path / "elsewhere" / "again.yaml"
    again.parent.mkdir()
    again.write_text(study.to_yaml())
    assert Study.load(again) == study and Study.load(again).to_yaml() == study.to_yaml()


def test_a_place_from_the_environment_is_written_by_its_variable(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_DATA", str(tmp_path / "secret-place"))
    monkeypatch.setenv("MY_RATE", "0.25")
    uri, rate = "tracking.uri=http://ann:${PASSWORD_THAT_IS_NOT_SET}@host", "method.align_weight=${MY_RATE}"
    study = Study.load(file, ["data={dataset: food101}", "data.root=${MY_DATA}/raw", uri, rate])
    assert study.data.root == str(tmp_path / "secret-place" / "raw")
    again = tmp_path / "again.yaml"
    for written in (study, study.with_values({"train.seed": 3})):
        text = written.to_yaml()
        assert "secret-place" not in text and "${MY_DATA}/raw" in text and "${PASSWORD_THAT_IS_NOT_SET}" in text
        assert "align_weight: 0.25" in text  # what decides the result is kept by value
        again.write_text(text)
        assert Study.load(again).resolved() == written.resolved()
    assert "${MY_DATA}" not in study.with_values({"data.root": "/other"}).to_yaml()
    assert "hunter2" not in Study.load(file, ["tracking.uri=http://ann:hunter2@host"]).to_yaml()


def test_defaults_are_in_what_is_resolved(file: Path) -> None:
    resolved = Study.load(file).resolved()
    assert resolved["train"]["schedule"] == {
        "name": "polynomial",
        "power": 0.9,
        "warmup_epochs": 0.0,
        "warmup_steps": None,
        "warmup": "linear",
        "warmup_ratio": 0.1,
    }
    assert resolved["sweep"]["final"] == {"seeds": 3, "per": None}
    assert set(resolved["search"]["train.epochs"]) >= {"int", "step"}  # as the file spells it, not as Python must


def test_the_digest_is_of_the_content(file: Path, tmp_path: Path) -> None:
    digest = Study.load(file).digest()
    values = yaml.safe_load(Study.load(file).to_yaml())
    turned = tmp_path / "turned.yaml"
    turned.write_text(yaml.safe_dump(dict(reversed(values.items())), sort_keys=False))
    assert Study.load(turned).digest() == digest  # order of keys, place of the file, defaults written out
    assert Study.load(file, ["train.seed=1"]).digest() != digest
    assert len(digest) == 16 and digest == Study.parse(values).digest()


def test_the_digest_does_not_depend_on_the_process(file: Path) -> None:
    program = f"from mmsweep.study import Study; print(Study.load({str(file)!r}).digest())"
    for hash_seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(Path(mmsweep.__file__).parents[1])}
        said = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
        assert said.stdout.strip() == Study.load(file).digest()


# ---- numbers, overrides, environment, paths


def test_scientific_notation_is_a_number(file: Path) -> None:
    study = Study.load(file, ["train.optimizer.eps=1e-08", "train.clip_norm=1E2"])
    assert study.method.align_weight == 0.2
    assert (study.train.optimizer.lr, study.train.optimizer.weight_decay) == (1e-3, 0.5)
    assert (study.train.optimizer.eps, study.train.clip_norm) == (1e-8, 100.0)
    assert study.search["method.align_weight"].low == 0.01


@pytest.mark.parametrize("text", ["1.5.2", "e3", "1e", "0x1F"])
def test_what_looks_like_a_number_but_is_none_stays_as_yaml_has_it(text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(f"a: {text}\n")
    assert Source.read(path).values["a"] == yaml.safe_load(text)


def test_overrides_are_yaml_and_win(file: Path) -> None:
    study = Study.load(
        file,
        [
            "train.epochs=2",
            "model.encoders.text.layers=1",
            "model.lora=null",
            "scenarios.evaluate=[complete, {missing: image}]",
            "name=other",
            "sweep.budget.hours=0.5",  # a section that the file does not have
            "search.train.epochs={choice: [1, 2]}",
            "train.epochs=4",  # the last one counts
        ],
    )
    assert study.train.epochs == 4 and study.name == "other" and study.model.lora is None
    assert study.model.encoders["text"].layers == 1 and study.sweep.budget.hours == 0.5
    assert study.scenarios.evaluate == ["complete", {"missing": "image"}]
    assert study.search["train.epochs"].choices == [1, 2] and len(study.search) == 4


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.epochs", "expected key=value"),
        ("=3", "expected key=value"),
        ("train.epochs=[", "not valid YAML"),
        ("name.first=x", "this key has no parts; found 'small'"),
        ("train.epoch=2", "found 'epoch'; expected one of epochs"),
        ("train.epochs=0", "found 0"),
    ],
)
def test_wrong_overrides(file: Path, override: str, words: str) -> None:
    with pytest.raises(UserError) as problem:
        Study.load(file, [override])
    assert words in str(problem.value)


def test_variables_of_the_environment(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed(file, "name: small", "name: ${WHO}-${WHAT}")
    monkeypatch.setenv("WHO", "a")
    monkeypatch.setenv("WHAT", "b")
    assert Study.load(file).name == "a-b"
    monkeypatch.delenv("WHAT")
    with pytest.raises(UserError) as problem:
        Study.load(file)
    assert (problem.value.file, problem.value.line, problem.value.key) == (file, 1, "name")
    assert "export WHAT" in str(problem.value)


def test_data_and_weights_may_wait_for_their_variables(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dry run needs neither; whoever reads them asks again."""
    monkeypatch.delenv("NO_SUCH_ROOT", raising=False)
    changed(file, "dataset: openclipart", 'dataset: food101, root: "${NO_SUCH_ROOT}/x"')
    changed(file, "name: clipart_text", "name: ${NO_SUCH_ROOT}/text")
    study = Study.load(file)
    assert study.data.root == "${NO_SUCH_ROOT}/x" and study.model.encoders["text"].name == "${NO_SUCH_ROOT}/text"
    monkeypatch.setenv("NO_SUCH_ROOT", "/data")
    study = Study.load(file)
    assert study.data.root == "/data/x" and study.model.encoders["text"].name == "/data/text"


def test_paths_are_taken_from_the_files_folder(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed(file, "dataset: openclipart", "dataset: food101, root: ../raw")
    changed(file, "name: clipart_image", "name: ./encoder")
    monkeypatch.chdir("/")
    study = Study.load(file)
    assert study.data.root == str(file.parent.parent / "raw")
    assert study.model.encoders["image"].name == str(file.parent / "encoder")
    assert study.model.encoders["text"].name == "clipart_text"  # a name, not a path


# ---- where things stand


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("name", 1),
        ("data.text.length", 2),
        ("model.encoders.text.name", 8),
        ("model.encoders.text.layers", 6),  # not in the file: the nearest key around it
        ("scenarios.evaluate.1", 18),
        ("scenarios.evaluate.2.available.text", 19),
        ("search.method.align_weight", 21),
        ("search.method.masking.probability.when", 24),
        ("sweep.trials", None),
    ],
)
def test_lines(file: Path, key: str, line: int | None) -> None:
    assert Source.read(file).place(key) == {"file": file, "line": line, "key": key}


def test_what_was_overridden_stands_on_the_command_line(file: Path) -> None:
    source = Source.read(file, ["train.optimizer={lr: 1}", "model.lora.rank=2"])
    for key in ("train.optimizer.lr", "train.optimizer", "model.lora.rank"):
        assert source.place(key) == {"file": "command line", "key": key}
    assert source.place("method.name")["line"] == 10


# ---- a trial's values


def test_with_values_changes_these_and_nothing_else(file: Path) -> None:
    study = Study.load(file)
    before = study.resolved()
    trial = study.with_values({"method.align_weight": 0.5, "model.lora.rank": 4, "model.encoders.text.layers": 2})
    assert study.resolved() == before
    expected: dict[str, Any] = json.loads(json.dumps(before))
    expected["method"]["align_weight"], expected["model"]["lora"]["rank"] = 0.5, 4
    expected["model"]["encoders"]["text"]["layers"] = 2
    assert trial.resolved() == expected
    assert study.with_values({}) == study
    whole = {"image": {"source": "mmsweep", "name": "a"}, "text": {"source": "mmsweep", "name": "b"}}
    assert study.with_values({"model.encoders": whole}).model.encoders["text"].name == "b"


@pytest.mark.parametrize("values", [{"method.align_weight": -1}, {"method.lambda": 1}, {"train.epochs": 2.5}])
def test_with_values_checks(file: Path, values: dict[str, Any]) -> None:
    with pytest.raises(UserError) as problem:
        Study.load(file).with_values(values)
    assert problem.value.key == next(iter(values))


def test_value_reads_dotted_keys(file: Path) -> None:
    study = Study.load(file)
    assert study.value("method.align_weight") == 0.2 and study.value("train.optimizer.lr") == 1e-3
    assert study.value("model.encoders.text.name") == "clipart_text"
    for key in ("method.lambda", "train.epochs.x", ""):
        with pytest.raises(KeyError):
            study.value(key)


# ---- the search space


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
        ("{int: [0, 8], step: 0.5}", "the step between whole numbers is no whole number; found 0.5"),
        ("{int: [0, 8], step: 2.5}", "the step between whole numbers is no whole number; found 2.5"),
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


# ---- numbers without sense


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
