"""YAML that is written to break its reader: one message with file and line, in little time and memory."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmsweep.errors import UserError
from mmsweep.study import Study
from mmsweep.study.source import Source
from mmsweep.study.yaml_text import MOST_BYTES, read_yaml
from tests.unit.wrong_inputs.messages import Say

SECONDS = 10  # a loaded machine's; each takes less than 2 on an idle one

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join(['*' + chr(ord(name) - 1)] * 9)}]\n" for name in "bcdefghij"
)
MERGE_BOMB = "a: &a {x: 1}\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} {{<<: [*{chr(97 + i)}, *{chr(97 + i)}]}}\n" for i in range(24)
)
HOSTILE: dict[str, tuple[str, int, str]] = {
    # name: (text, the line that is named, words of the message)
    "alias bomb": (BOMB, 5, "aliases expanded"),
    "merge bomb": (MERGE_BOMB, 13, "aliases expanded"),
    "long text behind many aliases": (
        "x: &x " + "k" * 250_000 + "\ny: [" + "*x," * 5000 + "]\n",
        2,
        "aliases expanded",
    ),
    "alias of itself": ("name: x\ndata: &r [*r]\n", 2, "contains itself"),
    "alias of itself, deeper": ("data: &r\n  a: {b: [1, *r]}\n", 2, "contains itself"),
    "merge of itself": ("data: &r\n  <<: *r\n", 2, "contains itself"),
    "unknown alias": ("name: *nobody\n", 1, "undefined alias"),
    "deep list": ("name: x\ndata: " + "[" * 3000 + "]" * 3000 + "\n", 2, "levels deep"),
    "deep mapping": ("data: " + "{a: " * 60 + "1" + "}" * 60, 1, "levels deep"),
    "deep blocks": ("".join(" " * i + "a:\n" for i in range(900)), 40, "levels deep"),
    "many values": ("name: x\ndata: [" + "a," * 100_000 + "]\n", 2, "30,000 values"),
    "bad date": ("name: 2026-99-99\n", 1, "reads as a date"),
    "good date": ("name: x\ndata: 2026-02-03\n", 2, "reads as a date"),
    "bad time": ("name: 2026-02-31 25:61:61\n", 1, "reads as a date"),
    "no timestamp": ("name: !!timestamp foo\n", 1, "reads as a date"),
    "no float": ("name: !!float abc\n", 1, "YAML's type 'float'; found 'abc'"),
    "empty int": ('name: !!int ""\n', 1, "YAML's type 'int'"),
    "no bool": ("name: !!bool maybe\n", 1, "YAML's type 'bool'"),
    "binary": ("name: !!binary AAAA\n", 1, "YAML type 'binary'"),
    "set": ("data: !!set {a, b}\n", 1, "YAML type 'set'"),
    "Python object": ('data: !!python/object/apply:os.system ["true"]\n', 1, "YAML type 'python"),
    "equals sign": ("data: =\n", 1, "YAML type 'value'"),
    "5,000 digits": ("train:\n  epochs: " + "9" * 5000, 2, "train.epochs: a number too large"),
    "400 digits": ("data: 1" + "0" * 400, 1, "data: a number too large"),
    "5,000 hexadecimal digits": ("data: 0x" + "f" * 5000, 1, "a number too large"),
    "sexagesimal digits": ("data: " + ":".join(["59"] * 3000), 1, "a number too large"),
    "octal": ("name: x\ndata: [007, 010]\n", 2, "data.0: a number that versions of YAML read differently; found '007'"),
    "time of day": ("data: 1:30\n", 1, "versions of YAML read differently; found '1:30'"),
    "time with a fraction": ("data: -1:30.5\n", 1, "versions of YAML read differently"),
    "infinity": ("data: .inf\n", 1, "not a finite number"),
    "not a number": ("data: [1, .nan]\n", 1, "data.1: not a finite number"),
    "beyond float": ("data: 1.0e999\n", 1, "not a finite number"),
    "integer as key": ("name: x\n1: y\n", 2, "a key that is not text; found '1'"),
    "null as key": ("data:\n  ~: y\n", 2, "data: a key that is not text"),
    "boolean as key": ("data:\n  no: y\n", 2, "data: a key that is not text; found 'no'"),
    "list as key": ("? [a]\n: b\n", 1, "a key that is not text"),
    "long key": ("k" * 300 + ": 1\n", 1, "a key too long"),
    "key that stands twice": ("a: {b: 1, b: 2}\n", 1, "a.b: this key stands twice"),
    "escaped NUL": ('name: x\ndata: {path: "a\\0b"}\n', 2, "data.path: a control character in a text; found 'U+0000'"),
    "escaped bell": ('name: "x\\a"\n', 1, "found 'U+0007'"),
    "half a surrogate pair": ('name: "\\uD800"\n', 1, "found 'U+D800'"),
    "escape beyond Unicode": ('name: "\\UFFFFFFFF"\n', 1, "not valid YAML"),
    "raw NUL": ("name: x\ndata: a\0b\n", 2, "U+0000 is not allowed"),
    "two documents": ("name: x\n---\nname: y\n", 2, "not valid YAML"),
    "another YAML": ("%YAML 9.9\n---\nname: x\n", 1, "not valid YAML"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_yaml_is_refused_by_its_line(name: str, tmp_path: Path) -> None:
    text, line, words = HOSTILE[name]
    path = tmp_path / "s.yaml"
    path.write_text(text)
    started = time.monotonic()
    with pytest.raises(UserError) as problem:
        Study.load(path)
    assert time.monotonic() - started < SECONDS
    message = str(problem.value)
    assert message.startswith(f"{path}:{line}: ") and words in message, message
    assert "\n" not in message and len(message) < 600


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (bytes(range(256)) * 10, ":2: the study file is not UTF-8"),
        ("name: x\n".encode("utf-16"), ":1: the study file is not UTF-8"),
        ("name: x\n".encode("utf-16-le"), ":1: not valid YAML (character U+0000"),
        (b"name: x\nmethod: caf\xe9\n", ":2: the study file is not UTF-8"),
        (b"#" * (MOST_BYTES + 1), "too large"),
    ],
)
def test_files_that_are_no_text(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as problem:
        Source.read(path)
    assert str(problem.value).startswith(str(path)) and words in str(problem.value)


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_bytes("name: x\n".encode("utf-8-sig"))
    assert Source.read(path).values == {"name": "x"}


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in (tmp_path, tmp_path / "fifo", tmp_path / "loop", Path("/dev/zero"), Path("a" * 300), Path("a\0b")):
        with pytest.raises(UserError, match="the study file cannot be read") as problem:
            Source.read(path)
        assert "\n" not in str(problem.value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("name=2026-99-99", "command line: name: a value that reads as a date"),
        ("train.epochs=" + "9" * 5000, "command line: train.epochs: a number too large"),
        ("data.path=" + "a" * 5000, "command line: data.path: not a path"),
        ('data.path="a\\0b"', "command line: data.path: a control character"),
        ("scenarios.train=" + "[" * 3000 + "]" * 3000, "command line: scenarios.train: not valid YAML (nested"),
        ("scenarios.train" + ".a" * 3000 + "=1", "a key too long"),
        ("train.epochs=&a [*a]", "contains itself"),
        ("train={1: 2}", "a key that is not text"),
        ("data.root=~no-such-user-anywhere/x", "command line: data.root: not a path"),
    ],
)
def test_hostile_overrides(override: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("name: x\ndata: {dataset: tuxpaint}\nscenarios: {train: {}}\n")
    with pytest.raises(UserError) as problem:
        Study.load(path, [override])
    assert words in str(problem.value) and len(str(problem.value)) < 600


def test_numbers_and_texts_that_only_look_ambiguous() -> None:
    text = "[0, 0.5, -0, 1_000, 0x10, '010', \"1:30\", a:b, 08x, null, no]"
    assert read_yaml(text)[0] == [0, 0.5, 0, 1000, 16, "010", "1:30", "a:b", "08x", None, False]


def test_an_alias_is_a_copy(tmp_path: Path) -> None:
    """An override of one place must not change the other that an alias filled."""
    path = tmp_path / "s.yaml"
    path.write_text("a: &a {x: {y: 1}}\nb: *a\nc: {<<: *a, z: 2}\n")
    source = Source.read(path, ["b.x.y=5"])
    assert source.values == {"a": {"x": {"y": 1}}, "b": {"x": {"y": 5}}, "c": {"x": {"y": 1}, "z": 2}}


def test_merge_keys_as_yaml_defines_them() -> None:
    values, lines = read_yaml("a: &a {x: 1, y: 1}\nb: &b {y: 2, z: 2}\nc:\n  <<: [*a, *b]\n  z: 3\n")
    assert values["c"] == {"x": 1, "y": 1, "z": 3}  # own keys win, then the first of the list
    assert lines["c.z"] == 5


@pytest.mark.parametrize("key", ["data.path", "data.root", "train.init_from", "model.encoders.image.name"])
def test_a_path_that_no_system_has(key: str, study: Callable[..., Path], say: Say) -> None:
    path = study({key: "a" * 5000})
    message = say("validate", path)
    assert f"{key}: not a path (File name too long)" in message and message.startswith(f"{path}:")


def test_nothing_heavy_is_imported_before_the_file_was_judged(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("name: 2026-99-99\n")
    program = (
        "import sys; from mmsweep import cli; sys.argv = ['mmsweep', 'validate', sys.argv[1]]\n"
        "try: cli.main()\n"
        "except SystemExit as end: print(end.code, sorted({'torch', 'ray', 'transformers'} & set(sys.modules)))"
    )
    environment: dict[str, Any] = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, env=environment, timeout=120
    )
    assert ended.stdout.strip() == "2 []", ended.stderr
