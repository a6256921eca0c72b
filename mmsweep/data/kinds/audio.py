"""Sounds as log-mel spectrograms, computed as for AST or Whisper. Needs `mmsweep[audio]`.

Every function raises `Undecodable`, with a reason that users can act on, when a value cannot be read.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from mmsweep.components import Section, register
from mmsweep.data.containers import VIDEO_SUFFIXES, read_track
from mmsweep.data.files import Segment, Undecodable, load_array, name_of, opened, path_of, reading
from mmsweep.data.kinds.kind import Format, Layout, Parts
from mmsweep.errors import UserError

_RATES = 1_000, 1_000_000
"""Smallest and largest sampling rate that is accepted, since the resampling filter grows with the rates."""

_LOUDEST = 100
"""Largest sample that is accepted. Full scale is 1, which floats may exceed a little; 16-bit integers that were saved
as floats reach 32768."""


@register("audio")
@dataclass(frozen=True)
class AudioFormat(Format):
    """Sounds as log-mel spectrograms: column and batch float32 [N, frames, mel_bins].

    Args:
        rate: sampling rate in hertz that sounds are resampled to.
        mel_bins, frames: size of the spectrogram; shorter sounds are padded, longer ones cut.
        mean, std: of AST's normalisation, (x - mean) / (2 std); `whisper` does not use them.
        recipe: how the spectrogram is made: "ast" is a Kaldi filter bank with a 25 ms window every 10 ms, "whisper" a
            log10-mel spectrogram, clipped at 8 below its maximum.
    """

    rate: int = 16_000
    mel_bins: int = 128
    frames: int = 1024
    mean: float = -4.2677393
    std: float = 4.5689974
    recipe: Literal["ast", "whisper"] = "ast"

    kind: ClassVar[str] = "audio"
    word: ClassVar[str] = "sound"
    axes: ClassVar[tuple[str, ...]] = ("frame", "mel bin")
    size_key: ClassVar[str] = "data.audio.frames"

    class Reading(Section):
        """How sounds are read."""

        frames: int | None = Field(
            None, ge=8, description="Frames of a spectrogram, 10 ms each; null takes the encoder's own number."
        )

    def __post_init__(self) -> None:
        if self.recipe not in ("ast", "whisper"):
            raise UserError("unknown kind of spectrogram", key="recipe", found=self.recipe, expected="ast or whisper")

    def key(self) -> dict[str, Any]:
        values = dataclasses.asdict(self)
        del values["recipe"]
        return {**values, "kind": f"audio-{self.recipe}"}

    def columns(self) -> Layout:
        return [("", np.float32, (self.frames, self.mel_bins))]

    def decoder(self, varied: bool) -> Callable[[Any], Parts]:
        decode = sound_decoder(self)
        return lambda value: {"": decode(value)}


def sound_decoder(format: AudioFormat) -> Callable[[str | Path | bytes | Segment], np.ndarray]:
    """A function from a sound to float32 [frames, mel_bins].

    A sound is an audio file or its bytes, a video file with a sound track, a segment of either, or a .npy array
    [frames, mel_bins] of log-mel energies that are not normalised yet.

    Raises:
        UserError: soundfile is not installed.
    """
    extract = _ast_extractor(format) if format.recipe == "ast" else _whisper_extractor(format)

    seconds = format.frames / 100 + 1  # 10 ms a frame; the second beyond them keeps the resampler's edge out of them

    def decode(value: str | Path | bytes | Segment) -> np.ndarray:
        if not isinstance(value, bytes) and path_of(value).suffix == ".npy":
            return _stored_spectrogram(value, format)
        return np.ascontiguousarray(extract(read_waveform(value, format.rate, seconds)), np.float32)

    return decode


def read_waveform(value: str | Path | bytes | Segment, rate: int, seconds: float | None = None) -> np.ndarray:
    """float32 [samples], one channel (the mean of all), at `rate`; of a longer recording its first `seconds`.

    A video file gives its sound track. Resampling is polyphase filtering (`scipy.signal.resample_poly`) in either case.
    """
    begin, end = (value.start, value.end) if isinstance(value, Segment) else (0.0, None)
    if seconds is not None:
        end = begin + seconds if end is None else min(end, begin + seconds)
    with reading("sound", value):
        if not isinstance(value, bytes) and path_of(value).suffix.lower() in VIDEO_SUFFIXES:
            sound_NC, own = read_track(path_of(value), begin, end)
        else:
            sound_NC, own = _read_recording(value, begin, end)
        if not _RATES[0] <= own <= _RATES[1]:
            raise Undecodable(
                f"the sound {name_of(value)} has {own:,} samples a second; expected {_RATES[0]:,} to {_RATES[1]:,}"
            )
        if len(sound_NC) == 0:
            raise Undecodable(f"the sound {name_of(value)} has no samples")
        sound = sound_NC.mean(axis=1)
        if (peak := float(np.abs(sound).max())) > _LOUDEST:  # NaN is found in what is made of it
            raise Undecodable(f"the sound {name_of(value)} holds samples of up to {peak:g}; expected -1 to 1")
        if own != rate:
            from scipy.signal import resample_poly

            sound = resample_poly(sound, rate, own).astype(np.float32)
    return sound


def _read_recording(value: str | Path | bytes | Segment, begin: float, end: float | None) -> tuple[np.ndarray, int]:
    """float32 [samples, channels] of an audio file, from `begin` to `end` seconds, and its samples a second."""
    try:
        import soundfile
    except ImportError:
        raise UserError("sounds need the package soundfile", hint="pip install 'mmsweep[audio]'") from None
    source = value if isinstance(value, bytes) else path_of(value)
    with opened(source) as file, soundfile.SoundFile(file) as recording:
        if recording.format in ("WAV", "WAVEX", "AIFF"):
            _check_uncut(file, source)
        own, first = recording.samplerate, round(begin * recording.samplerate)
        if 0 < recording.frames <= first:
            raise Undecodable(f"the sound {name_of(value)} is only {recording.frames / own:.2f} s long")
        if first:
            recording.seek(first)
        most = -1 if end is None else int(own * end) - first
        sound_NC = recording.read(most, dtype="float32", always_2d=True)
        stated = recording.frames - first if most < 0 else min(most, recording.frames - first)
        if recording.format == "MP3" and len(sound_NC) < stated - 2 * _MP3_FRAME and _counts_its_frames(file):
            raise Undecodable(
                f"the sound {name_of(value)} is cut short: "
                f"it has {len(sound_NC):,} of the {recording.frames:,} samples that its header says"
            )
    return sound_NC, own


_UNKNOWN_SIZE = 2**32 - 2**16
"""A program that writes a WAV into a pipe does not know its size yet, and states 0 or a size near the largest."""


def _check_uncut(file: IO[bytes], value: str | Path | bytes) -> None:
    """Refuse a WAV or AIFF that has fewer bytes than its header states: libsndfile would read them without an error.

    The header of the chunk of samples decides, since some programs state the size of the whole file wrongly.
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
"""Samples of an MP3 frame. The first and last frames are partly the encoder's silence."""


def _counts_its_frames(file: IO[bytes]) -> bool:
    """Whether an MP3 states its length, in a tag Xing or Info of its first frame; otherwise the length is a guess."""
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


_NORMALISED = 1.5
"""AST's normalisation leaves all of a spectrogram within ±1.5; before it, silence is -15.9 and speech about -5."""


def _stored_spectrogram(value: str | Path | Segment, format: AudioFormat) -> np.ndarray:
    array = load_array(path_of(value), "spectrogram")
    if array.ndim != 2 or array.shape[1] != format.mel_bins or len(array) == 0:
        raise Undecodable(
            f"the spectrogram {name_of(value)} is not [frames, {format.mel_bins}]; found {list(array.shape)}"
        )
    if isinstance(value, Segment):
        length = len(array) / 100  # 10 ms a frame
        array = array[round(value.start * 100) : round(value.end * 100)]
        if len(array) == 0:
            raise Undecodable(f"the spectrogram {name_of(value)} is only {length:.2f} s long")
    out = np.zeros((format.frames, format.mel_bins), np.float32)
    with np.errstate(over="ignore"):
        out[: min(len(array), format.frames)] = array[: format.frames]
        if format.recipe != "ast":
            return out
        if format.mean < -_NORMALISED and np.abs(out).max() <= _NORMALISED and out.any():
            raise Undecodable(
                f"the spectrogram {name_of(value)} is normalised already (its values lie within {out.min():.2f} and "
                f"{out.max():.2f}); expected log-mel energies, which are normalised here"
            )
        return (out - format.mean) / (2 * format.std)
