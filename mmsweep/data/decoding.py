"""Raw values become arrays: pictures, sounds and sequences, each by its format (texts: `texts.py`; clips: `clips.py`).

Every function raises `Undecodable` with a reason for people when a value cannot be read; `prepared.py` turns it into a
bad row with its file and line. Audio files need the optional package `mmsweep[audio]`.
"""

from __future__ import annotations

import io
import math
import os
import re
import threading
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from PIL import Image, ImageOps

from mmsweep.data.brightness import stated, to_rgb
from mmsweep.data.files import Undecodable, first_line, load_array, name_of, opened, reading
from mmsweep.data.formats import AudioFormat, ImageFormat, SequenceFormat
from mmsweep.errors import UserError

MOST_PIXELS = 2**26
"""A picture of more pixels is refused, unless its format can be read at a fraction of its size: 256 MiB as RGB."""

_LARGE_PIXELS = 2**24
_LARGE = threading.Lock()
"""Held while a picture of more than `_LARGE_PIXELS` is decoded: one at a time, however many threads there are."""

_MOST_SVG_BYTES = 2**26

_RATES = 1_000, 1_000_000
"""Samples a second; a resampler's filter grows with the rates."""

_LOUDEST = 100
"""Floats may pass full scale, 1, by a little; 16-bit integers saved as floats are up to 32768."""

# Pictures of 89 to 179 million pixels are refused or reduced here; Pillow refuses what is larger by itself.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


# ---- pictures ------------------------------------------------------------------------------------------------------


def decode_image(value: str | Path | bytes, format: ImageFormat) -> np.ndarray:
    """uint8 [3, size, size]: turned by EXIF, transparency on white, shorter side resized, centre crop.

    SVG drawings are rendered first, by resvg (`mmsweep[svg]`).
    """
    return fit_square(open_picture(value, format.resized_side), format)


def open_picture(value: str | Path | bytes, side: int) -> Image.Image:
    """An RGB picture, turned by EXIF, transparency on white; a drawing's shorter side has at least `side` pixels.

    Of a large picture it is a reduced copy, its shorter side at least twice `side`.
    """
    with reading("picture", value), opened(value) as file:
        if _is_svg(file):
            with io.BytesIO(_rendered(file, value, side)) as rendered:
                return _read_picture(rendered, value, 2 * side)
        return _read_picture(file, value, 2 * side)


def _read_picture(file: IO[bytes], value: Any, wanted: int) -> Image.Image:
    with Image.open(file) as picture:
        width, height = picture.size
        if width * height > MOST_PIXELS and not picture.info.get("progressive"):
            picture.draft(None, (wanted, wanted))  # JPEG alone; a progressive one is held whole in any case
        check_size(picture.size, "picture", value)
        with _LARGE if width * height > _LARGE_PIXELS else nullcontext():
            scale = stated(picture)
            ImageOps.exif_transpose(picture, in_place=True)
            return to_rgb(_reduced(picture, wanted), scale, value)


def check_size(size: tuple[int, int], what: str, value: Any) -> None:
    """Raises Undecodable where decoding would take too much memory."""
    if size[0] * size[1] > MOST_PIXELS:
        raise Undecodable(
            f"the {what} {name_of(value)} is too large to be decoded: {size[0]:,} x {size[1]:,} pixels; expected "
            f"at most {MOST_PIXELS:,} pixels in all"
        )


def _reduced(picture: Image.Image, wanted: int) -> Image.Image:
    """A smaller copy of a large picture, its shorter side at least `wanted`: conversions then cost little memory."""
    factor = min(picture.size) // wanted
    if picture.size[0] * picture.size[1] <= _LARGE_PIXELS or factor < 2:
        return picture
    if picture.mode in ("1", "P"):  # indices have no mean
        picture = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    return picture if picture.mode.startswith("I;16") else picture.reduce(factor)


def fit_square(picture: Image.Image, format: ImageFormat) -> np.ndarray:
    """uint8 [3, size, size] of an RGB picture: what evaluation shows."""
    side, picture = format.resized_side, _padded(picture, format)
    width, height = picture.size
    short = min(width, height)
    if short != side:
        # The longer side is truncated as torchvision's Resize does: columns equal the encoders' own processing.
        resized = side * width // short if width > height else side, side * height // short if height > width else side
        if resized[0] * resized[1] > MOST_PIXELS:
            raise Undecodable(
                f"a picture of {width:,} x {height:,} pixels is too long to be cropped to its middle; expected at most "
                f"{MOST_PIXELS:,} pixels once its shorter side is {side}"
            )
        picture = picture.resize(resized, Image.Resampling[format.resample.upper()])
    left, top = (picture.size[0] - format.size) // 2, (picture.size[1] - format.size) // 2
    return _channels_first(picture.crop((left, top, left + format.size, top + format.size)))


def whole_square(picture: Image.Image, format: ImageFormat) -> tuple[np.ndarray, float]:
    """uint8 [3, whole, whole] of an RGB picture, stretched; and log(width / height), which the stretching hides."""
    assert format.whole is not None
    picture = _padded(picture, format)
    stretched = picture.resize((format.whole, format.whole), Image.Resampling[format.resample.upper()])
    return _channels_first(stretched), math.log(picture.size[0] / picture.size[1])


def decode_whole(value: str | Path | bytes, format: ImageFormat) -> tuple[np.ndarray, float]:
    """As `whole_square`, of a picture by path or bytes. Raises as `decode_image`."""
    assert format.whole is not None
    return whole_square(open_picture(value, format.whole), format)


def _padded(picture: Image.Image, format: ImageFormat) -> Image.Image:
    if format.fit != "pad" or picture.size[0] == picture.size[1]:
        return picture
    longer, wanted = max(picture.size), 2 * max(format.resized_side, format.whole or 0)
    if longer**2 > _LARGE_PIXELS and longer // wanted > 1:
        picture = picture.reduce(longer // wanted)  # the square around a long picture may be vast
    return ImageOps.pad(picture, (max(picture.size),) * 2, color=(255, 255, 255))


def _channels_first(picture: Image.Image) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(picture, np.uint8).transpose(2, 0, 1))


_SVG_TAG = re.compile(rb"<svg\b[^>]*>")
_SVG_UNITS = {"": 1.0, "px": 1.0, "pt": 96 / 72, "pc": 16.0, "mm": 96 / 25.4, "cm": 96 / 2.54, "in": 96.0}


def _is_svg(file: IO[bytes]) -> bool:
    head = file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")
    file.seek(0)
    if not head.startswith(b"<"):
        return False
    found = b"<svg" in file.read(_MOST_SVG_BYTES)
    file.seek(0)
    return found


def _rendered(file: IO[bytes], value: Any, side: int) -> bytes:
    """A drawing as PNG, its shorter side at least `side` pixels where it has a size."""
    try:
        import resvg_py
    except ImportError:
        raise UserError(
            "SVG drawings need the package resvg-py", file=name_of(value), hint="pip install 'mmsweep[svg]'"
        ) from None
    data = file.read(_MOST_SVG_BYTES + 1)
    if len(data) > _MOST_SVG_BYTES:
        raise Undecodable(f"the drawing {name_of(value)} is larger than {_MOST_SVG_BYTES:,} bytes")
    check_size(_svg_size(data), "drawing", value)
    try:
        # Fonts differ from machine to machine: only outlined letters are drawn. 96 dots an inch is CSS's.
        options: dict[str, Any] = {"svg_string": data.decode("utf-8-sig"), "skip_system_fonts": True, "dpi": 96.0}
        png = bytes(resvg_py.svg_to_bytes(**options))
        with Image.open(io.BytesIO(png)) as own:
            size, short = own.size, min(own.size)
        if short >= side:
            return png
        check_size((side * size[0] // short, side * size[1] // short), "drawing", value)
        return bytes(resvg_py.svg_to_bytes(**options, zoom=side / short))
    except Exception as error:
        if isinstance(error, Undecodable):
            raise
        raise Undecodable(f"the drawing {name_of(value)} cannot be rendered ({first_line(error)})") from None
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # Rust's, which is no Exception
            raise
        raise Undecodable(f"the drawing {name_of(value)} cannot be rendered ({first_line(error)})") from None


def _svg_size(data: bytes) -> tuple[int, int]:
    """(width, height) in pixels as the root element states them; zeros where it does not."""
    root = _SVG_TAG.search(data)
    tag = root.group().decode("utf-8", "replace") if root else ""
    sides = [
        re.search(rf"""\s{name}\s*=\s*["']\s*([0-9.eE+]+)\s*([a-z]*)\s*["']""", tag) for name in ("width", "height")
    ]
    try:
        if all(side and side[2] in _SVG_UNITS for side in sides):
            return tuple(int(float(side[1]) * _SVG_UNITS[side[2]]) for side in sides)  # type: ignore[index, return-value]
        box = re.search(r"""\sviewBox\s*=\s*["']([^"']*)["']""", tag)
        _, _, width, height = (float(part) for part in re.split(r"[\s,]+", box[1].strip())) if box else (0.0,) * 4
        return int(width), int(height)
    except (ValueError, OverflowError):
        return 0, 0


# ---- sounds --------------------------------------------------------------------------------------------------------


def sound_decoder(format: AudioFormat) -> Callable[[str | Path | bytes], np.ndarray]:
    """A function from a sound (path or bytes; or a .npy spectrogram of [frames, mel]) to float32 [frames, mel_bins].

    Raises:
        UserError: soundfile is not installed.
    """
    extract = _ast_extractor(format) if format.kind == "ast" else _whisper_extractor(format)

    seconds = format.frames / 100 + 1  # 10 ms a frame; what a resampler sees beyond the end changes nothing before it

    def decode(value: str | Path | bytes) -> np.ndarray:
        if not isinstance(value, bytes) and str(value).endswith(".npy"):
            return _stored_spectrogram(value, format)
        return np.ascontiguousarray(extract(read_waveform(value, format.rate, seconds)), np.float32)

    return decode


def read_waveform(value: str | Path | bytes, rate: int, seconds: float | None = None) -> np.ndarray:
    """float32 [samples], one channel, at `rate`; of a recording longer than `seconds` its beginning."""
    try:
        import soundfile
    except ImportError:
        raise UserError("sounds need the package soundfile", hint="pip install 'mmsweep[audio]'") from None
    with reading("sound", value), opened(value) as file, soundfile.SoundFile(file) as recording:
        if recording.format in ("WAV", "WAVEX", "AIFF"):
            _check_uncut(file, value)
        own = recording.samplerate
        if not _RATES[0] <= own <= _RATES[1]:
            raise Undecodable(
                f"the sound {name_of(value)} has {own:,} samples a second; expected {_RATES[0]:,} to {_RATES[1]:,}"
            )
        most = -1 if seconds is None else int(own * seconds)
        sound = recording.read(most, dtype="float32", always_2d=True).mean(axis=1)
        if sound.size == 0:
            raise Undecodable(f"the sound {name_of(value)} has no samples")
        stated = recording.frames if most < 0 else min(most, recording.frames)
        if recording.format == "MP3" and sound.size < stated - 2 * _MP3_FRAME and _counts_its_frames(file):
            raise Undecodable(
                f"the sound {name_of(value)} is cut short: "
                f"it has {sound.size:,} of the {recording.frames:,} samples that its header says"
            )
        if (peak := float(np.abs(sound).max())) > _LOUDEST:  # NaN is found in what is made of it
            raise Undecodable(f"the sound {name_of(value)} holds samples of up to {peak:g}; expected -1 to 1")
        if own != rate:
            from scipy.signal import resample_poly

            sound = resample_poly(sound, rate, own).astype(np.float32)
    return sound


_UNKNOWN_SIZE = 2**32 - 2**16
"""Programs that write a WAV into a pipe state a size near the largest, or 0, since they do not know it yet."""


def _check_uncut(file: IO[bytes], value: str | Path | bytes) -> None:
    """Refuse a WAV or AIFF whose samples end before its header says so: libsndfile reads what there is, silently.

    The size of the samples' own chunk counts: some programs state that of the whole file wrongly.
    """
    place, size = file.tell(), file.seek(0, os.SEEK_END)
    file.seek(0)
    order: Literal["little", "big"] = "little" if file.read(12)[:4] == b"RIFF" else "big"
    while len(head := file.read(8)) == 8:
        length = int.from_bytes(head[4:], order)
        end = file.tell() + length
        if head[:4] in (b"data", b"SSND"):
            if length < _UNKNOWN_SIZE and end > size:
                raise Undecodable(
                    f"the sound {name_of(value)} is cut short: "
                    f"it has {size:,} of the {end:,} bytes that its header says"
                )
            break
        file.seek(end + length % 2)
    file.seek(place)


_MP3_FRAME = 1152
"""Samples; a file's first and last frames are half silence of the encoder."""


def _counts_its_frames(file: IO[bytes]) -> bool:
    """Whether an MP3 says in its first frame (the tag Xing or Info) how long it is; without, its length is a guess."""
    file.seek(0)
    head = file.read(10)
    if head[:3] == b"ID3":  # its size: four times seven bits
        file.seek(10 + sum(byte << 7 * (3 - place) for place, byte in enumerate(head[6:10])))
    first = file.read(512)
    return b"Xing" in first or b"Info" in first


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
    array = load_array(path, "spectrogram")
    if array.ndim != 2 or array.shape[1] != format.mel_bins or len(array) == 0:
        raise Undecodable(
            f"the spectrogram {name_of(path)} is not [frames, {format.mel_bins}]; found {list(array.shape)}"
        )
    out = np.zeros((format.frames, format.mel_bins), np.float32)
    with np.errstate(over="ignore"):
        out[: min(len(array), format.frames)] = array[: format.frames]
        return (out - format.mean) / (2 * format.std) if format.kind == "ast" else out


# ---- sequences -----------------------------------------------------------------------------------------------------


def decode_sequence(value: str | Path | bytes, format: SequenceFormat) -> np.ndarray:
    """float32 [t, width] of a .npy file (or its bytes), t at least 1 and at most `length`: what is longer is cut."""
    array = load_array(value, "sequence")
    if array.ndim != 2 or array.shape[1] != format.width or len(array) == 0:
        raise Undecodable(f"the sequence {name_of(value)} is not [steps, {format.width}]; found {list(array.shape)}")
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(array[: format.length], np.float32)
