"""Tasks by numbers: losses against torch, F1 against a slow loop and scikit-learn, thresholds and weights by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import f1_score
from torch import Tensor

from mmsweep.tasks.multi_label import MultiLabel
from mmsweep.tasks.regression import Regression
from mmsweep.tasks.single_label import SingleLabel
from mmsweep.tasks.task import Target

LETTERS = tuple("abcdefgh")
BALANCED = {"train.class_weights": "balanced"}


def single(classes: int) -> Target:
    return Target("single_label", LETTERS[:classes])


def multi(labels: int) -> Target:
    return Target("multi_label", LETTERS[:labels])


def slow_f1(hit_N: list[bool], truth_N: list[bool]) -> float | None:
    """F1 of one class by counting; None where the class occurs in neither."""
    right = sum(h and t for h, t in zip(hit_N, truth_N, strict=True))
    either = sum(h + t for h, t in zip(hit_N, truth_N, strict=True))
    return None if either == 0 else 2 * right / either


# ---- losses


def test_single_label_loss_is_cross_entropy(generator: torch.Generator) -> None:
    prediction, target = torch.randn(7, 4, generator=generator), torch.tensor([0, 1, 2, 3, 0, 0, 2])
    loss = SingleLabel(single(4)).loss(prediction, target)
    torch.testing.assert_close(loss.mean(), F.cross_entropy(prediction, target))
    rows = zip(prediction.tolist(), target.tolist(), strict=True)
    by_hand = [math.log(sum(math.exp(x) for x in row)) - row[t] for row, t in rows]
    torch.testing.assert_close(loss, torch.tensor(by_hand))
    weights = torch.tensor([1.0, 2.0, 0.5, 3.0])
    torch.testing.assert_close(SingleLabel(single(4), weights).loss(prediction, target), weights[target] * loss)


def test_multi_label_loss_is_the_mean_over_labels(generator: torch.Generator) -> None:
    prediction, target = (
        torch.randn(5, 3, generator=generator),
        torch.randint(0, 2, (5, 3), generator=generator).float(),
    )
    loss = MultiLabel(multi(3)).loss(prediction, target)
    torch.testing.assert_close(loss.mean(), F.binary_cross_entropy_with_logits(prediction, target))
    p = prediction.sigmoid()
    torch.testing.assert_close(loss, -(target * p.log() + (1 - target) * (1 - p).log()).mean(1))
    weights = torch.tensor([2.0, 1.0, 5.0])
    weighted = MultiLabel(multi(3), label_weights=weights).loss(prediction, target)
    torch.testing.assert_close(weighted, -(weights * target * p.log() + (1 - target) * (1 - p).log()).mean(1))


def test_losses_in_half_precision_are_computed_in_full(generator: torch.Generator) -> None:
    prediction = torch.randn(4, 3, generator=generator).bfloat16()
    for task, target in (
        (SingleLabel(single(3)), torch.tensor([0, 1, 2, 0])),
        (MultiLabel(multi(3)), torch.eye(4)[:, :3]),
        (Regression(Target("regression")), torch.rand(4, generator=generator)),
    ):
        loss = task.loss(prediction, target)
        assert loss.dtype == torch.float32 and torch.equal(loss, task.loss(prediction.float(), target))
        assert task.statistics(prediction, target).dtype == torch.float32


# ---- F1


@pytest.mark.parametrize("seed", range(4))
def test_single_label_metrics_against_loop_and_sklearn(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    classes, rows = 6, 40
    target = torch.randint(0, classes - 2, (rows,), generator=g)  # the last two never in truth …
    scores = torch.rand(rows, classes, generator=g)
    scores[:, -1] = 0  # … and the last not in predictions either
    task = SingleLabel(single(classes))
    found, each = task.metrics(scores, target), task.per_class(scores, target)["f1"]
    hits, truth = scores.argmax(1).tolist(), target.tolist()
    slow = [slow_f1([h == c for h in hits], [t == c for t in truth]) for c in range(classes)]
    occurring = [f for f in slow if f is not None]
    assert slow[-1] is None and slow[-2] == 0.0 and len(occurring) == classes - 1
    assert found["f1_macro"] == pytest.approx(sum(occurring) / len(occurring), abs=1e-6)
    assert found["f1_macro"] == pytest.approx(f1_score(truth, hits, average="macro"), abs=1e-6)
    right = sum(h == t for h, t in zip(hits, truth, strict=True))
    assert found["accuracy"] == found["f1_micro"] == pytest.approx(right / rows)
    assert found["f1_micro"] == pytest.approx(f1_score(truth, hits, average="micro"), abs=1e-6)
    assert each == pytest.approx([f or 0.0 for f in slow], abs=1e-6)
    assert list(found) == list(task.metric_names)


@pytest.mark.parametrize("seed", range(4))
def test_multi_label_metrics_against_loop_and_sklearn(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    labels, rows = 5, 30
    target = (torch.rand(rows, labels, generator=g) < 0.3).float()
    scores = torch.rand(rows, labels, generator=g)
    target[:, 4], scores[:, 4] = 0.0, 0.0  # a label that nobody has and nobody predicts
    task = MultiLabel(multi(labels))
    found, each = task.metrics(scores, target), task.per_class(scores, target)["f1"]
    hits, truth = (scores > 0.5).numpy(), target.bool().numpy()
    slow = [slow_f1(hits[:, c].tolist(), truth[:, c].tolist()) or 0.0 for c in range(labels)]
    assert each == pytest.approx(slow, abs=1e-6) and slow[4] == 0.0
    assert found["f1_macro"] == pytest.approx(sum(slow) / labels, abs=1e-6)
    assert found["f1_macro"] == pytest.approx(f1_score(truth, hits, average="macro", zero_division=0), abs=1e-6)
    assert found["f1_micro"] == pytest.approx(slow_f1(hits.ravel().tolist(), truth.ravel().tolist()), abs=1e-6)
    assert found["f1_micro"] == pytest.approx(f1_score(truth, hits, average="micro"), abs=1e-6)
    assert found["accuracy"] == pytest.approx(np.mean([(h == t).all() for h, t in zip(hits, truth, strict=True)]))
    assert list(found) == list(task.metric_names)


def test_f1_by_hand() -> None:
    scores, target = torch.eye(3)[[0, 0, 1, 1, 2]], torch.tensor([0, 1, 1, 1, 0])
    found = SingleLabel(single(3)).metrics(scores, target)  # F1: a 2/4, b 4/5, c 0/1
    assert found["accuracy"] == 0.6 and found["f1_macro"] == pytest.approx((0.5 + 0.8 + 0.0) / 3)
    labels = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    certain = torch.tensor([[0.9, 0.9], [0.4, 0.9], [0.5, 0.1]])  # 0.5 itself is no prediction
    found = MultiLabel(multi(2)).metrics(certain, labels)  # tp 1, 1; fp 0, 1; fn 1, 1
    assert found["f1_macro"] == pytest.approx((2 / 3 + 1 / 2) / 2) and found["f1_micro"] == pytest.approx(4 / 7)
    assert found["accuracy"] == 0.0


# ---- balanced weights


def test_balanced_class_weights() -> None:
    target = torch.tensor([0] * 6 + [1] * 3 + [2])
    task = SingleLabel.of(single(4), target.numpy(), BALANCED)
    assert isinstance(task, SingleLabel) and task.class_weights is not None
    torch.testing.assert_close(task.class_weights, torch.tensor([10 / 24, 10 / 12, 10 / 4, 1.0]))  # d does not occur
    share = [task.class_weights[target][target == c].sum().item() for c in range(3)]
    assert share == pytest.approx([10 / 4] * 3)  # each class weighs alike
    whole = SingleLabel.of(single(3), target.numpy(), BALANCED)
    assert isinstance(whole, SingleLabel) and whole.class_weights is not None
    assert whole.class_weights[target].mean().item() == pytest.approx(1.0)
    plain = SingleLabel.of(single(4), target.numpy(), {"train.class_weights": "none"})
    assert isinstance(plain, SingleLabel) and plain.class_weights is None


def test_balanced_label_weights() -> None:
    target = torch.zeros(100, 4)
    target[:50, 0], target[:20, 1], target[:1, 2] = 1, 1, 1
    task = MultiLabel.of(multi(4), target.numpy(), BALANCED)
    assert isinstance(task, MultiLabel) and task.label_weights is not None
    torch.testing.assert_close(task.label_weights, torch.tensor([1.0, 4.0, 20.0, 20.0]))  # at most 20


# ---- tuned thresholds


def test_tuned_thresholds_by_hand() -> None:
    # a: positives at .31 and .41, negatives at .11, .21: F1 is 1 in [.21, .31); of .25 and .30 the nearest to .5
    # b: positives at .81 and .91, negatives at .61, .71: F1 is 1 in [.71, .81); of .75 and .80 the nearest to .5
    # c: no positives: any threshold scores 0, so .5 stays
    scores = torch.tensor([[0.31, 0.91, 0.6], [0.41, 0.81, 0.1], [0.11, 0.61, 0.9], [0.21, 0.71, 0.2]])
    target = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    weights = torch.ones(3)
    half = MultiLabel(multi(3), label_weights=weights)
    tuned = half.tuned(scores, target)
    assert tuned.thresholds is not None and half.thresholds is None and tuned.label_weights is weights
    assert tuned.thresholds.tolist() == pytest.approx([0.3, 0.75, 0.5], abs=1e-6)
    assert tuned.per_class(scores, target)["f1"] == [1.0, 1.0, 0.0]
    assert half.per_class(scores, target)["f1"] == pytest.approx([0.0, 2 / 3, 0.0])
    again = torch.tensor([[0.29, 0.74, 0.51]])
    assert tuned.per_class(again, torch.ones(1, 3))["f1"] == [0.0, 0.0, 1.0]


def test_a_tuned_threshold_is_the_best_of_the_grid() -> None:
    g = torch.Generator().manual_seed(3)
    scores, target = torch.rand(60, 4, generator=g), (torch.rand(60, 4, generator=g) < 0.35).float()
    tuned = MultiLabel(multi(4)).tuned(scores, target).per_class(scores, target)["f1"]
    for c in range(4):
        truth = target[:, c].bool().tolist()
        every = [slow_f1((scores[:, c] > k / 20).tolist(), truth) or 0.0 for k in range(1, 20)]
        assert tuned[c] == pytest.approx(max(every), abs=1e-6)


# ---- regression


def test_regression_metrics(generator: torch.Generator) -> None:
    task = Regression(Target("regression"))
    truth = torch.randn(50, generator=generator)
    scores = (2 * truth + 0.3 * torch.randn(50, generator=generator) + 1)[:, None]
    found = task.metrics(scores, truth)
    assert found["mae"] == pytest.approx(np.abs(scores[:, 0].numpy() - truth.numpy()).mean(), rel=1e-5)
    assert found["correlation"] == pytest.approx(np.corrcoef(scores[:, 0].numpy(), truth.numpy())[0, 1], rel=1e-5)
    assert task.metrics(-truth[:, None], truth)["correlation"] == pytest.approx(-1.0)
    torch.testing.assert_close(task.loss(scores, truth).mean(), F.l1_loss(scores[:, 0], truth))
    assert task.outputs == 1 and task.per_class(scores, truth) == {}


@pytest.mark.parametrize(
    ("scores", "truth"),
    [([0.5, 0.5, 0.5], [1.0, 2.0, 3.0]), ([0.5, 0.6, 0.7], [1.0, 1.0, 1.0]), ([0.5], [1.0])],
)
def test_a_constant_has_no_correlation(scores: list[float], truth: list[float]) -> None:
    found = Regression(Target("regression")).metrics(torch.tensor(scores)[:, None], torch.tensor(truth))
    assert found["correlation"] == 0.0 and math.isfinite(found["mae"])


SIGNED = Regression(Target("regression", signed=True))


def test_the_constant_positive_predictor_on_mosi() -> None:
    """277 positive, 379 negative and 30 neutral clips (methods.md §5.4): TFN's and LMF's row in MMP's table."""
    truth = torch.cat([torch.full((277,), 1.2), torch.full((379,), -0.8), torch.zeros(30)])
    found = SIGNED.metrics(torch.full((686, 1), 0.3), truth)
    assert found["non0_accuracy"] == pytest.approx(0.42226, abs=5e-6)
    assert found["non0_f1_weighted"] == pytest.approx(0.25073, abs=5e-6)  # the swapped arguments give .59378
    assert found["has0_accuracy"] == pytest.approx(307 / 686)
    assert found["has0_f1_weighted"] == pytest.approx(307 / 686 * 2 * 307 / (307 + 686))


def test_a_prediction_of_zero_is_not_negative_in_one_convention_and_not_positive_in_the_other() -> None:
    found = SIGNED.metrics(torch.zeros(4, 1), torch.tensor([2.0, -1.0, 0.0, -3.0]))
    assert found["has0_accuracy"] == 0.5  # 2 and 0 are said to be at least 0, and so are -1 and -3
    assert found["non0_accuracy"] == pytest.approx(2 / 3)  # of 2, -1, -3 none is said to be positive


def test_sign_metrics_against_sklearn(generator: torch.Generator) -> None:
    from sklearn.metrics import accuracy_score, f1_score

    truth = (torch.randn(200, generator=generator) * 2).round()
    scores = truth[:, None] + 2 * torch.randn(200, 1, generator=generator)
    found, polar = SIGNED.metrics(scores, truth), truth != 0
    t, p = (truth[polar] > 0).numpy(), (scores[polar, 0] > 0).numpy()
    assert found["non0_accuracy"] == pytest.approx(accuracy_score(t, p))
    assert found["non0_f1_weighted"] == pytest.approx(f1_score(t, p, average="weighted"))
    t, p = (truth >= 0).numpy(), (scores[:, 0] >= 0).numpy()
    assert found["has0_accuracy"] == pytest.approx(accuracy_score(t, p))
    assert found["has0_f1_weighted"] == pytest.approx(f1_score(t, p, average="weighted"))
    assert abs(found["non0_f1_weighted"] - f1_score(p, t, average="weighted")) > 1e-4  # the order matters
    assert list(found) == list(SIGNED.metric_names)


def test_only_neutral_rows_have_no_sign() -> None:
    found = SIGNED.metrics(torch.randn(3, 1), torch.zeros(3))
    assert math.isnan(found["non0_accuracy"]) and math.isnan(found["non0_f1_weighted"])
    assert math.isfinite(found["has0_accuracy"])
    assert Regression(Target("regression")).metric_names == ("mae", "correlation")


@pytest.mark.parametrize(("name", "torch_s"), [("l1", F.l1_loss), ("mse", F.mse_loss), ("smooth_l1", F.smooth_l1_loss)])
def test_regression_losses(name: str, torch_s: Callable[..., Tensor], generator: torch.Generator) -> None:
    task = Regression(Target("regression"), name)  # type: ignore[arg-type]
    prediction, truth = 3 * torch.randn(20, 1, generator=generator), torch.randn(20, generator=generator)
    torch.testing.assert_close(task.loss(prediction, truth).mean(), torch_s(prediction[:, 0], truth))


def test_no_rows_give_no_number() -> None:
    none: dict[str, tuple[SingleLabel | MultiLabel | Regression, Tensor]] = {
        "single": (SingleLabel(single(3)), torch.zeros(0, dtype=torch.int64)),
        "multi": (MultiLabel(multi(3)), torch.zeros(0, 3)),
        "number": (Regression(Target("regression")), torch.zeros(0)),
    }
    for task, target in none.values():
        found = task.metrics(torch.zeros(0, task.outputs), target)
        assert list(found) == list(task.metric_names) and all(math.isnan(v) for v in found.values())
        for values in task.per_class(torch.zeros(0, task.outputs), target).values():
            assert len(values) == 3 and all(math.isnan(v) for v in values)
