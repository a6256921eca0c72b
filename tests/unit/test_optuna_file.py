"""Optuna's file is made again from the trials' folders, and the sampler then suggests what it would have suggested."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from sqlalchemy.exc import SQLAlchemyError

from mmsweep.record.trial import Report, TrialFolder
from mmsweep.study import Study
from mmsweep.study.space import starting_points
from mmsweep.sweep.optuna_file import open_checked
from mmsweep.sweep.search import TrialSearch

sys.path.insert(0, str(Path(__file__).parents[1] / "end_to_end"))
from sleeping import METRIC, study

pytestmark = pytest.mark.long

SEARCH: dict[str, Any] = {
    "method.name": {"choice": ["cmpt", "mmp"]},
    "method.aggregated_tokens": {"choice": [4, 8], "when": {"method.name": "mmp"}},
    "model.lora.rank": {"log_int": [1, 8]},
    "train.optimizer.betas": {"choice": [[0.9, 0.99], [0.9, 0.999]]},
    "method.align_weight": {"log_uniform": [0.01, 1.0]},
}


def asked() -> Study:
    return Study.parse({**study(sweep__sampler={"name": "tpe", "seed": 3}).resolved(), "search": SEARCH})


def folders(path: Path) -> list[TrialFolder]:
    return [TrialFolder(p.parent) for p in sorted(path.glob("trials/*/trial.json"))]


def searcher(path: Path) -> tuple[TrialSearch, optuna.Study, str | None]:
    s = asked()
    told, note = open_checked(path / "optuna.db", s, folders(path))
    for point in starting_points(s):
        told.enqueue_trial(point, skip_if_exists=True)
    served = [int(folder.path.name) for folder in folders(path)]
    search = TrialSearch(s, told, path / "trials", served, lambda *_: None, lambda *_: None, total=99)
    return search, told, note


def train(path: Path, count: int) -> list[Any]:
    """A sweep of so many trials, the third stopped early, the fourth failed, the last one under way."""
    search, _, _ = searcher(path)
    configs = []
    for n in range(count):
        configs.append(search.suggest(f"t{n}"))
        folder = TrialFolder(path / "trials" / f"{n:04d}")
        for epoch in range(1, 3 if n == 2 else 5):
            folder.append(Report(epoch, {METRIC: (0.3 + 0.17 * n) % 1 + 0.01 * epoch}))
        if n + 1 < count:
            folder.mark_done({2: "stopped", 3: "failed"}.get(n, "finished"))  # type: ignore[arg-type]
            search.on_trial_complete(f"t{n}", {"epoch": 4})
    return configs


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 3])


def forget(file: Path) -> None:
    with sqlite3.connect(file) as connection:
        connection.execute("update trial_values set value = value + 1 where trial_id = 2")


FAULTS: dict[str, Callable[[Path], object]] = {
    "deleted": lambda file: file.unlink(),
    "empty": lambda file: file.write_bytes(b""),
    "garbage": lambda file: file.write_bytes(b"no database" * 999),
    "truncated": truncate,
    "another value": forget,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_lost_file_is_made_again(fault: str, tmp_path: Path) -> None:
    train(tmp_path, 7)
    before = searcher(tmp_path)[1].get_trials()
    FAULTS[fault](tmp_path / "optuna.db")
    search, told, note = searcher(tmp_path)
    assert note and "made again from the folders of 7 trials" in note and note.startswith("optuna.db ")
    for old, new in zip(before, told.get_trials(), strict=True):  # no starting point was enqueued again
        assert (old.number, old.state, old.values, old.params) == (new.number, new.state, new.values, new.params)
        assert (old.distributions, old.intermediate_values) == (new.distributions, new.intermediate_values)
        assert old.user_attrs == new.user_attrs
    assert searcher(tmp_path)[2] is None  # and it is sound now

    undisturbed = tmp_path / "undisturbed"
    undisturbed.mkdir()
    train(undisturbed, 7)
    search, other = searcher(tmp_path)[0], searcher(undisturbed)[0]
    assert [search.suggest(f"u{n}") for n in range(10)] == [other.suggest(f"u{n}") for n in range(10)]


def test_a_sound_file_is_left_alone(tmp_path: Path) -> None:
    assert searcher(tmp_path)[2] is None
    train(tmp_path, 5)
    assert searcher(tmp_path)[2] is None and not list(tmp_path.glob("*.damaged"))


def test_a_file_that_the_disk_does_not_give_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path, 3)

    def full(*_: object, **__: object) -> object:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr("mmsweep.sweep.optuna_file.open_optuna", full)
    with pytest.raises((sqlite3.OperationalError, SQLAlchemyError)):
        searcher(tmp_path)
    assert (tmp_path / "optuna.db").exists()
