"""`train.compile`: compiled blocks compute what they compute otherwise, from the same draws, in packs and alone."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
import transformers

from mmsweep.assembly.build import make_method
from mmsweep.assembly.host import Warm
from mmsweep.errors import UserError
from mmsweep.models import compilation
from mmsweep.models.compilation import BlockCompiler, block_compiler, check_compiler
from mmsweep.models.lora import Noise, add_lora
from mmsweep.models.pretrained import PretrainedEncoder
from mmsweep.study import Study
from mmsweep.training.world import World
from tests.conftest import WIDTH
from tests.unit.test_packing import job, run_pack, studies  # noqa: F401
from tests.unit.test_sequences import STUDY as SEQUENCES

pytestmark = pytest.mark.long

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


@pytest.fixture()
def fresh(monkeypatch):
    """A compiler that has compiled nothing, as a new process has it."""
    compilation._compiler.cache_clear()
    torch.compiler.reset()
    yield
    compilation._compiler.cache_clear()
    torch.compiler.reset()


@needs_compiler
def test_a_compiled_pack_trains_as_one_that_is_not(fresh, studies, tmp_path):  # noqa: F811
    """With inductor; dropout on, ranks differ. Two kinds of calls an encoder, since compiling takes its time."""
    some = [study.with_values({"train.epochs": 1, "train.batch_size": 10}) for study in studies[:2]]
    plain = run_pack([job(study, tmp_path / "plain" / str(i)) for i, study in enumerate(some)])
    compiled = [study.with_values({"train.compile": "default"}) for study in some]
    found = run_pack([job(study, tmp_path / "compiled" / str(i)) for i, study in enumerate(compiled)])
    for a, b in zip(plain, found, strict=True):
        assert a.reports()[0].metrics == pytest.approx(b.reports()[0].metrics, abs=1e-4)
    assert len(block_compiler("default").kinds) == 4  # an encoder's last block is one of its own


@pytest.mark.parametrize(("device", "expected"), [("cpu", None), ("cuda", "reduce-overhead")])
def test_cuda_graphs_are_for_gpus(device, expected, monkeypatch):
    asked = []
    monkeypatch.setattr(compilation, "check_compiler", lambda mode, device: None)
    monkeypatch.setattr(torch, "compile", lambda f, **options: asked.append(options))
    for mode in ("default", "reduce-overhead"):
        BlockCompiler(mode)._compiled(torch.device(device))
    assert asked == [{"dynamic": False, "mode": None}, {"dynamic": False, "mode": expected}]
    assert torch.compiler.config.recompile_limit >= compilation.MOST_SHAPES
    monkeypatch.delattr(torch.compiler, "config")  # an older torch
    BlockCompiler("default")._compiled(torch.device(device))


def counting(monkeypatch):
    """How often torch compiles a graph, with a backend that runs it as it is: quick, and all else is as it would be."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: compile_(f, dynamic=False, backend=backend))
    return graphs


def test_blocks_are_compiled_once_a_shape_and_whole(fresh, studies, tmp_path, monkeypatch):  # noqa: F811
    """Bitwise with a backend that changes nothing: masks come from the same draws in the same order."""
    graphs = counting(monkeypatch)
    some = [study.with_values({"train.epochs": 2}) for study in studies[:3]]
    plain = run_pack([job(study, tmp_path / "plain" / str(i)) for i, study in enumerate(some)])
    assert not graphs
    compiled = [study.with_values({"train.compile": "default"}) for study in some]
    found = run_pack([job(study, tmp_path / "compiled" / str(i)) for i, study in enumerate(compiled)])
    for a, b in zip(plain, found, strict=True):
        assert [r.metrics for r in a.reports()] == [r.metrics for r in b.reports()]
    # Two encoders, their first block and their last, whole batches and the epoch's last: not once a step.
    kinds = block_compiler("default").kinds
    assert len(graphs) == len(kinds) == 8


def test_a_bounded_number_of_shapes_is_compiled(fresh, studies, tmp_path, monkeypatch):  # noqa: F811
    graphs = counting(monkeypatch)
    monkeypatch.setattr(compilation, "MOST_SHAPES", 3)
    compiled = [study.with_values({"train.compile": "default", "train.epochs": 1}) for study in studies[:4]]
    plain = [study.with_values({"train.epochs": 1}) for study in studies[:4]]
    for width in (1, 2, 3, 4):
        found, expected = (
            run_pack([job(s, tmp_path / f"{name}{width}" / str(i)) for i, s in enumerate(some[:width])])
            for name, some in (("compiled", compiled), ("plain", plain))
        )
        assert [f.reports()[0].metrics for f in found] == [f.reports()[0].metrics for f in expected]
    assert len(graphs) == len(block_compiler("default").kinds) == 3


def test_blocks_of_one_shape_share_a_compilation(fresh, tmp_path, monkeypatch):
    """Four blocks: one compilation for the first three, one for the last, which gives four tokens of five."""
    config = transformers.ViTConfig(image_size=16, patch_size=8, **{**WIDTH, "num_hidden_layers": 4})
    transformers.ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path)
    graphs, encoder = counting(monkeypatch), PretrainedEncoder("transformers", str(tmp_path))
    encoder.compile_blocks("default")
    for _ in range(2):
        encoder.encode(encoder.embed(torch.randn(3, 3, 16, 16)), [slice(0, 4)])
    assert len(graphs) == len(block_compiler("default").kinds) == 2


@pytest.mark.parametrize("wanted", [None, [slice(0, 2), slice(4, 5)]])
@pytest.mark.parametrize("family", ["clip", "dinov2", "ast", "whisper", "bert", "vit"])
def test_every_family_draws_in_the_order_of_its_calls(family, wanted, encoder_folders, fresh, monkeypatch):
    """CLIP registers k, v, q; it calls q, k, v."""
    counting(monkeypatch)
    encoder, noise = PretrainedEncoder("transformers", encoder_folders[family]), Noise()
    encoder.requires_grad_(False)
    add_lora(encoder, 2, 1.0, 0.5, noise, torch.Generator().manual_seed(0), encoder.attention_linears())
    for name, parameter in encoder.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(len(name)))
    n, width = encoder.token_shape()
    values = torch.randn(4, n, width, generator=torch.Generator().manual_seed(1))
    tokens = compilation_tokens(values, encoder)
    found = []
    for mode in ("off", "default"):
        encoder.compile_blocks(mode)
        noise.generators, noise.total, noise.rows = [torch.Generator().manual_seed(2)], 4, slice(0, 4)
        found.append(encoder.encode(tokens, wanted))
    assert torch.equal(*found) and block_compiler("default").kinds


def compilation_tokens(values, encoder):
    from mmsweep.models.encoder import Tokens

    mask = torch.ones(values.shape[:2], dtype=torch.bool) if encoder.format.kind == "text" else None
    return Tokens(values, mask, encoder.token_grid())


def test_evaluation_is_not_compiled(fresh):
    block, compiler = torch.nn.Linear(2, 2), BlockCompiler("default")
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            compiler(block, (), torch.ones(1, 2))
    assert not compiler.kinds and copy.deepcopy(compiler) is compiler


@pytest.mark.parametrize(("device", "variable"), [("cpu", "CXX"), ("cuda", "CC")])
def test_a_machine_without_a_compiler_says_so(device, variable, monkeypatch):
    monkeypatch.setenv(variable, "no-such-compiler")
    monkeypatch.setattr(compilation.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(UserError, match=r"train.compile: torch.compile needs a compiler \(no-such-compiler.*off"):
        check_compiler("default", torch.device(device))
    monkeypatch.setattr(compilation.importlib.util, "find_spec", lambda name: None)
    if device == "cuda":
        with pytest.raises(UserError, match="needs triton"):
            check_compiler("reduce-overhead", torch.device(device))


def test_a_trial_without_a_compiler_fails_with_the_key(fresh, studies, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match=r"train.compile"):
        run_pack([job(studies[0].with_values({"train.compile": "default"}), tmp_path / "a")])


def test_a_block_that_cannot_be_compiled_is_one_message(fresh, monkeypatch):
    class Strange(torch.nn.Module):
        def forward(self, x):
            return x

    def broken(graph, inputs):
        raise ValueError("no such instruction")

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: compile_(f, dynamic=False, backend=broken))
    with pytest.raises(UserError, match=r"train.compile.*cannot be compiled"):
        BlockCompiler("default")(torch.nn.Linear(2, 2), (), torch.ones(1, 2))


def test_backbones_without_such_blocks_refuse(tiny_study):
    study = Study.parse(SEQUENCES)
    with pytest.raises(UserError, match=r"train.compile: .*cannot be compiled.*expected off"):
        from mmsweep.models.backbones.mult import MulT

        MulT.compile_blocks(object(), "default")
    assert study.train.compile == "off"
    method = make_method(
        tiny_study.with_values({"train.compile": "default"}), Warm("cpu", World()).ready(tiny_study)[1]
    )
    assert all(method.backbone.encoder(m).compiler is block_compiler("default") for m in ("image", "text"))


def test_off_is_a_word(tiny_values, tmp_path):
    """YAML reads a bare off as false."""
    assert Study.parse(tiny_values | {"train": {"compile": False}}).train.compile == "off"
    with pytest.raises(UserError, match=r"train.compile"):
        Study.parse(tiny_values | {"train": {"compile": True}})
