"""Pictures and sounds as their files say, within bounds of memory; what cannot be read says why."""

from __future__ import annotations

import io
import os
import socket
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmsweep.data.files import Undecodable
from mmsweep.data.kinds.audio import AudioFormat, read_waveform, sound_decoder
from mmsweep.data.kinds.image import MOST_PIXELS, ImageFormat, decode_image
from mmsweep.data.kinds.raster import raster_format
from mmsweep.data.kinds.sequence import SequenceFormat, decode_sequence
from mmsweep.data.kinds.video import VideoFormat, decode_video

RAMP = np.linspace(0, 1, 64).reshape(8, 8)
SHOWN = np.rint(RAMP * 255).astype(np.uint8)


def encoded(values: np.ndarray | Image.Image, kind: str = "TIFF", **options: Any) -> bytes:
    buffer = io.BytesIO()
    (values if isinstance(values, Image.Image) else Image.fromarray(values)).save(buffer, kind, **options)
    return buffer.getvalue()


def tiff(tags: dict[int, int], data: bytes, side: int = 8) -> bytes:
    """An uncompressed little-endian TIFF by hand, for kinds that Pillow reads and does not write."""
    known = {256: side, 257: side, 259: 1, 262: 1, 273: 0, 277: 1, 278: side, 279: len(data)} | tags
    known[273] = 8 + 2 + 12 * len(known) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, known[tag]) for tag in sorted(known))
    return b"II*\0" + struct.pack("<IH", 8, len(known)) + entries + struct.pack("<I", 0) + data


def twelve_bits(values: np.ndarray) -> bytes:
    """Pairs of 12-bit numbers in three bytes each."""
    a, b = values.reshape(-1, 2).T.astype(np.uint16)
    return np.stack([a >> 4, (a & 15) << 4 | b >> 8, b & 255], 1).astype(np.uint8).tobytes()


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(encoded(RAMP.astype(np.float32)), id="floats 0 to 1"),
        pytest.param(encoded(np.rint(RAMP * 65535).astype(np.uint16)), id="16 bits"),
        pytest.param(encoded(np.rint(RAMP * 65535).astype(np.uint16), "PNG"), id="16-bit PNG"),
        pytest.param(tiff({258: 12}, twelve_bits(np.rint(RAMP * 4095))), id="12 bits"),
        pytest.param(
            tiff({258: 16, 281: 1023}, np.rint(RAMP * 1023).astype("<u2").tobytes()), id="10 bits, as MaxSampleValue"
        ),
        pytest.param(
            tiff({258: 16, 262: 0}, np.rint((1 - RAMP) * 65535).astype("<u2").tobytes()), id="16 bits, white is 0"
        ),
        pytest.param(tiff({258: 32, 262: 0, 339: 3}, (1 - RAMP).astype("<f4").tobytes()), id="floats, white is 0"),
        pytest.param(
            tiff({258: 32, 281: 100_000}, np.rint(RAMP * 100_000).astype("<u4").tobytes()), id="32 bits, stated"
        ),
        pytest.param(
            b"P2 8 8 4095\n" + " ".join(str(round(v * 4095)) for v in RAMP.ravel()).encode(), id="PGM up to 4095"
        ),
    ],
)
def test_the_value_range_is_the_file_s(data: bytes) -> None:
    found = decode_image(data, ImageFormat(8))
    assert abs(found[0].astype(int) - SHOWN).max() <= 1 and (found == found[:1]).all()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (encoded((RAMP * 4095).astype(np.float32)), r"holds float values from 0 to 4095; expected 0 to 1"),
        (encoded((RAMP - 0.5).astype(np.float32)), r"from -0.5 to 0.5; expected 0 to 1"),
        (encoded(np.where(RAMP > 0.5, np.nan, RAMP).astype(np.float32)), r"not finite"),
        (encoded(np.where(RAMP > 0.5, np.inf, RAMP).astype(np.float32)), r"not finite"),
        (encoded(np.rint(RAMP * 4095).astype(np.uint16)), r"16-bit values from 0 to 4095; expected .*BitsPerSample"),
        (encoded(np.rint(RAMP * 200).astype(np.int32)), r"32-bit values from 0 to 200, and its file does not state"),
        (tiff({258: 16, 281: 1023}, np.full(64, 2000, "<u2").tobytes()), r"to 2000; expected 0 to 1023"),
    ],
)
def test_values_that_do_not_fit_their_range_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(Undecodable, match=message):
        decode_image(data, ImageFormat(8))


def deep_png(values: np.ndarray, bands: int) -> bytes:
    """A PNG of 16 bits a channel, which Pillow reads and does not write; the last of 2 or 4 bands is opaque."""
    import zlib

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    pixels = np.repeat(values[..., None], bands, 2).astype(">u2")
    if bands in (2, 4):
        pixels[..., -1] = 65535
    head = struct.pack(">IIBBBBB", 8, 8, 16, {1: 0, 2: 4, 3: 2, 4: 6}[bands], 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row.tobytes() for row in pixels))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize("bands", [2, 3, 4])
def test_colour_of_16_bits_that_would_turn_black_is_refused(bands: int) -> None:
    assert abs(decode_image(deep_png(RAMP * 65535, bands), ImageFormat(8))[1].astype(int) - SHOWN).max() <= 1
    assert decode_image(deep_png(RAMP * 0, bands), ImageFormat(8)).max() == 0
    with pytest.raises(Undecodable, match="16 bits a channel, but no value of 4096 or more"):
        decode_image(deep_png(RAMP * 4095, bands), ImageFormat(8))


def test_colour_of_16_bits_whose_white_is_darker_is_refused() -> None:
    data = np.repeat(np.rint(RAMP * 8191).astype("<u2"), 3).tobytes()
    with pytest.raises(Undecodable, match="its file states 8191 as white"):
        decode_image(tiff({258: 16, 262: 2, 277: 3, 281: 8191}, data), ImageFormat(8))


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "YCbCr"])
def test_every_mode_keeps_its_brightness(mode: str) -> None:
    picture = Image.new("L", (8, 8), 255)
    picture.paste(0, (0, 0, 4, 8))
    data = encoded(picture.convert("RGB").convert(mode), "TIFF")
    found = decode_image(data, ImageFormat(8))
    assert found[:, :, :4].max() <= 2 and found[:, :, 4:].min() >= 253


def test_a_palette_of_colours_and_transparency_shows_white() -> None:
    clear = Image.new("RGBA", (8, 8), (200, 0, 0, 0))
    assert (decode_image(encoded(clear.quantize(2), "PNG"), ImageFormat(8)) == 255).all()


@pytest.mark.parametrize("resample", ["nearest", "bilinear", "lanczos"])
def test_resizing_uses_the_format_s_filter(resample: Any) -> None:
    noise = Image.effect_noise((32, 32), 90).convert("RGB")
    wanted = np.asarray(noise.resize((8, 8), Image.Resampling[resample.upper()])).transpose(2, 0, 1)
    assert (decode_image(encoded(noise, "PNG"), ImageFormat(8, resample=resample)) == wanted).all()


# ---- bounds


def peak_of(call: Any) -> int:
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module")
def huge() -> Image.Image:
    return Image.new("L", (9_000, 9_000), 200)


def test_a_huge_jpeg_is_read_at_a_fraction_of_its_size(huge: Image.Image) -> None:
    assert abs(decode_image(encoded(huge, "JPEG"), ImageFormat(224)).astype(int) - 200).max() <= 1


def test_a_huge_picture_of_another_format_is_refused_with_its_size(huge: Image.Image) -> None:
    with pytest.raises(Undecodable, match=rf"9,000 x 9,000 pixels; expected at most {MOST_PIXELS:,}"):
        decode_image(encoded(huge, "PNG", compress_level=1), ImageFormat(224))


def test_long_and_thin_pictures_do_not_become_vast() -> None:
    thin = encoded(Image.new("RGB", (60_000, 8), (9, 90, 200)), "PNG")
    with pytest.raises(Undecodable, match="60,000 x 8 pixels is too long to be cropped"):
        decode_image(thin, ImageFormat(224))
    padded = decode_image(thin, ImageFormat(224, fit="pad"))
    assert padded.shape == (3, 224, 224) and (padded[:, 0] == 255).all()


def test_large_pictures_are_reduced_before_they_are_converted() -> None:
    large = Image.new("P", (5_000, 5_000), 1)
    large.putpalette([0, 0, 0, 40, 80, 160])
    assert (decode_image(encoded(large, "PNG"), ImageFormat(32)) == np.array([40, 80, 160])[:, None, None]).all()


def test_an_svg_of_a_vast_size_is_refused_before_it_is_drawn() -> None:
    pytest.importorskip("resvg_py")
    for size in ('width="90000" height="90000"', 'viewBox="0 0 90000 90000"', 'width="900in" height="900in"'):
        drawing = f'<svg xmlns="http://www.w3.org/2000/svg" {size}><rect width="9" height="9"/></svg>'
        with pytest.raises(Undecodable, match="too large to be decoded"):
            decode_image(drawing.encode(), ImageFormat(8))


# ---- files


def decoders() -> dict[str, Any]:
    return {
        "image": lambda path: decode_image(path, ImageFormat(8)),
        "audio": sound_decoder(AudioFormat(mel_bins=8, frames=10)),
        "spectrogram": lambda path: sound_decoder(AudioFormat(mel_bins=8, frames=10))(f"{path}.npy"),
        "video": lambda path: decode_video(path, VideoFormat(ImageFormat(8))),
        "sequence": lambda path: decode_sequence(path, SequenceFormat(3, 2)),
        "raster": raster_format,
    }


@pytest.mark.parametrize("reader", decoders())
def test_only_regular_files_are_opened(reader: str, tmp_path: Path) -> None:
    """A pipe without a writer would never open, and a device never end."""
    pytest.importorskip("soundfile")
    if reader == "video":
        pytest.importorskip("av")
    decode = decoders()[reader]
    suffix = ".npy" if reader == "spectrogram" else ""
    os.mkfifo(tmp_path / f"pipe{suffix}")
    (tmp_path / f"zero{suffix}").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / f"socket{suffix}"))
        for name, kind in (("pipe", "a named pipe"), ("zero", "a device"), ("socket", "a socket")):
            with pytest.raises(Undecodable, match=f"{name}{suffix} is {kind}; expected a file"):
                decode(tmp_path / name)
    if reader != "video":
        (tmp_path / f"folder{suffix}").mkdir()
        with pytest.raises(Undecodable, match=r"is a folder; expected a file"):
            decode(tmp_path / "folder")


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(SHOWN, "PNG"))
    (tmp_path / "link").symlink_to(tmp_path / "a.png")
    assert (decode_image(tmp_path / "link", ImageFormat(8))[0] == SHOWN).all()


@pytest.mark.parametrize("name", ["a caption of many words " * 40, "nul\0byte", "half a pair \ud800", "no/such/file"])
def test_names_that_are_no_files_are_refused(name: str) -> None:
    with pytest.raises(Undecodable) as caught:
        decode_image(name, ImageFormat(8))
    assert len(str(caught.value)) < 400 and str(caught.value).isprintable()


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_damaged_pictures_are_refused_whatever_pillow_raises() -> None:
    """Every kind of damage is one exception: Pillow raises struct.error, KeyError and others."""
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = [
        encoded(Image.effect_noise((40, 40), 60), "JPEG", exif=exif),
        encoded(Image.effect_noise((40, 40), 60), "TIFF", compression="tiff_lzw"),
        *(encoded(Image.effect_noise((40, 40), 60), kind) for kind in ("PNG", "GIF", "WEBP", "BMP", "TIFF")),
    ]
    random = np.random.default_rng(0)
    for data in whole:
        for _ in range(60):
            damaged = bytearray(data)
            for place in random.integers(0, min(len(data), 300), 3):
                damaged[place] = random.integers(256)
            try:
                found = decode_image(bytes(damaged[: random.integers(1, len(data) + 1)]), ImageFormat(8))
            except Undecodable as reason:
                assert str(reason).isprintable()
            else:
                assert found.shape == (3, 8, 8)


# ---- arrays and sounds


@pytest.mark.parametrize(
    "array",
    [np.array([object()] * 2), np.zeros((2, 8), complex), np.array([["a"] * 8]), np.zeros((2, 8), bool),
     np.zeros((0, 8)), np.zeros((2, 7)), np.zeros(8)],
)  # fmt: skip
def test_arrays_of_another_kind_are_refused(array: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    for decode in (
        sound_decoder(AudioFormat(mel_bins=8, frames=10)),
        lambda path: decode_sequence(path, SequenceFormat(3, 8)),
    ):
        with pytest.raises(Undecodable, match=r"a\.npy"):
            decode(tmp_path / "a.npy")


def test_an_archive_and_a_header_that_lies_are_no_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", np.zeros((2, 2)))
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f8", "fortran_order": False, "shape": (10**15, 2)})
    for data in ((tmp_path / "a.npz").read_bytes(), buffer.getvalue() + bytes(64), b"PK\x03\x04junk"):
        with pytest.raises(Undecodable, match=r"is not a \.npy array"):
            decode_sequence(data, SequenceFormat(3, 2))


def test_only_the_beginning_of_a_long_recording_is_read(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    random = np.random.default_rng(0)
    for rate in (16_000, 22_050):
        sound = (random.normal(size=(rate * 20, 2)) * 0.1).astype(np.float32)
        soundfile.write(tmp_path / "long.wav", sound, rate, subtype="FLOAT")
        whole = read_waveform(tmp_path / "long.wav", 16_000)
        start = read_waveform(tmp_path / "long.wav", 16_000, 3.0)
        assert len(start) == 48_000 and np.array_equal(start[:32_000], whole[:32_000])
    assert peak_of(lambda: sound_decoder(AudioFormat(frames=100))(tmp_path / "long.wav")) < 20e6


@pytest.mark.parametrize("rate", [1, 2_000_000])
def test_a_rate_that_no_recording_has_is_refused(rate: int) -> None:
    soundfile = pytest.importorskip("soundfile")
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(50), rate, format="WAV")
    with pytest.raises(Undecodable, match=rf"{rate:,} samples a second; expected 1,000 to 1,000,000"):
        read_waveform(buffer.getvalue(), 16_000)


def test_a_recording_without_samples_is_refused() -> None:
    soundfile = pytest.importorskip("soundfile")
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(0), 16_000, format="WAV")
    with pytest.raises(Undecodable, match="no samples"):
        read_waveform(buffer.getvalue(), 16_000)


@pytest.mark.parametrize("peak", [32_768.0, 3e38, float("inf")])
def test_samples_on_another_scale_are_refused(peak: float) -> None:
    soundfile = pytest.importorskip("soundfile")
    buffer = io.BytesIO()
    soundfile.write(buffer, np.array([0.5, -2.0] * 50, np.float32), 16_000, format="WAV", subtype="FLOAT")
    assert read_waveform(buffer.getvalue(), 16_000).min() == -2
    buffer = io.BytesIO()
    soundfile.write(buffer, np.array([0.5, -peak] * 50, np.float32), 16_000, format="WAV", subtype="FLOAT")
    with pytest.raises(Undecodable, match=r"samples of up to .*; expected -1 to 1"):
        read_waveform(buffer.getvalue(), 16_000)


@pytest.mark.parametrize("tagged", [False, True])
def test_an_mp3_that_was_cut_short_is_refused(tagged: bool) -> None:
    """Its first frame counts the frames; a tag of 200 bytes may stand before it."""
    soundfile = pytest.importorskip("soundfile")
    buffer = io.BytesIO()
    soundfile.write(buffer, np.sin(np.arange(48_000) / 20) / 4, 16_000, format="MP3")
    tag = b"ID3\x03\x00\x00" + bytes([0, 0, 1, 72]) + bytes(200) if tagged else b""
    whole = buffer.getvalue()
    assert len(read_waveform(tag + whole, 16_000)) == 48_000
    assert len(read_waveform(tag + whole, 16_000, seconds=1)) == 16_000
    half = tag + whole[: len(whole) // 2]
    assert len(read_waveform(half, 16_000, seconds=1)) == 16_000, "the beginning, which is all that is used, is whole"
    with pytest.raises(Undecodable, match=r"is cut short: it has 2\d,\d\d\d of the 48,000 samples"):
        read_waveform(half, 16_000)


@pytest.mark.parametrize("format", ["WAV", "AIFF"])
def test_a_recording_that_was_cut_short_is_refused(tmp_path: Path, format: str) -> None:
    soundfile = pytest.importorskip("soundfile")
    buffer = io.BytesIO()
    soundfile.write(buffer, np.linspace(-0.5, 0.5, 16_000), 16_000, format=format)
    whole = buffer.getvalue()
    assert len(read_waveform(whole, 16_000)) == 16_000
    (tmp_path / "cut").write_bytes(whole[:20_000])
    for value in (whole[:20_000], tmp_path / "cut"):
        with pytest.raises(
            Undecodable, match=r"is cut short: it has 20,000 of the 32,0\d\d bytes that its header says"
        ):
            read_waveform(value, 16_000)


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 32_044])
def test_a_recording_whose_header_misstates_the_file_s_size_is_read(size: int) -> None:
    """As from a program that writes into a pipe, or that counts the eight bytes before the size."""
    soundfile = pytest.importorskip("soundfile")
    buffer = io.BytesIO()
    soundfile.write(buffer, np.linspace(-0.5, 0.5, 16_000), 16_000, format="WAV")
    whole = bytearray(buffer.getvalue())
    whole[4:8] = size.to_bytes(4, "little")
    assert len(read_waveform(bytes(whole), 16_000)) == 16_000
