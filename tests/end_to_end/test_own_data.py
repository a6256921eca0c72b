"""A sweep on a user's own file with a tenth of the cells empty in both modalities, in every split."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import replace

import pytest
import yaml

from mmsweep.errors import UserError


def mmsweep(*args, cwd):
    return subprocess.run(
        [sys.executable, "-m", "mmsweep", *map(str, args)], cwd=cwd, capture_output=True, text=True, timeout=500
    )


@pytest.mark.slow
def test_natural_gaps_in_every_split(tmp_path, tiny_table, tiny_values):
    rows = list(csv.DictReader((tiny_table / "whole.csv").read_text().splitlines()))
    for i, row in enumerate(rows):
        row["picture"] = "" if i % 10 == 3 else str(tiny_table / row["picture"])
        row["words"] = "" if i % 10 == 7 else row["words"]
    with open(tmp_path / "own.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    study = json.loads(json.dumps(tiny_values)) | {"name": "own"}
    study["data"]["path"] = "own.csv"
    study["sweep"] = {"trials": 2, "final": {"seeds": 2}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(study))
    ran = mmsweep("tune", "own.yaml", "--json", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    final = json.loads(ran.stdout)["final"]
    test = [i for i, row in enumerate(rows) if row["part"] == "test"]
    have = {
        "complete": len(test),
        "missing-text": sum(bool(rows[i]["picture"]) for i in test),
        "missing-image": sum(bool(rows[i]["words"]) for i in test),
    }
    assert {s: final[s]["accuracy"]["rows"] for s in have} == have and have["missing-text"] < have["complete"]
    shown = mmsweep("show", "own", cwd=tmp_path).stdout
    assert " n " in shown and str(have["missing-text"]) in shown
    predictions = list((tmp_path / "sweeps" / "own" / "final").rglob("predictions.npz"))
    assert len(predictions) == 2


@pytest.mark.slow
def test_ray_decodes_the_bytes_that_threads_decode(tmp_path, monkeypatch):
    from mmsweep.data import shards
    from mmsweep.data.prepared import prepare
    from mmsweep.sweep import decoding
    from tests.data.files import write_tokenizer
    from tests.unit.prepared_helpers import formats_of, pictures

    monkeypatch.setattr(shards, "_SHARD_ROWS", 2)
    monkeypatch.setattr(decoding, "LONG_SECONDS", -1.0)  # all but the first shard
    builder, formats = pictures(tmp_path), formats_of(write_tokenizer(tmp_path / "tokenizer"))
    (tmp_path / "val" / "3.png").write_bytes(b"no picture")
    here = prepare(builder, formats, tmp_path / "here", max_bad=0.1)
    there = prepare(builder, formats, tmp_path / "there", max_bad=0.1, run=decoding.with_ray)
    assert [row.origin for row in there.skipped] == ["val.csv:5"] and there.skipped == here.skipped
    files = sorted(path.relative_to(here.folder) for path in here.folder.rglob("*.npy"))
    assert len(files) == 15
    assert all((there.folder / file).read_bytes() == (here.folder / file).read_bytes() for file in files)
    assert there.fingerprint == here.fingerprint
    (tmp_path / "lost").mkdir()
    monkeypatch.setattr(decoding, "decode", lambda shard: shards.decode(replace(shard, folder=tmp_path / "lost")))
    with pytest.raises(UserError, match="does not have the folder"):
        prepare(builder, formats, tmp_path / "elsewhere", max_bad=0.1, run=decoding.with_ray)
