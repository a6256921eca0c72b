"""Augmentation: what it does to pictures, and that ranks and devices draw alike."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError

from mmsweep.data.augmentation import Augmentation, Draws
from mmsweep.data.kinds.video import uniform_frames
from mmsweep.data.options import AugmentationOptions


def draws_of(augmentation: Augmentation, rows: int, seed: int = 0, **frames: int) -> Draws:
    return augmentation.draw(rows, torch.Generator().manual_seed(seed), frames)


def ramp(rows: int = 16, side: int = 12) -> torch.Tensor:
    """Pictures that grow brighter to the right."""
    line = torch.linspace(0, 250, side).to(torch.uint8)
    return line.expand(rows, 3, side, side).contiguous()


def test_flips_are_whole_and_as_frequent_as_asked() -> None:
    augmentation = Augmentation(flip=0.5)
    out = augmentation.pictures(ramp(400), draws_of(augmentation, 400), 12)
    flipped = (out == ramp(400).flip(-1)).flatten(1).all(1)
    assert (flipped | (out == ramp(400)).flatten(1).all(1)).all() and 150 < int(flipped.sum()) < 250
    always = Augmentation(flip=1.0)
    assert torch.equal(always.pictures(ramp(), draws_of(always, 16), 12), ramp().flip(-1))


def test_crops_show_a_part_of_the_picture() -> None:
    whole = Augmentation(crop=(1.0, 1.0))
    torch.testing.assert_close(whole.pictures(ramp(), draws_of(whole, 16), 12), ramp().float(), atol=1e-2, rtol=1e-4)
    part = Augmentation(crop=(0.25, 0.25))
    out = part.pictures(ramp(), draws_of(part, 16), 12)
    widths = out[:, 0, 0, -1] - out[:, 0, 0, 0]
    assert out.shape == (16, 3, 12, 12) and (widths > 90).all() and (widths < 150).all()  # half of the ramp
    assert len({round(float(v), 3) for v in out[:, 0, 0, 0]}) > 8 and out.min() >= 0 and out.max() <= 250
    flipped = Augmentation(crop=(0.25, 0.25), flip=1.0)
    torch.testing.assert_close(flipped.pictures(ramp(), draws_of(flipped, 16), 12), out.flip(-1), atol=1e-2, rtol=1e-4)


@pytest.mark.parametrize("width", [12, 48, 3])
@pytest.mark.parametrize("area", [0.2, 0.6, 1.0])
def test_a_crop_has_its_area_and_shape_in_the_picture_s_own_proportions(width: int, area: float) -> None:
    """Pictures of 12 rows that were stretched to squares: what a crop shows of them is neither flat nor narrow."""
    augmentation, rows = Augmentation(crop=(area, area)), 200
    ramps = torch.stack(torch.meshgrid(torch.linspace(0, 1, 64), torch.linspace(0, 1, 64), indexing="ij"))
    aspect_B = torch.full((rows,), math.log(width / 12))
    shown = augmentation.pictures(ramps.expand(rows, 2, 64, 64), draws_of(augmentation, rows), 32, aspect_B)
    height_B = (shown[:, 0, 20, 0] - shown[:, 0, 10, 0]) / 10 * 32 * 12
    width_B = (shown[:, 1, 0, 20] - shown[:, 1, 0, 10]) / 10 * 32 * width
    ratio_B = width_B / height_B
    assert (ratio_B > 0.74).all() and (ratio_B < 1.35).all()
    largest = min(area * 12 * width, 4 / 3 * min(12, width) ** 2)
    assert (width_B * height_B < 1.05 * area * 12 * width).all()
    assert float((width_B * height_B).max()) > 0.95 * largest  # to the borders, where the ramp's samples end
    moves = shown.mean((2, 3)).std(0).sum() > 0.02
    assert moves == (area < 1 or width != 12)


def test_ranks_see_what_one_rank_sees() -> None:
    augmentation = Augmentation(crop=(0.3, 1.0), flip=0.5, random_frames=True)
    draws = draws_of(augmentation, 16, clip=9)
    whole = augmentation.pictures(ramp(), draws, 8)
    parts = [augmentation.pictures(ramp(8), draws.rows(slice(i, i + 8)), 8) for i in (0, 8)]
    assert torch.equal(torch.cat(parts), whole)
    kept = torch.full((16,), 9)
    halves = [slice(0, 8), slice(8, 16)]
    frames = torch.cat([augmentation.frames("clip", 3, draws.rows(rows), kept[rows]) for rows in halves])
    assert torch.equal(frames, augmentation.frames("clip", 3, draws, kept))


def test_an_option_leaves_the_others_numbers_alone() -> None:
    first, second = Augmentation(flip=0.5), Augmentation(flip=0.5, crop=(0.5, 1.0))
    assert torch.equal(draws_of(first, 8).uniform_BK, draws_of(second, 8).uniform_BK)
    generator = torch.Generator().manual_seed(0)
    assert not torch.equal(first.draw(8, generator).uniform_BK, first.draw(8, generator).uniform_BK)


def test_all_frames_of_a_clip_are_cropped_alike() -> None:
    augmentation = Augmentation(crop=(0.3, 0.6), flip=0.5)
    clips = ramp(4)[:, None].expand(4, 3, 3, 12, 12)
    out = augmentation.pictures(clips, draws_of(augmentation, 4), 8)
    assert out.shape == (4, 3, 3, 8, 8) and torch.equal(out[:, 0], out[:, 2])


def test_random_frames_are_distinct_and_in_order() -> None:
    augmentation = Augmentation(random_frames=True)
    frames = augmentation.frames("clip", 3, draws_of(augmentation, 50, clip=7), torch.full((50,), 7))
    assert frames.shape == (50, 3) and (frames.diff(dim=1) > 0).all() and int(frames.max()) == 6
    assert len({tuple(row) for row in frames.tolist()}) > 10


def test_random_frames_of_short_clips_are_their_own() -> None:
    """A clip of five frames shows three of them; one that has too few shows them as evaluation does."""
    augmentation, kept = Augmentation(random_frames=True), torch.tensor([5, 3, 2, 1, 0] * 40)
    frames = augmentation.frames("clip", 3, draws_of(augmentation, 200, clip=24), kept)
    five = frames[kept == 5]
    assert (five.diff(dim=1) > 0).all() and set(five.flatten().tolist()) == set(range(5))
    for count in (3, 2, 1):
        assert {tuple(row) for row in frames[kept == count].tolist()} == {tuple(uniform_frames(count, 3))}
    assert (frames[kept == 0] == 0).all()


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"crop": (0.0, 1.0)}, "crop"),
        ({"crop": (0.9, 0.5)}, "crop"),
        ({"crop": (0.5, 1.5)}, "crop"),
        ({"scale": (0.0, 1.0)}, "scale"),
        ({"scale": (2.0, 1.0)}, "scale"),
        ({"window": 0}, "window"),
        ({"scale": (1.0, 2.0), "crop": (0.5, 1.0)}, "crop and scale both"),
    ],
)
def test_impossible_options_are_refused(options: dict, key: str) -> None:
    with pytest.raises(ValidationError, match=key):
        AugmentationOptions(**options)
