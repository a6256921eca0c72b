"""Builds the objects of a study: dataset, backbone, method, scenarios, augmentation, input formats.

Study ─► builder, formats ─► prepared data
      ─► backbone, frozen ─► adapters, head, method, drawn from train.seed
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import transformers

from mmsweep.availability import Scenario
from mmsweep.data.augmentation import Augmentation
from mmsweep.data.dataset import DatasetBuilder, DatasetCard
from mmsweep.data.kinds.kind import Format
from mmsweep.data.kinds.raster import RasterFormat
from mmsweep.data.kinds.sequence import SequenceFormat
from mmsweep.data.kinds.table import TableFormat
from mmsweep.data.options import DATASETS, KINDS, AugmentationOptions
from mmsweep.data.preparation import Progress
from mmsweep.data.prepared import PreparedData, prepare
from mmsweep.data.shards import Runner, in_threads
from mmsweep.errors import UNSET, UserError
from mmsweep.methods.method import METHODS, Method
from mmsweep.models.backbone import Backbone
from mmsweep.models.input_formats import Inputs
from mmsweep.models.lora import Noise
from mmsweep.models.options import BACKBONES
from mmsweep.record.files import cache_folder
from mmsweep.study import Study
from mmsweep.study.packs import largest_rank
from mmsweep.study.sections import ScenarioSpec
from mmsweep.tasks.task import TASKS, Target
from mmsweep.training.slot import generator

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


def make_builder(study: Study) -> DatasetBuilder:
    """The dataset of a study. Raises UserError if its data cannot be found."""
    builder: DatasetBuilder = DATASETS[study.data.dataset](study.data)
    return builder


def card_of(study: Study, rows: bool = False) -> DatasetCard:
    """The card of a study's dataset.

    Reads a manifest if its classes are not listed, if formats are learned from its training rows, or if `rows` is true.
    """
    card: DatasetCard = DATASETS[study.data.dataset].card(study.data)
    learns = any(KINDS[kind].learned and modality not in card.formats for modality, kind in card.modalities.items())
    if card.target is None or learns or (rows and study.data.dataset == "manifest"):
        builder = make_builder(study)
        counts = {name: len(samples) for name, samples in builder.splits().items()}
        card = replace(card, target=builder.target, modalities=builder.modalities, rows=counts, formats=builder.formats)
    return card


def make_backbone(study: Study, card: DatasetCard | DatasetBuilder, load: bool = True, files: bool = True) -> Backbone:
    """The frozen backbone of a study for a dataset's modalities and target; `load` and `files` as in `Backbone.build`.

    Raises:
        UserError: there is no such backbone, or it cannot be built for this data.
    """
    assert card.target is not None
    return _backbone(study, card).build(study.model, _inputs(study, card), card.target.width, load, files)


def _backbone(study: Study, card: DatasetCard | DatasetBuilder) -> type[Backbone]:
    """The class of a study's backbone. Raises UserError if it does not support the dataset."""
    kind: type[Backbone] = BACKBONES[study.model.backbone.name]
    assert card.target is not None
    kind.check(study.model, tuple(card.modalities), card.target.task)
    return kind


def _inputs(study: Study, card: DatasetCard | DatasetBuilder) -> Inputs:
    """What a study's network is to read."""
    data, image = study.data, study.data.reading("image")
    return Inputs(
        dict(card.modalities),
        image.size,
        image.fit,
        data.reading("text").length,
        data.reading("audio").frames,
        data.reading("video").frames,
        {m: f for m, f in card.formats.items() if isinstance(f, RasterFormat)},
        {m: f for m, f in card.formats.items() if isinstance(f, SequenceFormat)},
        {m: f for m, f in card.formats.items() if isinstance(f, TableFormat)},
        raster_window(study),
    )


def make_method(study: Study, backbone: Backbone) -> Method:
    """Adapters, head and method, initialised from train.seed, on a trial's copy of the frozen backbone."""
    init, noise = generator(study.train.seed, "init", 0), Noise()
    copy = backbone.trial_copy(study.model)
    copy.reset(init)
    copy.adapt(study.model, noise, init, largest_rank(study))
    copy.compile_blocks(study.train.compile)
    method = METHODS[study.method.name](copy, study.method, noise, init)
    scenario = parse_scenario(study.scenarios.train, backbone.modalities, "scenarios.train")
    masking = getattr(study.method, "masking", None)
    if masking and not method.masks(scenario.leaves_gaps(backbone.modalities), masking.with_training_gaps):
        method.masking = None  # B3
    return method


def task_options(study: Study, target: Target) -> dict[str, Any]:
    """The options of a study that its task reads for training."""
    return {key: study.value(key) for key in TASKS[target.task].reads if key.startswith("train.")}


def parse_scenario(spec: ScenarioSpec, modalities: Sequence[str], key: str) -> Scenario:
    """The scenario that a study describes under `key`. Raises UserError that names the key."""
    try:
        return Scenario.parse(spec, modalities)
    except UserError as problem:
        found = spec if problem.found is UNSET else problem.found
        raise problem.placed(key=(problem.key or "scenarios").replace("scenarios", key, 1), found=found) from None


def make_scenarios(study: Study, modalities: Sequence[str]) -> list[Scenario]:
    """The scenarios to evaluate. Raises UserError if two of them share a name."""
    specs = study.scenarios.evaluate
    scenarios = [parse_scenario(spec, modalities, f"scenarios.evaluate.{i}") for i, spec in enumerate(specs)]
    names = [s.name for s in scenarios]
    if len(set(names)) != len(names):
        twice = next(n for n in names if names.count(n) > 1)
        raise UserError(
            "two scenarios of one name", key="scenarios.evaluate", found=twice, hint="Give one a name: {name: …, …}."
        )
    if reserved := {"mean_missing", "worst_missing", "constant"} & set(names):
        raise UserError(
            "this name is taken", key="scenarios.evaluate", found=sorted(reserved)[0], expected="another name"
        )
    return scenarios


def make_augmentation(study: Study) -> Augmentation | None:
    """The augmentation of a study; None if it has none."""
    options = study.data.augmentation
    if options == AugmentationOptions():
        return None
    flip = 0.5 if options.flip else 0.0
    return Augmentation(options.crop, flip, options.random_frames, raster_window(study), options.scale)


def kept_formats(study: Study, formats: Mapping[str, Format]) -> dict[str, Format]:
    """The formats in which data is prepared: the encoders' formats, enlarged where augmentation draws from more."""
    augmentation = make_augmentation(study)
    return dict(formats) if augmentation is None else augmentation.kept_formats(formats)


def raster_window(study: Study) -> tuple[int, int] | None:
    """(H, W) of the raster window in training; None for whole rasters."""
    side = study.data.augmentation.window
    return None if side is None else (side, side)


def prepare_data(study: Study, progress: Progress | None = None, run: Runner = in_threads) -> PreparedData:
    """Decode a study's data into the cache, unless it is there; needs the encoders' configurations but no weights.

    Args:
        progress: called with (rows done, rows in all).
        run: decodes the shards (`sweep.decoding.with_ray`).
    """
    builder, cache = make_builder(study), cache_folder()
    max_bad, fill = study.data.max_bad, study.data.fill
    formats = formats_of(study, builder)
    return prepare(builder, formats, cache, max_bad=max_bad, fill=fill, progress=progress, run=run)


def formats_of(study: Study, builder: DatasetBuilder) -> dict[str, Format]:
    """The formats in which a study's data is prepared."""
    return kept_formats(study, _backbone(study, builder).formats_of(study.model, _inputs(study, builder)))
