"""Texts become token ids, by the tokenizer of a folder and as the folder's files say."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from mmsweep.components import Section, register
from mmsweep.data.cells import text_of
from mmsweep.data.files import first_line
from mmsweep.data.kinds.kind import Column, Format, Input, Layout, Parts, Rows, Varied
from mmsweep.errors import UserError
from mmsweep.transfer import Resident

Encode = Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]]


@register("text")
@dataclass(frozen=True)
class TextFormat(Format):
    """Texts: columns ids int32 [N,L], mask bool [N,L]; batch dict(ids int64 [B,L'], mask bool [B,L']).

    Args:
        tokenizer: folder of a transformers tokenizer (nothing is downloaded); whether it lower-cases is its own matter.
        length: L, with the special tokens.
        trim: cut the batch to its longest text; False keeps L' = L.
    """

    tokenizer: str
    length: int
    trim: bool = True

    kind: ClassVar[str] = "text"
    word: ClassVar[str] = "text"
    size_key: ClassVar[str] = "data.text.length"
    from_files: ClassVar[bool] = False
    has_black: ClassVar[bool] = True  # an absent text is the empty text, whatever the fill
    filled_on_host: ClassVar[bool] = True

    class Options(Column):
        column: str = Field(
            description="Name of the column, with texts, UTF-8 bytes or numbers. A cell that is blank or null is an "
            "absent modality."
        )

        def value(self, cell: Any, folder: Path) -> Any:
            return text_of(cell)

    class Reading(Section):
        """How texts are read."""

        length: int | None = Field(
            None, ge=4, description="Tokens of a text, [CLS] and [SEP] included; null takes the encoder's default."
        )

    def __post_init__(self) -> None:
        if self.length < 3:
            raise UserError(
                "a text needs room for [CLS], one token and [SEP]",
                key="length",
                found=self.length,
                expected="at least 3",
            )

    def key(self) -> dict[str, Any]:
        return {"kind": self.kind, "tokenizer": _folder_digest(self.tokenizer), "length": self.length}

    def columns(self) -> Layout:
        return [(".ids", np.int32, (self.length,)), (".mask", np.bool_, (self.length,))]

    def decoder_of_many(self) -> Callable[[Sequence[Any]], Parts]:
        encode = text_encoder(self)

        def decode(values: Sequence[Any]) -> Parts:
            ids_NL, mask_NL = encode([value or "" for value in values])
            return {".ids": ids_NL, ".mask": mask_NL}

        return decode

    def statistics(self) -> dict[str, Any]:
        """The tokens of the empty text, and that which pads."""
        ids_NL, mask_NL = text_encoder(self)([""])
        length = int(mask_NL.sum())
        return {"empty": ids_NL[0, :length].tolist(), "pad": ids_NL[0, length:].tolist()[:1]}

    def placeholder(self, fill: str, statistics: Mapping[str, Any]) -> dict[str, Tensor]:
        """The empty text, whatever the fill: ids and mask [length]."""
        empty, pad = statistics["empty"], statistics["pad"]
        ids_L = torch.full((self.length,), (pad or [0])[0])
        ids_L[: len(empty)] = torch.tensor(empty, dtype=torch.int64)
        return {"ids": ids_L, "mask": torch.arange(self.length) < len(empty)}

    def longest(self, columns: Mapping[str, np.ndarray], placeholder: Input) -> int:
        assert isinstance(placeholder, dict)
        return max(int(columns[".mask"].sum(1).max(initial=1)), int(placeholder["mask"].sum()))

    def read(self, rows: Rows) -> dict[str, Tensor]:
        """ids and mask, cut to the longest text."""
        ids_BL, mask_BL = rows.columns[".ids"][rows.index_B], rows.columns[".mask"][rows.index_B]
        if not rows.present_B.all():
            assert isinstance(rows.placeholder, dict)
            ids_BL[~rows.present_B] = rows.placeholder["ids"].numpy()
            mask_BL[~rows.present_B] = rows.placeholder["mask"].numpy()
        longest = int(mask_BL.sum(1).max(initial=1)) if rows.longest is None else rows.longest
        length = longest if self.trim else self.length
        parts = {"ids": ids_BL[:, :length], "mask": mask_BL[:, :length]}
        return {name: torch.from_numpy(np.ascontiguousarray(part)) for name, part in parts.items()}

    def input(
        self, parts: dict[str, Tensor], placeholder: Any, absent: Tensor | None, rows: int, varied: Varied | None,
        constants: tuple[Resident, ...],
    ) -> Input:  # fmt: skip
        return {"ids": parts["ids"].long(), "mask": parts["mask"]}


_TOKENIZER_FILES = ("tokenizer", "vocab", "special_tokens", "merges", "added_tokens", "spiece", "sentencepiece")


def _folder_digest(folder: str) -> str:
    """Digest of a tokenizer's files (not of the folder's name, so that a moved folder is the same tokenizer)."""
    path, digest = Path(folder), hashlib.sha256()
    if not path.is_dir():
        raise UserError("the tokenizer's folder does not exist", file=folder)
    for name in sorted(p.name for p in path.iterdir() if p.is_file()):
        if name.startswith(_TOKENIZER_FILES):
            digest.update(name.encode() + b"\0" + (path / name).read_bytes())
    return digest.hexdigest()[:16]


def text_encoder(format: TextFormat) -> Encode:
    """A function from texts to (ids int32 [n,L], mask bool [n,L]), padded on the right, truncated to L.

    A tokenizer without a padding token pads with 0: what is masked is not read.

    Raises:
        UserError: the folder holds no tokenizer, or one that makes nothing of an empty text.
    """
    folder = Path(format.tokenizer)
    if not folder.is_dir():
        raise UserError("the tokenizer's folder does not exist", file=folder)
    try:
        tokenizer = _load(folder)
        empty = tokenizer("")["input_ids"]
    except Exception as error:  # Rust's own exceptions among them
        raise UserError(
            f"the folder holds no tokenizer that transformers can load ({first_line(error)})", file=folder
        ) from None
    if not empty:
        raise UserError(
            "the tokenizer adds no special tokens, so an empty text would have no token to stand for it",
            file=folder, expected="a tokenizer that adds tokens such as [CLS] and [SEP]",
        )  # fmt: skip
    tokenizer.truncation_side = "right"
    pad = tokenizer.pad_token_id or 0

    def encode(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        rows = tokenizer(list(texts), truncation=True, max_length=format.length)["input_ids"]
        ids_NL = np.full((len(rows), format.length), pad, np.int32)
        mask_NL = np.zeros((len(rows), format.length), bool)
        for row, ids in enumerate(rows):
            ids_NL[row, : len(ids)], mask_NL[row, : len(ids)] = ids, True
        return ids_NL, mask_NL

    return encode


def _load(folder: Path) -> Any:
    """The folder's tokenizer. Where no file says `do_lower_case`, transformers' BERT tokenizers lower-case, whatever
    their vocabulary (huggingface/transformers#3823): the other files are asked first."""
    from transformers import AutoTokenizer  # seconds to import, and only preparation needs it

    said, stored = _json(folder / "tokenizer_config.json"), _json(folder / "tokenizer.json")
    options: dict[str, Any] = {}
    if "do_lower_case" not in said and stored:
        normalizer = stored.get("normalizer") or {}
        options["do_lower_case"] = _lowers(normalizer)
        if normalizer.get("type") == "BertNormalizer" and "strip_accents" not in said:
            options["strip_accents"] = normalizer.get("strip_accents")
    elif "do_lower_case" not in said and _is_cased(folder / "vocab.txt"):
        options["do_lower_case"] = False
    return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, **options)


def _lowers(normalizer: dict[str, Any]) -> bool:
    """Whether a normalizer of tokenizer.json lower-cases."""
    if normalizer.get("type") == "Sequence":
        return any(_lowers(part) for part in normalizer["normalizers"])
    return bool(normalizer.get("lowercase", normalizer.get("type") == "Lowercase"))


def _is_cased(vocabulary: Path) -> bool:
    """Whether a WordPiece vocabulary holds capital letters, special tokens such as [CLS] aside."""
    if not vocabulary.is_file():
        return False
    words = vocabulary.read_text(encoding="utf-8").splitlines()
    return any(word != word.lower() for word in words if not (word.startswith("[") and word.endswith("]")))


def _json(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} is no JSON object")
    return content
