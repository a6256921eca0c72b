"""Saves and loads the tensors of a checkpoint. `record.checkpoint` handles its files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmsweep.data.kinds.table import TableFormat
from mmsweep.errors import UserError
from mmsweep.models.encoder import LEARNED
from mmsweep.models.packing import values_of
from mmsweep.record.checkpoint import RESUME, STATE, WEIGHTS, CheckpointFile, check_files, new_checkpoint, unreadable
from mmsweep.record.files import read_record, write_atomically
from mmsweep.record.trial import TrialFolder


def save_checkpoint(
    trial: TrialFolder, epoch: int, weights: dict[str, Tensor], resume: dict[str, Tensor], state: dict[str, Any]
) -> str:
    """Write a checkpoint atomically.

    Args:
        trial: the trial's folder.
        epoch: the last finished epoch, counted from 1.
        weights: trained tensors by parameter name.
        resume: the optimiser's and generators' tensors.
        state: anything else that an exact resume needs, as JSON.

    Returns:
        The checkpoint's folder relative to the trial's folder.
    """
    target = trial.checkpoint(epoch)
    with new_checkpoint(target) as folder:
        for name, tensors in ((WEIGHTS, weights), (RESUME, resume)):
            save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, folder / name)
        write_atomically(folder / STATE, json.dumps(state))
    return str(target.relative_to(trial.path))


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint: (weights, resume tensors, resume state). Raises UserError if it is damaged."""
    check_files(folder, WEIGHTS, RESUME, STATE)
    state = read_record(folder / STATE, CheckpointFile)
    try:
        return load_file(folder / WEIGHTS), load_file(folder / RESUME), dict(state or {})
    except (OSError, ValueError, SafetensorError) as error:
        raise unreadable(folder, str(error)) from error


def running_statistics(method: nn.Module) -> dict[str, Tensor]:
    """Buffers that training updates: means and variances of the trained batch norms."""
    return {
        f"{name}.{buffer}": values
        for name, module in method.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and any(p.requires_grad for p in module.parameters())
        for buffer, values in module.named_buffers(recurse=False)
    }


def learned_formats(method: nn.Module) -> dict[str, Tensor]:
    """Buffers that hold what formats learned from the training rows, such as the means of a table's columns."""
    return {name: values for name, values in method.named_buffers() if name.rpartition(".")[2] == LEARNED}


def check_learned(method: nn.Module, weights: dict[str, Tensor], where: object) -> dict[str, Tensor]:
    """The weights without what formats learned.

    Raises:
        UserError: that is something else than the method's formats learned: the same row would become another input.
    """
    for name, learned in learned_formats(method).items():
        if name in weights and not torch.equal(learned.cpu(), weights[name]):
            then, now = (TableFormat.restored(values) for values in (weights[name], learned))
            old, new = (dict(zip(t.names, (*t.numeric, *t.categorical), strict=True)) for t in (then, now))
            changed = [column for column in new if old.get(column) != new[column]]
            raise UserError(
                "these weights were trained on other training rows: their table has other means, SDs or categories",
                file=where, key=f"data.modalities.{name.split('.')[2]}", found=", ".join(changed),
                hint="Restore the file that the run was trained on, or train again",
            )  # fmt: skip
    return {name: value for name, value in weights.items() if name.rpartition(".")[2] != LEARNED}


def load_weights(method: nn.Module, weights: dict[str, Tensor], where: object) -> None:
    """Copy a checkpoint's trained tensors into a method of one slot; tensors of the task (`task.…`) are left out.

    Raises:
        UserError: the checkpoint is of other training rows or another architecture; names the first thing that differs.
    """
    tensors = values_of(method) | running_statistics(method)
    weights = {name: value for name, value in weights.items() if not name.startswith("task.")}
    weights = check_learned(method, weights, where)
    for name in sorted(tensors.keys() ^ weights.keys()):
        side = "lacks" if name in tensors else "holds an unknown"
        raise UserError(
            f"a checkpoint of another architecture: it {side} tensor",
            file=where,
            key=name,
            expected="the tensors that its study.yaml trains",
        )
    for name, value in tensors.items():
        if value.shape != weights[name].shape:
            raise UserError(
                "a checkpoint of another architecture",
                file=where,
                key=name,
                found=tuple(weights[name].shape),
                expected=str(tuple(value.shape)),
            )
        value.copy_(weights[name])
