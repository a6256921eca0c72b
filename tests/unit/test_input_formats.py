"""What an encoder's files say of its inputs, in every way in which they say it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mmsweep.data.kinds.audio import AudioFormat
from mmsweep.data.kinds.image import ImageFormat
from mmsweep.errors import UserError
from mmsweep.models.families.family import FAMILIES
from mmsweep.models.input_formats import Inputs, Preprocessing, image_format, text_format

HALF = (0.5, 0.5, 0.5)
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def said(folder: Path, content: Any, name: str = "preprocessor_config.json") -> Preprocessing:
    (folder / name).write_text(json.dumps(content))
    return Preprocessing(folder)


def pictures(folder: Path, content: Any, config: Any = None, **options: Any) -> ImageFormat:
    config = config or SimpleNamespace(image_size=96)
    return image_format(config, said(folder, content), Inputs(**options), HALF, HALF)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({}, ImageFormat(96)),
        (IMAGENET, ImageFormat(96, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))),
        ({"image_mean": None, "size": None, "resample": None}, ImageFormat(96)),
        ({"do_normalize": False, **IMAGENET}, ImageFormat(96, (0.0,) * 3, (1.0,) * 3)),
        ({"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [51.0] * 3}, ImageFormat(96, HALF, (0.2,) * 3)),
        ({"rescale_factor": 1 / 127.5, "image_mean": [1, 1, 1], "image_std": [1, 1, 1]}, ImageFormat(96)),
        ({"size": 64, "resample": 2}, ImageFormat(64, resample="bilinear")),
        ({"size": {"height": 64, "width": 64}}, ImageFormat(64)),
        ({"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}}, ImageFormat(224, resize=256)),
        ({"size": {"shortest_edge": 256}, "crop_size": 224, "do_center_crop": False}, ImageFormat(256)),
        ({"size": 256, "crop_size": 224, "do_resize": False}, ImageFormat(224)),
    ],
)
def test_pictures_are_made_as_the_preprocessing_says(
    content: dict[str, Any], expected: ImageFormat, tmp_path: Path
) -> None:
    found = pictures(tmp_path, content)
    assert found.key() == expected.key() and found.size == expected.size
    assert found.mean == pytest.approx(expected.mean) and found.std == pytest.approx(expected.std)


def test_a_size_of_the_study_keeps_the_margin(tmp_path: Path) -> None:
    content = {"size": {"shortest_edge": 256}, "crop_size": 224}
    assert pictures(tmp_path, content, size=112) == ImageFormat(112, resize=128)
    assert pictures(tmp_path, content, fit="pad") == ImageFormat(224, fit="pad")


def test_settings_of_a_processor_are_found(tmp_path: Path) -> None:
    """transformers 5 writes pictures' settings as a part of processor_config.json."""
    found = said(tmp_path, {"image_processor": {"resample": 2}}, "processor_config.json")
    assert image_format(SimpleNamespace(image_size=96), found, Inputs(), HALF, HALF).resample == "bilinear"


@pytest.mark.parametrize(
    "content",
    [{"size": {"height": 64, "width": 96}}, {"image_mean": "half"}, {"image_mean": [0.5]}, {"resample": 17},
     {"size": "big"}, {"image_std": [0, 0, 0]}],
)  # fmt: skip
def test_settings_that_are_not_understood_are_refused(content: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"preprocessor_config\.json"):
        pictures(tmp_path, content)


@pytest.mark.parametrize("text", ["{", "[1]", "null", "\xff"])
def test_damaged_settings_are_one_message(text: str, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"preprocessor_config\.json"):
        Preprocessing(tmp_path)


def test_other_channels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"num_channels: .*RGB pictures; found 1; expected 3"):
        pictures(tmp_path, {}, SimpleNamespace(image_size=96, num_channels=1))


def test_texts_are_no_longer_than_their_tokenizer_says(tmp_path: Path) -> None:
    config = SimpleNamespace(max_position_embeddings=512)
    for most, length in ((64, 64), (512, 128), (1e30, 128), (None, 128)):
        found = said(tmp_path, {"model_max_length": most}, "tokenizer_config.json")
        assert text_format(config, found, "folder", Inputs()).length == length
        assert text_format(config, found, "folder", Inputs(length=200)).length == 200


def test_sounds_are_made_as_the_preprocessing_says(tmp_path: Path) -> None:
    ast = SimpleNamespace(num_mel_bins=64, max_length=100)
    content = {"sampling_rate": 32_000, "mean": -3.0, "std": 2.0}
    found = FAMILIES["audio-spectrogram-transformer"].format(ast, said(tmp_path, content), "", Inputs())
    assert found == AudioFormat(32_000, 64, 100, -3.0, 2.0)
    plain = said(tmp_path, {**content, "do_normalize": False})
    found = FAMILIES["audio-spectrogram-transformer"].format(ast, plain, "", Inputs())
    assert isinstance(found, AudioFormat) and (found.mean, found.std) == (0.0, 0.5)
    whisper = SimpleNamespace(num_mel_bins=80, max_source_positions=100)
    for key, value in (("sampling_rate", 8_000), ("hop_length", 80), ("n_fft", 512), ("dither", 0.1)):
        with pytest.raises(UserError, match=rf"{key}: .*does not compute; found {value}"):
            FAMILIES["whisper"].format(whisper, said(tmp_path, {key: value}), "", Inputs())
