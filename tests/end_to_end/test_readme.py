"""What the README and its pages say works as they say."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
OWN_DATA = (ROOT / "docs/own_data.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def mmsweep(*args, cwd):
    return subprocess.run(
        [sys.executable, "-m", "mmsweep", *map(str, args)], cwd=cwd, capture_output=True, text=True, timeout=500
    )


@pytest.fixture()
def own_data(tmp_path, tiny_table, encoder_folders):
    """The example study of docs/own_data.md on its file name, with encoders that are on this machine."""
    (example,) = re.findall(r"```yaml\n(name: my-study.*?)```", OWN_DATA, re.S)
    example = example.replace("openai/clip-vit-base-patch16", encoder_folders["clip"]).replace(
        "bert-base-uncased", encoder_folders["bert"]
    )
    (tmp_path / "my.yaml").write_text(example)
    table = (tiny_table / "whole.csv").read_text().replace("words", "caption")
    (tmp_path / "my.csv").write_text(re.sub(r"^(\d+)\.png", rf"{tiny_table}/\1.png", table, flags=re.M))
    return tmp_path


def test_the_example_study_checks_and_dry_runs(own_data):
    checked = mmsweep("data", "check", "my.yaml", cwd=own_data)
    assert checked.returncode == 0 and "30 train, 9 val, 9 test" in checked.stdout, checked
    dry = mmsweep("tune", "my.yaml", "--dry-run", "--json", cwd=own_data)
    plan = json.loads(dry.stdout)
    assert plan["tokens"]["image"] == 4 + 2 and set(plan["scenarios"]["test"]) == {
        "complete",
        "missing-text",
        "missing-image",
        "image-100_text-30",
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_headings_that_a_page_names_exist(page):
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
        name, _, heading = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        if heading:
            headings = re.findall(r"^#+ (.*)", target.read_text(encoding="utf-8"), re.M)
            assert heading in [re.sub(r"[^\w -]", "", found).lower().replace(" ", "-") for found in headings], link
    for path in re.findall(r"`((?:mmsweep|search_spaces|scripts|docs|benchmarks)/[\w./-]*)`", text):
        assert (ROOT / path).exists(), path


def test_verbs_that_the_readme_names_exist():
    listed = mmsweep("--help", cwd=ROOT).stdout
    verbs = set(re.findall(r"^mmsweep (\w+)", README + OWN_DATA, re.M))
    assert {"show", "best", "train", "tune"} <= verbs
    for verb in verbs:
        assert re.search(rf"\b{verb}\b", listed), verb


def test_the_study_reference_is_up_to_date():
    assert subprocess.run([sys.executable, "scripts/study_reference.py", "--check"], cwd=ROOT).returncode == 0
    rows = [line for line in (ROOT / "docs" / "study.md").read_text().splitlines() if line.startswith("| `")]
    assert len(rows) > 100
    assert [row for row in rows if re.search(r"\| *([GL][et]\([^|]*)?\|$", row)] == []  # limits are no meaning


@pytest.mark.slow
def test_the_demo_s_command_in_small(tmp_path):
    """A real sweep on the shipped data and encoders, then every verb that the README shows on it."""
    study = ROOT / "search_spaces" / "quickstart.yaml"
    small = ["sweep.trials=2", "train.epochs=2", "train.schedule.warmup_epochs=0", "sweep.final.seeds=2"]
    small += ["sweep.scheduler.grace_epochs=1", "sweep.scheduler.reduction_factor=2"]
    ran = mmsweep("tune", study, *small, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert "missing text" in ran.stdout and "mlflow ui" in ran.stdout and "report/index.html" in ran.stdout
    shown = json.loads(mmsweep("show", "quickstart", "--json", cwd=tmp_path).stdout)
    assert shown["state"] == "finished" and len(shown["trials"]) == 2
    assert shown["final"]["missing-text"]["f1_macro"]["seeds"] == 2
    best = mmsweep("best", "quickstart", cwd=tmp_path)
    (tmp_path / "best.yaml").write_text(best.stdout)
    again = mmsweep("train", "best.yaml", "--out", "again", "--json", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    winner = next(t for t in shown["trials"] if t["id"] == shown["best"]["id"])
    reports = [json.loads(line) for line in next((tmp_path / "again" / "final").rglob("reports.jsonl")).open()]
    scores = [r["metrics"]["val/mean_missing/f1_macro"] for r in reports]
    assert max(scores) == pytest.approx(winner["metrics"]["val/mean_missing/f1_macro"], abs=1e-6)
    run = tmp_path / "sweeps" / "quickstart" / "final" / "best" / "seed-101"
    evaluated = json.loads(mmsweep("evaluate", run, "--json", cwd=tmp_path).stdout)
    recorded = json.loads((run / "evaluation.json").read_text())
    assert evaluated["scenarios"]["missing-text"]["metrics"] == pytest.approx(
        recorded["scenarios"]["missing-text"]["metrics"]
    )
    assert Path(mmsweep("report", "quickstart", cwd=tmp_path).stdout.strip()).name == "index.html"
    refused = mmsweep("tune", study, *small, cwd=tmp_path)
    assert refused.returncode == 2 and "--resume" in refused.stderr
