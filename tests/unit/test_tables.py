"""Tables: numbers and categories of a manifest as one modality, from the file to a trained run."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmsweep.assembly.build import card_of, make_builder, make_method, prepare_data
from mmsweep.assembly.checks import check_sweep
from mmsweep.assembly.host import Warm, evaluate_run
from mmsweep.assembly.plan import dry_run
from mmsweep.data.check import check
from mmsweep.data.kinds.table import EMPTY, UNKNOWN, CategoricalColumn, NumericColumn, TableFormat, learn
from mmsweep.data.prepared import prepare
from mmsweep.data.prepared_split import PreparedSplit
from mmsweep.data.sets.manifest import Manifest
from mmsweep.errors import UserError
from mmsweep.models.encoder import LEARNED
from mmsweep.models.lora import SeededDropout
from mmsweep.record.trial import TrialFolder
from mmsweep.study import Study
from mmsweep.study.packs import Job
from mmsweep.training.checkpoint import load_checkpoint
from mmsweep.training.world import World
from tests.data.files import column, manifest_options, target

VITALS = {"kind": "table", "numeric": ["age", "bp"], "categorical": ["ward"]}
BLOOD = {"kind": "table", "numeric": ["iron"]}
KIND = target("single_label", "kind")
WARDS = ["A", "b", "10", "9", ""]


def rows() -> list[dict[str, Any]]:
    """30 rows, 18 of them training; every fifth has no ward, row 4 no bp either, row 6 nothing of all three."""
    found = []
    for i in range(30):
        row = {"age": 40 + i % 7, "bp": f"{i}.5", "ward": WARDS[i % 5], "iron": math.sin(i), "kind": "xy"[i % 2]}
        row |= {"note": "abc"[: 1 + i % 3], "part": "train" if i < 18 else "val" if i < 24 else "test"}
        found.append(row)
    found[4]["bp"] = ""
    found[6] |= {"age": "", "bp": " ", "ward": ""}
    found[20]["ward"] = "new"
    return found


def written(folder: Path, cells: list[dict[str, Any]] | None = None) -> Path:
    cells = rows() if cells is None else cells
    path = folder / "my.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, cells[0])
        writer.writeheader()
        writer.writerows(cells)
    return path


def read(path: Path, vitals: Any = VITALS, **options: Any) -> Manifest:
    return Manifest(manifest_options(path, {"vitals": vitals, "blood": BLOOD}, KIND, {"column": "part"}, **options))


def prepared(path: Path, **options: Any) -> PreparedSplit:
    builder = read(path)
    return prepare(builder, builder.formats, path.parent / "cache", **options).splits["train"]


def numbers_of(cells: list[dict[str, Any]], name: str) -> np.ndarray:
    return np.array([float(row[name]) for row in cells[:18] if str(row[name]).strip()])


# ---- what is read and learned


def test_a_format_is_learned_from_the_training_rows_alone(tmp_path: Path) -> None:
    cells = rows()
    for row in cells[18:]:
        row["age"] = 1e6
    vitals = read(written(tmp_path, cells)).formats["vitals"]
    assert isinstance(vitals, TableFormat) and vitals == read(written(tmp_path)).formats["vitals"]
    age, bp = (numbers_of(cells, name) for name in ("age", "bp"))
    assert [column.name for column in vitals.numeric] == ["age", "bp"]
    np.testing.assert_allclose([column.mean for column in vitals.numeric], [age.mean(), bp.mean()], rtol=1e-14)
    np.testing.assert_allclose([column.deviation for column in vitals.numeric], [age.std(), bp.std()], rtol=1e-14)
    assert vitals.categorical == (CategoricalColumn("ward", ("9", "10", "A", "b")),)  # "new" stands in val alone


def test_neither_the_order_of_rows_nor_the_machine_changes_a_mean() -> None:
    values = [(x,) for x in (1e16, 1.0, -1e16, 3.0, 0.1)]
    assert learn(["x"], [], values) == learn(["x"], [], values[::-1])
    assert learn(["x"], [], values).numeric[0].mean == 4.1 / 5


def test_batches_hold_numbers_gaps_and_codes(tmp_path: Path) -> None:
    path = written(tmp_path)
    vitals = read(path).formats["vitals"]
    assert isinstance(vitals, TableFormat) and vitals.shape == (5,)
    batch = prepared(path).batch(np.arange(18))
    x = batch.inputs["vitals"]
    assert isinstance(x, torch.Tensor) and x.dtype == torch.float32
    age, bp = vitals.numeric
    assert (
        x[0].tolist() == np.float32([(40 - age.mean) / age.deviation, (0.5 - bp.mean) / bp.deviation, 1, 1, 4]).tolist()
    )
    assert x[4, 1:].tolist() == [0, 1, 0, EMPTY]  # bp and ward are empty
    assert batch.present_BM[:, 0].tolist() == [i != 6 for i in range(18)] and batch.present_BM[:, 1].all()
    standard = x[batch.present_BM[:, 0], 0].double()
    assert abs(standard.mean()) < 1e-6 and abs(standard.std(correction=0) - 1) < 1e-6
    val = prepare(read(path), read(path).formats, tmp_path / "cache").splits["val"]
    assert val.batch(np.array([2])).inputs["vitals"][0, 4] == UNKNOWN


@pytest.mark.parametrize("fill", ["zeros", "ones", "mean", "black", "nan"])
def test_an_absent_table_is_the_empty_row_whatever_the_fill(tmp_path: Path, fill: str) -> None:
    split = prepared(written(tmp_path), fill={"vitals": fill})
    present = np.ones((18, 2), bool)
    present[::3, 0] = False
    x, whole = (split.batch(np.arange(18), present=p).inputs["vitals"] for p in (present, None))
    assert isinstance(x, torch.Tensor) and isinstance(whole, torch.Tensor)
    absent = torch.tensor([i % 3 == 0 or i == 6 for i in range(18)])
    assert x[absent].isnan().all() if fill == "nan" else (x[absent] == 0).all()
    assert torch.equal(x[~absent], whole[~absent])


def test_what_was_learned_is_in_the_name_and_the_record_of_prepared_data(tmp_path: Path) -> None:
    path = written(tmp_path)
    first = prepared(path)
    key = json.loads((first.folder / "prepared.json").read_text())["formats"]["vitals"]
    assert (
        TableFormat.of_key(key)
        == read(path).formats["vitals"]
        == TableFormat.restored(first.formats["vitals"].stored())
    )
    cells = rows()
    cells[0]["age"] = 99
    assert prepared(written(tmp_path, cells)).folder != first.folder


def test_a_column_that_only_its_gaps_tell_apart_is_no_constant() -> None:
    found = learn(["x"], ["c"], [(2.0, "a"), (None, None), (2.0, "a")])
    assert found.numeric == (NumericColumn("x", 2.0, 1.0),) and found.values((2.0, None)).tolist() == [0, 1, EMPTY]


# ---- bad input


@pytest.mark.parametrize(
    ("name", "cell", "reason"),
    [
        ("age", "old", "age: the cell is not a number; found 'old'"),
        ("age", "inf", "age: the cell must be a finite number; found 'inf'"),
        ("bp", "nan", "bp: the cell must be a finite number; found 'nan'"),
        ("bp", "1_000", "bp: the cell is not a number; found '1_000'"),
    ],
)
def test_a_cell_that_is_no_number_makes_its_row_a_bad_one(tmp_path: Path, name: str, cell: str, reason: str) -> None:
    cells = rows()
    cells[2][name] = cell
    assert [str(row) for row in read(written(tmp_path, cells)).bad_rows] == [f"my.csv:4: {reason}"]


def test_a_number_that_overflows_is_named_with_its_row(tmp_path: Path) -> None:
    cells = rows()
    cells[25]["bp"] = 1e300
    with pytest.raises(UserError, match=r"my.csv:27: vitals: bp: 1e\+300 is too far from the training rows' mean, 9"):
        prepared(written(tmp_path, cells))


@pytest.mark.parametrize(
    ("name", "cell", "message"),
    [
        (
            "age",
            5,
            r"my.csv: data.modalities.vitals.numeric: this column is constant: every training row .*found 'age'",
        ),
        ("ward", "A", r"vitals.categorical: this column is constant: every training row has 'A' there; found 'ward'"),
        ("bp", "", r"vitals.numeric: no training row has a value in this column; found 'bp'"),
        ("bp", None, r"vitals.numeric: the numbers of this column are too large or too close .*'bp'"),
    ],
)
def test_columns_that_say_nothing_are_refused(tmp_path: Path, name: str, cell: Any, message: str) -> None:
    cells = rows()
    for i, row in enumerate(cells[:18]):
        row[name] = 1e300 * (-1) ** i if cell is None else cell
    cells[6] = cells[5]
    with pytest.raises(UserError, match=message) as caught:
        read(written(tmp_path, cells))
    assert "\n" not in str(caught.value)


def test_bad_rows_are_told_before_what_follows_from_them(tmp_path: Path) -> None:
    cells = rows()
    for row in cells[:17]:
        row["age"] = "old"
    with pytest.raises(UserError, match=r"(?s)17 rows cannot be used:\n  my.csv:2: age.*Without them this column is"):
        read(written(tmp_path, cells))


@pytest.mark.parametrize(
    ("vitals", "more", "message"),
    [
        ({"numeric": ["age", "age"]}, {}, r"vitals.numeric: a column is named twice; found 'age'"),
        ({"numeric": ["age"], "categorical": ["age"]}, {}, r"vitals.numeric: a column is named twice; found 'age'"),
        ({"numeric": ["age", "iron"]}, {}, r"blood.numeric: a column of a table is also one of data.modalities.vitals"),
        ({"categorical": ["kind"]}, {}, r"vitals.categorical: the target's column is also an input; found 'kind'"),
        ({"categorical": ["part"]}, {}, r"vitals.categorical: a column of a table is also the column of data.split"),
        ({"numeric": ["age"]}, {"id": "age"}, r"vitals.numeric: a column of a table is also the column of data.id"),
        ({}, {}, r"vitals.numeric: a table needs columns; found \[\]; expected names of columns"),
        ({"numeric": ["agee"]}, {}, r"data.modalities.vitals.numeric: .*no such column; found 'agee'.*mean 'age'\?"),
    ],
)
def test_wrong_columns_are_one_message(tmp_path: Path, vitals: Any, more: Any, message: str) -> None:
    path = written(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        study = Study.parse(values(path, {"kind": "table", **vitals}))
        if more:
            study = study.with_values({"data.id": {"column": more["id"]}})
        make_builder(study)
    assert "\n" not in str(caught.value)


def test_the_columns_of_other_kinds_are_no_columns_of_a_table(tmp_path: Path) -> None:
    for wrong in ({**VITALS, "column": "age"}, column("text", "note", numeric=["age"])):
        with pytest.raises(UserError, match=r"data.modalities.vitals.(column|numeric): unknown key"):
            Study.parse(values(written(tmp_path), wrong))


# ---- the study and its network


def values(path: Path, vitals: Any = VITALS, method: str = "cmpt", **sizes: Any) -> dict[str, Any]:
    sizes = {"width": 8, "heads": 2, "layers": 2, **sizes}
    encoder = {"source": "scratch", "name": "ft_transformer", "sizes": sizes}
    return {
        "name": "tables",
        "data": {
            "dataset": "manifest", "path": str(path), "modalities": {"vitals": vitals, "blood": BLOOD},
            "target": KIND, "split": {"column": "part"},
        },
        "model": {"encoders": {"vitals": encoder, "blood": {**encoder, "sizes": {**sizes, "width": 6}}}},
        "method": {"name": method},
        "train": {"epochs": 2, "batch_size": 6, "optimizer": {"lr": 0.01}},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vitals.sizes": {"width": 7, "heads": 2}}, r"vitals.sizes: 2 heads cannot share a width of 7"),
        ({"vitals.sizes": {"hidden": 0.001}}, r"vitals.sizes.hidden: too narrow a feed-forward part"),
        ({"vitals.trainable": False}, r"vitals.trainable: a frozen network with initial values"),
        (
            {"vitals.name": "mlp"},
            r"vitals.name: no such network of mmsweep's own; found 'mlp'; expected ft_transformer",
        ),
        ({"vitals.source": "mmsweep"}, r"vitals.sizes: a checkpoint has sizes of its own"),
        ({"vitals.layers": 3}, r"vitals.layers: the encoder has fewer layers; found 3; expected at most 2"),
        ({"vitals.train_layernorm": True}, r"vitals.train_layernorm: this option has no effect"),
    ],
)
def test_wrong_encoders_are_one_message(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        study = Study.parse(values(written(tmp_path)))
        check_sweep(study.with_values({f"model.encoders.{key}": value for key, value in change.items()}))
    assert "\n" not in str(caught.value)


def test_other_networks_say_that_they_read_no_tables(tmp_path: Path, encoder_folders: dict[str, str]) -> None:
    study = Study.parse(values(written(tmp_path)))
    with pytest.raises(UserError, match=r"vitals.name: this network reads image, and the modality is table"):
        check_sweep(study.with_values({"model.encoders.vitals": {"name": encoder_folders["vit"]}}))
    note = {"data.modalities.vitals": column("text", "note")}
    with pytest.raises(UserError, match=r"vitals.name: this network reads table, and the modality is text"):
        check_sweep(study.with_values(note))
    with pytest.raises(UserError, match="MulT reads only sequences"):
        check_sweep(
            study.with_values({"model.encoders": {}, "model.backbone": {"name": "mult"}, "method.name": "plain"})
        )


def test_a_dry_run_knows_the_table_s_tokens_and_parameters(tmp_path: Path) -> None:
    plan = dry_run(Study.parse(values(written(tmp_path), method="plain")))
    assert plan["tokens"] == {"vitals": 4, "blood": 2} and plan["missing"] == []
    d, hidden, codes = 8, 10, 2 + 4
    block = 4 * (d * d + d) + 2 * d + (2 * hidden * d + 2 * hidden) + (hidden * d + d)
    assert plan["parameters"]["by_part"]["encoder vitals"] == d + (2 + 2 + codes + 3) * d + 2 * block + 2 * d + 2 * d
    assert plan["parameters"]["trainable"] == plan["parameters"]["total"]


def test_a_fresh_network_is_drawn_from_the_trial_s_seed(tmp_path: Path) -> None:
    study = Study.parse(values(written(tmp_path)))
    backbone = Warm("cpu", World()).ready(study)[1]
    networks = []
    for seed in (3, 3, 4):
        torch.manual_seed(len(networks))
        method = make_method(study.with_values({"train.seed": seed}), backbone)
        networks.append({n: p for n, p in method.named_parameters() if ".vitals." in n})
        tokenizer = method.get_submodule("backbone.encoders.vitals.network.tokenizer")
        drops = [m for m in method.modules() if isinstance(m, SeededDropout)]
        assert drops and all(m.noise is method.noise for m in drops)
        assert (tokenizer.empty == 0).all() and (tokenizer.category[[EMPTY, UNKNOWN]] == 0).all()
        assert (tokenizer.category[2:] != 0).all() and (tokenizer.number != 0).all()
    assert all(torch.equal(networks[0][n], networks[1][n]) for n in networks[0])
    assert any(not torch.equal(networks[0][n], networks[2][n]) for n in networks[0])


def run(study: Study, path: Path) -> TrialFolder:
    folder = TrialFolder(path)
    folder.create({"id": "0", "params": {}}, study.to_yaml())
    Warm("cpu", World()).run(Job("0", "final", str(path), study), lambda report: False)
    return folder


def test_a_run_on_tables_trains_is_checked_and_evaluated(tmp_path: Path) -> None:
    path = written(tmp_path)
    study = Study.parse(values(path)).with_values({"train.compile": "off"})
    findings = check(make_builder(study)).lines
    assert "vitals: numbers age, bp; categories ward (4)" in findings and "blood: numbers iron" in findings
    assert "vitals: train: empty cells in rows that have others: bp 1, ward 3" in findings
    assert "warning: vitals: val: ward is a category that no training row has in 1 of 6 rows: 'new'" in findings
    assert card_of(study).formats == prepare_data(study).splits["train"].formats
    folder = run(study, tmp_path / "run")
    assert folder.done() == {"state": "finished", "error": None}
    again = run(study, tmp_path / "again")
    assert [r.metrics for r in again.reports()] == [r.metrics for r in folder.reports()]
    record = evaluate_run(folder.path, "test", "cpu")
    assert record["scenarios"]["complete"]["rows"] == 6
    weights = load_checkpoint(folder.last_checkpoint())[0]
    stored = weights[f"backbone.encoders.vitals.network.{LEARNED}"]
    assert TableFormat.restored(stored) == make_builder(study).formats["vitals"]  # what new rows are read with
    cells = rows()
    cells[0]["age"] = 99
    written(tmp_path, cells)
    with pytest.raises(UserError, match=r"vitals: these weights were trained on other training rows.*found 'age'"):
        evaluate_run(folder.path, "test", "cpu")
    started = study.with_values({"train.init_from": str(folder.path)})
    with pytest.raises(UserError, match=r"vitals: these weights were trained on other training rows.*found 'age'"):
        Warm("cpu", World()).slot(started, TrialFolder(tmp_path / "second"))
    written(tmp_path)
    Warm("cpu", World()).slot(started, TrialFolder(tmp_path / "second"))
