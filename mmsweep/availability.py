"""Available and missing modalities: patterns, scenarios, availability tables, and masking in training.

A *pattern* is a non-empty set of modalities. A *scenario* is a named distribution over patterns. It becomes an
*availability table* (bool, rows x modalities) with exact counts, which depends only on the scenario, the number of rows
and `scenarios.seed`. *Masking* removes modalities at random in every training step.

Counts follow Lee et al. (CVPR 2023, "missing-aware prompts"): of n rows, k = `floor(n * rate)` lose a modality; each
pattern gets `floor(k * its share)` of these, and the first one the remainder too.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from mmsweep.errors import UserError, nearest

if TYPE_CHECKING:
    import torch

Pattern = frozenset[str]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
BoolArray = NDArray[np.bool_]


def patterns(modalities: Sequence[str]) -> list[Pattern]:
    """All P = 2^M - 1 patterns by decreasing size, then in modality order; the complete one comes first."""
    return [frozenset(c) for size in range(len(modalities), 0, -1) for c in combinations(modalities, size)]


def pattern_name(pattern: Pattern, modalities: Sequence[str]) -> str:
    """`complete`, or `missing-` and the absent modalities in order: `missing-text`, `missing-audio-text`."""
    missing = [m for m in modalities if m not in pattern]
    return "missing-" + "-".join(missing) if missing else "complete"


def pattern_rows(modalities: Sequence[str]) -> BoolArray:
    """All patterns as rows of a table: bool [P, M] in the order of `patterns`."""
    return np.array([[m in p for m in modalities] for p in patterns(modalities)], dtype=bool)


@dataclass(frozen=True)
class Scenario:
    """A named distribution over patterns.

    Args:
        name: its name in metrics and reports, e.g. `missing-text` or `image-100_text-30`.
        shares: (pattern, share) pairs in the order of `patterns`; the shares are positive and sum to 1.
    """

    name: str
    shares: tuple[tuple[Pattern, float], ...]

    def leaves_gaps(self, modalities: Sequence[str]) -> bool:
        """Whether an incomplete pattern has a share."""
        return any(pattern != frozenset(modalities) for pattern, _ in self.shares)

    @classmethod
    def parse(cls, spec: str | Mapping[str, Any], modalities: Sequence[str]) -> Scenario:
        """Read any notation of a study file (DESIGN §5).

        `complete` · `missing-text` · `only-audio` · `{missing: text}` · `{missing: [audio, text]}` · `{only: audio}` ·
        `{available: {image: 1.0, text: 0.3}}` (share of rows that *have* the modality) · `{rate: 0.7, type: both}`
        (share of rows that *lose* one; type: `both`, or a modality; `both_ratio` as in Lee et al.) ·
        `{shares: {image+text: 0.5, image: 0.5}}`. A mapping may have a `name`.

        Raises:
            UserError: an unknown notation or modality, or shares that leave a row without modalities.
        """
        if isinstance(spec, str):
            spec = _named(spec, modalities)
        name = str(spec["name"]) if "name" in spec else None
        body = {k: v for k, v in spec.items() if k != "name"}
        kind = next((k for k in ("missing", "only", "available", "rate", "shares") if k in body), None)
        if kind is None or set(body) - {kind} - ({"type", "both_ratio"} if kind == "rate" else set()):
            raise UserError(
                "unknown scenario",
                key="scenarios",
                found=dict(spec),
                expected="complete, {missing: M}, {only: M}, {available: {M: share}}, {rate: R, type: T} or "
                "{shares: {A+B: share}}",
            )
        if kind == "missing":
            missing = _modalities(body["missing"], modalities)
            return cls._of({frozenset(modalities) - missing: 1.0}, modalities, name)
        if kind == "only":
            return cls._of({_modalities(body["only"], modalities): 1.0}, modalities, name, only=True)
        if kind == "available":
            return cls._available(body["available"], modalities, name)
        if kind == "rate":
            return cls._rate(body, modalities, name)
        shares: dict[Pattern, float] = {}
        for key, share in _mapping(body["shares"], "shares").items():
            pattern = frozenset(modalities) if key == "complete" else _modalities(str(key).split("+"), modalities)
            shares[pattern] = shares.get(pattern, 0.0) + _share(share, f"shares.{key}")
        return cls._of(shares, modalities, name)

    @classmethod
    def _available(cls, value: Any, modalities: Sequence[str], name: str | None) -> Scenario:
        available = {m: 1.0 for m in modalities}
        for key, share in _mapping(value, "available").items():
            (modality,) = _modalities(key, modalities)
            available[modality] = _share(share, f"available.{key}")
        # Each row lacks at most one modality, as in Lee et al. and both papers ("65 % / 65 %").
        shares = {frozenset(modalities) - {m}: 1.0 - s for m, s in available.items()}
        complete = 1.0 - sum(shares.values())
        if complete < -1e-9:
            raise UserError(
                "a row can lack only one modality in this notation, and these shares leave too many gaps",
                key="scenarios.available",
                found=dict(value),
                expected=f"shares whose gaps sum to at most 1 (here {sum(shares.values()):.3g})",
                hint="For rows that lack several modalities, list the patterns: {shares: {A+B: 0.5, A: 0.5}}.",
            )
        shares[frozenset(modalities)] = max(complete, 0.0)
        if name is None:
            name = "_".join(f"{m}-{_percent(available[m])}" for m in modalities)
        return cls._of(shares, modalities, name)

    @classmethod
    def _rate(cls, body: Mapping[str, Any], modalities: Sequence[str], name: str | None) -> Scenario:
        rate, kind = _share(body["rate"], "rate"), str(body.get("type", "both"))
        last = _share(body.get("both_ratio", 0.5), "both_ratio")
        if kind == "both":
            if len(modalities) == 2:
                gaps = {modalities[1]: 1.0 - last, modalities[0]: last}
            else:
                gaps = {m: 1.0 / len(modalities) for m in modalities}
        else:
            (modality,) = _modalities(kind, modalities)
            gaps = {modality: 1.0}
        shares = {frozenset(modalities) - {m}: rate * gap for m, gap in gaps.items()}
        shares[frozenset(modalities)] = 1.0 - rate
        ratio = f"_{_percent(last)}" if "both_ratio" in body else ""
        return cls._of(shares, modalities, name or f"missing-rate-{_percent(rate)}_{kind}{ratio}")

    @classmethod
    def _of(
        cls, shares: Mapping[Pattern, float], modalities: Sequence[str], name: str | None, only: bool = False
    ) -> Scenario:
        total = sum(shares.values())
        if abs(total - 1.0) > 1e-6:
            raise UserError(
                "the shares of a scenario do not sum to 1", key="scenarios.shares", found=total, expected="1.0"
            )
        if any(not pattern and share > 0 for pattern, share in shares.items()):
            raise UserError(
                "this scenario leaves rows without any modality", key="scenarios", expected="at least one modality"
            )
        positive = tuple((p, shares[p]) for p in patterns(modalities) if shares.get(p, 0.0) > 1e-12)
        reserved = {pattern_name(p, modalities): ((p, 1.0),) for p in patterns(modalities)}
        if name is not None and (not _NAME.fullmatch(name) or reserved.get(name, positive) != positive):
            raise UserError(
                "a scenario cannot have this name",
                key="scenarios.name",
                found=name,
                expected="letters, digits, - _ . + and not the name of another pattern",
            )
        if name is None and len(positive) == 1:
            ((pattern, _),) = positive
            name = (
                "only-" + "-".join(m for m in modalities if m in pattern) if only else pattern_name(pattern, modalities)
            )
        if name is None:
            name = "_".join(f"{'+'.join(m for m in modalities if m in p)}-{_percent(s)}" for p, s in positive)
        return cls(name, positive)


def availability_table(
    scenario: Scenario, n: int, modalities: Sequence[str], seed: int, natural: BoolArray | None = None
) -> BoolArray:
    """Which modalities of n rows may be read: bool [n, M].

    The counts are exact before natural gaps are removed. A row without any modality left is all False and is not
    *eligible* for the scenario.

    Args:
        scenario: the distribution.
        n: number of rows of the split.
        modalities: order of the columns.
        seed: `scenarios.seed`.
        natural: which modalities the data has, bool [n, M].
    """
    complete = frozenset(modalities)
    proper = [(p, s) for p, s in scenario.shares if p != complete]
    missing_share = sum(s for _, s in proper)
    k = min(n, math.floor(n * missing_share + 1e-6))
    counts = [math.floor(k * share / missing_share + 1e-6) for _, share in proper]
    if proper:
        counts[0] = k - sum(counts[1:])
    identity = json.dumps([[sorted(p), round(s, 9)] for p, s in scenario.shares] + [list(modalities), n])
    entropy = int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8], "big")
    order = np.random.Generator(np.random.PCG64([seed, entropy])).permutation(n)
    table = np.ones((n, len(modalities)), dtype=bool)
    start = 0
    for (pattern, _), count in zip(proper, counts, strict=True):
        table[order[start : start + count]] = [m in pattern for m in modalities]
        start += count
    return table if natural is None else table & natural


def table_digest(table: BoolArray) -> str:
    """A short hash of a table's shape and bits, logged with every score computed under it."""
    return hashlib.sha256(f"{table.shape}".encode() + np.packbits(table).tobytes()).hexdigest()[:16]


@dataclass(frozen=True)
class Masking:
    """Random removal of modalities at every training step (modality dropout).

    Args:
        probability: probability of removing modalities.
        granularity: `sample` draws a pattern for each sample, `batch` one for the whole batch (research B1).
        distribution: `uniform` over the proper subsets of present modalities, or `one` modality removed (research B27).
    """

    probability: float
    granularity: Literal["sample", "batch"] = "sample"
    distribution: Literal["uniform", "one"] = "uniform"

    def draw(self, present_BM: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """The modalities in use: bool [B, M], a subset of `present_BM` with no empty row.

        The number of random values drawn depends on B only, so a trial's random stream is independent of its gaps.
        """
        import torch  # lazy: takes seconds, and readers of tables do not need it

        B, M = present_BM.shape
        rows = B if self.granularity == "sample" else 1
        chance_B, choice_B = torch.rand(2, rows, generator=generator, dtype=torch.float64).expand(2, B)
        candidates_QM = torch.tensor([[bool(q >> m & 1) for m in range(M)] for q in range(1, 2**M)])
        present = present_BM.cpu()
        reference = present if self.granularity == "sample" else torch.ones_like(present)
        fits_BQ = (candidates_QM[None] <= reference[:, None]).all(-1)
        removed_BQ = reference.sum(-1, keepdim=True) - candidates_QM.sum(-1)[None]
        proper_BQ = fits_BQ & ((removed_BQ == 1) if self.distribution == "one" else (removed_BQ >= 1))
        count_B = proper_BQ.sum(-1)
        pick_B = (choice_B * count_B).long().clamp(max=2**M)
        rank_BQ = proper_BQ.cumsum(-1) - 1
        chosen_B = (proper_BQ & (rank_BQ == pick_B[:, None])).to(torch.uint8).argmax(-1)
        masked_BM = present & candidates_QM[chosen_B]
        apply_B = (chance_B < self.probability) & (count_B > 0) & masked_BM.any(-1)
        return torch.where(apply_B[:, None], masked_BM, present).to(present_BM.device)


def _named(text: str, modalities: Sequence[str]) -> Mapping[str, Any]:
    if text == "complete":
        return {"shares": {"complete": 1.0}, "name": "complete"}
    for kind in ("missing", "only"):
        if text.startswith(kind + "-"):
            rest = text[len(kind) + 1 :]
            return {kind: rest if rest in modalities else rest.split("-")}
    raise UserError(
        "unknown scenario", key="scenarios", found=text, expected="complete, missing-M, only-M or a mapping"
    )


def _modalities(value: Any, modalities: Sequence[str]) -> Pattern:
    names = list(value) if isinstance(value, (list, tuple, set, frozenset)) else [value]
    for name in names:
        if name not in modalities:
            raise UserError(
                "a scenario names an unknown modality",
                key="scenarios",
                found=name,
                expected=f"one of {', '.join(modalities)}",
                hint=nearest(name, modalities),
            )
    return frozenset(names)


def _mapping(value: Any, key: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise UserError("not a mapping", key=f"scenarios.{key}", found=value, expected="modality or pattern: share")
    return value


def _share(value: Any, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value <= 1.0:
        raise UserError("not a share", key=f"scenarios.{key}", found=value, expected="a number from 0 to 1")
    return float(value)


def _percent(share: float) -> str:
    return f"{100 * share:.6g}"
