"""What a step costs the host: it waits for the device nowhere, sends stored bytes, and its batches are made ahead."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mmsweep.assembly.build import make_scenarios
from mmsweep.assembly.host import Warm
from mmsweep.data.augmentation import Augmentation
from mmsweep.data.kinds.image import ImageFormat
from mmsweep.data.kinds.raster import RasterFormat
from mmsweep.data.raw_batch import Normalisation, RawBatch
from mmsweep.models.encoder import Tokens
from mmsweep.models.pretrained import PretrainedEncoder
from mmsweep.record.trial import TrialFolder
from mmsweep.study import Study
from mmsweep.tasks.task import Target
from mmsweep.training import batches, engine, evaluation, slot
from mmsweep.training.batches import made_ahead
from mmsweep.training.checkpoint import load_checkpoint
from mmsweep.training.engine import EvaluationPlan
from mmsweep.training.slot import Member
from mmsweep.training.world import World
from mmsweep.transfer import Resident, pinned, sent
from tests.unit.test_dense_study import values as dense_values  # noqa: F401
from tests.unit.test_packing import job, run_pack, same, studies  # noqa: F401
from tests.unit.test_sequences import STUDY as SEQUENCES
from tests.unit.test_sequences import table as sequence_table  # noqa: F401

pytestmark = pytest.mark.long

# ---- nobody waits


class Refuse(TorchDispatchMode):
    """Stands for a GPU's host: the device is `meta`, where nothing can be read back, and copies must not wait."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "item", "unique")

    def __init__(self) -> None:
        super().__init__()
        self.copies = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [x for x in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        on_device = any(x.device.type == "meta" for x in tensors)
        name = func.overloadpacket.__name__
        if on_device and name in self.WAITING:
            raise AssertionError(f"{func} asks the device")
        assert not (on_device and name == "lift_fresh"), "a tensor of the device out of Python's numbers"
        if name in ("index", "index_put", "index_put_") and on_device:
            chosen = [i for i in args[1] if i is not None]
            assert all(i.dtype is torch.int64 and i.device.type == "meta" for i in chosen), f"{func} by {chosen}"
        found = func(*args, **kwargs)
        sends = name in ("_to_copy", "copy_", "_copy_from") and len({x.device for x in [*tensors, found]}) > 1
        if sends:
            waits = not (kwargs.get("non_blocking") or (len(args) > 2 and args[2] is True))
            assert not waits, f"{func} of {[tuple(x.shape) for x in tensors]} waits for the device"
            self.copies += 1
        return found


def pack_on(device: str, some: list[Study], monkeypatch: pytest.MonkeyPatch) -> engine._Pack:
    """A pack at the beginning of an epoch."""
    if device == "meta":  # has no generators of its own
        drawn = slot.generator
        monkeypatch.setattr(slot, "generator", lambda seed, purpose, epoch, device="cpu": drawn(seed, purpose, epoch))
    warm = Warm(device, World())
    data, backbone = warm.ready(some[0])
    plan = EvaluationPlan(make_scenarios(some[0], backbone.modalities), 0)
    pack = engine._Pack(data, plan, torch.device(device), World())
    pack.join([Member(warm.slot(study, TrialFolder("nowhere")), data) for study in some])
    for member in pack.members:
        member.begin(torch.device(device))
    pack.method.train()
    return pack


def two_steps(pack: engine._Pack) -> int:
    """How often something was sent in a step after the first, which also brings what stays on the device."""
    for step in range(2):
        share = pack._share(step)  # another thread's
        with Refuse() as refuse:
            shown = pack._step(step, share)
        assert shown.shape[0] == len(pack.members) and shown.device == pack.device
    return refuse.copies


@pytest.mark.parametrize("name", ["cmpt", "mmp", "linear_projection", "modality_dropout", "plain"])
def test_a_step_of_a_pack_does_not_wait_for_the_device(name, studies, monkeypatch):  # noqa: F811
    chosen = {"method.name": name, "train.class_weights": "balanced", "train.clip_norm": 1}
    if name == "mmp":
        chosen["method.projector.positions"] = True
    pack = pack_on("meta", [study.with_values(chosen) for study in studies[:3]], monkeypatch)
    two_steps(pack)
    pack.members[0].slot.augmentation = Augmentation((0.5, 1.0), flip=0.5)
    assert two_steps(pack) > 0
    chosen["data.augmentation"] = {"flip": True}
    two_steps(pack_on("meta", [study.with_values(chosen) for study in studies[:3]], monkeypatch))


@pytest.mark.parametrize("name", ["cmpt", "mmp", "linear_projection"])
def test_nor_does_one_whose_rows_lack_something(name, tiny_gaps_study, monkeypatch):
    study = tiny_gaps_study.with_values({"method.name": name, "data.augmentation": {"flip": True}, "data.fill": "mean"})
    two_steps(pack_on("meta", [study], monkeypatch))


@pytest.mark.parametrize("name", ["modality_dropout", "mmp"])
def test_nor_does_segmentation(name, dense_values, monkeypatch):  # noqa: F811
    """With the hard pixels chosen, and rasters of 16 bits."""
    study = Study.parse(dense_values).with_values({"method.name": name, "train.class_weights": "balanced"})
    for varied in ({"scale": [1.0, 1.5], "flip": True}, {"flip": True}, {}):
        two_steps(pack_on("meta", [study.with_values({"data.augmentation": varied})], monkeypatch))


@pytest.mark.parametrize("name", ["plain", "mmp"])
def test_nor_do_sequences(name, sequence_table, monkeypatch):  # noqa: F811
    changed = {"data.path": str(sequence_table), "method.name": name, "data.fill": "ones"}
    two_steps(pack_on("meta", [Study.parse(SEQUENCES).with_values(changed)], monkeypatch))


@pytest.mark.parametrize("name", ["modality_dropout", "mmp"])
def test_nor_does_vilt(name, tiny_values, encoder_folders, monkeypatch):
    model = {"backbone": {"name": "vilt", "weights": encoder_folders["vilt"]}, "lora": tiny_values["model"]["lora"]}
    two_steps(pack_on("meta", [Study.parse(tiny_values | {"model": model, "method": {"name": name}})], monkeypatch))


@pytest.mark.parametrize(
    "ask",
    [
        lambda x: x.sum().item(),
        lambda x: x[x > 0],
        lambda x: bool((x > 0).any()),
        lambda x: x.tolist(),
        lambda x: (x > 0).nonzero(),
        lambda x: torch.ones(3).to(x.device),
        lambda x: x.new_tensor([1.0, 2.0]),
        lambda x: torch.tensor([1.0], device=x.device),
        lambda x: x.copy_(torch.ones(3)),
        lambda x: x.masked_select(x > 0),
    ],
)
def test_what_asks_the_device_is_seen(ask):
    """The check can fail: each of these made the host of a GPU wait."""
    with pytest.raises((AssertionError, RuntimeError, NotImplementedError)), Refuse():
        ask(torch.ones(3, device="meta"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["cmpt", "mmp", "linear_projection", "modality_dropout"])
def test_no_step_waits_for_a_gpu(name, studies, monkeypatch):  # noqa: F811
    pack = pack_on("cuda:0", [study.with_values({"method.name": name}) for study in studies[:3]], monkeypatch)
    shares = [pack._share(step) for step in range(3)]
    pack._step(0, shares[0])  # libraries start up
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in (1, 2):
            pack._step(step, shares[step])
    finally:
        torch.cuda.set_sync_debug_mode("default")


# ---- what is sent


def test_pictures_are_sent_as_bytes_and_rasters_in_their_own_type(studies, dense_values):  # noqa: F811
    split = Warm("cpu", World()).ready(studies[0])[0].splits["train"]
    raw = split.raw(np.arange(4))
    assert raw.columns["image"]["values"].dtype is torch.uint8
    assert raw.columns["text"]["ids"].dtype is torch.int32
    assert split.batch_of(raw, "cpu").inputs["image"].dtype is torch.float32
    dense = Warm("cpu", World()).ready(Study.parse(dense_values))[0].splits["train"].raw(np.arange(2))
    kinds = {m: parts["values"].dtype for m, parts in dense.columns.items()}
    assert kinds == {"rgb": torch.uint8, "height": torch.uint16} and dense.target.dtype is torch.uint8


def test_normalisation_is_that_of_the_encoder_to_the_bit():
    """float32 arithmetic spelt out: pictures x * 1/(255 std) - mean / std, rasters (x - mean) / std in 16 bits."""
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    formats = {"image": ImageFormat(4, mean, std), "height": RasterFormat((4, 4), 1, "uint16", (1234.5,), (777.0,))}
    pixels = torch.arange(2 * 3 * 16).mul(2).to(torch.uint8).reshape(2, 3, 4, 4)
    heights = np.linspace(0, 65535, 32).astype(np.uint16).reshape(2, 1, 4, 4)
    columns = {"image": {"values": pixels.clone()}, "height": {"values": torch.from_numpy(heights.copy())}}
    raw = RawBatch(columns, {}, torch.ones(2, 2, dtype=torch.bool), torch.zeros(2), torch.arange(2))
    fills = {m: torch.zeros(()) for m in formats}
    found = Normalisation(formats, Target("single_label", ("a", "b")), fills).batch(raw, torch.device("cpu")).inputs
    m, s = (np.array(v, np.float32)[:, None, None] for v in (mean, std))
    expected = pixels.numpy().astype(np.float32) * (1 / (np.float32(255) * s)) + -m / s
    assert np.array_equal(found["image"].numpy(), expected)
    assert np.abs(expected - (pixels.numpy() / 255.0 - m) / s).max() < 1e-6
    expected = (heights.astype(np.float32) - np.float32(1234.5)) / np.float32(777.0)
    assert np.array_equal(found["height"].numpy(), expected)
    assert len(np.unique(found["height"].numpy())) == len(np.unique(heights))


def test_sending_pins_for_a_gpu_only(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: asked.append(1) or self)
    x = torch.ones(2)
    assert sent(x, "cpu") is x and pinned(x, "cpu") is x and pinned(x, "meta") is x and not asked
    assert sent(x, "meta").device.type == "meta" and not asked
    assert pinned(x, "cuda") is x and asked


def test_a_constant_is_sent_once_and_can_be_trained_with():
    constant = Resident(torch.ones(3))
    with torch.inference_mode():
        first = constant.on("meta")
    assert constant.on("meta") is first and not first.is_inference()


# ---- ahead


def test_batches_made_ahead_are_the_same_ones_in_order():
    made = []

    def make(i):
        made.append((i, threading.current_thread()))
        return i * i

    for ahead in (0, 1, 3):
        made.clear()
        with made_ahead(make, 20, ahead) as items:
            assert list(items) == [i * i for i in range(20)]
        assert [i for i, _ in made] == list(range(20))
        assert {t is threading.main_thread() for _, t in made} == {ahead == 0}
    assert not lingering()


def test_no_more_than_the_bound_is_made_ahead():
    made = []
    with made_ahead(lambda i: made.append(i) or i, 50, 2) as items:
        assert next(items) == 0
        time.sleep(3 * batches.WAIT_S)
        assert len(made) <= 1 + 2 + 1  # taken, in the queue, in the thread's hand
    assert len(made) < 50 and not lingering()


def test_an_error_of_the_thread_reaches_the_step_in_its_turn():
    def make(i):
        if i == 2:
            raise OSError("the disk is gone")
        return i

    taken = []
    with pytest.raises(OSError, match="the disk is gone"), made_ahead(make, 5, 4) as items:
        for item in items:
            taken.append(item)
    assert taken == [0, 1] and not lingering()


@pytest.mark.parametrize("problem", [ValueError, KeyboardInterrupt, GeneratorExit])
def test_the_thread_ends_however_the_step_does(problem):
    with pytest.raises(problem), made_ahead(lambda i: i, 1000, 2) as items:
        next(items)
        raise problem
    assert not lingering()


def test_ctrl_c_gets_through_to_a_step_that_waits_for_a_slow_batch():
    """A real signal, while the main thread waits for the queue."""

    def make(i):
        if i == 1:
            time.sleep(0.2)
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            time.sleep(0.2)
        return i

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), made_ahead(make, 3, 1) as items:
            list(items)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not lingering()


def lingering() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "mmsweep-batches"]


@pytest.mark.parametrize("name", ["cmpt", "mmp"])
def test_a_pack_with_batches_made_ahead_is_the_same_pack(name, studies, tmp_path, monkeypatch):  # noqa: F811
    """Bitwise: order and draws are unchanged; a slot leaves half-way."""
    some = [study.with_values({"method.name": name}) for study in studies[:3]]

    def report(job, record):
        return job.id == "1" and record.epoch == 1

    plain = run_pack([job(study, tmp_path / "plain" / str(i)) for i, study in enumerate(some)], report)
    monkeypatch.setattr(engine, "depth", lambda device: 2)
    ahead = run_pack([job(study, tmp_path / "ahead" / str(i)) for i, study in enumerate(some)], report)
    assert all(same(a, b) for a, b in zip(plain, ahead, strict=True)) and not lingering()


def test_an_epoch_that_fails_leaves_no_thread(studies, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(engine, "depth", lambda device: 2)

    def fail(self, batch, output):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(engine._Pack, "_losses", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        run_pack([job(studies[0], tmp_path / "a")])
    assert not lingering()


def test_on_a_cpu_nothing_is_made_ahead():
    assert batches.depth(torch.device("cpu")) == 0 and batches.depth(torch.device("cuda")) > 0


# ---- attention and precision


@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("family", ["clip", "vit", "dinov2", "ast", "bert", "whisper"])
def test_attention_is_torch_s_own(family, weights, encoder_folders, monkeypatch):
    """Counted: transformers falls back to its own arithmetic without a word where an architecture lacks it.

    It does so for ViLT, of which it has no other.
    """
    calls = []
    own = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or own(*a, **k)
    )
    encoder = PretrainedEncoder("transformers", encoder_folders[family], weights=weights, files=True)
    n, width = encoder.token_shape()
    mask = torch.ones(2, n, dtype=torch.bool) if family == "bert" else None
    encoder.encode(Tokens(torch.randn(2, n, width), mask, encoder.token_grid()))
    assert len(calls) == len(encoder.blocks) > 0


@pytest.mark.parametrize("name", ["cmpt", "mmp", "linear_projection", "modality_dropout"])
def test_a_pack_in_bf16_stays_near_one_in_fp32(name, studies, tmp_path, monkeypatch):  # noqa: F811
    """As a GPU has it, on a CPU's autocast: weights and optimiser stay fp32, losses are near."""
    some = [study.with_values({"method.name": name, "train.epochs": 1}) for study in studies[:3]]
    full = run_pack([job(study, tmp_path / "fp32" / str(i)) for i, study in enumerate(some)])
    used = []

    def autocast(precision, device):
        used.append(precision)
        return torch.autocast("cpu", dtype=torch.bfloat16)

    monkeypatch.setattr(engine, "autocast", autocast)
    monkeypatch.setattr(evaluation, "autocast", autocast)
    halves = [study.with_values({"train.precision": "bf16"}) for study in some]
    half = run_pack([job(study, tmp_path / "bf16" / str(i)) for i, study in enumerate(halves)])
    assert set(used) == {"bf16"}
    for a, b in zip(full, half, strict=True):
        one, other = a.reports()[0].metrics, b.reports()[0].metrics
        assert other["train/loss"] != one["train/loss"] and other["train/loss"] == pytest.approx(one["train/loss"], 0.1)
        weights = load_checkpoint(b.last_checkpoint())[0]
        assert {w.dtype for w in weights.values()} == {torch.float32}
