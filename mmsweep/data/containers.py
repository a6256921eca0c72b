"""Video files read through PyAV: frames and the sound track, of a whole file or a segment. Needs `mmsweep[video]`.

Few frames are decoded. The packets are listed first, without decoding them, which gives every frame's time; each wanted
frame is then decoded from the key frame before it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image

from mmsweep.data.files import Segment, Undecodable, name_of, opened, path_of
from mmsweep.errors import UserError

Frame = TypeVar("Frame")

VIDEO_SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".flv", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".wmv", ".3gp", ".ts", ".ogv",
)  # fmt: skip

_LEAD = 1.0
"""Seconds decoded before a segment of sound, since codecs such as AAC need earlier packets to start."""


class _Packet(NamedTuple):
    """Times of a compressed frame, in the stream's unit: when it is shown and when it is decoded."""

    shown: int
    decoded: int
    is_key: bool


@contextmanager
def opened_container(path: Path) -> Iterator[Any]:
    """PyAV's container of a video file.

    Raises:
        UserError: PyAV is not installed.
        Undecodable: not a regular file, empty, or a git-LFS pointer.
    """
    try:
        import av
    except ImportError:
        raise UserError("video files need the package av", file=path, hint="pip install 'mmsweep[video]'") from None
    with opened(path):
        pass
    # A file that is really a playlist could name addresses of its own: only files are read.
    with av.open(str(path), options={"protocol_whitelist": "file"}) as container:
        yield container


def read_frames(
    value: str | Path | Segment,
    choose: Callable[[int], list[int]],
    fit: Callable[[Image.Image], Frame],
    check_size: Callable[[tuple[int, int]], None],
) -> list[Frame]:
    """Some frames of a video file.

    Args:
        choose: gives the places of the wanted frames, in order, for the number of frames of the file or segment.
        fit: applied to each frame as soon as it is decoded, so that few large pictures are held at once.
        check_size: raises where (width, height) is too much to decode.

    Raises:
        Undecodable: no pictures, none in the segment, or a file that ends before its header says so.
    """
    path = path_of(value)
    with opened_container(path) as container:
        if not container.streams.video:
            raise Undecodable(f"the clip {name_of(path)} has no pictures")
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1  # clips are decoded side by side; more threads would also read ahead
        check_size((stream.codec_context.width, stream.codec_context.height))
        packets = _listed(container, stream, path)
        times = sorted({packet.shown for packet in packets}) if packets else _decoded_times(container, stream)
        if not times:
            raise Undecodable(f"the clip {name_of(path)} has no frames")
        if isinstance(value, Segment):
            zero = (container.start_time or 0) / 1e6
            times = [t for t in times if value.start <= t * stream.time_base - zero < value.end]
            if not times:
                raise Undecodable(f"the clip {name_of(path)} has no frames from {value.start:g} to {value.end:g} s")
        places = choose(len(times))
        wanted = sorted(set(places))
        packets = packets or [_Packet(times[0], 0, True)]
        decoded = _frames_at(container, stream, packets, [times[place] for place in wanted], path)
        frames = {place: fit(frame.to_image()) for place, frame in zip(wanted, decoded, strict=True)}
    return [frames[place] for place in places]


def _listed(container: Any, stream: Any, path: Path) -> list[_Packet]:
    """The stream's packets, undecoded; none where some do not say when they are shown (as in AVI)."""
    count, stated, packets = 0, True, []
    for packet in container.demux(stream):
        if packet.size:
            count += 1
            if packet.is_discard:  # cut away by the file's edit list: decoded, never shown
                continue
            if packet.pts is None:
                stated = False
            elif stated:
                decoded = packet.pts if packet.dts is None else packet.dts
                packets.append(_Packet(packet.pts, decoded, packet.is_keyframe))
    # Only MP4 counts its frames exactly; a file whose download broke off lacks the last ones.
    if "mp4" in container.format.name and count < stream.frames:
        raise Undecodable(
            f"the clip {name_of(path)} is cut short: "
            f"it has {count:,} of the {stream.frames:,} frames that its header says"
        )
    return packets if stated else []


def _decoded_times(container: Any, stream: Any) -> list[int]:
    """Times of all frames, which are decoded for it: for files that do not state them."""
    container.seek(0)
    times = [frame.pts for frame in decoded_frames(container, stream)]
    return sorted(time for time in times if time is not None)


def decoded_frames(container: Any, stream: Any) -> Iterator[Any]:
    """Frames from where the container stands. Every frame that is decoded comes from here."""
    yield from container.decode(stream)


def _frames_at(container: Any, stream: Any, packets: list[_Packet], times: Iterable[int], path: Path) -> Iterator[Any]:
    """For each time, which rise, the first frame that is shown then or later; at the end the last one."""
    keys = [packet for packet in packets if packet.is_key] or packets[:1]
    decoded: Iterator[Any] = iter(())
    frame = None
    for time in times:
        key = max((k for k in keys if k.shown <= time), key=lambda k: k.shown, default=keys[0])
        if frame is None or frame.pts < key.shown:
            decoded, frame = _from(container, stream, key, keys[0]), None
        while frame is None or frame.pts < time:
            after = next(decoded, None)
            if after is None:
                break
            frame = after
        if frame is None:
            raise Undecodable(f"no frame of the clip {name_of(path)} can be decoded")
        yield frame


def _from(container: Any, stream: Any, key: _Packet, first: _Packet) -> Iterator[Any]:
    """Frames from a key frame on, or from an earlier one.

    Matroska finds key frames by the time they are shown and MP4 by the time they are decoded. A container that seeks
    beyond the key frame with both is decoded from its beginning.
    """
    for time in (key.shown, key.decoded, first.decoded):
        container.seek(time, stream=stream)
        frames = (frame for frame in decoded_frames(container, stream) if frame.pts is not None)
        frame = next(frames, None)
        if frame is not None and (frame.pts <= key.shown or time == first.decoded):
            return itertools.chain([frame], frames)
    return iter(())


def read_track(path: Path, start: float = 0.0, end: float | None = None) -> tuple[np.ndarray, int]:
    """The sound track of a video file: float32 [samples, channels], and samples a second.

    Args:
        start, end: seconds from the file's beginning; what is read.

    Raises:
        Undecodable: the file has no sound.
    """
    with opened_container(path) as container:
        if not container.streams.audio:
            raise Undecodable(f"the clip {name_of(path)} has no sound track")
        stream = container.streams.audio[0]
        zero, lead = (container.start_time or 0) / 1e6, max(0.0, start - _LEAD)
        if lead:
            container.seek(int((zero + lead) * 1e6))
        begin, sound = _sound(container, stream, zero, end)
        if lead and begin > start:  # the container sought too far
            container.seek(0)
            begin, sound = _sound(container, stream, zero, end)
        rate = int(stream.rate)
    first = max(0, round((start - begin) * rate))
    last = None if end is None else max(0, round((end - begin) * rate))
    return sound[first:last], rate


def _sound(container: Any, stream: Any, zero: float, end: float | None) -> tuple[float, np.ndarray]:
    """When the sound begins, and float32 [samples, channels] from where the container stands until `end`."""
    import av

    resampler = av.AudioResampler(format="fltp", layout=stream.layout, rate=stream.rate)
    begin, parts = None, []
    for frame in container.decode(stream):
        time = 0.0 if frame.time is None else frame.time - zero
        begin = time if begin is None else begin
        if end is not None and time >= end:
            break
        parts += [part.to_ndarray() for part in resampler.resample(frame)]
    channels = stream.channels
    sound = np.concatenate(parts, axis=1) if parts else np.zeros((channels, 0), np.float32)
    return begin or 0.0, np.ascontiguousarray(sound.T)
