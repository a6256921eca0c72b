"""Pickles of arrays: equal to what unpickling gives, for every protocol and NumPy's names; nothing else is admitted."""

from __future__ import annotations

import builtins
import collections
import operator
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmsweep.data.array_pickle import array_values
from mmsweep.data.plain_pickle import RefusedPickle

PROTOCOLS = pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
ARRAYS: dict[str, Any] = {
    "float32": np.linspace(-3, 200, 24, dtype=np.float32).reshape(2, 3, 4),
    "big-endian": np.arange(4, dtype=">f8"),
    "fortran": np.asfortranarray(np.arange(6, dtype=np.int64).reshape(2, 3)),
    "strided": np.arange(20, dtype=np.uint8)[::3],
    "transposed": np.arange(24, dtype=np.int16).reshape(2, 3, 4).transpose(1, 0, 2),
    "bool": np.array([True, False]),
    "empty": np.zeros((0, 5), np.float32),
    "scalar-array": np.array(2.5),
    "texts": np.array(["a", "Ä€", ""]),
    "bytes": np.array([b"a", b"\xff"]),
    "objects": np.array([b"03bSnISJMiM", "text", 3.5, None, [1, 2]], object),
    "number": np.float32(1.5),
    "text": np.str_("ab"),
}


def saved(folder: Path, content: bytes) -> Path:
    path = folder / "data.pkl"
    path.write_bytes(content)
    return path


def old(content: bytes) -> bytes:
    """As NumPy 1 under Python 2 names things, in pickles whose names end with a line."""
    return content.replace(b"numpy._core.", b"numpy.core.")


@PROTOCOLS
@pytest.mark.parametrize("rename", [bytes, old], ids=["numpy2", "numpy1"])
def test_arrays_come_back(protocol: int, rename: Callable[[bytes], bytes], tmp_path: Path) -> None:
    if protocol >= 4 and rename is old:
        pytest.skip("these protocols state the lengths of names")
    again = [ARRAYS["float32"]]
    stored = {"train": ARRAYS, "same": (again, again), 7: {"n": [1, "x", None, b"y", b""]}}
    found = array_values(saved(tmp_path, rename(pickle.dumps(stored, protocol))))
    assert set(found) == set(stored) and found[7] == stored[7] and found["same"][0] is found["same"][1]
    for name, expected in pickle.loads(pickle.dumps(ARRAYS, protocol)).items():
        value = found["train"][name]
        assert value.dtype == expected.dtype and value.shape == expected.shape, name
        assert np.array_equal(value, expected), name
    assert found["same"][0][0] is found["train"]["float32"]


def test_protocol_4_with_names_of_numpy_1(tmp_path: Path) -> None:
    array = np.arange(3.0)[::2]
    content = pickle.dumps(array, 4)
    name = b"numpy._core.multiarray"
    assert b"\x8c" + bytes([len(name)]) + name in content
    older = b"\x80\x04" + content[11:].replace(b"\x8c" + bytes([len(name)]) + name, b"\x8c\x15numpy.core.multiarray")
    assert np.array_equal(array_values(saved(tmp_path, older)), array)


@pytest.mark.parametrize("protocol", [0, 2])
def test_python_2_wrote_bytes_as_texts(protocol: int, tmp_path: Path) -> None:
    """What cPickle of Python 2 writes for {'a': array([-1.5, 3e8], float32)}: raw bytes in a text."""
    raw = np.array([-1.5, 3e8], np.float32).tobytes()
    text = (b"S%s\n" % repr(raw)[1:].encode()) if protocol == 0 else b"U" + bytes([len(raw)]) + raw
    one = b"S'%s'\n" if protocol == 0 else b"U\x01%s"
    dtype = b"cnumpy\ndtype\n(S'f4'\nI0\nI1\ntR(I3\n" + one % b"<" + b"NNNI-1\nI-1\nI0\ntb"
    made = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\nt" + one % b"b" + b"tR"
    content = b"(" + one % b"a" + made + b"(I1\n(I2\nt" + dtype + b"I00\n" + text + b"tbd."
    content = (b"\x80\x02" if protocol else b"") + content
    expected = pickle.loads(content, encoding="latin1")["a"]
    found = array_values(saved(tmp_path, content))["a"]
    assert found.dtype == np.float32 and found.tolist() == expected.tolist() == [-1.5, 3e8]


class Call:
    """Pickled as a call."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.made = (function, arguments, state) if state is not None else (function, arguments)

    def __reduce__(self) -> Any:
        return self.made


HOSTILE: dict[str, tuple[Any, str]] = {
    "system": (Call(os.system, "touch {made}"), r"(posix|os|nt)\.system"),
    "mkdir": (Call(os.mkdir, "{made}"), r"mkdir"),
    "eval": (Call(builtins.eval, "__import__('os').mkdir('{made}')"), r"eval"),
    "exec": (Call(builtins.exec, "import os"), r"exec"),
    "getattr": (Call(getattr, Call(__import__, "os"), "mkdir"), r"(getattr|__import__)"),
    "getattr of bytes": (Call(getattr, b"", "join"), r"getattr"),
    "methodcaller": (Call(operator.methodcaller, "mkdir", "{made}"), r"methodcaller"),
    "ordered": (collections.OrderedDict(a=1), r"collections\.OrderedDict"),
    "path": (Path("x"), r"pathlib"),
    "numpy's loader": (Call(np.load, "{made}"), r"numpy\.load"),
    "an array's class called": (Call(np.ndarray, (2**40,)), r"numpy\.ndarray with"),
    "a type of fields": (np.dtype([("a", "f4")]), r"numpy\.dtype with|state of dtype"),
    "a type from its text": (Call(np.dtype, "f4,O"), r"numpy\.dtype with"),
    "objects from bytes": (Call(np._core.numeric._frombuffer, b"\0" * 8, np.dtype(object), (1,), "C"), r"objects"),
    "bytes of a size": (Call(bytes, 2**40), r"builtins\.bytes with"),
    "a class": (Call(type, "X", (), {}), r"type"),
}  # fmt: skip


@PROTOCOLS
@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("nested", [False, True], ids=["alone", "nested"])
def test_what_is_no_array_is_refused_by_name(name: str, nested: bool, protocol: int, tmp_path: Path) -> None:
    value, said = HOSTILE[name]
    made = tmp_path / "made"
    if isinstance(value, Call) and all(isinstance(part, str) for part in value.made[1]):
        value = Call(value.made[0], *(part.replace("{made}", str(made)) for part in value.made[1]))
    if nested:  # in a dict, a tuple, and an array of objects after a harmless one
        value = {"train": (1, np.ones(2), np.array([np.zeros(1), {"x": value}], object))}
    with pytest.raises(RefusedPickle, match=said):
        array_values(saved(tmp_path, pickle.dumps(value, protocol)))
    assert not made.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"(S'true'\nios\nsystem\n.",
        b"(cos\nsystem\nS'true'\no.",
        b"\x80\x02cos\nsystem\nU\x04true\x85\x81.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",
        b"\x80\x04\x8c\x05numpy\x8c\x0ccore.os.path\x93.",
        b"\x80\x04K\x01K\x02\x93.",
        b"Pother\n.",
        b"\x80\x02K\x01Q.",
        b"\x80\x02}(U\x01aK\x01ub.",
    ],
)  # fmt: skip
def test_every_way_to_name_a_function_is_refused(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pickle"):
        array_values(saved(tmp_path, content))


def test_content_of_another_size_is_refused(tmp_path: Path) -> None:
    whole = pickle.dumps(np.arange(3, dtype=np.float32)[::1].reshape(3, 1)[::-1], 2)
    for shape in (b"K\x04K\x01", b"K\x02K\x01", b"J\xff\xff\xff\x7fK\x01"):
        assert whole.count(b"K\x03K\x01") == 1
        with pytest.raises(ValueError, match="shape"):
            array_values(saved(tmp_path, whole.replace(b"K\x03K\x01", shape)))


def test_a_cut_pickle_is_refused(tmp_path: Path) -> None:
    whole = pickle.dumps({"a": np.arange(5.0)}, 4)
    for end in (0, 2, 20, len(whole) // 2, len(whole) - 1):
        with pytest.raises(ValueError, match="no whole pickle"):
            array_values(saved(tmp_path, whole[:end]))
    with pytest.raises(ValueError, match="no whole pickle"):
        array_values(saved(tmp_path, b"\x80\x04\x8e" + (2**62).to_bytes(8, "little") + b"x."))
