"""Adapters as peft writes and reads them."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model

from mmsweep.errors import UserError
from mmsweep.models.lora import PackedLoRALinear
from mmsweep.models.packing import merge, values_of
from mmsweep.models.peft_format import export_adapter, import_adapter
from tests.unit.packing_helpers import packed_method

pytestmark = pytest.mark.long


@pytest.fixture()
def make(encoder_folders):
    return partial(packed_method, encoder_folders)


def bert(folder):
    return transformers.BertModel.from_pretrained(folder).eval()


def test_an_exported_slot_opens_in_peft(make, encoder_folders, tmp_path):
    pack = merge([make(rank=rank, seed=rank) for rank in (3, 1)])
    network = pack.backbone.encoder("text").network
    ids = torch.randint(5, 30, (2, 6), generator=torch.Generator().manual_seed(0))
    both = network(input_ids=ids.repeat(2, 1)).last_hidden_state.unflatten(0, (2, -1))
    for slot, rank in enumerate((3, 1)):
        export_adapter(network, slot, tmp_path / str(slot))
        theirs = PeftModel.from_pretrained(bert(encoder_folders["bert"]), str(tmp_path / str(slot))).eval()
        assert theirs.peft_config["default"].r == rank and theirs.peft_config["default"].lora_alpha == 1.5
        torch.testing.assert_close(theirs(input_ids=ids).last_hidden_state, both[slot], rtol=1e-5, atol=1e-5)
    assert (both[0] - both[1]).abs().max() > 1e-3


def peft_adapter(encoder_folders, path, linears, **options):
    theirs = get_peft_model(
        bert(encoder_folders["bert"]), LoraConfig(**{"r": 4, "lora_alpha": 7, "target_modules": linears} | options)
    )
    g = torch.Generator().manual_seed(2)
    for name, p in theirs.named_parameters():
        if "lora_" in name:
            p.data.normal_(std=0.2, generator=g)
    theirs.save_pretrained(str(path))
    return theirs.eval()


def test_an_adapter_of_peft_becomes_a_slot(make, encoder_folders, tmp_path):
    pack = merge([make(rank=rank, seed=rank) for rank in (3, 1)])
    encoder = pack.backbone.encoder("text")
    linears = [name.removeprefix("network.") for name in encoder.attention_linears()]
    theirs = peft_adapter(encoder_folders, tmp_path, linears, lora_dropout=0.25)
    before = values_of(pack, 0)
    import_adapter(encoder.network, 1, tmp_path)
    ids = torch.randint(5, 30, (2, 6), generator=torch.Generator().manual_seed(0))
    found = encoder.network(input_ids=ids.repeat(2, 1)).last_hidden_state[2:]
    torch.testing.assert_close(found, theirs(input_ids=ids).last_hidden_state, rtol=1e-5, atol=1e-5)
    layer = next(m for m in encoder.modules() if isinstance(m, PackedLoRALinear))
    assert layer.dropouts == (0.0, 0.25) and layer.alphas == (1.5, 7.0) and layer.down.ranks == (3, 4)
    assert all(torch.equal(v, before[n]) for n, v in values_of(pack, 0).items())


@pytest.mark.parametrize(
    ("options", "message"),
    [({"r": 6}, "rank 6 does not fit into 5"), ({"use_rslora": True}, "use_rslora: the adapter uses an option"),
     ({"target_modules": ["query"]}, "lacks a tensor")],
)  # fmt: skip
def test_adapters_that_do_not_fit_are_refused(options, message, make, encoder_folders, tmp_path):
    network = make().backbone.encoder("text").network
    linears = [name.removeprefix("network.") for name in make().backbone.encoder("text").attention_linears()]
    peft_adapter(encoder_folders, tmp_path, linears, **options)
    with pytest.raises(UserError, match=message):
        import_adapter(network, 0, tmp_path)
    with pytest.raises(UserError, match="the adapter cannot be read"):
        import_adapter(network, 0, tmp_path / "nowhere")
