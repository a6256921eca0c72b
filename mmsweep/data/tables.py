"""Reads the rows of a CSV, JSONL or Parquet file, each with its line, whole or with one clear error."""

from __future__ import annotations

import csv
import difflib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmsweep.errors import UserError

Row = dict[str, Any]
FORMATS = {".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
_LONGEST_CELL = 64 * 2**20  # the csv module's own limit, 128 KiB, is shorter than some texts


def read_table(path: Path, columns: Sequence[tuple[str, str]]) -> Iterator[tuple[int, Row]]:
    """Rows of a file as (line, column -> cell); empty and blank cells are None. Lines of Parquet count rows from 1.

    Args:
        path: its suffix says the format.
        columns: (key of the study, column) that must be there.

    Raises:
        UserError: the file is absent, of unknown format or malformed (with the line); a column is absent (with the
            nearest spelling).
    """
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        raise UserError("unknown format of manifest", file=path, found=path.suffix, expected=", ".join(FORMATS))
    if not path.is_file():
        raise UserError("the manifest does not exist", key="data.path", found=str(path), expected="a file")
    reader = {"csv": _csv, "jsonl": _jsonl, "parquet": _parquet}[kind]
    for line, row in reader(path, columns):
        yield line, {column: _cell(value) for column, value in row.items()}


def _cell(value: Any) -> Any:
    if isinstance(value, str):
        return value if value.strip() else None
    if isinstance(value, float) and value != value:  # pandas writes absent cells of Parquet as NaN
        return None
    return value


def _csv(path: Path, columns: Sequence[tuple[str, str]]) -> Iterator[tuple[int, Row]]:
    csv.field_size_limit(_LONGEST_CELL)
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    end = 0
    with path.open(encoding="utf-8-sig", newline="") as file:  # a byte-order mark is Excel's habit
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            header = [name.strip() for name in next(reader, [])]
            if not header:
                raise UserError("the manifest is empty", file=path, expected="a header line with the names of columns")
            twice = sorted({name for name in header if name and header.count(name) > 1})
            if twice:
                raise UserError("a column is named twice", file=path, line=1, found=twice[0])
            _require(path, columns, header)
            end = reader.line_num
            for cells in reader:
                line, end = end + 1, reader.line_num  # a quoted cell may span lines: name the first
                if not cells:
                    continue
                if len(cells) != len(header):
                    raise UserError(
                        "the row has another number of cells than the header",
                        file=path,
                        line=line,
                        found=len(cells),
                        expected=str(len(header)),
                        hint="Cells that hold commas or line breaks need double quotes"
                        if len(cells) > len(header)
                        else None,
                    )
                yield line, dict(zip(header, cells, strict=True))
        except csv.Error as error:
            raise UserError(f"the row is not valid CSV ({error})", file=path, line=end + 1) from None
        except UnicodeDecodeError as error:
            raise _not_utf8(path, error) from None


def _jsonl(path: Path, columns: Sequence[tuple[str, str]]) -> Iterator[tuple[int, Row]]:
    seen: dict[str, None] = {}
    rows: list[tuple[int, Row]] = []
    try:
        for line, text in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except ValueError as error:
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


def _parquet(path: Path, columns: Sequence[tuple[str, str]]) -> Iterator[tuple[int, Row]]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        _require(path, columns, file.schema_arrow.names)
        line = 0
        for batch in file.iter_batches(columns=list(dict.fromkeys(column for _, column in columns))):
            for row in batch.to_pylist():
                line += 1
                yield line, row
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"the file is not valid Parquet ({str(error).splitlines()[0][:120]})", file=path) from None


def _require(path: Path, columns: Sequence[tuple[str, str]], found: list[str]) -> None:
    for key, column in columns:
        if column not in found:
            near = difflib.get_close_matches(column, found, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else None
            if len(found) == 1 and ";" in found[0]:
                hint = "The cells seem to be separated by semicolons; save the file with commas"
            raise UserError(
                f"{path} has no such column", key=key, found=column, expected="one of " + ", ".join(found), hint=hint
            )


def _not_utf8(path: Path, error: UnicodeDecodeError) -> UserError:
    with path.open("rb") as file:
        line = file.read().count(b"\n", 0, error.start) + 1 if isinstance(error.object, bytes) else None
    return UserError("the file is not UTF-8 text", file=path, line=line, hint="Save it as UTF-8")
