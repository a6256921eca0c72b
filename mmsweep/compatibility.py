"""What fits together: the methods that a study names, against its backbone, its task and its options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import product
from typing import Any

from mmsweep.availability import Scenario
from mmsweep.errors import UserError
from mmsweep.methods.options import METHODS, MaskingOptions
from mmsweep.models.options import BACKBONES
from mmsweep.study import Study


def check_method(name: str, key: str, backbone: str) -> None:
    """Refuse a method that does not work on a backbone. Raises UserError."""
    if not issubclass(BACKBONES[backbone], METHODS[name].accepts):
        raise UserError(
            f"method {name} does not work on backbone {backbone}",
            key=key,
            found=name,
            expected=f"one of {', '.join(n for n, m in METHODS.items() if issubclass(BACKBONES[backbone], m.accepts))}",
        )


def check_method_options(study: Study) -> None:
    """Refuse a searched option that no method has beside which it is searched. Raises UserError."""
    for key, dimension in study.search.items():
        if key.startswith("method.") and "method" not in study.search:
            option, names = key.split(".")[1], _possible(study, "method.name", dimension.when)
            if not any(option in METHODS[name].Options.model_fields for name in names):
                owners = METHODS.with_option(option)
                reason = f"method {' or '.join(names)} has no option {option}" if names else "its condition never holds"
                raise UserError(
                    f"this option has no effect: {reason}", key=f"search.{key}", found="searched",
                    expected=f"no such key, or method.name: {' or '.join(owners)}",
                )  # fmt: skip


def check_task(method: str, key: str, task: str) -> None:
    """Refuse a method on a task that it is not made for. Raises UserError."""
    tasks = METHODS[method].tasks
    if tasks is not None and task not in tasks:
        raise UserError(
            f"method {method} does not know the task {task}",
            key=key,
            found=method,
            expected=f"a dataset whose task is {' or '.join(sorted(tasks))}",
        )


def check_masking(study: Study, modalities: Sequence[str]) -> None:
    """Refuse masking options, set or searched, that change nothing in any trial of the study. Raises UserError."""
    if {"method", "scenarios"} & set(study.search):
        return  # whole sections are searched: each trial brings its own
    try:
        masking = MaskingOptions(**study.value("method.masking"))
    except KeyError:
        return  # no method of the study masks anything
    for option, field in MaskingOptions.model_fields.items():
        key, value = f"method.masking.{option}", getattr(masking, option)
        searched = [k for k in (key, "method.masking") if k in study.search]
        # false says that nothing is masked beside gaps, which holds where there are none.
        if not searched and value in ((field.default, False) if option == "with_training_gaps" else (field.default,)):
            continue
        if reason := _masks_nothing(study, modalities, option, study.search[searched[0]].when if searched else {}):
            shown = f"search.{searched[0]}" if searched else key
            raise UserError(
                f"this option has no effect: {reason}", key=shown, found="searched" if searched else value,
                expected="no such key",
            )  # fmt: skip


def _masks_nothing(study: Study, modalities: Sequence[str], option: str, when: Mapping[str, Any]) -> str | None:
    """Why no trial feels a masking option; None where one does.

    Args:
        when: the condition under which the option is searched.
    """
    names, specs = (_possible(study, key, when) for key in ("method.name", "scenarios.train"))
    masking = set(METHODS.with_option("masking"))
    methods = [METHODS[name] for name in names if name in masking]
    gaps = [Scenario.parse(spec, modalities).leaves_gaps(modalities) for spec in specs]
    if not specs:
        return "its condition never holds"
    if option == "with_training_gaps":
        return None if any(gaps) else "scenarios.train leaves no gaps"
    kept = _possible(study, "method.masking.with_training_gaps", when)
    if not any(method.masks(gap, keep) for method, gap, keep in product(methods, gaps, kept)):
        without = "unless method.masking.with_training_gaps is true"
        return f"scenarios.train leaves gaps, and {' or '.join(names)} masks nothing beside them {without} (B3)"
    if option != "probability" and max(_possible(study, "method.masking.probability", {})) == 0:
        return "method.masking.probability is 0"
    if option == "distribution" and len(modalities) == 2:
        return "of two modalities exactly one is removed in any case"
    return None


def check_fill(study: Study) -> None:
    """Refuse fill values that nothing reads, or that no network can read. Raises UserError."""
    if {"method", "data"} & set(study.search):
        return  # whole sections are searched: each trial brings its own
    asked = any(METHODS[name].always_feeds for name in _possible(study, "method.name", {}))
    with suppress(KeyError):  # no method of the study has the option
        asked = asked or "placeholder" in _possible(study, "method.absent", {})
    fill = "search.data.fill" if "data.fill" in study.search else "data.fill"
    fills = _possible(study, "data.fill", {})
    if asked and "nan" in fills:
        raise UserError(
            "no network can read NaN as a placeholder", key=fill, found="nan", expected="zeros, ones, black or mean"
        )
    if not asked and (fill.startswith("search") or fills[0] not in ("zeros", "nan")):  # nan: tests of `drop`
        raise UserError(
            "this option has no effect: no network reads the placeholder of an absent input", key=fill,
            found="searched" if fill.startswith("search") else fills[0], expected="no such key",
            hint=f"method.absent: placeholder feeds it ({' and '.join(METHODS.with_option('absent'))}); "
            f"{' and '.join(name for name, method in METHODS.items() if method.always_feeds)} does in any case.",
        )  # fmt: skip


def _possible(study: Study, key: str, when: Mapping[str, Any]) -> list[Any]:
    """The values that a key may have in a study's trials, where `when` holds: its choices, or the bounds of a range."""
    values = study.search[key].edges() if key in study.search else [study.value(key)]
    if key not in when:
        return values
    wanted = when[key] if isinstance(when[key], list) else [when[key]]
    return [value for value in values if value in wanted]
