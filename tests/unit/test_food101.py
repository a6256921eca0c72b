"""UPMC Food-101 in each of its layouts: what becomes a row, and each trap of research/methods.md §A.2."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from mmsweep.data.check import check, named_builder
from mmsweep.data.dataset import Sample
from mmsweep.data.options import DATASETS
from mmsweep.data.sets import food101 as dishes
from mmsweep.data.sets.food101 import CLASSES, Food101
from mmsweep.data.sets.food101_lists import LONGEST_PAGE, class_of
from mmsweep.errors import UserError
from tests.data.layouts import food101 as layouts
from tests.data.layouts.food101 import NAMES, splits, title

LISTS = Path(__file__).parents[2] / "../shared/data/lists/food101"
COUNTS = {"train": 61_142, "val": 6_846, "test": 22_716}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return layouts.write_images(tmp_path)


def food101(root: Path, source: str | None = None, split_seed: int = 0) -> Food101:
    return Food101(DATASETS.options("food101", root=str(root), text={"source": source}, split_seed=split_seed))


def ids(builder: Food101) -> dict[str, list[str]]:
    return {name: [row.id for row in part] for name, part in builder.splits().items()}


def rows(builder: Food101) -> dict[str, Sample]:
    return {row.id: row for part in builder.splits().values() for row in part}


def bad(builder: Food101) -> list[str]:
    return [str(row) for row in builder.bad_rows]


def titles(root: Path, part: str = "train") -> list[str]:
    return (root / "texts" / f"{part}_titles.csv").read_text().split("\n")


def rewrite(root: Path, lines: Sequence[str], part: str = "train") -> None:
    (root / "texts" / f"{part}_titles.csv").write_text("\n".join(lines))


# ---- titles


@pytest.mark.parametrize("header", layouts.HEADERS)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_titles_are_read_by_position(header: tuple[str, ...] | None, end: str, root: Path) -> None:
    builder = food101(layouts.write_titles(root, header, end))
    found = rows(builder)
    assert len(found) == 33 and not builder.bad_rows and dict(builder.rows) == {}
    cake = found["red_velvet_cake_102.jpg"]
    assert cake.target == "red_velvet_cake" and cake.values["text"] == title(cake.id)
    assert cake.values["image"] == root / "images/test/red_velvet_cake/red_velvet_cake_102.jpg"


@pytest.mark.parametrize("path", ["train/apple_pie/", "C:\\data\\"])
def test_titles_may_name_paths_and_lie_in_the_folder_itself(path: str, root: Path) -> None:
    assert len(rows(food101(layouts.write_titles(root, folder=".", path=path)))) == 33


def test_a_byte_order_mark_is_no_part_of_a_name(root: Path) -> None:
    layouts.write_titles(root)
    file = root / "texts/train_titles.csv"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert len(rows(food101(root))) == 33


def test_every_line_of_the_titles_is_used_or_named(root: Path) -> None:
    lines = titles(layouts.write_titles(root))
    lines[0] = f"{NAMES['train'][0]},  ,apple_pie"
    lines[1] = lines[1].replace(",apple_pie", ",pho")
    lines[2] = f"{NAMES['train'][2]},a pie"
    lines += [lines[3], "apple_pie_77.jpg,A pie,apple_pie", "not_an_image,x,not_an", "burger_1.jpg,A burger,burger"]
    rewrite(root, lines)
    builder = food101(root)
    source = "texts/train_titles.csv and texts/test_titles.csv"
    assert bad(builder) == [
        "train_titles.csv:1: apple_pie_0.jpg has no text",
        "train_titles.csv:2: apple_pie_1.jpg is of the class 'pho' here; its name says 'apple_pie'",
        "train_titles.csv:3: expected file, title and class; found 2 cells",
        "train_titles.csv:25: apple_pie_3.jpg has a text already: train_titles.csv:4",
        "train_titles.csv:27: expected the file of an image, <class>_<number>.jpg; found 'not_an_image'",
        f"images/train/apple_pie/apple_pie_0.jpg: there is no text of apple_pie_0.jpg ({source})",
        f"images/train/apple_pie/apple_pie_1.jpg: there is no text of apple_pie_1.jpg ({source})",
        f"images/train/apple_pie/apple_pie_2.jpg: there is no text of apple_pie_2.jpg ({source})",
        "train_titles.csv:26: there is no image apple_pie_77.jpg",
        "train_titles.csv:28: there is no image burger_1.jpg",
    ]
    assert len(rows(builder)) == 30


@pytest.mark.parametrize("closed", [True, False])
def test_a_quote_that_takes_in_other_rows_is_refused(closed: bool, root: Path) -> None:
    lines = titles(layouts.write_titles(root))
    lines[4] = 'apple_pie_4.jpg,"A pie,apple_pie'
    if closed:  # three cells, as any row has
        lines[5:7] = ["apple_pie_5.jpg,A pie,apple_pie", 'apple_pie_6.jpg,A pie",apple_pie']
    rewrite(root, lines)
    with pytest.raises(UserError, match=r"train_titles\.csv.*5.*a quote opens a title that takes in the rows below"):
        food101(root)


def test_a_title_that_is_not_utf8_is_named(root: Path) -> None:
    layouts.write_titles(root)
    file = root / "texts/test_titles.csv"
    file.write_bytes(file.read_bytes().replace("crème".encode(), b"cr\xe8me", 1))
    assert bad(food101(root))[0] == "test_titles.csv:1: the text of apple_pie_100.jpg is not UTF-8"


# ---- other texts


def test_text_json_and_pages_and_jsonl(root: Path) -> None:
    layouts.write_pages(layouts.write_jsonl(layouts.write_lee(layouts.write_titles(root))))
    name, texts = "pho_3.jpg", {}
    for source in (None, "titles", "text_json", "jsonl", "pages"):
        builder = food101(root, source)
        assert len(rows(builder)) == 33 and not builder.bad_rows
        texts[source] = rows(builder)[name].values["text"]
    assert texts[None] == texts["titles"] == texts["text_json"] == title(name)
    assert texts["jsonl"] == title(name).lower() and texts["pages"] == f"{title(name)} on paper"


def test_a_long_page_is_cut_and_its_strange_bytes_are_replaced(root: Path) -> None:
    layouts.write_pages(root)
    (root / "texts_txt/pho/pho_3.txt").write_bytes(b"cr\xe8me " * 9_000)
    text = rows(food101(root))["pho_3.jpg"].values["text"]
    assert text.startswith("cr�me cr�me") and len(text) == LONGEST_PAGE


def test_lines_of_jsonl_that_cannot_be_used_are_named(root: Path) -> None:
    layouts.write_jsonl(root)
    file = root / "train.jsonl"
    lines = file.read_text().split("\n")
    lines[0], lines[1] = "{", json.dumps({"label": "pho", "text": "x"})
    file.write_text("\n".join([*lines, lines[2]]))
    found = bad(food101(root))
    assert [line.split(": ")[0] for line in found] == ["train.jsonl:1", "train.jsonl:2", "train.jsonl:19"]
    assert "has a text already: train.jsonl:3" in found[2] and "expected id, label, text, img" in found[0]


def test_no_texts_and_no_images_are_refused(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(UserError, match=r"the texts are not here; .*train_titles\.csv.*texts_txt"):
        food101(root)
    layouts.write_titles(root)
    with pytest.raises(UserError, match=r"data\.text\.source: the texts are not here; found 'pages'"):
        food101(root, "pages")
    with pytest.raises(UserError, match=r"data\.root: UPMC Food-101 is not here; .*Kaggle as gianmarco96"):
        food101(tmp_path_factory.mktemp("empty"))
    with pytest.raises(UserError, match=r"data\.root: UPMC Food-101 is not here"):
        named_builder("food101")


# ---- splits


def test_lees_list_is_kept_in_its_order(root: Path) -> None:
    builder = food101(layouts.write_lee(root))
    assert ids(builder) == splits() and dict(builder.rows) == COUNTS
    assert "Lee et al.'s split.json" in builder.provenance()


def test_without_a_list_validation_is_carved_class_by_class(root: Path) -> None:
    layouts.write_titles(root)
    found = ids(food101(root))
    assert len(found["val"]) == 2 and len(found["train"]) == 22 and found["test"] == NAMES["test"]
    assert ids(food101(root)) == found != ids(food101(root, split_seed=1))
    assert len({class_of(name) for name in found["val"]}) == 2
    assert sorted(found["train"] + found["val"]) == sorted(NAMES["train"])
    assert "10% of training carved off for validation (seed 0)" in food101(root).provenance()


def test_mlas_lists(root: Path) -> None:
    layouts.write_mla(root)
    train = root / "my_train_food.txt"
    train.write_text("\r\n".join(NAMES["train"][i] + " " + class_of(NAMES["train"][i]) for i in range(20)))
    builder = food101(root)
    found = ids(builder)
    assert len(found["train"]) + len(found["val"]) == 20 and found["test"] == NAMES["test"]
    assert "MLA's" in builder.provenance() and "4 texts belong to images that no list names" in builder.provenance()
    train.unlink()
    with pytest.raises(UserError, match=r"one of MLA's lists is absent; found 'no my_train_food\.txt'"):
        food101(root)


def test_every_line_of_a_list_is_used_or_named(root: Path) -> None:
    layouts.write_mla(root)
    lines = (root / "my_train_food.txt").read_text().split("\n")
    lines[0], lines[1] = "apple_pie_0.jpg pho", "apple_pie_1.jpg"
    lines += [lines[2], "apple_pie_88.jpg apple_pie", "burger_1.jpg burger", "nothing nothing"]
    (root / "my_train_food.txt").write_text("\n".join(lines))
    builder = food101(root)
    assert bad(builder) == [
        "my_train_food.txt:1: apple_pie_0.jpg is of the class 'pho' here; its name says 'apple_pie'",
        "my_train_food.txt:2: apple_pie_1.jpg is of the class '' here; its name says 'apple_pie'",
        "my_train_food.txt:25: apple_pie_2.jpg stands twice",
        "my_train_food.txt:26: there is no image apple_pie_88.jpg",
        "my_train_food.txt:27: expected <class>_<number>.jpg of one of the 101 classes; found 'burger_1.jpg'",
        "my_train_food.txt:28: expected <class>_<number>.jpg of one of the 101 classes; found 'nothing'",
    ]
    assert len(rows(builder)) + len(builder.bad_rows) == len(lines) + 9


@pytest.mark.parametrize(
    ("content", "said"),
    [("[]", "holds no object; found 'list'"), ("{", "not valid JSON"), ('{"train": [], "test": []}', "not list the")],
)
def test_lists_that_are_none(content: str, said: str, root: Path) -> None:
    layouts.write_lee(root)
    (root / "split.json").write_text(content)
    with pytest.raises(UserError, match=rf"split\.json: .*{said}"):
        food101(root)


def test_a_listed_image_in_the_other_folder_is_found(root: Path) -> None:
    layouts.write_lee(root)
    name = splits()["test"][0]
    folder = root / "images/train" / class_of(name)
    (root / "images/test" / class_of(name) / name).rename(folder / name)
    builder = food101(root)
    assert ids(builder) == splits() and rows(builder)[name].values["image"] == folder / name


def test_check_names_what_is_missing(root: Path) -> None:
    layouts.write_titles(root)
    (root / "images/train/pho/pho_2.jpg").unlink()
    found = "\n".join(check(food101(root)).lines)
    assert "1 rows cannot be used: train_titles.csv:11: there is no image pho_2.jpg" in found


# ---- the real lists


@pytest.mark.skipif(not LISTS.is_dir(), reason="the real lists are not here")
@pytest.mark.parametrize("of", ["lee", "mla"])
def test_the_real_lists_are_read_whole(of: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every line is a row but the one whose text is taken away. MLA's training list is not at hand: Lee et al.'s is."""
    lee = json.loads((LISTS / "lee/split.json").read_text())
    mla = [line.split()[0] for line in (LISTS / "mla/my_test_food.txt").read_text().splitlines()]
    assert {class_of(name) for part in lee.values() for name in part} == set(CLASSES)
    images = {"train": lee["train"] + lee["val"], "test": sorted({*lee["test"], *mla})}
    monkeypatch.setattr(dishes, "_images", lambda folder: dict.fromkeys(images[folder.name], folder / "x.jpg"))
    for part in ("train", "test"):
        (tmp_path / "images" / part).mkdir(parents=True)
    lost = lee["val"][5] if of == "lee" else mla[5]
    texts = {name: "A dish" for names in images.values() for name in names if name != lost}
    (tmp_path / "text.json").write_text(json.dumps(texts))
    if of == "lee":
        (tmp_path / "split.json").write_bytes((LISTS / "lee/split.json").read_bytes())
    else:
        (tmp_path / "my_test_food.txt").write_bytes((LISTS / "mla/my_test_food.txt").read_bytes())
        (tmp_path / "my_train_food.txt").write_text("\n".join(f"{name} {class_of(name)}" for name in lee["train"]))
    builder = food101(tmp_path)
    found = {name: len(part) for name, part in builder.splits().items()}
    assert [row for row in bad(builder) if lost in row] == bad(builder) and len(builder.bad_rows) == 1
    if of == "lee":
        assert found == {**COUNTS, "val": COUNTS["val"] - 1}
    else:
        assert found["test"] == 22_714 - 1 and found["train"] + found["val"] == COUNTS["train"]
