"""UPMC Food-101: a photograph of a dish and the title of the page it stood on (research/methods.md §A.2).

    images/{train,test}/<class>/<class>_<number>.jpg
    texts/{train,test}_titles.csv                        file, title, class: read by position, under any header or none
    text.json                                            Lee et al.'s: file -> title
    {train,dev,test}.jsonl                               MMBT's: id, label, text, img
    texts_txt/<class>/<class>_<number>.txt               the original: text of the whole page

Splits are those of Lee et al.'s split.json, else MLA's my_{train,test}_food.txt, else the .jsonl files where these are
the texts, else the folders of images; validation that no list names is carved from training. A row needs both its
picture and its text: one without the other is a bad row, as in Lee et al.'s preparation.

Counts: Lee et al.'s lists (CVPR 2023), 67,988 for training (61,142 + 6,846 for validation) and 22,716 for test, the
numbers of CMPT's paper (B18). The classes are ETHZ Food-101's, in alphabetical order; a file's class is its name before
the last "_".
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from mmsweep.components import register
from mmsweep.data.dataset import SPLITS, BadRow, DatasetBuilder, Sample
from mmsweep.data.kinds.text import TextFormat
from mmsweep.data.options import CarvedOptions
from mmsweep.data.sets.food101_lists import LISTS, Entry, class_of, read_lists, read_texts
from mmsweep.data.splitting import carve_stratified
from mmsweep.errors import UserError
from mmsweep.tasks.task import Target

_NAMES = """
apple_pie baby_back_ribs baklava beef_carpaccio beef_tartare beet_salad beignets bibimbap bread_pudding
breakfast_burrito bruschetta caesar_salad cannoli caprese_salad carrot_cake ceviche cheese_plate cheesecake
chicken_curry chicken_quesadilla chicken_wings chocolate_cake chocolate_mousse churros clam_chowder
club_sandwich crab_cakes creme_brulee croque_madame cup_cakes deviled_eggs donuts dumplings edamame
eggs_benedict escargots falafel filet_mignon fish_and_chips foie_gras french_fries french_onion_soup
french_toast fried_calamari fried_rice frozen_yogurt garlic_bread gnocchi greek_salad grilled_cheese_sandwich
grilled_salmon guacamole gyoza hamburger hot_and_sour_soup hot_dog huevos_rancheros hummus ice_cream lasagna
lobster_bisque lobster_roll_sandwich macaroni_and_cheese macarons miso_soup mussels nachos omelette
onion_rings oysters pad_thai paella pancakes panna_cotta peking_duck pho pizza pork_chop poutine prime_rib
pulled_pork_sandwich ramen ravioli red_velvet_cake risotto samosa sashimi scallops seaweed_salad
shrimp_and_grits spaghetti_bolognese spaghetti_carbonara spring_rolls steak strawberry_shortcake sushi tacos
takoyaki tiramisu tuna_tartare waffles
"""
CLASSES = tuple(_NAMES.split())
VALIDATION = 0.1
"""Share of the training rows that validate where no list names any."""


class Title(TextFormat.Reading):
    source: Literal["titles", "text_json", "jsonl", "pages"] | None = Field(
        None,
        description="Which texts are read where a folder holds several: titles (texts/*_titles.csv), text_json "
        "(text.json), jsonl (MMBT's files) or pages (texts_txt/). null: the first of these that is there.",
    )


@register("food101")
class Food101(DatasetBuilder):
    """Rows in the order of the lists, or of the names of images where there is no list.

    Raises:
        UserError: the images or the texts are not here; a list or a file of texts is malformed.
    """

    name = "food101"
    title = "UPMC Food-101: photographs of dishes with page titles"
    modalities = {"image": "image", "text": "text"}
    target = Target("single_label", CLASSES)
    rows = {"train": 61_142, "val": 6_846, "test": 22_716}
    licence = "none stated; photographs and texts of web pages, shared for research"
    get = (
        "the original server is gone; a copy is on Kaggle as gianmarco96/upmcfood101; put Lee et al.'s split.json "
        "(datasets/Food101 of YiLunLee/missing_aware_prompts) into the folder for the papers' splits"
    )
    layout = (
        "images/{train,test}/<class>/<class>_<number>.jpg; texts/{train,test}_titles.csv (file, title, class), "
        "text.json, {train,dev,test}.jsonl or texts_txt/<class>/<name>.txt; split.json or my_{train,test}_food.txt"
    )

    class Options(CarvedOptions):
        text: Title = Field(Title(), description=TextFormat.Reading.__doc__)

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        if self.root is None or not all((self.root / "images" / part).is_dir() for part in ("train", "test")):
            raise UserError(
                "UPMC Food-101 is not here", file=self.root, key="data.root", found="no images/train and images/test",
                expected=self.layout, hint=f"Get it: {self.get}",
            )  # fmt: skip
        self._images = {part: _images(self.root / "images" / part) for part in ("train", "test")}
        self._texts = read_texts(self.root, options.text.source)
        self._bad = list(self._texts.bad)
        self._named: set[str] = set()
        lists, self._split = read_lists(self.root, self._texts)
        if not (self.root / LISTS).is_file():
            self.rows = {}
        parts = {name: self._samples(name, entries) for name, entries in (lists or self._by_folder()).items()}
        if "val" not in parts:
            ids = [row.id for row in parts["train"]]
            parts["val"], parts["train"] = carve_stratified(parts["train"], ids, [VALIDATION], options.split_seed)
            self._split += f", {VALIDATION:.0%} of training carved off for validation (seed {options.split_seed})"
        self._splits = {name: parts[name] for name in SPLITS}
        self._unlisted = self._left_over()
        self.bad_rows = tuple(self._bad)

    def splits(self) -> dict[str, list[Sample]]:
        return {name: list(rows) for name, rows in self._splits.items()}

    def provenance(self) -> str:
        lost = len(self._images["train"]) + len(self._images["test"]) - sum(map(len, self._splits.values()))
        return (
            f"UPMC Food-101 in {self.root}: split by {self._split}; texts: {self._texts.place}. {lost} images are not "
            f"used; {len(self._unlisted)} texts belong to images that no list names."
        )

    def _by_folder(self) -> dict[str, list[Entry]]:
        return {part: [Entry(name, f"images/{part}/{class_of(name)}/{name}") for name in images]
                for part, images in self._images.items()}  # fmt: skip

    def _samples(self, split: str, entries: list[Entry]) -> list[Sample]:
        """Rows of a split; an entry that is none becomes a bad row."""
        own, other = ("test", "train") if split == "test" else ("train", "test")
        samples = []
        for name, origin, label in entries:
            image, text = self._images[own].get(name) or self._images[other].get(name), self._texts.texts.get(name)
            problem = None
            if name in self._named:
                problem = f"{name} stands twice"
            elif class_of(name) not in _KNOWN:
                problem = f"expected <class>_<number>.jpg of one of the 101 classes; found {name!r}"
            elif label is not None and label != class_of(name):
                problem = f"{name} is of the class {label!r} here; its name says {class_of(name)!r}"
            elif image is None:
                problem = f"there is no image {name}"
            elif text is None:
                problem = f"there is no text of {name} ({self._texts.place})"
            self._named.add(name)
            if problem is not None:
                self._bad.append(BadRow(origin, problem))
                continue
            samples.append(Sample(name, {"image": image, "text": text}, class_of(name), name, origin))
        return samples

    def _left_over(self) -> list[str]:
        """Images whose text no list names; a text that has no image at all becomes a bad row."""
        left = [name for name in self._texts.texts if name not in self._named]
        there = self._images["train"].keys() | self._images["test"].keys()
        self._bad += [
            BadRow(self._texts.origins[name], f"there is no image {name}") for name in left if name not in there
        ]
        return [name for name in left if name in there]


_KNOWN = frozenset(CLASSES)


def _images(folder: Path) -> dict[str, Path]:
    """Name -> file, in the order of classes and names."""
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    return {name: folder / label / name for label in classes for name in sorted(os.listdir(folder / label))}
