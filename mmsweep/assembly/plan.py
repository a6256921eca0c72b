"""The plan of a study that `tune --dry-run` prints; loads and starts nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from mmsweep.assembly.build import card_of, make_backbone, make_builder, make_method, make_scenarios
from mmsweep.assembly.checks import check_sweep, missing_weights
from mmsweep.availability import BoolArray, availability_table, pattern_name, pattern_rows, patterns
from mmsweep.data.dataset import DatasetCard
from mmsweep.errors import UserError
from mmsweep.methods.method import Method
from mmsweep.models.packing import single_slot_reason, trained
from mmsweep.models.weights import NOT_HERE
from mmsweep.study import Study
from mmsweep.study.packs import count_trials


def dry_run(study: Study) -> dict[str, Any]:
    """The plan of a study without weights or data: parameters, tokens, scenarios, steps (the JSON of DESIGN §6)."""
    check_sweep(study)
    card = card_of(study, rows=True)
    modalities = tuple(card.modalities)
    method = _method(study, card)
    natural = _natural(study, modalities)
    return {
        "name": study.name,
        "parameters": None if method is None else _count(method),
        "tokens": {} if method is None else _tokens(method, study, card.modalities),
        "memory": None if method is None else _memory(method, study, card.modalities),
        "missing": [str(problem) for problem in missing_weights(study)],
        "scenarios": {
            s: _pattern_counts(study, modalities, n, natural.get(s)) for s, n in card.rows.items() if s != "train"
        },
        "steps_per_trial": -(-card.rows["train"] // study.train.batch_size) * study.train.epochs
        if card.rows.get("train")
        else None,
        "trials": count_trials(study),
        "hosts": study.resources.hosts,
        "slots": _slots(study, method),
        "search": {
            k: d.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)
            for k, d in study.search.items()
        },
    }


def _method(study: Study, card: DatasetCard) -> Method | None:
    """A trial's method without weights; None if a network's configuration is not on this machine."""
    try:
        with torch.device("meta"):
            backbone = make_backbone(study, card, load=False, files=False)
        return make_method(study, backbone)
    except UserError as problem:
        if problem.problem == NOT_HERE:
            return None
        raise


def _memory(method: Method, study: Study, kinds: Mapping[str, str]) -> dict[str, int]:
    """A rough estimate of the bytes that training needs on one worker, for the study's slots (one if `auto`).

    It counts weights, a gradient and two moments of Adam for each trained value (float32), and the outputs of linear
    layers for a batch. Attention maps, workspaces and evaluation are not counted.
    """
    tensors = list(trained(method, frozen=True))
    sizes = {True: 0, False: 0}
    widths: dict[str, int] = {}
    for tensor in tensors:
        values = tensor.slot_view(tensor.parameter, 0)
        sizes[tensor.parameter.requires_grad] += values.numel()
        if values.dim() == 2:
            parts = tensor.name.split(".")
            name = parts[2] if tensor.name.startswith("backbone.encoders.") else ""
            widths[name] = widths.get(name, 0) + values.shape[0]
    tokens = {m: n * method.backbone.clip_frames.get(m, 1) for m, n in _tokens(method, study, kinds).items()}
    slots = study.resources.slots if isinstance(study.resources.slots, int) else 1
    rows = -(-study.train.batch_size // study.resources.workers) * slots
    outputs = sum(width * tokens.get(name, sum(tokens.values())) for name, width in widths.items() if name)
    outputs += widths.get("", 0) * (1 if any(widths.keys() & tokens.keys()) else sum(tokens.values()))
    weights, state = 4 * (sizes[False] + sizes[True] * slots), 12 * sizes[True] * slots
    activations = rows * outputs * (2 if study.train.precision == "bf16" else 4)
    return {"weights": weights, "optimizer": state, "activations": activations, "total": weights + state + activations}


def _slots(study: Study, method: Method | None) -> dict[str, Any]:
    """How many trials a host trains in one pass: {"asked", "reason"}; the reason explains the number or its probe."""
    asked = study.resources.slots
    if method is not None and (reason := single_slot_reason(method)):
        return {"asked": 1, "reason": reason}
    measured = "each host measures, with a few steps of 1, 2, 4, … throw-away trials, how many make it faster and fit"
    return {"asked": asked, "reason": measured if asked == "auto" else None}


def _natural(study: Study, modalities: tuple[str, ...]) -> dict[str, BoolArray]:
    """The modalities present in a manifest's rows, by split; other datasets are counted as complete."""
    if study.data.dataset != "manifest":
        return {}
    splits = make_builder(study).splits()
    return {
        s: np.array([[r.values.get(m) is not None for m in modalities] for r in rows]) for s, rows in splits.items()
    }


def _count(method: Method) -> dict[str, Any]:
    parts: dict[str, int] = {}
    trainable = 0
    for tensor in trained(method, frozen=True):
        name, count = tensor.name, tensor.slot_view(tensor.parameter, 0).numel()
        if "lora_" in name:
            part = "lora"
        elif name.startswith("backbone.encoders."):
            part = "encoder " + name.split(".")[2]
        elif name.startswith("backbone."):
            part = name.split(".")[1]
        else:
            part = name.split(".")[0]
        parts[part] = parts.get(part, 0) + count
        trainable += count if tensor.parameter.requires_grad else 0
    total = sum(parts.values())
    shares = {"projector_share": parts["projector"] / total} if "projector" in parts else {}
    return {"total": total, "trainable": trainable, "by_part": parts} | shares


def _tokens(method: Method, study: Study, kinds: Mapping[str, str]) -> dict[str, int]:
    """Length of each modality's token sequence, including tokens that the method adds."""
    return {m: n + method.extra_tokens for m, (n, _) in method.backbone.token_shapes().items()}


def _pattern_counts(
    study: Study, modalities: tuple[str, ...], n: int, natural: BoolArray | None
) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for scenario in make_scenarios(study, modalities):
        table = availability_table(scenario, n, modalities, study.scenarios.seed, natural)
        rows = [int((table == row).all(1).sum()) for row in pattern_rows(modalities)]
        counts[scenario.name] = {
            pattern_name(p, modalities): c for p, c in zip(patterns(modalities), rows, strict=True) if c
        }
    return counts
