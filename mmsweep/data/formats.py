"""How a raw value becomes an array: made by the encoders (who know what they were trained on), read by preparation.

A format says two things: what stands on disk (the *column*: native type, smallest size that loses nothing) and what a
network gets (the *batch*: float, normalised, on the device). Formats are plain values: equal formats mean equal
columns, and their `key()` is part of the name of the prepared data.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mmsweep.errors import UserError

Resample = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]


@dataclass(frozen=True)
class ImageFormat:
    """Pictures: column uint8 [N,3,size,size]; batch float32 [B,3,size,size], (x/255 - mean) / std.

    Args:
        size: side of the square that the network sees.
        mean, std: per channel, in 0..1.
        resize: shorter side before the centre crop; None means `size` (no margin).
        fit: what happens to a picture that is not square: `crop` shows its middle, `pad` shows all of it on white.
        resample: Pillow's filter for resizing.
        whole: side of a second column, for random crops: all of each training picture, stretched to a square. None
            keeps no such column.
    """

    size: int
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    resize: int | None = None
    fit: Literal["crop", "pad"] = "crop"
    resample: Resample = "bicubic"
    whole: int | None = None

    kind = "image"

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UserError("the image size must be positive", key="size", found=self.size)
        if self.resize is not None and self.resize < self.size:
            raise UserError(
                "a picture cannot be cropped to more than it was resized to",
                key="resize",
                found=self.resize,
                expected=f"at least size = {self.size}",
            )
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise UserError("mean and std must have three entries, std above 0", found=(self.mean, self.std))

    @property
    def resized_side(self) -> int:
        return self.resize or self.size

    def key(self) -> dict[str, Any]:
        # mean and std act on the device, after the column: pictures prepared for one encoder serve another.
        key: dict[str, Any] = {"kind": self.kind, "stored": self.size, "resize": self.resized_side}
        usual = {"fit": "crop", "resample": "bicubic", "whole": None}
        return key | {name: getattr(self, name) for name in usual if getattr(self, name) != usual[name]}


@dataclass(frozen=True)
class TextFormat:
    """Texts: columns ids int32 [N,L], mask bool [N,L]; batch dict(ids int64 [B,L'], mask bool [B,L']).

    Args:
        tokenizer: folder of a transformers tokenizer (nothing is downloaded); whether it lower-cases is its own matter.
        length: L, with the special tokens.
        trim: cut the batch to its longest text; False keeps L' = L.
    """

    tokenizer: str
    length: int
    trim: bool = True

    kind = "text"

    def __post_init__(self) -> None:
        if self.length < 3:
            raise UserError(
                "a text needs room for [CLS], one token and [SEP]",
                key="length",
                found=self.length,
                expected="at least 3",
            )

    def key(self) -> dict[str, Any]:
        return {"kind": self.kind, "tokenizer": _folder_digest(self.tokenizer), "length": self.length}


@dataclass(frozen=True)
class AudioFormat:
    """Sounds as log-mel spectrograms: column and batch float32 [N, frames, mel_bins].

    Args:
        rate: samples a second.
        mel_bins, frames: size of the spectrogram; shorter sounds are padded, longer ones cut.
        mean, std: `ast` spectrograms become (x - mean) / (2 std), as AST's authors do; unused by `whisper`.
        kind: whose recipe: "ast" (Kaldi filter bank, 25 ms window, 10 ms step) or "whisper" (log10 mel, clipped 8
            below the maximum).
    """

    rate: int = 16_000
    mel_bins: int = 128
    frames: int = 1024
    mean: float = -4.2677393
    std: float = 4.5689974
    kind: Literal["ast", "whisper"] = "ast"

    def __post_init__(self) -> None:
        if self.kind not in ("ast", "whisper"):
            raise UserError("unknown kind of spectrogram", key="kind", found=self.kind, expected="ast or whisper")

    def key(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "kind": f"audio-{self.kind}"}


@dataclass(frozen=True)
class VideoFormat:
    """Clips: column uint8 [N,f,3,H,W]; batch float32 [B,f,3,H,W], each frame as `image` says.

    Args:
        image: how a frame is read.
        frames: f, what the network sees: uniform over the clip, random with `Augmentation(random_frames=True)`.
        kept: most frames of a training clip in a second column, uniform over the clip, which random frames are drawn
            from. None keeps no such column, unless `image.whole` asks for one.
    """

    image: ImageFormat
    frames: int = 3
    kept: int | None = None

    kind = "video"

    def __post_init__(self) -> None:
        if self.frames < 1 or (self.kept is not None and self.kept < self.frames):
            raise UserError(
                "a clip needs at least one frame, and as many kept as are shown",
                key="frames",
                found=(self.frames, self.kept),
            )

    def key(self) -> dict[str, Any]:
        key = {"kind": self.kind, "image": self.image.key(), "stored": self.frames}
        return key if self.kept is None else {**key, "kept": self.kept}


@dataclass(frozen=True)
class RasterFormat:
    """Rasters of a scene that lie pixel on pixel: column [N,C,H,W] in the file's own type; batch float32 [B,C,H,W].

    Nothing is resized: a file of another size is refused, since it would no longer lie on the others. The batch is
    (x - mean) / std, in the file's own units.

    Args:
        size: (H, W) of the files.
        channels: 3, or 1 for heights, temperatures and the like.
        dtype: uint8, or uint16 (16-bit heights stay so on disk).
        mean, std: per channel, in the file's units.
    """

    size: tuple[int, int]
    channels: int = 3
    dtype: Literal["uint8", "uint16"] = "uint8"
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (255.0, 255.0, 255.0)

    kind = "raster"

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise UserError("a raster has one channel or three", key="channels", found=self.channels)
        if len(self.mean) != self.channels or len(self.std) != self.channels or min(self.std) <= 0:
            raise UserError(
                f"mean and std must have an entry for each of {self.channels} channels, std above 0",
                found=(self.mean, self.std),
            )

    def key(self) -> dict[str, Any]:
        return {"kind": self.kind, "size": list(self.size), "channels": self.channels, "dtype": self.dtype}


@dataclass(frozen=True)
class SequenceFormat:
    """Sequences of features: columns float32 [N, length, width] and lengths int32 [N].

    The batch is dict(values float32 [B, length, width], mask bool [B, length]), never cut to its longest row: a
    sequence's place in a network may count from its end, and a row must not depend on its batch mates.

    Args:
        length: T, steps; shorter sequences are padded with zeros, longer ones cut.
        width: F, features a step.
        recipe: "stored": the value is a .npy file of [t, F]; else the features are derived from the value, a text
            ("words"), a recording ("sound") or a picture ("picture"), as data/derived.py says.
    """

    length: int
    width: int
    recipe: Literal["stored", "words", "sound", "picture"] = "stored"

    kind = "sequence"

    def __post_init__(self) -> None:
        if self.length < 1 or self.width < 1:
            raise UserError(
                "a sequence needs at least one step and one feature", key="length", found=(self.length, self.width)
            )

    def key(self) -> dict[str, Any]:
        return {"kind": self.kind, **dataclasses.asdict(self)}


Format = ImageFormat | TextFormat | AudioFormat | VideoFormat | RasterFormat | SequenceFormat

KINDS: dict[type, str] = {
    ImageFormat: "image",
    TextFormat: "text",
    AudioFormat: "audio",
    VideoFormat: "video",
    RasterFormat: "raster",
    SequenceFormat: "sequence",
}
"""Which kind of modality (DatasetBuilder.modalities) a format reads."""


_TOKENIZER_FILES = ("tokenizer", "vocab", "special_tokens", "merges", "added_tokens", "spiece", "sentencepiece")


def _folder_digest(folder: str) -> str:
    """Digest of a tokenizer's files (not of the folder's name, so that a moved folder is the same tokenizer)."""
    path, digest = Path(folder), hashlib.sha256()
    if not path.is_dir():
        raise UserError("the tokenizer's folder does not exist", file=folder)
    for name in sorted(p.name for p in path.iterdir() if p.is_file()):
        if name.startswith(_TOKENIZER_FILES):
            digest.update(name.encode() + b"\0" + (path / name).read_bytes())
    return digest.hexdigest()[:16]
