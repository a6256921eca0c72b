"""The texts and the lists of UPMC Food-101 in the files in which they circulate (research/methods.md §A.2)."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from mmsweep.data.cells import shown
from mmsweep.data.dataset import BadRow
from mmsweep.data.files import first_line
from mmsweep.errors import UserError

LISTS = "split.json"
LONGEST_PAGE = 10_000
"""Characters of a page's text that are read: about 2,000 tokens, four times what any study reads."""

_SPLITS = {"train": ("train",), "val": ("dev", "val", "valid"), "test": ("test",)}
_IMAGE = re.compile(r"[^\s/]+_[^\s/_]+\.\w+")
"""Most end with a number; cheese_plate_717-2.jpg is in Lee et al.'s list too."""

_SWALLOWED = re.compile(r"\n(?:[^,\n]*/)?[^\s,/]+_[^\s,/_]+\.\w+,")
"""The start of another row within a cell."""


class Entry(NamedTuple):
    """A line of a list.

    Args:
        name: of the image's file.
        origin: where the line stands.
        label: the class that it states; None: it states none.
    """

    name: str
    origin: str
    label: str | None = None


@dataclass
class Texts:
    """Texts by the name of their image.

    Args:
        place: the files that they are from.
        texts, origins: text, and where it stands.
        bad: lines that cannot be used.
        lists: the splits, where the files of the texts tell them.
    """

    place: str
    texts: dict[str, str] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    bad: list[BadRow] = field(default_factory=list)
    lists: dict[str, list[Entry]] = field(default_factory=dict)

    def add(self, name: str, text: Any, origin: str, label: str | None = None) -> bool:
        """Whether the line can be used; what is wrong with it goes to `bad`."""
        problem = None
        if not _IMAGE.fullmatch(name):
            problem = f"expected the file of an image, <class>_<number>.jpg; found {shown(name)}"
        elif name in self.origins:
            problem = f"{name} has a text already: {self.origins[name]}"
        elif label is not None and label != class_of(name):
            problem = f"{name} is of the class {shown(label)} here; its name says {class_of(name)!r}"
        elif not isinstance(text, str) or not text.strip():
            problem = f"{name} has no text"
        elif not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
            problem = f"the text of {name} is not UTF-8"
        if problem is not None:
            self.bad.append(BadRow(origin, problem))
            return False
        self.texts[name], self.origins[name] = text.strip(), origin
        return True


def class_of(name: str) -> str:
    """A file's class: its name before the last "_", since names of classes hold "_" too."""
    return name.rpartition("_")[0]


# ---- texts


def read_texts(root: Path, source: str | None) -> Texts:
    """The texts of a source, a name of SOURCES; None: the first one that is there.

    Raises:
        UserError: there are none, or a file of them is malformed.
    """
    for name in [source] if source else SOURCES:
        if (texts := SOURCES[name](root)) is not None:
            return texts
    raise UserError(
        "the texts are not here", file=root, key="data.text.source", found=source,
        expected="texts/train_titles.csv and texts/test_titles.csv (titles), text.json (text_json), train.jsonl and "
        "test.jsonl (jsonl), or texts_txt/<class>/<name>.txt (pages)",
    )  # fmt: skip


def _titles(root: Path) -> Texts | None:
    """Kaggle's tables: file, title and class, under some header or none."""
    for folder in (root / "texts", root):
        paths = [folder / f"{part}_titles.csv" for part in ("train", "test")]
        if any(path.is_file() for path in paths):
            found = Texts(" and ".join(str(path.relative_to(root)) for path in paths))
            for path in paths:
                for line, cells in _csv(path):
                    origin = f"{path.name}:{line}"
                    if any(_SWALLOWED.search(cell) for cell in cells):
                        raise UserError("a quote opens a title that takes in the rows below it", file=path, line=line,
                                        hint='Write a quote within a title as ""')  # fmt: skip
                    if len(cells) != 3:
                        found.bad.append(BadRow(origin, f"expected file, title and class; found {len(cells)} cells"))
                    elif line > 1 or _IMAGE.fullmatch(_file(cells[0])):  # else a header
                        found.add(_file(cells[0]), cells[1], origin, cells[2].strip())
            return found
    return None


def _csv(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not blank, with the line on which they begin."""
    end = 0
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.reader(file)
            for cells in reader:
                line, end = end + 1, reader.line_num
                if cells:
                    yield line, cells
    except OSError as error:
        raise UserError(f"the titles cannot be read ({error.strerror})", file=path) from None
    except csv.Error as error:
        raise UserError(f"the row is not valid CSV ({error})", file=path, line=end + 1) from None


def _text_json(root: Path) -> Texts | None:
    """Lee et al.'s text.json: file -> title."""
    path = root / "text.json"
    if not path.is_file():
        return None
    found = Texts(path.name)
    for name, text in _object(path, "texts by the names of images").items():
        found.add(name, text, f"{path.name}: {name}")
    return found


def _jsonl(root: Path) -> Texts | None:
    """MMBT's files: a line has id, label, text and img, and the files are the splits."""
    paths = {split: next((p for name in names if (p := root / f"{name}.jsonl").is_file()), None)
             for split, names in _SPLITS.items()}  # fmt: skip
    if paths["train"] is None or paths["test"] is None:
        return None
    found = Texts(", ".join(path.name for path in paths.values() if path is not None))
    for split, path in paths.items():
        if path is None:
            continue
        found.lists[split] = []
        for line, text in _lines(path):
            try:
                row = json.loads(text)
                name, label = _file(row.get("img") or f"{row['id']}.jpg"), row.get("label")
            except (ValueError, KeyError, AttributeError, TypeError) as error:
                found.bad.append(BadRow(f"{path.name}:{line}", f"expected id, label, text, img ({first_line(error)})"))
                continue
            if found.add(name, row.get("text"), f"{path.name}:{line}", label):
                found.lists[split].append(Entry(name, f"{path.name}:{line}"))
    return found


def _pages(root: Path) -> Texts | None:
    """The original texts of whole pages, a file each; blanks are drawn together, bytes that are not UTF-8 replaced."""
    folder = root / "texts_txt"
    if not folder.is_dir():
        return None
    found = Texts(f"{folder.name}/, the first {LONGEST_PAGE:,} characters of a page")
    for path in sorted(folder.rglob("*.txt")):
        text = " ".join(path.read_bytes().decode("utf-8-sig", "replace").split())
        found.add(f"{path.stem}.jpg", text[:LONGEST_PAGE], str(path.relative_to(root)))
    return found


SOURCES = {"titles": _titles, "text_json": _text_json, "jsonl": _jsonl, "pages": _pages}
"""Where texts are looked for, in this order."""


# ---- lists


def read_lists(root: Path, texts: Texts) -> tuple[dict[str, list[Entry]] | None, str]:
    """Split -> entries ("val" may be absent), and the list's name for people; None where no list is here.

    Raises:
        UserError: a list is malformed, or one of a pair is absent.
    """
    if (path := root / LISTS).is_file():
        lists = _object(path, "train, val and test, each a list of files")
        homes = {key: next((s for s, names in _SPLITS.items() if key in names), None) for key in lists}
        if sorted(map(str, homes.values())) != sorted(_SPLITS) or not all(isinstance(v, list) for v in lists.values()):
            raise UserError("the file does not list the splits", file=path, found=list(lists),
                            expected="train, val and test, each a list of files")  # fmt: skip
        entries = {str(homes[key]): [Entry(_name(name), f"{LISTS}: {key} {name}") for name in names]
                   for key, names in lists.items()}  # fmt: skip
        return entries, f"Lee et al.'s {LISTS}"
    files = {split: next((p for name in names if (p := root / f"my_{name}_food.txt").is_file()), None)
             for split, names in _SPLITS.items()}  # fmt: skip
    if any(files.values()):
        for split in ("train", "test"):
            if files[split] is None:
                raise UserError("one of MLA's lists is absent", file=root, found=f"no my_{split}_food.txt",
                                expected="my_train_food.txt and my_test_food.txt, or neither")  # fmt: skip
        mla = {split: [_mla(path, line, text) for line, text in _lines(path)] for split, path in files.items() if path}
        return mla, "MLA's my_*_food.txt"
    return (texts.lists, texts.place) if texts.lists else (None, "the folders of images")


def _mla(path: Path, line: int, text: str) -> Entry:
    """A line `<file> <class>`."""
    name, _, label = text.strip().partition(" ")
    return Entry(name, f"{path.name}:{line}", label.strip())


def _name(value: Any) -> str:
    return value if isinstance(value, str) else shown(value)


def _file(path: str) -> str:
    """The last part of a path with slashes of either kind."""
    return PurePosixPath(path.strip().replace("\\", "/")).name


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, without CR and LF."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
        for line, text in enumerate(file, start=1):
            if text.strip():
                yield line, text.rstrip("\r\n")


def _object(path: Path, expected: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, OSError) as error:
        raise UserError(f"the file is not valid JSON ({first_line(error)})", file=path, expected=expected) from None
    if not isinstance(content, dict):
        raise UserError("the file holds no object", file=path, found=type(content).__name__, expected=expected)
    return content
