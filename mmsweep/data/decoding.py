"""Raw values become arrays: pictures, texts, sounds and sequences, each by its format (clips: `clips.py`).

Every function raises `Undecodable` with a reason for people when a value cannot be read; `prepared.py` turns it into a
bad row with its file and line. Audio files need the optional package `mmsweep[audio]`.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mmsweep.data.formats import AudioFormat, ImageFormat, SequenceFormat, TextFormat
from mmsweep.errors import UserError


class Undecodable(Exception):
    """A value that cannot be read; str() is the reason, without the row's place."""


def read_bytes(value: str | Path | bytes) -> bytes:
    """The bytes of a file, or the bytes themselves.

    Raises:
        Undecodable: file absent, unreadable or empty, or only a git-LFS pointer (as zip downloads of repositories).
    """
    if isinstance(value, bytes):
        data = value
    else:
        try:
            data = Path(value).read_bytes()
        except FileNotFoundError:
            raise Undecodable(f"the file {value} does not exist") from None
        except OSError as error:
            raise Undecodable(f"the file {value} cannot be read ({error.strerror or error})") from None
    if not data:
        raise Undecodable(f"{_shown(value)} is empty")
    if data.startswith(b"version https://git-lfs"):
        raise Undecodable(f"{_shown(value)} is a git-LFS pointer, not the data; fetch it with `git lfs pull`")
    return data


def _shown(value: Any) -> str:
    return f"a value of {len(value)} bytes" if isinstance(value, bytes) else f"the file {value}"


# ---- pictures ------------------------------------------------------------------------------------------------------


def decode_image(value: str | Path | bytes, format: ImageFormat) -> np.ndarray:
    """uint8 [3, size, size]: turned by EXIF, transparency on white, shorter side resized (bicubic), centre crop.

    SVG drawings are rendered first, by resvg (`mmsweep[svg]`).
    """
    return fit_square(open_picture(value, format.size), format)


def open_picture(value: str | Path | bytes, side: int) -> Image.Image:
    """An RGB picture, turned by EXIF, transparency on white; a drawing's shorter side has at least `side` pixels."""
    data = read_bytes(value)
    if _is_svg(data):
        data = _rendered(data, value, side)
    try:
        with Image.open(io.BytesIO(data)) as opened:
            picture = ImageOps.exif_transpose(opened) or opened
            return _to_rgb(picture)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise Undecodable(f"the picture {_name(value)} cannot be decoded ({first_line(error)})") from None


def fit_square(picture: Image.Image, format: ImageFormat) -> np.ndarray:
    """uint8 [3, size, size] of an RGB picture: what evaluation shows."""
    side, picture = format.size, _padded(picture, format)
    width, height = picture.size
    short = min(width, height)
    if short != side:
        # The longer side is truncated as torchvision's Resize does: columns equal the encoders' own processing.
        picture = picture.resize(
            (side * width // short if width > height else side, side * height // short if height > width else side),
            Image.Resampling.BICUBIC,
        )
    left, top = (picture.size[0] - side) // 2, (picture.size[1] - side) // 2
    return _channels_first(picture.crop((left, top, left + side, top + side)))


def whole_square(picture: Image.Image, format: ImageFormat) -> tuple[np.ndarray, float]:
    """uint8 [3, whole, whole] of an RGB picture, stretched; and log(width / height), which the stretching hides."""
    assert format.whole is not None
    picture = _padded(picture, format)
    stretched = picture.resize((format.whole, format.whole), Image.Resampling.BICUBIC)
    return _channels_first(stretched), math.log(picture.size[0] / picture.size[1])


def decode_whole(value: str | Path | bytes, format: ImageFormat) -> tuple[np.ndarray, float]:
    """As `whole_square`, of a picture by path or bytes. Raises as `decode_image`."""
    assert format.whole is not None
    return whole_square(open_picture(value, format.whole), format)


def _padded(picture: Image.Image, format: ImageFormat) -> Image.Image:
    if format.fit == "pad" and picture.size[0] != picture.size[1]:
        return ImageOps.pad(picture, (max(picture.size),) * 2, color=(255, 255, 255))
    return picture


def _channels_first(picture: Image.Image) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(picture, np.uint8).transpose(2, 0, 1))


def _is_svg(data: bytes) -> bool:
    head = data[:4096].lstrip(b"\xef\xbb\xbf \t\r\n")
    return head.startswith(b"<") and b"<svg" in data


def _rendered(data: bytes, value: Any, side: int) -> bytes:
    """A drawing as PNG, its shorter side at least `side` pixels where it has a size."""
    try:
        import resvg_py
    except ImportError:
        raise UserError(
            "SVG drawings need the package resvg-py", file=_name(value), hint="pip install 'mmsweep[svg]'"
        ) from None
    try:
        # Fonts differ from machine to machine: only outlined letters are drawn. 96 dots an inch is CSS's.
        options: dict[str, Any] = {"svg_string": data.decode("utf-8-sig"), "skip_system_fonts": True, "dpi": 96.0}
        png = bytes(resvg_py.svg_to_bytes(**options))
        with Image.open(io.BytesIO(png)) as own:
            short = min(own.size)
        return png if short >= side else bytes(resvg_py.svg_to_bytes(**options, zoom=side / short))
    except (ValueError, RuntimeError, OSError) as error:
        raise Undecodable(f"the drawing {_name(value)} cannot be rendered ({first_line(error)})") from None


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode in ("I;16", "I;16B", "I;16L", "I;16N", "I", "F"):
        values = np.asarray(picture, np.float64)
        if values.size and (picture.mode.startswith("I;16") or values.max() > 255):
            values = values / 257.0  # 65535 -> 255
        grey = np.clip(np.rint(values), 0, 255).astype(np.uint8)
        return Image.fromarray(grey, "L").convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        # Clip art and icons are drawn for a page: what shows through is white, not the black that convert("RGB") gives.
        layers = picture.convert("RGBA")
        page = Image.new("RGBA", layers.size, (255, 255, 255, 255))
        return Image.alpha_composite(page, layers).convert("RGB")
    return picture.convert("RGB")


def _name(value: Any) -> str:
    return "given as bytes" if isinstance(value, bytes) else str(value)


def first_line(error: BaseException) -> str:
    """What went wrong, in a line for people."""
    if isinstance(error, UnidentifiedImageError):
        return "no known picture format"  # Pillow's own words name an object in memory
    return (str(error).splitlines() or [type(error).__name__])[0][:160]


# ---- texts ---------------------------------------------------------------------------------------------------------


def text_encoder(format: TextFormat) -> Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]]:
    """A function from texts to (ids int32 [n,L], mask bool [n,L]), padded on the right, truncated to L.

    Raises:
        UserError: the folder holds no tokenizer.
    """
    folder = Path(format.tokenizer)
    if not folder.is_dir():
        raise UserError("the tokenizer's folder does not exist", file=folder)
    from transformers import AutoTokenizer  # seconds to import, and only preparation needs it

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"the folder holds no tokenizer that transformers can load ({first_line(error)})", file=folder
        ) from None
    tokenizer.padding_side = tokenizer.truncation_side = "right"

    def encode(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        texts = [text.lower() if format.lower else text for text in texts]
        out = tokenizer(
            texts, truncation=True, max_length=format.length, padding="max_length", return_attention_mask=True
        )
        return np.asarray(out["input_ids"], np.int32), np.asarray(out["attention_mask"], np.int64).astype(bool)

    return encode


# ---- sounds --------------------------------------------------------------------------------------------------------


def sound_decoder(format: AudioFormat) -> Callable[[str | Path | bytes], np.ndarray]:
    """A function from a sound (path or bytes; or a .npy spectrogram of [frames, mel]) to float32 [frames, mel_bins].

    Raises:
        UserError: soundfile is not installed.
    """
    extract = _ast_extractor(format) if format.kind == "ast" else _whisper_extractor(format)

    def decode(value: str | Path | bytes) -> np.ndarray:
        if not isinstance(value, bytes) and str(value).endswith(".npy"):
            return _stored_spectrogram(value, format)
        return np.ascontiguousarray(extract(read_waveform(value, format.rate)), np.float32)

    return decode


def read_waveform(value: str | Path | bytes, rate: int) -> np.ndarray:
    """float32 [samples], one channel, at `rate`."""
    try:
        import soundfile
    except ImportError:
        raise UserError("sounds need the package soundfile", hint="pip install 'mmsweep[audio]'") from None
    data = read_bytes(value)
    try:
        sound_NC, found_rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    except (RuntimeError, ValueError, TypeError) as error:  # soundfile.LibsndfileError is a RuntimeError
        raise Undecodable(f"the sound {_name(value)} cannot be decoded ({first_line(error)})") from None
    sound = sound_NC.mean(axis=1)
    if sound.size == 0:
        raise Undecodable(f"the sound {_name(value)} has no samples")
    if found_rate != rate:
        from scipy.signal import resample_poly  # comes with scikit-learn

        sound = resample_poly(sound, rate, found_rate).astype(np.float32)
    return sound


def _ast_extractor(format: AudioFormat) -> Callable[[np.ndarray], np.ndarray]:
    from transformers import ASTFeatureExtractor

    extractor = ASTFeatureExtractor(
        sampling_rate=format.rate,
        num_mel_bins=format.mel_bins,
        max_length=format.frames,
        mean=format.mean,
        std=format.std,
    )
    shortest = int(0.025 * format.rate)  # one Kaldi window

    def extract(sound: np.ndarray) -> np.ndarray:
        sound = np.pad(sound, (0, max(0, shortest - sound.size)))
        return np.asarray(extractor(sound, sampling_rate=format.rate, return_tensors="np")["input_values"][0])

    return extract


def _whisper_extractor(format: AudioFormat) -> Callable[[np.ndarray], np.ndarray]:
    from transformers import WhisperFeatureExtractor

    seconds = format.frames / 100  # 10 ms a frame
    if seconds != int(seconds):
        raise UserError(
            "a Whisper spectrogram holds whole seconds", key="frames", found=format.frames, expected="n × 100"
        )
    extractor = WhisperFeatureExtractor(
        feature_size=format.mel_bins,
        sampling_rate=format.rate,
        hop_length=format.rate // 100,
        chunk_length=int(seconds),
    )

    def extract(sound: np.ndarray) -> np.ndarray:
        out = extractor(sound, sampling_rate=format.rate, return_tensors="np")["input_features"][0]
        return np.asarray(out).T

    return extract


def _stored_spectrogram(path: str | Path, format: AudioFormat) -> np.ndarray:
    try:
        array = np.load(io.BytesIO(read_bytes(path)), allow_pickle=False)
    except ValueError as error:
        raise Undecodable(f"the file {path} is not an array ({first_line(error)})") from None
    if array.ndim != 2 or array.shape[1] != format.mel_bins or not np.isfinite(array).all():
        raise Undecodable(
            f"the spectrogram {path} is not a finite [frames, {format.mel_bins}] array; found {array.shape}"
        )
    out = np.zeros((format.frames, format.mel_bins), np.float32)
    out[: min(len(array), format.frames)] = array[: format.frames]
    return (out - format.mean) / (2 * format.std) if format.kind == "ast" else out


# ---- sequences -----------------------------------------------------------------------------------------------------


def decode_sequence(value: str | Path | bytes, format: SequenceFormat) -> np.ndarray:
    """float32 [t, width] of a .npy file (or its bytes), t at least 1 and at most `length`: what is longer is cut."""
    try:
        array = np.load(io.BytesIO(read_bytes(value)), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise Undecodable(f"the sequence {_name(value)} is not a .npy array ({first_line(error)})") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        found = array.dtype if isinstance(array, np.ndarray) else "an archive of arrays"
        raise Undecodable(f"the sequence {_name(value)} does not hold numbers; found {found}")
    if array.ndim != 2 or array.shape[1] != format.width or len(array) == 0:
        raise Undecodable(f"the sequence {_name(value)} is not [steps, {format.width}]; found {list(array.shape)}")
    if not np.isfinite(array).all():
        step, column = np.argwhere(~np.isfinite(array))[0]
        raise Undecodable(f"the sequence {_name(value)} holds {array[step, column]} at step {step}, column {column}")
    return np.ascontiguousarray(array[: format.length], np.float32)
