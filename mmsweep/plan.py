"""The plan of a study, with nothing loaded and nothing started: what `tune --dry-run` prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from mmsweep.assembly import card_of, make_backbone, make_builder, make_method, make_scenarios
from mmsweep.availability import BoolArray, availability_table, pattern_name, pattern_rows, patterns
from mmsweep.check import check_sweep
from mmsweep.jobs import count_trials
from mmsweep.methods import Method
from mmsweep.models.packing import alone, trained
from mmsweep.study import Study


def dry_run(study: Study) -> dict[str, Any]:
    """The plan of a study without weights or data: parameters, tokens, scenarios, steps (the JSON of DESIGN §6)."""
    check_sweep(study)
    card = card_of(study)
    modalities = tuple(card.modalities)
    with torch.device("meta"):
        backbone = make_backbone(study, card, load=False, files=False)
    method = make_method(study, backbone)
    natural = _natural(study, modalities)
    return {
        "name": study.name,
        "parameters": _count(method),
        "tokens": _tokens(method, study, card.modalities),
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


def _slots(study: Study, method: Method) -> dict[str, Any]:
    """How many trials a host trains in one pass: {"asked", "reason"}; the reason says why, or how it is found."""
    asked = study.resources.slots
    if reason := alone(method):
        return {"asked": 1, "reason": reason}
    measured = "each host measures, with a few steps of 1, 2, 4, … throw-away trials, how many make it faster and fit"
    return {"asked": asked, "reason": measured if asked == "auto" else None}


def _natural(study: Study, modalities: tuple[str, ...]) -> dict[str, BoolArray]:
    """What the user's own file has, by split; other datasets are counted as complete."""
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
        name, count = tensor.name, tensor.own(tensor.parameter, 0).numel()
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
    """Tokens of one sequence of each modality, proxies included."""
    proxies = len(kinds) - 1 if study.method.name == "cmpt" else 0
    return {m: n + proxies for m, (n, _) in method.backbone.token_shapes().items()}


def _pattern_counts(
    study: Study, modalities: tuple[str, ...], n: int, natural: BoolArray | None
) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for scenario in make_scenarios(study, modalities):
        table = availability_table(scenario, n, modalities, study.scenarios.seed, natural)
        found = [int((table == row).all(1).sum()) for row in pattern_rows(modalities)]
        counts[scenario.name] = {
            pattern_name(p, modalities): c for p, c in zip(patterns(modalities), found, strict=True) if c
        }
    return counts
