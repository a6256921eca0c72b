"""Jobs for hosts, and the keys that decide which studies share loaded data (`warm_key`) and passes (`pack_key`)."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from mmsweep.components import FUSIBLE
from mmsweep.study import Study
from mmsweep.study.search import Conditions


@dataclass(frozen=True)
class Job:
    """A trial submitted to a host.

    Args:
        id: the trial's id, `0003` or `final/best/seed-101`.
        kind: `trial`, or `final` for one that is evaluated on test at its end.
        folder: absolute path of the trial's folder.
        study: the trial's configuration.
    """

    id: str
    kind: str
    folder: str
    study: Study


def warm_key(study: Study) -> str:
    """Studies with equal keys use the same loaded data and backbone on a host."""
    data = study.data.model_dump(mode="json", exclude={"augmentation"})
    varied = study.data.augmentation
    data["window"] = varied.window  # decides the training grid, and so the shapes of tokens
    data["kept"] = varied.crop is not None, varied.random_frames  # decide which columns are prepared
    networks = study.model.model_dump(mode="json", include={"backbone", "encoders"})
    return _digest([data, networks, study.resources.cpus])


def fusible(section: BaseModel, prefix: str = "") -> Iterator[str]:
    """Keys of a study that may differ between the slots of a pack: the options marked FUSIBLE."""
    for name, field in type(section).model_fields.items():
        if FUSIBLE in field.metadata:
            yield prefix + name
        elif isinstance(inner := getattr(section, name), BaseModel):
            yield from fusible(inner, f"{prefix}{name}.")


def pack_key(study: Study) -> str:
    """Studies with equal keys may train in one pass, unless `models.packing.alone` gives a reason against it."""
    values: dict[str, Any] = study.resolved()
    for key in fusible(study):
        *parents, last = key.split(".")
        place: Any = values
        for parent in parents:
            place = (place or {}).get(parent)
        if place:
            place.pop(last, None)
    parts = {name: values[name] for name in ("data", "model", "method", "train", "scenarios")}
    return _digest([warm_key(study), parts, largest_rank(study)])


def pack_limit(study: Study, trials: int) -> int:
    """How many of a search's trials may share a pack, on average: they differ in fusible keys only; at least 1."""
    kinds, free = 1.0, {key for one in (study, *study.alternatives("method")) for key in fusible(one)}
    for key, dimension in study.search.items():
        if not any(key == known or key.startswith(f"{known}.") for known in free):
            kinds *= dimension.count
    return max(1, math.ceil(trials / kinds))


def largest_rank(study: Study) -> int | None:
    """The largest LoRA rank in a study's search, to which all trials' ranks are padded so that they compute alike."""
    if study.model.lora is None:
        return None
    searched = study.search.get("model.lora.rank")
    return max([study.model.lora.rank, *(int(rank) for rank in (searched.edges() if searched else []))])


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def count_trials(study: Study) -> int:
    """Number of trials that a study asks for: `sweep.trials`, or every combination of a grid."""
    if study.sweep.sampler.name != "grid":
        return study.sweep.trials
    return len(Conditions(study.search, study.value).grid())
