"""`model.backbone` from the study file on: whole networks train like encoders do, and dry runs need nothing on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmsweep.assembly.checks import check
from mmsweep.assembly.host import Warm
from mmsweep.assembly.plan import dry_run
from mmsweep.errors import UserError
from mmsweep.record.trial import TrialFolder
from mmsweep.study import Study
from mmsweep.study.packs import Job
from mmsweep.training.checkpoint import load_checkpoint
from mmsweep.training.world import World

SPACES = Path(__file__).parents[2] / "search_spaces"


@pytest.fixture()
def vilt_study(tiny_values, encoder_folders):
    model = {"backbone": {"name": "vilt", "weights": encoder_folders["vilt"]}, "lora": tiny_values["model"]["lora"]}
    return Study.parse(tiny_values | {"model": model, "method": {"name": "mmp"}})


def run(study, path, report=lambda r: False):
    folder = TrialFolder(path)
    folder.create({"id": "0", "params": {}}, study.to_yaml())
    Warm("cpu", World()).run(Job("0", "final", str(path), study), report)
    return folder


@pytest.mark.parametrize("method", ["plain", "modality_dropout", "linear_projection", "mmp"])
def test_vilt_trains_and_is_evaluated_on_test(method, vilt_study, tmp_path):
    study = vilt_study.with_values({"method.name": method, "train.epochs": 1})
    folder = run(study, tmp_path / "run")
    assert folder.done() == {"state": "finished", "error": None} and (folder.path / "evaluation.json").exists()
    trained = load_checkpoint(folder.last_checkpoint())[0]
    assert ("projector" in {n.split(".")[0] for n in trained}) == (method in ("mmp", "linear_projection"))
    assert {n.split(".")[1] for n in trained if n.startswith("backbone.")} == {"network", "head"}
    assert all("lora_" in n for n in trained if n.startswith("backbone.network."))


@pytest.mark.parametrize("how", ["encoders", "frozen", "trainable", "from scratch"])
def test_resuming_mmp_equals_never_having_stopped(how, vilt_study, tiny_study, tmp_path):
    study = tiny_study.with_values({"method.name": "mmp"}) if how == "encoders" else vilt_study
    if how == "frozen":
        study = study.with_values({"model.lora": None})
    elif how != "encoders":
        study = study.with_values({"model.backbone": {**study.model.backbone.model_dump(), "trainable": True,
                                                      "pretrained": how == "trainable"}})  # fmt: skip
    whole = run(study, tmp_path / "whole")
    run(study, tmp_path / "stopped", lambda r: r.epoch == 1)
    again = run(study, tmp_path / "stopped")
    assert [r.metrics for r in again.reports()] == [r.metrics for r in whole.reports()]
    first, second = (load_checkpoint(f.last_checkpoint())[0] for f in (whole, again))
    assert all((first[n] == second[n]).all() for n in first)
    own = {n for n in first if n.startswith("backbone.network.")}
    assert bool(own) == (how in ("trainable", "from scratch")) and not any("lora_" in n for n in own)


@pytest.mark.parametrize(("method", "parts"), [("mmp", {"network", "head", "lora", "projector"}),
                                               ("plain", {"network", "head", "lora"})])  # fmt: skip
def test_a_dry_run_at_the_paper_s_size(method, parts):
    """ViLT-B/32 at 384 pixels and 40 words on Food-101, with nothing on disk."""
    values = Study.load(SPACES / "cmpt_food101.yaml").resolved()
    values["model"] = {"backbone": {"name": "vilt", "weights": "dandelin/vilt-b32-mlm"}}
    values["method"] = {"name": method}
    values["data"]["image"]["size"] = values["data"]["text"]["length"] = None
    values["search"] = {}
    plan = dry_run(Study.parse(values))
    assert plan["tokens"] == {"image": 145, "text": 40} and set(plan["parameters"]["by_part"]) == parts
    assert plan["parameters"]["by_part"]["network"] == 111_595_008
    if method == "mmp":
        D, K = 768, 8
        own = 2 * (K * D + 9 * D * D + 2 * D + 2 * (D * D + D)) + (145 + 40) * K
        assert plan["parameters"]["by_part"]["projector"] == own
        assert plan["parameters"]["projector_share"] == own / plan["parameters"]["total"]


@pytest.mark.parametrize("K", [1, 16])
def test_a_dry_run_of_the_quickstart_counts_the_projector(K):
    plan = dry_run(Study.load(SPACES / "mmp_quickstart.yaml", [f"method.aggregated_tokens={K}"]))
    assert 0 < plan["parameters"]["projector_share"] < 1 and plan["parameters"]["by_part"]["projector"] > 0
    assert set(plan["search"]) >= {"method.aggregated_tokens", "method.align_weight", "method.masking.probability"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"model.backbone.name": "vitl"},
            "model.backbone.name: unknown backbone; found 'vitl'; expected one of cmnext, dual_enc.*mean 'vilt'",
        ),
        (
            {"method.name": "cmpt"},
            "method.name: method cmpt does not work on backbone vilt; found 'cmpt'; expected one of",
        ),
        ({"method.name": "mpm"}, "method.name: unknown method; .* Did you mean 'mmp'"),
        ({"search": {"method.name": {"choice": ["mmp", "cmpt"]}}}, "search.method.name: method cmpt does not work"),
        (
            {"model.backbone.pretrained": False},
            "model.backbone: a frozen network with initial values; .*trainable: true",
        ),
        ({"model.encoders": {"image": {"name": "a"}}}, "model.encoders: backbone vilt takes no encoders"),
        ({"model.backbone.mult": {"levels": 2}}, "model.backbone.mult: unknown key; .* an option of backbone mult."),
        (
            {"model.backbone": {"name": "cmnext", "size": "nano", "trainable": True}},
            "model.backbone: cmnext needs a file of weights; .*FILE.safetensors, or pretrained: false",
        ),
        (
            {"model.backbone.size": "nano"},
            "model.backbone.size: unknown key; .*expected one of name, weights, .*It is an option of backbone cmnext.",
        ),
        (
            {"model.backbone": {"name": "cmnext"}},
            r"model.backbone.size: cmnext, which reads rasters, needs a size; .*expected nano, or b0 to b5",
        ),
        ({"train.init_from": "nowhere"}, "train.init_from: no trained weights lie here; found 'nowhere'"),
        ({"inference.flip": True}, "inference.flip: this option has no effect in this study; found True"),
        ({"inference.window": 32}, "inference.window: this option has no effect in this study; found 32"),
        ({"method.projector": {"width": 20}}, "method.projector: width 20 does not divide into 8 heads"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(values, message, vilt_study):
    with pytest.raises(UserError, match=message):
        check(vilt_study.with_values(values))


def test_encoders_are_refused_where_there_is_none(tiny_study):
    with pytest.raises(UserError, match=r"model.encoders: backbone dual_encoder needs an encoder for each modality"):
        tiny_study.with_values({"model.encoders": {}})
    with pytest.raises(UserError, match=r"model.backbone.trainable: unknown key; .* option of backbone cmnext, vilt\."):
        tiny_study.with_values({"model.backbone.trainable": True})


def test_the_weight_in_force_is_the_method_s_own(tiny_study):
    """Also where a sweep goes through methods; and it is where a search starts."""
    assert tiny_study.method.align_weight is None and tiny_study.value("method.align_weight") == 0.2
    other = tiny_study.with_values({"method.name": "mmp"})
    assert other.method.alignment == other.value("method.align_weight") == 1.0
    assert other.with_values({"method.align_weight": 0.0}).method.alignment == 0.0


def test_paths_are_taken_from_the_study_file(tiny_values, tmp_path, monkeypatch):
    import yaml

    values = tiny_values | {"train": {"init_from": "first/trials/0003"}, "method": {"name": "mmp"}}
    values["model"] = {"backbone": {"name": "vilt", "weights": "./vilt"}}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(values))
    study = Study.load(tmp_path / "s.yaml")
    assert study.train.init_from == str(tmp_path / "first/trials/0003")
    assert study.model.backbone.weights == str(tmp_path / "vilt")
    values["train"]["init_from"] = "${FIRST_STAGE}/x"
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(values))
    monkeypatch.delenv("FIRST_STAGE", raising=False)
    assert Study.load(tmp_path / "s.yaml").train.init_from == "${FIRST_STAGE}/x"  # a dry run needs no first stage
