#!/usr/bin/env python3
"""Our engine beside a training loop of peft and transformers written as their own documentation shows it.

    python benchmarks/peft_reference.py --size quickstart
    python benchmarks/peft_reference.py --size base --device cuda                  # ViT-B/16 + BERT-base, bf16
    python benchmarks/peft_reference.py --size tiny --seconds 0.2 --slots 1 2      # whether it runs

The reference: `AutoModel.from_pretrained` for each encoder, `get_peft_model` with a LoraConfig for q, k, v and o, the
encoders' class tokens summed, a linear head, cross entropy, torch's AdamW, a DataLoader over a Dataset that normalises
its rows, one `for batch in loader` (huggingface.co/docs/peft, quicktour and task guides; docs.pytorch.org, autocast).
Ours: the same encoders, rows, ranks, alphas, dropout, head and precision as method `plain`, alone (S = 1) and packed.
Neither evaluates nor writes anything. Both get a constant learning rate, no clipping, no class weights.

First they are checked to be the same model: without dropout, from the same initial values and on the same rows, the
losses of --check steps must agree within 1e-4 (fp32; on CUDA 1e-3), or the run ends with an error. Then they take
turns; a step's time is the median of blocks. "trials' steps a second" is S / step time.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
import yaml
from outside import place_of
from pack_steps import PackSteps, seconds_of, slot_studies
from peft import LoraConfig, get_peft_model
from ran_on import Machine, device_of, hand_over, out_option, table
from sizes import SIZES, study_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import AutoModel

from mmsweep.assembly.host import Warm
from mmsweep.data.kinds.image import ImageFormat
from mmsweep.data.prepared_split import PreparedSplit
from mmsweep.models.packing import values_of
from mmsweep.models.weights import locate
from mmsweep.record.trial import TrialFolder
from mmsweep.study import Study
from mmsweep.training.world import World

AGREE = {"cpu": 1e-4, "cuda": 1e-3}
"""Relative; convolutions are computed in TF32 on CUDA."""
PLAIN = {
    "method.name": "plain",
    "train.clip_norm": None,
    "train.class_weights": "none",
    "train.schedule": {"name": "constant"},
}


# The reference


class TwoEncoders(nn.Module):
    """Class tokens of two adapted encoders, summed, and a linear head."""

    def __init__(self, folders: dict[str, str], linears: dict[str, list[str]], study: Study, classes: int) -> None:
        super().__init__()
        lora = study.model.lora
        assert lora is not None
        self.encoders = nn.ModuleDict()
        for modality, folder in folders.items():
            scale = int(lora.alpha_in_force)
            config = LoraConfig(
                r=lora.rank, lora_alpha=scale, lora_dropout=lora.dropout, target_modules=linears[modality]
            )
            # As ours: no pooler, and no dropout but the adapters'.
            same = dict(add_pooling_layer=False, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
            self.encoders[modality] = get_peft_model(AutoModel.from_pretrained(folder, **same), config)
        widths = {encoder.config.hidden_size for encoder in self.encoders.values()}
        assert len(widths) == 1, "encoders of one width"
        self.head = nn.Linear(widths.pop(), classes)

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Tensor:
        image = self.encoders["image"](pixel_values=pixel_values).last_hidden_state[:, 0]
        text = self.encoders["text"](input_ids=input_ids, attention_mask=attention_mask).last_hidden_state[:, 0]
        return nn.functional.cross_entropy(self.head(image + text), labels)


class Rows(Dataset[dict[str, Tensor]]):
    """The prepared rows, one at a time; pictures are normalised as a processor does it."""

    def __init__(self, split: PreparedSplit) -> None:
        self.split, image = split, split.formats["image"]
        assert isinstance(image, ImageFormat)
        self.pictures, self.ids, self.mask = (
            split.column(*name) for name in (("image",), ("text", ".ids"), ("text", ".mask"))
        )
        self.length, self.size = split.longest("text"), image.size
        self.mean, self.std = (torch.tensor(values)[:, None, None] for values in (image.mean, image.std))

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        picture = torch.from_numpy(np.array(self.pictures[row])).float() / 255
        top, left = ((side - self.size) // 2 for side in picture.shape[-2:])
        picture = picture[:, top : top + self.size, left : left + self.size]
        return {
            "pixel_values": (picture - self.mean) / self.std,
            "input_ids": torch.from_numpy(self.ids[row, : self.length].astype(np.int64)),
            "attention_mask": torch.from_numpy(self.mask[row, : self.length].astype(np.int64)),
            "labels": torch.tensor(int(self.split.targets[row])),
        }


class Reference:
    """The loop, one step at a time."""

    def __init__(self, model: TwoEncoders, rows: Rows, study: Study, device: torch.device, workers: int) -> None:
        self.model, self.device, self.study = model.to(device).train(), device, study
        self.bf16 = study.train.precision == "bf16" and device.type == "cuda"
        spec = study.train.optimizer
        self.optimizer = torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad], lr=spec.lr, weight_decay=spec.weight_decay, eps=spec.eps
        )
        self.loader = DataLoader(
            rows, batch_size=study.train.batch_size, shuffle=True, drop_last=True, num_workers=workers,
            pin_memory=device.type == "cuda", persistent_workers=workers > 0,
        )  # fmt: skip
        self.batches = self._forever()

    def _forever(self) -> Iterator[dict[str, Tensor]]:
        while True:
            yield from self.loader

    def step(self) -> Tensor:
        return self.train_on(next(self.batches))

    def train_on(self, batch: dict[str, Tensor]) -> Tensor:
        batch = {name: values.to(self.device, non_blocking=True) for name, values in batch.items()}
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            loss = self.model(**batch)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()


def make_reference(warm: Warm, study: Study, workers: int) -> Reference:
    """With the initial values of our slot of the same study: the head's and the adapters'."""
    data, backbone = warm.ready(study)
    encoders = study.model.encoders
    folders = {m: str(locate(e.source, e.name, f"model.encoders.{m}.name").folder) for m, e in encoders.items()}
    linears = {
        m: [name.removeprefix("network.") for name in backbone.attention_linears(m)] for m in backbone.modalities
    }
    model = TwoEncoders(folders, linears, study, data.target.width)
    own = values_of(warm.slot(study, TrialFolder("/nonexistent/0")).method)
    theirs = dict(model.named_parameters())
    for name, value in own.items():
        theirs[_their_name(name)].data.copy_(value)
    trained = {name for name, p in theirs.items() if p.requires_grad}
    assert trained == {_their_name(name) for name in own}, trained ^ {_their_name(name) for name in own}
    return Reference(model, Rows(data.splits["train"]), study, warm.device, workers)


def _their_name(name: str) -> str:
    """backbone.encoders.text.network.layer.0.q.lora_A.default.weight, as peft calls it within our two encoders."""
    name = name.removeprefix("backbone.")
    return name.replace(".network.", ".base_model.model.", 1)


# Agreement, then time


def check(warm: Warm, study: Study, steps: int) -> list[tuple[float, float]]:
    """Losses of both on the same rows without dropout, fp32: (ours, theirs) by step."""
    study = study.with_values({"model.lora.dropout": 0.0, "train.precision": "fp32"})
    ours, theirs = PackSteps(warm, [study]), make_reference(warm, study, 0)
    # Ours decays neither biases nor norms; here the head's bias, which theirs would decay.
    plain = [p for p in theirs.model.parameters() if p.requires_grad and p.dim() < 2]
    rest = [p for p in theirs.model.parameters() if p.requires_grad and p.dim() >= 2]
    spec = study.train.optimizer
    groups = [{"params": rest, "weight_decay": spec.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    theirs.optimizer = torch.optim.AdamW(groups, lr=spec.lr, eps=spec.eps)
    theirs.model.eval()  # peft's own dropout is 0, and ours keeps frozen encoders' off
    rows, found = Rows(warm.ready(study)[0].splits["train"]), []
    for _ in range(steps):
        index_B = ours.next_rows()
        batch = torch.utils.data.default_collate([rows[int(row)] for row in index_B])
        found.append((float(ours.step()[0, 0]), float(theirs.train_on(batch))))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="quickstart")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="changes of the study")
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=0, help="of the reference's DataLoader")
    parser.add_argument("--check", type=int, default=10, help="steps whose losses must agree")
    parser.add_argument("--seconds", type=float, default=2.0, help="a block's length at least")
    parser.add_argument("--turns", type=int, default=4)
    out_option(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device, machine = device_of(options.device), Machine()
    with place_of(None, own_cache=options.size != "quickstart") as place:
        changes = [*(f"{key}={_yaml(value)}" for key, value in PLAIN.items()), *options.set]
        study, warm = Study.load(study_file(options.size, place, changes)), Warm(str(device), World())
        losses = check(warm, study, options.check)
        worst = max(abs(a - b) / abs(b) for a, b in losses)
        if not worst <= AGREE[device.type]:
            sys.exit(f"not the same model: losses {losses}")
        ways: dict[str, tuple[int, Callable[[], Any]]] = {
            "peft + transformers": (1, make_reference(warm, study, options.workers).step)
        }
        for slots in options.slots:
            name = "mmsweep, solo" if slots == 1 else f"mmsweep, {slots} slots"
            ways[name] = slots, PackSteps(warm, slot_studies(study, slots)).step
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(options.turns):
            for name in list(ways) if turn % 2 == 0 else reversed(ways):
                seconds[name] += seconds_of(ways[name][1], device, options.seconds, 2)
    base = median(seconds["peft + transformers"])
    rows = []
    for name, (slots, _) in ways.items():
        step = median(seconds[name])
        rows.append([name, f"{1000 * step:,.1f} ms", f"{slots / step:,.2f}", f"{slots / step * base:.2f}"])
    lora = study.model.lora
    assert lora is not None
    precision = study.train.precision if device.type == "cuda" else "fp32"
    lines = [
        f"Size `{options.size}`, method `plain`, batch {study.train.batch_size}, LoRA rank {lora.rank}, dropout "
        f"{lora.dropout:g}, {precision}, {options.workers} data workers. Over {options.check} steps without dropout in "
        f"fp32 the losses of both agree within {worst:.1e} (relative).",
        "",
        *table(["", "a step", "trials' steps a second", "of the reference"], rows),
    ]
    facts = machine.facts(threads=options.threads, device=str(device), precision=precision)
    found = {"losses": losses, "seconds": seconds, "slots": {name: slots for name, (slots, _) in ways.items()}}
    hand_over("Beside peft and transformers", lines, facts, found, options.out)


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n").removesuffix("...").strip()


if __name__ == "__main__":
    main()
