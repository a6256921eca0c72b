"""How pictures are seen: varied while training, whole or in windows and at several scales at test."""

from __future__ import annotations

from collections.abc import Mapping

from mmsweep.data.augmentation import Augmentation
from mmsweep.data.formats import Format
from mmsweep.errors import UserError
from mmsweep.study import Study
from mmsweep.training.inference import Inference


def make_augmentation(study: Study) -> Augmentation | None:
    """What is varied while training; None where nothing is. Raises UserError where the crop is impossible."""
    options = study.data.augmentation
    if not (options.crop or options.flip or options.random_frames or options.window or options.scale):
        return None
    try:
        return Augmentation(
            options.crop,
            flip=0.5 if options.flip else 0.0,
            random_frames=options.random_frames,
            window=raster_window(study),
            scale=options.scale,
        )
    except UserError as problem:
        key = "scale" if problem.key == "scale" else "crop"
        raise problem.placed(key=f"data.augmentation.{key}") from None


def kept_formats(study: Study, formats: Mapping[str, Format]) -> dict[str, Format]:
    """The formats that data is prepared in: an encoder's, with room for what the study's augmentation draws from."""
    augmentation = make_augmentation(study)
    return dict(formats) if augmentation is None else augmentation.kept_formats(formats)


def raster_window(study: Study) -> tuple[int, int] | None:
    """(H, W) that training sees of rasters; None: all of them."""
    side = study.data.augmentation.window
    return None if side is None else (side, side)


def make_inference(study: Study) -> Inference:
    """How a map is predicted at test. Raises UserError where windows would leave gaps."""
    given = study.inference
    return Inference(given.window, given.stride, given.scales, given.flip)
