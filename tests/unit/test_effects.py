"""Options that nothing reads are refused by name; what is shared between searched methods, and defaults, are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmsweep.__main__ import main
from mmsweep.assembly.checks import check
from mmsweep.data.options import DATASETS
from mmsweep.errors import UserError
from mmsweep.methods import METHODS
from mmsweep.models.options import BACKBONES
from mmsweep.study import Study
from mmsweep.study.effects import _READERS, _sections_of_kinds, _task_options
from mmsweep.study.packs import count_trials

SPACES = Path(__file__).parents[2] / "search_spaces"


def shipped(name: str, *overrides: str) -> Study:
    return Study.load(SPACES / f"{name}.yaml", overrides)


def refused(study: Study) -> str:
    with pytest.raises(UserError, match="this option has no effect in this study") as problem:
        check(study)
    return str(problem.value.key)


@pytest.mark.parametrize(
    ("name", "override", "words"),
    [
        ("mmp_sequences", "data.audio.frames=100", "a modality of kind audio"),
        ("quickstart", "data.augmentation.random_frames=true", "a modality of kind video"),
        ("quickstart", "data.augmentation.window=64", "a modality of kind raster"),
        ("quickstart", "data.augmentation.scale=[1.0, 2.0]", "a modality of kind raster"),
        ("mmp_sequences", "data.augmentation.crop=[0.5, 1.0]", "kind image, video or raster"),
        ("mmp_sequences", "data.augmentation.flip=true", "kind image, video or raster"),
        ("mmp_earth", "data.augmentation.scale=[1.0, 1.0]", "another factor than 1"),
        ("mmp_sequences", "train.class_weights=balanced", "multi_label, segmentation or single_label"),
        ("quickstart", "train.regression_loss=mse", "task is regression"),
        ("quickstart", "train.standardize_target=false", "task is regression"),
        ("quickstart", "train.hard_pixels=true", "task is segmentation"),
        ("quickstart", "inference.flip=true", "task is segmentation"),
        ("quickstart", "inference.scales=[0.5, 1.0]", "task is segmentation"),
        ("quickstart", "inference.window=64", "task is segmentation"),
        ("quickstart", "scenarios.thresholds=tuned", "task is multi_label"),
        ("mmp_earth", "model.lora={rank: 4}", "a pretrained part that is frozen"),
        ("mmp_sequences", "model.lora={alpha: 4}", "a pretrained part that is frozen"),
        ("mmp_earth", "model.backbone.weights=my.safetensors", "model.backbone.pretrained: true"),
        ("cmpt_kinetics_sounds", "train.schedule.warmup_steps=7", "train.schedule.warmup_steps: null"),
        ("quickstart", "sweep.scheduler={name: median, grace_epochs: 2, reduction_factor: 4}", "name: asha or none"),
        ("quickstart_ablation", "sweep.trials=4", "as many as the grid has combinations"),
        ("quickstart_ablation", "sweep.sampler.seed=4", "sweep.sampler.name: tpe"),
        ("quickstart_ablation", "sweep.start_from=[{train.optimizer.lr: 0.001}]", "sweep.sampler.name: tpe"),
    ],
)
def test_an_option_that_nothing_reads_is_refused(name: str, override: str, words: str) -> None:
    with pytest.raises(UserError) as problem:
        check(shipped(name, override))
    message, key = str(problem.value), str(problem.value.key)
    assert "this option has no effect in this study" in message and words in message
    assert key.startswith(override.partition("=")[0]) or key == "train.schedule.warmup_epochs"


@pytest.mark.parametrize(
    ("method", "option", "value"),
    [
        ("plain", "align_weight", 0.5),
        ("plain", "detach_target", True),
        ("modality_dropout", "align_weight", 0.5),
        ("modality_dropout", "projector", {"heads": 2}),
        ("linear_projection", "aggregated_tokens", 3),
        ("linear_projection", "proxy", {"trainable": False}),
        ("cmpt", "projector", {"positions": True}),
    ],
)
def test_options_of_another_method_are_refused(tiny_study: Study, method: str, option: str, value: Any) -> None:
    values = {**tiny_study.resolved(), "search": {}, "method": {"name": method}}
    check(Study.parse(values))
    values["method"][option] = value
    with pytest.raises(UserError, match=rf"unknown key; found '{option}'; .*It is an option of method ") as problem:
        Study.parse(values)
    assert problem.value.key == f"method.{option}"
    # Where another method that reads it is among the choices, it is shared; each trial takes what its own method knows.
    study = Study.parse({**values, "search": {"method.name": {"choice": sorted({"cmpt", "mmp", method})}}})
    check(study)
    assert Study.parse(study.resolved()) == study and option in study.resolved()["method"]
    for name in ("cmpt", "mmp", method):
        trial, owns = study.with_values({"method.name": name}), name in METHODS.with_option(option)
        assert (option in trial.resolved()["method"]) == owns and (not owns or trial.value(f"method.{option}") != {})


@pytest.mark.parametrize(
    ("name", "override", "key", "owners"),
    [
        ("quickstart", "data.root=/somewhere", "root", "ave, cremad, earth, fmb, food101"),
        ("quickstart", "data.text.field=plot", "text.field", "mmimdb"),
        ("quickstart", "data.split_seed=3", "split_seed", "ave, cremad, fmb, food101, kinetics_sounds, manifest"),
        ("quickstart", "data.audio.language=fr", "audio", "ave, cremad, kinetics_sounds, manifest, tuxpaint"),
        ("quickstart", "data.video.frames=5", "video", "ave, cremad, kinetics_sounds, manifest"),
        ("mmp_sequences", "data.image.fit=pad", "image", "ave, cremad, food101"),
        ("mmp_sequences", "data.text.length=9", "text", "food101"),
        ("mmp_earth", "data.image.size=32", "image", "ave, cremad, food101"),
    ],
)
def test_options_of_another_dataset_are_refused(name: str, override: str, key: str, owners: str) -> None:
    with pytest.raises(UserError, match=rf"unknown key; .*It is an option of dataset {owners}") as problem:
        shipped(name, override)
    assert problem.value.key == f"data.{key}"


def test_a_manifest_reads_only_the_sections_of_its_kinds(tiny_study: Study) -> None:
    for key, words in {"audio.frames": "kind audio", "video.frames": "kind video"}.items():
        with pytest.raises(UserError, match=rf"data.{key}: this option has no effect.*{words}"):
            check(tiny_study.with_values({f"data.{key}": 9}))
    check(tiny_study.with_values({"data.image.size": 16}))


def test_options_of_other_datasets_that_have_their_defaults_are_dropped() -> None:
    """Studies that versions before 0.2 wrote list the options of all datasets."""
    empty = dict.fromkeys(("root", "path", "modalities", "target", "split", "group", "id"))
    sections = {"audio": {"frames": None, "language": None}, "video": {"frames": 3}, "split_seed": 0}
    study = shipped("quickstart")
    listed = Study.parse({**study.resolved(), "data": {**study.resolved()["data"], **empty, **sections}})
    assert listed == study and "audio" not in listed.resolved()["data"]
    field = {"length": 24, "field": None}
    assert Study.parse({**study.resolved(), "data": {**study.resolved()["data"], "text": field}}) == study


def test_a_study_with_another_method_can_be_written_and_read(tiny_study: Study, tmp_path: Path) -> None:
    assert list(tiny_study.search) == ["method.align_weight"]
    for name, searched in (("mmp", ["method.align_weight"]), ("plain", [])):
        other = tiny_study.with_values({"method.proxy.place": "first"}).with_values({"method.name": name})
        (tmp_path / "study.yaml").write_text(other.to_yaml(), encoding="utf-8")
        assert Study.load(tmp_path / "study.yaml") == other and list(other.search) == searched


def test_options_of_other_methods_that_have_their_defaults_are_dropped(tiny_study: Study) -> None:
    """Studies that versions before 0.2 wrote list the options of all methods."""
    everything = {
        "align_weight": None, "absent": "drop", "detach_target": False, "aggregated_tokens": 8,
        "masking": {"probability": 0.667, "granularity": "sample", "distribution": "uniform"},
        "proxy": {"init": "normal", "trainable": True, "place": "last"},
        "projector": {"heads": 8, "width": None, "residual_norm": False, "positions": False},
    }  # fmt: skip
    for name in METHODS:
        study = Study.parse({**tiny_study.resolved(), "search": {}, "method": {"name": name, **everything}})
        assert study.method == METHODS.options(name)


@pytest.mark.parametrize(
    ("name", "override", "owner"),
    [
        ("quickstart", "method.aggregated_tokens=4", "mmp"),
        ("quickstart", "method.projector.heads=4", "mmp"),
        ("mmp_quickstart", "method.proxy.place=first", "cmpt"),
        ("mmp_quickstart", "method.proxy={init: cls}", "cmpt"),
    ],
)
def test_an_option_of_another_method_on_the_command_line_is_refused(name: str, override: str, owner: str) -> None:
    with pytest.raises(UserError, match=f"unknown key; .*It is an option of method {owner}.") as problem:
        shipped(name, override)
    assert problem.value.file == "command line" and override.startswith(str(problem.value.key))


def test_adapters_that_no_method_trains_are_refused(tiny_study: Study) -> None:
    assert tiny_study.model.lora is not None and tiny_study.model.lora.rank == 2
    prompts = Study.parse({**tiny_study.resolved(), "method": {"name": "missing_aware_prompts"}, "search": {}})
    assert refused(prompts) == "model.lora.rank"
    check(prompts.with_values({"model.lora": None}))
    check(prompts.with_values({"method.adapters": True}))
    check(Study.parse({**prompts.resolved(), "search": {"method.name": {"choice": ["cmpt"]}}}))


def test_the_tasks_own_options(tiny_study: Study, tiny_tasks: dict[str, Study]) -> None:
    check(tiny_tasks["multi_label"])
    check(tiny_tasks["regression"].with_values({"train.regression_loss": "mse"}))
    separator = {"data.target": {"task": "single_label", "column": "kind", "separator": ";"}}
    assert refused(tiny_study.with_values(separator)) == "data.target.separator"
    check(tiny_study.with_values({"data.augmentation": {"crop": [0.5, 1.0], "flip": True}}))


def test_the_seed_of_a_rule_of_its_own_takes_the_place_of_the_general_one(tiny_study: Study) -> None:
    carved = {"data.split": {"train": 0.5, "val": 0.25, "test": 0.25, "seed": 2}}
    check(tiny_study.with_values(carved))
    assert refused(tiny_study.with_values({**carved, "data.split_seed": 3})) == "data.split_seed"


@pytest.mark.parametrize("option", [{"warmup": "constant"}, {"warmup_ratio": 0.5}])
def test_a_warm_up_without_a_length_is_refused_unless_it_is_said_to_have_none(
    tiny_values: dict[str, Any], option: dict[str, Any]
) -> None:
    def scheduled(**schedule: Any) -> Study:
        return Study.parse({**tiny_values, "train": {"epochs": 2, "schedule": {**option, **schedule}}})

    assert refused(scheduled()) == f"train.schedule.{next(iter(option))}"
    for length in ({"warmup_epochs": 1}, {"warmup_steps": 2}, {"warmup_epochs": 0}):
        check(scheduled(**length))


def test_what_is_switched_off_for_once_is_not_refused() -> None:
    check(shipped("cmpt_food101", "train.schedule.warmup_epochs=0"))
    check(shipped("quickstart", "sweep.scheduler.name=none"))
    with pytest.raises(UserError, match=r"'method=\{name: modality_dropout\}' 'search=\{\}'"):
        shipped("quickstart", "method.name=modality_dropout")
    check(shipped("quickstart", "method={name: plain}", "search={}"))


def test_options_that_a_value_of_another_switches_off(tiny_study: Study) -> None:
    plain = Study.parse({**tiny_study.resolved(), "search": {}})
    for values, key in (
        ({"train.schedule": {"name": "cosine", "power": 2.0}}, "train.schedule.power"),
        ({"train.schedule": {"warmup_steps": 3, "warmup_epochs": 1}}, "train.schedule.warmup_epochs"),
        ({f"model.encoders.{m}.trainable": True for m in ("image", "text")}, "model.lora.rank"),
    ):
        assert refused(plain.with_values(values)) == key
    image = plain.with_values({"model.encoders.image.trainable": True})
    check(image)  # the text's encoder has adapters
    layernorm = image.with_values({"model.encoders.image.train_layernorm": True})
    assert refused(layernorm) == "model.encoders.image.train_layernorm"
    check(plain.with_values({"train.schedule": {"warmup_epochs": 1, "warmup": "constant", "warmup_ratio": 0.5}}))


def test_a_searched_key_that_nothing_reads_is_refused(tiny_study: Study) -> None:
    def searching(**search: Any) -> Study:
        return Study.parse({**tiny_study.resolved(), "search": search})

    tokens = {"choice": [4, 8]}
    with pytest.raises(UserError, match="method cmpt has no option aggregated_tokens") as problem:
        check(searching(**{"method.aggregated_tokens": tokens}))
    assert problem.value.key == "search.method.aggregated_tokens"
    check(searching(**{"method.aggregated_tokens": tokens, "method.name": {"choice": ["cmpt", "mmp"]}}))
    crops = {"choice": [{}, {"random_frames": True}]}
    assert refused(searching(**{"data.augmentation": crops})) == "search.data.augmentation"
    power = {"train.schedule.power": {"choice": [0.9, 2.0]}}
    constant = searching(**power).with_values({"train.schedule.name": "constant"})
    assert refused(constant) == "search.train.schedule.power"
    check(searching(**power, **{"train.schedule.name": {"choice": ["constant", "polynomial"]}}))


def test_a_resolved_study_loads_again(tmp_path: Path) -> None:
    """As trials' folders and `mmsweep best` have it: all defaults are listed, and the search is kept."""
    for path in sorted(SPACES.glob("*.yaml")):
        study = Study.load(path)
        (tmp_path / path.name).write_text(study.to_yaml())
        check(Study.load(tmp_path / path.name))
    ablation = shipped("quickstart_ablation")
    for name in ablation.search["method.name"].choices:
        check(ablation.with_values({"method.name": name}))


def test_the_window_of_rasters(tiny_study: Study) -> None:
    whole = shipped("mmp_earth", "data.augmentation.scale=null", "data.augmentation.window=75")
    assert refused(whole) == "data.augmentation.window"
    check(shipped("mmp_earth", "data.augmentation.scale=null", "data.augmentation.window=64"))
    check(shipped("mmp_earth", "data.augmentation.window=75"))


def test_the_refusal_names_file_line_and_key(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    text = (SPACES / "quickstart.yaml").read_text().replace("  name: cmpt\n", "  name: cmpt\n  aggregated_tokens: 4\n")
    (tmp_path / "mine.yaml").write_text(text)
    line = text.splitlines().index("  aggregated_tokens: 4") + 1
    monkeypatch.setattr("sys.argv", ["mmsweep", "validate", str(tmp_path / "mine.yaml")])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert f"mine.yaml:{line}: method.aggregated_tokens: unknown key" in capsys.readouterr().err


def test_every_option_of_the_table_is_a_key_of_the_study() -> None:
    study = shipped("quickstart").resolved()
    for option, _ in (*_READERS, *_sections_of_kinds(), *_task_options()):
        found: Any = study
        if option.startswith("data."):
            assert DATASETS.with_option(option.removeprefix("data."))
            continue
        for part in option.split("."):
            found = found[part]
    for component in (*METHODS.values(), *BACKBONES.values()):
        named = {key for option, (other, _) in component.Options.read_with.items() for key in (option, other)}
        assert named <= component.Options.model_fields.keys()


def test_a_grid_may_say_its_own_number_of_trials():
    study = shipped("quickstart_ablation")
    combinations = count_trials(study)
    check(shipped("quickstart_ablation", f"sweep.trials={combinations}"))
    assert refused(shipped("quickstart_ablation", f"sweep.trials={combinations + 1}")) == "sweep.trials"
