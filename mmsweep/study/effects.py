"""Refuses options without effect: the author of a study that sets one expects something that does not happen.

`_READERS` says which part of a study reads each option; an option of another method or dataset is an unknown key. Only
values that differ from the default are refused: a resolved study lists all defaults. Where the key that decides is
searched, one of its choices that reads the option is enough. What a number of 0 or a `none` switches off in so many
words is not refused: that is how one leaves a part of a file out for once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from typing import Any

from mmsweep.availability import Scenario
from mmsweep.data.dataset import DatasetCard
from mmsweep.data.options import KINDS, readings
from mmsweep.errors import UserError
from mmsweep.methods.options import METHODS, MaskingOptions
from mmsweep.study import Study
from mmsweep.study.packs import count_trials
from mmsweep.study.study import CHOICES
from mmsweep.tasks.task import TASKS


@dataclass(frozen=True)
class Facts:
    """The facts that decide which options are read."""

    study: Study
    card: DatasetCard

    @property
    def kinds(self) -> set[str]:
        return set(self.card.modalities.values())

    @property
    def task(self) -> str | None:
        return self.card.target.task if self.card.target else None

    def values(self, key: str) -> list[Any]:
        """A key's value in the study, and its searched values."""
        searched = self.study.search.get(key)
        try:
            value = self.study.value(key)
        except KeyError:  # its section is null
            value = None
        return [value, *(searched.edges() if searched else [])]


@dataclass(frozen=True)
class Reader:
    """What reads an option: a description for messages, and whether a study has it."""

    description: str
    exists: Callable[[Facts], bool]


def check_effects(study: Study, card: DatasetCard) -> None:
    """Refuse options that differ from their default or are searched although nothing reads them.

    Raises:
        UserError: names the key, and what would read it.
    """
    facts = Facts(study, card)
    given = _given(study)
    for option, reader in _readers(facts):
        for key, (place, value) in given.items():
            if (key == option or key.startswith(f"{option}.")) and not reader.exists(facts):
                raise UserError(
                    "this option has no effect in this study",
                    key=place,
                    found=value,
                    expected=f"no such key, or {reader.description}",
                )


def _given(study: Study) -> dict[str, tuple[str, Any]]:
    """Key -> (its key in the file, value) of all options that differ from their default or are searched."""
    given = {key: (key, value) for key, value in _leaves(study.model_dump(mode="json", exclude_defaults=True))}
    for key, dimension in study.search.items():
        for choice in dimension.choices:
            if isinstance(choice, Mapping):
                values = study.with_values({key: choice}).model_dump(mode="json", exclude_defaults=True)
                given |= {k: (f"search.{key}", choice) for k, value in _leaves(values) if k not in given}
        given[key] = (f"search.{key}", dimension.model_dump(mode="json", by_alias=True, exclude_defaults=True))
    return given


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{key}.")
        else:
            yield key, value


# ---- what reads what ---------------------------------------------------------------------------------------------


def _readers(facts: Facts) -> Iterator[tuple[str, Reader]]:
    """Every option that is not always read, with its reader; an option with several readers needs all of them."""
    yield from _READERS
    for choice in CHOICES:
        for option, (other, value) in choice.section(facts.study).read_with.items():
            yield f"{choice.place}.{option}", _value(f"{choice.place}.{other}", value)
    yield from _sections_of_kinds()
    yield from _task_options()
    for modality in facts.study.model.encoders:
        yield f"model.encoders.{modality}.train_layernorm", _value(f"model.encoders.{modality}.trainable", False)


def _kind(*kinds: str) -> Reader:
    return Reader(f"a modality of kind {_or(kinds)}", lambda facts: not set(kinds).isdisjoint(facts.kinds))


def _task(*tasks: str) -> Reader:
    return Reader(f"a dataset whose task is {_or(tasks)}", lambda facts: facts.task in tasks)


def _sections_of_kinds() -> Iterator[tuple[str, Reader]]:
    """The options of `data` about kinds of modalities."""
    for key, section in readings(KINDS):
        kinds = [kind for kind in KINDS if key in (kind, *KINDS[kind].also_read_by)]
        yield from ((f"data.{key}.{option}", _kind(*kinds)) for option in section.model_fields)


def _task_options() -> Iterator[tuple[str, Reader]]:
    """The options that some tasks read."""
    for option in sorted({option for task in TASKS.values() for option in task.reads}):
        yield option, _task(*(name for name, task in TASKS.items() if option in task.reads))


def _value(key: str, *values: Any) -> Reader:
    shown = _or("null" if v is None else str(v).lower() if isinstance(v, bool) else str(v) for v in values)
    return Reader(f"{key}: {shown}", lambda facts: any(value in values for value in facts.values(key)))


def _or(words: Any) -> str:
    *others, last = words
    return f"{', '.join(others)} or {last}" if others else str(last)


def _enlarges(facts: Facts) -> bool:
    return any(scale is not None and list(scale) != [1, 1] for scale in facts.values("data.augmentation.scale"))


def _cuts(facts: Facts) -> bool:
    windows = [window for window in facts.values("data.augmentation.window") if window is not None]
    sides = [side for format in facts.card.formats.values() for side in format.map_size or ()]
    return _enlarges(facts) or any(window < side for window in windows for side in sides)


def _adapts(facts: Facts) -> bool:
    """Whether a pretrained part of the network is frozen and a method trains adapters in it."""
    encoders = facts.study.model.encoders
    keys = [f"model.encoders.{m}.trainable" for m in encoders] if encoders else ["model.backbone.trainable"]
    if not any(value is False for key in keys for value in facts.values(key)):
        return False
    choosing = METHODS.with_option("adapters")
    return any(name not in choosing for name in facts.values("method.name")) or True in facts.values("method.adapters")


def _warms_up(facts: Facts) -> bool:
    """Whether there is a warm-up, or the study explicitly sets its length to 0."""
    lengths = ("warmup_epochs", "warmup_steps")
    asked = any(value for name in lengths for value in facts.values(f"train.schedule.{name}"))
    return asked or not facts.study.train.schedule.model_fields_set.isdisjoint(lengths)


_WARMUP = Reader("train.schedule.warmup_epochs or warmup_steps", _warms_up)
_FROZEN = Reader("a pretrained part that is frozen, with a method that trains adapters", _adapts)
_SAMPLERS = _value("sweep.sampler.name", "tpe", "random", "gp", "nsgaii")

_TRIALS = Reader(
    "as many as the grid has combinations, or sweep.sampler.name: tpe, random, gp or nsgaii",
    lambda facts: facts.study.sweep.trials == count_trials(facts.study),
)

_READERS: tuple[tuple[str, Reader], ...] = (
    ("data.augmentation.crop", _kind("image", "video", "raster")),
    ("data.augmentation.flip", _kind("image", "video", "raster")),
    ("data.augmentation.random_frames", _kind("video")),
    ("data.augmentation.window", _kind("raster")),
    ("data.augmentation.window", Reader("less than a raster's side, or data.augmentation.scale", _cuts)),
    ("data.augmentation.scale", _kind("raster")),
    ("data.augmentation.scale", Reader("another factor than 1", _enlarges)),
    ("model.lora.rank", _FROZEN),
    ("model.lora.alpha", _FROZEN),
    ("model.lora.dropout", _FROZEN),
    ("train.schedule.power", _value("train.schedule.name", "polynomial")),
    ("train.schedule.warmup_epochs", _value("train.schedule.warmup_steps", None)),
    ("train.schedule.warmup", _WARMUP),
    ("train.schedule.warmup_ratio", _WARMUP),
    ("bootstrap", Reader("final runs (sweep.final)", lambda facts: facts.study.sweep.final is not None)),
    ("sweep.trials", _TRIALS),
    ("sweep.sampler.seed", _SAMPLERS),
    ("sweep.start_from", _SAMPLERS),
    ("sweep.scheduler.reduction_factor", _value("sweep.scheduler.name", "asha", "none")),
)


# ---- options of methods ------------------------------------------------------------------------------------------


def check_method_options(study: Study) -> None:
    """Refuse a searched option that none of its possible methods has. Raises UserError."""
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


def check_masking(study: Study, modalities: Sequence[str]) -> None:
    """Refuse masking options, set or searched, that change nothing in any trial of the study. Raises UserError."""
    if {"method", "scenarios"} & set(study.search):
        return  # whole sections are searched, so each trial has its own
    try:
        masking = MaskingOptions(**study.value("method.masking"))
    except KeyError:
        return  # no method of the study masks anything
    for option, field in MaskingOptions.model_fields.items():
        key, value = f"method.masking.{option}", getattr(masking, option)
        searched = [k for k in (key, "method.masking") if k in study.search]
        # false means that nothing is masked beside gaps, which is also true without gaps.
        if not searched and value in ((field.default, False) if option == "with_training_gaps" else (field.default,)):
            continue
        if reason := _masks_nothing(study, modalities, option, study.search[searched[0]].when if searched else {}):
            shown = f"search.{searched[0]}" if searched else key
            raise UserError(
                f"this option has no effect: {reason}", key=shown, found="searched" if searched else value,
                expected="no such key",
            )  # fmt: skip


def _masks_nothing(study: Study, modalities: Sequence[str], option: str, when: Mapping[str, Any]) -> str | None:
    """Why a masking option affects no trial; None if it affects one.

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
        return  # whole sections are searched, so each trial has its own
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
    """The values that a key may have in trials for which `when` holds: its choices, or the bounds of a range."""
    values = study.search[key].edges() if key in study.search else [study.value(key)]
    if key not in when:
        return values
    wanted = when[key] if isinstance(when[key], list) else [when[key]]
    return [value for value in values if value in wanted]
