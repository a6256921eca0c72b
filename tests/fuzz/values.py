"""Values that a file may hold and that a reader may not have thought of."""

from __future__ import annotations

import random
from typing import Any

STRANGE: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 7, 0.5, -0.5, 1e308, 1e-308, 4e38, 2**31, 2**63, 10**12, 10**40),
    *("", " ", "0", "1", "-1", "nan", "inf", "1e400", "null", "None", "true", "~", ".", "..", "../../x", "/dev/zero"),
    *("/etc/passwd", "a/b", "a\\b", "a.b", "a b", "a:b", "a=b", "a|b", "'", '"', "\"'", "`", "$x_{", "${HOME}", "%s"),
    *("<b>", "&amp;", "é", "e\u0301", "模型", "\U0001f600", "\u200b", "\ufeff", "\u2028", "\x7f", "\t", "\n", "\r\n"),
    *("x" * 300, "x" * 70_000, "complete", "missing-text", "only-image", "val", "test", "train", "targets", "keys"),
    *([], [1], [None], [[]], ["a", "a"], [0, 0.0, False], {}, {"a": 1}, {"": None}, {"bytes": None, "path": "x.png"}),
]


def strange(draw: random.Random) -> Any:
    """One of these values, or a random number or text."""
    if draw.random() < 0.8:
        return draw.choice(STRANGE)
    if draw.random() < 0.5:
        return draw.choice([draw.randint(-(2**40), 2**40), draw.uniform(-1e6, 1e6), 10 ** draw.uniform(-320, 308)])
    return "".join(
        chr(draw.choice([*range(32, 127), *range(160, 900), 0x4E00, 0x1F600])) for _ in range(draw.randint(1, 40))
    )


def damaged(data: bytes, draw: random.Random) -> bytes:
    """Bytes with a part cut off, flipped, repeated, inserted or replaced."""
    if not data:
        return draw.randbytes(draw.randint(0, 64))
    place, length = draw.randrange(len(data)), draw.randint(1, 64)
    kind = draw.randrange(6)
    if kind == 0:
        return data[:place]
    if kind == 1:
        flipped = bytearray(data)
        for _ in range(draw.randint(1, 16)):
            flipped[draw.randrange(len(flipped))] ^= 1 << draw.randrange(8)
        return bytes(flipped)
    if kind == 2:
        return data[:place] + data[place : place + length] * 2 + data[place + length :]
    if kind == 3:
        return data[:place] + draw.randbytes(length) + data[place:]
    if kind == 4:
        return data[:place] + data[place + length :]
    return draw.choice([b"", b"\0" * 64, b"null", b"[1]", b"{}", b'"x"', b"1", draw.randbytes(256)])
