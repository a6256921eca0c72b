"""Manifests in a temporary folder, read or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmsweep.data.sets.manifest import Manifest
from mmsweep.errors import UserError
from mmsweep.study import Study
from tests.data.files import column, manifest_options, target

COLUMNS = {"image": column("image", "picture"), "text": column("text", "caption")}
KIND = target("single_label", "kind")
BY_COLUMN = {"column": "part"}
HEADER = "picture,caption,kind,part\n"


def read(path: Path, wanted: Any = KIND, split: Any = BY_COLUMN, modalities: Any = COLUMNS, **options: Any) -> Manifest:
    return Manifest(manifest_options(path, modalities, wanted, split, **options))


def written(folder: Path, text: str, name: str = "my.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def refused(path: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        read(path, **options)
    return str(caught.value)


def wrong(data: dict[str, Any]) -> str:
    """What a study with this data is told."""
    network = {"encoders": {"image": {"name": "a"}, "text": {"name": "b"}}}
    with pytest.raises(UserError) as caught:
        Study.parse({"name": "wrong", "data": data, "model": network, "method": {"name": "plain"}})
    return str(caught.value)


def bad_rows(path: Path, **options: Any) -> list[str]:
    return [str(row) for row in read(path, **options).bad_rows]


TEXT = {"text": column("text", "caption")}
GOOD = [{"caption": f"word {i}", "kind": "ab"[i % 2], "part": ("train", "val", "test")[i // 2 % 3]} for i in range(12)]
