"""Tokenizers: what their files say holds, and a text that cannot be encoded is a bad row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

import mmsweep
from mmsweep.data.kinds.text import TextFormat, text_encoder
from mmsweep.errors import UserError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "Paris", "paris", "café", "cafe"]
BERT = {"tokenizer_class": "BertTokenizer"}
CASED, UNCASED = ["Paris", "red", "café"], ["paris", "red", "cafe"]


def stored(normalizer: Any, template: bool = True) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizers.BertPreTokenizer()
    if template:
        special = [("[CLS]", 2), ("[SEP]", 3)]
        tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=special)
    return tokenizer


def folder_of(
    path: Path, tokenizer: Tokenizer | None = None, config: Any = None, words: list[str] | None = None
) -> str:
    (path / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": len(WORDS)}))
    if tokenizer is not None:
        tokenizer.save(str(path / "tokenizer.json"))
    if words is not None:
        (path / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    if config is not None:
        (path / "tokenizer_config.json").write_text(json.dumps(config))
    return str(path)


def words_of(folder: str, text: str = "Paris red café", length: int = 8) -> list[str]:
    ids_NL, mask_NL = text_encoder(TextFormat(folder, length))([text])
    return [WORDS[i] for i in ids_NL[0, mask_NL[0]]][1:-1]


def bert(lower: bool, strip: bool | None = None) -> Any:
    return normalizers.BertNormalizer(lowercase=lower, strip_accents=strip)


@pytest.mark.parametrize(
    ("normalizer", "config", "vocabulary", "expected"),
    [
        pytest.param(bert(False), None, None, CASED, id="tokenizer.json says cased"),
        pytest.param(bert(False), BERT, None, CASED, id="tokenizer.json says cased, a class that lower-cases"),
        pytest.param(bert(False), {"tokenizer_class": "PreTrainedTokenizerFast"}, None, CASED, id="generic class"),
        pytest.param(bert(True), BERT, None, UNCASED, id="tokenizer.json says uncased"),
        pytest.param(bert(True), {**BERT, "do_lower_case": False}, None, CASED, id="tokenizer_config.json wins"),
        pytest.param(bert(True, False), BERT, None, ["paris", "red", "café"], id="accents kept"),
        pytest.param(bert(False, True), BERT, None, ["Paris", "red", "cafe"], id="accents stripped"),
        pytest.param(normalizers.NFC(), BERT, None, CASED, id="another normalizer"),
        pytest.param(normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()]), BERT, None,
                     ["paris", "red", "cafe"], id="a sequence that lower-cases"),
        pytest.param(None, {**BERT, "do_lower_case": False}, WORDS, CASED, id="vocab.txt, said to be cased"),
        pytest.param(None, {**BERT, "do_lower_case": True}, WORDS, UNCASED, id="vocab.txt, said to be uncased"),
        pytest.param(None, None, WORDS, CASED, id="vocab.txt alone, with capitals"),
        pytest.param(None, BERT, [*WORDS[:6], "[unused1]", *WORDS[7:]], UNCASED, id="vocab.txt without capitals"),
    ],
)  # fmt: skip
def test_the_files_say_what_is_lower_cased(
    normalizer: Any, config: Any, vocabulary: Any, expected: list[str], tmp_path: Path
) -> None:
    folder = folder_of(tmp_path, None if normalizer is None else stored(normalizer), config, vocabulary)
    assert words_of(folder) == expected


def test_settings_of_pictures_beside_it_hide_nothing(tmp_path: Path) -> None:
    """As in ViLT's folders."""
    folder = folder_of(tmp_path, None, {**BERT, "do_lower_case": False}, WORDS)
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5]}')
    assert words_of(folder) == CASED


def test_no_padding_token_is_needed(tmp_path: Path) -> None:
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]"}
    folder = folder_of(tmp_path, stored(bert(False)), config)
    ids_NL, mask_NL = text_encoder(TextFormat(folder, 6))(["red", "", "red red red red red red"])
    assert ids_NL.tolist() == [[2, 5, 3, 0, 0, 0], [2, 3, 0, 0, 0, 0], [2, 5, 5, 5, 5, 3]]
    assert mask_NL.sum(1).tolist() == [3, 2, 6] and ids_NL.dtype == np.int32


def test_a_tokenizer_without_special_tokens_is_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, stored(None, template=False), {"tokenizer_class": "PreTrainedTokenizerFast"})
    with pytest.raises(UserError, match="adds no special tokens") as caught:
        text_encoder(TextFormat(folder, 6))
    assert folder in str(caught.value)


@pytest.mark.parametrize("content", ["", "{", "[1]", "null", '{"model": 3}'])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_damaged_files_are_one_message(name: str, content: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, stored(bert(False)), BERT)
    (tmp_path / name).write_text(content)
    try:
        assert words_of(folder) == CASED
    except UserError as problem:
        assert "\n" not in str(problem) and folder in str(problem)
    else:
        assert (name, content) == ("tokenizer_config.json", '{"model": 3}')


def test_the_shipped_tokenizer_is_what_it_was() -> None:
    """Prepared data and old sweeps are known by its digest; a renaming once changed a word of its vocabulary."""
    folder = Path(mmsweep.__file__).parent / "assets" / "encoders" / "clipart_text"
    assert TextFormat(str(folder), 24).key()["tokenizer"] == "d4c0005c6ddf206d"
