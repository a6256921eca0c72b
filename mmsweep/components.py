"""Components: what a study chooses by name (a method, a backbone, a dataset …), each with options of its own.

A component is one class in one file, which also declares its options; nothing else has to be touched to add one:

    @register("qmf")
    class QMF(Method):
        class Options(MethodOptions):
            temperature: float = Field(1.0, gt=0, description="Temperature of the energy score.")

A `Registry` holds the components of one kind and imports a component's file when somebody asks for its name.
"""

from __future__ import annotations

import pkgutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from operator import attrgetter
from typing import Any, ClassVar, TypeVar, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    ValidationInfo,
    field_validator,
    model_serializer,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from mmsweep.errors import nearest

C = TypeVar("C", bound=type[Any])
MISFIT = "misfit"
UNKNOWN_KEY = "unknown key"
LARGEST = 2**31 - 1
"""Of every number in a study; seeds are 32 bits wide in the libraries that take them."""


class Fusible:
    """Marks an option that may differ between the trials of a pack: `rate: Annotated[float, FUSIBLE] = Field(…)`."""


FUSIBLE = Fusible()


class Section(BaseModel):
    """What every part of a study file is: unknown keys refused, values frozen, defaults checked too."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML reads yes and on as true, which Python would count as 1."""
        annotation = cls.model_fields[info.field_name or ""].annotation
        values = value if isinstance(value, list | tuple) else [value]
        numeric = _mentions(annotation, (int, float)) and not _mentions(annotation, (bool, Any))
        if numeric and any(isinstance(v, bool) for v in values):
            raise misfit("wrong value", "a number, not true or false")
        return value

    @field_validator("*")
    @classmethod
    def _within_reason(cls, value: Any) -> Any:
        for number in value if isinstance(value, list | tuple) else [value]:
            if isinstance(number, int | float) and abs(number) > LARGEST:
                raise misfit("a number too large", f"at most {LARGEST:,}")
        return value

    def in_force(self, option: str) -> Any:
        """The value that an option has in effect, where its own value stands for another (null: as in the paper)."""
        return getattr(self, option)


def misfit(problem: str, expected: str, key: str | None = None, found: Any = None, hint: str = "") -> Exception:
    """What a validator raises: the parts of a message for people; of a section also the key in it that is wrong."""
    return PydanticCustomError(
        MISFIT, "{problem}", {"problem": problem, "expected": expected, "key": key, "found": found, "hint": hint}
    )


def _mentions(annotation: Any, types: Sequence[Any]) -> bool:
    return annotation in types or any(_mentions(argument, types) for argument in get_args(annotation))


class Options(Section):
    """The options of a component. `name` says which component, so a section is read by that component's own class."""

    name: str = Field(description="Name of the component.")
    read_with: ClassVar[Mapping[str, tuple[str, Any]]] = {}
    """Option -> another option, and the value of it without which nobody reads the first."""
    _shared: dict[str, Any] = PrivateAttr(default_factory=dict)  # options of other choices of a searched name

    def drop_shared(self) -> None:
        """Forget what only other components read: of a trial, whose name is chosen."""
        self._shared.clear()

    @model_serializer(mode="wrap")
    def _with_shared(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {**handler(self), **self._shared}


REGISTRIES: list[Registry] = []
"""Of all kinds of component that have been imported."""


class Registry(Mapping[str, Any]):
    """The components of one kind by their names, sorted.

    Args:
        noun: what a component is, for messages.
        package: its modules hold the components. A component is looked for in the module of its name first, so reading
            a study imports only what it names; listing imports all.
    """

    def __init__(self, noun: str, package: str) -> None:
        self.noun, self.package = noun, package
        self._components: dict[str, Any] = {}
        self._all = False
        REGISTRIES.append(self)

    def add(self, name: str, component: Any) -> None:
        """Enter a component. Raises ValueError where another one has the name."""
        known = self._components.setdefault(name, component)
        if (known.__module__, known.__qualname__) != (component.__module__, component.__qualname__):
            raise ValueError(f"two components of one name: {self.noun} {name}")
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

    def options(self, name: str, **values: Any) -> Any:
        """The options of a component, from its own class."""
        return self[name].Options(name=name, **values)

    def with_option(self, key: str) -> list[str]:
        """The components that have an option."""
        return [name for name, component in self.items() if key in component.Options.model_fields]

    def about(self, name: str) -> dict[str, Any]:
        """A component for people: name, what its file (of a user's own: its class) says it is, and its options."""
        component, options = self[name], {}
        fields = component.Options.model_fields if hasattr(component, "Options") else {}
        for key, info in fields.items():
            default = None if info.is_required() else info.get_default(call_default_factory=True)
            if key != "name":
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
    """Class decorator: enter a component under the name that studies use; an architecture may have several."""

    def enter(component: C) -> C:
        for name in names:
            component.registry.add(name, component)
        return component

    return enter


@dataclass(frozen=True)
class Choice:
    """Says of a field that holds `Options` that `name` in it chooses the component, whose own class then reads it.

    >>> method: Annotated[SerializeAsAny[MethodOptions], Choice(METHODS, "method")]  # doctest: +SKIP

    The section holds the chosen component's options and nothing else, with two exceptions. Where the name is searched,
    a key that another choice knows is kept for it. And a key of another component is dropped where it has its default:
    studies that older versions wrote list the options of all methods.

    Args:
        registry: the components to choose from.
        place: the section's dotted key in the study.
        default: the component of a section that names none; None: it must name one.
    """

    registry: Registry
    place: str
    default: str | None = None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_before_validator_function(self._read, handler(source))

    def section(self, study: Any) -> Options:
        """The section of a study."""
        found: Options = attrgetter(self.place)(study)
        return found

    def searched(self, search: Mapping[str, Any]) -> list[str]:
        """The names that a search space puts into the section."""
        dimension = search.get(f"{self.place}.name")
        choices = dimension.get("choice") if isinstance(dimension, Mapping) else getattr(dimension, "choice", None)
        return [name for name in choices or () if isinstance(name, str)] if isinstance(choices, list) else []

    def knows(self, key: str, names: Sequence[str]) -> bool:
        """Whether a dotted key of the study is an option of one of these components, or of no component's section."""
        if not key.startswith(f"{self.place}."):
            return True
        option = key.removeprefix(f"{self.place}.").split(".")[0]
        return any(option in self.registry[name].Options.model_fields for name in names if name in self.registry)

    def _read(self, values: Any, info: core_schema.ValidationInfo) -> Any:
        if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
            return values  # an instance, or something that the schema refuses
        if self.default is not None:
            values = {"name": self.default, **values}
        if not isinstance(values.get("name"), str):
            if "name" not in values:
                raise misfit("this key is missing", "a value", "name", MISSING)
            return {"name": values["name"]}
        name = values["name"]
        others = [self._known(other) for other in (info.context or {}).get(self.place, ()) if other in self.registry]
        section, shared = self._known(name, "name"), {}
        own = {key: value for key, value in values.items() if key in section.model_fields}
        for key in [key for key in values if key not in own]:
            if self._is_a_default(key, values[key]):
                continue  # whoever reads it has this value anyway
            if not any(key in other.model_fields for other in others):
                raise self._unknown(key, name, section, others)
            shared[key] = values[key]
        for other in others:
            known = {key: value for key, value in values.items() if key in other.model_fields}
            other.model_validate({**known, "name": name})
        options = section.model_validate(own)
        options._shared.update(shared)
        return options

    def _known(self, name: str, key: str | None = None) -> type[Options]:
        """The class of a component's options. Raises `misfit` where there is no such component."""
        if name not in self.registry:
            hint = nearest(name, self.registry) or ""
            raise misfit(f"unknown {self.registry.noun}", f"one of {', '.join(self.registry)}", key, name, hint)
        options: type[Options] = self.registry[name].Options
        return options

    def _is_a_default(self, key: str, value: Any) -> bool:
        for name in self.registry.with_option(key):
            field = self.registry[name].Options.model_fields[key]
            if field.is_required():
                continue
            try:
                given = TypeAdapter(field.annotation).validate_python(value)
            except ValueError:
                continue
            if given == field.get_default(call_default_factory=True):
                return True
        return False

    def _unknown(self, key: str, name: str, section: type[Options], others: Sequence[type[Options]]) -> Exception:
        allowed = list(dict.fromkeys(field for options in (section, *others) for field in options.model_fields))
        hint, owners = nearest(key, allowed, 0.5) or "", self.registry.with_option(key)
        if owners:
            noun = self.registry.noun
            hint = (
                f"It is an option of {noun} {', '.join(owners)}. To try another {noun} on the command line: "
                f"'{self.place}={{name: {name}}}' 'search={{}}'"
            )
        return misfit(UNKNOWN_KEY, f"one of {', '.join(allowed)}", key, key, hint)


MISSING = "<missing>"
"""Stands for a value that is not there in what `misfit` carries."""
