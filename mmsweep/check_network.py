"""Whether the networks of a study and of its search can be built, and whether their weights are on this machine.

Each choice of a searched key is built too, on torch's meta device, so a size, a layer or a method that does not fit is
refused by `validate` and not by a host.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from mmsweep.assembly import make_backbone, make_method
from mmsweep.compatibility import check_method, check_task
from mmsweep.data.formats import KINDS
from mmsweep.data.registry import DatasetCard
from mmsweep.errors import UserError
from mmsweep.jobs import warm_key
from mmsweep.methods.method import Phase
from mmsweep.models.backbone import Backbone
from mmsweep.models.weights import NOT_HERE, require
from mmsweep.search_space import met
from mmsweep.study import Study

_SIZES = {
    "image": "data.image.size",
    "video": "data.image.size",
    "audio": "data.audio.frames",
    "text": "data.text.length",
}


def check_networks(study: Study, card: DatasetCard) -> None:
    """Refuse networks that cannot be built as the study asks; those that are not on this machine are left out.

    Raises:
        UserError: naming the study's key, or the searched one whose value does not fit.
    """
    built: dict[str, Backbone] = {}
    for key, value, variant in _variants(study):
        try:
            _build(variant, card, built)
        except UserError as problem:
            if problem.problem == NOT_HERE:
                continue
            if key is None:
                raise
            raise UserError(
                f"the search space holds an impossible value ({problem.problem})", key=f"search.{key}", found=value,
                expected=problem.expected, hint=problem.hint,
            ) from None  # fmt: skip


def missing_weights(study: Study) -> list[UserError]:
    """What of a study's networks is not on this machine; each says where it was looked for. Fetches nothing."""
    missing = []
    for source, name, key in study.model.networks():
        try:
            require(source, name, key, fetch=False)
        except UserError as problem:
            missing.append(problem)
    return missing


def require_weights(study: Study) -> None:
    """Fetch what may be fetched. Raises UserError where a network of the study can be found nowhere."""
    for source, name, key in study.model.networks():
        require(source, name, key, fetch=True)


def _variants(study: Study) -> Iterator[tuple[str | None, Any, Study]]:
    """The study as it stands, and with each searched value that decides what is built."""
    yield None, None, study
    for key, dimension in study.search.items():
        if key.startswith(("data.", "model.", "method.", "train.epochs")):  # phases may need more epochs
            for values in _beside(study, key):
                for value in dimension.edges():
                    yield key, value, study.with_values({**values, key: value})


def _beside(study: Study, key: str) -> list[dict[str, Any]]:
    """Values of other searched keys beside which a key is tried: of epochs each method's, whose phases share them."""
    values, methods = met(study, key), study.search.get("method.name")
    if key != "train.epochs" or methods is None or "method.name" in values:
        return [values]
    return [{"method.name": name, **values} for name in methods.choices]


def _build(study: Study, card: DatasetCard, built: dict[str, Backbone]) -> None:
    check_method(study.method.name, "method.name", study.model.backbone.name)
    if card.target is not None:
        check_task(study.method.name, "method.name", card.target.task)
    key = warm_key(study)
    if key not in built:
        with torch.device("meta"):
            built[key] = make_backbone(study, card, load=False, files=False)
        _check_inputs(built[key], card)
    check_phases(study, make_method(study, built[key]).phases(study.train.epochs))


def check_phases(study: Study, phases: list[Phase]) -> None:
    """Refuse a warm-up that fills a phase, and a scheduler that judges trials before the last one. Raises UserError."""
    *before, last = phases
    epochs, scheduler = sum(phase.epochs for phase in before), study.sweep.scheduler
    shortest, schedule = min(phase.epochs for phase in phases), study.train.schedule
    if before and schedule.warmup_steps is None and 0 < shortest <= schedule.warmup_epochs:
        raise UserError(
            f"the warm-up, which each phase of method {study.method.name} begins with, would not end in one of them",
            key="train.schedule.warmup_epochs", found=schedule.warmup_epochs, expected=f"less than {shortest}",
        )  # fmt: skip
    if scheduler.name != "none" and before and scheduler.grace_epochs <= epochs:
        raise UserError(
            f"{scheduler.name} would judge trials of method {study.method.name} before its phase {last.name!r} begins",
            key="sweep.scheduler.grace_epochs", found=scheduler.grace_epochs, expected=f"more than {epochs}",
            hint=f"Set sweep.scheduler.grace_epochs above {epochs}, or sweep.scheduler.name to none.",
        )  # fmt: skip


def _check_inputs(backbone: Backbone, card: DatasetCard) -> None:
    """Every encoder reads the kind of its modality and sees something of an input of the study's size."""
    grids = backbone.token_grids()
    for modality, kind in card.modalities.items():
        found = KINDS[type(backbone.formats[modality])]
        if found != kind:
            raise UserError(
                f"this network reads {found}, and the modality is {kind}", key=f"model.encoders.{modality}.name",
                expected=f"a network that reads {kind}",
            )  # fmt: skip
        if min(grids[modality], default=1) < 1:
            raise UserError(
                f"the network of {modality} sees nothing of an input of this size",
                key=_SIZES.get(kind, "data"), found=getattr(backbone.formats[modality], "size", None),
                expected="at least the side of one of its patches",
            )  # fmt: skip
