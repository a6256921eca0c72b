"""Evaluation by indexing equals scoring every scenario by a slow loop over rows; summaries, curves and files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mmsweep.availability import Scenario, availability_table, pattern_name, patterns, table_digest
from mmsweep.data.dataset import Batch
from mmsweep.models.lora import Noise
from mmsweep.tasks.multi_label import MultiLabel
from mmsweep.tasks.regression import Regression
from mmsweep.tasks.single_label import SingleLabel
from mmsweep.tasks.task import Target, Task
from mmsweep.training.evaluation import Predictions, evaluation_record, predict, scenario_metrics, write_evaluation
from mmsweep.training.world import World

MODALITIES = ("image", "text", "audio")
PATTERNS = patterns(MODALITIES)
ROWS, CLASSES, SEED = 37, 4, 5
SPECS: list[Any] = [
    "complete",
    "missing-text",
    {"only": "audio"},
    {"missing": ["image", "audio"]},
    {"available": {"image": 0.65, "text": 0.9}},
    {"rate": 0.7, "type": "both"},
    {"shares": {"image+text": 0.3, "audio": 0.2, "complete": 0.5}, "name": "mixture"},
]
SCENARIOS = [Scenario.parse(spec, MODALITIES) for spec in SPECS]
TARGETS = {
    "single_label": Target("single_label", tuple("abcd")),
    "multi_label": Target("multi_label", tuple("abcd")),
    "regression": Target("regression"),
}
TASKS: dict[str, type[Any]] = {"single_label": SingleLabel, "multi_label": MultiLabel, "regression": Regression}


class Known(nn.Module):
    """A method that knows what it will say of each row under each pattern, and counts how often it is asked."""

    def __init__(self, says_PNC: Tensor) -> None:
        super().__init__()
        self.says_PNC = says_PNC
        self.backbone = SimpleNamespace(modalities=MODALITIES)
        self.noise = Noise([torch.Generator()])
        self.asked: list[list[int]] = []

    def predict_patterns(self, batch: Batch, patterns_PM: Tensor) -> Tensor:
        assert not self.training and not self.noise.generators  # no dropout in evaluation
        assert [{m for m, there in zip(MODALITIES, row, strict=True) if there} for row in patterns_PM] == PATTERNS
        self.asked.append(batch.index.tolist())
        return self.says_PNC[:, batch.index]


class Split:
    """Rows with natural gaps."""

    def __init__(self, target: Target, natural_NM: np.ndarray) -> None:
        g = torch.Generator().manual_seed(11)
        many = {
            "single_label": torch.randint(0, CLASSES, (ROWS,), generator=g),
            "multi_label": (torch.rand(ROWS, CLASSES, generator=g) < 0.4).float(),
            "regression": torch.randn(ROWS, generator=g),
        }
        self.targets, self.natural_NM = many[target.task].numpy(), natural_NM
        self.ids = [f"row-{i}" for i in range(ROWS)]
        self.groups = [None] * ROWS

    def __len__(self) -> int:
        return ROWS

    def batch(self, index: np.ndarray, device: torch.device) -> Batch:
        rows = torch.from_numpy(index)
        present = torch.from_numpy(self.natural_NM)[rows]
        return Batch({}, present, torch.from_numpy(self.targets)[rows], rows)


def gaps(seed: int = 3) -> np.ndarray:
    """What the data has: about a third of the cells is missing, no row is empty."""
    natural = np.random.default_rng(seed).random((ROWS, len(MODALITIES))) > 0.35
    natural[~natural.any(1), 0] = True
    return natural


def made(task_name: str, natural_NM: np.ndarray | None = None, batch_size: int = 8) -> tuple[Predictions, Task, Known]:
    target = TARGETS[task_name]
    task = TASKS[task_name](target)
    says = torch.randn(len(PATTERNS), ROWS, task.outputs, generator=torch.Generator().manual_seed(7))
    method = Known(says).train()
    natural = np.ones((ROWS, len(MODALITIES)), bool) if natural_NM is None else natural_NM
    split: Any = Split(target, natural)
    known: Any = method
    return predict(known, task, split, batch_size, torch.device("cpu"), World()), task, method


def slowly(
    predictions: Predictions, task: Task, method: Known, scenario: Scenario, natural: np.ndarray
) -> tuple[int, dict[str, float]]:
    """(n, metrics): row by row, from what the method says of the row under what is left of it."""
    table = availability_table(scenario, ROWS, MODALITIES, SEED, natural)
    kept, targets = [], []
    for row in range(ROWS):
        left = frozenset(m for m, there in zip(MODALITIES, table[row], strict=True) if there)
        if not left:
            continue
        said = method.says_PNC[PATTERNS.index(left), row : row + 1]
        kept.append(task.statistics(said, predictions.target_N[row : row + 1]))
        targets.append(predictions.target_N[row : row + 1])
    if not kept:
        return 0, dict.fromkeys(task.metric_names, math.nan)
    return len(kept), task.metrics(torch.cat(kept), torch.cat(targets))


@pytest.mark.parametrize("task_name", TASKS)
@pytest.mark.parametrize("gappy", [False, True])
def test_indexing_equals_the_slow_loop(task_name: str, gappy: bool) -> None:
    natural = gaps() if gappy else np.ones((ROWS, 3), bool)
    predictions, task, method = made(task_name, natural)
    scores = scenario_metrics(predictions, task, SCENARIOS, SEED)
    record = evaluation_record(predictions, task, SCENARIOS, SEED, "test", 3)
    for scenario in SCENARIOS:
        rows, metrics = slowly(predictions, task, method, scenario, natural)
        entry = record["scenarios"][scenario.name]
        assert entry["rows"] == rows and entry["metrics"] == pytest.approx(metrics, abs=1e-9)
        assert {m: scores[f"{scenario.name}/{m}"] for m in task.metric_names} == entry["metrics"]
        assert entry["table"] == table_digest(availability_table(scenario, ROWS, MODALITIES, SEED, natural))
        assert sum(entry["shares"].values()) == rows
    assert (record["scenarios"]["only-audio"]["rows"] < ROWS) == gappy


def test_accuracy_without_the_task() -> None:
    """The same once more without any of the package's arithmetic."""
    natural = gaps()
    predictions, task, method = made("single_label", natural)
    record = evaluation_record(predictions, task, SCENARIOS, SEED, "test", 1)
    for scenario in SCENARIOS:
        table = availability_table(scenario, ROWS, MODALITIES, SEED, natural)
        right = []
        for row, present in enumerate(table.tolist()):
            left = {m for m, there in zip(MODALITIES, present, strict=True) if there}
            if left:
                says = method.says_PNC[PATTERNS.index(frozenset(left)), row].tolist()
                right.append(says.index(max(says)) == int(predictions.target_N[row]))
        found = record["scenarios"][scenario.name]
        assert found["rows"] == len(right) and found["metrics"]["accuracy"] == pytest.approx(np.mean(right))


@pytest.mark.parametrize("batch_size", [1, 8, ROWS, 1000])
def test_every_row_is_asked_once_whatever_the_batch(batch_size: int) -> None:
    predictions, _, method = made("single_label", batch_size=batch_size)
    assert [i for rows in method.asked for i in rows] == list(range(ROWS)) and len(method.asked) == -(
        -ROWS // batch_size
    )
    torch.testing.assert_close(predictions.statistics_PN, method.says_PNC.softmax(-1))


def test_more_scenarios_cost_no_more_passes() -> None:
    predictions, task, method = made("multi_label")
    before = len(method.asked)
    evaluation_record(predictions, task, SCENARIOS * 5, SEED, "val", 1)
    assert len(method.asked) == before


# ---- natural gaps


def test_rows_that_nothing_is_left_of_do_not_count() -> None:
    natural = np.ones((ROWS, 3), bool)
    natural[:10] = [False, True, False]  # ten rows have their text only
    predictions, task, method = made("single_label", natural)
    record = evaluation_record(predictions, task, [SCENARIOS[1]], SEED, "test", 1)
    entry = record["scenarios"]["missing-text"]
    assert entry["rows"] == ROWS - 10 and entry["shares"] == {"missing-text": ROWS - 10}
    says, target = method.says_PNC[PATTERNS.index(frozenset({"image", "audio"})), 10:], predictions.target_N[10:]
    assert entry["metrics"]["accuracy"] == pytest.approx((says.argmax(1) == target).float().mean().item())
    # A row that lacks something by nature is scored under what it has, also in `complete`.
    assert record["patterns"]["complete"]["shares"] == {"complete": ROWS - 10, "missing-image-audio": 10}


def test_what_an_ineligible_entry_holds_changes_nothing() -> None:
    natural = gaps()
    predictions, task, _ = made("single_label", natural)
    spoilt = predictions.statistics_PN.clone()
    for p, pattern in enumerate(PATTERNS):
        for row in range(ROWS):
            if not any(there and m in pattern for m, there in zip(MODALITIES, natural[row], strict=True)):
                spoilt[p, row] = math.nan
    assert spoilt.isnan().any()
    other = Predictions(spoilt, predictions.target_N, natural, MODALITIES, predictions.ids)
    assert evaluation_record(other, task, SCENARIOS, SEED, "test", 1) == evaluation_record(
        predictions, task, SCENARIOS, SEED, "test", 1
    )


def test_a_scenario_without_any_row_has_no_score() -> None:
    natural = np.ones((ROWS, 3), bool)
    natural[:, 2] = False
    predictions, task, _ = made("single_label", natural)
    record = evaluation_record(predictions, task, [Scenario.parse("only-audio", MODALITIES)], SEED, "test", 1)
    entry = record["scenarios"]["only-audio"]
    assert entry["rows"] == 0 and all(math.isnan(v) for v in entry["metrics"].values())
    assert all(math.isfinite(v) for v in record["mean_missing"].values())  # over the patterns that have rows


# ---- summaries


@pytest.mark.parametrize("task_name", TASKS)
def test_mean_and_worst_are_over_the_proper_patterns_whatever_is_listed(task_name: str) -> None:
    predictions, task, method = made(task_name)
    each = [
        task.metrics(task.statistics(method.says_PNC[p], predictions.target_N), predictions.target_N)
        for p in range(1, len(PATTERNS))
    ]
    assert len(each) == 6
    for listed in ([SCENARIOS[0]], SCENARIOS, []):
        scores = scenario_metrics(predictions, task, listed, SEED)
        for metric in task.metric_names:
            values = [e[metric] for e in each]
            assert scores[f"mean_missing/{metric}"] == pytest.approx(sum(values) / 6)
            worst = max(values) if metric == "mae" else min(values)
            assert scores[f"worst_missing/{metric}"] == pytest.approx(worst)
    assert scenario_metrics(predictions, task, [], 0) == scenario_metrics(predictions, task, [], 99)  # nor on the seed


# ---- curves


@pytest.mark.parametrize("gappy", [False, True])
def test_curves_end_where_the_patterns_are(gappy: bool) -> None:
    predictions, task, method = made("single_label", gaps() if gappy else None)
    record = evaluation_record(predictions, task, SCENARIOS, SEED, "test", 1)
    for modality in MODALITIES:
        curve = record["curves"][modality]
        assert [point["share"] for point in curve] == pytest.approx([k / 10 for k in range(11)])
        for point, name in ((curve[0], f"missing-{modality}"), (curve[-1], "complete")):
            whole = record["patterns"][name]
            assert point["metrics"] == pytest.approx(whole["metrics"]) and point["rows"] == whole["rows"]
        middle = Scenario.parse({"available": {modality: 0.4}}, MODALITIES)
        rows, metrics = slowly(predictions, task, method, middle, predictions.natural_NM)
        assert curve[4]["rows"] == rows and curve[4]["metrics"] == pytest.approx(metrics)


# ---- files


@pytest.mark.parametrize("task_name", TASKS)
def test_files_hold_what_was_found(task_name: str, tmp_path: Path) -> None:
    natural = gaps()
    predictions, task, _ = made(task_name, natural)
    record = evaluation_record(predictions, task, SCENARIOS, SEED, "test", 4)
    write_evaluation(tmp_path, record, predictions)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["evaluation.json", "predictions.npz"]
    assert json.loads((tmp_path / "evaluation.json").read_text()) == record
    assert (record["split"], record["task"], record["epoch"], record["rows"]) == ("test", task_name, 4, ROWS)
    assert record["modalities"] == list(MODALITIES) and record["classes"] == list(TARGETS[task_name].classes)
    assert list(record["patterns"]) == [pattern_name(p, MODALITIES) for p in PATTERNS]
    with np.load(tmp_path / "predictions.npz", allow_pickle=False) as file:
        assert file["scores_PNC"].dtype == np.float32
        np.testing.assert_array_equal(file["scores_PNC"], predictions.statistics_PN.numpy())
        np.testing.assert_array_equal(file["targets"], predictions.target_N.numpy())
        np.testing.assert_array_equal(file["natural_NM"], natural)
        assert file["ids"].tolist() == list(predictions.ids)
        assert file["patterns"].tolist() == list(record["patterns"])
        for p, pattern in enumerate(PATTERNS):
            left = [any(has and m in pattern for m, has in zip(MODALITIES, row, strict=True)) for row in natural]
            assert file["present_PN"][p].tolist() == left
    # The scores can be made again from the file alone.
    with np.load(tmp_path / "predictions.npz", allow_pickle=False) as file:
        again = Predictions(
            torch.from_numpy(file["scores_PNC"]), torch.from_numpy(file["targets"]), file["natural_NM"], MODALITIES,
            tuple(file["ids"].tolist()),
        )  # fmt: skip
    assert evaluation_record(again, task, SCENARIOS, SEED, "test", 4) == record
