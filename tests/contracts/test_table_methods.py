"""Every method of encoders on a table beside a picture: the table's encoder is trained whole and draws dropout."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from mmsweep.availability import pattern_rows
from mmsweep.data.dataset import Batch
from mmsweep.data.kinds.table import learn
from mmsweep.methods import METHODS
from mmsweep.models.backbone import EncoderBackbone
from mmsweep.models.backbones.dual_encoder import DualEncoder
from mmsweep.models.input_formats import Inputs
from mmsweep.models.lora import Noise
from mmsweep.models.options import ModelOptions
from tests.contracts.test_methods import CLASSES, total

pytestmark = pytest.mark.long

ROWS = 6
CELLS = [(1.0, "a"), (2.0, None), (None, "b"), (4.0, "c"), (0.5, "a"), (3.0, "b")]
TABLE = learn(["x"], ["c"], CELLS[:4])
NAMES = [name for name in METHODS if issubclass(DualEncoder, METHODS[name].accepts)]
ALL = pytest.mark.parametrize("name", NAMES)
OWN = "backbone.encoders.vitals."


def test_these_are_the_methods_of_encoders() -> None:
    assert {"cmpt", "mmp", "plain", "mla", "missing_aware_prompts"} <= set(NAMES)
    assert all(issubclass(EncoderBackbone, METHODS[name].accepts) for name in NAMES)


@pytest.fixture()
def make(encoder_folders: dict[str, str]) -> Any:
    def build(name: str, **spec: Any) -> tuple[Any, Batch]:
        g, noise = torch.Generator().manual_seed(5), Noise()
        sizes = {"width": 8, "heads": 2, "layers": 2, "residual_dropout": 0.1}
        encoders = {
            "image": {"name": encoder_folders["vit"]},
            "vitals": {"source": "scratch", "name": "ft_transformer", "sizes": sizes},
        }
        model = ModelOptions(encoders=encoders, lora={"rank": 2, "dropout": 0.0})
        inputs = Inputs({"image": "image", "vitals": "table"}, tables={"vitals": TABLE})
        network = DualEncoder.build(model, inputs, CLASSES)
        network.reset(g)
        network.adapt(model, noise, g)
        method = METHODS[name](network, METHODS.options(name, **spec), noise, g)
        table = torch.from_numpy(np.stack([TABLE.values(row) for row in CELLS]))
        pictures = torch.randn(ROWS, 3, 16, 16, generator=g)
        placeholders = {"image": torch.tensor(0.0), "vitals": TABLE.placeholder("zeros", {})}
        target = torch.arange(ROWS) % CLASSES
        present = torch.ones(ROWS, 2, dtype=torch.bool)
        return method, Batch({"image": pictures, "vitals": table}, present, target, placeholders=placeholders)

    return build


def patterned() -> torch.Tensor:
    return torch.from_numpy(pattern_rows(("image", "vitals")))[torch.arange(ROWS) % 3]


@ALL
def test_what_is_absent_is_never_read(name: str, make: Any) -> None:
    method, batch = make(name)
    present, results = patterned(), []
    for fill in (0.0, float("nan")):
        vitals = torch.where(present[:, 1:], batch.inputs["vitals"], fill)
        given = replace(batch, inputs=batch.inputs | {"vitals": vitals}, present_BM=present)
        method.zero_grad(set_to_none=True)
        loss = total(method, given, present)
        loss.backward()
        gradients = {n: p.grad.clone() for n, p in method.named_parameters() if p.grad is not None}
        results.append({"": loss.detach(), "prediction": method(given, present).prediction.detach(), **gradients})
    assert results[0].keys() == results[1].keys()
    for part, values in results[0].items():
        assert values.isfinite().all()
        torch.testing.assert_close(results[1][part], values, rtol=0, atol=0, msg=part)


@ALL
def test_patterns_at_once_equal_patterns_one_by_one(name: str, make: Any) -> None:
    method, batch = make(name)
    patterns = torch.from_numpy(pattern_rows(("image", "vitals")))
    with torch.no_grad():
        at_once = method.predict_patterns(batch, patterns)
        one_by_one = torch.stack([method(batch, batch.present_BM & p).prediction for p in patterns])
    torch.testing.assert_close(at_once, one_by_one, rtol=1e-5, atol=1e-6)
    assert (at_once[0] - at_once[-1]).abs().max() > 1e-4


@ALL
def test_the_whole_network_of_the_table_is_trained(name: str, make: Any) -> None:
    method, batch = make(name)
    total(method, batch, batch.present_BM).backward()
    own = {n: p for n, p in method.named_parameters() if n.startswith(OWN)}
    assert own and not any("lora_" in n for n in own) and set(own) <= set(method.trainable())
    assert [n for n, p in own.items() if p.grad is None or not p.grad.any()] == []


@ALL
def test_dropout_comes_from_the_trial_s_own_generator(name: str, make: Any) -> None:
    method, batch = make(name)
    method.train()

    def run(seed: int, rows: slice = slice(0, ROWS)) -> torch.Tensor:
        torch.rand(3)
        method.noise.generators = [torch.Generator().manual_seed(seed)]
        method.noise.total, method.noise.rows = ROWS, rows
        inputs = {m: x[rows] for m, x in batch.inputs.items()}
        part = replace(batch, inputs=inputs, present_BM=batch.present_BM[rows], target=batch.target[rows])
        return method(part, part.present_BM).prediction.detach()

    assert torch.equal(run(1), run(1)) and not torch.equal(run(1), run(2))
    parts = torch.cat([run(1, slice(0, 2)), run(1, slice(2, ROWS))])  # masks do not depend on the ranks
    torch.testing.assert_close(parts, run(1), rtol=1e-5, atol=1e-5)
    method.noise.off()
    assert torch.equal(method(batch, batch.present_BM).prediction, method(batch, batch.present_BM).prediction)


@pytest.mark.parametrize("place", ["input", "attention"])
def test_prompts_enter_a_table_s_blocks(place: str, make: Any) -> None:
    method, batch = make("missing_aware_prompts", place=place, length=4)
    assert method.layers == {"image": [0, 1], "vitals": [0, 1]}
    total(method, batch, patterned()).backward()
    assert method.prompts["vitals"].grad.any()


@ALL
def test_bfloat16_autocast_runs(name: str, make: Any) -> None:
    method, batch = make(name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert method(batch, batch.present_BM).prediction.isfinite().all()
