"""Components: the methods, backbones, datasets and so on that a study chooses by name, each with its own options.

A component is one class in one file, which also declares its options. Adding one changes no other file:

    @register("qmf")
    class QMF(Method):
        class Options(MethodOptions):
            temperature: float = Field(1.0, gt=0, description="Temperature of the energy score.")

A `Registry` holds the components of one kind and imports a component's file when its name is first looked up.
"""

from __future__ import annotations

import pkgutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from operator import attrgetter
from types import UnionType
from typing import Any, ClassVar, TypeVar, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
)
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from mmsweep.errors import nearest

C = TypeVar("C", bound=type[Any])
MISFIT = "misfit"
UNKNOWN_KEY = "unknown key"
LARGEST = 2**31 - 1
"""Limit for every number in a study; libraries take seeds of 32 bits."""


class Fusible:
    """Annotates options that may differ between the trials of a pack: `rate: Annotated[float, FUSIBLE] = Field(…)`."""


FUSIBLE = Fusible()


class Section(BaseModel):
    """Base class of all sections of a study: unknown keys are refused, values are frozen, defaults are validated."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _reject_booleans(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse a boolean for a number: YAML reads yes and on as true, which Python accepts as 1."""
        annotation = cls.model_fields[info.field_name or ""].annotation
        values = value if isinstance(value, list | tuple) else [value]
        numeric = _mentions(annotation, (int, float)) and not _mentions(annotation, (bool, Any))
        if numeric and any(isinstance(v, bool) for v in values):
            raise misfit("wrong value", "a number, not true or false")
        return value

    @field_validator("*")
    @classmethod
    def _limit_numbers(cls, value: Any) -> Any:
        for number in value if isinstance(value, list | tuple) else [value]:
            if isinstance(number, int | float) and abs(number) > LARGEST:
                raise misfit("a number too large", f"at most {LARGEST:,}")
        return value

    def in_force(self, option: str) -> Any:
        """The effective value of an option, for options whose value may be a placeholder such as null."""
        return getattr(self, option)


def misfit(problem: str, expected: str, key: str | None = None, found: Any = None, hint: str = "") -> Exception:
    """The error of a validator, with the parts of its message; `key` is the wrong key within the section."""
    return PydanticCustomError(
        MISFIT, "{problem}", {"problem": problem, "expected": expected, "key": key, "found": found, "hint": hint}
    )


def _mentions(annotation: Any, types: Sequence[Any]) -> bool:
    return annotation in types or any(_mentions(argument, types) for argument in get_args(annotation))


class Options(Section):
    """The options of a component, validated by the class of the component that the option `Registry.key` names."""

    read_with: ClassVar[Mapping[str, tuple[str, Any]]] = {}
    """Option -> (other option, value of the other one with which the option has an effect)."""
    retired: ClassVar[Mapping[tuple[str, Any], tuple[str, Any]]] = {}
    """(Option, value) of earlier versions -> what it is now, so that sweeps begun with it can be resumed."""
    _shared: dict[str, Any] = PrivateAttr(default_factory=dict)  # options of other choices of a searched name

    def drop_shared(self) -> None:
        """Remove the options that only other components have, once a trial's component is chosen."""
        self._shared.clear()

    @model_serializer(mode="wrap")
    def _with_shared(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {**handler(self), **self._shared}


REGISTRIES: list[Registry] = []
"""The registries imported so far, one for each kind of component."""


class Registry(Mapping[str, Any]):
    """The components of one kind by name, sorted.

    Args:
        noun: what a component is called in messages.
        package: package with the components' modules. A module with the component's name is tried first, so reading a
            study imports only the components that it names; listing imports all.
        key: the option that holds a component's name.
    """

    def __init__(self, noun: str, package: str, key: str = "name") -> None:
        self.noun, self.package, self.key = noun, package, key
        self._components: dict[str, Any] = {}
        self._all = False
        REGISTRIES.append(self)

    def add(self, name: str, component: Any) -> None:
        """Register a component. Raises ValueError if another one has the same name."""
        known = self._components.setdefault(name, component)
        if (known.__module__, known.__qualname__) != (component.__module__, component.__qualname__):
            raise ValueError(f"two components have the same name: {self.noun} {name}")
        self._components[name] = component

    def __getitem__(self, name: str) -> Any:
        if name not in self._components and not self._all and name in self._modules():
            import_module(f"{self.package}.{name}")
        if name not in self._components:
            self._import_all()
        return self._components[name]

    def __iter__(self) -> Iterator[str]:
        self._import_all()
        return iter(sorted(self._components))

    def __len__(self) -> int:
        self._import_all()
        return len(self._components)

    def section(self, name: str) -> type[Any] | None:
        """The class of a component's options; None: a study cannot choose it."""
        section: type[Any] | None = self[name].Options
        return section

    def choices(self) -> list[str]:
        """The components that a study may choose."""
        return [name for name in self if self.section(name) is not None]

    def options(self, name: str, **values: Any) -> Any:
        """The options of a component, from its own class."""
        section = self.section(name)
        assert section is not None
        return section(**{self.key: name, **values})

    def with_option(self, key: str) -> list[str]:
        """The components that have an option; `text.field` is an option within a section."""
        return [name for name in self if _field_at(self.section(name), key) is not None]

    def about(self, name: str) -> dict[str, Any]:
        """A component's name, description (of its file, or of its class outside mmsweep) and options."""
        component, options = self[name], {}
        section = self.section(name) if hasattr(component, "Options") else None
        fields = section.model_fields if section else {}
        for key, info in fields.items():
            default = None if info.is_required() else info.get_default(call_default_factory=True)
            if key != self.key:
                plain = default.model_dump(mode="json") if isinstance(default, BaseModel) else default
                options[key] = {"default": plain, "what": info.description}
        own_file = component.__module__.startswith(f"{self.package}.")
        text = (sys.modules[component.__module__] if own_file else component).__doc__ or ""
        what = text.strip().split("\n\n")[0].replace("\n", " ")
        return {"name": name, "what": what, "options": options}

    def _modules(self) -> list[str]:
        return [module.name for module in pkgutil.iter_modules(import_module(self.package).__path__)]

    def _import_all(self) -> None:
        if not self._all:
            for name in self._modules():
                import_module(f"{self.package}.{name}")
            self._all = True


def register(*names: str) -> Callable[[C], C]:
    """Class decorator that registers a component under one name or several."""

    def decorate(component: C) -> C:
        for name in names:
            component.registry.add(name, component)
        return component

    return decorate


@dataclass(frozen=True)
class Choice:
    """Annotates a field of `Options` in which a name chooses the component; its class then validates the section.

    >>> method: Annotated[SerializeAsAny[MethodOptions], Choice(METHODS, "method")]  # doctest: +SKIP

    The section holds only the chosen component's options, with two exceptions. If the name is searched, the options of
    the other choices are kept. Another component's option is dropped if it has its default value (null for a required
    one), because studies written by older versions list the options of all components.

    Args:
        registry: the components to choose from.
        place: the section's dotted key in the study, such as `data.modalities.<modality>` in a mapping.
        default: the component of a section without a name; None makes the name required.
    """

    registry: Registry
    place: str
    default: str | None = None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_before_validator_function(self._read, handler(source))

    @property
    def key(self) -> str:
        """The dotted key that holds the component's name."""
        return f"{self.place}.{self.registry.key}"

    def section(self, study: Any) -> Options:
        """The section of a study."""
        section: Options = attrgetter(self.place)(study)
        return section

    def searched(self, search: Mapping[str, Any]) -> list[str]:
        """The names of components in a search space."""
        dimension = search.get(self.key)
        choices = dimension.get("choice") if isinstance(dimension, Mapping) else getattr(dimension, "choice", None)
        return [name for name in choices or () if isinstance(name, str)] if isinstance(choices, list) else []

    def knows(self, key: str, names: Sequence[str]) -> bool:
        """Whether one of these components has a dotted key's option; true for all keys outside the section."""
        if not key.startswith(f"{self.place}."):
            return True
        option = key.removeprefix(f"{self.place}.").split(".")[0]
        return any(option in self._known(name).model_fields for name in names if name in self.registry)

    def _read(self, values: Any, info: core_schema.ValidationInfo) -> Any:
        if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
            return values  # an instance, or a value that the schema refuses
        key = self.registry.key
        if self.default is not None:
            values = {key: self.default, **values}
        if not isinstance(values.get(key), str):
            if key not in values:
                raise misfit("this key is missing", "a value", key, MISSING)
            return {key: values[key]}
        name = values[key]
        others = [self._known(other) for other in (info.context or {}).get(self.place, ()) if other in self.registry]
        section, shared = self._known(name, key), {}
        for (option, value), (renamed, renewed) in section.retired.items():
            if values.get(option) == value:
                values = {renamed: renewed, **{k: v for k, v in values.items() if k != option}}
        selected = {
            option: self._select(option, value, name, section)
            for option, value in values.items()
            if option in section.model_fields
        }
        for option, value in values.items():
            if option in selected or self._is_a_default(option, value):
                continue
            if not any(option in other.model_fields for other in others):
                raise self._unknown(option, name, (section, *others))
            shared[option] = value
        for other in others:
            known = {option: value for option, value in values.items() if option in other.model_fields}
            other.model_validate({**known, key: name})
        options = section.model_validate(selected)
        options._shared.update(shared)
        return options

    def _select(self, option: str, value: Any, name: str, owner: type[Section]) -> Any:
        """The value of a component's option; from a section, only the keys of this component."""
        section = _section_in(owner.model_fields[option.rpartition(".")[2]].annotation)
        if section is None or not isinstance(value, Mapping):
            return value
        selected = {}
        for key, inner in value.items():
            if key in section.model_fields:
                selected[key] = self._select(f"{option}.{key}", inner, name, section)
            elif not self._is_a_default(f"{option}.{key}", inner):
                raise self._unknown(f"{option}.{key}", name, (section,))
        return selected

    def _known(self, name: str, key: str | None = None) -> type[Options]:
        """The class of a component's options. Raises `misfit` if there is no such component."""
        section = self.registry.section(name) if name in self.registry else None
        if section is None:
            known = self.registry.choices()
            hint = nearest(name, known) or ""
            raise misfit(f"unknown {self.registry.noun}", f"one of {', '.join(known)}", key, name, hint)
        return section

    def _is_a_default(self, option: str, value: Any) -> bool:
        fields = (_field_at(self.registry.section(name), option) for name in self.registry)
        return any(
            value is None or (not field.is_required() and _agrees(value, field.get_default(call_default_factory=True)))
            for field in fields
            if field is not None
        )

    def _unknown(self, option: str, name: str, sections: Sequence[type[Section]]) -> Exception:
        allowed = list(dict.fromkeys(field for section in sections for field in section.model_fields))
        key = option.rpartition(".")[2]
        hint, owners = nearest(key, allowed, 0.5) or "", self.registry.with_option(option)
        if owners:
            noun = self.registry.noun
            hint = f"It is an option of {noun} {', '.join(owners)}."
            if "<" not in self.place:  # a section in a mapping has no fixed key
                change = f"'{self.place}={{{self.registry.key}: {name}}}' 'search={{}}'"
                hint += f" To try another {noun} on the command line: {change}"
        return misfit(UNKNOWN_KEY, f"one of {', '.join(allowed)}", option, key, hint)


def choice_of(field: FieldInfo) -> Choice | None:
    """The `Choice` of a field, or of the values of a mapping in it; None without one."""
    annotations, choices = [field.annotation], [m for m in field.metadata if isinstance(m, Choice)]
    while annotations and not choices:
        arguments = get_args(annotations.pop())
        annotations += arguments
        choices = [argument for argument in arguments if isinstance(argument, Choice)]
    return choices[0] if choices else None


def _section_in(annotation: Any) -> type[Section] | None:
    """The section that a field may hold; None if it holds something else or one of several sections."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    if get_origin(annotation) not in (Union, UnionType):
        return None
    sections = [section for argument in get_args(annotation) if (section := _section_in(argument)) is not None]
    return sections[0] if len(sections) == 1 else None


def _field_at(section: type[Section] | None, key: str) -> FieldInfo | None:
    """The field of a dotted key within a section; None if it has no such key."""
    *parents, last = key.split(".")
    for parent in parents:
        field = section.model_fields.get(parent) if section is not None else None
        section = None if field is None else _section_in(field.annotation)
    return None if section is None else section.model_fields.get(last)


def _agrees(value: Any, default: Any) -> bool:
    """Whether plain values equal a default; for a section, a part of its values is enough."""
    if isinstance(default, Section):
        fields = {info.alias or name: getattr(default, name) for name, info in type(default).model_fields.items()}
        return isinstance(value, Mapping) and all(
            key in fields and _agrees(inner, fields[key]) for key, inner in value.items()
        )
    return bool(value == (list(default) if isinstance(default, tuple) else default))


MISSING = "<missing>"
"""Marks a missing value in an error of `misfit`."""
