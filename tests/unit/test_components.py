"""Adding a component is one file: it is then known everywhere. Each kind gets a toy one here."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import transformers
from pydantic import Field

from mmsweep.assembly.build import card_of, make_backbone, make_builder, make_method, prepare_data
from mmsweep.assembly.checks import check, check_sweep
from mmsweep.assembly.plan import dry_run
from mmsweep.cli.inputs import data_list, list_components
from mmsweep.components import Registry, Section, register
from mmsweep.data.cells import text_of
from mmsweep.data.dataset import Batch, DatasetBuilder, Sample
from mmsweep.data.kinds.image import ImageFormat
from mmsweep.data.kinds.kind import Column, Format, Layout
from mmsweep.data.kinds.text import TextFormat
from mmsweep.data.options import DATASETS, KINDS, FolderOptions
from mmsweep.data.prepared import prepare
from mmsweep.errors import UserError
from mmsweep.methods.modality_dropout import ModalityDropout
from mmsweep.methods.options import METHODS, MaskingMethodOptions
from mmsweep.models.backbone import Backbone
from mmsweep.models.encoder import Tokens
from mmsweep.models.families.family import FAMILIES, PictureFamily
from mmsweep.models.input_formats import Inputs
from mmsweep.models.options import BACKBONES, BackboneOptions, ModelOptions
from mmsweep.models.pretrained import PretrainedEncoder
from mmsweep.study import Study
from mmsweep.study.packs import pack_limit
from mmsweep.study.space import SearchSpace
from mmsweep.tasks.task import Target
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
    assert pack_limit(study, 4) == 2  # not fusible: two packs
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


@pytest.fixture()
def toy_backbone() -> Iterator[type[Any]]:
    @register("toy")
    class Toy(Backbone):
        class Options(BackboneOptions):
            width: int = Field(4, ge=1, description="Width of the toy's tokens.")

        def __init__(self, inputs: Inputs, outputs: int, width: int) -> None:
            super().__init__()
            self.modalities, self.outputs, self.width = tuple(inputs.kinds), outputs, width
            self.formats = {"image": ImageFormat(8), "text": TextFormat("", inputs.length or 5)}
            self.patches, self.words = torch.nn.Conv2d(3, width, 4, 4), torch.nn.Embedding(9, width)
            self.head = torch.nn.Linear(width, outputs)

        @classmethod
        def build(cls, model: ModelOptions, inputs: Inputs, outputs: int, load: bool = True, files: bool = True) -> Any:
            return cls(inputs, outputs, model.backbone.width)  # type: ignore[attr-defined]

        def token_shapes(self) -> dict[str, tuple[int, int]]:
            return {"image": (4, self.width), "text": (self.formats["text"].length, self.width)}

        def embed(self, batch: Batch) -> dict[str, Tokens]:
            image, text = self.patches(batch.inputs["image"]), self.words(batch.inputs["text"]["ids"])
            return {"image": Tokens(image.flatten(2).mT, None, (4,)), "text": Tokens(text, None, (text.shape[1],))}

        def predict(self, tokens: Mapping[str, Tokens], used_BM: torch.Tensor) -> torch.Tensor:
            means = torch.stack([tokens[m].values_BND.mean(1) for m in self.modalities], 1)
            return self.head((means * used_BM[..., None]).sum(1))

    yield Toy
    del BACKBONES._components["toy"]


def test_a_backbone_is_one_file(toy_backbone: type[Any], tiny_values: dict[str, Any]) -> None:
    values = {**tiny_values, "method": {"name": "plain"}, "model": {"backbone": {"name": "toy"}, "lora": None}}
    study = Study.parse({**values, "search": {"model.backbone.width": {"choice": [4, 6]}}})
    check_sweep(study)
    card = card_of(study)
    method = make_method(study, make_backbone(study, card))
    plan = dry_run(study)
    assert plan["tokens"] == {"image": 4, "text": 8} and list(plan["search"]) == ["model.backbone.width"]
    assert plan["parameters"]["total"] == sum(p.numel() for p in method.parameters())
    batch = Batch({"image": torch.randn(2, 3, 8, 8), "text": {"ids": torch.ones(2, 8, dtype=torch.int64)}},
                  torch.ones(2, 2, dtype=torch.bool), torch.zeros(2, dtype=torch.int64))  # fmt: skip
    assert method(batch, batch.present_BM).prediction.shape == (2, card.target.width)
    assert "## `model.backbone` of `toy`" in study_reference.render()
    with pytest.raises(UserError, match=r"model.backbone.widht: unknown key; .*Did you mean 'width'\?"):
        study.with_values({"model.backbone.widht": 3})
    with pytest.raises(UserError, match=r"search.model.backbone.width: .*impossible value.*found 0"):
        check_sweep(study.with_values({"search": {"model.backbone.width": {"choice": [0, 4]}}}))
    with pytest.raises(UserError, match=r"method.name: method cmpt does not work on backbone toy"):
        check_sweep(study.with_values({"method.name": "cmpt"}))
    with pytest.raises(UserError, match=r"model.encoders: backbone toy takes no encoders"):
        study.with_values({"model.encoders": tiny_values["model"]["encoders"]})


def test_the_backbone_s_options_stand_alone(tiny_values: dict[str, Any]) -> None:
    """A study of an older version lists what all backbones have; a section without a name is the usual backbone's."""
    mult = {"width": 50, "heads": 10, "levels": 4, "kernel": 5, "attention_dropout": 0.3,
            "key_dropout": {"audio": 0.2, "vision": 0.0}, "input_dropout": {"text": 0.5}, "embedding_dropout": 0.2,
            "output_dropout": 0.5}  # fmt: skip
    own = {"size": None, "mult": mult, "weights": None, "pretrained": True, "trainable": False}
    for listed in ({"name": "dual_encoder", **own}, own, {}):
        study = Study.parse({**tiny_values, "model": {**tiny_values["model"], "backbone": listed}})
        assert study.resolved() == Study.parse(tiny_values).resolved()
        assert study.resolved()["model"]["backbone"] == {"name": "dual_encoder"}
    with pytest.raises(UserError, match=r"model.backbone.mult: unknown key; .*It is an option of backbone mult\."):
        Study.parse({**tiny_values, "model": {**tiny_values["model"], "backbone": {**own, "mult": {"width": 20}}}})


def test_what_there_is_can_be_listed(toy_method: type[Any], capsys: pytest.CaptureFixture[str]) -> None:
    list_components()
    shown = capsys.readouterr().out
    assert "method toy: A toy." in shown and "temperature" not in shown
    assert [name for name in METHODS if f"method {name}: " in shown] == list(METHODS)
    list_components("toy")
    shown = capsys.readouterr().out
    assert "temperature (1.0): Temperature of the toy's energy." in shown and "cmpt" not in shown
    list_components("toy", as_json=True)
    (about,) = json.loads(capsys.readouterr().out)["method"]
    assert about["name"] == "toy" and about["options"]["temperature"]["default"] == 1.0
    with pytest.raises(UserError, match=r"no component has this name; found 'toi'"):
        list_components("toi")


@pytest.fixture()
def toy_dataset(tiny_table: Path) -> Iterator[type[Any]]:
    @register("toy")
    class Toy(DatasetBuilder):
        """Pictures, each with a word."""

        class Options(FolderOptions):
            shift: int = Field(0, ge=0, description="Number of the first picture.")

        name, title, get = "toy", "a toy", "made here"
        modalities = {"image": "image", "text": "text"}  # noqa: RUF012
        target = Target("single_label", ("a", "b"))
        rows = {"train": 8, "val": 2, "test": 2}  # noqa: RUF012

        def splits(self) -> dict[str, list[Sample]]:
            assert self.root is not None
            rows = [
                Sample(str(i), {"image": self.root / f"{i + self.options.shift}.png", "text": "ab"[i % 2]}, "ab"[i % 2])
                for i in range(12)
            ]
            return {"train": rows[:8], "val": rows[8:10], "test": rows[10:]}

        def provenance(self) -> str:
            return "made here"

    yield Toy
    del DATASETS._components["toy"]


def test_a_dataset_is_one_file(toy_dataset: type[Any], tiny_study: Study, tiny_table: Path, capsys: Any) -> None:
    data = {"dataset": "toy", "root": str(tiny_table), "shift": 1, "text": {"length": 8}}
    values = {**tiny_study.resolved(), "data": data, "search": {"data.shift": {"choice": [1, 2]}}}
    study = Study.parse(values)
    check_sweep(study)
    assert Study.parse(study.resolved()) == study and study.with_values({"data.shift": 2}).data.shift == 2
    plan = dry_run(study)
    assert plan["steps_per_trial"] == 2 and list(plan["tokens"]) == ["image", "text"]
    assert "## `data` of `toy`" in study_reference.render()
    assert "| `shift` | int | 0 | Number of the first picture; at least 0 |" in study_reference.render()
    prepared = prepare_data(study)
    batch = prepared.splits["train"].batch(np.arange(8))
    assert batch.inputs["image"].shape == (8, 3, 16, 16) and batch.target.tolist() == [0, 1] * 4
    data_list()
    assert "toy: a toy" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"data.shft: unknown key; .*Did you mean 'shift'\?"):
        Study.parse({**values, "data": {**data, "shft": 1}})
    with pytest.raises(UserError, match=r"data.shift: unknown key; .*It is an option of dataset toy\."):
        Study.parse({**values, "search": {}, "data": {"dataset": "openclipart", "shift": 1}})


@pytest.fixture()
def toy_kind() -> Iterator[type[Any]]:
    @register("levels")
    @dataclass(frozen=True)
    class Levels(Format):
        """A few numbers, written in a cell."""

        count: int

        kind: ClassVar[str] = "levels"
        word: ClassVar[str] = "row of levels"

        class Options(Column):
            count: int = Field(ge=1, description="Numbers in a cell.")

            def value(self, cell: Any, folder: Path) -> Any:
                return text_of(cell)

            def format(self) -> Format:
                return Levels(self.count)

        class Reading(Section):
            """How levels are read."""

            limit: float = Field(1.0, gt=0, description="Largest level.")

        @property
        def from_files(self) -> bool:
            return False

        def key(self) -> dict[str, Any]:
            return {"kind": self.kind, "count": self.count}

        def columns(self) -> Layout:
            return [("", np.float32, (self.count,))]

        def decoder(self, varied: bool) -> Any:
            return lambda value: {"": np.array([float(part) for part in value.split()], np.float32)}

    yield Levels
    del KINDS._components["levels"]


def test_a_kind_of_modality_is_one_file(toy_kind: type[Any], tiny_study: Study, tmp_path: Path) -> None:
    rows = [f"{i}.5 {'nan' if i == 3 else i},{'' if i % 4 == 1 else 'abc'},{'ab'[i % 2]}" for i in range(20)]
    (tmp_path / "rows.csv").write_text("\n".join(["levels,words,kind", *rows]))
    columns = {
        "levels": {"kind": "levels", "column": "levels", "count": 2},
        "text": {"kind": "text", "column": "words"},
    }
    target = {"task": "single_label", "column": "kind"}
    data = {"dataset": "manifest", "path": str(tmp_path / "rows.csv"), "modalities": columns, "target": target}
    data |= {"levels": {"limit": 20.0}, "on_bad": "skip"}  # as version 0.1 wrote it: max_bad 1
    values = {**tiny_study.resolved(), "data": data, "search": {}}
    study = Study.parse(values)
    assert Study.parse(study.resolved()) == study and study.data.reading("levels").limit == 20
    assert card_of(study).formats == {"levels": toy_kind(2)}
    page = study_reference.render()
    assert "## `data.modalities.<modality>` of `levels`" in page and "| `count` | int | required | Numbers" in page
    assert "## `data.levels`" in page and "| `limit` | float | 1.0 | Largest level; above 0 |" in page
    text = TextFormat(study.model.encoders["text"].name, 8)
    builder = make_builder(study)
    prepared = prepare(builder, {**builder.formats, "text": text}, tmp_path / "cache", max_bad=1.0, fill="mean")
    assert [row.reason for row in prepared.skipped] == ["levels: the row of levels 3.5 nan holds nan at row 1"]
    train = prepared.splits["train"]
    present = np.ones((len(train), 2), bool)
    present[0] = False, True
    levels = train.batch(np.arange(len(train)), present=present).inputs["levels"]
    whole = train.batch(np.arange(len(train))).inputs["levels"]
    assert levels.shape == (len(train), 2) and torch.equal(levels[1:], whole[1:])
    torch.testing.assert_close(levels[0], whole.mean().expand(2))
    with pytest.raises(UserError, match=r"data.modalities.levels.conut: unknown key; .*Did you mean 'count'\?"):
        Study.parse({**values, "data": {**data, "modalities": {"levels": {**columns["levels"], "conut": 3}}}})
    with pytest.raises(UserError, match=r"data.modalities.text.count: unknown key; .*kind of modality levels\."):
        Study.parse({**values, "data": {**data, "modalities": {"text": {**columns["text"], "count": 3}}}})
    with pytest.raises(UserError, match=r"data.levels.limit: this option has no effect.*a modality of kind levels"):
        check(tiny_study.with_values({"data.levels.limit": 2.0}))


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
    with pytest.raises(ValueError, match="two components have the same name: method cmpt"):
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
