"""Texts become token ids, by the tokenizer of a folder and as the folder's files say."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmsweep.data.files import first_line
from mmsweep.data.formats import TextFormat
from mmsweep.errors import UserError

Encode = Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]]


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
