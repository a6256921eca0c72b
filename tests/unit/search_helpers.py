"""A search space with every kind of dimension and condition."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mmsweep.study import Study

sys.path.insert(0, str(Path(__file__).parents[1] / "end_to_end"))
from sleeping import study

SEARCH = {
    "method.aggregated_tokens": {"choice": [4, 8], "when": {"method.name": "mmp"}},
    "method.name": {"choice": ["cmpt", "mmp"]},
    "model.lora.rank": {"log_int": [1, 8]},
    "train.optimizer.betas": {"choice": [[0.9, 0.99], [0.9, 0.999]]},
    "method.align_weight": {"log_uniform": [0.01, 1.0], "when": {"train.batch_size": [8, 16]}},
}


def searched(search: dict[str, Any] = SEARCH, **values: Any) -> Study:
    return Study.parse({**study(**values).resolved(), "search": search})
