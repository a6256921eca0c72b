"""What `check` refuses before anything starts."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import transformers

from mmsweep.assembly.checks import check, check_sweep, require_weights
from mmsweep.assembly.plan import dry_run
from mmsweep.errors import UserError
from mmsweep.study import Study

ROOT = Path(__file__).parents[2]


def test_a_warm_up_in_steps_ends_within_the_run_and_before_asha(tiny_study):
    """30 training rows, batches of 8, 2 epochs: 4 steps an epoch, 8 in all."""

    def study(steps, **more):
        return tiny_study.with_values({"train.schedule.warmup_steps": steps, **more})

    check(study(7))
    with pytest.raises(UserError, match=r"warmup_steps.*found 8; expected less than the run's 8 steps"):
        check(study(8))
    asha = {"sweep.scheduler": {"name": "asha", "grace_epochs": 1}}
    check(study(3, **asha))
    with pytest.raises(UserError, match=r"grace_epochs.*inside the warm-up"):
        check(study(4, **asha))


def test_every_worker_has_a_row_of_a_batch(tiny_study):
    check(tiny_study.with_values({"resources.workers": 8}))
    with pytest.raises(UserError, match=r"resources.workers.*found 9; expected at most 8 \(train.batch_size\)"):
        check(tiny_study.with_values({"resources.workers": 9}))
    search = {"train.batch_size": {"choice": [4, 8]}}
    searched = Study.parse(tiny_study.resolved() | {"search": search})
    with pytest.raises(UserError, match=r"resources.workers.*found 8; expected at most 4 \(train.batch_size\)"):
        check(searched.with_values({"resources.workers": 8}))


def test_one_method_of_an_ablation_s_file_can_be_trained():
    """The command of docs/results/mmp_earth.md: what other methods of the search read need not be taken out."""
    check(Study.load(ROOT / "search_spaces" / "mmp_earth_ablation.yaml", ["method.name=plain", "train.epochs=40"]))


@pytest.mark.parametrize(
    ("column", "task", "own", "found"),
    [
        ("kind", "single_label", "red", "the same class.*found 'red'"),
        ("tags", "multi_label", "red|green", "the same labels.*found 'green, red'"),
    ],
)
def test_training_rows_with_one_target_teach_nothing(tiny_study, tiny_table, tmp_path, column, task, own, found):
    """Whatever the other splits hold: red, green and blue stay in validation and test."""
    with open(tiny_table / "whole.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    with open(tmp_path / "red.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        for row in rows:
            picture = str(tiny_table / row["picture"])
            writer.writerow(row | {"picture": picture, column: own if row["part"] == "train" else row[column]})
    values = {"data.path": str(tmp_path / "red.csv"), "data.target": {"column": column, "task": task}}
    with pytest.raises(UserError, match=rf"data.target.column.*every training row has {found}"):
        check(tiny_study.with_values(values))


def test_a_dry_run_counts_the_gaps_of_the_user_s_file(tiny_gaps_study):
    """Of gaps.csv's nine test rows two lack a picture (40, 44) and two a text (41, 45)."""
    counts = dry_run(tiny_gaps_study)["scenarios"]["test"]
    assert counts["complete"] == {"complete": 5, "missing-text": 2, "missing-image": 2}
    assert counts["missing-text"] == {"missing-text": 7} and counts["missing-image"] == {"missing-image": 7}


def test_a_dry_run_counts_the_combinations_of_a_grid(tiny_study):
    search = {"train.seed": {"choice": [0, 1]}, "model.lora.rank": {"choice": [1, 2, 4]}}
    grid = Study.parse(tiny_study.resolved() | {"search": search}).with_values({"sweep.sampler": {"name": "grid"}})
    assert dry_run(grid)["trials"] == 6


def test_a_dry_run_counts_no_choice_that_a_condition_switches_off(tiny_study):
    """Two methods without a weight and one with three: 5 trials, not 9; the condition may stand before its key."""
    search = {
        "method.align_weight": {"choice": [0.0, 0.2, 1.0], "when": {"method.name": "cmpt"}},
        "method.name": {"choice": ["plain", "modality_dropout", "cmpt"]},
    }
    grid = Study.parse(tiny_study.resolved() | {"search": search}).with_values({"sweep.sampler": {"name": "grid"}})
    assert dry_run(grid)["trials"] == 5


GAPS = {"rate": 0.5, "type": "both"}
EVERY = ["plain", "modality_dropout", "cmpt"]
METHOD = {"method.name": {"choice": EVERY}}
P = {"method.masking.probability": {"uniform": [0, 0.9]}}
GRAIN = {"method.masking.granularity": {"choice": ["sample", "batch"]}}
PLAIN, GAPPED = {"method.name": "plain"}, {"scenarios.train": GAPS}
FED = {"method.name": "missing_aware_prompts", "model.lora": None}  # placeholders, always


def searching(study, search=None, **values):
    """With a search that need not fit the method: `with_values` would leave out what does not."""
    name = {key: values.pop(key) for key in ("method.name",) if key in values}
    chosen = Study.parse(study.resolved() | {"search": {}}).with_values(name)
    return Study.parse(chosen.resolved() | {"search": search or {}}).with_values(values)


@pytest.mark.parametrize(
    ("search", "values", "key", "reason"),
    [
        (P, PLAIN, "search.M.probability", "plain"),
        (GRAIN, PLAIN, "search.M.gran", "plain"),
        (P, GAPPED, "search.M.probability", "leaves gaps"),
        (P, {"scenarios.train": "only-text"}, "search.M.prob", "leaves gaps"),
        ({"method.masking": {"choice": [{"probability": 0.1}]}}, PLAIN, "search.method.masking", "plain"),
        (GRAIN, {"method.masking.probability": 0.0}, "search.M.gran", "probability is 0"),
        ({"method.masking.distribution": {"choice": ["uniform", "one"]}}, {}, "search.M.dist", "two modalities"),
        ({"method.masking.with_training_gaps": {"choice": [True, False]}}, {}, "search.M.with", "no gaps"),
        ({**METHOD, "method.masking.probability": {"uniform": [0, 1], "when": PLAIN}}, {}, "search.M.prob", "plain"),
        ({"method.masking.granularity": {"choice": ["batch"], "when": {"method.name": "mmp"}}}, {}, "search", "never"),
        ({}, {**GAPPED, "method.masking.probability": 0.5}, "M.probability", "leaves gaps"),
        ({}, {"method.masking.with_training_gaps": True}, "M.with_training_gaps", "no gaps"),
        ({}, {"method.masking.distribution": "one"}, "M.distribution", "two modalities"),
    ],
)  # fmt: skip
def test_masking_options_without_effect_are_refused(search, values, key, reason, tiny_study):
    with pytest.raises(UserError) as error:
        check(searching(tiny_study, search, **values))
    assert (error.value.key or "").startswith(key.replace("M.", "method.masking."))
    assert "no effect" in error.value.problem and reason in error.value.problem


@pytest.mark.parametrize(
    ("search", "values"),
    [
        (P, {"scenarios.train": {"rate": 0}}),
        (P, {"scenarios.train": {"available": {"image": 1, "text": 1}}}),
        (P, {**GAPPED, "method.name": "mmp"}),
        ({**P, "scenarios.train": {"choice": ["complete", GAPS]}}, {}),
        ({**P, **METHOD}, PLAIN),
        (P, {**GAPPED, "method.masking.with_training_gaps": True}),
        (GRAIN, {}),
        ({}, {"method.masking.probability": 0.0}),
        ({}, PLAIN),
        ({}, {"method.masking.with_training_gaps": False}),
    ],
)  # fmt: skip
def test_masking_options_with_an_effect_are_not(search, values, tiny_study):
    check(searching(tiny_study, search, **values))


def test_searched_training_scenarios_are_read_before_anything_starts(tiny_study):
    with pytest.raises(UserError, match=r"search\.scenarios\.train\.choice\.1.*unknown modality; found 'txt'"):
        check(searching(tiny_study, {"scenarios.train": {"choice": ["complete", {"missing": "txt"}]}}))


@pytest.mark.parametrize(
    ("search", "values", "key", "reason"),
    [
        ({"method.absent": {"choice": ["drop", "placeholder"]}}, {}, "search.method.absent", "cmpt has no option"),
        (
            {**METHOD, "method.absent": {"choice": ["drop"], "when": {"method.name": "cmpt"}}},
            {},
            "search.method",
            "cmpt",
        ),
        ({"method.absent": {"choice": ["drop"], "when": PLAIN}}, {}, "search.method.absent", "never holds"),
        ({}, {**PLAIN, "method.absent": "placeholder", "data.fill": "nan"}, "data.fill", "NaN"),
        ({}, {**PLAIN, "data.fill": "ones"}, "data.fill", "no effect"),
        ({}, {"data.fill": "mean"}, "data.fill", "no effect"),
        ({}, {**FED, "data.fill": "nan"}, "data.fill", "NaN"),
        ({"data.fill": {"choice": ["zeros", "ones"]}}, PLAIN, "search.data.fill", "no effect"),
    ],
)
def test_placeholders_that_nothing_feeds_are_refused(search, values, key, reason, tiny_study):
    with pytest.raises(UserError, match=reason) as error:
        check(searching(tiny_study, search, **values))
    assert (error.value.key or "").startswith(key)


@pytest.mark.parametrize(
    ("method", "option", "value"),
    [
        ("cmpt", "absent", "placeholder"),
        ("mmp", "absent", "placeholder"),
        ("plain", "masking", {"probability": 0.5}),
    ],
)
def test_what_a_method_does_not_know_is_refused(method, option, value, tiny_study):
    with pytest.raises(UserError, match=f"method.{option}: unknown key; .*It is an option of method"):
        Study.parse(tiny_study.resolved() | {"search": {}, "method": {"name": method, option: value}})


@pytest.mark.parametrize(
    ("search", "values"),
    [
        ({}, {**PLAIN, "method.absent": "placeholder", "data.fill": "mean"}),
        ({"data.fill": {"choice": ["zeros", "ones"]}}, {**PLAIN, "method.absent": "placeholder"}),
        ({**METHOD, "method.absent": {"choice": ["drop", "placeholder"], "when": {"method.name": EVERY[:2]}}}, {}),
        (METHOD, {"method.absent": "placeholder", "data.fill": "ones"}),
        ({}, {"data.fill": "nan"}),
        ({}, {**FED, "data.fill": "ones"}),
        ({"data.fill": {"choice": ["zeros", "ones"]}}, FED),
    ],
)
def test_placeholders_that_a_method_feeds_are_not(search, values, tiny_study):
    check(searching(tiny_study, search, **values))


# ---- what a method can serve


@pytest.mark.parametrize(
    ("task", "method", "fits"),
    [
        ("regression", "ogm_ge", False),
        ("regression", "mla", False),
        ("regression", "mmlora", True),
        ("regression", "missing_aware_prompts", True),
        ("multi_label", "ogm_ge", True),
        ("multi_label", "mla", True),
    ],
)
def test_a_task_that_a_method_is_not_made_for_is_refused(task, method, fits, tiny_tasks):
    alone = searching(tiny_tasks[task], **{"method.name": method, "model.lora": {"rank": 1}})
    searched = searching(tiny_tasks[task], {"method.name": {"choice": ["cmpt", method]}})
    for study, key in ((alone, "method.name"), (searched, "search.method.name")):
        if fits:
            check(study)
        else:
            expected = rf"{key}: method {method} does not know the task regression; .*multi_label or single_label"
            with pytest.raises(UserError, match=expected):
                check(study)


@pytest.mark.parametrize(
    ("study", "method"),
    [
        ("mmp_sequences", "mmlora"),
        ("mmp_sequences", "missing_aware_prompts"),
        ("mmp_earth", "missing_aware_prompts"),
        ("mmp_earth", "mmlora"),
    ],
)
def test_a_backbone_that_a_method_cannot_serve_is_refused(study, method):
    with pytest.raises(UserError, match=f"method.name: method {method} does not work on backbone .*found '{method}'"):
        check(Study.load(ROOT / "search_spaces" / f"{study}.yaml", [f"method={{name: {method}}}", "search={}"]))


@pytest.mark.parametrize("scheduler", ["asha", "median"])
def test_no_scheduler_judges_a_trial_before_its_last_phase(scheduler, tiny_study):
    """Six epochs of mmlora on two modalities: two for each modality, two for both."""

    def study(grace, search=None, **values):
        rule = {"name": scheduler, "grace_epochs": grace}
        return searching(tiny_study, search, **{"train.epochs": 6, "sweep.scheduler": rule, **values})

    MMLORA = {"method.name": "mmlora"}
    check_sweep(study(5, **MMLORA))
    with pytest.raises(UserError, match=rf"grace_epochs: {scheduler} would judge .*'joint' begins.*found 4; .*than 4"):
        check_sweep(study(4, **MMLORA))
    check_sweep(study(3, **MMLORA, **{"method.unimodal_epochs": 1}))
    with pytest.raises(UserError, match=r"found 2; expected more than 2"):
        check_sweep(study(2, **MMLORA, **{"method.unimodal_epochs": 1}))
    check_sweep(study(2, **MMLORA, **{"sweep.scheduler": {"name": "none"}}))
    with pytest.raises(UserError, match=r"search.method.name: .*'joint' begins.*found 'mmlora'.*grace_epochs above 4"):
        check_sweep(study(2, {"method.name": {"choice": ["cmpt", "mmlora"]}}))
    check_sweep(study(5, **MMLORA, **{"train.schedule.warmup_epochs": 1}))
    with pytest.raises(UserError, match=r"warmup_epochs: each phase .* begins with the warm-up.*found 2.*less than 2"):
        check_sweep(study(5, **MMLORA, **{"train.schedule.warmup_epochs": 2}))
    with pytest.raises(UserError, match=r"search.train.epochs: .*leave none for the joint phase.*found 2"):
        check_sweep(study(5, {"train.epochs": {"choice": [2, 6]}}, **MMLORA))
    both = {"method.name": {"choice": ["cmpt", "mmlora"]}, "train.epochs": {"choice": [2, 6]}}
    with pytest.raises(UserError, match=r"search.train.epochs: .*leave none for the joint phase.*found 2"):
        check_sweep(study(5, both))
    check_sweep(study(5, both | {"train.epochs": {"choice": [2, 6], "when": {"method.name": "cmpt"}}}))


# ---- networks


@pytest.mark.parametrize(
    ("search", "words"),
    [
        (
            {"model.encoders.text.layers": {"int": [1, 3]}},
            r"search.model.encoders.text.layers: .*fewer layers.*found 3",
        ),
        ({"data.text.length": {"choice": [8, 99]}}, r"search.data.text.length: .*found 99; expected at most 16 tokens"),
        ({"model.encoders.image.pool": {"choice": ["auto", "pooler"]}}, r"no pooler.*found 'pooler'"),
        ({"method.name": {"choice": ["cmpt", "cmtp"]}}, r"unknown method.*found 'cmtp'"),
        ({"data.image.size": {"choice": [16, 8]}}, None),
    ],
)
def test_every_searched_value_is_built(tiny_study, search, words):
    values = {"model.encoders.text.layers": 1, "data.text.length": 8, "data.image.size": 16}
    study = Study.parse(tiny_study.with_values(values).resolved() | {"search": search})
    if words is None:
        check_sweep(study)
    else:
        with pytest.raises(UserError, match=words):
            check_sweep(study)


def test_an_encoder_of_another_kind_and_a_picture_below_a_patch(tiny_study, tmp_path):
    wrong = tiny_study.model_copy(
        update={
            "model": tiny_study.with_values({"model.encoders.text": tiny_study.value("model.encoders.image")}).model
        }
    )
    with pytest.raises(
        UserError, match=r"model.encoders.text.name: this network reads image, and the modality is text"
    ):
        check_sweep(wrong)
    folder = tmp_path / "vit"
    transformers.ViTConfig(image_size=32, patch_size=16, hidden_size=16, num_attention_heads=2).save_pretrained(folder)
    coarse = tiny_study.with_values({"model.encoders.image.name": str(folder), "data.image.size": 8})
    with pytest.raises(UserError, match=r"data.image.size: the network of image sees nothing.*found 8"):
        check_sweep(coarse)


def test_weights_that_are_elsewhere_are_a_line_of_the_plan(tiny_study, tmp_path):
    """A hub's name may be fetched later; a sweep that starts needs it, or says where it looked."""
    elsewhere = tiny_study.with_values({"model.encoders.image.name": "no-such/encoder"})
    check_sweep(elsewhere)
    plan = dry_run(elsewhere)
    assert plan["parameters"] is None and len(plan["missing"]) == 1
    assert "model.encoders.image.name: no weights found; found 'no-such/encoder'" in plan["missing"][0]
    with pytest.raises(UserError, match=r"no weights found.*Searched: .*the hub itself"):
        require_weights(elsewhere)
    assert dry_run(tiny_study)["missing"] == []

    folder = tmp_path / "bare"
    transformers.ViTConfig(image_size=16, patch_size=8, hidden_size=16, num_attention_heads=2).save_pretrained(folder)
    with pytest.raises(UserError, match="the network's folder holds no weights"):
        require_weights(tiny_study.with_values({"model.encoders.image.name": str(folder)}))
    with pytest.raises(UserError, match="timm cannot provide this model"):
        check_sweep(tiny_study.with_values({"model.encoders.image": {"source": "timm", "name": "vit_nothing"}}))


def test_the_memory_estimate_grows_with_what_is_trained_and_the_batch(tiny_study):
    small, large = (dry_run(tiny_study.with_values({"train.batch_size": n}))["memory"] for n in (8, 16))
    assert large["activations"] == 2 * small["activations"] > 0 and large["weights"] == small["weights"]
    trainable = dry_run(tiny_study)["parameters"]["trainable"]
    assert small["optimizer"] == 12 * trainable
    assert small["total"] == sum(small[part] for part in ("weights", "optimizer", "activations"))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (
            {"bootstrap.over": ["groups"]},
            "bootstrap.over: the data has no groups of rows to resample; found",
        ),
        ({"bootstrap.over": ["rows", "seeds"], "sweep.final.seeds": 1}, "bootstrap.over: a single final run cannot be"),
        ({"bootstrap.over": ["seeds"], "sweep.final": None}, "bootstrap.over: this option has no effect in this study"),
    ],
)
def test_resamples_that_no_report_could_draw_are_refused(values, reason, tiny_study):
    with pytest.raises(UserError, match=reason):
        check_sweep(tiny_study.with_values(values))


def test_resamples_that_a_report_can_draw_pass(tiny_study):
    check_sweep(tiny_study.with_values({"bootstrap.over": ["rows", "seeds"], "sweep.final": {"seeds": 2}}))
