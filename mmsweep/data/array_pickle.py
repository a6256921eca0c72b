"""Reads a pickle of plain values and NumPy arrays without unpickling it.

Arrays are made here, from their bytes, in the ways that NumPy 1 and 2 write them under Python 2 and 3; nothing that the
file names is imported or called. A pickle that names anything else is refused, and the name is in the message.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from mmsweep.data.plain_pickle import RefusedPickle, value_of


class _Name(str):
    """What a pickle names, as module.name in NumPy 2's spelling; never looked up."""


_RECONSTRUCT, _SCALAR, _FROM_BUFFER, _ARRAY, _DTYPE, _ENCODE, _BYTES = (
    "numpy._core.multiarray._reconstruct", "numpy._core.multiarray.scalar", "numpy._core.numeric._frombuffer",
    "numpy.ndarray", "numpy.dtype", "_codecs.encode", "builtins.bytes",
)  # fmt: skip
_KNOWN = (_RECONSTRUCT, _SCALAR, _FROM_BUFFER, _ARRAY, _DTYPE, _ENCODE, _BYTES)
_OLDER = {"numpy.core.": "numpy._core.", "__builtin__.": "builtins."}
"""Modules of NumPy 1 and Python 2, and what they are called today."""
_TYPES = re.compile(r"[<>|=]?([biuf][1248]|f16|[SU][0-9]{1,6}|O8?)")


def array_values(path: Path) -> Any:
    """The value of a pickle that holds lists, tuples, dicts, texts, numbers and arrays of them.

    Arrays of bytes may be read-only. Texts that Python 2 wrote come back decoded as Latin-1.

    Raises:
        RefusedPickle: it names anything else.
        ValueError: it is no whole pickle.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return value_of(file, _made, _built)


def _made(opcode: str, parts: list[Any]) -> Any:
    """What a pickle asks for, if it is part of an array."""
    if opcode in ("GLOBAL", "STACK_GLOBAL"):
        return _name(parts)
    function = parts[0] if parts else None
    if opcode != "REDUCE" or not isinstance(function, _Name) or not isinstance(parts[1], tuple):
        raise RefusedPickle(f"the pickle makes an object ({opcode} of {_shown(parts)}), which arrays do not need")
    arguments = parts[1]
    match str(function), arguments:
        case ("numpy._core.multiarray._reconstruct", (_Name() as kind, (0,), b"b" | "b")) if kind == _ARRAY:
            return np.empty(0, np.uint8)  # `_built` gives it its content
        case ("numpy.dtype", (str() as name, *_)) if _TYPES.fullmatch(name):
            return np.dtype(name, copy=True)
        case ("numpy._core.multiarray.scalar", (np.dtype() as dtype, bytes() | str() as raw)) if dtype.kind != "O":
            return np.frombuffer(_raw(raw), dtype)[0]
        case (
            "numpy._core.numeric._frombuffer",
            (bytes() | bytearray() as raw, np.dtype() as dtype, shape, order, *axes),
        ):
            return _shaped(raw, dtype, shape, order, axes[0] if axes else None)
        case ("_codecs.encode", (str() as text, "latin1" | "latin-1")):
            return text.encode("latin-1")
        case ("builtins.bytes", ()):
            return b""
    raise RefusedPickle(f"the pickle calls {function} with {_shown(arguments)}, which arrays do not need")


def _name(parts: list[Any]) -> _Name:
    if len(parts) != 2 or not all(type(part) is str for part in parts):
        raise RefusedPickle(f"the pickle names {_shown(parts)}, which are not two texts")
    name = ".".join(parts)
    for older, newer in _OLDER.items():
        name = newer + name.removeprefix(older) if name.startswith(older) else name
    if name not in _KNOWN:
        raise RefusedPickle(f"the pickle asks for {'.'.join(parts)}; only plain values and NumPy arrays are read")
    return _Name(name)


def _built(target: Any, state: Any) -> None:
    """Give an array or a type its content, in place: the pickle may refer to it again."""
    match target, state:
        case (np.dtype(), (int(), "<" | ">" | "|" | "=", None, None, None, int(), int(), int(), *rest)) if not any(
            rest
        ):
            target.__setstate__(state)  # type: ignore[attr-defined]
        case (np.ndarray(), (int(), tuple() as shape, np.dtype() as dtype, bool() | int() as fortran, raw)):
            content = raw if dtype.kind == "O" else _raw(raw)
            size = math.prod(_checked(shape)) * (1 if dtype.kind == "O" else dtype.itemsize)
            if not isinstance(content, list | bytes | bytearray) or len(content) != size or not dtype.itemsize:
                raise ValueError(f"an array of shape {shape} and type {dtype} has {_shown(raw)} as its content")
            target.__setstate__((1, shape, dtype, bool(fortran), content))  # type: ignore[arg-type]
        case _:
            raise RefusedPickle(f"the pickle sets the state of {_shown(target)}, which arrays do not need")


def _shaped(raw: bytes | bytearray, dtype: np.dtype[Any], shape: Any, order: Any, axes: Any) -> np.ndarray:
    """As numpy._core.numeric._frombuffer."""
    if dtype.kind == "O":
        raise RefusedPickle("the pickle makes objects from bytes")
    array: np.ndarray = np.frombuffer(raw, dtype)
    if order == "K" and axes is not None:
        return array.reshape(_checked(shape)).transpose(_checked(axes))
    return array.reshape(_checked(shape), order=order)


def _checked(shape: Any) -> tuple[int, ...]:
    sizes = shape if isinstance(shape, tuple | list) else (shape,)
    if not all(isinstance(size, int) and size >= 0 for size in sizes):
        raise ValueError(f"no shape of an array: {_shown(shape)}")
    return tuple(sizes)


def _raw(content: Any) -> Any:
    """Bytes; Python 2 wrote them as texts."""
    return content.encode("latin-1") if isinstance(content, str) else content


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
