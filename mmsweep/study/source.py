"""Reads a study's YAML with overrides and environment variables; errors name file, line and key."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from mmsweep.components import MISFIT, MISSING, UNKNOWN_KEY, choice_of
from mmsweep.errors import UNSET, VARIABLE, UserError, nearest
from mmsweep.study.yaml_text import LONGEST_KEY, read_text, read_yaml

_PATH_KEYS = ("data.root", "data.path", "train.init_from")


@dataclass
class Source:
    """Plain values and, for a file, the line of each key."""

    values: dict[str, Any]
    file: Path | None = None
    lines: dict[str, int] = field(default_factory=dict)
    overridden: set[str] = field(default_factory=set)
    references: dict[str, str] = field(default_factory=dict)  # key -> its text with environment variables

    @classmethod
    def read(cls, path: Path, overrides: Sequence[str] = ()) -> Source:
        """Read a YAML file, apply `key=value` overrides, fill in environment variables, make paths absolute."""
        try:
            values, lines = read_yaml(read_text(path))
        except UserError as problem:
            raise problem.placed(file=path) from None
        if not isinstance(values, dict):
            raise UserError(
                "not a study",
                file=path,
                found=type(values).__name__,
                expected="a mapping with name, data, model, method",
            )
        source = cls(values, path, lines)
        for override in overrides:
            key, equals, text = (part.strip() for part in override.partition("="))
            if not equals or not key:
                raise UserError("not an override", found=override, expected="key=value, for example train.epochs=2")
            if len(key) > LONGEST_KEY:
                raise UserError("a key too long", file="command line", found=key)
            try:
                value, _ = read_yaml(text)
            except UserError as problem:
                problem = problem.placed(file="command line", line=None, key=key)
                raise problem.placed(found=text) if problem.found is UNSET else problem from None
            source.set(key, value)
            source.overridden.add(key)
        source.values = source._expand(source.values, "")
        return source

    def place(self, key: str) -> dict[str, Any]:
        """Keyword arguments for UserError with the file and line of a key or of its nearest enclosing key."""
        if any(key == k or key.startswith(k + ".") or k.startswith(key + ".") for k in self.overridden):
            return {"file": "command line", "key": key}
        probe = key
        while probe and probe not in self.lines:
            probe = probe.rpartition(".")[0]
        return {"file": self.file, "line": self.lines.get(probe), "key": key}

    def set(self, key: str, value: Any) -> None:
        """Set a dotted key; missing parents are created, a parent that is no mapping is refused."""
        parts = key.split(".")
        inner = self.values
        if parts[0] == "search" and len(parts) > 1:  # keys of the search space contain dots
            parts = ["search", ".".join(parts[1:])]
        for part in parts[:-1]:
            if inner.get(part) is None:
                inner[part] = {}
            if not isinstance(inner[part], dict):
                raise UserError("this key has no parts", **self.place(key), found=inner[part])
            inner = inner[part]
        inner[parts[-1]] = value

    def _expand(self, value: Any, key: str) -> Any:
        if isinstance(value, dict):
            return {k: self._expand(v, f"{key}.{k}" if key else str(k)) for k, v in value.items()}
        if isinstance(value, list):
            return [self._expand(v, f"{key}.{i}") for i, v in enumerate(value)]
        if not isinstance(value, str) or key == "tracking.uri":
            return value  # an address may contain a password: its variables are read when the store is opened
        unset = [name for name in VARIABLE.findall(value) if name not in os.environ]
        if unset and (key in _PATH_KEYS or _is_network(key)):
            return value  # a dry run needs neither data nor weights; the variable is required when they are read
        if unset:
            raise UserError(
                "an environment variable is not set",
                **self.place(key),
                found=value,
                expected=f"{unset[0]} in the environment",
                hint=f"export {unset[0]}=…",
            )
        text = VARIABLE.sub(lambda match: os.environ[match.group(1)], value)
        if key not in _PATH_KEYS and not _is_network(key):
            return text  # it affects results, so the value is recorded
        if text != value and not text.startswith((".", "~")) and (key not in _PATH_KEYS or Path(text).is_absolute()):
            self.references[key] = value
        try:
            if key in _PATH_KEYS or text.startswith((".", "~")):
                path = Path(text).expanduser()
                base = self.file.parent if self.file and key not in self.overridden else Path.cwd()
                text = str(path if path.is_absolute() else (base / path).resolve())
            os.lstat(text)
        except (RuntimeError, ValueError, OSError) as error:  # no such user, a loop of links, a NUL, too long
            if getattr(error, "errno", None) not in (None, errno.ENAMETOOLONG, errno.ELOOP):
                return text  # the code that reads it gives a better message
            reason = getattr(error, "strerror", None) or str(error)
            raise UserError(f"not a path ({reason})", **self.place(key), found=text) from None
        return text


def _is_network(key: str) -> bool:
    """Whether a key locates pretrained weights, by a hub name or a path."""
    return key == "model.backbone.weights" or (key.startswith("model.encoders.") and key.endswith(".name"))


def first_problem(error: ValidationError, source: Source, schema: type[BaseModel]) -> UserError:
    """Turn pydantic's list of problems into one message, for the most informative entry."""
    # The branch of a union with the deepest location is most likely the one that was meant.
    problem = min(_problems(error), key=lambda e: (not _is_unknown_key(e), -len(e["loc"])))
    context = problem.get("ctx", {}) if problem["type"] == MISFIT else {}
    parts = [str(p) for p in problem["loc"] if not _is_union_branch(p)]
    if context.get("key") is not None:
        parts += context["key"].split(".")
    place = source.place(".".join(parts))
    if problem["type"] == "extra_forbidden":
        allowed = _fields_at(schema, parts[:-1], source.values)
        return UserError(
            UNKNOWN_KEY,
            **place,
            found=parts[-1],
            expected=f"one of {', '.join(allowed)}" if allowed else None,
            hint=nearest(parts[-1], allowed, 0.5),
        )
    if problem["type"] == "missing":
        return UserError("this key is missing", **place, expected="a value")
    message = problem["msg"].removeprefix("Value error, ")
    found = problem.get("input") if context.get("key") is None else context["found"]
    if problem["type"] in ("value_error", MISFIT):
        details = {"expected": problem.get("ctx", {}).get("expected"), "hint": context.get("hint") or None}
        return UserError(message, **place, **details, **({} if found == MISSING else {"found": found}))
    return UserError("wrong value", **place, found=found, expected=message[0].lower() + message[1:])


def _problems(error: ValidationError, within: tuple[int | str, ...] = ()) -> Iterator[dict[str, Any]]:
    """pydantic's problems; those of a component's options get their full location."""
    for problem in error.errors():
        place = (*within, *problem["loc"])
        inner = problem.get("ctx", {}).get("error")
        if isinstance(inner, ValidationError):
            yield from _problems(inner, place)
        else:
            yield {**problem, "loc": place}


def _is_unknown_key(problem: Mapping[str, Any]) -> bool:
    return problem["type"] == "extra_forbidden" or problem["msg"] == UNKNOWN_KEY


def _is_union_branch(part: int | str) -> bool:
    """Whether part of a location is the name of a union's branch, which pydantic adds, and no key of the file."""
    return isinstance(part, str) and (
        part in ("int", "str", "float", "ObjectiveOptions", "dict[str,any]") or "[" in part
    )


def _fields_at(schema: Any, parts: Sequence[str], values: Any) -> list[str]:
    """The keys that the schema allows at a location; in a component's section, those of the chosen component."""
    current: Any = schema
    for part in parts:
        field_info = getattr(current, "model_fields", {}).get(part) if isinstance(current, type) else None
        values = values.get(part) if isinstance(values, Mapping) else None
        if field_info is not None:
            choice = choice_of(field_info)
            name = str(values.get(choice.registry.key)) if choice and isinstance(values, Mapping) else ""
            known = choice is not None and name in choice.registry
            current = choice.registry.section(name) if choice and known else _model_in(field_info.annotation)
    fields = getattr(current, "model_fields", {})
    return [info.alias or name for name, info in fields.items()]


def _model_in(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((m for arg in get_args(annotation) if (m := _model_in(arg)) is not None), None)
