"""What every task must keep."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from mmsweep.record.objective import is_better, metric_of
from mmsweep.tasks.multi_label import MultiLabel
from mmsweep.tasks.regression import Regression
from mmsweep.tasks.segmentation import Segmentation
from mmsweep.tasks.single_label import SingleLabel
from mmsweep.tasks.task import IGNORE, Target, Task, task_of

CLASSES = ("a", "b", "c", "d")
ROWS = 24


@dataclass(frozen=True)
class Case:
    task: Task
    target: Tensor
    perfect: Tensor
    """A prediction that is right everywhere."""


def cases() -> dict[str, Case]:
    g = torch.Generator().manual_seed(1)
    index = torch.arange(ROWS) % 4
    hot = (torch.rand(ROWS, 4, generator=g) < 0.4).float()
    hot[:4] = torch.eye(4)  # every label occurs
    number = torch.randn(ROWS, generator=g)
    single, multi = Target("single_label", CLASSES), Target("multi_label", CLASSES)
    pixels = Target("segmentation", CLASSES)
    maps = torch.randint(0, 4, (ROWS, 3, 5), generator=g)
    one_hot = torch.eye(4)[maps].movedim(-1, 1)
    maps[torch.rand(ROWS, 3, 5, generator=g) < 0.2] = IGNORE
    sure = 20 * torch.eye(4)[index] - 10
    return {
        "single_label": Case(SingleLabel(single), index, sure),
        "single_label weighted": Case(SingleLabel(single, torch.tensor([0.5, 1.0, 2.0, 4.0])), index, sure),
        "multi_label": Case(MultiLabel(multi), hot, 20 * hot - 10),
        "multi_label weighted, tuned": Case(
            MultiLabel(multi, torch.tensor([0.2, 0.4, 0.6, 0.8]), torch.tensor([1.0, 2.0, 3.0, 4.0])),
            hot,
            20 * hot - 10,
        ),
        "segmentation": Case(Segmentation(pixels), maps, 20 * one_hot - 10),
        "segmentation weighted, hard pixels": Case(
            Segmentation(pixels, torch.tensor([0.5, 1.0, 2.0, 4.0]), hard_pixels=True), maps, 20 * one_hot - 10
        ),
        "regression": Case(Regression(Target("regression")), number, number[:, None]),
        "regression signed": Case(Regression(Target("regression", signed=True), "mse"), number, number[:, None]),
    }


@pytest.fixture(params=cases())
def case(request: pytest.FixtureRequest) -> Case:
    return cases()[request.param]


@pytest.fixture()
def prediction(case: Case, generator: torch.Generator) -> Tensor:
    return torch.randn(case.perfect.shape, generator=generator)


def test_the_target_decides_the_width(case: Case) -> None:
    assert case.task.outputs == case.task.target.width == case.perfect.shape[1]
    assert type(task_of(case.task.target)) is type(case.task)
    assert len(set(case.task.metric_names)) == len(case.task.metric_names) > 0
    for name in case.task.metric_names:
        assert metric_of(f"val/complete/{name}") == case.task.reported[name], "two tasks mean two things by one name"


def test_the_loss_is_per_sample(case: Case, prediction: Tensor) -> None:
    loss = case.task.loss(prediction, case.target)
    assert loss.shape == (ROWS,) and loss.dtype == torch.float32 and (loss >= 0).all()
    alone = torch.cat([case.task.loss(prediction[i : i + 1], case.target[i : i + 1]) for i in range(ROWS)])
    torch.testing.assert_close(loss, alone)


def test_the_gradient_flows_to_every_sample_and_output(case: Case, prediction: Tensor) -> None:
    prediction.requires_grad_(True)
    case.task.loss(prediction, case.target).mean().backward()
    assert prediction.grad is not None and prediction.grad.isfinite().all()
    assert (prediction.grad.reshape(ROWS, case.task.outputs, -1) != 0).any(-1).all()


def test_the_gradient_of_a_sample_is_its_own(case: Case, prediction: Tensor) -> None:
    prediction.requires_grad_(True)
    case.task.loss(prediction, case.target)[3].backward()
    assert prediction.grad is not None
    touched = prediction.grad.flatten(1).abs().sum(1) > 0
    assert touched.tolist() == [i == 3 for i in range(ROWS)]


def test_statistics_of_a_row_are_its_own(case: Case, prediction: Tensor) -> None:
    whole = case.task.statistics(prediction, case.target)
    assert whole.shape == (ROWS, *case.task.statistics_shape) and whole.dtype == case.task.statistics_dtype
    assert whole.isfinite().all()
    rows = torch.tensor([5, 0, 17])
    torch.testing.assert_close(case.task.statistics(prediction[rows], case.target[rows]), whole[rows])
    spoilt = prediction.clone()
    spoilt[7] = float("nan")  # a row that is not eligible may hold anything
    kept = torch.arange(ROWS) != 7
    assert torch.equal(case.task.statistics(spoilt, case.target)[kept], whole[kept])


def test_no_rows_have_no_score(case: Case, prediction: Tensor) -> None:
    none = case.task.statistics(prediction[:0], case.target[:0])
    assert none.shape == (0, *case.task.statistics_shape)
    found = case.task.metrics(none, case.task.truth(case.target.numpy())[:0])
    assert list(found) == list(case.task.metric_names) and all(value != value for value in found.values())


def test_statistics_of_all_patterns_at_once(case: Case, prediction: Tensor) -> None:
    both_PBC = torch.stack([prediction, -prediction])
    found_PB = case.task.statistics(both_PBC, case.target)
    for found, alone in zip(found_PB, both_PBC, strict=True):
        torch.testing.assert_close(found, case.task.statistics(alone, case.target))


def test_metrics_do_not_depend_on_the_order_of_rows(case: Case, prediction: Tensor, generator: torch.Generator) -> None:
    statistics = case.task.statistics(prediction, case.target)
    order = torch.randperm(ROWS, generator=generator)
    found = case.task.metrics(statistics, case.target)
    assert list(found) == list(case.task.metric_names)
    assert case.task.metrics(statistics[order], case.target[order]) == pytest.approx(found, abs=1e-9)
    each = case.task.per_class(statistics, case.target)
    turned = case.task.per_class(statistics[order], case.target[order])
    assert each.keys() == turned.keys() and all(turned[k] == pytest.approx(each[k]) for k in each)


def test_a_row_of_weight_k_counts_like_k_rows(case: Case, prediction: Tensor, generator: torch.Generator) -> None:
    """Which is what a resample is. Some classes and rows are drawn by none of them."""
    statistics = case.task.statistics(prediction, case.target).numpy()
    truth = case.task.truth(case.target.numpy()).numpy()
    weights_RN = torch.randint(0, 3, (6, ROWS), generator=generator).numpy()
    weights_RN[4], weights_RN[5] = np.arange(ROWS) == 3, 0
    scores, each = (f(statistics, truth, weights_RN) for f in (case.task.metrics, case.task.per_class))
    for r, weights_N in enumerate(weights_RN):
        rows = np.repeat(np.arange(ROWS), weights_N)
        repeated = case.task.metrics(statistics[rows], truth[rows])
        assert {name: values[r] for name, values in scores.items()} == pytest.approx(repeated, nan_ok=True, abs=1e-12)
        assert case.task.metrics(statistics, truth, weights_N) == pytest.approx(repeated, nan_ok=True, abs=1e-12)
        for name, values in case.task.per_class(statistics[rows], truth[rows]).items():
            assert each[name][r] == pytest.approx(values, nan_ok=True, abs=1e-12)


def test_arrays_score_as_tensors_do(case: Case, prediction: Tensor) -> None:
    """The report, which reads arrays, and training, which holds tensors, score by one definition."""
    statistics, truth = case.task.statistics(prediction, case.target), case.task.truth(case.target.numpy())
    found, arrays = case.task.metrics(statistics, truth), case.task.metrics(statistics.numpy(), truth.numpy())
    assert arrays == pytest.approx(found, abs=1e-6)


def test_settings_bring_the_metrics_back(case: Case, prediction: Tensor) -> None:
    settings = json.loads(json.dumps(case.task.settings()))
    again = type(case.task).from_settings(Target(case.task.target.task, case.task.target.classes), settings)
    statistics = case.task.statistics(prediction, case.target).numpy()
    truth = case.task.truth(case.target.numpy()).numpy()
    assert again.metrics(statistics, truth) == case.task.metrics(statistics, truth)


def test_a_perfect_prediction_scores_best(case: Case, prediction: Tensor) -> None:
    best = case.task.metrics(case.task.statistics(case.perfect, case.target), case.target)
    other = case.task.metrics(case.task.statistics(prediction, case.target), case.target)
    for name in case.task.metric_names:
        smaller = case.task.reported[name].mode == "min"
        assert best[name] == pytest.approx(0.0 if smaller else 1.0, abs=1e-6)
        assert other[name] > best[name] if smaller else other[name] < best[name]
    for values in case.task.per_class(case.task.statistics(case.perfect, case.target), case.target).values():
        assert values == pytest.approx([1.0] * case.task.outputs)
    assert (case.task.loss(case.perfect, case.target) < case.task.loss(prediction, case.target) + 1e-3).all()


def test_a_prediction_without_information_scores_as_the_constant_predictor(case: Case) -> None:
    """The constant predictor's statistics fit the task, are the same for every row, and never beat the truth."""
    task, targets = case.task, case.target.numpy()
    statistics = task.statistics(case.perfect, case.target)
    constant = task.constant_statistics(statistics, targets)
    assert constant.shape == statistics.shape and constant.dtype == statistics.dtype
    if not task.dense:  # a map's statistics hold its truth
        assert (constant == constant[0]).all()
    truth = task.truth(targets)
    best, found = task.metrics(statistics, truth), task.metrics(constant, truth)
    assert list(found) == list(best)
    assert all(not is_better(found[name], best[name], task.reported[name].mode) for name in found)
    both = task.constant_statistics(torch.stack([statistics, statistics]), targets)
    assert torch.equal(both[1], constant)  # patterns before rows


def test_metrics_are_plain_numbers(case: Case, prediction: Tensor) -> None:
    for value in case.task.metrics(case.task.statistics(prediction, case.target), case.target).values():
        assert type(value) is float
