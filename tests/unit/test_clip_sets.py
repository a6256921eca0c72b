"""CREMA-D, Kinetics-Sounds and AVE: every trap of their circulating copies, and the real lists read whole."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmsweep.data.check import check
from mmsweep.data.clip_files import Clip, ClipFiles
from mmsweep.data.dataset import DatasetBuilder, Sample
from mmsweep.data.files import Segment
from mmsweep.data.kinds.audio import AudioFormat
from mmsweep.data.kinds.image import ImageFormat
from mmsweep.data.kinds.video import VideoFormat
from mmsweep.data.lists import find_list, read_list
from mmsweep.data.options import DATASETS
from mmsweep.data.prepared import prepare
from mmsweep.errors import UserError
from tests.data.layouts import ave, cremad, kinetics_sounds
from tests.data.layouts.clips import write_frames, write_pointer, write_sound, write_video

pytest.importorskip("av")
pytest.importorskip("soundfile")

LISTS = Path(__file__).parents[2] / "../shared/data/lists"
real = pytest.mark.skipif(not LISTS.is_dir(), reason="the published lists are not here")


def builder(name: str, root: Path, **options: Any) -> DatasetBuilder:
    built: DatasetBuilder = DATASETS[name](DATASETS.options(name, root=str(root), **options))
    return built


def by_id(built: DatasetBuilder) -> dict[str, Sample]:
    return {sample.id: sample for rows in built.splits().values() for sample in rows}


# ---- lists and files


@pytest.mark.parametrize("text", ["\ufeffa b\r\nc d\r\n", "a b\n\n  c d", "a b\r\n   \r\nc d"])
def test_lists_end_their_lines_in_any_way(text: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(text.encode())
    assert [line.text for line in read_list(tmp_path / "list.txt")] == ["a b", "c d"]
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"list\.txt: the list cannot be read"):
        list(read_list(tmp_path / "list.txt"))


def test_a_list_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.txt").touch()
    with pytest.raises(UserError, match="is there 2 times"):
        find_list(tmp_path, ["x.txt"])
    (tmp_path / "x.txt").touch()
    assert find_list(tmp_path, ["y.txt", "x.txt"]) == tmp_path / "x.txt"


def test_files_of_clips_are_found_by_name(tmp_path: Path) -> None:
    for name in ("deep/er/-a_1.MP4", "audio/-a_1.wav", "audio/-a_1.mp3", "more/b.mp4", "again/b.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    write_frames(tmp_path / "frames" / "c", [1])
    (tmp_path / "deep" / "loop").symlink_to(tmp_path)
    files = ClipFiles(tmp_path)
    assert files.find("other", "-a_1") == (tmp_path / "deep/er/-a_1.MP4", None, tmp_path / "audio/-a_1.wav")
    assert files.find("c").values() == {"audio": None, "video": tmp_path / "frames/c"}
    assert files.names() == ["-a_1", "b", "c"]
    with pytest.raises(UserError, match=r"the clip b is there 2 times.*again/b\.mp4, more/b\.mp4"):
        files.find("b")


@pytest.mark.parametrize("name", ["cremad", "kinetics_sounds", "ave"])
def test_a_folder_without_the_data_says_how_to_get_it(name: str, tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=r"data\.root: .*(not here)") as error:
            builder(name, root).splits()
        assert error.value.hint and error.value.expected


# ---- CREMA-D


def test_cremad_reads_both_published_lists(tmp_path: Path) -> None:
    cremad.repository_ogm(tmp_path)
    first = builder("cremad", tmp_path)
    splits = first.splits()
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 86, "val": 10, "test": 24}
    assert [sample.id for sample in splits["test"]] == cremad.parts()["test"]
    sample = by_id(first)["1001_DFA_ANG_XX"]
    assert sample.target == "anger" and sample.origin == "test.csv:1" and sample.group is None
    assert sample.values == {
        "audio": tmp_path / "AudioWAV/1001_DFA_ANG_XX.wav",
        "video": tmp_path / "VideoFlash/1001_DFA_ANG_XX.flv",
    }
    assert "1010_IEO_SAD_X" in by_id(first)  # CREMA-D has one name that ends in a single letter
    assert "OGM's lists, which share actors" in first.provenance() and not first.bad_rows
    cremad.write_mla(tmp_path)
    with pytest.raises(UserError, match=r"data\.split: the folder holds both.*expected ogm or mla"):
        builder("cremad", tmp_path).splits()
    assert by_id(builder("cremad", tmp_path, split="mla")).keys() == by_id(first).keys()


def test_cremad_s_actors_stay_in_one_split(tmp_path: Path) -> None:
    cremad.write_repository(tmp_path)
    with pytest.raises(UserError, match=r"the published lists are not here.*data\.split: actors needs none"):
        builder("cremad", tmp_path).splits()
    seeds = []
    for seed in (0, 1):
        splits = builder("cremad", tmp_path, split="actors", split_seed=seed).splits()
        actors = [{sample.group for sample in rows} for rows in splits.values()]
        assert list(map(len, actors)) == [8, 1, 1] and len(set.union(*actors)) == 10
        seeds.append(actors)
    assert seeds[0] != seeds[1]


def test_cremad_explains_pointers_of_git_lfs(tmp_path: Path) -> None:
    """A zip download of the repository holds a pointer in the place of every clip."""
    cremad.write_ogm(tmp_path)
    for name in cremad.clips():
        write_pointer(tmp_path / "AudioWAV" / f"{name}.wav")
        write_pointer(tmp_path / "VideoFlash" / f"{name}.flv")
    for split in (None, "actors"):
        with pytest.raises(UserError, match=r"120 rows.*is a git-LFS pointer, not the data; run `git lfs pull`"):
            builder("cremad", tmp_path, split=split).splits()
    name = cremad.clips()[1]
    write_sound(tmp_path / "AudioWAV" / f"{name}.wav")
    write_video(tmp_path / "VideoFlash" / f"{name}.flv", [9, 9])
    found = builder("cremad", tmp_path)
    assert list(by_id(found)) == [name] and len(found.bad_rows) == 119


def test_cremad_names_every_line_that_it_cannot_use(tmp_path: Path) -> None:
    cremad.repository_ogm(tmp_path)
    name = cremad.parts()["train"][0]
    lines = [
        "clip,emotion",
        f"{name},SAD",
        "1099_DFA_ANG_XX,ANG",
        f"{cremad.parts()['test'][0]},ANG",
        "1001_DFA_JOY_XX,JOY",
    ]
    with (tmp_path / "train.csv").open("a") as file:
        file.write("\n".join(lines))
    found = builder("cremad", tmp_path)
    assert len(by_id(found)) == 120
    assert [(row.origin, row.reason.split("; found")[0]) for row in found.bad_rows] == [
        ("train.csv:97", "expected <actor>_<sentence>_<emotion>_<level> and emotion"),
        ("train.csv:98", f"the clip {name} is listed as SAD"),
        ("train.csv:99", "the clip 1099_DFA_ANG_XX has no file"),
        ("train.csv:101", "expected <actor>_<sentence>_<emotion>_<level> and emotion"),
        ("test.csv:1", f"{cremad.parts()['test'][0]} stands in train.csv:100 already"),
    ]


# ---- Kinetics-Sounds


def test_kinetics_sounds_finds_clips_of_every_syntax(tmp_path: Path) -> None:
    lines = [
        "--4-0ihtnBU_000058_000068,10,4", "-3Mwkq-7TV4_2,10,23", "1_3Mw_q-7TV 10 30", "zuxdlgO9rdI_1245,10,3",
        "_uxdlgO9rd-_7 & 10 & 8", "hLaWh4pHGp8_000003_000005,10,29",
    ]  # fmt: skip
    (tmp_path / "my_train.txt").write_text("\n".join([*lines, "hLaWh4pHGp8_000003_000005,10,31", "only_one"]))
    (tmp_path / "my_test.txt").write_text("gone_4pHGp8_0,10,3\n-estwkq-7TV_0,10,3")
    names = [
        "--4-0ihtnBU_000058_000068", "-3Mwkq-7TV4_000002_000012", "1_3Mw_q-7TV", "zuxdlgO9rdI_1245",
        "_uxdlgO9rd-_7_17", "-estwkq-7TV_0", "hLaWh4pHGp8",
    ]  # fmt: skip
    for name in names:
        (tmp_path / f"{name}.mp4").touch()
    found = builder("kinetics_sounds", tmp_path)
    rows = by_id(found)
    videos = {id: sample.values["video"] for id, sample in rows.items()}
    assert {id: path.stem for id, path in videos.items() if isinstance(path, Path)} == {
        "--4-0ihtnBU_000058_000068": names[0], "-3Mwkq-7TV4_2": names[1], "1_3Mw_q-7TV": names[2],
        "zuxdlgO9rdI_1245": names[3], "_uxdlgO9rd-_7": names[4], "-estwkq-7TV_0": names[5],
    }  # fmt: skip
    whole = rows["hLaWh4pHGp8_000003_000005"]
    assert whole.values["audio"] == whole.values["video"] == Segment(tmp_path / "hLaWh4pHGp8.mp4", 3, 5)
    assert whole.group == "hLaWh4pHGp8" and whole.target == "class-29"
    assert [(row.origin, row.reason[:21]) for row in found.bad_rows] == [
        ("my_train.txt:7", "expected <id>,10,<lab"), ("my_train.txt:8", "expected <id>,10,<lab"),
        ("my_test.txt:1", "the clip gone_4pHGp8_"),
    ]  # fmt: skip
    assert "1 have no file" in found.provenance()


def test_vanished_clips_are_counted_and_the_rest_is_prepared(tmp_path: Path) -> None:
    options = kinetics_sounds.videos(tmp_path)
    gone = kinetics_sounds.ids("train")[3]
    next(tmp_path.rglob(f"{gone}.mp4")).unlink()
    silent = next(tmp_path.rglob(f"{kinetics_sounds.ids('train')[5]}.mp4"))
    write_video(silent, [9, 9, 9], sound=False)
    found = DATASETS["kinetics_sounds"](options)
    formats = {"audio": AudioFormat(mel_bins=26, frames=36), "video": VideoFormat(ImageFormat(8))}
    data = prepare(found, formats, tmp_path / "cache", max_bad=options.max_bad)
    assert sum(map(len, data.splits.values())) == 58 and [row.reason.split()[-2:] for row in data.skipped] == [
        ["no", "file"], ["sound", "track"],
    ]  # fmt: skip
    assert any("have no file" in line for line in check(found, 1.0).lines)


# ---- AVE


def test_ave_s_clips_are_the_annotated_parts_of_videos(tmp_path: Path) -> None:
    options = ave.videos(tmp_path)
    found = DATASETS["ave"](options)
    splits = found.splits()
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 40, "val": 10, "test": 10}
    category, video, start, end = ave.rows()[12]
    sample = by_id(found)[f"{video}:{start}-{end}:{category}"]
    assert (start, end) == (2, 5) and sample.group == video and sample.target == category
    path = tmp_path / "AVE_Dataset" / "AVE" / f"{video}.mp4"
    assert sample.values == dict.fromkeys(("audio", "video"), Segment(path, 2, 5, 10.0))
    groups = Counter(str(row.group) for row in splits["train"])
    assert groups[ave.rows()[0][1]] == 2, "a video with two events gives two rows"
    without = next(row for row in splits["train"] if ":0-0:" in row.id)
    assert without.values["video"] == path.with_name(f"{without.group}.mp4"), "no duration: the whole video"
    formats = {"audio": AudioFormat(mel_bins=26, frames=36), "video": VideoFormat(ImageFormat(8))}
    train = prepare(found, formats, tmp_path / "cache").splits["train"]
    greys = train.batch(np.array([12])).inputs["video"][0, :, 0].mean((1, 2)) * 127.5 + 127.5  # type: ignore[index]
    assert [round(float(grey) / 20) for grey in greys] == [3, 4, 5], "a grey of 20 (s + 1) in second s"
    whole = builder("ave", tmp_path, clip="video")
    assert by_id(whole)[sample.id].values["video"] == path


@pytest.mark.parametrize("separator", ["&", ",", " ", ", ", "\t"])
def test_ave_s_categories_hold_blanks_and_commas(separator: str, tmp_path: Path) -> None:
    ave.extracted(tmp_path)
    ave.write_lists(tmp_path, separator)
    found = builder("ave", tmp_path)
    assert Counter(sample.target for sample in by_id(found).values()) == Counter(row[0] for row in ave.rows())
    assert not found.bad_rows and {"Rodents, rats, mice", "Violin, fiddle"} < {row[0] for row in ave.rows()}


def test_ave_s_extracted_files_hold_events_or_videos(tmp_path: Path) -> None:
    ave.extracted(tmp_path)
    video = ave.rows()[12][1]
    folder = tmp_path / "Image-01-FPS-SE" / video
    event = next(s for s in by_id(builder("ave", tmp_path)).values() if s.group == video)
    assert event.values["video"] == folder
    cut = next(s for s in by_id(builder("ave", tmp_path, extracted="video")).values() if s.group == video)
    assert cut.values["video"] == Segment(folder, 2, 5, 10.0)
    with pytest.raises(UserError, match=r"data\.extracted: extracted events cannot show whole videos"):
        builder("ave", tmp_path, clip="video").splits()


def test_ave_s_annotations_are_carved_by_video(tmp_path: Path) -> None:
    found = DATASETS["ave"](ave.annotations(tmp_path))
    splits = found.splits()
    assert sum(map(len, splits.values())) == 60 and not found.bad_rows, "the titles are no row"
    assert "carved here by video" in found.provenance()
    (tmp_path / "AVE_Dataset" / "valSet.txt").write_text("")
    with pytest.raises(UserError, match=r"lists of AVE are not here; expected trainSet\.txt, testSet\.txt"):
        builder("ave", tmp_path).splits()


def test_ave_names_every_line_that_it_cannot_use(tmp_path: Path) -> None:
    ave.extracted(tmp_path)
    lines = ["Yodelling&-xVi2ENB000&good&0&10", "Bus&gone2ENB000&good&0&10", ave.line(ave.rows()[-1]), "nothing"]
    (tmp_path / "valSet.txt").write_text("\n".join([*map(ave.line, ave.parts()["val"]), *lines]))
    found = builder("ave", tmp_path)
    assert len(by_id(found)) == 60
    reasons = [(row.origin, row.reason) for row in found.bad_rows]
    assert [origin for origin, _ in reasons] == ["valSet.txt:11", "valSet.txt:12", "valSet.txt:14", "testSet.txt:10"]
    assert [reason.split(";")[0] for _, reason in reasons[:3]] == [
        "expected one of AVE's 28 categories", "the video gone2ENB000 has no file",
        "expected <category>&<video>&<quality>&<start>&<end>",
    ]  # fmt: skip


# ---- the real lists, whole


@pytest.fixture
def complete(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Every clip has a video, except those whose names are added to this set."""
    gone: set[str] = set()

    class Everything(ClipFiles):
        def find(self, *names: str) -> Clip:
            return Clip(None if gone & {*names} else self.root / f"{names[0]}.mp4", None, None)

    for name in ("cremad", "kinetics_sounds", "ave"):
        monkeypatch.setattr(f"mmsweep.data.sets.{name}.ClipFiles", Everything)
    return gone


@real
@pytest.mark.parametrize("pair", ["ogm", "mla"])
def test_every_line_of_cremad_s_lists_is_used(pair: str, complete: set[str]) -> None:
    found = builder("cremad", LISTS / "cremad" / pair)
    splits = found.splits()
    assert not found.bad_rows and len(splits["train"]) + len(splits["val"]) == 6_698 and len(splits["test"]) == 744
    assert {row.target for row in splits["val"]} == set(found.target.classes)
    lines = [line for line in check(found).lines if "as expected" in line]
    assert lines == ["train and val: 6,698 rows, as expected", "test: 744 rows, as expected"]
    names = (LISTS / "cremad/source/SentenceFilenames.csv").read_text().splitlines()[1:]
    assert by_id(found).keys() == {line.split('"')[1] for line in names}


@real
def test_every_line_of_kinetics_sounds_lists_is_used_or_named(complete: set[str]) -> None:
    lists = LISTS / "kinetics_sounds"
    rows = {
        name: [line.text.split(",")[0] for line in read_list(lists / f"my_{name}.txt")] for name in ("train", "test")
    }
    assert {name: len(ids) for name, ids in rows.items()} == {"train": 14_799, "test": 2_597}
    gone = {*rows["train"][::1_000], *rows["test"][::1_000]}
    # A clip that has vanished is there under none of its names, the whole video's included.
    complete |= gone | {id[:11] for id in gone}
    found = builder("kinetics_sounds", lists)
    splits = found.splits()
    assert len(splits["train"]) + len(splits["val"]) == 14_799 - 15 and len(splits["test"]) == 2_597 - 3
    assert {row.reason for row in found.bad_rows} == {f"the clip {id} has no file" for id in gone}
    assert {row.target for row in splits["val"]} == set(found.target.classes)


@real
def test_every_line_of_ave_s_lists_is_used(complete: set[str]) -> None:
    annotations = [line.text.split("&") for line in read_list(LISTS / "ave/source/Annotations.txt")]
    found = builder("ave", LISTS / "ave/pmr")
    assert {name: len(rows) for name, rows in found.splits().items()} == {"train": 3_339, "val": 402, "test": 402}
    assert not found.bad_rows and sorted(row.target for row in by_id(found).values()) == sorted(
        r[0] for r in annotations
    )
    findings = check(found).lines
    assert sum("as expected" in line for line in findings) == 3
    assert any("groups stand in more than one split" in line for line in findings), "45 videos hold two events"
