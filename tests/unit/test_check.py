"""What `check` refuses before anything starts."""

from __future__ import annotations

import pytest

from mmsweep.check import check
from mmsweep.errors import UserError


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
