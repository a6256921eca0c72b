"""A sweep on a user's own file with a tenth of the cells empty in both modalities, in every split."""

from __future__ import annotations

import csv
import json
import subprocess
import sys

import pytest
import yaml


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
