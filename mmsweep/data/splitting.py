"""Splits carved by hash: neither the order of rows nor other columns move a row, and a group is never cut."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from mmsweep.data.dataset import Sample


def carve(samples: Sequence[Sample], keys: Sequence[str], shares: Sequence[float], seed: int) -> list[list[Sample]]:
    """Parts with about these shares of the rows, and the rest; each key wholly in one part; rows keep their order.

    Keys are ranked by a hash with the seed and dealt out in that order, so parts are as exact as groups allow.

    Args:
        keys: of each sample, what must not be cut (its group).
        shares: of all parts but the last, which gets the rest.
        seed: another seed deals the keys out differently.
    """
    counts: dict[str, int] = {}
    for key in keys:
        counts[key] = counts.get(key, 0) + 1
    ranked = sorted(counts, key=lambda key: hashlib.sha256(f"{seed}\0{key}".encode()).digest())
    limits = [sum(shares[: i + 1]) * len(samples) for i in range(len(shares))]
    part_of, before = {}, 0
    for key in ranked:
        middle = before + counts[key] / 2  # a group goes where its middle row falls
        part_of[key] = next((i for i, limit in enumerate(limits) if middle < limit), len(shares))
        before += counts[key]
    parts: list[list[Sample]] = [[] for _ in range(len(shares) + 1)]
    for sample, key in zip(samples, keys, strict=True):
        parts[part_of[key]].append(sample)
    return parts


def carve_by_class(
    samples: Sequence[Sample], keys: Sequence[str], shares: Sequence[float], seed: int
) -> list[list[Sample]]:
    """`carve` within every class, so that small classes stand in every part.

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
