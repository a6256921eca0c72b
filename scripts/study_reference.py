"""Write docs/study.md from the study's schema and the components' options, so that it cannot differ from the code.

python scripts/study_reference.py            # writes
python scripts/study_reference.py --check    # exits with 1 where the file is out of date
"""

from __future__ import annotations

import re
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel

from mmsweep.components import Options, Registry, choice_of
from mmsweep.study import Study
from mmsweep.study.search import Dimension

TARGET = Path(__file__).parents[1] / "docs" / "study.md"
INTRODUCTION = """# The study file

Written by `python scripts/study_reference.py` from the schema in `mmsweep/study/` and the options of the components.
Any key can be given on the command line as `key=value`. Relative paths are taken from the study file's folder; `${X}`
is an environment variable.

A value that differs from its default and that nothing in the study reads is refused, for example `data.image.size`
without pictures. Where the key that decides is searched, it is enough that one of its choices reads the value.

A section with a `name`, such as `method`, holds the options of the component of that name and no others. Where the name
is searched, it may hold options of every choice; each trial takes those of its own.

"""


class Table(NamedTuple):
    """A section: its dotted prefix, its model, the section that is in force where a study leaves it out, the component
    that it belongs to, keys that another table shows, since all components have them, and those components."""

    prefix: str
    model: type[BaseModel]
    in_force: Any = None
    component: str | None = None
    shared: tuple[str, ...] = ()
    registry: Registry | None = None


def sections(table: Table) -> Iterator[Table]:
    """A section and those within it."""
    yield table
    for name, field in table.model.model_fields.items():
        given = getattr(table.in_force, name, None) if table.in_force is not None else _given(field)
        choice = choice_of(field)
        for inner in () if name in table.shared else _models(field.annotation):
            if inner is not Dimension:
                step = ".<modality>" if typing.get_origin(field.annotation) is dict else ""
                path = f"{table.prefix}.{name}{step}" if table.prefix else name + step
                of, registry = (None, choice.registry) if choice else (table.component, None)
                own = given if isinstance(given, inner) else None
                yield from sections(Table(path, inner, own, of, registry=registry))
        for chosen in choice.registry.choices() if choice and name not in table.shared else ():
            section, base = choice.registry.section(chosen), _models(field.annotation)[0]
            own = section.model_construct(**{choice.registry.key: chosen})
            shared = [n for n, f in base.model_fields.items() if f.description == section.model_fields[n].description]
            yield from sections(Table(choice.place, section, own, chosen, tuple(shared)))


def _given(field: Any) -> Any:
    return None if field.is_required() else field.get_default(call_default_factory=True)


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    found: list[type[BaseModel]] = []
    for argument in typing.get_args(annotation):
        found += [m for m in _models(argument) if m not in found]
    return found


def _type(annotation: Any) -> str:
    if typing.get_origin(annotation) in (tuple, dict):
        parts = ("..." if part is ... else _type(part) for part in typing.get_args(annotation))
        return f"{typing.get_origin(annotation).__name__}[{', '.join(parts)}]"
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return " or ".join(_type(part) for part in typing.get_args(annotation))
    if typing.get_origin(annotation) is typing.Annotated:
        return _type(annotation.__origin__)
    text = str(annotation) if typing.get_args(annotation) else getattr(annotation, "__name__", str(annotation))
    text = re.sub(r"mmsweep\.[\w.]*\.", "", text)
    for old, new in (
        ("typing.", ""),
        ("NoneType", "null"),
        ("None", "null"),
        ("Literal", ""),
    ):
        text = text.replace(old, new)
    return text.replace("|", "or")


def _default(name: str, field: Any, in_force: Any) -> str:
    if field.is_required() and not hasattr(in_force, name):
        return "required"
    value = _given(field) if in_force is None else getattr(in_force, name)
    if isinstance(value, BaseModel):
        return ""
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    if isinstance(in_force, Options) and in_force.in_force(name) != value:
        text += f" ({in_force.in_force(name)})"
    return text.replace("|", "\\|")  # a bar would end the table's cell


def _limit(constraint: Any) -> list[str]:
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    return [f"{word} {getattr(constraint, name):,}" for name, word in words.items() if hasattr(constraint, name)]


def render() -> str:
    parts, first = [INTRODUCTION], dict[tuple[str, Any], Table]()
    owners: dict[str, dict[Any, list[str]]] = {}  # prefix -> model -> the components that have it
    for table in [*sections(Table("", Study)), Table("search.<key>", Dimension)]:
        first.setdefault((table.prefix, table.model), table)
        owners.setdefault(table.prefix, {}).setdefault(table.model, []).append(f"`{table.component}`")
    for (prefix, model), table in first.items():
        if not model.model_fields.keys() - table.shared:
            continue
        of = f" of {', '.join(owners[prefix][model])}" if len(owners[prefix]) > 1 and table.component else ""
        parts.append(f"## `{prefix or 'study'}`{of}\n\n| key | type | default | meaning |\n|---|---|---|---|\n")
        for name, field in ((n, f) for n, f in model.model_fields.items() if n not in table.shared):
            limits = ", ".join(word for m in field.metadata for word in _limit(m))
            names = (
                f"one of {', '.join(table.registry.choices())}" if table.registry and name == table.registry.key else ""
            )
            meaning = "; ".join(part for part in ((field.description or "").rstrip("."), limits, names) if part)
            cells = (
                f"`{field.alias or name}`",
                _type(field.annotation),
                _default(name, field, table.in_force),
                meaning,
            )
            parts.append(f"| {' | '.join(cells)} |\n")
        parts.append("\n")
    return "".join(parts).rstrip() + "\n"


if __name__ == "__main__":
    text = render()
    if "--check" in sys.argv:
        sys.exit(0 if TARGET.exists() and TARGET.read_text(encoding="utf-8") == text else f"{TARGET} is out of date")
    TARGET.write_text(text, encoding="utf-8")
