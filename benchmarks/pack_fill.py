#!/usr/bin/env python3
"""How full packs stay while ASHA ends trials: mean width over slots of a sweep, until nothing is left to give.

    python benchmarks/pack_fill.py                                                  # quickstart, 32 trials, 4 slots
    python benchmarks/pack_fill.py --size base --gpus 1 --slots auto --trials 256 --set train.epochs=9
    python benchmarks/pack_fill.py --size tiny --trials 6 --slots 2 --set train.epochs=4     # whether it runs

One `mmsweep tune` with ASHA (the quickstart's: one in three goes on after 2 epochs) and no final runs. Every epoch of a
pack counts with its seconds: its width is the slots that reported, out of those that its host has (packing.json in the
sweep's folder). The tail is what is left when no trial waits and the search has given out its last. Asked for: at least
80 % until then.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from outside import place_of, tune
from ran_on import Machine, hand_over, out_option, table
from sizes import SIZES, study_file

from mmsweep.assembly.build import prepare_data
from mmsweep.record.packing import PackEpoch, Packing
from mmsweep.study import Study

WANTED = 0.80


def filled(epochs: Sequence[PackEpoch]) -> dict[str, float] | None:
    """Epochs of packs, their seconds, mean width and mean slots by seconds, and the share; None without epochs."""
    seconds = sum(e.seconds for e in epochs)
    if not seconds:
        return None
    width, slots = (sum(e.seconds * n for e, n in pairs) / seconds
                    for pairs in ([(e, e.width) for e in epochs], [(e, e.slots) for e in epochs]))  # fmt: skip
    return {"epochs": len(epochs), "seconds": seconds, "width": width, "slots": slots, "share": width / slots}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="quickstart")
    parser.add_argument("--study", type=Path, help="a study file of yours instead of a size")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="changes of the study")
    parser.add_argument("--trials", type=int, default=32)
    parser.add_argument("--slots", default="4", help="resources.slots")
    parser.add_argument("--hosts", default="auto", help="resources.hosts")
    parser.add_argument("--gpus", type=float, default=0.0, help="resources.gpus")
    parser.add_argument("--place", type=Path, help="folder to keep everything in; default: a temporary one")
    out_option(parser)
    options = parser.parse_args()
    machine = Machine()
    changes = [
        *(f"sweep.trials={options.trials}", "sweep.final=null", "tracking.uri=null"),
        "sweep.scheduler={name: asha, grace_epochs: 2, reduction_factor: 3}",
        *(f"resources.{name}={getattr(options, name)}" for name in ("slots", "hosts", "gpus")),
        *options.set,
    ]
    with place_of(options.place, own_cache=options.size != "quickstart" and options.study is None) as place:
        path = options.study or study_file(options.size, place / "study")
        study, out = Study.load(path, changes), place / "sweep"
        prepare_data(study)
        ran, packing = tune(path, out, changes), Packing.load(out)
        marks = [json.loads(mark.read_text())["state"] for mark in out.glob("trials/*/done.json")]
    search = [e for e in packing.epochs if e.kind == "trial"]
    if not search:
        sys.exit(f"{out / 'packing.json'} holds no epoch")
    hosts = sorted({e.host for e in search})
    wanted: list[tuple[str, list[PackEpoch]]] = [("until the tail", [e for e in search if not e.tail])]
    wanted += [(f"{host}, until the tail", [e for e in search if not e.tail and e.host == host]) for host in hosts]
    wanted += [("the tail", [e for e in search if e.tail]), ("all", search)]
    parts = {name: filled(epochs) for name, epochs in wanted}
    rows = [
        [name, p["epochs"], f"{p['seconds']:.1f} s", f"{p['width']:.2f}", f"{p['slots']:.2f}", f"{p['share']:.1%}"]
        for name, p in parts.items()
        if p
    ]
    widths = sorted(Counter((e.width, e.tail) for e in search).items())
    judged = parts["until the tail"]
    if judged is None:
        verdict = "There was nothing but tail: more trials than slots are needed."
    else:
        word = "at least" if judged["share"] >= WANTED else "NOT"
        verdict = f"{judged['share']:.1%} of the slots were filled until the tail: {word} {WANTED:.0%}."
    states = ", ".join(f"{n} {state}" for state, n in sorted(Counter(marks).items()))
    lines = [
        f"{options.trials} trials of up to {study.train.epochs} epochs, ASHA, {len(hosts)} host(s), slots "
        f"{options.slots}: {states}; {ran.seconds:.0f} s in all.",
        "",
        *table(["", "epochs of packs", "seconds", "mean width", "slots", "filled"], rows),
        "",
        verdict,
        "",
        "Epochs by width: " + ", ".join(f"{n} of {w}{' (tail)' if tail else ''}" for (w, tail), n in widths) + ".",
    ]
    found: dict[str, Any] = {"parts": parts, "states": marks, "wall": ran.seconds, "packing": asdict(packing)}
    hand_over("How full packs stay", lines, machine.facts(), found, options.out)


if __name__ == "__main__":
    main()
