"""Open Clip Art: exact counts, nothing crosses the splits; the shipped encoders load offline and know something."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoTokenizer

from mmsweep.data.options import DATASETS
from mmsweep.data.sets.openclipart import ARCHIVE, CLASSES, EXPECTED, OpenClipart
from mmsweep.errors import UserError

EXPECTED_ROWS = {"train": 1229, "val": 246, "test": 419, "dropped": 318}
ENCODERS = ARCHIVE.parent / "encoders"


def records() -> list[dict]:
    with zipfile.ZipFile(ARCHIVE) as archive:
        return [json.loads(line) for line in archive.read("records.jsonl").decode().splitlines()]


def words(text: str) -> str:
    return " ".join(re.findall(r"[^\W\d_]+", text.casefold())) or text


def openclipart(task: str | None = None) -> OpenClipart:
    return OpenClipart(DATASETS.options("openclipart", task=task))


@pytest.mark.parametrize("task", ["single_label", "multi_label"])
def test_counts_and_classes(task: str) -> None:
    builder = openclipart(task)
    splits = builder.splits()
    assert {name: len(samples) for name, samples in splits.items()} == EXPECTED[task] == dict(builder.rows)
    assert list(builder.target.classes) == sorted(builder.target.classes)
    assert len(builder.target.classes) == {"single_label": 10, "multi_label": 32}[task]
    found = Counter()
    for samples in splits.values():
        for sample in samples:
            found.update([sample.target] if task == "single_label" else sample.target)
    assert set(found) == set(CLASSES[task])


def test_the_whole_archive() -> None:
    rows = records()
    assert len(rows) == len({row["id"] for row in rows}) == 2212
    assert Counter(row["split"] for row in rows) == EXPECTED_ROWS
    assert set(rows[0]) == {"id", "file", "text", "single", "multi", "family", "creator", "title", "split"}
    assert all(row["text"] for row in rows)


def test_no_family_and_no_text_crosses_splits() -> None:
    for key in ("family", "text"):
        home: dict[str, set[str]] = {}
        for row in records():
            if row["split"] != "dropped":
                home.setdefault(words(row["text"]) if key == "text" else row["family"], set()).add(row["split"])
        assert [value for value, splits in home.items() if len(splits) > 1] == []


def test_no_near_identical_picture_stands_in_two_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "scripts"))
    from build_openclipart import NEAR_IDENTICAL, outlines

    pixels: dict[str, list[np.ndarray]] = {"train": [], "val": [], "test": []}
    with zipfile.ZipFile(ARCHIVE) as archive:
        for row in records():
            if row["split"] in pixels:
                pixels[row["split"]].append(
                    np.asarray(Image.open(io.BytesIO(archive.read(row["file"]))).convert("RGB"))
                )
    features = {name: outlines(np.stack(pictures)) for name, pictures in pixels.items()}
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        assert (features[one] @ features[other].T).max() < NEAR_IDENTICAL


def test_a_picture_decodes_and_says_where_it_is_from() -> None:
    sample = openclipart().splits()["train"][0]
    assert Image.open(io.BytesIO(sample.values["image"])).size == (96, 96)
    assert re.fullmatch(r"openclipart\.zip/records\.jsonl:\d+", sample.origin)


def test_wrong_task_and_damaged_archive_are_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="task"):
        openclipart("regression")
    with pytest.raises(UserError, match=r"absent\.zip"):
        absent = openclipart()
        absent.archive = tmp_path / "absent.zip"
        absent.splits()
    broken = tmp_path / "broken.zip"
    broken.write_bytes(ARCHIVE.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"broken\.zip"):
        damaged = openclipart()
        damaged.archive = broken
        damaged.splits()


def test_shipped_encoders_load_and_fit_together() -> None:
    image = AutoModel.from_pretrained(ENCODERS / "clipart_image", add_pooling_layer=False, local_files_only=True)
    text = AutoModel.from_pretrained(ENCODERS / "clipart_text", add_pooling_layer=False, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(ENCODERS / "clipart_text", local_files_only=True)
    for model in (image, text):
        assert sum(p.numel() for p in model.parameters()) <= 3_000_000
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert all(torch.isfinite(p).all() for p in model.parameters())
    assert image.config.hidden_size == text.config.hidden_size
    assert image.embeddings.position_embeddings.shape[1] == 37
    assert len(tokenizer) == text.config.vocab_size
    for sample in openclipart().splits()["train"][:200]:
        assert tokenizer.unk_token_id not in tokenizer(sample.values["text"])["input_ids"]
    tokens = image(torch.zeros(2, 3, 96, 96)).last_hidden_state
    assert tokens.shape == (2, 37, image.config.hidden_size)


def test_shipped_encoders_are_not_random() -> None:
    """Texts of one meaning are closer than texts of two, in words that share no letters' sequence."""
    text = AutoModel.from_pretrained(ENCODERS / "clipart_text", add_pooling_layer=False, local_files_only=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(ENCODERS / "clipart_text", local_files_only=True)
    batch = tokenizer(["dog", "cat", "lemon", "cherry"], padding=True, return_tensors="pt")
    with torch.no_grad():
        class_BD = text(**batch).last_hidden_state[:, 0]
    class_BD = torch.nn.functional.normalize(class_BD - class_BD.mean(0), dim=1)
    alike_BB = class_BD @ class_BD.T
    assert alike_BB[0, 1] > alike_BB[0, 2] and alike_BB[2, 3] > alike_BB[1, 3]


def test_assets_stay_small() -> None:
    assert sum(path.stat().st_size for path in ARCHIVE.parent.rglob("*") if path.is_file()) <= 20_000_000
