"""What a cell of the user's file may hold: text, class names, labels, numbers and file names.

Cells come as CSV strings, JSON values or Arrow values. Each function takes a cell that is not empty and returns what
the task or the decoder wants, or raises `BadCell`, whose text is the reason without the row's place. Nothing is passed
through `str()`: what is not understood is refused.
"""

from __future__ import annotations

import ast
import contextlib
import io
import itertools
import json
import math
import re
import tokenize
from decimal import Decimal
from numbers import Integral, Real
from typing import Any

from mmsweep.data.files import Stored

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_ZEROS_AND_ONES = re.compile(r"(?:[01](?:\.0*)?|true|false)(?:[\s,;|/]+(?:[01](?:\.0*)?|true|false))+", re.IGNORECASE)
"""Several flags, one for each class of a list that the cell does not hold, whatever separates them."""
_SHOWN = 80


class BadCell(ValueError):
    """A cell that cannot be read; str() is the reason, without the row's place."""


class Unreadable:
    """Stands for a cell that the file's own library cannot convert."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


def is_empty(cell: Any) -> bool:
    """Whether a cell holds nothing: null, NaN, a blank text, an empty list, or a {bytes, path} record of nulls."""
    if isinstance(cell, str):
        return not cell.strip()
    if isinstance(cell, list | tuple):
        return not cell
    if isinstance(cell, dict):
        return bool(cell) and cell.keys() <= {"bytes", "path"} and all(value is None for value in cell.values())
    # pandas writes absent cells as NaN; no other value differs from itself.
    return cell is None or (isinstance(cell, float | Decimal) and bool(cell != cell))


def text_of(cell: Any) -> str:
    """A text, UTF-8 bytes or a number as text."""
    if isinstance(cell, bool):
        raise BadCell(f"expected a text; found {shown(cell)}")
    return _plain(cell, "a text")


def class_name(cell: Any) -> str:
    """The name of a class or a group: a text without surrounding blanks, or the one spelling of a number.

    1, 1.0 and Decimal("1.00") are all "1", and 1.5 is "1.5". A text stays as it is written: "007" is not "7".
    """
    return _plain(cell, "a name or a number").strip()


def labels_of(cell: Any, separator: str) -> list[str]:
    """Labels, each once: names joined by the separator, a list of texts, or a list as pandas and JSON write it."""
    if isinstance(cell, str | bytes | bytearray):
        text = _plain(cell, "labels").strip()
        written = _written_list(text, separator)
        if written is None:
            return _distinct([part.strip() for part in text.split(separator)], text)
        cell = written
    if not isinstance(cell, list | tuple):
        raise BadCell(f"expected a list of labels; found {shown(cell)}")
    for part in cell:
        if isinstance(part, Real | Decimal) and not is_empty(part):
            raise BadCell(f"expected names of labels; found a list of numbers ({shown(cell)})")
    return _distinct([class_name(part) for part in cell if not is_empty(part)], cell)


def number_of(cell: Any, what: str = "the target") -> float:
    """A finite number, or a text or UTF-8 bytes that spell one; `what` names it in messages."""
    if isinstance(cell, str | bytes | bytearray):
        text = _plain(cell, "a number").strip()
        # Python's own float() also takes 1_000 and digits of other scripts.
        value: Any = float(text) if text.isascii() and "_" not in text and _is_float(text) else None
    elif isinstance(cell, Real | Decimal) and not isinstance(cell, bool):
        try:
            value = float(cell)
        except OverflowError:
            value = math.inf
    else:
        value = None
    if value is None:
        raise BadCell(f"{what} is not a number; found {shown(cell)}")
    if not math.isfinite(value):
        raise BadCell(f"{what} must be a finite number; found {shown(cell)}")
    return float(value)


def file_of(cell: Any) -> str | bytes | Stored:
    """A file's name, or its content: bytes, a value within an archive, or the record {bytes, path} of `datasets`."""
    if isinstance(cell, dict):
        content, path = cell.get("bytes"), cell.get("path")
        if isinstance(content, bytes | bytearray):
            return bytes(content)
        if content is None and isinstance(path, str) and path.strip():
            return file_of(path)
        raise BadCell(f"expected a file name; found {shown(cell)}")
    if isinstance(cell, Stored):
        return cell
    if isinstance(cell, bytes | bytearray):
        return bytes(cell)
    if not isinstance(cell, str):
        raise BadCell(f"expected a file name; found {shown(cell)}")
    name = _plain(cell, "a file name").strip()
    if _ADDRESS.match(name):
        raise BadCell(
            f"files on a network are not read; found {shown(name)}; expected a file name relative to the manifest"
        )
    if "\0" in name:
        raise BadCell(f"a file name holds no NUL character; found {shown(name)}")
    return name


def shown(cell: Any) -> str:
    """A cell as it is quoted in a message: in ASCII where it has to be, and cut where it is long."""
    if isinstance(cell, Unreadable):
        return cell.reason
    try:
        text = repr(cell)
        text.encode()
    except ValueError:  # half a character, or an integer of thousands of digits
        text = ascii(cell) if isinstance(cell, str) else f"a value of type {type(cell).__name__}"
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def _plain(cell: Any, expected: str) -> str:
    if isinstance(cell, bytes | bytearray):  # Spark and others store texts of Parquet as bytes
        try:
            return bytes(cell).decode()
        except UnicodeDecodeError:
            raise BadCell(f"expected {expected}; found bytes that are not UTF-8 ({shown(cell)})") from None
    if isinstance(cell, str):
        try:
            cell.encode()
        except UnicodeEncodeError:
            raise BadCell(f"expected {expected}; found half of a surrogate pair in {shown(cell)}") from None
        return cell
    if isinstance(cell, bool):
        return str(cell)
    if isinstance(cell, Real | Decimal):
        return _number_name(cell, expected)
    raise BadCell(f"expected {expected}; found {shown(cell)}")


def _number_name(number: Any, expected: str) -> str:
    if not isinstance(number, Integral) and not math.isfinite(number):
        raise BadCell(f"expected {expected}; found {number}")
    whole = int(number)
    if whole != number:
        return format(number.normalize(), "f") if isinstance(number, Decimal) else repr(float(number))
    try:
        return str(whole)
    except ValueError:  # Python writes no integer of more than 4,300 digits
        raise BadCell(f"expected {expected}; found a number of thousands of digits") from None


def _distinct(names: list[str], cell: Any) -> list[str]:
    names = [name for name in names if name]
    if _ZEROS_AND_ONES.fullmatch(" ".join(names)):
        raise BadCell(f"expected names of labels; found zeros and ones ({shown(cell)})")
    return list(dict.fromkeys(names))


def _written_list(text: str, separator: str) -> list[Any] | None:
    """The list that a text spells, as JSON or Python write it; None where the text is no list."""
    if not (text.startswith(("[", "(", "{")) and text.endswith(("]", ")", "}"))):
        return None
    found = None
    for read in (json.loads, _python_list):
        with contextlib.suppress(ValueError, SyntaxError, TypeError, RecursionError, MemoryError, tokenize.TokenError):
            found = read(text)
            break
    if isinstance(found, list):
        return found
    quoted, first = "'" in text or '"' in text, text.split(separator)[0]
    torn = {"[": "]", "(": ")", "{": "}"}[text[0]] not in first  # by a separator within the brackets
    if torn or ((quoted or text.startswith("[")) and separator not in text):
        raise BadCell(
            f"the cell looks like a list but cannot be read as one; found {shown(text)}; expected names joined by "
            f"data.target.separator ({separator!r}), or a list as JSON or Python write it"
        )
    return None


def _python_list(text: str) -> Any:
    tokens = [t.type for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type != tokenize.NL]
    if any(pair == (tokenize.STRING, tokenize.STRING) for pair in itertools.pairwise(tokens)):
        raise ValueError("NumPy writes ['Drama' 'Comedy'], which Python reads as one name")
    return ast.literal_eval(text)


def _is_float(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
