"""What cells of a manifest may hold: one reading for each form that is documented, a reason for every other."""

from __future__ import annotations

import datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from mmsweep.data.cells import BadCell, class_name, file_of, is_empty, labels_of, number_of, shown, text_of


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        ("a b ", "a b "),
        ("\u00e9".encode(), "\u00e9"),
        (bytearray(b"x"), "x"),
        (5, "5"),
        (5.0, "5"),
        (Decimal("1.50"), "1.5"),
    ],
)
def test_texts(cell: Any, text: str) -> None:
    assert text_of(cell) == text


NO_SCALARS = [
    ["a"],
    ["a", "b"],
    ("a",),
    {"raw": "a"},
    {},
    {"a"},
    datetime.date(2020, 1, 2),
    datetime.datetime(2020, 1, 2),
    datetime.timedelta(1),
    ...,
    b"\xff\xfe",
    "\ud83d",
    float("inf"),
    Decimal("Infinity"),
    np.array(["a"]),
]


@pytest.mark.parametrize("cell", NO_SCALARS, ids=lambda cell: ascii(cell)[:30])
def test_what_is_no_text_number_or_bytes_is_refused_everywhere(cell: Any) -> None:
    for read in (text_of, class_name, number_of):
        with pytest.raises(BadCell, match="found") as caught:
            read(cell)
        str(caught.value).encode()  # fit to be printed


def test_a_truth_value_is_a_class_but_no_text_and_no_number() -> None:
    assert class_name(True) == "True"
    for read in (text_of, number_of):
        with pytest.raises(BadCell, match="found True"):
            read(True)


def test_a_number_has_one_name_and_a_text_keeps_its_own() -> None:
    zeros = [0, 0.0, -0.0, "0", b"0", Decimal("0.00"), np.int64(0), np.float32(0), " 0 "]
    assert {class_name(zero) for zero in zeros} == {"0"}
    assert {class_name(large) for large in (10**20, 1e20, Decimal("1e20"))} == {"1" + "0" * 20}
    assert [class_name(cell) for cell in (1.5, Decimal("1.50"), "1.50", "007", "7")] == [
        "1.5",
        "1.5",
        "1.50",
        "007",
        "7",
    ]
    with pytest.raises(BadCell, match="thousands of digits"):
        class_name(10**5000)


@pytest.mark.parametrize(
    "empty", [None, "", " \t", [], (), float("nan"), Decimal("NaN"), {"bytes": None, "path": None}]
)
def test_empty_cells(empty: Any) -> None:
    assert is_empty(empty)


def test_cells_that_hold_something() -> None:
    assert not any(is_empty(cell) for cell in (0, False, "0", [None], {}, {"raw": None}, b"", float("inf")))


@pytest.mark.parametrize(
    ("cell", "labels"),
    [
        ("Drama", ["Drama"]),
        ("Drama | Comedy|", ["Drama", "Comedy"]),
        ("3|17", ["3", "17"]),
        (b"Drama|Comedy", ["Drama", "Comedy"]),
        (["Drama", "Comedy", "Drama"], ["Drama", "Comedy"]),
        ([b"Drama", None, " "], ["Drama"]),
        ("['Drama', 'Comedy']", ["Drama", "Comedy"]),
        ("['Drama','Co|medy']", ["Drama", "Co|medy"]),
        ('["Drama", "it\'s"]', ["Drama", "it's"]),
        ("['Drama', None]", ["Drama"]),
        ("[]", []),
        ("[old]|[new]", ["[old]", "[new]"]),
        ("(un)made", ["(un)made"]),
    ],
)
def test_labels(cell: Any, labels: list[str]) -> None:
    assert labels_of(cell, "|") == labels


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ([1, 0, 0], ["list of numbers", "[1, 0, 0]"]),
        ([1.0, 0.0], ["list of numbers"]),
        ([True, False], ["list of numbers"]),
        (["Drama", 3], ["list of numbers"]),
        ("[1, 0, 0]", ["list of numbers"]),
        ("1|0|0", ["zeros and ones"]),
        ("1.0|0.0", ["zeros and ones"]),
        ("True|False", ["zeros and ones"]),
        ("1,0,0", ["zeros and ones"]),
        ("1 0 0", ["zeros and ones"]),
        (["1", "0", "0"], ["zeros and ones"]),
        ('["1", "0", "0"]', ["zeros and ones"]),
        ("{'Dra|ma', 'Comedy'}", ["data.target.separator"]),
        ("[Drama|Comedy]", ["data.target.separator"]),
        ("['Drama' 'Comedy']", ["data.target.separator", "['Drama' 'Comedy']"]),
        ("[Drama, Comedy]", ["data.target.separator"]),
        ("('Drama', 'Comedy')", ["data.target.separator"]),
        ("{'Drama', 'Comedy'}", ["data.target.separator"]),
        ('{"Drama": 1}', ["data.target.separator"]),
        ("[['Drama'], ['Comedy']]", ["a name or a number", "['Drama']"]),
        ([{"name": "Drama"}], ["a name or a number"]),
        ({"Drama": 1}, ["list of labels"]),
        (3, ["list of labels", "found 3"]),
        ("[" * 3000 + "]" * 3000, ["expected", "[[[["]),
    ],
)
def test_labels_that_are_refused(cell: Any, words: list[str]) -> None:
    with pytest.raises(BadCell) as caught:
        labels_of(cell, "|")
    assert all(word in str(caught.value) for word in words) and len(str(caught.value)) < 400


def test_numbers() -> None:
    assert [number_of(cell) for cell in (3, "3", b" 3.0 ", Decimal(3), np.float32(3), "3e0")] == [3.0] * 6
    for cell in ("1_000", "\u0663", "1,5", "three", "nan", "1e999", 10**400, float("inf")):
        with pytest.raises(BadCell, match="number"):
            number_of(cell)


def test_files() -> None:
    assert file_of(" a/b.png ") == "a/b.png" and file_of(b"\x89PNG") == b"\x89PNG"
    assert file_of({"bytes": b"\x89PNG", "path": "a.png"}) == b"\x89PNG"
    assert file_of({"bytes": None, "path": "a.png"}) == file_of({"path": "a.png"}) == "a.png"
    wrong: list[Any] = [3, ["a.png"], {"raw": "a.png"}, {"bytes": "a", "path": None}, "a\0.png", "\udce9.png"]
    for cell in [*wrong, "HTTPS://host/a.png", "s3://a/b.png", "file:///a.png", {"bytes": None, "path": "gs://a/b"}]:
        with pytest.raises(BadCell):
            file_of(cell)


def test_long_cells_are_quoted_in_part() -> None:
    assert len(shown("x" * 10_000)) < 100 and shown("\ud83d") == "'\\ud83d'"
