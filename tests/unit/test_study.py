"""The study file: what is read is what was written; overrides, environment, numbers, lines, values of trials."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import mmsweep
from mmsweep.errors import UserError
from mmsweep.study import Study
from mmsweep.study.source import Source
from tests.unit.study_helpers import changed, small_file


@pytest.fixture()
def file(tmp_path: Path) -> Path:
    return small_file(tmp_path)


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
