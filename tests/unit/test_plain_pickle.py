"""Plain values of pickles: equal to what unpickling gives where nothing is called, and nothing is called."""

from __future__ import annotations

import collections
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmsweep.data.plain_pickle import Opaque, dict_with, plain_values

PLAIN: list[Any] = [
    None,
    [True, False, 3, -(2**70), 1.5, "text", "Ä", b"bytes"],
    {"a": {"b": [1, (2, (3, 4, 5, 6))]}, 7: ()},
    {number: f"word {number}" for number in range(3000)},
]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("value", PLAIN, ids=lambda value: type(value).__name__)
def test_plain_values_come_back(value: Any, protocol: int) -> None:
    if protocol < 3 and isinstance(value, list):
        value = value[:-1]  # bytes are a call there
    assert plain_values(pickle.dumps(value, protocol)) == value


def test_what_is_called_is_not(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "made"),)

    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        found = plain_values(pickle.dumps({"a": Hostile(), "b": 1}, protocol))
        assert isinstance(found["a"], Opaque) and found["b"] == 1
    assert not (tmp_path / "made").exists()


def test_a_dict_within_an_array_is_found() -> None:
    array = np.array({"words": {1: "a"}, "ordered": collections.OrderedDict(x=[np.ones(3)])}, object)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        values = plain_values(pickle.dumps(array, protocol))
        found = dict_with(values, "words")
        assert isinstance(values, Opaque) and found is not None and found["words"] == {1: "a"}
        assert dict_with(values, "letters") is None


def test_circles_end() -> None:
    circle: list[Any] = []
    circle.append(circle)
    assert dict_with(plain_values(pickle.dumps(circle)), "x") is None


@pytest.mark.parametrize("content", [b"", b"no pickle", b"\x80\x02", b"\x80\x02.", b"(lp0\nX\xff", b"\x80\x02h\x07."])
def test_what_is_no_pickle_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="pickle"):
        plain_values(content)
