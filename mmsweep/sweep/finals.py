"""After the search: the winner (or the winner of each group) trained anew over seeds that the sweep has not used,
and any other job that no Tune trial follows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import ray

from mmsweep.record.results import TrialRecord
from mmsweep.record.sweep import SUPERSEDED, SweepRecord, group_name
from mmsweep.record.trial import TrialFolder
from mmsweep.study import Study
from mmsweep.sweep.session import Session

FIRST_SEED = 101


FinalJob = tuple[TrialFolder, Study]
"""A run that no Tune trial follows: its folder is laid out, its study resolved."""


def winners(record: SweepRecord) -> dict[str, TrialRecord]:
    """The best finished trial by validation, as "best", or of each value of `sweep.final.per`.

    Only trials that ran to their end compete: a stopped one is compared at fewer epochs, a failed or NaN one not at
    all.
    """
    final = record.summary.final
    finished = [trial for trial in record.ranking if trial.state == "finished"]
    if final is None or not finished:
        return {}
    if not final.per:
        return {"best": finished[0]}
    groups: dict[str, TrialRecord] = {}
    for trial in finished:
        groups.setdefault(group_name(trial.params, final.per), trial)
    return groups


def final_seeds(record: SweepRecord) -> list[int]:
    """Training seeds that no trial of the sweep has used."""
    used = {record.summary.seeds["training"]} | {trial.seed for trial in record.trials}
    final = record.summary.final
    seeds = (seed for seed in range(FIRST_SEED, FIRST_SEED + 10_000) if seed not in used)
    return [next(seeds) for _ in range(final.seeds if final else 0)]


def lay_out_finals(record: SweepRecord, study: Study) -> list[FinalJob]:
    """The folders of all final runs; those of a winner that is none any more (the sweep was extended) are put aside."""
    jobs = []
    for group, winner in winners(record).items():
        base = record.folder / "final" / group
        origin = next((TrialFolder(path.parent).trial().get("from") for path in base.glob("*/trial.json")), None)
        if origin not in (None, winner.id):
            _put_aside(base, group, origin)
        for seed in final_seeds(record):
            resolved = study.with_values({**winner.params, "train.seed": seed})
            folder = TrialFolder(base / f"seed-{seed}")
            about = {"id": f"final/{group}/seed-{seed}", "number": None, "params": dict(winner.params), "kind": "final"}
            folder.create({**about, "seed": seed, "from": winner.id}, resolved.to_yaml())
            jobs.append((folder, resolved))
    return jobs


def _put_aside(base: Path, group: str, origin: str) -> None:
    aside = base.parents[1] / SUPERSEDED / f"{group}-of-{origin}-{int(time.time())}"
    aside.parent.mkdir(parents=True, exist_ok=True)
    base.rename(aside)


def run_jobs(jobs: Sequence[FinalJob], session: Session) -> bool:
    """Train jobs on the session's hosts, in order; those that are done are only replayed into tracking and table.

    Returns:
        Whether all ended; False after Ctrl-C or when the hosts cannot go on (`session.problem`).
    """
    waiting = {folder.trial()["id"]: folder for folder, _ in jobs}
    last = dict.fromkeys(waiting, 0)
    session.expect(True)
    for folder, study in jobs:
        session.submit(folder, study, pack_limit=len(jobs), judged=())
    session.expect(False)
    while waiting:
        if session.must_end():
            return False
        # One call for all that wait: each returns as soon as it has news, or after a second.
        calls = {session.board.follow.remote(id, last[id], 1.0): id for id in waiting}
        ready, _ = ray.wait(list(calls), num_returns=1, timeout=2.0)
        for call in ready:
            id = calls[call]
            reports, over = ray.get(call)
            for report in reports:
                last[id] = report["epoch"]
                session.epoch(id, report["epoch"], report["metrics"])
            if over and not reports:
                session.ended(id, waiting.pop(id))
    return True
