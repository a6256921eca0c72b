"""Splits carved by hash: neither the order of rows nor other columns move a row, and a group is never cut."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from mmsweep.data.dataset import Sample

CARVED_VALIDATION = 0.1
"""Share of the training rows that validate where a dataset has no validation rows."""


def carve(samples: Sequence[Sample], keys: Sequence[str], shares: Sequence[float], seed: int) -> list[list[Sample]]:
    """Parts with about these shares of the rows, and the rest; each key wholly in one part; rows keep their order.

    Keys are ranked by a hash with the seed and dealt out in that order, so parts are as exact as groups allow.

    Args:
        keys: of each sample, what must not be cut (its group).
        shares: of all parts but the last, which gets the rest.
        seed: another seed deals the keys out differently.
    """
    part_of = _dealt(Counter(keys), [share * len(samples) for share in shares], seed)
    return _parts(samples, keys, part_of, len(shares) + 1)


def carve_stratified(
    samples: Sequence[Sample], keys: Sequence[str], shares: Sequence[float], seed: int
) -> list[list[Sample]]:
    """`carve` within every class, the sizes of all parts still being those shares of the whole.

    Each class gives a part its share, rounded down; the rows that are still wanting come from the classes that rounding
    cut most. A key whose rows are of several classes counts for the most frequent of them, and stays whole.
    """
    rows: dict[str, Counter[str]] = {}
    for sample, key in zip(samples, keys, strict=True):
        rows.setdefault(key, Counter())[str(sample.target)] += 1
    by_class: dict[str, Counter[str]] = {}
    for key, classes in rows.items():
        home = min(classes, key=lambda name: (-classes[name], name))
        by_class.setdefault(home, Counter())[key] = classes.total()
    sizes = _apportioned({name: keys.total() for name, keys in sorted(by_class.items())}, shares)
    part_of: dict[str, int] = {}
    for name, counts in by_class.items():
        part_of |= _dealt(counts, sizes[name], seed)
    return _parts(samples, keys, part_of, len(shares) + 1)


def _apportioned(rows: Mapping[str, int], shares: Sequence[float]) -> dict[str, list[int]]:
    """Of every class, how many rows each part gets (largest remainders); the last part, not listed, gets the rest."""
    sizes: dict[str, list[int]] = {name: [] for name in rows}
    for share in shares:
        whole = {name: math.floor(share * count + 1e-9) for name, count in rows.items()}
        given = {name: sum(parts) + whole[name] for name, parts in sizes.items()}

        def turn(name: str, share: float = share, whole: dict[str, int] = whole, given: dict[str, int] = given) -> Any:
            # A class gives its last row only where no other can give one.
            return given[name] + 1 >= rows[name], whole[name] - share * rows[name], given[name], name

        extra = sorted(rows, key=turn)[: max(0, round(share * sum(rows.values())) - sum(whole.values()))]
        for name in rows:
            sizes[name].append(whole[name] + (name in extra))
    return sizes


def _dealt(rows: Mapping[str, int], sizes: Sequence[float], seed: int) -> dict[str, int]:
    """Key -> part, keys ranked by a hash; a key goes where its middle row falls."""
    limits = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    part_of, before = {}, 0
    for key in sorted(rows, key=lambda key: (hashlib.sha256(f"{seed}\0{key}".encode()).digest(), key)):
        middle = before + rows[key] / 2
        part_of[key] = next((i for i, limit in enumerate(limits) if middle < limit), len(sizes))
        before += rows[key]
    return part_of


def _parts(
    samples: Sequence[Sample], keys: Sequence[str], part_of: Mapping[str, int], count: int
) -> list[list[Sample]]:
    parts: list[list[Sample]] = [[] for _ in range(count)]
    for sample, key in zip(samples, keys, strict=True):
        parts[part_of[key]].append(sample)
    return parts


def carve_by_class(
    samples: Sequence[Sample], keys: Sequence[str], shares: Sequence[float], seed: int
) -> list[list[Sample]]:
    """`carve` within every class by itself: how Tux Paint's published splits were made.

    Where many small classes round the same way, a part may get many rows too few: `carve_stratified` does not.
    A key whose rows are of several classes is dealt out with the class of its first row, and stays whole.
    """
    home: dict[str, str] = {}
    for sample, key in zip(samples, keys, strict=True):
        home.setdefault(key, str(sample.target))
    part_of: dict[str, int] = {}
    for name in sorted(set(home.values())):
        chosen = [(s, k) for s, k in zip(samples, keys, strict=True) if home[k] == name]
        parts = carve([s for s, _ in chosen], [k for _, k in chosen], shares, seed)
        places = {s.id: place for place, part in enumerate(parts) for s in part}
        part_of |= {key: places[sample.id] for sample, key in chosen}
    result: list[list[Sample]] = [[] for _ in range(len(shares) + 1)]
    for sample, key in zip(samples, keys, strict=True):
        result[part_of[key]].append(sample)
    return result


def repeated(
    splits: Mapping[str, Sequence[Sample]], identity: Callable[[Any], Any] = lambda value: value
) -> Iterator[dict[str, list[Sample]]]:
    """Rows with the same inputs that stand in more than one split: split -> rows, for every such set of inputs.

    Args:
        identity: of an input, what makes it the same as another; a file is its name unless this says otherwise.
    """
    homes: dict[tuple[Any, ...], dict[str, list[Sample]]] = {}
    for name, samples in splits.items():
        for sample in samples:
            inputs = tuple((m, None if v is None else identity(v)) for m, v in sample.values.items())
            homes.setdefault(inputs, {}).setdefault(name, []).append(sample)
    yield from (found for found in homes.values() if len(found) > 1)
