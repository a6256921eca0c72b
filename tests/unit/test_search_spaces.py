"""Every shipped study is valid and dry-runs without data or weights; the papers' sizes come out exactly."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmsweep.assembly.build import card_of, make_backbone, make_method
from mmsweep.assembly.checks import check
from mmsweep.assembly.plan import dry_run
from mmsweep.availability import Scenario
from mmsweep.errors import UserError
from mmsweep.study import Study
from mmsweep.study.packs import count_trials, pack_limit

pytestmark = pytest.mark.long

FROM_SCRATCH = ("mult",)  # backbones without any pretrained part
STUDIES = sorted((Path(__file__).parents[2] / "search_spaces").rglob("*.yaml"))


@pytest.fixture(autouse=True)
def _nothing_on_disk(monkeypatch):
    for name in (
        "MMIMDB_ROOT",
        "FOOD101_ROOT",
        "KINETICS_SOUNDS_ROOT",
        "CREMAD_ROOT",
        "AVE_ROOT",
        "NYUDV2_ROOT",
        "MCUBES_ROOT",
        "FMB_ROOT",
        "MOSI_ROOT",
        "TUXPAINT_ROOT",
        "MMSWEEP_ENCODERS",
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.stem)
def test_every_shipped_study_dry_runs(path):
    study = Study.load(path)
    check(study)
    plan = dry_run(study)
    assert plan["parameters"]["total"] == sum(plan["parameters"]["by_part"].values())
    whole = "backbone" in study.model.trainable or study.model.backbone.name in FROM_SCRATCH
    assert 0 < plan["parameters"]["trainable"] <= plan["parameters"]["total"]
    assert (plan["parameters"]["trainable"] == plan["parameters"]["total"]) == whole
    assert plan["steps_per_trial"] > 0 and set(plan["tokens"]) == set(card_of(study).modalities)
    assert plan["trials"] == count_trials(study)  # what `tune` starts
    assert Study.parse(study.resolved()) == study


@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.stem)
def test_every_shipped_study_says_how_its_warm_up_goes_and_how_ranks_are_scaled(path):
    """B20 in a comment beside the schedule; where the rank is searched, no rank is scaled down."""
    study, text = Study.load(path), path.read_text()
    said = {"constant": "# Warm-up: held at a tenth of the rate", "linear": "# Warm-up: climbs linearly from a tenth"}
    assert said[study.train.schedule.warmup] in text
    assert "model.lora.rank" not in study.search or study.model.lora.alpha == "rank"


@pytest.mark.parametrize("name", ["cmpt_table1_mmimdb", "cmpt_table1_food101"])
def test_table_1_is_trained_at_the_rates_of_the_test(name):
    """All three rows: masking is off beside the gaps (B3), and validation decides at the same rates."""
    path = next(p for p in STUDIES if p.stem == name)
    metric = "f1_macro" if "mmimdb" in name else "accuracy"
    for image, text in ((30, 100), (65, 65), (100, 30)):
        rates = f"{{available: {{image: {image / 100}, text: {text / 100}}}}}"
        row = f"image-{image}_text-{text}"
        study = Study.load(path, [f"scenarios.train={rates}", f"sweep.objective.metric=val/{row}/{metric}"])
        plan = dry_run(study)
        trained = Scenario.parse(study.scenarios.train, ("image", "text"))
        assert trained.name == row and study.scenarios.train in study.scenarios.evaluate
        assert plan["trials"] == 1 and study.sweep.final.seeds == 3
        with torch.device("meta"):
            backbone = make_backbone(study, card_of(study), load=False, files=False)
        assert make_method(study, backbone).masking is None


@pytest.mark.parametrize(
    ("name", "total", "trainable", "tokens"),  # research/methods.md §E
    [
        ("cmpt_food101", 195_508_325, 226_661, {"image": 198, "text": 41}),
        ("cmpt_kinetics_sounds", 172_159_519, 172_831, {"audio": 1215, "video": 198}),
        ("cmpt_ave", 172_157_212, 170_524, {"audio": 1215, "video": 198}),
        ("cmpt_cremad", 172_140_294, 153_606, {"audio": 1215, "video": 198}),
        ("cmpt_mmimdb", 195_448_343, 166_679, {"image": 198, "text": 257}),
    ],
)
def test_the_papers_sizes(name, total, trainable, tokens):
    path = next(p for p in STUDIES if p.stem == name)
    plan = dry_run(Study.load(path))
    assert (plan["parameters"]["total"], plan["parameters"]["trainable"]) == (total, trainable)
    assert plan["tokens"] == tokens


@pytest.mark.parametrize(("name", "rows"), [("kinetics_sounds", 14_739), ("ave", 3_339), ("cremad", 6_698)])
def test_the_papers_steps_on_sound_and_video(name, rows):
    """A hundred epochs of batches of four."""
    plan = dry_run(Study.load(next(p for p in STUDIES if p.stem == f"cmpt_{name}")))
    assert plan["steps_per_trial"] == 100 * -(-rows // 4)


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_lora_parameters_grow_with_the_rank(rank):
    path = next(p for p in STUDIES if p.stem == "cmpt_food101")
    plan = dry_run(Study.load(path, [f"model.lora.rank={rank}", "sweep.start_from=[]"]))
    assert plan["parameters"]["by_part"]["lora"] == 147_456 * rank


def test_bert_layer_norms_are_the_paper_s_other_reading():
    """B15: 0.2651 M trainable on Food-101 with BERT's LayerNorms."""
    path = next(p for p in STUDIES if p.stem == "cmpt_food101")
    plan = dry_run(Study.load(path, ["model.encoders.text.train_layernorm=true"]))
    assert plan["parameters"]["trainable"] == 226_661 + 38_400


@pytest.mark.parametrize(
    ("name", "network", "tokens"),  # CMNeXt-B4 with 40 and 14 classes, CMNeXt-B2 of four modalities with 20
    [
        ("mmp_nyudv2", 116_576_299, {"rgb": 19_200, "depth": 19_200}),
        ("mmp_fmb", 116_562_961, {"rgb": 30_000, "thermal": 30_000}),
        ("mmp_mcubes", 58_729_560, dict.fromkeys(("rgb", "aolp", "dolp", "nir"), 16_384)),
    ],
)
def test_cmnext_at_the_papers_sizes(name, network, tokens):
    path = next(p for p in STUDIES if p.stem == name)
    plan = dry_run(Study.load(path))
    parts = plan["parameters"]["by_part"]
    assert parts["hub"] + parts["extras"] + parts["head"] == network and plan["tokens"] == tokens
    assert parts["projector"] == plan["parameters"]["total"] - network and 0 < plan["parameters"]["projector_share"] < 1


def test_vilt_at_the_paper_s_size():
    """ViLT-B/32 at 384 pixels and 512 tokens of text; trained are the projection and the head (B25)."""
    parameters = (plan := dry_run(Study.load(next(p for p in STUDIES if p.stem == "mmp_food101"))))["parameters"]
    assert plan["tokens"] == {"image": 145, "text": 512}
    assert parameters["by_part"]["network"] == 111_595_008 + (512 - 40) * 768  # positions
    assert parameters["trainable"] == parameters["by_part"]["projector"] + parameters["by_part"]["head"]
    assert parameters["projector_share"] == parameters["by_part"]["projector"] / parameters["total"]


def test_mult_at_mosi_s_sizes():
    """Text 50 x 768, audio 500 x 5, vision 375 x 20, unaligned, at MMSA's width (research/methods.md §5.3, B35)."""
    path = next(p for p in STUDIES if p.stem == "mmp_sequences")
    plan = dry_run(Study.load(path, ["model.backbone.mult={}"]))
    assert plan["tokens"] == {"text": 46, "audio": 496, "vision": 371}
    parts = plan["parameters"]["by_part"]
    assert sum(count for part, count in parts.items() if part != "projector") == 2_571_551
    assert 0 < parts["projector"] < 200_000


def test_mult_s_dropouts_name_the_dataset_s_modalities():
    path = next(p for p in STUDIES if p.stem == "mmp_sequences")
    with pytest.raises(UserError, match=r"mult\.input_dropout: unknown modality; found 'txt'; .*Did you mean 'text'"):
        check(Study.load(path, ["model.backbone.mult.input_dropout={txt: 0.5}"]))


def test_trimodal_stamps_have_three_encoders_and_seven_patterns():
    for name, proxies in (("cmpt_tuxpaint", 2), ("mmp_tuxpaint", 0)):
        plan = dry_run(Study.load(next(p for p in STUDIES if p.stem == name)))
        assert plan["tokens"] == {"image": 37 + proxies, "text": 24 + proxies, "audio": 100 + proxies}
        patterns = {pattern for counts in plan["scenarios"]["test"].values() for pattern in counts}
        assert len(patterns) == 7


def test_the_earth_s_ablation_has_two_trials_a_rung():
    """Two methods with placeholders and without, two with and without alignment, each at two learning rates; every
    pattern is scored."""
    plan = dry_run(Study.load(next(p for p in STUDIES if p.stem == "mmp_earth_ablation")))
    assert plan["trials"] == 16
    assert len({pattern for counts in plan["scenarios"]["test"].values() for pattern in counts}) == 15


def test_how_many_trials_may_share_a_pass():
    lr = {"train.optimizer.lr": {"log_uniform": [1e-4, 1e-2]}, "model.lora.rank": {"choice": [1, 2]}}
    base = Study.load(STUDIES[0].parent / "quickstart.yaml")

    def searching(**more):
        return Study.parse({**base.resolved(), "search": {**lr, **more}})

    assert pack_limit(searching(), 16) == 16
    assert pack_limit(searching(**{"train.batch_size": {"choice": [8, 16]}}), 16) == 8
    assert pack_limit(searching(**{"train.batch_size": {"int": [8, 32], "step": 8}}), 16) == 4
    assert (
        pack_limit(
            searching(
                **{"data.augmentation.flip": {"choice": [0.0, 0.5]}, "method.proxy.std": {"uniform": [0.01, 0.1]}}
            ),
            16,
        )
        == 1
    )
