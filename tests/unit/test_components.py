"""Adding a component is one file: it is then known everywhere. Each kind gets a toy one here."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from pydantic import Field

from mmsweep.check import check_sweep
from mmsweep.components import Registry, register
from mmsweep.errors import UserError
from mmsweep.jobs import company
from mmsweep.methods.modality_dropout import ModalityDropout
from mmsweep.methods.options import METHODS, MaskingMethodOptions
from mmsweep.models.families.family import FAMILIES, PictureFamily
from mmsweep.models.pretrained import PretrainedEncoder
from mmsweep.plan import dry_run
from mmsweep.search_space import SearchSpace
from mmsweep.study import Study
from tests.conftest import WIDTH

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import study_reference


@pytest.fixture()
def toy_method() -> Iterator[type[Any]]:
    @register("toy")
    class Toy(ModalityDropout):
        """A toy."""

        class Options(MaskingMethodOptions):
            temperature: float = Field(1.0, gt=0, description="Temperature of the toy's energy.")
            absent: str = "drop"

        options: Options

    yield Toy
    del METHODS._components["toy"]


def test_a_method_is_one_file(toy_method: type[Any], tiny_study: Study) -> None:
    assert "toy" in METHODS and METHODS["toy"] is toy_method
    values = {**tiny_study.resolved(), "method": {"name": "toy", "temperature": 2.0}, "search": {}}
    study = Study.parse({**values, "search": {"method.temperature": {"choice": [1.0, 2.0]}}})
    check_sweep(study)
    assert study.with_values({"method.temperature": 3.0}).method == METHODS.options("toy", temperature=3.0)
    assert dry_run(study)["parameters"]["total"] > 0 and list(SearchSpace(study).dimensions) == ["method.temperature"]
    assert company(study, 4) == 2  # not fusible: two packs
    assert "## `method` of `toy`" in study_reference.render()
    assert "| `temperature` | float | 1.0 | Temperature of the toy's energy; above 0 |" in study_reference.render()
    with pytest.raises(UserError, match=r"method.temprature: unknown key; .*Did you mean 'temperature'\?"):
        Study.parse({**values, "method": {"name": "toy", "temprature": 2.0}})
    with pytest.raises(UserError, match=r"method.temperature: unknown key; .*It is an option of method toy\."):
        Study.parse({**values, "method": {"name": "cmpt", "temperature": 2.0}})
    with pytest.raises(UserError, match=r"method.temperature: wrong value; found 0"):
        Study.parse({**values, "method": {"name": "toy", "temperature": 0}})
    with pytest.raises(UserError, match=r"method.temperature: wrong value; found 0"):  # also of a choice
        search = {"method.name": {"choice": ["cmpt", "toy"]}}
        Study.parse({**values, "search": search, "method": {"name": "cmpt", "temperature": 0}})


@pytest.fixture()
def toy_family() -> Iterator[type[Any]]:
    @register("deit")
    class Deit(PictureFamily):
        model, pooler, blocks, prefix = "DeiTModel", True, "layers", 2

    yield Deit
    del FAMILIES._components["deit"]


def test_an_encoder_family_is_one_file(toy_family: type[Any], tiny_study: Study, tmp_path: Path) -> None:
    config = transformers.DeiTConfig(image_size=16, patch_size=8, **WIDTH)
    theirs = transformers.DeiTModel(config, add_pooling_layer=False).eval()
    theirs.save_pretrained(tmp_path)
    study = tiny_study.with_values({"model.encoders.image.name": str(tmp_path)})
    check_sweep(study)
    encoder, x = PretrainedEncoder("transformers", str(tmp_path)), torch.randn(2, 3, 16, 16)
    assert dry_run(study)["parameters"]["by_part"]["encoder image"] == sum(p.numel() for p in theirs.parameters())
    with torch.no_grad():
        tokens = encoder.embed(x)
        torch.testing.assert_close(encoder.encode(tokens), theirs(x).last_hidden_state)
    assert tokens.values_BND.shape[1:] == encoder.token_shape() == (2 + 4, 16) and tokens.grid == (2, 2)


def test_defaults_of_other_choices_change_no_study(tiny_study: Study) -> None:
    """A sweep that an older version began lists the options of all methods in its study; it is resumed all the same."""
    search = {"method.name": {"choice": ["cmpt", "plain"]}, "train.optimizer.lr": {"choice": [0.001, 0.01]}}
    values = {**tiny_study.resolved(), "search": search}
    plainly = Study.parse({**values, "method": {"name": "cmpt"}})
    listed = Study.parse({**values, "method": {"name": "cmpt", "absent": "drop", "aggregated_tokens": 8}})
    assert listed.resolved() == plainly.resolved()
    other = Study.parse({**values, "method": {"name": "cmpt", "absent": "placeholder"}})
    assert other.with_values({"method.name": "plain"}).method.absent == "placeholder"


def test_two_components_cannot_share_a_name(toy_method: type[Any]) -> None:
    with pytest.raises(ValueError, match="two components of one name: method cmpt"):
        register("cmpt")(toy_method)


def test_a_registry_imports_what_is_asked_for() -> None:
    registry = Registry("part", "mmsweep.methods")
    assert "no_such" not in registry and "../etc" not in registry and "" not in registry


def test_options_that_components_share_have_one_default() -> None:
    """Where a name is searched, values go from one component to the next. A default that differs is written null."""
    seen: dict[str, Any] = {}
    for name, method in METHODS.items():
        for key, field in method.Options.model_fields.items():
            if key != "name":
                default = field.get_default(call_default_factory=True)
                assert seen.setdefault(key, default) == default, f"{key} of {name}"
