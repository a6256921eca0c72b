"""Whether a prepared folder is as it was written: a checksum for each of its files, known from its record.

Files are read again only where they changed: what was found whole is noted beside the record, by size and times.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

RECORD, VERIFIED = "prepared.json", "verified.json"

_SETTLED_NS = 2 * 10**9
"""A file that changed less than this before it was read may change again within one tick of its file system's clock."""


def seal(folder: Path, record: dict[str, Any]) -> None:
    """Write a folder's record, last of all, with the checksums of the files that lie there."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    record = {**record, "files": {str(path.relative_to(folder)): _digest(path) for path in files}}
    (folder / RECORD).write_text(json.dumps({**record, "checksum": _own(record)}, indent=1))


def inspect(folder: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """(record, names of the files that are not as they were written); (None, []) where there is no such folder."""
    if not folder.exists():
        return None, []
    record = _json(folder / RECORD)
    if record.pop("checksum", None) != _own(record) or not isinstance(record.get("files"), dict):
        return None, [RECORD]
    noted, found, damaged = _json(folder / VERIFIED), {}, []
    for name, digest in record["files"].items():
        stamp = _stamp(folder / name)
        if stamp is not None and noted.get(name) == stamp:
            found[name] = stamp
        elif stamp is None or _digest(folder / name) != digest:
            damaged.append(name)
        elif time.time_ns() - max(stamp[1:3]) > _SETTLED_NS:
            found[name] = stamp
    if found != noted:
        _note(folder / VERIFIED, found)
    return record, damaged


def _note(path: Path, found: dict[str, list[int]]) -> None:
    with contextlib.suppress(OSError):  # a cache that is only read is checked each time
        temporary = path.with_name(f".{path.name}-{os.getpid()}")
        temporary.write_text(json.dumps(found))
        temporary.replace(path)


def _own(record: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(record, sort_keys=True).encode(), digest_size=16).hexdigest()


def _digest(path: Path) -> str | None:
    """None: it cannot be read."""
    digest = hashlib.blake2b(digest_size=16)
    try:
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    except OSError:
        return None
    return digest.hexdigest()


def _stamp(path: Path) -> list[int] | None:
    """Size, times of change of content and of entry (a program may set the former, not the latter), and number."""
    try:
        found = path.stat()
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino] if path.is_file() else None


def _json(path: Path) -> dict[str, Any]:
    """Empty where there is no such file, or it holds no object."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
