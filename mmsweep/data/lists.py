"""Reads a dataset's list files: one row a line, whatever the line ends with. Every line is used or named as bad."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mmsweep.data.dataset import BadRow, Sample
from mmsweep.errors import UserError


class Line(NamedTuple):
    """A line of a list: its text without surrounding blanks, and "file:number" for messages."""

    text: str
    origin: str


def read_list(path: Path) -> Iterator[Line]:
    """The lines that are not blank. A byte-order mark, CRLF and a missing last line end are all fine.

    Raises:
        UserError: the file cannot be read, or is not UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError("the list cannot be read", file=path, found=str(error), expected="lines in UTF-8") from None
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield Line(line.strip(), f"{path.name}:{number}")


def find_list(root: Path, names: Sequence[str]) -> Path | None:
    """The list with the first of these names that there is, in `root` or one of the folders in it; None: there is none.

    Raises:
        UserError: several folders hold a list of that name.
    """
    for name in names:
        if (root / name).is_file():
            return root / name
        found = sorted(root.glob(f"*/{name}"))
        if len(found) > 1:
            raise UserError(
                f"the list {name} is there {len(found)} times", key="data.root",
                found=", ".join(str(path.relative_to(root)) for path in found), expected="one of them",
                hint=f"Copy the right one into {root}",
            )  # fmt: skip
        if found:
            return found[0]
    return None


def read_samples(
    lists: Mapping[str, Iterable[Line]], sample: Callable[[Line], Sample | BadRow], root: Path
) -> tuple[dict[str, list[Sample]], tuple[BadRow, ...]]:
    """The rows of each list, and the lines that give none.

    Args:
        lists: split -> lines.
        sample: what a line says; a row whose id stands in an earlier line is a bad one.
        root: the folder of the raw data, for messages.

    Raises:
        UserError: no line of any list gives a row.
    """
    splits: dict[str, list[Sample]] = {split: [] for split in lists}
    bad: list[BadRow] = []
    places: dict[str, str] = {}
    for split, lines in lists.items():
        for line in lines:
            row = sample(line)
            if isinstance(row, Sample) and row.id in places:
                row = BadRow(line.origin, f"{row.id} stands in {places[row.id]} already")
            if isinstance(row, BadRow):
                bad.append(row)
            else:
                places[row.id] = line.origin
                splits[split].append(row)
    if not places:
        found = f"{len(bad):,} rows that cannot be used, the first {bad[0]}" if bad else "no rows"
        raise UserError("none of the dataset's rows can be used", file=root, key="data.root", found=found)
    return splits, tuple(bad)


def existing_folder(root: Path | None, get: str) -> Path:
    """The folder of the raw data. Raises UserError, saying how to get the data."""
    if root is None or not root.is_dir():
        found = None if root is None else str(root)
        raise UserError("the raw data is not here", key="data.root", found=found, expected="a folder", hint=get)
    return root
