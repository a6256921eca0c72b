"""Writes a commented study for a user's own file, from what `data.guess` makes of its columns."""

from __future__ import annotations

import json
import os
import re
from functools import partial
from pathlib import Path

from mmsweep.data.guess import Guesses

ENCODERS = {
    "image": (
        "{source: mmsweep, name: clipart_image}",
        "ships with mmsweep; larger: {source: transformers, name: openai/clip-vit-base-patch16}",
    ),
    "text": (
        "{source: mmsweep, name: clipart_text}",
        "ships with mmsweep; larger: {source: transformers, name: bert-base-uncased}",
    ),
    "audio": ("{source: transformers, name: MIT/ast-finetuned-audioset-10-10-0.4593}", "a hub name or a folder"),
    "video": ("{source: transformers, name: openai/clip-vit-base-patch16}", "a hub name or a folder; reads each frame"),
    "table": ("{source: scratch, name: ft_transformer}", "a small FT-Transformer, trained from initial values"),
}
"""Kind -> (an encoder to begin with, a comment)."""

METRICS = {"single_label": "f1_macro", "multi_label": "f1_macro", "regression": "mae"}
"""Task -> the metric that trials are ranked by."""


def starter(manifest: Path, folder: Path, guesses: Guesses) -> str:
    """The text of a study.

    Args:
        manifest: the user's file.
        folder: where the study will lie; the manifest's path is written relative to it.
    """
    quoted = partial(json.dumps, ensure_ascii=False)  # a YAML scalar, whatever the column is called
    path = os.path.relpath(manifest.absolute(), folder.absolute())
    lines = [
        f"# Written by `mmsweep init {manifest.name}`. Check the guesses, then:",
        "#   mmsweep data check THIS_FILE",
        "#   mmsweep tune THIS_FILE --dry-run",
        "#   mmsweep tune THIS_FILE",
        "# Every key: docs/study.md.",
        f"name: {_name(manifest.stem)}",
        "data:",
        "  dataset: manifest",
        f"  path: {quoted(path)}",
        "  modalities:   # an empty cell is a missing modality",
    ]
    for m in guesses.modalities:
        options = ", ".join(f"{key}: {quoted(value)}" for key, value in m.options.items())
        lines.append(f"    {m.name}: {{kind: {m.kind}, {options}}}   # {m.why}")
    separator = f", separator: {quoted(guesses.separator)}" if guesses.separator else ""
    lines.append(
        f"  target: {{task: {guesses.task}, column: {quoted(guesses.target)}{separator}}}   # "
        + guesses.notes[guesses.target]
    )
    lines += [
        f"  split: {{column: {quoted(guesses.split)}}}"
        if guesses.split
        else "  split: {train: 0.8, val: 0.1, test: 0.1}   # carved by a hash of the rows; or {column: NAME}"
    ]
    if guesses.group:
        lines.append(f"  group: {{column: {quoted(guesses.group)}}}   # rows of a group never stand in two splits")
    if guesses.id:
        lines.append(f"  id: {{column: {quoted(guesses.id)}}}")
    left_out: dict[str, list[str]] = {}
    for name, note in guesses.notes.items():
        if name != guesses.target:
            left_out.setdefault(note, []).append(quoted(name))
    lines += [f"  # Not used ({note}): {', '.join(names)}" for note, names in left_out.items()]
    lines += ["model:", "  encoders:"]
    lines += [f"    {m.name}: {ENCODERS[m.kind][0]}   # {ENCODERS[m.kind][1]}" for m in guesses.modalities]
    names = [m.name for m in guesses.modalities]
    lines += [
        "  lora: {rank: 4, alpha: rank, dropout: 0.1}",
        "method: {name: cmpt}   # or mmp, modality_dropout, plain and others: `mmsweep list`",
        "train:",
        "  epochs: 10",
        "  batch_size: 32",
        "  optimizer: {name: adamw, lr: 1.0e-3, weight_decay: 0.02}",
        "  schedule: {name: polynomial, power: 0.9, warmup_epochs: 1, warmup: linear}",
        "scenarios:",
        f"  evaluate: [complete, {', '.join(f'{{missing: {name}}}' for name in names)}]",
        "search:",
        "  method.align_weight: {log_uniform: [0.01, 1.0]}",
        "  method.masking.probability: {uniform: [0.2, 0.9]}",
        "  model.lora.rank: {choice: [1, 2, 4, 8]}",
        "  train.optimizer.lr: {log_uniform: [1.0e-4, 1.0e-2]}",
        "sweep:",
        "  trials: 20",
        f"  objective: {{metric: val/mean_missing/{METRICS[guesses.task]}}}   # with each modality missing in turn",
        "  scheduler: {name: asha, grace_epochs: 2}",
        "  final: {seeds: 3}   # the best configuration, trained three times more and evaluated on test",
        "resources: {hosts: auto, cpus: 1, gpus: 0}   # gpus: 1 where there is one",
    ]
    return "\n".join(lines) + "\n"


def _name(stem: str) -> str:
    """A sweep's name made from a file's."""
    return json.dumps(re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:60] or "my-study")
