"""Sequences of features derived from real texts, recordings and pictures: fixed arithmetic, no weights.

They stand where benchmarks of unaligned sequences hand out features that others extracted (CMU-MOSI: BERT 50 x 768,
COVAREP 500 x 5, FACET 375 x 20). What is real is the text, the recording and the picture; the features are these:

    words    a step a word: signed hashes of the word and of its letter trigrams, unit length
    sound    a step of 10 ms: energy, zero crossings, and centroid, spread and flatness of the spectrum
    picture  a step a cell of a 25 x 15 grid that is not blank, row by row: colours, edges, place
"""

from __future__ import annotations

import re
import zlib
from pathlib import Path

import numpy as np

from mmsweep.data.files import Undecodable
from mmsweep.data.kinds.audio import read_waveform
from mmsweep.data.kinds.image import ImageFormat, decode_image

RATE = 16_000
STEP, WINDOW = 160, 400  # 10 and 25 ms
SOUND_WIDTH, PICTURE_WIDTH = 5, 20
COLUMNS, ROWS, CELL = 25, 15, 4
"""25 x 15 = 375 cells of 4 x 4 pixels; the picture's square is drawn as 100 x 60 of them."""

_BLANK = 0.98


def word_features(text: str, width: int) -> np.ndarray:
    """float32 [words, width]. Raises Undecodable for a text without words."""
    words = re.findall(r"\w+", text.lower())
    if not words:
        raise Undecodable(f"the text {text[:40]!r} has no words")
    features_TF = np.zeros((len(words), width), np.float32)
    for step, word in enumerate(words):
        marked = f"<{word}>"
        for part in (marked, *(marked[i : i + 3] for i in range(len(marked) - 2))):
            code = zlib.crc32(part.encode())
            features_TF[step, code % width] += 1.0 if (code >> 16) & 1 else -1.0
    # A step whose parts cancel out stays zero.
    return features_TF / np.maximum(np.linalg.norm(features_TF, axis=1, keepdims=True), 1e-6)


def sound_features(value: str | Path | bytes, seconds: float | None = None) -> np.ndarray:
    """float32 [steps, 5], each about within -1 and 1; of a recording longer than `seconds` its beginning."""
    wave_N = read_waveform(value, RATE, seconds)
    wave_N = np.pad(wave_N, (0, max(0, WINDOW - len(wave_N))))
    frames_TN = np.lib.stride_tricks.sliding_window_view(wave_N, WINDOW)[::STEP]
    power_TK = np.abs(np.fft.rfft(frames_TN * np.hanning(WINDOW), axis=1)) ** 2 + 1e-10
    share_TK = power_TK / power_TK.sum(1, keepdims=True)
    place_K = np.linspace(0, 1, share_TK.shape[1])
    centroid_T = share_TK @ place_K
    spread_T = np.sqrt((share_TK * (place_K - centroid_T[:, None]) ** 2).sum(1))
    flatness_T = np.exp(np.log(power_TK).mean(1)) / power_TK.mean(1)
    energy_T = np.log10((frames_TN**2).mean(1) + 1e-8) / 4 + 1  # silence: -1, full scale: 1
    crossings_T = (np.diff(np.signbit(frames_TN), axis=1)).mean(1)
    return np.stack([energy_T, crossings_T, centroid_T, spread_T, flatness_T], 1).astype(np.float32)


def picture_features(value: str | Path | bytes) -> np.ndarray:
    """float32 [cells, 20]: the cells that are not blank paper (all of a blank picture)."""
    side = COLUMNS * CELL
    square = decode_image(value, ImageFormat(side, fit="pad")).astype(np.float32) / 255
    # The square's rows in 15 bands: 100 rows do not divide, so they are taken at 60 even places.
    image_CHW = square[:, np.linspace(0, side - 1, ROWS * CELL).round().astype(int)]
    grey_HW = np.tensordot(np.array([0.299, 0.587, 0.114], np.float32), image_CHW, 1)
    down_HW, right_HW = np.gradient(grey_HW)
    angle_HW = np.arctan2(down_HW, right_HW) % np.pi
    strength_HW = np.hypot(down_HW, right_HW)
    cells_TCP = _cells(image_CHW)
    grey_TP, down_TP, right_TP = (_cells(x[None])[:, 0] for x in (grey_HW, down_HW, right_HW))
    sector_HW = (angle_HW / np.pi * 4).astype(int) % 4
    edges_T4 = np.stack([_cells((strength_HW * (sector_HW == k))[None])[:, 0].mean(1) for k in range(4)], 1)
    quarters_T4 = grey_TP.reshape(-1, 2, CELL // 2, 2, CELL // 2).mean((2, 4)).reshape(-1, 4)
    y_T, x_T = np.divmod(np.arange(ROWS * COLUMNS), COLUMNS)
    features_TF = np.concatenate(
        [
            cells_TCP.mean(2), cells_TCP.std(2), np.abs(right_TP).mean(1)[:, None], np.abs(down_TP).mean(1)[:, None],
            quarters_T4, edges_T4, np.stack([grey_TP.min(1), grey_TP.max(1)], 1),
            np.stack([2 * x_T / (COLUMNS - 1) - 1, 2 * y_T / (ROWS - 1) - 1], 1),
        ],
        axis=1,
    ).astype(np.float32)  # fmt: skip
    drawn_T = grey_TP.min(1) < _BLANK
    return features_TF[drawn_T] if drawn_T.any() else features_TF


def _cells(image_CHW: np.ndarray) -> np.ndarray:
    """[C, 60, 100] -> [375, C, 16], row by row."""
    split = image_CHW.reshape(len(image_CHW), ROWS, CELL, COLUMNS, CELL).transpose(1, 3, 0, 2, 4)
    return split.reshape(ROWS * COLUMNS, len(image_CHW), CELL * CELL)
