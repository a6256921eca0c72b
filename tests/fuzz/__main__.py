"""Try random wrong inputs for a while: `python -m tests.fuzz --seconds 3600 --seed 1`; exits with 1 where one failed.

`--only KIND NUMBER` runs one example again and keeps its folder.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from tests.fuzz.harness import run
from tests.fuzz.kinds import KINDS, Material

SLOWEST = 10.0
"""Seconds; slower examples are listed."""


@dataclass(frozen=True)
class Failure:
    """An example that did not end as it must."""

    kind: str
    number: int
    fault: str
    command: str
    printed: str


def make_material(folder: Path) -> Material:
    """Tiny encoders and the folder of a sweep."""
    import torch
    import transformers

    from tests.conftest import VOCABULARY, tiny_networks
    from tests.unit import report_factory

    torch.manual_seed(0)
    torch.set_num_threads(1)  # threads do not survive a fork
    encoders = {}
    for name, network in tiny_networks().items():
        if name in ("vit", "bert", "ast"):
            network.save_pretrained(folder / name)
            encoders[name] = str(folder / name)
    (folder / "bert" / "vocab.txt").write_text("\n".join(VOCABULARY))
    transformers.BertTokenizer(str(folder / "bert" / "vocab.txt")).save_pretrained(folder / "bert")
    return Material(encoders, report_factory.make_sweep(folder / "sweep", trials=4))


def failures(seed: int, seconds: float, only: tuple[str, int] | None = None) -> Iterator[Failure | str]:
    """Run examples of all kinds in turn until the time is over; yields failures, and a line for each slow example."""
    with tempfile.TemporaryDirectory(prefix="mmsweep-fuzz-") as place:
        root = Path(place)
        material = make_material(root)
        import mmsweep.assembly.plan
        import mmsweep.readers.report.page  # noqa: F401 - imported once, not in each child

        end, tried = time.monotonic() + seconds, Counter[str]()
        for number in count():
            for kind, make in KINDS.items():
                if time.monotonic() > end:
                    yield f"tried: {dict(tried)}"
                    return
                if only and (kind, number) != only:
                    continue
                folder = root / f"{kind}-{number}"
                folder.mkdir()
                example = make(random.Random(f"{seed}-{kind}-{number}"), folder, material)
                ended = run(example.arguments, folder, root / "cache")
                tried[kind] += 1
                fault = ended.fault() or example.check(ended)
                if fault:
                    yield Failure(
                        kind, number, fault, " ".join(example.arguments), ended.out[-500:] + ended.err[-3000:]
                    )
                elif ended.seconds > SLOWEST:
                    yield f"slow: {kind} {number}: {ended.seconds:.0f} s"
                if only:
                    kept = Path(tempfile.mkdtemp(prefix="mmsweep-fuzz-kept-"))
                    shutil.copytree(folder, kept, dirs_exist_ok=True)
                    yield f"{kept}\nexit code {ended.code}\n{ended.out}{ended.err}"
                    return
                shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs=2, metavar=("KIND", "NUMBER"))
    options = parser.parse_args()
    only = (options.only[0], int(options.only[1])) if options.only else None
    failed, seen = 0, Counter[str]()
    for found in failures(options.seed, options.seconds, only):
        if isinstance(found, str):
            print(found, flush=True)
            continue
        failed += 1
        last = found.printed.strip().splitlines()[-1:] or [""]
        signature = f"{found.kind}: {found.fault}: {last[0][:120]}"
        seen[signature] += 1
        if seen[signature] == 1:
            print(
                f"--- {found.kind} {found.number}: {found.fault}\n$ mmsweep {found.command}\n{found.printed}",
                flush=True,
            )
    print(f"{failed} failed, {len(seen)} of them different")
    for signature, times in seen.most_common():
        print(f"  {times} x {signature}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
