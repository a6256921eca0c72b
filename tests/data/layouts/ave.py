"""AVE: the three published lists or the annotations with titles, and videos or extracted events."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmsweep.data.options import DATASETS
from mmsweep.data.sets.ave import CLASSES
from tests.data.layouts.clips import write_frames, write_sound, write_video

TITLES = "Category&VideoID&Quality&StartTime&EndTime"


SOME = CLASSES[::3]
"""Ten categories, some with blanks and commas in their names."""


def rows() -> list[tuple[str, str, int, int]]:
    """(category, video, start, end): six of each class; one video holds two events, one event has no duration."""
    out = []
    for number in range(6 * len(SOME)):
        turn, k = divmod(number, len(SOME))
        out.append((SOME[k], f"-{'_x'[turn % 2]}Vi2ENB{number:03d}", (0, 2)[turn % 2], (10, 5)[turn % 2]))
    out[5] = (*out[5][:2], 0, 0)
    out[1] = (out[1][0], out[0][1], 0, 10)
    return out


def line(row: tuple[str, str, int, int], separator: str = "&") -> str:
    category, video, start, end = row
    return separator.join([category, video, "good", str(start), str(end)])


def parts() -> dict[str, list[tuple[str, str, int, int]]]:
    """The video with two events stands in training."""
    return {"train": rows()[:40], "val": rows()[40:50], "test": rows()[50:]}


def write_lists(root: Path, separator: str = "&") -> None:
    for split, found in parts().items():
        (root / f"{split}Set.txt").write_text("\n".join(line(row, separator) for row in found))


def videos(root: Path) -> Any:
    """As AVE_Dataset.zip unpacks: ten seconds a video, whose grey says the second."""
    folder = root / "AVE_Dataset"
    folder.mkdir()
    write_lists(folder)
    data = write_video(root / "one.mp4", [20 * (k // 2) + 20 for k in range(20)], rate=2, gop=4).read_bytes()
    (root / "one.mp4").unlink()
    (folder / "AVE").mkdir()
    for _, video, _, _ in rows():
        (folder / "AVE" / f"{video}.mp4").write_bytes(data)
    return DATASETS.options("ave", root=str(root))


def annotations(root: Path) -> Any:
    """Annotations.txt alone, with titles and CRLF."""
    options = videos(root)
    for split in parts():
        (root / "AVE_Dataset" / f"{split}Set.txt").unlink()
    text = "\r\n".join([TITLES, *map(line, rows())])
    (root / "AVE_Dataset" / "Annotations.txt").write_bytes(text.encode())
    return options


def extracted(root: Path) -> Any:
    """Events as PMR extracts them: frames and sounds of the annotated part; lists with commas."""
    write_lists(root, ",")
    for _, video, _, _ in rows():
        write_frames(root / "Image-01-FPS-SE" / video, [60, 120])
        write_sound(root / "Audio-SE" / f"{video}.wav", 0.2)
    return DATASETS.options("ave", root=str(root))
