"""Reads the plain values of a pickle without unpickling it: nothing that the file names is imported or called.

Texts, numbers, bytes, lists, tuples and dicts come back as they are. Whatever only a call could make (an array, an
object) comes back as an `Opaque`, which holds what it would have been made of; so a pickle from anywhere can be
searched for the plain part that is of use.
"""

from __future__ import annotations

import pickletools
from typing import Any


class Opaque:
    """Stands for an object that was not made.

    Attributes:
        parts: what it would have been made of.
    """

    def __init__(self, *parts: Any) -> None:
        self.parts = list(parts)


_MARK = Opaque()
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_SET": list}
_WORDS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_OBJECTS = {"GLOBAL": 0, "PERSID": 0, "BINPERSID": 1, "STACK_GLOBAL": 2, "REDUCE": 2, "NEWOBJ": 2, "NEWOBJ_EX": 3}
"""How many values of the stack go into an object that is not made."""
_NUMBERS_AND_TEXTS = ("INT", "LONG", "FLOAT", "UNICODE", "STRING", "BYTES", "BYTEARRAY")


def plain_values(content: bytes) -> Any:
    """The value of a pickle, with `Opaque` for what is not plain.

    Raises:
        ValueError: the bytes are no pickle, or one of a protocol that is not known.
    """
    try:
        return _value(content)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, StopIteration) as error:
        raise ValueError(f"the bytes are no whole pickle ({type(error).__name__}: {error})") from error


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


def _value(content: bytes) -> Any:
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

    for code, argument, _ in pickletools.genops(content):
        name = code.name
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
            stack.append(Opaque(*taken(_OBJECTS[name])))
        elif name in ("INST", "OBJ"):
            stack.append(Opaque(*marked()))
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
            state = taken(1)
            if isinstance(stack[-1], Opaque):
                stack[-1].parts += state
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
