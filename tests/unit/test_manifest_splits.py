"""Which rows of a manifest train, validate and test."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mmsweep.data.dataset import Sample
from tests.data.files import manifest_rows, target, write_manifest
from tests.unit.manifest_helpers import (
    COLUMNS,
    HEADER,
    TEXT,
    bad_rows,
    read,
    refused,
    written,
    wrong,
)


def test_carving_follows_groups_and_seed_not_order(tmp_path: Path) -> None:
    rows = manifest_rows(tmp_path, 60)
    rule = dict(train=0.6, val=0.2, test=0.2, seed=1)

    def ids(order: int, seed: int = 1) -> dict[str, frozenset[str]]:
        shuffled = random.Random(order).sample(rows, len(rows))
        path = write_manifest(tmp_path / "data.jsonl", shuffled)
        rule = dict(train=0.6, val=0.2, test=0.2, seed=seed)
        splits = read(path, split=rule, group="concept").splits()
        homes = [{s.group for s in samples} for samples in splits.values()]
        assert sum(map(len, homes)) == len(set().union(*homes)) == 30
        return {name: frozenset(s.id for s in samples) for name, samples in splits.items()}

    assert ids(0) == ids(1) != ids(0, seed=2)
    assert {name: len(found) for name, found in ids(0).items()} == {"train": 36, "val": 12, "test": 12}
    assert "(seed 1)" in read(tmp_path / "data.jsonl", split=rule).provenance()


def test_equal_rows_stay_together_and_have_their_own_ids(tmp_path: Path) -> None:
    text = HEADER + "".join(f"{i // 4}.png,x,{'ab'[i % 8 // 4]},\n" for i in range(80))
    splits = read(written(tmp_path, text), split=None).splits()
    homes = {s.values["image"]: name for name, samples in splits.items() for s in samples}
    assert all(homes[s.values["image"]] == name for name, samples in splits.items() for s in samples)
    assert len({s.id for samples in splits.values() for s in samples}) == 80


def test_validation_is_carved_from_training_when_the_column_has_none(tmp_path: Path) -> None:
    rows = [row | {"part": "train" if row["part"] == "val" else row["part"]} for row in manifest_rows(tmp_path)]
    builder = read(write_manifest(tmp_path / "data.csv", rows), group="concept")
    splits = builder.splits()
    assert len(splits["test"]) == sum(row["part"] == "test" for row in rows)
    assert 2 <= len(splits["val"]) <= 4 and "carved off by hash" in builder.provenance()
    assert not {s.group for s in splits["val"]} & {s.group for s in splits["train"]}


def members(splits: dict[str, list[Sample]]) -> dict[str, set[str]]:
    return {name: {sample.origin for sample in samples} for name, samples in splits.items()}


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("split", [None, {"stratify": False}, {"column": "fold"}])
def test_a_modality_more_in_the_study_moves_no_row(suffix: str, split: Any, tmp_path: Path) -> None:
    rows = [row | {"fold": "test" if i % 5 == 0 else "train"} for i, row in enumerate(manifest_rows(tmp_path, 80))]
    rows = [row | {"caption": f"{row['caption'] or 'None'} {i // 4}"} for i, row in enumerate(rows)]
    path = write_manifest(tmp_path / f"data{suffix}", rows)
    both, one = read(path, split=split), read(path, split=split, modalities=TEXT)
    assert members(both.splits()) == members(one.splits())
    assert {s.id for s in both.splits()["val"]} == {s.id for s in one.splits()["val"]}
    number = target("regression", "score")
    if split == {"stratify": False}:
        assert members(read(path, number, split).splits()) == members(both.splits())


def test_a_declared_id_decides_alone(tmp_path: Path) -> None:
    rows = [row | {"key": i} for i, row in enumerate(manifest_rows(tmp_path, 60))]
    rule = {"stratify": False}
    before = read(write_manifest(tmp_path / "a.jsonl", rows), split=rule, id="key").splits()
    changed = [row | {"caption": "another", "kind": "red" if i % 2 else "blue"} for i, row in enumerate(rows)]
    after = read(write_manifest(tmp_path / "b.jsonl", changed), split=rule, id="key").splits()
    ids = {name: [s.id for s in samples] for name, samples in before.items()}
    assert ids == {name: [s.id for s in samples] for name, samples in after.items()}
    assert sorted(int(id) for part in ids.values() for id in part) == list(range(60))
    rows[5]["key"], rows[6]["key"] = 4, None
    told = bad_rows(write_manifest(tmp_path / "a.jsonl", rows), split=rule, id="key")
    assert told == [
        "a.jsonl:6: key: an id stands for one row; '4' is also on line 5",
        "a.jsonl:7: key: the id is empty",
    ]
    assert "data.id.column" in refused(tmp_path / "a.jsonl", split=rule, id="kez")


def test_classes_keep_their_shares_in_every_part(tmp_path: Path) -> None:
    kinds = ["common"] * 160 + ["rare"] * 30 + ["scarce"] * 10
    rows = [{"caption": f"word {i}", "kind": kind, "part": "train"} for i, kind in enumerate(kinds)]
    path = write_manifest(tmp_path / "my.csv", rows)
    for seed in range(5):
        splits = read(path, split=dict(seed=seed), modalities=TEXT).splits()
        counts = {name: Counter(s.target for s in samples) for name, samples in splits.items()}
        assert counts == {
            "train": {"common": 128, "rare": 24, "scarce": 8},
            "val": {"common": 16, "rare": 3, "scarce": 1},
            "test": {"common": 16, "rare": 3, "scarce": 1},
        }
    for row in rows[1::2]:
        row["part"] = "test"
    builder = read(write_manifest(tmp_path / "my.csv", rows), modalities=TEXT)
    assert Counter(s.target for s in builder.splits()["val"]) == {"common": 8, "rare": 1, "scarce": 1}
    assert "within each class" in builder.provenance()


def test_many_small_classes_leave_the_parts_their_sizes(tmp_path: Path) -> None:
    """Six rows a class: by itself, each would give one row to test and none to validation."""
    rows = [{"caption": f"word {i}", "kind": f"k{i // 6}"} for i in range(300)]
    splits = read(write_manifest(tmp_path / "my.csv", rows), split=None, modalities=TEXT).splits()
    assert {name: len(samples) for name, samples in splits.items()} == {"train": 240, "val": 30, "test": 30}
    assert len({s.target for s in splits["train"]}) == 50


def test_a_group_stays_whole_where_classes_keep_their_shares(tmp_path: Path) -> None:
    rows = [{"caption": f"word {i}", "kind": "ab"[i % 3 > 0], "of": i // 4} for i in range(200)]
    found = []
    for order in range(3):
        path = write_manifest(tmp_path / "my.jsonl", random.Random(order).sample(rows, len(rows)))
        splits = read(path, split=None, modalities=TEXT, group="of").splits()
        homes = {name: {s.group for s in samples} for name, samples in splits.items()}
        assert sum(map(len, homes.values())) == 50 and 12 <= len(splits["val"]) <= 28
        found.append(homes)
    assert found[0] == found[1] == found[2]


def test_stratification_needs_classes(tmp_path: Path) -> None:
    data = {"dataset": "manifest", "path": str(tmp_path), "modalities": COLUMNS, "split": {"stratify": True}}
    message = wrong(data | {"target": target("regression", "score")})
    assert "data.split.stratify: regression has no classes to stratify by" in message


def test_a_group_in_two_splits_is_refused(tmp_path: Path) -> None:
    rows = [row | {"part": ("train", "val", "test")[i % 3]} for i, row in enumerate(manifest_rows(tmp_path))]
    message = refused(write_manifest(tmp_path / "data.csv", rows), group="concept")
    assert "data.csv:3" in message and "in train on line 2 and in val here" in message and "'concept-0'" in message
