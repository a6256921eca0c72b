"""Real clips for the layouts: videos with sound by PyAV, frames, sounds and stored spectrograms."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 32


def write_video(
    path: Path, greys: list[int], rate: int = 5, sound: bool = True, codec: str | None = None, gop: int = 5
) -> Path:
    """A video whose frame k is grey of greys[k]; its tone lasts as long. Codecs by suffix: as CREMA-D's and YouTube's.

    Args:
        rate: frames a second.
        gop: frames from one key frame to the next.
    """
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    codec = codec or {".flv": "flv", ".mp4": "libx264", ".mkv": "libx264", ".avi": "mpeg4"}[path.suffix]
    with av.open(str(path), "w") as container:
        pictures = container.add_stream(codec, rate=rate)
        pictures.width, pictures.height, pictures.pix_fmt, pictures.gop_size = SIDE, SIDE, "yuv420p", gop
        tone = (
            container.add_stream("libmp3lame" if path.suffix == ".flv" else "aac", rate=44_100, layout="mono")
            if sound
            else None
        )
        for place, grey in enumerate(greys):
            frame = av.VideoFrame.from_ndarray(np.full((SIDE, SIDE, 3), grey, np.uint8), format="rgb24")
            frame.pts, frame.time_base = place, Fraction(1, rate)
            container.mux(pictures.encode(frame))
        container.mux(pictures.encode())
        if tone is not None:
            samples = tone_of(len(greys) / rate, 44_100)
            for start in range(0, len(samples), 1024):
                piece = av.AudioFrame.from_ndarray(samples[None, start : start + 1024], format="fltp", layout="mono")
                piece.sample_rate, piece.pts, piece.time_base = 44_100, start, Fraction(1, 44_100)
                container.mux(tone.encode(piece))
            container.mux(tone.encode())
    return path


def tone_of(seconds: float, rate: int, hertz: float = 440) -> np.ndarray:
    """float32 samples of a tone that grows louder."""
    time = np.arange(round(seconds * rate)) / rate
    return (np.sin(2 * np.pi * hertz * time) * np.linspace(0.05, 0.5, len(time))).astype(np.float32)


def write_sound(path: Path, seconds: float = 1.0, rate: int = 16_000) -> Path:
    import soundfile

    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone_of(seconds, rate), rate)
    return path


def write_spectrogram(path: Path, frames: int = 100, bins: int = 26, seed: int = 0) -> Path:
    """A log-mel filter bank as MLA's extract_fbank.py stores it: not normalised."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.random.default_rng(seed).normal(-6, 4, (frames, bins)).astype(np.float32))
    return path


def write_frames(folder: Path, greys: list[int]) -> Path:
    """Frames named as ffmpeg numbers them."""
    folder.mkdir(parents=True, exist_ok=True)
    for place, grey in enumerate(greys, start=1):
        Image.new("RGB", (SIDE, SIDE), (grey,) * 3).save(folder / f"{place:05d}.jpg")
    return folder


def write_pointer(path: Path) -> Path:
    """What a zip download of a repository holds in a large file's place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 90210\n")
    return path
