"""What decoders make of pictures, clips and sounds before they are stored."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmsweep.data.files import Undecodable, natural_key
from mmsweep.data.kinds.audio import AudioFormat, sound_decoder
from mmsweep.data.kinds.image import ImageFormat, decode_image
from mmsweep.data.kinds.video import VideoFormat, decode_video, uniform_frames

pytestmark = pytest.mark.long


def encoded(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def test_transparency_shows_white() -> None:
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert (decode_image(encoded(clear), ImageFormat(8)) == 255).all()
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([10, 20, 30] + [0] * 765)
    assert (decode_image(encoded(palette, transparency=0), ImageFormat(8)) == 255).all()
    assert decode_image(encoded(palette), ImageFormat(8))[:, 0, 0].tolist() == [10, 20, 30]


def test_grey_of_16_bits_keeps_its_brightness() -> None:
    deep = Image.fromarray(np.full((8, 8), 65535 // 2, np.uint16))
    assert (decode_image(encoded(deep), ImageFormat(8)) == 127).all()


def test_camera_orientation_is_applied() -> None:
    picture = Image.new("RGB", (8, 8), (0, 0, 0))
    picture.paste((255, 255, 255), (0, 0, 8, 4))  # the upper half is white
    exif = Image.Exif()
    exif[0x0112] = 3  # stored upside down
    turned = decode_image(encoded(picture, exif=exif), ImageFormat(8))
    assert turned[0, 0, 0] == 0 and turned[0, 7, 0] == 255


def test_long_pictures_are_cropped_at_the_centre() -> None:
    picture = Image.new("RGB", (24, 8), (0, 0, 0))
    picture.paste((255, 255, 255), (8, 0, 16, 8))
    assert (decode_image(encoded(picture), ImageFormat(8)) == 255).all()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b"not a picture", "cannot be decoded"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-LFS pointer"),
        (encoded(Image.effect_noise((64, 64), 50))[:900], "cannot be decoded"),
    ],
)
def test_unreadable_pictures_say_why(data: bytes, reason: str) -> None:
    with pytest.raises(Undecodable, match=reason):
        decode_image(data, ImageFormat(8))


def test_clips_are_read_in_order_of_time(tmp_path: Path) -> None:
    for i in range(12):
        Image.new("L", (8, 8), i * 10).save(tmp_path / f"frame-{i}.png")
    clip = decode_video(tmp_path, VideoFormat(ImageFormat(8), frames=3))
    assert clip.shape == (3, 3, 8, 8) and clip[:, 0, 0, 0].tolist() == [20, 60, 100]
    assert uniform_frames(2, 4) == [0, 0, 1, 1]
    assert sorted(["frame-10", "frame-9"], key=natural_key) == ["frame-9", "frame-10"]
    names = ["007", "07", "7", "8", "10", "a", "a1", "a02", "a2", "\u00b2", "9" * 5000]
    wanted = ["007", "07", "7", "8", "10", "9" * 5000, "a", "a1", "a02", "a2", "\u00b2"]
    for order in (names, names[::-1]):
        assert sorted(order, key=natural_key) == wanted
    with pytest.raises(Undecodable, match="no frames"):
        (tmp_path / "empty").mkdir()
        decode_video(tmp_path / "empty", VideoFormat(ImageFormat(8)))


def test_spectrograms_are_padded_and_normalised(tmp_path: Path) -> None:
    format = AudioFormat(mel_bins=4, frames=6, mean=1.0, std=0.5)
    np.save(tmp_path / "sound.npy", np.full((3, 4), 3.0, np.float32))
    spectrogram = sound_decoder(format)(tmp_path / "sound.npy")
    assert spectrogram.dtype == np.float32 and spectrogram[:, 0].tolist() == [2, 2, 2, -1, -1, -1]


@pytest.mark.parametrize("kind", ["ast", "whisper"])
def test_sounds_become_spectrograms(kind: str, tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    time = np.arange(22_050) / 22_050
    soundfile.write(tmp_path / "tone.wav", np.stack([np.sin(2 * np.pi * 440 * time)] * 2, 1), 22_050)
    format = AudioFormat(mel_bins=80, frames=200, recipe=kind)  # type: ignore[arg-type]
    spectrogram = sound_decoder(format)(tmp_path / "tone.wav")
    assert spectrogram.shape == (200, 80) and np.isfinite(spectrogram).all()
    assert spectrogram[20:80].max(0).argmax() < 40  # a low tone excites the lower bins
