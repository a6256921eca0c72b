"""How near stand-ins come: by hand, against what the methods really put in, and only on rows that have everything."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmsweep.assembly.build import make_method
from mmsweep.assembly.host import Warm
from mmsweep.methods.method import StandIn
from mmsweep.methods.restoration import per_sample
from mmsweep.training.stand_ins import similarity, write_stand_ins
from mmsweep.training.world import World


@pytest.fixture(scope="module")
def warm():
    return Warm("cpu", World())


@pytest.fixture()
def ready(tiny_gaps_study, warm):
    """(method, test split) by a method's name; rows 40 and 44 lack a picture, 41 and 45 a text."""

    def of(name):
        study = tiny_gaps_study.with_values({"method.name": name})
        data, backbone = warm.ready(study)
        method = make_method(study, backbone)
        method.eval()
        method.noise.off()
        return method, data.splits["test"]

    return of


def test_similarity_by_hand():
    real = torch.tensor([[[3.0, 4.0], [1.0, 0.0]], [[1.0, 0.0], [9.0, 9.0]]])
    guess = torch.tensor([[[4.0, 3.0], [0.0, 2.0]], [[1.0, 0.0], [-5.0, 7.0]]])
    cosine, mse = similarity(StandIn(real, guess))
    torch.testing.assert_close(cosine[0], torch.tensor((24 / 25 + 0) / 2))
    torch.testing.assert_close(mse[0], torch.tensor(((1 + 1) / 2 + (1 + 4) / 2) / 2))
    cosine, mse = similarity(StandIn(real, guess, torch.tensor([[True, True], [True, False]])))
    assert cosine[1] == 1 and mse[1] == 0  # what is padding is not compared


def test_cmpt_compares_proxies_with_the_class_token(ready):
    method, split = ready("cmpt")
    batch = split.batch(np.flatnonzero(split.natural_NM.all(1)), torch.device("cpu"))
    with torch.no_grad():
        found, (class_BMD, proxy_BSTD) = method.stand_ins(batch), method.read(batch)
    for place, modality in enumerate(method.backbone.modalities):
        torch.testing.assert_close(found[modality].real_BND[:, 0], class_BMD[:, place])
        torch.testing.assert_close(found[modality].guess_BND[:, 0], proxy_BSTD[:, 1 - place, place])


@pytest.mark.parametrize("name", ["mmp", "linear_projection"])
def test_restored_tokens_are_those_that_a_prediction_uses(name, ready):
    method, split = ready(name)
    batch = split.batch(np.flatnonzero(split.natural_NM.all(1)), torch.device("cpu"))
    shapes = method.projector.shapes
    with torch.no_grad():
        found, tokens = method.stand_ins(batch), method.backbone.embed(batch)
        for place, modality in enumerate(method.backbone.modalities):
            used = torch.ones_like(batch.present_BM)
            used[:, place] = False
            whole, _ = method.restore(tokens, used)
            taken = per_sample(whole[modality], shapes[modality]).values_BND
            pair = found[modality]
            torch.testing.assert_close(pair.guess_BND, taken[:, : pair.guess_BND.shape[1]])
            torch.testing.assert_close(pair.real_BND, per_sample(tokens[modality], shapes[modality]).values_BND)
    assert found["text"].mask_BN is not None and not found["text"].mask_BN.all()


@pytest.mark.parametrize("name", ["cmpt", "mmp"])
def test_only_whole_rows_are_compared(name, ready, tmp_path):
    method, split = ready(name)
    (small := tmp_path / "small").mkdir()
    (large := tmp_path / "large").mkdir()
    write_stand_ins(small, method, split, 3, torch.device("cpu"))
    with np.load(small / "stand_ins.npz", allow_pickle=False) as file:
        assert file["modalities"].tolist() == list(method.backbone.modalities)
        cosine_MN, mse_MN = file["cosine_MN"], file["mse_MN"]
    whole_N = split.natural_NM.all(1)
    assert 0 < whole_N.sum() < len(split)
    for values in (cosine_MN, mse_MN):
        np.testing.assert_array_equal(np.isnan(values), np.broadcast_to(~whole_N, values.shape))
    assert (np.abs(cosine_MN[:, whole_N]) <= 1 + 1e-6).all() and (mse_MN[:, whole_N] > 0).all()
    write_stand_ins(large, method, split, 9, torch.device("cpu"))
    with np.load(large / "stand_ins.npz", allow_pickle=False) as file:
        np.testing.assert_allclose(file["cosine_MN"], cosine_MN, atol=1e-5)  # batches do not matter


def test_nothing_is_written_where_nothing_is_replaced(ready, tmp_path):
    method, split = ready("modality_dropout")
    write_stand_ins(tmp_path, method, split, 8, torch.device("cpu"))
    assert not list(tmp_path.iterdir())
