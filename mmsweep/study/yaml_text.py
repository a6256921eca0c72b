"""Reads untrusted YAML: plain values and the line of each key, with limits on size and depth.

A study holds text, numbers, booleans, null, lists, and mappings with text as keys. Everything else in YAML (dates,
binary data, sets, tags of Python objects) is refused with its line. Aliases are expanded into copies, so that changing
a value changes one place only; an alias that contains itself or expands beyond `MOST_VALUES` is refused before any
value is built.
"""

from __future__ import annotations

import math
import re
import stat
from pathlib import Path
from typing import Any

import yaml

from mmsweep.errors import UserError

MOST_BYTES = 512 * 1024
MOST_VALUES = 30_000
LONG_TEXT = 100  # characters; a longer text counts as several values
LONGEST_KEY = 200
DEEPEST = 40
LARGEST_INTEGER = 2**63
_INTEGERS = "a whole number below 2^63"
# Characters that no path, name or label needs and that some files, tables or stores cannot hold: control characters
# other than tab and line breaks, and unpaired surrogates.
_FORBIDDEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
# YAML 1.1, which PyYAML implements, reads 010 as 8 and 1:30 as 90; YAML 1.2 reads them as 10 and as text.
_AMBIGUOUS = re.compile(r"[-+]?0[0-9_]+|.*:.*")
_TAG = "tag:yaml.org,2002:"
_PLAIN = {_TAG + name for name in ("str", "int", "float", "bool", "null")}


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-3 as a number, like YAML 1.2, and limits the size of the document."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._count, self._depth = 0, 0
        self._sizes: dict[str, int] = {}  # anchor -> number of values, aliases expanded; 0 while being composed

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose a node and count its values, aliases expanded."""
        event: Any = self.peek_event()
        before = self._count
        if isinstance(event, yaml.AliasEvent):
            size = self._sizes.get(event.anchor or "", 1)
            if size == 0:
                raise _refused(event, f"the alias *{event.anchor} contains itself")
            self._count += size
        else:
            self._count += 1 + len(getattr(event, "value", "")) // LONG_TEXT
            if event.anchor is not None:
                self._sizes.setdefault(event.anchor, 0)
        if self._count > MOST_VALUES:
            raise _refused(event, f"more than {MOST_VALUES:,} values, aliases expanded")
        self._depth += 1
        if self._depth > DEEPEST:
            raise _refused(event, f"nested more than {DEEPEST} levels deep")
        node = super().compose_node(parent, index)
        self._depth -= 1
        if not isinstance(event, yaml.AliasEvent) and event.anchor is not None:
            self._sizes[event.anchor] = self._count - before
        return node


_Loader.add_implicit_resolver(
    _TAG + "float",
    re.compile(
        r"^[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.[0-9]+(?:[eE][-+]?[0-9]+)?|\.(?:inf|nan))$"
    ),
    list("-+0123456789."),
)


def _refused(where: Any, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=where.start_mark)


def read_text(path: Path) -> str:
    """The text of a study file.

    Raises:
        UserError: the file is not regular, too large, unreadable, or not UTF-8.
    """
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):
            kind = "a folder" if stat.S_ISDIR(about.st_mode) else "not a regular file"
            raise UserError("the study file cannot be read", file=path, found=kind, expected="a YAML file")
        with path.open("rb") as stream:
            content = stream.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise UserError(
                "the study file is too large", file=path, expected=f"at most {MOST_BYTES:,} bytes",
                hint="Data belongs in a manifest (data.path).",
            )  # fmt: skip
        return content.decode("utf-8")
    except FileNotFoundError:
        near = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        hint = f"There: {', '.join(near[:8])}." if near else None
        raise UserError("no such study file", file=path, expected="a YAML file", hint=hint) from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError("the study file is not UTF-8 text", file=path, line=line, expected="YAML in UTF-8") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"the study file cannot be read ({reason})", file=str(path)) from None


def read_yaml(text: str) -> tuple[Any, dict[str, int]]:
    """The values of a YAML document, and the line of each dotted key (list items by their index).

    Raises:
        UserError: names the line and, if known, the key; the caller adds the file.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        problem = f"character U+{int(error.character):04X} is not allowed"  # type: ignore[call-overload]
        raise UserError(f"not valid YAML ({problem})", line=line) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error)
        raise UserError(f"not valid YAML ({problem})", line=mark.line + 1 if mark else None) from None
    except (ValueError, IndexError, OverflowError) as error:  # PyYAML on escapes such as "\UFFFFFFFF" and %YAML 9…9
        line = loader.line + 1
        raise UserError("not valid YAML (an escape or directive that cannot be read)", line=line) from error
    lines: dict[str, int] = {}
    return None if node is None else _value(loader, node, "", lines), lines


def _value(loader: _Loader, node: Any, key: str, lines: dict[str, int]) -> Any:
    if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
        return _mapping(loader, node, key, lines)
    if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
        values = []
        for index, item in enumerate(node.value):
            inner = f"{key}.{index}" if key else str(index)
            lines[inner] = item.start_mark.line + 1
            values.append(_value(loader, item, inner, lines))
        return values
    place: dict[str, Any] = {"line": node.start_mark.line + 1, "key": key or None}
    if not isinstance(node, yaml.ScalarNode) or node.tag not in _PLAIN:
        name = node.tag.removeprefix(_TAG)[:40]
        problem = "reads as a date" if name == "timestamp" else f"has the YAML type {name!r}"
        found = node.value if isinstance(node, yaml.ScalarNode) else name
        expected = "text, a number, true, false, null, a list or a mapping"
        raise UserError(f"a value that {problem}", **place, found=found, expected=expected, hint="Quote it for text.")
    try:
        value = loader.construct_object(node)
    except (yaml.YAMLError, ValueError, IndexError, KeyError, OverflowError):
        kind = node.tag.removeprefix(_TAG)
        if kind == "int" and len(node.value) > LONG_TEXT:  # Python limits the number of digits
            raise UserError("a number too large", **place, found=node.value, expected=_INTEGERS) from None
        raise UserError(f"not a value of YAML's type {kind!r}", **place, found=node.value) from None
    if isinstance(value, int) and abs(value) >= LARGEST_INTEGER:
        raise UserError("a number too large", **place, found=node.value, expected=_INTEGERS)
    if not isinstance(value, str | bool) and _AMBIGUOUS.fullmatch(node.value):
        problem, expected = "a number that versions of YAML read differently", "no leading zero and no colon"
        raise UserError(problem, **place, found=node.value, expected=expected, hint="Quote it for text.")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError("not a finite number", **place, found=node.value, expected="a finite number")
    if isinstance(value, str) and (bad := _FORBIDDEN.search(value)):
        code = f"U+{ord(bad.group()):04X}"
        raise UserError("a control character in a text", **place, found=code, expected="printable text")
    return value


def _mapping(loader: _Loader, node: yaml.MappingNode, prefix: str, lines: dict[str, int]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    merged: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if key_node.tag == _TAG + "merge":
            for part in reversed(value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]):
                if not isinstance(part, yaml.MappingNode):
                    raise UserError("<< does not name a mapping", line=line, key=prefix or None, expected="an alias")
                merged.update(_mapping(loader, part, prefix, {}))
            continue
        if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != _TAG + "str":
            found = key_node.value if isinstance(key_node, yaml.ScalarNode) else key_node.tag.removeprefix(_TAG)
            raise UserError(
                "a key that is not text", line=line, key=prefix or None, found=found, expected="text",
                hint="Quote it.",
            )  # fmt: skip
        name = _value(loader, key_node, prefix, lines)
        if len(name) > LONGEST_KEY:
            expected = f"at most {LONGEST_KEY} characters"
            raise UserError("a key too long", line=line, key=prefix or None, found=name, expected=expected)
        key = f"{prefix}.{name}" if prefix else name
        if name in values:  # YAML libraries silently keep the last
            first = f"the first on line {lines[key]}"
            raise UserError("this key stands twice", line=line, key=key, found=first, expected="once")
        lines[key] = line
        values[name] = _value(loader, value_node, key, lines)
    return {**merged, **values}
