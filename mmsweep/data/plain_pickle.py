"""Reads the plain values of a pickle without unpickling it: nothing that the file names is imported or called.

Texts, numbers, bytes, lists, tuples and dicts come back as they are. Whatever only a call could make (an array, an
object) comes back as an `Opaque`, which holds what it would have been made of; so a pickle from anywhere can be
searched for the plain part that is of use. `array_pickle.py` also makes arrays, and refuses everything else.
"""

from __future__ import annotations

import ast
import io
import pickletools
from collections.abc import Callable, Iterator
from typing import IO, Any


class Opaque:
    """Stands for an object that was not made.

    Attributes:
        parts: what it would have been made of.
    """

    def __init__(self, *parts: Any) -> None:
        self.parts = list(parts)


_MARK = Opaque()
_OPCODES = {opcode.code: opcode for opcode in pickletools.opcodes}
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_SET": list}
_WORDS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_OBJECTS = {"GLOBAL": 0, "PERSID": 0, "BINPERSID": 1, "STACK_GLOBAL": 2, "REDUCE": 2, "NEWOBJ": 2, "NEWOBJ_EX": 3,
            "INST": 0}  # fmt: skip
"""How many values of the stack go into an object that is not made."""
_NUMBERS_AND_TEXTS = ("INT", "LONG", "FLOAT", "UNICODE", "STRING", "BYTES", "BYTEARRAY")


def plain_values(content: bytes) -> Any:
    """The value of a pickle, with `Opaque` for what is not plain.

    Raises:
        ValueError: the bytes are no pickle, or one of a protocol that is not known.
    """
    return value_of(io.BytesIO(content), lambda opcode, parts: Opaque(*parts), _keep)


def value_of(file: IO[bytes], make: Callable[[str, list[Any]], Any], build: Callable[[Any, Any], None]) -> Any:
    """The value of a pickle.

    Args:
        make: (opcode, its parts) -> what stands for an object. Parts of GLOBAL and STACK_GLOBAL are module and name,
            those of REDUCE a function and the tuple of its arguments.
        build: gets an object and the state that is to be set on it.

    Raises:
        ValueError: the bytes are no pickle, or one of a protocol that is not known; RefusedPickle as it is.
    """
    try:
        return _value(file, make, build)
    except RefusedPickle:
        raise
    except _DAMAGE as error:
        raise ValueError(f"the bytes are no whole pickle ({type(error).__name__}: {error})") from error


class RefusedPickle(ValueError):
    """A pickle that asks for more than its reader makes; the message names it."""


_DAMAGE = (ValueError, LookupError, TypeError, AttributeError, StopIteration, SyntaxError, OverflowError, MemoryError)


def _keep(target: Any, state: Any) -> None:
    if isinstance(target, Opaque):
        target.parts.append(state)


def _operations(file: IO[bytes]) -> Iterator[tuple[str, Any]]:
    """Names of opcodes and their arguments. `pickletools.genops` refuses Python 2's texts of other than ASCII."""
    while code := file.read(1):
        opcode = _OPCODES[code.decode("latin-1")]
        if opcode.name == "STRING":
            text = ast.literal_eval(f"b{file.readline().decode('latin-1')}")
            yield opcode.name, text.decode("latin-1")
        else:
            yield opcode.name, opcode.arg.reader(file) if opcode.arg else None


def dict_with(value: Any, key: str) -> dict[Any, Any] | None:
    """The first dict within a value that has a key."""
    left, seen = [value], set[int]()
    while left:
        value = left.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, dict):
            if key in value:
                return value
            left += value.values()
        elif isinstance(value, Opaque):
            left += value.parts
        elif isinstance(value, list | tuple):
            left += value
    return None


def _value(file: IO[bytes], make: Callable[[str, list[Any]], Any], build: Callable[[Any, Any], None]) -> Any:
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    argument: Any

    def taken(count: int) -> list[Any]:
        if count > len(stack):
            raise IndexError("the stack is empty")
        values = stack[len(stack) - count :]
        del stack[len(stack) - count :]
        return values

    def marked() -> list[Any]:
        place = next(i for i in range(len(stack) - 1, -1, -1) if stack[i] is _MARK)
        values = taken(len(stack) - place)
        return values[1:]

    def fill(values: list[Any], pairs: bool) -> None:
        target = stack[-1]
        if isinstance(target, Opaque):
            target.parts += values
        elif pairs:
            target.update(zip(values[::2], values[1::2], strict=True))
        else:
            target.extend(values)

    for name, argument in _operations(file):
        if name == "STOP":
            return stack.pop()
        if name in ("PROTO", "FRAME"):
            continue
        if name == "MARK":
            stack.append(_MARK)
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in _WORDS:
            stack.append(_WORDS[name])
        elif name in _TUPLES:
            stack.append(tuple(taken(_TUPLES[name])))
        elif name in _OBJECTS:
            named = str(argument).split(" ", 1) if argument is not None else []
            stack.append(make(name, [*named, *(marked() if name == "INST" else taken(_OBJECTS[name]))]))
        elif name == "OBJ":
            stack.append(make(name, marked()))
        elif name in ("DICT", "LIST", "TUPLE", "FROZENSET"):
            values = marked()
            stack.append(dict(zip(values[::2], values[1::2], strict=True)) if name == "DICT" else values)
            if name == "TUPLE":
                stack[-1] = tuple(values)
        elif name in ("SETITEM", "APPEND"):
            fill(taken(2 if name == "SETITEM" else 1), name == "SETITEM")
        elif name in ("SETITEMS", "APPENDS", "ADDITEMS"):
            fill(marked(), name == "SETITEMS")
        elif name == "BUILD":
            (state,) = taken(1)
            build(stack[-1], state)
        elif name == "POP":
            taken(1)
        elif name == "POP_MARK":
            marked()
        elif name == "DUP":
            stack.append(stack[-1])
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name.endswith("PUT"):
            memo[int(argument)] = stack[-1]
        elif name.endswith("GET"):
            stack.append(memo[int(argument)])
        elif any(part in name for part in _NUMBERS_AND_TEXTS):
            stack.append(argument)
        else:
            raise ValueError(f"the pickle holds {name}, which is not known here")
    raise ValueError("the pickle does not end")
