"""Segmentation: the losses and metrics against independent arithmetic, evaluation by indexing, test-time views."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from sklearn.metrics import confusion_matrix, jaccard_score
from torch import Tensor

from mmsweep.availability import Scenario, availability_table, pattern_rows, patterns
from mmsweep.data.dataset import Batch
from mmsweep.models.lora import Noise
from mmsweep.study.sections import Inference
from mmsweep.tasks.segmentation import Segmentation, confusion
from mmsweep.tasks.task import IGNORE, Target
from mmsweep.training.evaluation import missing_summary, predict, scenario_metrics, write_evaluation
from mmsweep.training.inference import WHOLE, predict_patterns
from mmsweep.training.world import World

C, MODALITIES = 4, ("rgb", "height", "night")
TARGET = Target("segmentation", ("a", "b", "c", "d"))


def maps(rows: int = 5, seed: int = 0, size: tuple[int, int] = (6, 7)) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    target = torch.randint(0, C, (rows, *size), generator=g)
    target[torch.rand(target.shape, generator=g) < 0.3] = IGNORE
    return torch.randn(rows, C, *size, generator=g), target


# ---- losses


def test_cross_entropy_is_the_mean_over_a_samples_labelled_pixels() -> None:
    prediction, target = maps()
    target[3] = IGNORE
    loss = Segmentation(TARGET).loss(prediction, target)
    for row in range(5):
        labelled = target[row] != IGNORE
        log_p = prediction[row].permute(1, 2, 0)[labelled].log_softmax(-1)
        expected = -log_p[torch.arange(len(log_p)), target[row][labelled]].mean() if len(log_p) else torch.zeros(())
        torch.testing.assert_close(loss[row], expected)
    assert loss[3] == 0


def test_hard_pixels_are_those_below_seven_tenths() -> None:
    prediction, target = maps(seed=1)
    prediction *= 3
    loss = Segmentation(TARGET, hard_pixels=True).loss(prediction, target)
    for row in range(5):
        labelled = target[row] != IGNORE
        p = prediction[row].softmax(0).permute(1, 2, 0)[labelled].gather(1, target[row][labelled][:, None])[:, 0]
        assert 0 < (p < 0.7).sum() < len(p) and (p < 0.7).sum() >= len(p) // 16
        torch.testing.assert_close(loss[row], -p[p < 0.7].log().mean())


def test_at_least_a_sixteenth_of_the_pixels_is_learnt_from() -> None:
    """64 labelled pixels, all easy: the four hardest count; an unlabelled sample costs nothing and has a gradient."""
    prediction = torch.zeros(2, C, 8, 8)
    target = torch.zeros(2, 8, 8, dtype=torch.long)
    prediction[:, 0] = torch.linspace(3, 9, 64).reshape(8, 8)
    target[1] = IGNORE
    prediction.requires_grad_(True)
    loss = Segmentation(TARGET, hard_pixels=True).loss(prediction, target)
    torch.testing.assert_close(loss[0], -prediction[0].log_softmax(0)[0].flatten()[:4].mean())
    assert loss[1] == 0
    loss.sum().backward()
    assert prediction.grad is not None and prediction.grad.isfinite().all() and (prediction.grad[1] == 0).all()


def test_balanced_weights_count_pixels() -> None:
    target = torch.tensor([[[0, 0, 0, 1], [IGNORE, 3, 3, IGNORE]]])
    task = Segmentation.of(TARGET, target.numpy(), {"train.class_weights": "balanced", "train.hard_pixels": True})
    assert isinstance(task, Segmentation) and task.hard_pixels and task.class_weights is not None
    torch.testing.assert_close(task.class_weights, torch.tensor([6 / 12, 6 / 4, 1.0, 6 / 8]))


# ---- metrics


@pytest.mark.parametrize("seed", range(3))
def test_matrices_and_ious_are_sklearns(seed: int) -> None:
    prediction, target = maps(seed=seed)
    task = Segmentation(TARGET)
    statistics = task.statistics(prediction, target)
    assert statistics.dtype == torch.int32 and statistics.shape == (5, C, C)
    for row in range(5):
        kept = target[row] != IGNORE
        truth, said = target[row][kept].numpy(), prediction[row].argmax(0)[kept].numpy()
        assert (statistics[row].numpy() == confusion_matrix(truth, said, labels=range(C))).all()
    kept = target != IGNORE
    truth, said = target[kept].numpy(), prediction.argmax(1)[kept].numpy()
    iou_C = jaccard_score(truth, said, labels=range(C), average=None)
    found = task.metrics(statistics, target)
    assert found["miou"] == pytest.approx(iou_C.mean()) and found["pixel_accuracy"] == pytest.approx(
        (truth == said).mean()
    )
    assert task.per_class(statistics, target)["iou"] == pytest.approx(iou_C.tolist())


def test_a_class_that_occurs_nowhere_counts_zero_or_not_at_all() -> None:
    """methods.md §E: absent from prediction and truth: 0 by DELIVER's rule, skipped by "present classes only"."""
    task = Segmentation(TARGET)
    target = torch.tensor([[[0, 0, 1, 1]]])
    prediction = F.one_hot(torch.tensor([[[0, 0, 1, 2]]]), C).movedim(-1, 1).float()  # 3 occurs nowhere, 2 is wrong
    found = task.metrics(task.statistics(prediction, target), target)
    assert found["miou"] == pytest.approx((1 + 0.5 + 0 + 0) / 4)
    assert found["miou_present"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert found["pixel_accuracy"] == 0.75


def test_all_patterns_at_once_are_those_one_by_one() -> None:
    g = torch.Generator().manual_seed(0)
    said, truth = torch.randint(0, C, (3, 2, 5, 6), generator=g), torch.randint(0, C, (2, 5, 6), generator=g)
    whole = confusion(said, truth.expand(3, 2, 5, 6), C)
    assert torch.equal(whole, torch.stack([confusion(one, truth, C) for one in said])) and whole.sum() == 3 * 2 * 30


# ---- evaluation


class Known:
    """A method that says what it was told for a pattern, and a split to say it of."""

    def __init__(self, rows: int = 9) -> None:
        self.rows, self.groups = rows, ()
        self.P = 2 ** len(MODALITIES) - 1
        _, self.target = maps(rows)
        g = torch.Generator().manual_seed(3)
        self.says = torch.randn(self.P, rows, C, 6, 7, generator=g)
        self.backbone = SimpleNamespace(modalities=MODALITIES)
        self.noise = Noise()
        self.asked: list[int] = []
        self.targets = self.target.numpy().astype(np.uint8)
        self.natural_NM = np.ones((rows, len(MODALITIES)), bool)
        self.ids = [f"r{i}" for i in range(rows)]

    def eval(self) -> None: ...

    def __len__(self) -> int:
        return self.rows

    def batch(self, index: np.ndarray, device: object) -> Batch:
        inputs: dict[str, Any] = {m: torch.zeros(len(index), 1, 6, 7) for m in MODALITIES}
        present = torch.ones(len(index), len(MODALITIES), dtype=torch.bool)
        return Batch(inputs, present, self.target[index], torch.from_numpy(index))

    def predict_patterns(self, batch: Batch, patterns_PM: Tensor) -> Tensor:
        rows = pattern_rows(MODALITIES).tolist()
        self.asked.append(len(patterns_PM))
        return torch.stack([self.says[rows.index(p.tolist())][batch.index] for p in patterns_PM])


def test_every_scenario_is_a_sum_of_matrices(tmp_path: Any) -> None:
    known: Any = Known()
    task = Segmentation(TARGET)
    predictions = predict(known, task, known, 4, torch.device("cpu"), World())
    assert set(known.asked) == {1}  # maps of one pattern at a time
    assert predictions.statistics_PN.shape == (7, 9, C, C) and predictions.statistics_PN.dtype == torch.int32
    scenario = Scenario.parse({"rate": 0.6, "type": "both"}, MODALITIES)
    scores = scenario_metrics(predictions, task, [scenario], 5)
    table = availability_table(scenario, 9, MODALITIES, 5)
    order = pattern_rows(MODALITIES).tolist()
    prediction = torch.stack([known.says[order.index(table[row].tolist()), row] for row in range(9)])
    expected = task.metrics(task.statistics(prediction, known.target), known.target)
    assert {m: scores[f"{scenario.name}/{m}"] for m in task.metric_names} == pytest.approx(expected)
    each = [task.metrics(task.statistics(known.says[p], known.target), known.target) for p in range(1, 7)]
    mean, worst = missing_summary(predictions, task)
    assert len(patterns(MODALITIES)) == 7
    assert mean["miou"] == pytest.approx(np.mean([e["miou"] for e in each]))
    assert worst["miou"] == pytest.approx(min(e["miou"] for e in each))
    write_evaluation(tmp_path, {}, predictions)
    with np.load(tmp_path / "predictions.npz", allow_pickle=False) as file:
        assert file["confusions_PNCC"].dtype == np.int32 and "scores_PNC" not in file.files


def test_a_rank_without_rows_has_nothing_to_say() -> None:
    known: Any = Known(0)
    assert predict(known, Segmentation(TARGET), known, 4, torch.device("cpu"), World()).statistics_PN.shape == (
        7, 0, C, C)  # fmt: skip


# ---- views at test


class Convolution:
    """A method that is a convolution of its one input."""

    def __init__(self, side: int = 3) -> None:
        self.weight = torch.randn(C, 1, side, side, generator=torch.Generator().manual_seed(0))

    def predict_patterns(self, batch: Batch, patterns_PM: Tensor) -> Tensor:
        x = batch.inputs["rgb"]
        assert isinstance(x, Tensor)
        return torch.stack([F.conv2d(x, self.weight, padding="same") * (1 + p.sum()) for p in patterns_PM])


def picture(size: tuple[int, int] = (20, 17)) -> Batch:
    x = torch.randn(2, 1, *size, generator=torch.Generator().manual_seed(1))
    return Batch({"rgb": x}, torch.ones(2, 1, dtype=torch.bool), torch.zeros(2, *size, dtype=torch.long))


ONE = torch.ones(1, 1, dtype=torch.bool)


def test_the_default_is_one_pass() -> None:
    method: Any = Convolution()
    assert torch.equal(predict_patterns(WHOLE, method, picture(), ONE), method.predict_patterns(picture(), ONE))


@pytest.mark.parametrize(("window", "stride"), [(8, None), (8, 3), (8, 8), (19, 5), (40, None)])
def test_windows_cover_every_pixel_and_average(window: int, stride: int | None) -> None:
    method: Any = Convolution(1)  # sees one pixel: windows change nothing
    found = predict_patterns(Inference(window=window, stride=stride), method, picture(), ONE)
    whole = method.predict_patterns(picture(), ONE)
    torch.testing.assert_close(found.softmax(2), whole.softmax(2))


def test_overlaps_are_averaged() -> None:
    """Windows of 8 on a strip of 12: columns 4 to 7 are seen twice, near the border of one and inside of the other."""
    method: Any = Convolution()
    batch = picture((8, 12))
    found = predict_patterns(Inference(window=8, stride=4), method, batch, ONE)
    x = batch.inputs["rgb"]
    assert isinstance(x, Tensor)
    left, right = (2 * F.conv2d(x[..., a : a + 8], method.weight, padding="same") for a in (0, 4))
    expected = torch.cat([left[..., :4], (left[..., 4:] + right[..., :4]) / 2, right[..., 4:]], -1)
    torch.testing.assert_close(found[0].softmax(1), expected.softmax(1))


def test_flips_and_scales_average_probabilities() -> None:
    method: Any = Convolution()
    batch = picture((16, 12))
    x = batch.inputs["rgb"]
    assert isinstance(x, Tensor)
    views = []
    for scale in (1.0, 1.5):
        size = (round(16 * scale), round(12 * scale))
        seen = x if scale == 1.0 else F.interpolate(x, size, mode="bilinear")
        for mirrored in (False, True):
            logits = 2 * F.conv2d(seen.flip(-1) if mirrored else seen, method.weight, padding="same")
            logits = logits.flip(-1) if mirrored else logits
            views.append(F.interpolate(logits, (16, 12), mode="bilinear").softmax(1))
    found = predict_patterns(Inference(scales=(1.0, 1.5), flip=True), method, batch, ONE)
    torch.testing.assert_close(found[0].exp(), torch.stack(views).mean(0))
    assert Inference(scales=(1.0, 1.5), flip=True).views == 4


@pytest.mark.parametrize("wrong", [{"scales": ()}, {"scales": (0.0,)}, {"stride": 4}, {"window": 8, "stride": 9}])
def test_impossible_views_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"scales|leave gaps"):
        Inference(**wrong)
