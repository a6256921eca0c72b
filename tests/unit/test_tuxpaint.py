"""Tux Paint's stamps: what becomes a row, which rows stand together, and what is said where the package is absent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmsweep.data.check import check, named_builder
from mmsweep.data.dataset import Sample
from mmsweep.data.files import Undecodable
from mmsweep.data.kinds.audio import AudioFormat
from mmsweep.data.kinds.image import ImageFormat, decode_image
from mmsweep.data.kinds.kind import Format
from mmsweep.data.kinds.text import TextFormat
from mmsweep.data.options import DATASETS
from mmsweep.data.prepared import prepare
from mmsweep.data.sets import tuxpaint as stamps
from mmsweep.data.sets.tuxpaint import CLASSES, EXPECTED, TuxPaint, plain_name
from mmsweep.data.splitting import carve_by_class
from mmsweep.errors import UserError
from tests.data.files import write_tokenizer
from tests.data.stamps import write_stamps


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stamps(tmp_path_factory.mktemp("package"))


def tuxpaint(root: Path | None = None, language: str | None = None, split_seed: int = 0) -> TuxPaint:
    given = {"root": root and str(root), "audio": {"language": language}, "split_seed": split_seed}
    return TuxPaint(DATASETS.options("tuxpaint", **given))


def rows(builder: TuxPaint) -> list[Sample]:
    return [sample for part in builder.splits().values() for sample in part]


def test_a_row_is_a_stamp_with_its_name_and_speech(root: Path) -> None:
    found = {sample.id: sample for sample in rows(tuxpaint(root, split_seed=1))}
    assert len(found) == 8 * len(CLASSES)  # neither mirrored copies nor pictures without a name
    sample = found["animals/kind/stamp-3"]
    assert sample.target == "animals" and sample.values["text"] == "A animals, number 3."
    assert Path(sample.values["image"]).name == "stamp-3.png"
    assert Path(sample.values["audio"]).name == "stamp-3_desc_fr.wav"
    assert found["animals/kind/stamp-5"].values["audio"] is None


@pytest.mark.parametrize("place", ["", "usr/share/tuxpaint/stamps"])
def test_the_unpacked_package_or_its_folder_of_stamps(root: Path, place: str) -> None:
    assert len(rows(tuxpaint(root / place, split_seed=1))) == 8 * len(CLASSES)


def test_every_language_is_a_row_of_its_own(root: Path) -> None:
    found = rows(tuxpaint(root, "all", split_seed=1))
    ids = [sample.id for sample in found]
    assert len(set(ids)) == len(ids) == 9 * len(CLASSES)
    assert {"town/kind/stamp-2:es", "town/kind/stamp-2:fr", "town/kind/stamp-0:none"} <= set(ids)
    homes: dict[str, set[str]] = {}
    for name, part in tuxpaint(root, "all", split_seed=1).splits().items():
        for sample in part:
            homes.setdefault(str(sample.values["text"]), set()).add(name)
    assert all(len(where) == 1 for where in homes.values())


@pytest.mark.parametrize("seed", range(4))
def test_equal_names_stay_together_and_every_class_stands_everywhere(root: Path, seed: int) -> None:
    splits = tuxpaint(root, split_seed=seed).splits()
    for part in splits.values():
        assert {sample.target for sample in part} == set(CLASSES)
    for category in CLASSES:
        homes = [n for n, part in splits.items() for s in part if s.group == plain_name(f"A {category} thing.")]
        assert len(homes) == 2 and len(set(homes)) == 1
    assert splits != tuxpaint(root, split_seed=seed + 1).splits()


def test_a_group_of_two_classes_is_not_cut() -> None:
    samples = [Sample(str(i), {}, "a" if i % 2 else "b", group=str(i // 2)) for i in range(40)]
    parts = carve_by_class(samples, [str(s.group) for s in samples], [0.25, 0.25], 0)
    homes = [{s.group for s in part} for part in parts]
    assert sum(len(part) for part in parts) == 40 and all(len(part) >= 8 for part in parts)
    assert not homes[0] & homes[1] and not homes[0] & homes[2] and not homes[1] & homes[2]


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("A Flower.", "flower"),
        ("the letter  A", "letter a"),
        ("A", "a"),
        ("It’s red!", "it s red"),
        ("Anaconda", "anaconda"),
    ],
)
def test_plain_names(name: str, plain: str) -> None:
    assert plain_name(name) == plain


def test_absent_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stamps, "DEFAULT_ROOT", tmp_path / "none")
    for made in (lambda: tuxpaint(), lambda: tuxpaint(tmp_path), lambda: named_builder("tuxpaint")):
        with pytest.raises(UserError, match=r"apt install tuxpaint-stamps-default.*dpkg -x"):
            made()


def test_named_on_the_command_line(root: Path, tmp_path: Path) -> None:
    builder = named_builder("tuxpaint", [f"data.root={root}"])
    assert builder is not None
    found = "\n".join(check(builder).lines)
    assert f"expected are {EXPECTED['train']}" in found and "files exist" in found  # a package of another size
    assert named_builder("study.yaml") is None
    with pytest.raises(UserError, match=r"train.epochs: only a study has this key"):
        named_builder("tuxpaint", ["train.epochs=3"])


def test_unknown_language(root: Path) -> None:
    with pytest.raises(UserError, match=r"data.audio.language.*found 'de'.*es, fr"):
        tuxpaint(root, "de")


def test_prepared_with_sound(root: Path, tmp_path: Path) -> None:
    pytest.importorskip("soundfile")
    formats: dict[str, Format] = {
        "image": ImageFormat(12, fit="pad"),
        "text": TextFormat(write_tokenizer(tmp_path / "tokenizer"), 8),
        "audio": AudioFormat(16_000, 80, 100, recipe="whisper"),
    }
    data = prepare(tuxpaint(root, split_seed=1), formats, tmp_path / "cache")
    batch = data.splits["train"].batch(np.arange(len(data.splits["train"])))
    audio = batch.inputs["audio"]
    assert isinstance(audio, torch.Tensor) and audio.shape[1:] == (100, 80)
    heard = batch.present_BM[:, 2]
    assert 0 < heard.sum() < len(heard)
    assert (audio[heard].abs().amax((1, 2)) > 0).all() and (audio[~heard] == 0).all()


def test_padding_shows_the_whole_picture(tmp_path: Path) -> None:
    path = tmp_path / "wide.png"
    picture = np.full((10, 30, 3), 255, np.uint8)
    picture[:, :10] = (255, 0, 0)  # the left third
    Image.fromarray(picture).save(path)
    cropped, padded = decode_image(path, ImageFormat(30)), decode_image(path, ImageFormat(30, fit="pad"))
    assert cropped.shape == padded.shape == (3, 30, 30)
    assert (cropped[1, :, 1:] > 200).all() and (padded[1, 10:20, :9] < 50).all()
    assert (padded[1, :9] > 200).all() and (padded[1, 21:] > 200).all()
    assert ImageFormat(30).key() != ImageFormat(30, fit="pad").key()


def test_svg_drawings(tmp_path: Path) -> None:
    pytest.importorskip("resvg_py")
    path = tmp_path / "drawing.svg"
    start = "<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg' width='4mm' height='4mm' viewBox='0 0 4 4'>"
    path.write_text(start + "<rect width='2' height='4' fill='#f00'/></svg>")
    picture = decode_image(path, ImageFormat(40))
    assert (picture[1, :, :18] < 10).all() and (picture[:, :, 22:] > 245).all()  # nothing drawn is white
    path.write_text(start + "<rect")
    with pytest.raises(Undecodable, match=r"drawing\.svg cannot be rendered"):
        decode_image(path, ImageFormat(40))


def test_svg_without_the_renderer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "resvg_py", None)
    (tmp_path / "drawing.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    with pytest.raises(UserError, match=r"pip install 'mmsweep\[svg\]'"):
        decode_image(tmp_path / "drawing.svg", ImageFormat(40))
