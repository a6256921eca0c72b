"""How far predictions move when a modality is replaced: by hand, and on the page."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from mmsweep.availability import pattern_rows
from mmsweep.errors import UserError
from mmsweep.readers.report.agreement import EVERY_ROW, agreement, agreement_tables
from mmsweep.readers.report.bootstrap import Predicted
from mmsweep.readers.report.page import write_report
from mmsweep.record.sweep import SweepRecord
from tests.unit import report_factory as factory

MODALITIES = ("image", "text", "audio")


def scores(C: int, N: int = 4) -> np.ndarray:
    """[P, N, C], all patterns as the complete one."""
    whole_NC = np.random.default_rng(0).random((N, C))
    return np.repeat(whole_NC[None], len(pattern_rows(MODALITIES)), 0)


def test_by_hand() -> None:
    scores_PNC = scores(2)
    without_text = pattern_rows(MODALITIES).tolist().index([True, False, True])
    scores_PNC[0] = [[1.0, 0.0], [0.6, 0.8], [1.0, 0.0], [0.0, 1.0]]
    for place in range(1, len(scores_PNC)):
        scores_PNC[place] = scores_PNC[0]
    scores_PNC[without_text] = [[0.0, 1.0], [0.6, 0.8], [0.8, 0.6], [0.0, 5.0]]
    natural_NM = np.ones((4, 3), bool)
    natural_NM[3, 1] = False  # never had a text: not a row to compare on
    found = agreement(Predicted(scores_PNC, np.array([0, 1, 0, 1]), natural_NM, tuple("abcd")), MODALITIES, ("x", "y"))
    assert found["text", EVERY_ROW].cosine == pytest.approx((0 + 1 + 0.8) / 3)
    assert found["text", EVERY_ROW].mse == pytest.approx((1 + 0 + (0.2**2 + 0.6**2) / 2) / 3)
    assert (found["text", "x"].cosine, found["text", "x"].count) == (pytest.approx(0.4), 2)
    assert (found["text", "y"].cosine, found["text", "y"].count) == (pytest.approx(1.0), 1)
    for modality in ("image", "audio"):
        assert found[modality, EVERY_ROW].cosine == pytest.approx(1.0) and found[modality, EVERY_ROW].mse == 0.0


def test_several_labels_and_a_class_without_rows() -> None:
    targets = np.array([[1, 0, 1], [0, 0, 1], [1, 0, 0], [0, 0, 1]])
    found = agreement(Predicted(scores(3), targets, np.ones((4, 3), bool), tuple("abcd")), MODALITIES, ("x", "y", "z"))
    assert found["image", "x"].count == 2 and found["image", "z"].count == 3 and ("image", "y") not in found


def test_a_number_has_no_direction() -> None:
    scores_PNC = scores(1)
    scores_PNC[1:] += 0.5
    found = agreement(Predicted(scores_PNC, np.zeros(4), np.ones((4, 3), bool), tuple("abcd")), MODALITIES)
    assert set(found) == {(m, EVERY_ROW) for m in MODALITIES}
    assert all(math.isnan(part.cosine) and part.mse == pytest.approx(0.25) for part in found.values())


def test_on_the_page(tmp_path: Path) -> None:
    folder = factory.make_sweep(tmp_path / "demo", factory.per_method())
    record = SweepRecord.load(folder)
    overall, by_class = agreement_tables(record)
    groups = [group.name for group in record.groups]
    assert [row[:2] for row in overall.rows] == [(g, m) for g in groups for m in ("image", "text")]
    assert all(0 < float(row[2]) <= 1 and float(row[3]) > 0 for row in overall.rows)
    evaluation = record.groups[0].first()
    assert evaluation is not None and {row[0] for row in by_class.rows} <= set(evaluation.classes)
    page = write_report(folder).read_text(encoding="utf-8")
    assert 'id="agreement"' in page and overall.title in page and by_class.title in page
    for path in folder.rglob("predictions.npz"):
        path.unlink()
    assert agreement_tables(record) == []


def test_stand_ins_on_the_page(tmp_path: Path) -> None:
    """Seeds are averaged, rows of a class picked, and rows without something left out."""
    folder = factory.make_sweep(tmp_path / "demo", factory.per_method())
    record = SweepRecord.load(folder)
    group = record.best_group
    assert group is not None and len(group.runs) > 1
    for number, run in enumerate(group.runs):
        with np.load(Path(run.folder) / "predictions.npz") as file:
            natural_NM, targets = file["natural_NM"], file["targets"]
        values_MN = np.where(natural_NM.all(1), 0.25 + 0.5 * (targets == 0) + 0.1 * number, np.nan)
        both_MN = np.stack([values_MN, values_MN / 2])
        np.savez(Path(run.folder) / "stand_ins.npz", cosine_MN=both_MN, mse_MN=both_MN**2)
    overall, by_class = agreement_tables(record)[2:]
    assert {row[0] for row in overall.rows} == {group.name} and [row[1] for row in overall.rows] == ["image", "text"]
    evaluation = group.first()
    assert evaluation is not None
    expected = 0.75 + 0.1 * (len(group.runs) - 1) / 2
    first = next(row for row in by_class.rows if row[0] == evaluation.classes[0])
    assert float(first[1]) == pytest.approx(expected, abs=1e-3)
    assert float(first[2]) == pytest.approx(expected / 2, abs=1e-3)
    page = write_report(folder)
    assert overall.title in page.read_text(encoding="utf-8")
    assert (page.parent / "tables" / "agreement_3.md").read_text(encoding="utf-8") == overall.to_markdown()
    (Path(group.runs[0].folder) / "stand_ins.npz").write_bytes(b"no")
    with pytest.raises(UserError, match=r"stand_ins\.npz"):
        agreement_tables(record)
