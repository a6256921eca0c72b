"""What every encoder must keep: DESIGN §4, and that ours computes exactly what the library's own model does."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from mmsweep.data.kinds.table import learn
from mmsweep.errors import UserError
from mmsweep.models.backbones.dual_encoder import DualEncoder
from mmsweep.models.families.timm import SplitQKV
from mmsweep.models.input_formats import Inputs
from mmsweep.models.last_block import wanted_tokens
from mmsweep.models.lora import Noise, PackedLoRALinear, add_lora
from mmsweep.models.options import ModelOptions, Sizes
from mmsweep.models.packing import values_of
from mmsweep.models.pretrained import PretrainedEncoder

FAMILIES = ["clip", "vit", "dinov2", "ast", "bert", "whisper", "timm", "ft_transformer"]
FOLDERS = [name for name in FAMILIES if name not in ("timm", "ft_transformer")]
INPUTS = Inputs({"it": "any"})
TABLE = learn(["x", "y"], ["c"], [(1.0, 5.0, "a"), (2.0, None, "b"), (4.0, 2.0, None)])
SIZES = Sizes(width=16, heads=2, layers=2)


def of_table(inputs: Inputs) -> Inputs:
    return replace(inputs, kinds={"it": "table"}, tables={"it": TABLE})


def sample_input(name: str, rows: int = 3):
    generator = torch.Generator().manual_seed(1)
    if name == "bert":
        ids = torch.randint(5, 30, (rows, 7), generator=generator)
        return {"ids": ids, "mask": torch.arange(7)[None] < torch.tensor([7, 4, 5])[:rows, None]}
    if name == "ft_transformer":
        cells = [(1.5, 3.0, "a"), (None, 2.5, "new"), (9.0, None, None)]
        return torch.from_numpy(np.stack([TABLE.values(row) for row in cells[:rows]]))
    shape = {"ast": (36, 26), "whisper": (20, 8), "timm": (3, 32, 32)}.get(name, (3, 16, 16))
    return torch.randn(rows, *shape, generator=generator)


@pytest.fixture(scope="module")
def tiny_timm(tmp_path_factory):
    import json

    from safetensors.torch import save_file

    args = dict(img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2)
    torch.manual_seed(3)
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=0, **args).eval()
    folder = tmp_path_factory.mktemp("timm")
    save_file(model.state_dict(), folder / "model.safetensors")
    cfg = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "num_classes": 0}
    config = {"architecture": "vit_tiny_patch16_224", "num_classes": 0, "model_args": args, "pretrained_cfg": cfg}
    (folder / "config.json").write_text(json.dumps(config))
    return f"local-dir:{folder}", model


@pytest.fixture()
def make(encoder_folders, tiny_timm):
    def build(name: str, **kwargs) -> PretrainedEncoder:
        if name == "timm":
            return PretrainedEncoder("timm", tiny_timm[0], **kwargs)
        if name == "ft_transformer":
            wanted = {"sizes": SIZES} | kwargs | {"inputs": of_table(kwargs.get("inputs", INPUTS))}
            encoder = PretrainedEncoder("scratch", name, **wanted)
            for number, parameter in enumerate(encoder.parameters()):  # fresh empty cells would say nothing
                torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(number))
            return encoder
        return PretrainedEncoder("transformers", encoder_folders[name], **kwargs)

    return build


def format_of(source: str, name: str, inputs: Inputs = INPUTS, **wish):
    """Its format as a backbone tells it, without building the encoder."""
    model = ModelOptions(encoders={"it": {"source": source, "name": name, **wish}})
    return DualEncoder.formats_of(model, inputs)["it"]


@pytest.mark.parametrize("name", FAMILIES)
def test_its_format_is_known_before_it_is_built(name, make, encoder_folders, tiny_timm):
    own = {"timm": ("timm", tiny_timm[0]), "ft_transformer": ("scratch", name)}
    place = own[name] if name in own else ("transformers", encoder_folders[name])
    for inputs in (INPUTS, replace(INPUTS, length=9)):
        wanted = of_table(inputs) if name == "ft_transformer" else inputs
        assert format_of(*place, wanted) == make(name, inputs=inputs).format


@pytest.mark.parametrize("wish", [{"layers": 99}, {"pool": "pooler"}])
def test_what_an_encoder_may_lack_is_refused_before_it_is_built(wish, encoder_folders):
    with pytest.raises(UserError, match=r"fewer layers|no pooler"):
        format_of("transformers", encoder_folders["vit"], **wish)


@pytest.mark.parametrize("name", FAMILIES)
def test_equals_the_library_s_own_model(name, make, encoder_folders, tiny_timm):
    encoder, x = make(name), sample_input(name)
    with torch.no_grad():
        ours = encoder.encode(encoder.embed(x))
        if name == "timm":
            theirs = tiny_timm[1].forward_features(x)
        elif name == "bert":
            model = transformers.BertModel.from_pretrained(encoder_folders[name]).eval()
            theirs = model(input_ids=x["ids"], attention_mask=x["mask"].long()).last_hidden_state
            ours, theirs = ours[x["mask"]], theirs[x["mask"]]
        elif name == "whisper":
            theirs = WhisperEncoder.from_pretrained(encoder_folders[name]).eval()(x.transpose(1, 2)).last_hidden_state
        elif name == "ft_transformer":
            theirs = ft_transformer(encoder.network, x)
        elif name == "clip":
            ours, theirs = (
                encoder.pool(ours),
                transformers.CLIPVisionModel.from_pretrained(encoder_folders[name]).eval()(x).pooler_output,
            )
        else:
            theirs = transformers.AutoModel.from_pretrained(encoder_folders[name]).eval()(x).last_hidden_state
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def ft_transformer(network, x_BW):
    """Section 3.3 of the paper, a column and a head at a time, without any dropout."""
    tokenizer, D = network.tokenizer, SIZES.width
    tokens = []
    for j in range(2):
        there = x_BW[:, 2 + j, None]
        tokens.append(there * x_BW[:, j, None] * tokenizer.number[j] + (1 - there) * tokenizer.empty[j])
    tokens.append(tokenizer.category[x_BW[:, 4].long()])
    x = torch.stack([token + bias for token, bias in zip(tokens, tokenizer.bias, strict=True)], 1)
    x = torch.cat([network.cls.expand(len(x), 1, D), x], 1)
    for number, block in enumerate(network.blocks):
        read = x if number == 0 else torch.nn.functional.layer_norm(x, (D,), block.norm.weight, block.norm.bias)
        heads = []
        for part in (slice(0, 8), slice(8, 16)):
            q, k, v = (linear(read)[..., part] for linear in (block.query, block.key, block.value))
            heads.append((q @ k.transpose(1, 2) / 8**0.5).softmax(-1) @ v)
        x = x + block.out(torch.cat(heads, -1))
        a, b = block.up(block.norm_between(x)).split(int(D * 4 / 3), -1)
        x = x + block.down(a * b.relu())
    return network.norm(x)


def test_ast_pools_the_mean_of_class_and_distillation_token(make, encoder_folders):
    encoder, x = make("ast"), sample_input("ast")
    with torch.no_grad():
        theirs = transformers.ASTModel.from_pretrained(encoder_folders["ast"]).eval()(x).pooler_output
        torch.testing.assert_close(encoder.pool(encoder.encode(encoder.embed(x))), theirs)


@pytest.mark.parametrize("name", FAMILIES)
def test_shapes_and_grid(name, make):
    encoder, x = make(name), sample_input(name)
    tokens = encoder.embed(x)
    n, width = encoder.token_shape()
    assert tokens.values_BND.shape[2] == width == encoder.width
    if name != "bert":
        assert tokens.values_BND.shape[1] == n
        assert torch.tensor(tokens.grid).prod() + encoder.prefix == n
    assert encoder.pool(encoder.encode(tokens)).shape == (3, width)


@pytest.mark.parametrize("place", ["last", "first"])
@pytest.mark.parametrize("name", FAMILIES)
def test_extra_tokens_keep_the_others_in_place(name, place, make):
    encoder, x = make(name), sample_input(name)
    tokens = encoder.embed(x)
    extra_BED = encoder.embed_extra(torch.randn(2, encoder.width)).expand(3, -1, -1)
    longer = tokens.with_extra(extra_BED, place)
    assert longer.values_BND.shape[1] == tokens.values_BND.shape[1] + 2
    own = longer.values_BND[:, :-2] if place == "last" else longer.values_BND[:, 2:]
    assert torch.equal(own, tokens.values_BND)
    assert encoder.encode(longer).isfinite().all()
    if longer.mask_BN is not None:
        assert longer.mask_BN.sum() == tokens.mask_BN.sum() + 6


@pytest.mark.parametrize("name", FAMILIES)
def test_some_tokens_are_those_of_all(name, make, generator):
    """Values and gradients, of adapters and tokens; the last block's other queries are not computed."""
    encoder, read = make(name), []
    add_lora(encoder, 3, 3.0, 0.0, Noise(), generator, encoder.attention_linears())
    for parameter_name, parameter in encoder.named_parameters():
        if "lora_B" in parameter_name:
            torch.nn.init.normal_(parameter, generator=generator)
    query = encoder.get_submodule(encoder.attention_linears()[-4])
    query.register_forward_hook(lambda module, inputs, output: read.append(output.shape[1]))
    encoder.double()  # so that what is summed in another order differs by nothing that matters
    x = sample_input(name)
    tokens = encoder.embed(x if name == "bert" else x.double())
    extra_ED = torch.randn(2, encoder.width, generator=generator).double()
    tokens = tokens.with_extra(encoder.embed_extra(extra_ED).expand(3, -1, -1), "last")
    n, weight_W1 = tokens.values_BND.shape[1], torch.tensor([0.3, -0.5, 0.7, 1.1])[:, None]
    wanted, found = [slice(0, 2), slice(n - 2, n)], []
    for some in (None, wanted):
        values_BND = tokens.values_BND.detach().requires_grad_()
        out_BND = encoder.encode(replace(tokens, values_BND=values_BND), some)
        out_BWD = out_BND if some else torch.cat([out_BND[:, s] for s in wanted], 1)
        encoder.zero_grad()
        (out_BWD * weight_W1).square().sum().backward()
        gradients = {n: p.grad.clone() for n, p in encoder.named_parameters() if p.grad is not None}
        found.append({"out": out_BWD.detach(), "tokens": values_BND.grad, **gradients})
    assert found[0].keys() == found[1].keys() and len(found[0]) >= 2 + 2 * 4 * 2
    for part, values in found[0].items():
        torch.testing.assert_close(
            found[1][part], values, rtol=1e-9, atol=1e-10, msg=lambda text, part=part: part + text
        )
    assert read == ([n, n] if name == "whisper" else [n, 4])


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_pooled_comes_first(name, make):
    """Pooling reads the first `pooled` tokens, or needs them all."""
    encoder = make(name)
    values_BND = encoder.encode(encoder.embed(sample_input(name)))
    if encoder.pooled is None:
        assert name == "whisper"
    else:
        assert torch.equal(encoder.pool(values_BND[:, : encoder.pooled]), encoder.pool(values_BND))


def test_which_tokens_are_computed():
    assert wanted_tokens(37, 1, 1, "last") == [slice(0, 3), slice(37, 38)]  # multiples of 4: their products round alike
    assert wanted_tokens(37, 2, 5, "last") == [slice(0, 3), slice(37, 42)]
    assert wanted_tokens(37, 1, 1, "first") == [slice(0, 4)]
    assert wanted_tokens(37, 1, 0, "last") == [slice(0, 4), slice(37, 37)]
    assert wanted_tokens(37, None, 1, "last") is None and wanted_tokens(3, 1, 1, "last") is None


@pytest.mark.parametrize("name", FAMILIES)
def test_lora_hits_q_k_v_o_of_attention_only(name, make, generator):
    encoder = make(name)
    add_lora(encoder, 3, 3.0, 0.0, Noise(), generator, encoder.attention_linears())
    layers = {n: m for n, m in encoder.named_modules() if isinstance(m, PackedLoRALinear)}
    assert len(layers) == 2 * 4 and sorted(layers) == sorted(encoder.attention_linears())
    assert not any(part in name for name in layers for part in ("mlp", "fc1", "fc2", "intermediate", "pooler"))
    new = sum(v.numel() for n, v in values_of(encoder).items() if "lora_" in n)
    assert new == 2 * 4 * 2 * 3 * encoder.width


@pytest.mark.parametrize("name", FAMILIES)
def test_fresh_adapters_change_nothing_and_are_seeded(name, make):
    plain, x = make(name), sample_input(name)
    adapted = [make(name), make(name)]
    for encoder in adapted:
        torch.randn(5)  # the process-wide generator must not matter
        add_lora(encoder, 2, 2.0, 0.5, Noise(), torch.Generator().manual_seed(7), encoder.attention_linears())
    with torch.no_grad():
        expected = plain.encode(plain.embed(x))
        torch.testing.assert_close(adapted[0].encode(adapted[0].embed(x)), expected)
    first, second = ({n: p for n, p in e.named_parameters() if "lora_A" in n} for e in adapted)
    assert all(torch.equal(first[n], second[n]) and first[n].abs().sum() > 0 for n in first)


@pytest.mark.parametrize("name", FAMILIES)
def test_one_read_equals_another_even_in_training_mode(name, make):
    encoder, x = make(name).train(), sample_input(name)
    assert torch.equal(encoder.encode(encoder.embed(x)), encoder.encode(encoder.embed(x)))


def test_split_qkv_gives_the_fused_outputs():
    fused, x = torch.nn.Linear(6, 18), torch.randn(4, 5, 6)
    torch.testing.assert_close(SplitQKV(fused)(x), fused(x))


def test_clips_are_read_frame_by_frame(make):
    encoder = make("clip")
    clip = torch.randn(2, 3, 3, 16, 16)
    tokens = encoder.embed(clip)
    assert tokens.sequences == 3 and tokens.values_BND.shape[0] == 6
    assert torch.equal(tokens.values_BND[3], encoder.embed(clip[1, :1]).values_BND[0])


def test_layers_cuts_the_top_off(make):
    encoder = make("vit", layers=1)
    assert len(encoder.attention_linears()) == 4


@pytest.mark.parametrize(
    ("source", "name", "kwargs", "words"),
    [
        ("transformers", "nobody/nothing", {}, ["nobody/nothing", "Searched", "cache", "hub"]),
        ("transformers", "package:no_such_package/x", {}, ["no_such_package", "pip install"]),
        ("transformers", "/no/such/folder", {}, ["/no/such/folder", "config.json"]),
        ("mmsweep", "clipart_sound", {}, ["clipart_sound", "ships"]),
        ("timm", "resnet18", {"weights": False}, ["resnet18", "vit_"]),
    ],
)
def test_what_is_missing_is_said_once_and_clearly(source, name, kwargs, words):
    with pytest.raises(UserError) as caught:
        PretrainedEncoder(source, name, **kwargs)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    ("name", "inputs", "key"),
    [
        ("bert", Inputs(length=17), "data.text.length"),
        ("ast", Inputs(frames=35), "data.audio.frames"),
        ("whisper", Inputs(frames=21), "data.audio.frames"),
        ("timm", Inputs(size=64), "data.image.size"),
    ],
)
def test_lengths_that_an_encoder_does_not_read_are_refused(name, inputs, key, make):
    with pytest.raises(UserError, match=key):
        make(name, inputs=inputs)


@pytest.mark.parametrize(
    ("args", "pooled"),
    [
        ({"class_token": False, "reg_tokens": 2, "no_embed_class": True, "global_pool": "avg"}, "patches"),
        ({"class_token": False, "reg_tokens": 1, "no_embed_class": True, "global_pool": "map"}, "patches"),
        ({"class_token": False, "global_pool": "avg"}, "patches"),
        ({"reg_tokens": 2}, "class token"),
        ({"global_pool": "avg"}, "patches"),
    ],
)
def test_a_register_is_no_class_token(args, pooled, tmp_path):
    args = dict(img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, **args)
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=0, **args).eval()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    config = {"architecture": "vit_tiny_patch16_224", "num_classes": 0, "model_args": args,
              "pretrained_cfg": {"input_size": [3, 32, 32], "num_classes": 0}}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    encoder, x = PretrainedEncoder("timm", f"local-dir:{tmp_path}"), sample_input("timm")
    with torch.no_grad():
        features_BND, found_BD = model.forward_features(x), encoder.pool(encoder.encode(encoder.embed(x)))
    wanted_BD = features_BND[:, 0] if pooled == "class token" else features_BND[:, model.num_prefix_tokens :].mean(1)
    torch.testing.assert_close(found_BD, wanted_BD)
    assert encoder.class_embedding().shape == (16,)
    if not args.get("class_token", True):
        with pytest.raises(UserError, match="no class token"):
            PretrainedEncoder("timm", f"local-dir:{tmp_path}", pool="cls")


@pytest.mark.parametrize("name", ["eva02_tiny_patch14_224", "beit_base_patch16_224", "vit_base_patch16_xp_224"])
def test_other_networks_of_timm_are_refused_before_a_forward(name):
    if name not in timm.list_models():
        pytest.skip(f"this timm has no {name}")
    with torch.device("meta"), pytest.raises(UserError, match=rf"key: not one of timm's plain .* found '{name}'"):
        PretrainedEncoder("timm", name, "key", weights=False)


def test_too_many_layers_and_no_class_token(make):
    with pytest.raises(UserError, match="at most 2"):
        make("vit", layers=3)
    with pytest.raises(UserError, match="no class token"):
        make("whisper", pool="cls")


@pytest.mark.parametrize("name", FOLDERS)
def test_a_checkpoint_of_another_architecture_is_named_with_its_tensor(name, encoder_folders, tmp_path):
    folder = shutil.copytree(encoder_folders[name], tmp_path / name)
    config = json.loads((folder / "config.json").read_text())
    inner = config.get("vision_config", config)
    wide = {"dinov2": "mlp_ratio", "whisper": "encoder_ffn_dim"}.get(name, "intermediate_size")
    inner[wide] *= 2
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        UserError, match=r"another architecture: \S*layers?\.0\S* is \(\d.*, its config.json says \(\d"
    ) as e:
        PretrainedEncoder("transformers", str(folder))
    assert str(folder) in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_checkpoint_that_lacks_tensors_is_refused(name, encoder_folders, tmp_path):
    folder = shutil.copytree(encoder_folders[name], tmp_path / name)
    tensors = load_file(folder / "model.safetensors")
    save_file({n: v for n, v in tensors.items() if "layer.1" not in n and "layers.1" not in n},
              folder / "model.safetensors", {"format": "pt"})  # fmt: skip
    with pytest.raises(UserError, match=r"lacks \d+ tensors, for example \S*layers?\.1"):
        PretrainedEncoder("transformers", str(folder))
