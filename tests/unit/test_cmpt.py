"""CMPT's equations against a few lines of independent arithmetic."""

from __future__ import annotations

import pytest
import torch

from mmsweep.availability import pattern_rows
from tests.contracts.test_methods import CLASSES, ROWS, make  # noqa: F401 - a fixture


def parts(method, batch):
    with torch.no_grad():
        return method.read(batch)


def test_equation_2_and_3_one_sequence_per_modality(make):  # noqa: F811
    method, batch = make("cmpt", 2)
    lengths = []
    for modality in method.backbone.modalities:
        encoder = method.backbone.encoder(modality)
        original = encoder.encode
        encoder.encode = lambda tokens, *more, original=original: (
            lengths.append(tokens.values_BND.shape[1]),
            original(tokens, *more),
        )[1]
    class_BMD, proxy_BSTD = parts(method, batch)
    assert lengths == [4 + 1 + 1, 7 + 1]
    assert class_BMD.shape == (ROWS, 2, 16) and proxy_BSTD.shape == (ROWS, 2, 2, 16)


def test_equation_4_by_hand(make):  # noqa: F811
    method, batch = make("cmpt", 2)
    class_BMD, proxy_BSTD = parts(method, batch)
    batch.present_BM[:2] = torch.tensor([[True, False], [False, True]])
    term = method.alignment(class_BMD, proxy_BSTD, batch.present_BM)
    mse = torch.nn.functional.mse_loss
    by_hand = torch.stack(
        [mse(proxy_BSTD[b, 0, 1], class_BMD[b, 1]) + mse(proxy_BSTD[b, 1, 0], class_BMD[b, 0]) for b in range(2, ROWS)]
    )
    assert term.counted_B.tolist() == [False] * 2 + [True] * (ROWS - 2)
    torch.testing.assert_close(term.values_B[2:], by_hand)
    assert term.values_B[:2].tolist() == [0.0, 0.0]


def test_equation_5_by_hand(make):  # noqa: F811
    method, batch = make("cmpt", 2)
    class_BMD, proxy_BSTD = parts(method, batch)
    used = torch.tensor([[True, True], [False, True], [True, False]])
    fused = method.gate(class_BMD[:3], proxy_BSTD[:3], used)
    expected = [
        class_BMD[0, 0] + class_BMD[0, 1],
        class_BMD[1, 1] + proxy_BSTD[1, 1, 0],  # m1 is missing: CLS_2 + CMPT of 2
        class_BMD[2, 0] + proxy_BSTD[2, 0, 1],
    ]
    torch.testing.assert_close(fused, torch.stack(expected))


@pytest.mark.parametrize("M", [3, 4])
def test_more_modalities_use_the_mean_of_the_available_proxies(M, make):  # noqa: F811
    method, batch = make("cmpt", M)
    class_BMD, proxy_BSTD = parts(method, batch)
    for row in torch.from_numpy(pattern_rows(method.backbone.modalities)):
        used = row.expand(ROWS, -1)
        expected = torch.zeros(ROWS, 16)
        for t in range(M):
            if row[t]:
                expected += class_BMD[:, t]
            else:
                expected += torch.stack([proxy_BSTD[:, s, t] for s in range(M) if row[s]]).mean(0)
        torch.testing.assert_close(method.gate(class_BMD, proxy_BSTD, used), expected)


def test_equation_6_and_7(make):  # noqa: F811
    method, batch = make("cmpt", 2, align_weight=0.3)
    output = method(batch, batch.present_BM)
    class_BMD, _ = parts(method, batch)
    head = method.backbone.head
    torch.testing.assert_close(output.prediction, class_BMD.sum(1) @ head.weight[0].T + head.bias[0])
    assert method.weights == {"align": 0.3} and output.prediction.shape == (ROWS, CLASSES)


def test_masking_acts_on_the_gate_alone(make):  # noqa: F811
    """B5: a present but unused modality still serves as alignment target."""
    method, batch = make("cmpt", 2)
    used = torch.tensor([[True, False]] * ROWS)
    assert torch.equal(
        method(batch, used).losses["align"].values_B, method(batch, batch.present_BM).losses["align"].values_B
    )


def test_detached_target_gets_no_gradient(make):  # noqa: F811
    gradients = []
    for detach in (False, True):
        method, batch = make("cmpt", 2, detach_target=detach)
        class_BMD, proxy_BSTD = method.read(batch)
        class_BMD.retain_grad()
        method.alignment(class_BMD, proxy_BSTD, batch.present_BM).values_B.sum().backward()
        gradients.append(class_BMD.grad)
    assert gradients[0].abs().sum() > 0 and gradients[1] is None


def test_all_patterns_cost_one_encoder_pass(make):  # noqa: F811
    method, batch = make("cmpt", 4)
    passes = []
    for modality in method.backbone.modalities:
        encoder = method.backbone.encoder(modality)
        original = encoder.encode
        encoder.encode = lambda tokens, *more, original=original, modality=modality: (
            passes.append(modality),
            original(tokens, *more),
        )[1]
    method.predict_patterns(batch, torch.from_numpy(pattern_rows(method.backbone.modalities)))
    assert sorted(passes) == sorted(method.backbone.modalities)


@pytest.mark.parametrize("place", ["first", "last"])
def test_proxy_place_and_start(place, make):  # noqa: F811
    method, batch = make("cmpt", 3, proxy={"place": place, "init": "cls", "trainable": False})
    assert not any(n.startswith("proxies") for n in method.trainable())
    image = method.backbone.encoder("image")
    assert torch.equal(method.proxies["image"][0, 0], image.class_embedding())
    class_BMD, proxy_BSTD = parts(method, batch)
    assert class_BMD.isfinite().all() and (proxy_BSTD[:, 0, 1] - class_BMD[:, 0]).abs().max() > 0
