"""A study's plain summary for readers."""

from __future__ import annotations

import contextlib
from pathlib import Path

from mmsweep.data.options import DATASETS
from mmsweep.record.summary import Final, Scenarios, Searched, Splits, Summary, lacks_summary
from mmsweep.study import Study


def summary_of(study: Study) -> Summary:
    """What readers need of a study."""
    sweep, final, search = study.sweep, study.sweep.final, study.search
    return Summary(
        name=study.name,
        digest=study.digest(),
        dataset=study.data.dataset,
        task=study.data.task,
        published=getattr(study.data, "published", None),
        modalities=list(study.model.encoders),
        splits=_splits(study),
        scenarios=Scenarios(study.scenarios.seed, study.scenarios.train, list(study.scenarios.evaluate)),
        epochs=study.train.epochs,
        seeds={
            "split": getattr(study.data, "split_seed", 0),
            "scenarios": study.scenarios.seed,
            "training": study.train.seed,
            "sampler": sweep.sampler.seed,
        },
        search={key: Searched(d.kind, float(d.low), float(d.high), d.choices) for key, d in search.items()},
        trials=sweep.trials,
        objectives=sweep.objectives,
        scheduler=sweep.scheduler.name,
        grace_epochs=sweep.scheduler.grace_epochs,
        final=None if final is None else Final(final.seeds, final.keys),
        over=list(study.bootstrap.over),
    )


def summarize(folder: Path) -> None:
    """Write the summary of a sweep that an older mmsweep began; nothing where there is one, or no sweep.

    Where the folder cannot be written nothing happens either: its readers then say what is missing.

    Raises:
        UserError: its study is damaged.
    """
    if lacks_summary(folder):
        summary = summary_of(Study.load(folder / "study.yaml"))
        with contextlib.suppress(OSError):
            summary.write(folder)


def _splits(study: Study) -> Splits:
    data, rows = study.data, DATASETS[study.data.dataset].card().rows
    split, seed = getattr(data, "split", None), getattr(data, "split_seed", 0)
    if split and split.seed is not None:
        seed = split.seed
    return Splits(split.column if split else None, seed, getattr(data, "group", None) is not None, rows.get("val"))
