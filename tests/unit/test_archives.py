"""Members of tar archives, read where they lie: at any place, in any order, by several threads; damage is told."""

from __future__ import annotations

import gzip
import io
import random
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mmsweep.data import archives
from mmsweep.data.archives import Member, members
from mmsweep.data.digests import _file_content, _file_stamp
from mmsweep.data.files import Undecodable, opened
from mmsweep.errors import UserError

NAMES = [f"films/{i}.bin" for i in range(60)]


def content(number: int) -> bytes:
    """Of 0 to 70,000 bytes; half of it cannot be compressed."""
    random.seed(number)
    return random.randbytes(700 * number // 2) + b"plot " * (70 * number)


@pytest.fixture(params=["x.tar", "x.tar.gz"])
def archive(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, 60 files, a link, a name of 200 characters, a name that leads out of the folder."""
    monkeypatch.setattr(archives, "_SPACING", 10_000)  # many states to start from
    path = tmp_path / request.param
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as out:
        folder = tarfile.TarInfo("films")
        folder.type = tarfile.DIRTYPE
        out.addfile(folder)
        for number, name in enumerate([*NAMES, "a" * 200, "../../out.bin"]):
            info = tarfile.TarInfo(name)
            info.size = len(content(number))
            out.addfile(info, io.BytesIO(content(number)))
        link = tarfile.TarInfo("films/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        out.addfile(link)
    return path


def test_members_are_listed_in_order_and_read_at_once(archive: Path) -> None:
    found = [(member.name, member.read()) for member in members(archive)]
    names = [*NAMES, "a" * 200, "../../out.bin"]
    assert found == [(name, content(number)) for number, name in enumerate(names)]
    assert sorted(path.name for path in archive.parent.iterdir()) == [archive.name]  # nothing is written


def test_members_are_read_in_any_order_by_several_threads(archive: Path) -> None:
    found = list(members(archive))
    order = [*range(len(found))] * 3
    random.Random(0).shuffle(order)
    with ThreadPoolExecutor(4) as pool:
        read = list(pool.map(lambda i: found[i].read(), order))
    assert read == [content(i) for i in order]


def test_a_member_counts_as_a_file_of_its_own(archive: Path, tmp_path: Path) -> None:
    member = list(members(archive))[7]
    alone = tmp_path / "7.bin"
    alone.write_bytes(content(7))
    assert _file_content(member) == _file_content(alone)
    with opened(member) as file:
        assert file.read() == content(7)
    before = _file_stamp(member)
    archive.touch()
    assert before != _file_stamp(member) and str(member) == f"{archive}:films/7.bin"


def test_a_gzip_file_of_several_parts(tmp_path: Path) -> None:
    """As pigz and `cat a.gz b.gz` make them, with zeros behind."""
    plain = tmp_path / "plain.tar"
    with tarfile.open(plain, "w") as out:
        for number in (50, 40):
            info = tarfile.TarInfo(str(number))
            info.size = len(content(number))
            out.addfile(info, io.BytesIO(content(number)))
    whole = plain.read_bytes()
    parted = tmp_path / "parted.tar.gz"
    parts = [whole[i : i + 9_000] for i in range(0, len(whole), 9_000)]
    parted.write_bytes(b"".join(gzip.compress(part) + bytes(3) for part in parts))
    assert [member.read() for member in members(parted)] == [content(50), content(40)]


@pytest.mark.parametrize("share", [0.3, 0.7, 0.999])
def test_an_archive_that_was_cut_is_refused(archive: Path, share: float) -> None:
    whole = archive.read_bytes()
    archive.write_bytes(whole[: int(len(whole) * share) if share < 0.9 else -10_300])
    with pytest.raises(UserError, match=rf"{archive.name}: the archive is damaged or not complete .*checksum"):
        list(members(archive))


def test_a_plain_archive_that_was_cut_between_two_members_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as out:
        for name in "ab":
            out.addfile(tarfile.TarInfo(name), io.BytesIO())
    path.write_bytes(path.read_bytes()[:512])
    with pytest.raises(UserError, match="no member and no end of the archive at byte 512"):
        list(members(path))


def test_damage_within_a_gzip_is_told(tmp_path: Path) -> None:
    path = tmp_path / "x.tar.gz"
    with tarfile.open(path, "w:gz") as out:
        info = tarfile.TarInfo("a")
        info.size = 200_000
        out.addfile(info, io.BytesIO(random.Random(0).randbytes(200_000)))
    damaged = bytearray(path.read_bytes())
    damaged[100_000:100_100] = bytes(100)
    path.write_bytes(bytes(damaged))
    with pytest.raises(UserError, match=r"x\.tar\.gz is damaged near byte|Error -3|incorrect"):
        list(members(path))


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    for name, bytes_ in (("a.tar", b"no tar " * 200), ("b.tar.gz", gzip.compress(b"no tar " * 200)), ("c.tar", b"")):
        (tmp_path / name).write_bytes(bytes_)
        with pytest.raises(UserError, match="the archive is damaged or not complete"):
            list(members(tmp_path / name))
    with pytest.raises(UserError, match="does not exist"):
        list(members(tmp_path / "absent.tar"))


def test_an_archive_that_changed_behind_a_member(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(bytes(10))
    with pytest.raises(Undecodable, match="ends within"):
        Member(path, "a", 50, 0).read()
