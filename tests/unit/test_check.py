"""What `check` refuses before anything starts."""

from __future__ import annotations

import pytest

from mmsweep.check import check
from mmsweep.errors import UserError
from mmsweep.plan import dry_run
from mmsweep.study import Study


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


def searching(study, search=None, **values):
    return Study.parse(study.resolved() | {"search": search or {}}).with_values(values)


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
        ({}, {"method.name": "plain", "method.masking.probability": 0.5}, "M.probability", "plain"),
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
        ({}, {"method.absent": "placeholder"}, "method.absent", "cmpt puts its own tokens"),
        ({}, {"method.absent": "placeholder", "method.name": "mmp"}, "method.absent", "mmp puts its own tokens"),
        ({"method.absent": {"choice": ["drop", "placeholder"]}}, {}, "search.method.absent", "cmpt puts"),
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
        ({"data.fill": {"choice": ["zeros", "ones"]}}, PLAIN, "search.data.fill", "no effect"),
    ],
)
def test_placeholders_that_nothing_feeds_are_refused(search, values, key, reason, tiny_study):
    with pytest.raises(UserError, match=reason) as error:
        check(searching(tiny_study, search, **values))
    assert (error.value.key or "").startswith(key)


@pytest.mark.parametrize(
    ("search", "values"),
    [
        ({}, {**PLAIN, "method.absent": "placeholder", "data.fill": "mean"}),
        ({"data.fill": {"choice": ["zeros", "ones"]}}, {**PLAIN, "method.absent": "placeholder"}),
        ({**METHOD, "method.absent": {"choice": ["drop", "placeholder"], "when": {"method.name": EVERY[:2]}}}, {}),
        (METHOD, {"method.absent": "placeholder", "data.fill": "ones"}),
        ({}, {"data.fill": "nan"}),
    ],
)
def test_placeholders_that_a_method_feeds_are_not(search, values, tiny_study):
    check(searching(tiny_study, search, **values))
