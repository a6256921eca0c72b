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
