"""The exception shown to users: what is wrong, where, and what is expected."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
"""A reference to an environment variable in a study's text."""
MASK = "***"
"""Replaces passwords in addresses that are shown or written."""
LONGEST_QUOTE = 200
_PASSWORD = re.compile(r"(://[^\s:/@]*):\S*@")
_SECRET_OPTION = re.compile(r"([?&](?:password|passwd|pwd|token|secret|sslpassword)=)[^&\s'\"]+", re.IGNORECASE)


class _Unset:
    """The type of UNSET, which means that there is no value to quote; None and "" are values."""


UNSET = _Unset()


def masked(text: str) -> str:
    """The text with the passwords of addresses masked: `http://ann:***@host`, `…?password=***`.

    A reference to an environment variable (`http://ann:${PASSWORD}@host`) is kept.
    """

    def password(match: re.Match[str]) -> str:
        return match[0] if re.fullmatch(r":\$\{\w+\}@", match[0][len(match[1]) :]) else f"{match[1]}:{MASK}@"

    def option(match: re.Match[str]) -> str:
        return match[0] if "=${" in match[0] else match[1] + MASK

    return _SECRET_OPTION.sub(option, _PASSWORD.sub(password, text))


_FIELDS = ("file", "line", "key", "found", "expected", "hint")


class UserError(Exception):
    """A problem that the author of the file or the command can solve; the CLI prints it once without a traceback.

    Args:
        problem: what is wrong, as a sentence without a full stop.
        file: the file with the problem.
        line: line in the file, counted from 1.
        key: the key, column, option or row concerned.
        found: the offending value.
        expected: what was expected, in words.
        hint: how to solve it.
    """

    def __init__(
        self,
        problem: str,
        *,
        file: object | None = None,
        line: int | None = None,
        key: str | None = None,
        found: Any = UNSET,
        expected: str | None = None,
        hint: str | None = None,
    ) -> None:
        self.problem, self.file, self.line, self.key = problem, file, line, key
        self.found, self.expected, self.hint = found, expected, hint
        super().__init__(self._message())

    def _message(self) -> str:
        where = ""
        if self.file is not None:
            where = f"{self.file}:{self.line}: " if self.line else f"{self.file}: "
        if self.key:
            where += f"{self.key}: "
        text = where + self.problem
        if not isinstance(self.found, _Unset):
            text += f"; found {_quoted(self.found)}"
        if self.expected:
            text += f"; expected {self.expected}"
        return masked(text + (f". {self.hint}" if self.hint else ""))

    def placed(self, **fields: Any) -> UserError:
        """A copy with more fields, such as the file, which are unknown where the error is raised."""
        return UserError(self.problem, **{**{name: getattr(self, name) for name in _FIELDS}, **fields})

    def __reduce__(self) -> tuple[Any, ...]:
        # Ray pickles exceptions, which loses keyword-only arguments by default.
        return _rebuild, (self.problem, {name: getattr(self, name) for name in _FIELDS})


def nearest(name: object, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """A hint that names the most similar known name; None if there is none."""
    near = get_close_matches(str(name), list(known), 1, cutoff)
    return f"Did you mean {near[0]!r}?" if near else None


def _quoted(value: Any) -> str:
    """A value as shown in a message, shortened if it is long."""
    try:
        text = repr(value)
    except Exception:  # an integer with too many digits, or an object of a library
        return f"a {type(value).__name__}"
    return text if len(text) <= LONGEST_QUOTE else f"{text[:60]} … (a {type(value).__name__}, cut)"


def _rebuild(problem: str, fields: dict[str, Any]) -> UserError:
    if isinstance(fields["found"], _Unset):
        fields["found"] = UNSET
    return UserError(problem, **fields)
