"""Checks that refuse a study before anything starts if it is known to fail."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmsweep.assembly.build import (
    card_of,
    make_backbone,
    make_builder,
    make_method,
    make_scenarios,
    parse_scenario,
    task_options,
)
from mmsweep.data.dataset import DatasetCard
from mmsweep.data.kinds.kind import Format
from mmsweep.errors import UserError, nearest
from mmsweep.methods.method import METHODS, Phase
from mmsweep.models.backbone import Backbone
from mmsweep.models.options import BACKBONES
from mmsweep.models.weights import NOT_HERE, require
from mmsweep.readers.mlflow.address import resolve_uri
from mmsweep.study import Study
from mmsweep.study.effects import check_effects, check_fill, check_masking, check_method_options
from mmsweep.study.packs import warm_key
from mmsweep.study.space import check_search, condition_values
from mmsweep.tasks.task import TASKS, Task, task_of
from mmsweep.training.initialization import check_first_stage, task_state

MOST_MODALITIES = 12


def metric_names(study: Study, modalities: Sequence[str], task: Task) -> list[str]:
    """Every metric that a trial reports on validation."""
    scenarios = [s.name for s in make_scenarios(study, modalities)] + ["mean_missing", "worst_missing"]
    return [f"val/{s}/{m}" for s in scenarios for m in task.metric_names]


def check_sweep(study: Study) -> None:
    """Check a study with its search space and networks. Raises UserError like `check` and `check_search`."""
    check_search(study)
    _check_bootstrap(study)
    card = card_of(study, rows=True)
    check(study, card)
    check_networks(study, card)


def check_training(study: Study) -> None:
    """Check the single configuration that `mmsweep train` trains. Raises UserError."""
    card = card_of(study)
    check(study, card)
    check_networks(study.configured({"sweep.scheduler": {"name": "none"}}), card)  # a single training has no scheduler


def check(study: Study, card: DatasetCard | None = None) -> None:
    """Check one configuration: scenarios, objectives, method, modalities.

    Args:
        card: the card of the study's dataset, if it was read already.

    Raises:
        UserError: names the key, what was found and what was expected.
    """
    if study.tracking.uri is not None:
        resolve_uri(study.tracking.uri, Path.cwd())
    card = card or card_of(study)
    modalities = tuple(card.modalities)
    if len(modalities) < 2:
        key = "data.modalities" if study.data.dataset == "manifest" else "data"
        raise UserError("too few modalities", key=key, found=list(modalities), expected="two at least")
    if len(modalities) > MOST_MODALITIES:
        raise UserError(
            "too many modalities: a score is computed for each of their combinations", key="data.modalities",
            found=len(modalities), expected=f"at most {MOST_MODALITIES}",
        )  # fmt: skip
    assert card.target is not None
    BACKBONES[study.model.backbone.name].check(study.model, modalities, card.target.task)
    parse_scenario(study.scenarios.train, modalities, "scenarios.train")
    for number, spec in enumerate(study.search["scenarios.train"].choices if "scenarios.train" in study.search else []):
        parse_scenario(spec, modalities, f"search.scenarios.train.choice.{number}")
    check_first_stage(study)
    _check_warmup(study, card.rows.get("train"))
    sizes = study.search["train.batch_size"].edges() if "train.batch_size" in study.search else []
    if study.resources.workers > (smallest := min([study.train.batch_size, *sizes])):
        raise UserError(
            "some workers would have no row of a batch", key="resources.workers", found=study.resources.workers,
            expected=f"at most {smallest} (train.batch_size)",
        )  # fmt: skip
    if study.data.task not in (None, card.target.task):
        raise UserError(
            f"{card.name} has no such task", key="data.task", found=study.data.task, expected=card.target.task
        )
    if study.data.dataset == "manifest" and card.target.kind != "map":  # maps are read when they are prepared
        _check_training_targets(study)
    _check_views(study, card.formats)
    names = metric_names(study, modalities, task_of(card.target))
    for objective in study.sweep.objectives:
        if objective.metric not in names:
            raise UserError(
                "no such metric",
                key="sweep.objective.metric",
                found=objective.metric,
                expected=f"one of {', '.join(names)}"
                if len(names) <= 12
                else "a val/scenario/metric of the listed scenarios",
                hint=nearest(objective.metric, names, 0.4),
            )
    methods = [("method.name", study.method.name)]
    if "method.name" in study.search:
        methods += [("search.method.name", str(name)) for name in study.search["method.name"].choices]
    for key, method in methods:
        check_task(method, key, card.target.task)
        if "model.backbone.name" not in study.search:
            check_method(method, key, study.model.backbone.name)
    check_method_options(study)
    check_masking(study, modalities)
    check_fill(study)
    check_effects(study, card)


def check_method(name: str, key: str, backbone: str) -> None:
    """Refuse a method that does not work on a backbone. Raises UserError."""
    if not issubclass(BACKBONES[backbone], METHODS[name].accepts):
        raise UserError(
            f"method {name} does not work on backbone {backbone}",
            key=key,
            found=name,
            expected=f"one of {', '.join(n for n, m in METHODS.items() if issubclass(BACKBONES[backbone], m.accepts))}",
        )


def check_task(method: str, key: str, task: str) -> None:
    """Refuse a method on a task that it does not support. Raises UserError."""
    targets = METHODS[method].targets
    if targets is not None and TASKS[task].target_kind not in targets:
        tasks = [name for name, one in TASKS.items() if one.target_kind in targets]
        raise UserError(
            f"method {method} does not know the task {task}",
            key=key,
            found=method,
            expected=f"a dataset whose task is {' or '.join(tasks)}",
        )


def _check_training_targets(study: Study) -> None:
    """Refuse equal training targets, and numeric ones without a scale or with one far from `train.init_from`'s."""
    builder, targets = make_builder(study), []
    for sample in builder.splits()["train"]:
        try:
            targets.append(builder.target.encode(sample.target))
        except UserError:  # a bad row: data.max_bad says what happens to it
            continue
    target, several = builder.target, builder.target.kind == "labels"
    if target.classes and len({np.asarray(encoded).tobytes() for encoded in targets}) == 1:
        same = np.flatnonzero(targets[0]) if several else [int(targets[0])]
        raise UserError(
            f"every training row has the same {'labels' if several else 'class'}: there is nothing to learn",
            key="data.target.column", found=", ".join(target.classes[place] for place in same) or "none",
        )  # fmt: skip
    try:
        task = TASKS[target.task].of(target, np.array(targets), task_options(study, target))
    except UserError as problem:
        raise problem.placed(key="data.target.column") from None
    if study.train.init_from is not None:
        task.started_from(task_state(study.train.init_from))


def _check_views(study: Study, formats: Mapping[str, Format]) -> None:
    """Refuse views of segmentation at test that are too small for the backbone."""
    inference, least = study.inference, BACKBONES[study.model.backbone.name].smallest
    sides = [side for format in formats.values() for side in format.map_size or ()]
    for scale in inference.scales if sides else ():
        side = round(min(sides) * scale)
        for option, seen, found in (("scales", side, scale), ("window", inference.window or side, inference.window)):
            if seen < least:
                raise UserError(
                    f"the backbone would see {seen} pixels a side", key=f"inference.{option}", found=found,
                    expected=f"{least} pixels at least",
                )  # fmt: skip


def _check_bootstrap(study: Study) -> None:
    """Refuse what the report could not resample once everything is trained: groups or seeds that there will not be."""
    over, final = study.bootstrap.over, study.sweep.final
    asked = "group" in type(study.data).model_fields  # other datasets bring groups of their own
    if "groups" in over and asked and study.value("data.group") is None:
        raise UserError(
            "the data has no groups of rows to resample", key="bootstrap.over", found=over,
            expected="rows or seeds, or a column of groups in data.group",
        )  # fmt: skip
    if "seeds" in over and final is not None and final.seeds < 2:
        raise UserError(
            "a single final run cannot be resampled", key="bootstrap.over", found=over,
            expected="rows or groups, or sweep.final.seeds of at least 2",
        )  # fmt: skip


def _check_warmup(study: Study, rows: int | None) -> None:
    """Refuse a warm-up in steps that outlasts the run or ASHA's grace period; study.py checks one in epochs."""
    steps = study.train.schedule.warmup_steps
    if steps is None or rows is None:
        return
    per_epoch = -(-rows // study.train.batch_size)
    if steps >= per_epoch * study.train.epochs:
        raise UserError(
            "the warm-up outlasts the run",
            key="train.schedule.warmup_steps",
            found=steps,
            expected=f"less than the run's {per_epoch * study.train.epochs} steps",
        )
    scheduler = study.sweep.scheduler
    if scheduler.name == "asha" and scheduler.grace_epochs * per_epoch <= steps:
        raise UserError(
            "ASHA would judge trials inside the warm-up",
            key="sweep.scheduler.grace_epochs",
            found=scheduler.grace_epochs,
            expected=f"more than train.schedule.warmup_steps ({steps} steps of {per_epoch} an epoch)",
        )


def check_networks(study: Study, card: DatasetCard) -> None:
    """Refuse networks that cannot be built as the study asks; skips networks that are not on this machine.

    Raises:
        UserError: names the key, or the searched key whose value does not fit.
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


def _variants(study: Study) -> Iterator[tuple[str | None, Any, Study]]:
    """The study itself, and the study with each searched value that affects the network."""
    yield None, None, study
    for key, dimension in study.search.items():
        if key.startswith(("data.", "model.", "method.", "train.epochs")):  # phases may need more epochs
            for values in _beside(study, key):
                for value in dimension.edges():
                    yield key, value, study.with_values({**values, key: value})


def _beside(study: Study, key: str) -> list[dict[str, Any]]:
    """Values of other searched keys with which a key is tried; epochs are tried with each method (for its phases)."""
    values, methods = condition_values(study, key), study.search.get("method.name")
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
    """Refuse a warm-up that fills a phase, and a scheduler that stops trials before the last one. Raises UserError."""
    *before, last = phases
    epochs, scheduler = sum(phase.epochs for phase in before), study.sweep.scheduler
    shortest, schedule = min(phase.epochs for phase in phases), study.train.schedule
    if before and schedule.warmup_steps is None and 0 < shortest <= schedule.warmup_epochs:
        raise UserError(
            f"each phase of method {study.method.name} begins with the warm-up, which would outlast a phase",
            key="train.schedule.warmup_epochs", found=schedule.warmup_epochs, expected=f"less than {shortest}",
        )  # fmt: skip
    if scheduler.name != "none" and before and scheduler.grace_epochs <= epochs:
        raise UserError(
            f"{scheduler.name} would judge trials of method {study.method.name} before its phase {last.name!r} begins",
            key="sweep.scheduler.grace_epochs", found=scheduler.grace_epochs, expected=f"more than {epochs}",
            hint=f"Set sweep.scheduler.grace_epochs above {epochs}, or sweep.scheduler.name to none.",
        )  # fmt: skip


def _check_inputs(backbone: Backbone, card: DatasetCard) -> None:
    """Refuse an encoder for another kind of modality, or with patches larger than the study's inputs."""
    grids = backbone.token_grids()
    for modality, kind in card.modalities.items():
        found = backbone.formats[modality].kind
        if found != kind:
            raise UserError(
                f"this network reads {found}, and the modality is {kind}", key=f"model.encoders.{modality}.name",
                expected=f"a network that reads {kind}",
            )  # fmt: skip
        if min(grids[modality], default=1) < 1:
            raise UserError(
                f"the network of {modality} sees nothing of an input of this size",
                key=backbone.formats[modality].size_key, found=getattr(backbone.formats[modality], "size", None),
                expected="at least the side of one of its patches",
            )  # fmt: skip


def missing_weights(study: Study) -> list[UserError]:
    """One error for each network of a study that is not on this machine, with the places searched. Fetches nothing."""
    missing = []
    for source, name, key in study.model.networks():
        try:
            require(source, name, key, fetch=False)
        except UserError as problem:
            missing.append(problem)
    return missing


def require_weights(study: Study) -> None:
    """Fetch the study's networks if allowed. Raises UserError if one of them cannot be found anywhere."""
    for source, name, key in study.model.networks():
        require(source, name, key, fetch=True)
