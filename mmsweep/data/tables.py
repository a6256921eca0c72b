"""Reads the rows of a CSV, TSV, JSONL or Parquet file, or of a folder (`table_folders.py`), each with its line.

CSV may quote its cells. A cell of a TSV is what stands between two tabs, quotes included: TSV has no quoting.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import date, time
from pathlib import Path
from typing import Any, NamedTuple

from mmsweep.data.cells import Unreadable, is_empty
from mmsweep.data.files import Stored
from mmsweep.data.table_folders import folder_rows
from mmsweep.errors import UserError, nearest

Columns = Sequence[tuple[str, str]]
_LONGEST_CELL = 64 * 2**20  # the csv module's own limit, 128 KiB, is shorter than some texts
_ROWS_AT_ONCE = 1024
_QUOTED = re.compile(r'"(?:[^"]|"")*""(?:[^"]|"")*"')


class Row(NamedTuple):
    """A row of the file.

    Args:
        line: where it stands, from 1; rows of Parquet are counted.
        cells: column -> cell of the columns that were asked for; None where the cell is empty or absent.
        content: digest of the whole row, other columns included.
    """

    line: int
    cells: dict[str, Any]
    content: str


def read_table(path: Path, columns: Columns | None) -> Iterator[Row]:
    """The rows of a file.

    Args:
        path: its suffix says the format.
        columns: (key of the study, column) that must be there; None reads all columns there are.

    Raises:
        UserError: the file is absent, of unknown format or malformed (with the line); a column is absent (with the
            nearest spelling).
    """
    reader = _folder if path.is_dir() else _READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError("unknown format of manifest", file=path, found=path.suffix, expected=", ".join(_READERS))
    if not path.exists():
        raise UserError("the manifest does not exist", key="data.path", found=str(path), expected="a file")
    wanted = list(dict.fromkeys(column for _, column in columns or ()))
    for line, row in reader(path, columns or ()):
        filled = {column: cell for column, cell in row.items() if not is_empty(cell)}
        try:
            content = _digest(filled)
        except RecursionError:
            raise UserError("a cell is nested too deeply", file=path, line=line) from None
        yield Row(line, {column: filled.get(column) for column in (row if columns is None else wanted)}, content)


def _digest(filled: dict[str, Any]) -> str:
    """Digest of a row's cells, whatever the order of columns; empty cells do not count."""
    text = json.dumps(sorted(filled.items()), default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(value: Any) -> str:
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    if isinstance(value, Unreadable):
        return value.reason
    if isinstance(value, Stored):  # wherever its container lies
        return f"{value.name} {value.size}"
    return value.isoformat() if isinstance(value, date | time) else str(value)


# ---- text files ----------------------------------------------------------------------------------------------------


def _csv(path: Path, columns: Columns) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(_LONGEST_CELL)
    end, spanned = 0, list[str]()

    def noted(file: Iterable[str]) -> Iterator[str]:
        for text in file:
            spanned.append(text)
            yield text

    def rows() -> Iterator[tuple[int, list[str]]]:
        nonlocal end
        with path.open(encoding="utf-8-sig", newline="") as file:  # a byte-order mark is Excel's habit
            reader = csv.reader(noted(file), strict=True)
            for cells in reader:
                line, end = end + 1, reader.line_num  # a quoted cell may span lines: name the first
                yield line, cells
                spanned.clear()

    deciding = [column for key, column in columns if key in ("data.target.column", "data.split.column")]
    usual: set[tuple[Any, ...]] = set()
    swallowing: list[tuple[int, list[tuple[Any, ...]]]] = []
    try:
        hint = "Cells that hold commas or line breaks need double quotes"
        for line, row in _under_header(path, columns, rows(), hint):
            if len(spanned) == 1:
                usual.add(tuple(row[column] for column in deciding))
            elif all(text.count(",") == len(row) - 1 for text in spanned):
                alone = [dict(zip(row, text.strip().split(","), strict=True)) for text in spanned]
                swallowing.append((line, [tuple(each[column] for column in deciding) for each in alone]))
            yield line, row
        # A stray quote at the start of a cell makes one row of many; a text that spans lines has the row's target once.
        opened = next((line for line, found in swallowing if sum(each in usual for each in found) > 1), None)
        if opened is not None:
            raise UserError(
                "a quote opens a cell that takes in the rows below it", file=path, line=opened,
                hint='Write a quote within a cell as "" and enclose the cell in quotes',
            )  # fmt: skip
    except csv.Error as error:
        raise UserError(f"the row is not valid CSV ({error})", file=path, line=end + 1) from None
    except UnicodeDecodeError as error:
        raise _not_utf8(path, error) from None


def _tsv(path: Path, columns: Columns) -> Iterator[tuple[int, dict[str, Any]]]:
    def rows() -> Iterator[tuple[int, list[str]]]:
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            for line, text in enumerate(file, start=1):
                text = text.removesuffix("\n").removesuffix("\r")
                yield line, text.split("\t") if text else []

    hint = "Cells of a .tsv hold no tabs and no line breaks, and quotes do not enclose them; .csv has quoting"
    try:
        for line, row in _under_header(path, columns, rows(), hint):
            for column, cell in row.items():
                if _QUOTED.fullmatch(cell):
                    raise UserError(
                        "the cell is quoted as in CSV, and cells of a .tsv are read as they are", file=path, line=line,
                        key=column, found=cell[:60], hint="Save the file as .csv, or without quoting",
                    )  # fmt: skip
            yield line, row
    except UnicodeDecodeError as error:
        raise _not_utf8(path, error) from None


def _under_header(
    path: Path, columns: Columns, rows: Iterator[tuple[int, list[str]]], hint: str
) -> Iterator[tuple[int, dict[str, Any]]]:
    header = [name.strip() for name in next(rows, (1, []))[1]]
    if not header:
        raise UserError("the manifest is empty", file=path, expected="a header line with the names of columns")
    _require(path, columns, header)
    for line, cells in rows:
        if cells and len(cells) != len(header):
            raise UserError(
                "the row has another number of cells than the header", file=path, line=line, found=len(cells),
                expected=str(len(header)), hint=hint if len(cells) > len(header) or ".tsv" in hint else None,
            )  # fmt: skip
        if cells:
            yield line, dict(zip(header, cells, strict=True))


def _jsonl(path: Path, columns: Columns) -> Iterator[tuple[int, dict[str, Any]]]:
    seen: dict[str, None] = {}
    rows: list[tuple[int, dict[str, Any]]] = []
    try:
        for line, text in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
            if not text.strip():
                continue
            try:
                row = json.loads(text, object_pairs_hook=_object)
            except (ValueError, RecursionError) as error:
                raise UserError(f"the line is not valid JSON ({error})", file=path, line=line) from None
            if not isinstance(row, dict):
                raise UserError("the line is not a JSON object", file=path, line=line, found=text[:60])
            seen.update(dict.fromkeys(row))
            rows.append((line, row))
    except UnicodeDecodeError as error:
        raise _not_utf8(path, error) from None
    # A key may be left out of a row (the cell is then empty), but not out of all rows.
    _require(path, columns, list(seen))
    yield from rows


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} stands twice")
    return found


def _not_utf8(path: Path, error: UnicodeDecodeError) -> UserError:
    # The error counts from the start of a block of the file: find the line in the whole.
    lines = path.read_bytes().split(b"\n")
    line = next((number for number, text in enumerate(lines, start=1) if not _is_utf8(text)), None)
    return UserError("the file is not UTF-8 text", file=path, line=line, hint="Save it as UTF-8")


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


# ---- Parquet -------------------------------------------------------------------------------------------------------


def _parquet(path: Path, columns: Columns) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        _require(path, columns, file.schema_arrow.names)
        line = 0
        for batch in file.iter_batches(_ROWS_AT_ONCE):
            for row in zip(*(_values(column) for column in batch.columns), strict=True):
                line += 1
                yield line, dict(zip(batch.schema.names, row, strict=True))
    except (pyarrow.ArrowException, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise UserError(f"the file is not valid Parquet ({reason})", file=path) from None


def _folder(path: Path, columns: Columns) -> Iterator[tuple[int, dict[str, Any]]]:
    seen: dict[str, None] = {}
    rows = list(folder_rows(path))
    for _, row in rows:
        seen.update(dict.fromkeys(row))
    _require(path, columns, list(seen))
    yield from rows


def _values(column: Any) -> list[Any]:
    """A column's cells; what Arrow cannot convert, such as text that is not UTF-8, is marked in its row."""
    try:
        return list(column.to_pylist())
    except Exception:  # whatever a cell raises: which one is found below
        return [_value(cell) for cell in column]


def _value(cell: Any) -> Any:
    try:
        return cell.as_py()
    except Exception as error:
        return Unreadable(f"a value of type {cell.type} that cannot be read ({error})")


_READERS: dict[str, Callable[[Path, Columns], Iterator[tuple[int, dict[str, Any]]]]] = {
    ".csv": _csv,
    ".tsv": _tsv,
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".parquet": _parquet,
}


def _require(path: Path, columns: Columns, found: list[str]) -> None:
    twice = sorted({name for name in found if name and found.count(name) > 1})
    if twice:
        raise UserError("a column is named twice", file=path, line=1, found=twice[0])
    for key, column in columns:
        if column not in found:
            hint = nearest(column, found)
            if len(found) == 1 and ";" in found[0]:
                hint = "The cells seem to be separated by semicolons; save the file with commas"
            raise UserError(
                f"{path} has no such column", key=key, found=column, expected="one of " + ", ".join(found), hint=hint
            )
