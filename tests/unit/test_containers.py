"""Video files: the right frames, few of them decoded, in every container; the sound track, and segments of both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mmsweep.data import containers
from mmsweep.data.digests import _stamp, content_of
from mmsweep.data.files import Segment, Undecodable
from mmsweep.data.kinds.audio import AudioFormat, read_waveform, sound_decoder
from mmsweep.data.kinds.image import ImageFormat
from mmsweep.data.kinds.video import VideoFormat, decode_kept_frames, decode_video
from tests.data.layouts.clips import tone_of, write_frames, write_pointer, write_spectrogram, write_video

pytest.importorskip("av")
soundfile = pytest.importorskip("soundfile")

FRAMES, RATE = 60, 10
CODECS = {
    "a.mp4": "libx264",
    "b.flv": "flv",
    "c.mkv": "libx264",
    "d.avi": "mpeg4",
    "e.flv": "libx264",
    "f.avi": "libx264",
}
CLIP = VideoFormat(ImageFormat(8))


def grey(place: int) -> int:
    return 4 * place + 8


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Six seconds whose frame k is grey of 4 k + 8, with a key frame every ten frames."""
    folder, greys = tmp_path_factory.mktemp("clips"), [grey(k) for k in range(FRAMES)]
    return {
        name: write_video(folder / name, greys, RATE, sound=name[0] in "abce", codec=codec, gop=10)
        for name, codec in CODECS.items()
    }


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by one for each frame that is decoded."""
    count: list[int] = []
    real = containers.decoded_frames

    def counting(container, stream):
        for frame in real(container, stream):
            count.append(1)
            yield frame

    monkeypatch.setattr(containers, "decoded_frames", counting)
    return count


def shown(clip: np.ndarray) -> list[int]:
    """Which frames a clip shows: their grey tells."""
    return [round((float(frame.mean()) - 8) / 4) for frame in clip]


@pytest.mark.parametrize("name", CODECS)
def test_the_middle_frame_of_each_third_is_shown_and_few_are_decoded(clips, decoded, name: str) -> None:
    assert shown(decode_video(clips[name], CLIP)) == pytest.approx([10, 30, 50], abs=1 if name.endswith("avi") else 0)
    if name != "f.avi":  # AVI does not say when B-frames are shown: all are decoded to find out
        assert len(decoded) < FRAMES / 2, "each wanted frame is decoded from the key frame before it"


@pytest.mark.parametrize("name", CODECS)
def test_a_segment_shows_its_own_frames(clips, decoded, name: str) -> None:
    segment = Segment(clips[name], 1.5, 4.5)
    assert shown(decode_video(segment, CLIP)) == pytest.approx([20, 30, 40], abs=1 if name.endswith("avi") else 0)
    if name != "f.avi":
        assert len(decoded) <= FRAMES / 2
    with pytest.raises(Undecodable, match=r"no frames from 30 to 40 s"):
        decode_video(Segment(clips[name], 30, 40), CLIP)


def test_random_frames_of_training_are_drawn_from_frames_of_the_whole_clip(clips) -> None:
    frames, _ = decode_kept_frames(clips["a.mp4"], VideoFormat(ImageFormat(8), pool=24))
    assert len(frames) == 24 and shown(frames) == [int((k + 0.5) * FRAMES / 24) for k in range(24)]


def test_a_clip_that_was_cut_short_or_is_a_pointer_is_refused(clips, tmp_path: Path) -> None:
    import av

    with (
        av.open(str(clips["a.mp4"])) as source,
        av.open(str(tmp_path / "fast.mp4"), "w", options={"movflags": "faststart"}) as copy,
    ):
        stream = copy.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                copy.mux(packet)
    data = (tmp_path / "fast.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) * 3 // 4])
    assert shown(decode_video(tmp_path / "fast.mp4", CLIP)) == [10, 30, 50]
    with pytest.raises(Undecodable, match=r"cut\.mp4.* (is cut short|cannot be decoded)"):
        decode_video(tmp_path / "cut.mp4", CLIP)
    with pytest.raises(Undecodable, match="git-LFS pointer"):
        decode_video(write_pointer(tmp_path / "p.flv"), CLIP)
    with pytest.raises(Undecodable, match="is empty"):
        (tmp_path / "e.mp4").touch()
        decode_video(tmp_path / "e.mp4", CLIP)


def test_a_folder_of_frames_has_segments_by_the_seconds_that_it_covers(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "clip", [grey(k) for k in range(10)])
    assert shown(decode_video(Segment(folder, 4, 7, 10.0), CLIP)) == [4, 5, 6]
    assert shown(decode_video(folder, CLIP)) == [1, 5, 8]


# ---- sound


def test_sounds_are_those_of_ast_s_own_feature_extractor(tmp_path: Path) -> None:
    """128 bins at 16 kHz, up to 1,024 frames, AudioSet's statistics; channels are averaged before resampling."""
    from scipy.signal import resample_poly
    from transformers import ASTFeatureExtractor

    extractor, decode = ASTFeatureExtractor(), sound_decoder(AudioFormat())
    mono = tone_of(2, 16_000)
    soundfile.write(tmp_path / "mono.wav", mono, 16_000, subtype="FLOAT")
    wanted = extractor(mono, sampling_rate=16_000, return_tensors="np")["input_values"][0]
    found = decode(tmp_path / "mono.wav")
    assert found.shape == (1024, 128) and np.array_equal(found, wanted)
    assert np.allclose(found[-1], 4.2677393 / (2 * 4.5689974))  # padding is 0 before it is normalised
    stereo = np.stack([tone_of(12, 44_100), tone_of(12, 44_100, 2_000)], 1)
    soundfile.write(tmp_path / "stereo.wav", stereo, 44_100, subtype="FLOAT")
    resampled = resample_poly(stereo.mean(1), 16_000, 44_100).astype(np.float32)
    wanted = extractor(resampled, sampling_rate=16_000, return_tensors="np")["input_values"][0]
    assert np.allclose(decode(tmp_path / "stereo.wav"), wanted, atol=1e-4)


@pytest.mark.parametrize("name", ["a.mp4", "b.flv", "c.mkv"])
def test_a_video_s_own_track_is_read_as_a_sound_file_is(clips, name: str) -> None:
    """At the same rate and loudness as a .wav of the tone, as far as the codec keeps it."""
    tone, kept = tone_of(FRAMES / RATE, 44_100), 0.08 if name == "b.flv" else 0.03  # LAME lowers what it encodes by 5 %
    sound = read_waveform(clips[name], 16_000)
    assert abs(len(sound) - 96_000) < 1_200
    for second in range(1, 5):
        part = slice(second * 16_000, (second + 1) * 16_000)
        wave = tone[second * 44_100 : (second + 1) * 44_100]
        assert np.std(sound[part]) == pytest.approx(float(np.std(wave)), rel=kept)
        spectrum = np.abs(np.fft.rfft(sound[part]))
        assert spectrum.argmax() == 440
    cut = read_waveform(Segment(clips[name], 2, 4), 16_000)
    assert len(cut) == 32_000 and np.std(cut) == pytest.approx(float(np.std(sound[32_000:64_000])), rel=0.03)
    assert len(read_waveform(Segment(clips[name], 2, 4), 16_000, seconds=0.5)) == 8_000


def test_a_clip_without_sound_says_so(clips) -> None:
    with pytest.raises(Undecodable, match=r"d\.avi has no sound track"):
        read_waveform(clips["d.avi"], 16_000)


def test_segments_of_sounds_and_stored_spectrograms(tmp_path: Path) -> None:
    sound = tone_of(3, 16_000)
    soundfile.write(tmp_path / "a.wav", sound, 16_000, subtype="FLOAT")
    assert np.array_equal(read_waveform(Segment(tmp_path / "a.wav", 1, 2), 16_000), sound[16_000:32_000])
    assert len(read_waveform(Segment(tmp_path / "a.wav", 2, 10), 16_000)) == 16_000
    with pytest.raises(Undecodable, match=r"is only 3\.00 s long"):
        read_waveform(Segment(tmp_path / "a.wav", 7, 10), 16_000)
    format = AudioFormat(mel_bins=26, frames=36)
    stored = np.load(write_spectrogram(tmp_path / "b.npy", 300))
    found = sound_decoder(format)(Segment(tmp_path / "b.npy", 1, 1.2))
    assert np.allclose(found[:20], (stored[100:120] - format.mean) / (2 * format.std))
    with pytest.raises(Undecodable, match=r"is only 3\.00 s long"):
        sound_decoder(format)(Segment(tmp_path / "b.npy", 7, 10))


def test_a_spectrogram_that_is_normalised_already_is_refused(tmp_path: Path) -> None:
    """Normalising it again would give wrong numbers silently."""
    stored = np.load(write_spectrogram(tmp_path / "raw.npy", 36))
    format = AudioFormat(mel_bins=26, frames=36)
    normalised = sound_decoder(format)(tmp_path / "raw.npy")
    assert np.allclose(normalised, (stored - format.mean) / (2 * format.std), atol=1e-6)
    np.save(tmp_path / "again.npy", np.clip(normalised, -1.4, 1.4))
    with pytest.raises(Undecodable, match="normalised already"):
        sound_decoder(format)(tmp_path / "again.npy")


def test_prepared_data_tells_segments_apart(clips) -> None:
    one, two = Segment(clips["a.mp4"], 0, 2), Segment(clips["a.mp4"], 2, 4)
    for digest in (_stamp, content_of):
        assert digest(one, CLIP) != digest(two, CLIP) and digest(one, CLIP) == digest(
            Segment(clips["a.mp4"], 0, 2), CLIP
        )
