"""Folders with a row per sample: `datasets.save_to_disk` and WebDataset's tar files, through a manifest's columns."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pytest

from mmsweep.data.check import check
from mmsweep.data.dataset import DatasetBuilder
from mmsweep.data.kinds.image import ImageFormat
from mmsweep.data.kinds.text import TextFormat
from mmsweep.data.options import DATASETS
from mmsweep.data.prepared import prepare
from mmsweep.data.table_folders import folder_rows
from mmsweep.errors import UserError
from tests.data.files import write_picture, write_tokenizer

KINDS = ("cat", "dog")


def picture(folder: Path, row: int) -> bytes:
    return write_picture(folder / f"{row}.png", "red", seed=row).read_bytes()


def save_dataset(folder: Path, rows: Sequence[Mapping[str, Any]], **state: Any) -> Path:
    """As Dataset.save_to_disk of `datasets` 4 writes it: two Arrow streams, their list, and the features."""
    folder.mkdir(parents=True)
    names = [f"data-0000{i}-of-00002.arrow" for i in range(2)]
    for name, part in zip(names, (rows[: len(rows) // 2], rows[len(rows) // 2 :]), strict=True):
        table = pyarrow.Table.from_pylist(list(part))
        with pyarrow.OSFile(str(folder / name), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": n} for n in names], **state}))
    features = {"kind": {"names": list(KINDS), "_type": "ClassLabel"}, "caption": {"dtype": "string", "_type": "Value"}}
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
    return folder


def write_tar(path: Path, samples: Mapping[str, Mapping[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for key, parts in samples.items():
            for extension, content in parts.items():
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def manifest(path: Path, image: str, text: str, target: str) -> DatasetBuilder:
    options = DATASETS.options(
        "manifest", path=str(path),
        modalities={"image": {"kind": "image", "column": image}, "text": {"kind": "text", "column": text}},
        target={"task": "single_label", "column": target}, split={"column": "split"},
    )  # fmt: skip
    builder: DatasetBuilder = DATASETS["manifest"](options)
    return builder


def test_a_saved_dataset_is_read_with_its_splits_and_class_names(tmp_path: Path) -> None:
    root = tmp_path / "saved"
    for name in ("train", "validation", "test"):
        rows = [{"image": {"bytes": picture(tmp_path / name, i), "path": None}, "caption": f"{name} {i}", "kind": i % 2}
                for i in range(6)]  # fmt: skip
        save_dataset(root / name, rows)
    (root / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "validation", "test"]}))
    builder = manifest(root, "image", "caption", "kind")
    splits = builder.splits()
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 6, "val": 6, "test": 6}
    assert builder.target.classes == KINDS and splits["val"][1].target == "dog"
    assert splits["val"][1].values["text"] == "validation 1" and check(builder).usable


def test_an_indices_mapping_is_refused(tmp_path: Path) -> None:
    folder = save_dataset(tmp_path / "a", [{"kind": 0}, {"kind": 1}], _indices_data_files=[{"filename": "i.arrow"}])
    with pytest.raises(UserError, match=r"indices mapping.*flatten_indices"):
        list(folder_rows(folder))
    save_dataset(tmp_path / "b", [{"kind": 0}, {"kind": 1}])
    (tmp_path / "b" / "data-00001-of-00002.arrow").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"data-00001-of-00002\.arrow: the file cannot be read"):
        list(folder_rows(tmp_path / "b"))


def test_tar_files_of_webdataset_are_prepared_as_loose_files_are(tmp_path: Path) -> None:
    pictures = {i: picture(tmp_path / "loose", i) for i in range(12)}
    for number, split in enumerate(("train", "val", "test")):
        rows = range(4 * number, 4 * number + 4)
        samples = {
            f"part/{i:04d}": {
                "png": pictures[i],
                "json": json.dumps({"caption": f"a {i}", "kind": KINDS[i % 2]}).encode(),
                "seg.txt": b"whatever",
            }
            for i in rows
        }
        write_tar(tmp_path / "shards" / f"{split}-00000{number}.tar", samples)
    builder = manifest(tmp_path / "shards", "png", "caption", "kind")
    formats = {"image": ImageFormat(8), "text": TextFormat(write_tokenizer(tmp_path / "tokenizer"), 8)}
    data = prepare(builder, formats, tmp_path / "cache")
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 4, "val": 4, "test": 4}
    rows = [f"{i}.png,a {i},{KINDS[i % 2]},{('train', 'val', 'test')[i // 4]}" for i in range(12)]
    (tmp_path / "loose" / "my.csv").write_text("\n".join(["image,caption,kind,split", *rows]) + "\n")
    loose = prepare(manifest(tmp_path / "loose" / "my.csv", "image", "caption", "kind"), formats, tmp_path / "cache")
    for name, split in data.splits.items():
        assert (split.column("image") == loose.splits[name].column("image")).all()
        assert (split.targets == loose.splits[name].targets).all()


def test_a_sample_with_two_values_of_a_column_and_a_folder_of_neither_are_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "a" / "train-0.tar", {"0": {"txt": b"one", "json": b'{"txt": "two"}'}})
    with pytest.raises(UserError, match="the sample 0 has two values of txt"):
        list(folder_rows(tmp_path / "a"))
    write_tar(tmp_path / "b" / "x.tar", {"0": {"json": b"{broken"}})
    with pytest.raises(UserError, match=r"x\.tar: a member cannot be read"):
        list(folder_rows(tmp_path / "b"))
    with tarfile.open(tmp_path / "apart.tar", "w") as archive:
        for name in ("0.txt", "1.txt", "0.cls"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    (tmp_path / "d").mkdir()
    (tmp_path / "apart.tar").rename(tmp_path / "d" / "apart.tar")
    with pytest.raises(UserError, match=r"apart\.tar: the members of a sample are not next to each other.*0\.cls"):
        list(folder_rows(tmp_path / "d"))
    (tmp_path / "c").mkdir()
    with pytest.raises(UserError, match="the folder holds no rows"):
        list(folder_rows(tmp_path / "c"))
