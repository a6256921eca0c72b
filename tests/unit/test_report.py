"""Sweep folders read back, and what is written of them: tables, published numbers, figures, the page."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from mmsweep.errors import UserError
from mmsweep.readers import tables, wording
from mmsweep.readers.report import search_figures
from mmsweep.readers.report.page import write_report
from mmsweep.readers.report.published import ROWS, published, published_table
from mmsweep.readers.report.search_figures import importance_bars, importance_note, importances
from mmsweep.readers.report.sentences import facts
from mmsweep.record.packing import FILE, PackEpoch, Packing
from mmsweep.record.sweep import SweepRecord, group_name
from mmsweep.record.trial import Report, TrialFolder
from mmsweep.sweep.summary import summary_of
from mmsweep.tasks.multi_label import MultiLabel
from mmsweep.tasks.single_label import SingleLabel
from mmsweep.tasks.task import Target
from tests.unit import report_factory as factory

pytestmark = pytest.mark.long

FIGURES = {"share_available", "scenarios", "per_class", "history", "curves", "parallel"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return factory.make_sweep(tmp_path_factory.mktemp("report") / "demo")


@pytest.fixture(scope="module")
def by_method(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return factory.make_sweep(tmp_path_factory.mktemp("report") / "methods", factory.per_method())


def test_show_json_has_the_shape_of_the_design_and_says_how_full_packs_were(finished: Path) -> None:
    shown = json.loads(json.dumps(SweepRecord.load(finished).to_json(), allow_nan=False))
    assert set(shown) == {"name", "state", "trials", "best", "final", "packing"} and shown["packing"] is None
    assert set(shown["trials"][0]) >= {"id", "state", "params", "metrics", "mlflow_run_id"}
    assert shown["trials"][3]["mlflow_run_id"] == "run3"
    assert {trial["state"] for trial in shown["trials"]} == {"finished", "stopped", "failed"}
    cell = shown["final"]["missing-text"]["f1_macro"]
    assert set(cell) == {"mean", "sd", "seeds", "rows"} and cell["seeds"] == 3 and cell["rows"] == 300
    assert "mean_missing" in shown["final"] and "worst_missing" in shown["final"]


def test_how_full_the_packs_were_is_in_the_json_and_on_the_page(tmp_path: Path) -> None:
    folder = factory.make_sweep(tmp_path / "packed", trials=2, finals=False)
    packs = [
        PackEpoch("host-0", "p", "trial", 0.0, seconds, width, 4, False) for seconds, width in ((3.0, 4), (1.0, 2))
    ]
    (folder / FILE).write_text(Packing([], packs).text())
    record = SweepRecord.load(folder)
    assert record.to_json()["packing"] == {"width": 3.5, "slots": 4.0}
    assert dict(facts(record))["packs"] == "3.5 of 4 slots were occupied on average while trials were pending"
    assert "3.5 of 4 slots were occupied on average while trials were pending" in write_report(folder).read_text()


def test_means_and_deviations_are_those_of_the_seeds(finished: Path) -> None:
    values = []
    for seed in (101, 102, 103):
        raw = json.loads((finished / f"final/best/seed-{seed}/evaluation.json").read_text())
        values.append(raw["scenarios"]["missing-text"]["metrics"]["accuracy"])
    cell = SweepRecord.load(finished).groups[0].cell("missing-text", "accuracy")
    assert cell is not None and cell.sd is not None
    mean = sum(values) / 3
    assert cell.mean == pytest.approx(mean)
    assert cell.sd == pytest.approx((sum((v - mean) ** 2 for v in values) / 2) ** 0.5)


def test_a_score_is_the_best_epoch_and_a_stopped_trial_never_wins(finished: Path, tmp_path: Path) -> None:
    record = SweepRecord.load(finished)
    assert record.best is not None and record.best.state == "finished"
    assert record.best.objective == max(value for _, value in record.best.curve)
    assert record.best.objective == max(t.objective or 0 for t in record.trials if t.state == "finished")
    stopped = next(trial for trial in record.trials if trial.state == "stopped")
    line = json.loads((stopped.folder / "reports.jsonl").read_text().splitlines()[0])
    line["metrics"]["val/mean_missing/f1_macro"] = 0.99
    folder = factory.make_sweep(tmp_path / "s", trials=12, finals=False)
    (folder / "trials" / stopped.id / "reports.jsonl").write_text(json.dumps(line) + "\n")
    again = SweepRecord.load(folder)
    assert again.ranking[0].id == stopped.id
    assert again.best is not None and again.best.id == record.best.id


def test_different_values_of_final_per_never_share_a_group() -> None:
    values = [
        "/data/bert-a",
        "/data/bert/a",
        "模型甲",
        "模型乙",
        "4",
        4,
        4.0,
        True,
        "True",
        None,
        "None",
        "",
        "-",
        ".",
        "..",
    ]
    values += ["a" * 300, "a" * 299 + "b", "../../x", "a/b", "a b", "é", "e\u0301", [1], ["1"], "[1]", {"rate": 0.5}]
    names = [group_name({"k": value}, ["k"]) for value in values] + [group_name({}, ["k"])]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"\w[\w.-]*", name) and len(name.encode()) <= 255 for name in names)
    assert group_name({"method.name": "cmpt"}, ["method.name"]) == "cmpt"  # what needs no digest has none
    assert group_name({"k": 4}, ["k"]) == "4"
    assert group_name({}, ["k"]) == "None"
    pairs = [("a-b", "c"), ("a", "b-c"), ("a", "1"), ("a", 1), ("a", None)]
    names = [group_name(dict(zip("kl", pair, strict=True)), ["k", "l"]) for pair in pairs]
    names += [group_name({"k": "a"}, ["k", "l"]), group_name({"l": "a"}, ["k", "l"]), group_name({}, ["k", "l"])]
    assert len(set(names)) == len(names)
    assert group_name({"k": "a", "l": 1}, ["k", "l"]) == "a-1"


def test_groups_come_in_the_study_s_order_and_validation_chooses(by_method: Path) -> None:
    record = SweepRecord.load(by_method)
    assert [group.name for group in record.groups] == list(factory.GROUPS)
    assert record.best is not None and record.best_group is not None
    assert record.best_group.name == record.best.params["method.name"]
    assert set(record.to_json()["groups"]) == set(factory.GROUPS)


@pytest.mark.parametrize("damage", ["nothing", "summary", "sweep", "evaluation", "reports"])
def test_a_damaged_folder_is_named(damage: str, tmp_path: Path) -> None:
    folder = factory.make_sweep(tmp_path / "s", trials=2)
    paths = {
        "summary": folder / "summary.json",
        "sweep": folder / "sweep.json",
        "evaluation": folder / "final/best/seed-101/evaluation.json",
        "reports": folder / "trials/0000/reports.jsonl",
    }
    if damage in paths:
        paths[damage].write_text("{broken\n")
    with pytest.raises(UserError) as error:
        SweepRecord.load(folder if damage in paths else tmp_path / "elsewhere")
    assert (paths[damage].name if damage in paths else "elsewhere") in str(error.value)
    if damage == "nothing":
        assert str(folder) in str(error.value)  # a sweep near the mistyped path


def test_tables_say_n_only_where_it_differs(finished: Path, tmp_path: Path) -> None:
    group = SweepRecord.load(finished).best_group
    assert group is not None
    whole = tables.scenario_table(group)
    assert "n" not in whole.columns and "n = 300" in whole.title
    folder = factory.make_sweep(tmp_path / "gaps", trials=1, finals=False)
    factory.make_final(
        folder / "final/best/seed-7", factory.study(), 7, (0.5, 0.6), natural={"image": 0.1, "text": 0.1}
    )
    gappy = SweepRecord.load(folder).best_group
    assert gappy is not None
    table = tables.scenario_table(gappy)
    counts = [row[table.columns.index("n")] for row in table.rows]
    assert table.columns[1] == "n" and len(set(counts)) > 1
    assert not any("±" in text for row in table.rows for text in row)  # one seed has no SD


def test_tables_in_every_notation(by_method: Path) -> None:
    record = SweepRecord.load(by_method)
    table = tables.groups_table(record)
    assert table.columns == ("scenario", "plain", "modality_dropout", "cmpt")
    assert table.to_markdown().count("\n|") == len(table.rows) + 2
    latex = table.to_latex()
    assert r"modality\_dropout" in latex and r"$\pm$" in latex and "±" not in latex and r"(\%)" in latex
    output = io.StringIO()
    Console(file=output, width=200).print(tables.trials_table(record, limit=5).to_rich())
    assert "best 5 of 12" in output.getvalue()
    whole = tables.trials_table(record)
    assert "stopped early" in {row[1] for row in whole.rows}
    assert whole.rows[-1][1] == "failed" or whole.rows[-1][2] != "–"
    read = list(csv.DictReader(io.StringIO(tables.trials_csv(record))))
    assert float(read[0]["objective"]) == record.trials[0].objective
    assert len(list(csv.DictReader(io.StringIO(tables.finals_csv(record))))) == 3 * 7 * 3


def test_words() -> None:
    assert wording.scenario_label("image-100_text-30") == "image 100 %, text 30 %"
    assert wording.scenario_label("missing-audio-text") == "missing audio + text"
    assert wording.scenario_label("missing-rate-70_both") == "missing rate 70 % (both)"
    assert wording.scenario_label("my own") == "my own"
    assert wording.metric_label("non0_f1_weighted") == "Non0 F1 (%)" and wording.metric_label("mae") == "MAE"
    keys = ["method.name", "model.lora.rank", "method.masking.probability", "train.seed", "data.seed"]
    names = ["method", "lora.rank", "masking.probability", "train.seed", "data.seed"]
    assert list(wording.short_names(keys).values()) == names
    assert wording.joined(["a", "b", "c"]) == "a, b and c"


def test_published_numbers_are_those_of_the_papers() -> None:
    def value(source: str, dataset: str, method: str, test: dict[str, float], metric: str = "accuracy") -> list[float]:
        rows = [r for r in published(dataset) if (r.source, r.method, r.metric) == (source, method, metric)]
        return [
            row.value
            for row in rows
            if row.test == test and (source != "CMPT, Table 6" or row.train == {"image": 0.3, "text": 1.0})
        ]

    assert value("CMPT, Table 1", "mm-imdb", "cmpt", {"image": 0.65, "text": 0.65}, "f1_macro") == [54.04]
    assert value("CMPT, Table 2", "Food101", "MLA", {"image": 0.0, "text": 1.0}) == [86.47]
    assert value("CMPT, Table 2", "kinetics_sounds", "cmpt", {"audio": 0.0, "video": 1.0}) == [85.77]
    assert value("CMPT, Table 3", "mmimdb", "cmpt", {"image": 1.0, "text": 1.0}, "f1_micro") == [69.23]
    assert value("CMPT, Table 6", "mmimdb", "cmpt", {"image": 1.0, "text": 0.3}, "f1_macro") == [36.10]
    assert value("MMP, Table 1", "nyudv2", "mmp", {"rgb": 0.0, "depth": 1.0}, "miou") == [41.08]
    assert value("MMP, Table 3", "food101", "mmp", {"image": 0.3, "text": 1.0}) == [87.71]
    assert value("MMP, Table 4", "mosi", "mmp", {"text": 0.0, "vision": 0.0, "audio": 1.0}, "non0_f1_weighted") == [
        53.98
    ]
    # CMPT loses five of the eighteen cells of Table 6 to Kim & Kim.
    grid = [r for r in ROWS if r.source == "CMPT, Table 6"]
    best = {(r.dataset, *r.train.values(), *r.test.values()): r.value for r in grid if r.method == "Kim & Kim"}
    ours = {(r.dataset, *r.train.values(), *r.test.values()): r.value for r in grid if r.method == "cmpt"}
    assert len(ours) == 18 and sum(ours[key] < best[key] for key in ours) == 5


def test_published_numbers_stand_beside_matching_scenarios_only(tmp_path: Path, finished: Path) -> None:
    assert published_table(SweepRecord.load(finished)) is None  # openclipart is in no paper
    folder = factory.make_sweep(tmp_path / "imdb", factory.study(data={"dataset": "mmimdb"}), trials=1)
    table = published_table(SweepRecord.load(folder))
    assert table is not None
    assert {row[:3] for row in table.rows} == {
        ("CMPT, Table 3", "complete", "F1-macro"),
        ("CMPT, Table 3", "complete", "F1-micro"),
    }
    replace(SweepRecord.load(folder).summary, dataset="manifest", published="mmimdb").write(folder)  # a copy
    assert published_table(SweepRecord.load(folder)) == table
    gaps = {"seed": 3, "train": {"available": {"image": 1.0, "text": 0.3}}, "evaluate": factory.EVALUATE}
    folder = factory.make_sweep(tmp_path / "gaps", factory.study(data={"dataset": "mmimdb"}, scenarios=gaps), trials=1)
    table = published_table(SweepRecord.load(folder))
    assert table is not None
    assert table.rows[0][3:5] == ("52.61 ± 0.12", "Kim & Kim 43.21")


def test_importance_is_fanova_s_with_its_spread_and_needs_twenty_finished_trials(tmp_path: Path) -> None:
    folder, made = tmp_path / "ranked", factory.study(train={"epochs": 1}, sweep={"trials": 40, "final": None})
    folder.mkdir()
    (folder / "study.yaml").write_text(made.to_yaml())
    summary_of(made).write(folder)
    random = np.random.default_rng(0)
    for number in range(40):
        params = {"method.align_weight": 10 ** random.uniform(-2, 0), "model.lora.rank": [1, 2, 4, 8][number % 4]}
        params |= {
            "method.masking.probability": random.uniform(0, 0.9),
            "train.optimizer.lr": 10 ** random.uniform(-4, -2),
        }
        trial = TrialFolder(folder / "trials" / f"{number:04d}")
        trial.create({"id": f"{number:04d}", "number": number, "params": params, "seed": 0}, made.to_yaml())
        score = 0.5 + 0.05 * np.log2(params["model.lora.rank"]) + random.normal(0, 0.02)
        trial.append(Report(1, {made.sweep.objectives[0].metric: score}))
        trial.mark_done("finished")
        if number == 18:
            assert importances(SweepRecord.load(folder)) == {}
            assert "19 trials finished" in importance_note(SweepRecord.load(folder))
    found = importances(SweepRecord.load(folder))
    assert set(found) == set(factory.STUDY["search"]) and next(iter(found)) == "model.lora.rank"
    assert sum(importance.share for importance in found.values()) == pytest.approx(1.0)
    rank, others = found["model.lora.rank"], [found[key] for key in list(found)[1:]]
    assert rank.low <= rank.share <= rank.high and rank.share > 0.7
    assert all(rank.low > other.high for other in others)
    assert "40 finished trials" in importance_note(SweepRecord.load(folder))
    assert importance_bars(SweepRecord.load(folder), tmp_path / "bars.png") is not None


def test_without_scikit_learn_importance_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_figures, "HAS_SKLEARN", False)
    record = SweepRecord.load(factory.make_sweep(tmp_path / "s", trials=24))
    assert importances(record) == {} and "needs scikit-learn" in importance_note(record)


class _Page(HTMLParser):
    """Collects what a page refers to and whether its tags close."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href"):
                self.links.append(value or "")
            if name == "id":
                self.ids.add(value or "")
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def checked(index: Path) -> str:
    text = index.read_text()
    page = _Page()
    page.feed(text)
    assert page.open == []
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in page.links)
    assert {link[1:] for link in page.links if link.startswith("#")} <= page.ids
    return text


def test_the_page_of_a_finished_sweep_stands_alone(finished: Path) -> None:
    index = write_report(finished)
    text = checked(index)
    assert {path.stem for path in index.parent.glob("*.png")} == FIGURES
    assert text.count("data:image/png") == len(FIGURES)
    assert re.search(
        r"<h1>With text missing, the best configuration keeps \d+\.\d of its \d+\.\d % F1-macro; with image", text
    )
    assert "stopped early" in text and "method.align_weight" in text and "sqlite:////tmp/mlflow.db" in text
    names = {path.name for path in (index.parent / "tables").iterdir()}
    shown = ("trials", "scenarios", "agreement_1", "agreement_2")
    assert names == {"trials.csv", "scenarios.csv"} | {f"{n}.{kind}" for n in shown for kind in ("md", "tex")}


def test_names_from_users_are_text_everywhere(tmp_path: Path) -> None:
    """Markup, formulas and table borders in values and class names are shown as they are."""
    names = ["<script>alert(1)</script>", "$x_{", "a|b", "_c_ `d` **e**"]
    search = {"model.encoders.text.name": {"choice": names}, "train.optimizer.lr": {"uniform": [1e-4, 1e-2]}}
    search |= {"method.masking.probability": {"uniform": [0.0, 0.9]}}
    made = factory.study(search=search, sweep={"trials": 12, "final": {"seeds": 1, "per": "model.encoders.text.name"}})
    folder = factory.make_sweep(tmp_path / "named", made, finals=False)
    for name in names:
        params = {"model.encoders.text.name": name}
        task = SingleLabel(Target("single_label", (*names, "f", "g", "h")))
        place = folder / "final" / group_name(params, list(params)) / "seed-101"
        factory.make_final(place, made, 101, (0.5, 0.6), task=task, params=params)
    index = write_report(folder)
    text = checked(index)
    assert "<script" not in text and "&lt;script&gt;alert(1)" in text
    rows = tables.Table("t", ("name",), tuple((name,) for name in names)).to_markdown().splitlines()[4:]
    shown = ["&lt;script&gt;alert(1)&lt;/script&gt;", r"$x\_{", r"a\|b", r"\_c\_ \`d\` \*\*e\*\*"]
    assert rows == [f"| {cell} |" for cell in shown]
    assert {path.stem for path in index.parent.glob("*.png")} >= {"per_class", "parallel", "scenarios"}


def test_the_page_of_groups_has_a_leaderboard(by_method: Path) -> None:
    index = write_report(by_method)
    text = checked(index)
    assert "plain − cmpt" in text and "95 % interval" in text
    assert "(best on validation) keeps" in text and "over the missing patterns: cmpt" in text
    assert (index.parent / "tables/differences.md").exists()


@pytest.mark.parametrize("trials", [0, 5])
def test_the_page_of_an_unfinished_sweep_says_so(trials: int, tmp_path: Path) -> None:
    folder = factory.make_sweep(tmp_path / "s", state="running", trials=trials, finals=False)
    text = checked(write_report(folder))
    assert "The sweep is running" in text
    assert ("No trial has reported yet." if trials == 0 else "No test result yet.") in text
    assert "Results on test" not in text


def test_a_sweep_without_final_runs_has_no_test_result_to_come(tmp_path: Path) -> None:
    made = factory.study(sweep={**factory.STUDY["sweep"], "final": None})
    text = checked(write_report(factory.make_sweep(tmp_path / "s", made, finals=False)))
    assert "No test result; the study has no final runs." in text and "Test data was not used;" in text


def test_the_page_of_one_trained_configuration_has_no_search(tmp_path: Path) -> None:
    folder = factory.make_sweep(tmp_path / "s", trials=0)
    about = json.loads((folder / "sweep.json").read_text())
    (folder / "sweep.json").write_text(json.dumps({**about, "trials": 0}))
    text = checked(write_report(folder))
    assert "One configuration, no search." in text and 'id="search"' not in text and "Results on test" in text


def test_the_page_of_a_multi_label_sweep(tmp_path: Path) -> None:
    made = factory.study(data={"dataset": "openclipart", "task": "multi_label"})
    folder = factory.make_sweep(tmp_path / "s", made, trials=1, finals=False)
    task = MultiLabel(Target("multi_label", factory.CLASSES))
    factory.make_final(folder / "final/best/seed-1", made, 1, (0.5, 0.6), task=task, rows=60)
    assert "F1-macro" in checked(write_report(folder))


def test_text_of_others_is_escaped(tmp_path: Path) -> None:
    folder = factory.make_sweep(tmp_path / "s", trials=1, finals=False)
    about = json.loads((folder / "sweep.json").read_text())
    (folder / "sweep.json").write_text(json.dumps({**about, "name": "<script>alert(1)</script>"}))
    assert "<script>" not in checked(write_report(folder))


def test_a_report_that_cannot_be_written_is_one_message(tmp_path: Path) -> None:
    folder = factory.make_sweep(tmp_path / "s", trials=1, finals=False)
    (folder / "report").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written"):
        write_report(folder)
