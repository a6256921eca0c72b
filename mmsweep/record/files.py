"""Atomic writes of small files, and JSON that is validated against a type when it is read.

Whichever command reads a file of another shape (`[1]`, `null`, text for a count) refuses it by name.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from mmsweep.errors import UNSET, UserError

Shape = TypeVar("Shape")
OPEN = {"extra": "allow"}  # pydantic config of a TypedDict: keys of a newer mmsweep are kept


def cache_folder() -> Path:
    """Where prepared data and measured slot counts are kept: $MMSWEEP_CACHE, else ~/.cache/mmsweep."""
    return Path(os.environ.get("MMSWEEP_CACHE") or Path.home() / ".cache" / "mmsweep")


def apply_umask(path: Path) -> None:
    """Give a file the permissions of the umask; safetensors creates files that only their owner can read.

    Args:
        path: the file, in a folder that was created under the umask.
    """
    with contextlib.suppress(PermissionError):  # a mount without permissions
        path.chmod(path.parent.stat().st_mode & 0o666)


def write_atomically(path: Path, text: str) -> None:
    """Write `text` so that readers see the old file or the new one, never a part (rename is atomic on POSIX)."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # frees the space for the next attempt on a full disk
        raise


def json_text(value: Any, indent: int | None = None) -> str:
    """JSON with null for NaN and infinity, which JSON lacks; a score without eligible rows is NaN."""
    return json.dumps(_without_nan(value), indent=indent, allow_nan=False, default=str)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_record(path: Path, shape: type[Shape], *, problem: str | None = None, hint: str | None = None) -> Shape | None:
    """The content of a record file; None if there is no such file.

    Args:
        shape: the dataclass or TypedDict that the file holds as JSON.
        problem, hint: message and hint for a damaged file.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    content = read_content(path)
    return None if content is None else parse_record(content, shape, file=path, problem=problem, hint=hint)


def read_content(path: Path) -> bytes | None:
    """A file's bytes; None if there is no such file. Raises UserError if it cannot be read."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"the file cannot be read ({error.strerror})", file=path) from error


def parse_record(
    content: bytes,
    shape: type[Shape],
    *,
    file: Path,
    line: int | None = None,
    problem: str | None = None,
    hint: str | None = None,
) -> Shape:
    """Parse JSON and validate it against `shape`. The other arguments are for the error message.

    Raises:
        UserError: it is not JSON, or of another shape; names the key.
    """
    from pydantic import ValidationError  # lazy: the controller's process has to start fast and parses nothing

    try:
        adapter: Any = _adapter(shape)  # type: ignore[arg-type]  # a type is hashable
        return adapter.validate_json(content, strict=True)  # type: ignore[no-any-return]
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        broken = first["type"] == "json_invalid"
        raise UserError(
            problem or ("not valid JSON" if broken else f"not what mmsweep wrote ({first['msg']})"),
            file=file,
            line=line,
            key=".".join(map(str, first["loc"])) or None,
            found=UNSET if broken and not problem else content[:60].decode("utf-8", "replace"),
            expected="the file as mmsweep wrote it",
            hint=hint,
        ) from error


@cache
def _adapter(shape: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(shape)
