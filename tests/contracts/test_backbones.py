"""What every backbone must keep (DESIGN §4), and that ViLT computes what the library's own model does."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from mmsweep.data.dataset import Batch
from mmsweep.errors import UserError
from mmsweep.methods.restoration import token_shapes
from mmsweep.models.backbones.vilt import ViLT
from mmsweep.models.input_formats import Inputs
from mmsweep.models.lora import Noise
from mmsweep.models.options import BACKBONES, LoraOptions, ModelOptions
from tests.contracts.test_methods import CLASSES, FRAMES, ROWS, SCENE, SIZES, TEXT_LENGTH, make_batch, wishes

EVERY = pytest.mark.parametrize(("backbone", "M"), [(b, M) for b in SIZES for M in SIZES[b]])


@pytest.fixture()
def make(encoder_folders):
    def build(backbone, M=2):
        network = BACKBONES[backbone].build(*wishes(backbone, M, encoder_folders), CLASSES)
        network.reset(torch.Generator().manual_seed(5))
        return network, make_batch(network.modalities)

    return build


@EVERY
def test_tokens_are_what_it_says(backbone, M, make, encoder_folders):
    """Full-length inputs give the announced counts, widths and grids; the formats name every modality."""
    network, batch = make(backbone, M)
    for modality, x in batch.inputs.items():
        if isinstance(x, dict):
            more = TEXT_LENGTH - x["ids"].shape[1]
            batch.inputs[modality] = {k: torch.nn.functional.pad(v, (0, more), value=1) for k, v in x.items()}
    tokens = network.embed(batch)
    assert list(tokens) == list(network.modalities) == list(network.formats)
    assert BACKBONES[backbone].formats_of(*wishes(backbone, M, encoder_folders)) == network.formats
    for modality, shape in token_shapes(network).items():
        values = tokens[modality].values_BND
        assert values.shape == (ROWS * shape.sequences, shape.count // shape.sequences, shape.width)
        assert tokens[modality].grid == shape.grid and tokens[modality].sequences == shape.sequences
        assert shape.sequences == (FRAMES if modality == "clip" else 1) and shape.prefix in (0, 1, 2)
    assert network.predict(tokens, batch.present_BM).shape == (ROWS, CLASSES, *(SCENE if network.dense else ()))


@EVERY
def test_an_absent_modality_influences_nothing(backbone, M, make):
    network, batch = make(backbone, M)
    used = batch.present_BM.clone()
    used[:, 0] = False
    with torch.no_grad():
        tokens = network.embed(batch)
        before = network.predict(tokens, used)
        name = network.modalities[0]
        spoilt = tokens[name].values_BND.clone().fill_(float("nan"))
        tokens[name] = type(tokens[name])(spoilt, tokens[name].mask_BN, tokens[name].grid, tokens[name].sequences)
        after = network.predict(tokens, used)
    assert torch.equal(before, after) and before.isfinite().all()


@EVERY
def test_a_trial_s_copy_shares_what_is_frozen(backbone, M, make, encoder_folders):
    network, _ = make(backbone, M)
    part = next(iter(network.parts()))
    model = wishes(backbone, M, encoder_folders, LoraOptions(rank=2, alpha=2.0, dropout=0.0))[0]
    changed = model.encoders[part] if network.encoded else model.backbone
    changed = changed.model_copy(update={"trainable": True})
    whole = {"encoders": {**model.encoders, part: changed}} if network.encoded else {"backbone": changed}
    for trainable, wish in ((set(), model), ({part}, model.model_copy(update=whole))):
        assert wish.trainable == trainable
        own = network.trial_copy(wish)
        own.adapt(wish, Noise(), torch.Generator())
        for name, whole in network.parts().items():
            theirs = {p.data_ptr() for p in own.parts()[name].parameters()}
            shared = all(p.data_ptr() in theirs for p in whole.parameters())
            assert shared == (name not in trainable)
            kinds = {("lora_" in n, p.requires_grad) for n, p in own.parts()[name].named_parameters()}
            assert kinds == ({(False, True)} if name in trainable else {(False, False), (True, True)})


@EVERY
def test_counting_needs_no_memory(backbone, M, encoder_folders):
    with torch.device("meta"):
        network = BACKBONES[backbone].build(*wishes(backbone, M, encoder_folders), CLASSES, load=False)
    network.reset(torch.Generator())
    assert all(p.device.type == "meta" for p in network.parameters()) and network.token_shapes()


def vilt_options(folder, **values):
    return ModelOptions(backbone={"name": "vilt", "weights": folder} | values)


def vilt(folder, inputs=None, **values):
    inputs = Inputs({"image": "image", "text": "text"}, **(inputs or {"length": TEXT_LENGTH}))
    network = ViLT.build(vilt_options(folder, **values), inputs, CLASSES)
    network.reset(torch.Generator().manual_seed(0))  # the head's memory holds anything, NaN too, until it is drawn
    return network


def test_vilt_equals_the_library_s_own_model(encoder_folders):
    """Their patches come in a random order, which attention does not see: compared is what the head reads."""
    ours, batch = vilt(encoder_folders["vilt"]), make_batch(("image", "text"))
    theirs = transformers.ViltModel.from_pretrained(encoder_folders["vilt"]).eval()
    with torch.no_grad():
        text = batch.inputs["text"]
        expected = theirs(
            input_ids=text["ids"], attention_mask=text["mask"].long(), pixel_values=batch.inputs["image"]
        ).pooler_output
        found = ours.predict(ours.embed(batch), batch.present_BM)
        torch.testing.assert_close(found, ours.head(expected), rtol=1e-4, atol=1e-5)


def test_vilt_reads_pictures_of_another_size(encoder_folders):
    ours = vilt(encoder_folders["vilt"], inputs={"size": 32, "length": TEXT_LENGTH})
    assert ours.token_shapes() == {"image": (17, 16), "text": (TEXT_LENGTH, 16)}
    batch = make_batch(("image", "text"))
    batch.inputs["image"] = torch.randn(ROWS, 3, 32, 32)
    theirs = transformers.ViltModel.from_pretrained(encoder_folders["vilt"]).eval()
    with torch.no_grad():
        text = batch.inputs["text"]
        expected = theirs(
            input_ids=text["ids"],
            attention_mask=text["mask"].long(),
            pixel_values=batch.inputs["image"],
            pixel_mask=torch.ones(ROWS, 32, 32),
        ).pooler_output
        torch.testing.assert_close(
            ours.predict(ours.embed(batch), batch.present_BM), ours.head(expected), rtol=1e-4, atol=1e-5
        )


def test_vilt_stretches_its_positions_to_longer_texts(encoder_folders):
    """Lee et al.'s 512 tokens on 40 positions: linear between them, half a step in from both ends."""
    theirs = transformers.ViltModel.from_pretrained(encoder_folders["vilt"])
    old_ND = theirs.embeddings.text_embeddings.position_embeddings.weight.detach().numpy()
    most, length = len(old_ND), 3 * len(old_ND) + 1
    ours = vilt(encoder_folders["vilt"], inputs={"length": length})
    found_ND = ours.network.embeddings.text_embeddings.position_embeddings.weight.numpy()
    places_N = (np.arange(length) + 0.5) * most / length - 0.5
    expected_ND = np.stack([np.interp(places_N, np.arange(most), column) for column in old_ND.T], 1)
    np.testing.assert_allclose(found_ND, expected_ND, rtol=1e-5, atol=1e-6)
    assert ours.token_shapes()["text"] == (length, 16) and not ours.network.embeddings.text_embeddings.training
    batch = make_batch(("image", "text"))
    text = {"ids": torch.randint(5, 30, (ROWS, length)), "mask": torch.ones(ROWS, length, dtype=torch.bool)}
    long = Batch({**batch.inputs, "text": text}, batch.present_BM, batch.target)
    other = {**text, "ids": text["ids"].clone()}
    other["ids"][:, -1] = text["ids"][:, -1] % 25 + 5
    with torch.no_grad():
        found = ours.predict(ours.embed(long), batch.present_BM)
        changed = Batch({**batch.inputs, "text": other}, batch.present_BM, batch.target)
        assert found.isfinite().all() and not torch.equal(found, ours.predict(ours.embed(changed), batch.present_BM))
    as_many = vilt(encoder_folders["vilt"], inputs={"length": most}).network.embeddings.text_embeddings
    assert np.array_equal(as_many.position_embeddings.weight.numpy(), old_ND)


def test_vilt_without_a_text_predicts_from_the_class_token_s_place(encoder_folders):
    """As if the text were [CLS] alone: its content has no say, and [CLS] is the tokenizer's."""
    ours, batch = vilt(encoder_folders["vilt"]), make_batch(("image", "text"))
    used = torch.tensor([[True, False]]).expand(ROWS, -1)
    only = {"ids": torch.full((ROWS, 1), 2), "mask": torch.ones(ROWS, 1, dtype=torch.bool)}
    alone = Batch({**batch.inputs, "text": only}, batch.present_BM, batch.target)
    with torch.no_grad():
        found = ours.predict(ours.embed(batch), used)
        expected = ours.predict(ours.embed(alone), batch.present_BM)
    assert ours.class_id == 2
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_vilt_from_a_configuration_draws_its_own_values(encoder_folders):
    def values(seed):
        network = vilt(encoder_folders["vilt"], pretrained=False, trainable=True)
        torch.rand(3)
        network.reset(torch.Generator().manual_seed(seed))
        return torch.cat([p.detach().flatten() for p in network.parameters()])

    assert torch.equal(values(1), values(1)) and not torch.equal(values(1), values(2))
    network = vilt(encoder_folders["vilt"], pretrained=False, trainable=True)
    network.reset(torch.Generator().manual_seed(1))
    assert network.network.embeddings.patch_embeddings.projection.weight.std() == pytest.approx(0.02, rel=0.2)
    assert network.network.layernorm.weight.eq(1).all() and network.network.pooler.dense.bias.eq(0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": None}, "model.backbone.weights: vilt needs a checkpoint"),
        (
            {"weights": "bert"},
            "bert: model.backbone.weights: not a checkpoint of ViLT; found 'bert'; expected model",
        ),
        ({"weights": "wide"}, r"wide: .*another architecture: \S+ is \(.*\), its config.json says \("),
        ({"weights": "lacks"}, r"lacks: .*the checkpoint lacks 1 tensors, for example layernorm.bias"),
        ({"inputs": {"size": 20}}, "data.image.size: .* found 20; expected a multiple of 8"),
        ({"weights": "cut"}, "model.safetensors: the encoder's weights cannot be read"),
    ],
)
def test_vilt_says_what_is_wrong(change, message, encoder_folders, tmp_path):
    shutil.copytree(encoder_folders["vilt"], tmp_path / "cut")
    (tmp_path / "cut" / "model.safetensors").write_bytes(b"cut off")
    wide, lacks = (shutil.copytree(encoder_folders["vilt"], tmp_path / name) for name in ("wide", "lacks"))
    config = json.loads((wide / "config.json").read_text())
    (wide / "config.json").write_text(json.dumps(config | {"intermediate_size": 7}))
    tensors = load_file(lacks / "model.safetensors")
    tensors.pop(next(name for name in tensors if name.endswith("layernorm.bias") and "layer." not in name))
    save_file(tensors, lacks / "model.safetensors", {"format": "pt"})
    folders = {**encoder_folders, **{name: str(tmp_path / name) for name in ("cut", "wide", "lacks")}}
    if change.get("weights"):
        change = {"weights": folders[change["weights"]]}
    with pytest.raises(UserError, match=message):
        vilt(**{"folder": encoder_folders["vilt"], **change})


def test_vilt_reads_two_modalities_only(encoder_folders):
    kinds = {"image": "image", "text": "text", "audio": "audio"}
    with pytest.raises(UserError, match=r"model.backbone.name: vilt reads one text and one picture"):
        ViLT.build(vilt_options(encoder_folders["vilt"]), Inputs(kinds), CLASSES)


def test_vilt_s_known_architecture_needs_nothing_on_disk():
    inputs = Inputs({"image": "image", "text": "text"})
    with torch.device("meta"):
        network = ViLT.build(vilt_options("dandelin/vilt-b32-mlm"), inputs, 101, load=False, files=False)
    assert network.token_shapes() == {"image": (145, 768), "text": (40, 768)}
    assert sum(p.numel() for p in network.network.parameters()) == 111_595_008
    assert json.dumps(network.token_grids()) == '{"image": [12, 12], "text": [39]}'
