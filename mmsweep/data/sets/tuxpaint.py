"""Tux Paint's stamps: a picture, its name in English, and the name spoken; the class is the stamp's category.

Read from where the Debian package `tuxpaint-stamps-default` unpacks them (GPL-2: nothing of it is in this repository).
A row is a stamp; its speech is in one language (`data.audio.language`, French unless told otherwise: it covers the most
stamps), and a stamp that nobody speaks in that language has a natural gap. With the language `all` a row is a stamp
and a language. Text dominates and speech is weak, as in CMU-MOSI (research/data.md §3a).

Splits are carved by the name without case and punctuation, class by class: two drawings of "A flower." stand together.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field

from mmsweep.components import register
from mmsweep.data.dataset import DatasetBuilder, DatasetCard, Sample
from mmsweep.data.kinds.audio import AudioFormat
from mmsweep.data.options import CarvedOptions
from mmsweep.data.splitting import carve_by_class
from mmsweep.errors import UserError
from mmsweep.tasks.task import Target

CLASSES = (
    "animals", "clothes", "food", "hobbies", "household", "military", "people", "plants", "seasonal", "space", "sports",
    "symbols", "town", "vehicles",
)  # fmt: skip
"""Categories of ten stamps or more; `medical` (6) and `naturalforces` (3) cannot be learned and tested."""

SHARES = {"test": 0.25, "val": 0.15}
LANGUAGE = "fr"
PACKAGE = "tuxpaint-stamps-default"
DEFAULT_ROOT = Path("/usr/share/tuxpaint/stamps")
GET = (
    f"sudo apt install {PACKAGE} (161 MB, GPL-2; found by itself), or without root: apt download {PACKAGE} && "
    f"dpkg -x {PACKAGE}_*.deb FOLDER, with data.root=FOLDER; and pip install 'mmsweep[audio,svg]'"
)
EXPECTED = {"train": 565, "val": 142, "test": 234}
"""Rows of package version 2022.06.04-1 with the default language and split seed 0."""

_SPEECH = re.compile(r"(?P<stem>.+)_desc(?:_(?P<language>[A-Za-z_]+))?\.(?:ogg|wav)$")


class Speech(AudioFormat.Reading):
    language: str | None = Field(
        None,
        description=f"Language of the speech: a code as in the names of the files, or all; null takes {LANGUAGE!r}.",
    )


class StampOptions(CarvedOptions):
    audio: Speech = Field(Speech(), description=AudioFormat.Reading.__doc__)

    @property
    def language(self) -> str:
        """The language in force."""
        return self.audio.language or LANGUAGE


class Stamps(DatasetBuilder):
    """What the datasets share that are made of the stamps."""

    Options = StampOptions
    get = GET

    @classmethod
    def card(cls, options: Any = None) -> DatasetCard:
        usual = options is None or (options.language, options.split_seed) == (LANGUAGE, 0)
        return replace(super().card(options), rows=EXPECTED if usual else {})


@register("tuxpaint")
class TuxPaint(Stamps):
    """The stamps of an unpacked package.

    `data.root` is the package's folder of stamps, or the folder that `dpkg -x` unpacked it to; null: where apt puts it.

    Raises:
        UserError: no stamps there; no speech in that language; too few stamps to carve.
    """

    name = "tuxpaint"
    title = "Tux Paint's stamps: picture, name and spoken name, 14 categories"
    modalities = {"image": "image", "text": "text", "audio": "audio"}
    target = Target("single_label", CLASSES)
    layout = "<category>/…/<stamp>.png or .svg, <stamp>.txt, <stamp>_desc_<language>.ogg"

    def __init__(self, options: StampOptions) -> None:
        super().__init__(options)
        self.language, self.split_seed = options.language, options.split_seed
        self.folder = stamps_folder(self.root)
        self._splits = self._carved(read_stamps(self.folder, self.language))

    def splits(self) -> dict[str, list[Sample]]:
        return {name: list(rows) for name, rows in self._splits.items()}

    def _carved(self, samples: list[Sample]) -> dict[str, list[Sample]]:
        groups = [str(sample.group) for sample in samples]
        test, val, train = carve_by_class(samples, groups, list(SHARES.values()), self.split_seed)
        for name, rows in (("train", train), ("val", val), ("test", test)):
            if not rows:
                raise UserError(
                    f"too few stamps to carve {name} from",
                    file=self.folder,
                    found=len(samples),
                    hint=f"Get them: {GET}",
                )
        return {"train": train, "val": val, "test": test}

    def provenance(self) -> str:
        speech = "in every language there is" if self.language == "all" else f"in the language {self.language!r}"
        return (
            f"Tux Paint's stamps (Debian {PACKAGE}, GPL-2) in {self.folder}: picture, English name and name spoken "
            f"{speech}. Carved by name within each category (seed {self.split_seed}); mirrored and flipped copies, and "
            "categories of fewer than ten stamps, are left out."
        )


def stamps_folder(root: Path | None) -> Path:
    """The folder that holds the categories. Raises UserError, saying how to get the package."""
    places = [DEFAULT_ROOT] if root is None else [root, root / "usr/share/tuxpaint/stamps", root / "stamps"]
    for place in places:
        if any((place / name).is_dir() for name in CLASSES):
            return place
    raise UserError(
        "Tux Paint's stamps are not here",
        file=places[0],
        key="data.root",
        expected=f"the folder of stamps of {PACKAGE}, or the folder it was unpacked to",
        hint=f"Get them: {GET}",
    )


def read_stamps(folder: Path, language: str) -> list[Sample]:
    """A row per stamp (or stamp and language), in the order of names."""
    samples: list[Sample] = []
    spoken: set[str] = set()
    for category in CLASSES:
        files = sorted(path for path in (folder / category).rglob("*") if path.is_file())
        speech = _speech(files)
        pictures = {path.with_suffix(""): path for path in files if path.suffix == ".svg"}
        pictures |= {path.with_suffix(""): path for path in files if path.suffix == ".png"}  # needs no renderer
        for stem in sorted(pictures):
            text = stem.with_name(stem.name + ".txt")
            if stem.name.endswith(("_mirror", "_flip")) or not text.is_file():
                continue
            name = text.read_text(encoding="utf-8-sig", errors="replace").split("\n")[0].strip()
            own = speech.get(stem, {})
            spoken |= own.keys()
            for code in sorted(own) or ["none"] if language == "all" else [language]:
                id = str(stem.relative_to(folder)) + (f":{code}" if language == "all" else "")
                values = {"image": pictures[stem], "text": name or None, "audio": own.get(code)}
                origin = str(pictures[stem].relative_to(folder))
                samples.append(Sample(id, values, category, plain_name(name) or id, origin))
    if samples and language != "all" and language not in spoken:
        raise UserError(
            "no stamp is spoken in this language",
            key="data.audio.language",
            found=language,
            expected=f"all, or one of {', '.join(sorted(spoken))}",
        )
    return samples


def plain_name(name: str) -> str:
    """A name without case, punctuation and a leading article: what keeps drawings of one thing together."""
    words = re.sub(r"\W+", " ", name.lower()).split()
    return " ".join(words[1:] if len(words) > 1 and words[0] in ("a", "an", "the") else words)


def _speech(files: list[Path]) -> dict[Path, dict[str, Path]]:
    """Stem -> language -> recording."""
    found: dict[Path, dict[str, Path]] = {}
    for path in files:
        match = _SPEECH.match(path.name)
        if match:
            stem = path.with_name(match["stem"])
            found.setdefault(stem, {}).setdefault(match["language"] or "en", path)
    return found
