"""Tar archives, plain or gzipped, read where they lie: nothing is written out.

    for member in members(Path("mmimdb.tar.gz")):      # in the archive's order
        member.read()

A member of a plain .tar is read at its place. The content of a .gz can only be decompressed from its start, so the
decompressor's state is kept every 4 MiB of content (about 40 KB of memory each), and a member is read from the nearest
state before it, or from where the last read ended. Listing a .tar.gz therefore decompresses all of it once in every
process; afterwards a member costs 2 MiB of decompression on average in random order and nothing in the archive's order.
"""

from __future__ import annotations

import io
import os
import tarfile
import threading
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from mmsweep.data.files import Stored, Undecodable, first_line, name_of, regular
from mmsweep.errors import UserError

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")

_SPACING = 2**22
_INPUT = 2**16
_PIECE = 2**20
_BLOCK = 512


@dataclass(frozen=True)
class Member(Stored):
    """A file within a tar archive.

    Args:
        offset: of its first byte in the archive's content, in bytes.
    """

    offset: int

    def read(self) -> bytes:
        data = _content(self.container).read(self.offset, self.size)
        if len(data) < self.size:
            raise Undecodable(f"the archive ends within {name_of(self)}; is its download complete?")
        return data


def members(path: Path) -> Iterator[Member]:
    """The regular files of an archive, in its order. Links, devices and folders are left out.

    Reading a member before asking for the next one costs no second pass.

    Raises:
        UserError: the archive is absent, damaged or not complete.
    """
    try:
        content = _content(path)
        end = 0
        with tarfile.open(fileobj=_Stream(content), mode="r:") as archive:
            while (info := archive.next()) is not None:
                end = archive.offset
                if info.isreg() and not info.issparse():
                    yield Member(path, info.name, info.size, info.offset_data)
        # tarfile takes whatever is no header for the end. A whole archive ends with blocks of zeros.
        if content.read(end, _BLOCK) != bytes(_BLOCK):
            raise Undecodable(f"no member and no end of the archive at byte {end:,}")
        while part := content.read(end, _PIECE):  # a .gz has its checksum at its end
            end += len(part)
    except (Undecodable, tarfile.TarError) as problem:
        raise UserError(
            f"the archive is damaged or not complete ({first_line(problem)})", file=path,
            expected="a whole tar archive, plain or gzipped", hint="Compare its size and checksum with the source's",
        ) from None  # fmt: skip


def _content(path: Path) -> _Plain | _Gzip:
    stat = regular(path).stat()
    return _opened(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4)
def _opened(path: Path, size: int, changed: int) -> _Plain | _Gzip:
    with path.open("rb") as file:
        return _Gzip(path) if file.read(2) == b"\x1f\x8b" else _Plain(path)


class _Plain:
    """The bytes of a file, for several threads."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)

    def read(self, start: int, size: int) -> bytes:
        """Fewer bytes at the end of the file."""
        parts = []
        while size > 0 and (part := os.pread(self._file.fileno(), size, start)):
            parts.append(part)
            start, size = start + len(part), size - len(part)
        return b"".join(parts)


class _State:
    """Where a decompression stands.

    Attributes:
        produced, consumed: bytes of content behind it, and bytes of the file that were read for them.
        tail: bytes that were read and not decompressed yet.
        fresh: nothing of the gzip member at hand has been decompressed (a file may hold several, one after the other).
    """

    def __init__(self) -> None:
        self.produced = self.consumed = 0
        self.inflate, self.tail, self.fresh = zlib.decompressobj(31), b"", True

    def copy(self) -> _State:
        other = _State()
        other.produced, other.consumed, other.tail, other.fresh = self.produced, self.consumed, self.tail, self.fresh
        other.inflate = self.inflate.copy()
        return other


class _Gzip:
    """The content of a .gz at any place, for several threads, which decompress side by side."""

    def __init__(self, path: Path) -> None:
        self._path, self._file = path, path.open("rb", buffering=0)
        self._lock = threading.Lock()
        self._states, self._starts = [_State()], [0]
        self._last: _State | None = None

    def read(self, start: int, size: int) -> bytes:
        """Fewer bytes at the end of the content. Raises Undecodable where the file is damaged or ends too soon."""
        state, parts = self._nearest(start), []
        while (place := state.produced) < start + size:
            goal = start if place < start else start + size
            piece = self._advance(state, min(goal - place, _PIECE))
            if not piece:
                break
            if place >= start:
                parts.append(piece)
        with self._lock:
            self._last = state
        return b"".join(parts)

    def _nearest(self, start: int) -> _State:
        with self._lock:
            state = self._states[bisect_right(self._starts, start) - 1]
            if self._last is not None and state.produced <= self._last.produced <= start:
                last, self._last = self._last, None
                return last
            return state.copy()

    def _advance(self, state: _State, limit: int) -> bytes:
        """The next bytes, at most `limit`; none at the end."""
        while True:
            if state.inflate.eof:
                state.tail, state.inflate, state.fresh = state.inflate.unused_data, zlib.decompressobj(31), True
            data = state.tail
            if not data:
                data = os.pread(self._file.fileno(), _INPUT, state.consumed)
                state.consumed += len(data)
                if not data and not state.fresh:
                    raise Undecodable(f"{name_of(self._path)} ends in the middle; is its download complete?")
                if not data:
                    return b""
            if state.fresh and not (data := data.lstrip(b"\0")):  # gzip members may be followed by zeros
                state.tail = b""
                continue
            try:
                piece = state.inflate.decompress(data, limit)
            except zlib.error as error:
                place = f"near byte {state.consumed:,}"
                raise Undecodable(f"{name_of(self._path)} is damaged {place} ({first_line(error)})") from None
            state.tail, state.fresh = state.inflate.unconsumed_tail, False
            state.produced += len(piece)
            if piece:
                self._keep(state)
                return piece

    def _keep(self, state: _State) -> None:
        """Keep a copy of a state that lies far enough beyond the others."""
        if state.produced - self._starts[-1] < _SPACING or state.tail or state.inflate.eof:
            return
        with self._lock:
            if state.produced - self._starts[-1] >= _SPACING:
                self._states.append(state.copy())
                self._starts.append(state.produced)


class _Stream(io.RawIOBase):
    """Content as the file that tarfile reads."""

    def __init__(self, content: _Plain | _Gzip) -> None:
        self._content, self._place = content, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        assert whence == io.SEEK_SET
        self._place = offset
        return offset

    def read(self, size: int = -1) -> bytes:
        assert size >= 0  # tarfile reads headers, never to the end
        data = self._content.read(self._place, size)
        self._place += len(data)
        return data
