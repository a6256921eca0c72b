"""From a study to the things that train: the one place that knows every registry.

Study ─► builder, formats ─► prepared data      (warm: kept by a host from trial to trial)
      ─► backbone, frozen                       (warm)
      ─► adapters, head, method, task ─► Slot   (a trial's own, drawn from train.seed)
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers

from mmsweep.availability import Scenario, availability_table, table_digest
from mmsweep.data.dataset import DatasetBuilder
from mmsweep.data.options import DatasetOptions, ManifestOptions, ModalityColumn, SplitRule, TargetColumn
from mmsweep.data.prepared import PreparedData, prepare
from mmsweep.data.registry import DatasetCard, build_dataset, dataset_card
from mmsweep.errors import UNSET, UserError
from mmsweep.jobs import Job, largest_rank, warm_key
from mmsweep.jobs import pack_key as pack_key  # a host's module offers both keys
from mmsweep.methods.method import METHODS, Method
from mmsweep.models.backbone import Backbone
from mmsweep.models.input_formats import Inputs
from mmsweep.models.lora import Noise
from mmsweep.models.options import BACKBONES
from mmsweep.models.packing import alone
from mmsweep.record.files import cache_folder
from mmsweep.record.trial import Report, TrialFolder, deciding_report
from mmsweep.study import Study
from mmsweep.study.data import ManifestSplit
from mmsweep.study.sections import MOST_SLOTS, ScenarioSpec
from mmsweep.tasks.task import TASKS, Target
from mmsweep.training.capacity import measure
from mmsweep.training.checkpoint import load_checkpoint, load_weights
from mmsweep.training.engine import Answer, Ending, EvaluationPlan, fit, rehearse
from mmsweep.training.evaluation import Predictions, evaluation_record, predict, write_evaluation
from mmsweep.training.examples import write_examples
from mmsweep.training.initialization import digest, start_from, task_state
from mmsweep.training.slot import Slot, generator
from mmsweep.training.stand_ins import write_stand_ins
from mmsweep.training.world import World
from mmsweep.views import kept_formats, make_augmentation, make_inference, raster_window

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


def make_builder(study: Study) -> DatasetBuilder:
    """The dataset of a study. Raises UserError where its data cannot be found."""
    data = study.data
    if data.root and "${" in data.root:
        raise UserError(
            "an environment variable is not set",
            key="data.root",
            found=data.root,
            hint=f"It says where the raw data lies. {dataset_card(data.dataset, dataset_options(study)).get}".rstrip(),
        )
    return build_dataset(data.dataset, dataset_options(study))


def dataset_options(study: Study) -> DatasetOptions:
    """The part of a study that concerns reading its data."""
    data = study.data
    return DatasetOptions(
        Path(data.root) if data.root else None,
        data.task,
        data.text.field,
        data.split_seed,
        _manifest(study),
        data.audio.language,
    )


def card_of(study: Study, rows: bool = False) -> DatasetCard:
    """What is known of a study's dataset; a manifest is read where its classes are not listed, or its rows wanted."""
    card = dataset_card(study.data.dataset, dataset_options(study))
    if card.target is None or (rows and study.data.dataset == "manifest"):
        builder = make_builder(study)
        counts = {name: len(samples) for name, samples in builder.splits().items()}
        card = replace(card, target=builder.target, modalities=builder.modalities, rows=counts)
    return card


def _manifest(study: Study) -> ManifestOptions | None:
    data = study.data
    if data.path is None or data.modalities is None or data.target is None:
        return None
    columns = {name: ModalityColumn(m.kind, m.column, m.length, m.width) for name, m in data.modalities.items()}
    classes = tuple(data.target.classes) if data.target.classes else None
    target = TargetColumn(data.target.task, data.target.column, data.target.separator, classes, data.target.signed)
    split = data.split or ManifestSplit()
    seed = data.split_seed if split.seed is None else split.seed
    shares = (0.8, 0.1, 0.1) if split.train is None else (split.train, split.val or 0.0, split.test or 0.0)
    rule = SplitRule(split.column, *shares, seed, split.stratify)
    group, id = (part.column if part else None for part in (data.group, data.id))
    return ManifestOptions(Path(data.path), columns, target, rule, group, id)


def make_backbone(study: Study, card: DatasetCard | DatasetBuilder, load: bool = True, files: bool = True) -> Backbone:
    """The backbone of a study for a dataset's modalities and target, frozen; `load` and `files` as `Backbone.build`.

    Raises:
        UserError: no such backbone, or one that cannot be built for this data.
    """
    assert card.target is not None
    return _backbone(study, card).build(study.model, _inputs(study, card), card.target.width, load, files)


def _backbone(study: Study, card: DatasetCard | DatasetBuilder) -> type[Backbone]:
    """The class of a study's backbone. Raises UserError where it cannot serve the dataset."""
    kind: type[Backbone] = BACKBONES[study.model.backbone.name]
    assert card.target is not None
    kind.check(study.model, tuple(card.modalities), card.target.task)
    return kind


def _inputs(study: Study, card: DatasetCard | DatasetBuilder) -> Inputs:
    """What a study's network is to read."""
    data = study.data
    return Inputs(
        dict(card.modalities),
        data.image.size,
        data.image.fit,
        data.text.length,
        data.audio.frames,
        data.video.frames,
        card.rasters,
        card.sequences,
        raster_window(study),
    )


def make_method(study: Study, backbone: Backbone) -> Method:
    """Adapters, head and method, drawn from train.seed, on a trial's own copy of the frozen backbone."""
    init, noise = generator(study.train.seed, "init", 0), Noise()
    own = backbone.trial_copy(study.model)
    own.reset(init)
    own.adapt(study.model, noise, init, largest_rank(study))
    own.compile_blocks(study.train.compile)
    method = METHODS[study.method.name](own, study.method, noise, init)
    scenario = parse_scenario(study.scenarios.train, backbone.modalities, "scenarios.train")
    masking = getattr(study.method, "masking", None)
    if masking and not method.masks(scenario.leaves_gaps(backbone.modalities), masking.with_training_gaps):
        method.masking = None  # B3
    return method


def parse_scenario(spec: ScenarioSpec, modalities: Sequence[str], key: str) -> Scenario:
    """The scenario that a study describes under `key`. Raises UserError, naming that key."""
    try:
        return Scenario.parse(spec, modalities)
    except UserError as problem:
        found = spec if problem.found is UNSET else problem.found
        raise problem.placed(key=(problem.key or "scenarios").replace("scenarios", key, 1), found=found) from None


def make_scenarios(study: Study, modalities: Sequence[str]) -> list[Scenario]:
    """The scenarios to evaluate. Raises UserError where two of them would share a name."""
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


def prepare_data(study: Study) -> PreparedData:
    """Decode a study's data into the cache, unless it lies there; needs the encoders' configurations, no weights."""
    builder = make_builder(study)
    formats = kept_formats(study, _backbone(study, builder).formats_of(study.model, _inputs(study, builder)))
    return prepare(builder, formats, cache_folder(), on_bad=study.data.on_bad, fill=study.data.fill)


class Warm:
    """What a host keeps between trials: prepared data and the frozen backbone, for one warm key.

    Args:
        device: `cpu` or `cuda:0`.
        world: the ranks that train each trial together.
    """

    def __init__(self, device: str, world: World) -> None:
        self.device, self.world = torch.device(device), world
        self.key: str | None = None
        self.data: PreparedData | None = None
        self.backbone: Backbone | None = None

    def ready(self, study: Study) -> tuple[PreparedData, Backbone]:
        """Load what the study needs, unless it is there already."""
        key = warm_key(study)
        if key != self.key or self.data is None or self.backbone is None:
            self.key = self.data = self.backbone = None
            builder = make_builder(study)
            backbone = make_backbone(study, builder)
            formats = kept_formats(study, backbone.formats)
            try:
                if self.world.first:  # one rank decodes, the others map what it wrote
                    prepare(builder, formats, cache_folder(), on_bad=study.data.on_bad, fill=study.data.fill)
            finally:
                self.world.barrier()
            data = prepare(builder, formats, cache_folder(), on_bad=study.data.on_bad, fill=study.data.fill)
            self.key, self.data, self.backbone = key, data, backbone.to(self.device)
        return self.data, self.backbone

    def slot(self, study: Study, folder: TrialFolder) -> Slot:
        """A trial in this host: its own adapters, head and task on the shared backbone."""
        data, backbone = self.ready(study)
        train = data.splits["train"]
        task = TASKS[data.target.task].of(data.target, train.targets, task_options(study, data.target))
        scenario = parse_scenario(study.scenarios.train, backbone.modalities, "scenarios.train")
        table = availability_table(scenario, len(train), backbone.modalities, study.scenarios.seed, train.natural_NM)
        objective = study.sweep.objectives[0]

        def better(new: dict[str, float], best: dict[str, float]) -> bool:
            return objective.better(new[objective.metric], best[objective.metric])

        method = make_method(study, backbone).to(self.device)
        if study.train.init_from is not None:
            start_from(method, study.train.init_from)
            task = task.started_from(task_state(study.train.init_from))
        return Slot(folder, method, task, study.train, table, better, make_augmentation(study))

    def run(self, job: Job, report: Callable[[Report], bool]) -> None:
        """Train one job, as `run_pack` does; an error that is the job's own is raised."""
        problems: list[Exception | None] = []
        self.run_pack([job], lambda told: [report(told[0][1])], over=lambda _, problem: problems.append(problem))
        if problems[0] is not None:
            raise problems[0]

    def run_pack(
        self,
        jobs: Sequence[Job],
        report: Callable[[Sequence[tuple[Job, Report]]], Sequence[Answer]],
        refill: Callable[[], Sequence[Job]] = tuple,
        over: Callable[[Job, Exception | None], None] = lambda job, problem: None,
    ) -> None:
        """Train jobs of one `pack_key` from wherever they stand to their ends, or until `report` ends them.

        All calls are made on every rank, and all ranks must get the same answers. A loss that is not finite marks a job
        failed. A job of kind `final` that reaches its end is evaluated on test.

        Args:
            report: called after each epoch with all jobs' reports, when checkpoints and report lines are on disk;
                answers for each whether it stops, or with the error that it failed by.
            refill: asked after every epoch of the pack for jobs that are to join it.
            over: called when a job has left and its folder is marked, with what ended it where that is its own error.
        """
        served: dict[int, tuple[Job, Study]] = {}

        def slots(some: Sequence[Job]) -> list[Slot]:
            found = []
            for job in some:
                self.world.barrier()  # rank 0 holds the folder's lock from here on: all ranks read the same checkpoint
                slot, problem = None, None
                try:
                    study = Study.parse(job.study)
                    slot = self.slot(study, TrialFolder(job.folder))
                except UserError as own:
                    problem = own
                if self._anywhere(problem is not None):
                    over(job, problem or UserError("another rank could not set it up; its log says why"))
                elif slot is not None:
                    served[id(slot)] = job, study
                    found.append(slot)
            return found

        def ended(slot: Slot, ending: Ending) -> None:
            job, study = served.pop(id(slot))
            if ending.how == "finished":
                self._finish(job, study, slot)
            if ending.how == "diverged" and self.world.first:
                slot.folder.mark_done("failed", str(ending.problem))
            self.world.barrier()
            over(job, ending.problem if ending.how == "failed" else None)

        first = slots(jobs)
        if not first:
            return
        study = served[id(first[0])][1]
        data, backbone = self.ready(study)
        plan = EvaluationPlan(make_scenarios(study, backbone.modalities), study.scenarios.seed)
        fit(
            first,
            data,
            plan,
            lambda told: report([(served[id(slot)][0], record) for slot, record in told]),
            self.device,
            self.world,
            refill=lambda: slots(refill()),
            ended=ended,
        )

    def slots_for(
        self,
        job: Job,
        most: int,
        agree: Callable[[Any], Any] = lambda word: word,
        reached: Callable[[int], None] = lambda n: None,
    ) -> tuple[int, str | None]:
        """How many slots there are for packs of a job's kind, and why no more; called on every rank.

        `resources.slots: auto` measures (`training.capacity.measure`, which says what `agree` and `reached` are) with
        throw-away slots of the job's study: nothing of the job itself is touched.

        Args:
            most: jobs that there may be of its kind: more slots are of no use.
        """
        nowhere, study = TrialFolder(f"{job.folder}.rehearsal"), Study.parse(job.study)
        if reason := alone(self.slot(study, nowhere).method):
            return 1, reason
        if study.resources.slots != "auto":
            return study.resources.slots, None
        if most == 1:
            return 1, None

        def steps(slots: int) -> Iterator[None]:
            some = [self.slot(study.with_values({"train.seed": seed}), nowhere) for seed in range(slots)]
            yield from rehearse(some, self.ready(study)[0], self.device, self.world)

        return measure(steps, min(most, MOST_SLOTS), self.device, self.world.size, agree, reached)

    def _anywhere(self, here: bool) -> bool:
        """Whether it is so on some rank."""
        return bool(self.world.all_reduce_sum_(torch.tensor([float(here)], device=self.device)).item())

    def _finish(self, job: Job, study: Study, slot: Slot) -> None:
        """A job has reached its end."""
        folder, data = slot.folder, self.ready(study)[0]
        if job.kind == "final":
            record, predictions = self.evaluate(study, folder, slot, "test")
            if self.world.first:
                write_evaluation(folder.path, record, predictions)
                write_stand_ins(folder.path, slot.method, data.splits["test"], study.train.rows_at_once, self.device)
                if slot.task.dense:
                    write_examples(folder.path, slot.method, data.splits["test"], self.device, make_inference(study))
        if self.world.first:
            folder.mark_done("finished")

    def evaluate(self, study: Study, folder: TrialFolder, slot: Slot, split: str) -> tuple[dict[str, Any], Predictions]:
        """Evaluate the best epoch of a trial on a split: (evaluation record, predictions)."""
        data, backbone = self.ready(study)
        objective = study.sweep.objectives[0]
        best = deciding_report(folder.reports(), objective)
        if best is None:
            raise UserError("this trial has no epoch to evaluate", file=folder.path)
        weights, _, _ = load_checkpoint(folder.checkpoint(best.epoch))
        load_weights(slot.method, weights, folder.checkpoint(best.epoch))
        train, task = study.train, slot.task.restored(weights)

        def of(name: str) -> Predictions:
            part, views = data.splits[name], make_inference(study)
            size, precision = train.rows_at_once, train.precision
            return predict(slot.method, task, part, size, self.device, self.world, precision, views)

        if study.scenarios.thresholds == "tuned" and "scenarios.thresholds" in task.reads:
            val = of("val")
            task = task.tuned(val.statistics_PN[0], val.target_N)
        predictions = of(split)
        scenarios = make_scenarios(study, backbone.modalities)
        targets, seed = data.splits["train"].targets, study.scenarios.seed
        return evaluation_record(predictions, task, scenarios, seed, split, best.epoch, targets), predictions


def task_options(study: Study, target: Target) -> dict[str, Any]:
    """The options of the study that say how its task is trained."""
    return {key: study.value(key) for key in TASKS[target.task].reads if key.startswith("train.")}


def evaluate_run(path: Path, split: str, device: str) -> dict[str, Any]:
    """Evaluate the best epoch of a trial's folder on a split: the evaluation record.

    Raises:
        UserError: no run lies there, or its checkpoint is not whole or of another architecture.
    """
    folder = TrialFolder(path)
    if not (path / "study.yaml").exists() or not folder.exists():
        raise UserError(
            "no run lies here", file=path, expected="a folder with study.yaml, trial.json and reports.jsonl"
        )
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError("there is no such device on this machine", key="--device", found=device, expected="cpu")
    study = Study.load(path / "study.yaml")
    warm = Warm(device, World())
    return warm.evaluate(study, folder, warm.slot(study, folder), split)[0]


def facts(study: Study, data: PreparedData) -> dict[str, str]:
    """What makes a result reproducible, as tags of its run (DESIGN §7.1), beside what tracking knows of its place."""
    tags = {
        "dataset": study.data.dataset,
        "dataset_fingerprint": data.fingerprint,
        "split_digest": data.split_digest,
        "study_digest": study.digest(),
    }
    if study.train.init_from is not None:
        tags["init_from_digest"] = digest(study.train.init_from)
    modalities = tuple(data.modalities)
    for split in ("val", "test"):
        part = data.splits[split]
        tables = [
            availability_table(s, len(part), modalities, study.scenarios.seed, part.natural_NM)
            for s in make_scenarios(study, modalities)
        ]
        tags[f"tables_{split}"] = hashlib.sha256("".join(table_digest(t) for t in tables).encode()).hexdigest()[:16]
    return tags
