"""Record files that are damaged, or hold JSON of another shape: one line that names the file, whoever reads it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mmsweep.cli.results import show
from mmsweep.errors import UserError
from mmsweep.record.sweep import SweepRecord
from mmsweep.sweep.folder import SweepFolder
from tests.unit.report_factory import make_sweep, study
from tests.unit.wrong_inputs.messages import Say

NEVER = [b"", b"[1]", b"null", b'"x"', b"1", b"{", b"\xff\x00\x80", b"[" * 100_000, b'{"state": ' + b"9" * 6000 + b"}"]
WRONG = {
    "sweep.json": [
        b'{"state": 1}',
        b'{"trials": "12"}',
        b'{"trials": true}',
        b'{"created": 1e300}',
        b'{"overrides": [1]}',
    ],
    "tracking.json": [b"{}", b'{"id": "x", "runs": [1]}', b'{"id": "x", "tags": {"a": null}}', b'{"id": 7}'],
    "summary.json": [b"{}", b'{"name": "s", "objectives": []}'],
    "packing.json": [b'{"capacities": 1, "epochs": []}', b'{"epochs": [{}]}', b'{"capacities": [[1]]}'],
    "trials/0001/trial.json": [
        b"{}",
        b'{"id": "0001", "params": {}}',
        b'{"id": "0001", "params": {}, "seed": 0, "optuna": "1"}',
    ],
    "trials/0001/done.json": [b"{}", b'{"state": "done"}', b'{"state": "failed", "error": 3}'],
    "trials/0001/reports.jsonl": [b"{}\n", b"[]\n", b'{"epoch": "1"}\n', b'{"epoch": 1, "metrics": [1]}\n'],
    "final/best/seed-101/evaluation.json": [b"{}", b'{"split": "test", "scenarios": []}'],
    "final/best/seed-101/trial.json": [b"{}"],
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_sweep(tmp_path_factory.mktemp("whole") / "s", trials=4)
    (folder / "packing.json").write_text('{"capacities": [], "epochs": []}')
    return folder


@pytest.fixture()
def sweep(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "s"))


@pytest.mark.parametrize("name", WRONG)
def test_a_record_of_another_shape_is_named(name: str, sweep: Path, say: Say) -> None:
    file = sweep / name
    before = file.read_bytes()
    lines = [content + b"\n" for content in NEVER] if name.endswith(".jsonl") else NEVER
    for content in (*lines, *WRONG[name]):
        file.write_bytes(content)
        with pytest.raises(UserError) as refused:
            SweepFolder.open(study(), sweep, trials=4, resume=True, extend=0)
        assert str(refused.value).startswith(str(file)), content[:40]
        assert "\n" not in str(refused.value) and len(str(refused.value)) < 600
    for content in (lines[1], WRONG[name][-1]):
        file.write_bytes(content)
        assert say("show", sweep).startswith(str(file))
    file.write_bytes(before)
    SweepFolder.open(study(), sweep, trials=4, resume=True, extend=0).release()


@pytest.mark.parametrize("verb", ["best", "report"])
def test_other_verbs_name_the_file_too(verb: str, sweep: Path, say: Say) -> None:
    for name in ("sweep.json", "trials/0001/done.json"):
        before = (sweep / name).read_bytes()
        (sweep / name).write_bytes(b"[1]")
        assert say(verb, sweep).startswith(str(sweep / name))
        (sweep / name).write_bytes(before)
    for number in range(4):
        (sweep / "trials" / f"{number:04d}" / "study.yaml").write_bytes(b"\xff\x00")
    with pytest.raises(UserError, match=r"0000/study.yaml: the study of a trial is missing or damaged"):
        SweepFolder.open(study(), sweep, trials=4, resume=True, extend=0)
    assert verb != "best" or "study.yaml" in say("best", sweep)


def test_what_is_missing_is_said_and_not_left_out(sweep: Path, say: Say) -> None:
    trial = sweep / "trials" / "0000"
    (trial / "trial.json").rename(trial / "kept")
    assert say("show", sweep).startswith(f"{trial / 'trial.json'}: the file is missing")
    (trial / "kept").rename(trial / "trial.json")
    reports = (trial / "reports.jsonl").read_bytes()
    for shorter in (b"", reports.splitlines(keepends=True)[0]):
        (trial / "reports.jsonl").write_bytes(shorter)
        assert say("show", sweep).startswith(f"{trial / 'reports.jsonl'}: reports are missing")
    (trial / "reports.jsonl").write_bytes(reports)
    (sweep / "study.yaml").unlink()
    with pytest.raises(UserError, match=r"study.yaml: the sweep's study is missing"):
        SweepFolder.open(study(), sweep, trials=4, resume=False, extend=0)


def test_predictions_whose_arrays_do_not_belong_together(sweep: Path, say: Say) -> None:
    file = sweep / "final" / "best" / "seed-101" / "predictions.npz"
    whole = file.read_bytes()
    for content in (b"", b"[1]", whole[: len(whole) // 2], whole.replace(b"PK\x03\x04", b"PK\x03\x05", 1)):
        file.write_bytes(content)
        assert say("report", sweep).startswith(str(file))


def test_a_sweep_of_an_older_mmsweep_gets_its_summary(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary, before = sweep / "summary.json", (sweep / "summary.json").read_bytes()
    summary.unlink()
    with pytest.raises(UserError, match=r"summary.json: the file is missing"):
        SweepRecord.load(sweep)
    show(sweep)
    assert "Trials by validation" in capsys.readouterr().out and summary.read_bytes() == before
    summary.unlink()
    SweepFolder.open(study(), sweep, trials=4, resume=True, extend=0).release()
    assert summary.read_bytes() == before


def test_a_trial_is_no_sweep_and_gets_no_summary(sweep: Path, say: Say) -> None:
    trial = sweep / "trials" / "0001"
    names = sorted(path.name for path in trial.iterdir())
    for verb in ("show", "best", "report"):
        assert "no sweep lies here" in say(verb, trial)
    assert sorted(path.name for path in trial.iterdir()) == names


def test_a_lost_sweep_json_is_made_again(sweep: Path) -> None:
    before = json.loads((sweep / "sweep.json").read_text())
    (sweep / "sweep.json").unlink()
    assert SweepRecord.load(sweep).state == "interrupted"
    folder = SweepFolder.open(study(), sweep, trials=12, resume=True, extend=0)
    assert folder.trials == 12 and folder.state["name"] == before["name"] and not folder.finished
    assert "sweep.json was missing" in folder.notes[0]
    folder.release()
    assert SweepFolder.open(study(), sweep, trials=12, resume=True, extend=0).notes == []


def test_paths_that_are_no_sweep(place: Path, say: Say) -> None:
    (place / "file").write_text("x")
    for verb in ("show", "best", "report", "evaluate"):
        for path in (place / "file", place / "file" / "in", place / "nothing", place, "x" * 300, place / ("y/" * 3000)):
            message = say(verb, path)
            assert "lies here" in message or "File name too long" in message, message


def test_data_that_changed_is_refused_with_both_fingerprints(tmp_path: Path) -> None:
    def opened(resume: bool = True, extend: int = 0) -> SweepFolder:
        return SweepFolder.open(study(), tmp_path / "s", trials=4, resume=resume, extend=extend)

    facts = {"dataset": "openclipart", "dataset_fingerprint": "aaa", "split_digest": "bbb", "study_digest": "ccc"}
    folder = opened(resume=False)
    folder.check_data(facts)
    folder.release()
    folder = opened()
    folder.check_data({**facts, "study_digest": "another"})
    before = folder.state
    for key, words in (("dataset_fingerprint", "the data has"), ("split_digest", "the splits of the data have")):
        with pytest.raises(UserError, match=rf"{words} changed.*found '{key} new'; expected {facts[key]}, as before"):
            folder.check_data({**facts, key: "new"})
    assert folder.state == before
    folder.release()
    folder = opened(extend=3)
    assert folder.trials == 7
    with pytest.raises(UserError, match="the data has changed"):
        folder.check_data({**facts, "dataset_fingerprint": "new"})
    assert folder.state == before  # no trial was added either


def test_a_sweep_of_an_older_mmsweep_knows_its_data_from_its_tags(sweep: Path) -> None:
    folder = SweepFolder.open(study(), sweep, trials=4, resume=True, extend=0)
    with pytest.raises(UserError, match=r"found 'dataset_fingerprint aaa'; expected 9f2c, as before"):
        folder.check_data({"dataset_fingerprint": "aaa"})
    folder.check_data({"dataset_fingerprint": "9f2c", "split_digest": "new"})
    assert folder.state["data"] == {"dataset_fingerprint": "9f2c", "split_digest": "new"}
