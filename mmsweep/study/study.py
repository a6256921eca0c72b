"""A study file, typed: its sections, the checks between them, and the configurations of its trials (DESIGN §5).

Each field has its description beside it. Other packages get these objects and never a raw mapping.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, PrivateAttr, SerializeAsAny, TypeAdapter, ValidationError

from mmsweep.components import UNKNOWN_KEY, Choice, Section
from mmsweep.data.options import DATASETS, DatasetOptions
from mmsweep.errors import UserError, masked
from mmsweep.methods.options import METHODS, MethodOptions
from mmsweep.models.options import ModelOptions
from mmsweep.study.search import Dimension, Sweep
from mmsweep.study.sections import Bootstrap, Inference, Resources, Scenarios, Tracking, Train
from mmsweep.study.source import Source, first_problem


class Study(Section):
    """A study file, validated. `Study.load(path)` reads one; `with_values` gives a trial's configuration."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,119}$", description="Name of the sweep and of its folder under sweeps/."
    )
    data: Annotated[SerializeAsAny[DatasetOptions], Choice(DATASETS, "data")] = Field(
        description="The dataset, and how its inputs are read."
    )
    model: ModelOptions = Field(description="The network of all modalities.")
    method: Annotated[SerializeAsAny[MethodOptions], Choice(METHODS, "method")] = Field(
        description="The method: what is done about missing modalities."
    )
    train: Train = Field(Train(), description="How a configuration is trained.")
    scenarios: Scenarios = Field(
        Scenarios(), description="Which modalities are missing while training, and the scenarios that are scored."
    )
    inference: Inference = Field(Inference(), description="How segmentation predicts at test.")
    search: dict[str, Dimension] = Field(
        default_factory=dict,
        description="The search space: each dotted key of the study that is searched, with its range or choices.",
    )
    sweep: Sweep = Field(Sweep(), description="How the search space is searched, and what follows the search.")
    bootstrap: Bootstrap = Field(Bootstrap(), description="How the report finds intervals and p-values.")
    resources: Resources = Field(Resources(), description="How many processes, CPUs and GPUs are used.")
    tracking: Tracking = Field(Tracking(), description="Where MLflow logs the runs.")
    _references: dict[str, str] = PrivateAttr(default_factory=dict)  # see Source.references

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> Study:
        """Read and check a study file.

        Args:
            path: a YAML file. Relative paths inside it are taken from its folder and made absolute.
            overrides: `key=value`, the value in YAML, applied before validation.

        Raises:
            UserError: names file, line, key, what was found and what was expected.
        """
        source = Source.read(Path(path), overrides)
        study = cls._checked(source.values, source)
        study._references = source.references
        for key, dimension in study.search.items():
            study._check_dimension(key, dimension, source)
        study._check_sweep(source)
        return study

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Study:
        """A study from plain values, as `resolved` gives them."""
        return cls._checked(dict(values), Source(values=dict(values)))

    @classmethod
    def _checked(cls, values: dict[str, Any], source: Source, search: Mapping[str, Any] | None = None) -> Study:
        """A study from plain values; `search` gives the search space if the values have none.

        Raises:
            UserError: placed by `source`.
        """
        search = values.get("search") if search is None else search
        names = {c.place: c.searched(search) for c in CHOICES} if isinstance(search, Mapping) else {}
        try:
            return cls.model_validate(values, context=names)
        except ValidationError as error:
            raise first_problem(error, source, cls) from None

    def _check_dimension(self, key: str, dimension: Dimension, source: Source) -> None:
        place = source.place(f"search.{key}")
        if key.split(".")[0] not in ("data", "model", "method", "train", "scenarios") or key == "scenarios.evaluate":
            raise UserError("this key cannot be searched", **place, expected="a key of data, model, method or train")
        for value in dimension.edges():
            if dimension.kind in ("int", "log_int"):
                value = int(value)
            try:
                self.configured({key: value})
            except UserError as error:
                if error.problem == UNKNOWN_KEY:
                    raise error.placed(**place) from None
                problem = f"the search space holds an impossible value ({error.problem})"
                raise UserError(
                    problem,
                    **place,
                    found=value,
                    expected=error.expected if error.key == key else None,
                    hint=error.hint,
                ) from None
        for other in dimension.when:
            try:
                self.value(other)
            except KeyError:
                raise UserError(
                    "`when` names an unknown key", **place, found=other, expected="a key of the study"
                ) from None

    def _check_sweep(self, source: Source) -> None:
        sweep, schedule = self.sweep, self.train.schedule
        warmup = schedule.warmup_epochs if schedule.warmup_steps is None else 0
        if sweep.scheduler.name == "asha" and sweep.scheduler.grace_epochs <= warmup:
            raise UserError(
                "ASHA would judge trials inside the warm-up",
                **source.place("sweep.scheduler.grace_epochs"),
                found=sweep.scheduler.grace_epochs,
                expected=f"more than train.schedule.warmup_epochs ({warmup:g})",
            )
        if len(sweep.objectives) > 1 and sweep.scheduler.name != "none":
            raise UserError(
                "no scheduler can judge several objectives",
                **source.place("sweep.scheduler"),
                found=sweep.scheduler.name,
                expected="none",
            )
        if sweep.sampler.name == "grid" and (wide := [k for k, d in self.search.items() if d.kind != "choice"]):
            raise UserError(
                "a grid needs choices", **source.place(f"search.{wide[0]}"), found=self.search[wide[0]].kind,
                expected="{choice: [...]}",
            )  # fmt: skip
        strange = [key for key in (sweep.final.keys if sweep.final else []) if key not in self.search]
        if strange:
            raise UserError(
                "`final.per` is not searched",
                **source.place("sweep.final.per"),
                found=strange[0],
                expected=f"one of {list(self.search)}",
            )
        if sweep.seeds > 1:
            raise UserError(
                "repeated seeds within a trial are not supported yet",
                **source.place("sweep.seeds"), found=sweep.seeds, expected="1",
                hint="Search train.seed with the grid sampler, or use sweep.final.seeds.",
            )  # fmt: skip

    def resolved(self) -> dict[str, Any]:
        """All values including defaults as plain JSON-able data, which `parse` turns back into the study."""
        return self.model_dump(mode="json", by_alias=True)

    def to_yaml(self) -> str:
        """`resolved` as YAML for files: paths with an environment variable (`${DATA}/mmimdb`) keep the variable's name,
        and a password in `tracking.uri` is masked."""
        source = Source(values=self.resolved())
        for key, text in self._references.items():
            source.set(key, text)
        if self.tracking.uri:
            source.set("tracking.uri", masked(self.tracking.uri))
        return yaml.safe_dump(source.values, sort_keys=False, allow_unicode=True)

    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.resolved(), sort_keys=True).encode()).hexdigest()[:16]

    def value(self, key: str) -> Any:
        """The effective value of a dotted key; if only another choice of a searched component has it, its value there.

        Raises:
            KeyError: there is no such key.
        """
        try:
            return self._own_value(key)
        except KeyError:
            for other in self.alternatives(key.split(".")[0]):
                with contextlib.suppress(KeyError):
                    return other._own_value(key)
            raise

    def _own_value(self, key: str) -> Any:
        if key == "model.lora.alpha" and self.model.lora is not None:
            searched = self.search.get(key)
            # If only numbers are searched, `rank` stands for its number.
            return self.model.lora.alpha if searched and "rank" in searched.choices else self.model.lora.alpha_in_force
        value: Any = self
        for part in key.split("."):
            if isinstance(value, Section):
                names = {info.alias or name: name for name, info in type(value).model_fields.items()}
                if part not in names:
                    raise KeyError(key)
                value = value.in_force(names[part])
            elif isinstance(value, Mapping) and part in value:
                value = value[part]
            else:
                raise KeyError(key)
        return _ANY.dump_python(value, mode="json", by_alias=True)

    def alternatives(self, part: str) -> list[Study]:
        """This study with each searched component name in one of its parts, such as `method`."""
        return [
            self.configured({choice.key: name})
            for choice in CHOICES
            if choice.place.split(".")[0] == part
            for name in choice.searched(self.search)
            if name in choice.registry
        ]

    def with_values(self, values: Mapping[str, Any]) -> Study:
        """This study with some dotted keys set, validated again.

        If they include a component's name, options that this component does not have are left out, and so are searched
        options that none of the possible components has: the written study can be read again.
        """
        base = self.resolved()
        for choice in CHOICES:
            if (name := values.get(choice.key)) is not None:
                names = [name, *choice.searched(self.search)]
                base["search"] = {key: d for key, d in base["search"].items() if choice.knows(key, names)}
                options = choice.section(self).model_dump(mode="json", by_alias=True).items()
                known = {name: value for name, value in options if choice.knows(f"{choice.place}.{name}", names)}
                Source(values=base).set(choice.place, known)
        study = self._with(values, base, None)
        replaced = tuple(f"{key}." for key in values)
        study._references = {k: text for k, text in self._references.items() if not f"{k}.".startswith(replaced)}
        return study

    def configured(self, values: Mapping[str, Any]) -> Study:
        """`with_values` without the search space, which then is not validated again."""
        return self._with(values, {**self.resolved(), "search": {}}, self.search)

    def _with(self, values: Mapping[str, Any], base: dict[str, Any], search: Mapping[str, Any] | None) -> Study:
        source = Source(values=base)
        for key, value in values.items():
            source.set(key, value)
        study = self._checked(source.values, source, search)
        for choice in CHOICES:
            if choice.key in values:
                choice.section(study).drop_shared()
        return study


CHOICES: tuple[Choice, ...] = tuple(
    choice for section in (Study, ModelOptions) for info in section.model_fields.values() for choice in info.metadata
    if isinstance(choice, Choice)
)  # fmt: skip


_ANY = TypeAdapter(Any)
