"""Trains and evaluates trials on a host, which keeps data and the frozen backbone between trials.

Study ─► prepared data, frozen backbone         (kept from trial to trial)
      ─► adapters, head, method, task ─► Slot   (a trial's own)
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from mmsweep.assembly.build import (
    kept_formats,
    make_augmentation,
    make_backbone,
    make_builder,
    make_method,
    make_scenarios,
    parse_scenario,
    task_options,
)
from mmsweep.availability import availability_table, table_digest
from mmsweep.data.prepared import PreparedData, prepare
from mmsweep.errors import UserError
from mmsweep.models.backbone import Backbone
from mmsweep.models.packing import single_slot_reason
from mmsweep.record.files import cache_folder
from mmsweep.record.trial import Report, TrialFolder, deciding_report
from mmsweep.study import Study
from mmsweep.study.packs import Job, warm_key
from mmsweep.study.packs import pack_key as pack_key  # a host's module offers both keys
from mmsweep.study.sections import MOST_SLOTS
from mmsweep.tasks.task import TASKS
from mmsweep.training.capacity import measure
from mmsweep.training.checkpoint import load_checkpoint, load_weights
from mmsweep.training.engine import Answer, Ending, EvaluationPlan, fit, probe_steps
from mmsweep.training.evaluation import Predictions, evaluation_record, predict, write_evaluation
from mmsweep.training.examples import write_examples
from mmsweep.training.initialization import digest, start_from, task_state
from mmsweep.training.slot import Slot
from mmsweep.training.stand_ins import write_stand_ins
from mmsweep.training.world import World


class Warm:
    """The prepared data and frozen backbone that a host keeps between trials, for one warm key.

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
        """Load the study's data and backbone, unless they are loaded already."""
        key = warm_key(study)
        if key != self.key or self.data is None or self.backbone is None:
            self.key = self.data = self.backbone = None
            builder = make_builder(study)
            backbone = make_backbone(study, builder)
            formats = kept_formats(study, backbone.formats)
            try:
                if self.world.first:  # one rank decodes, the others map its files
                    prepare(builder, formats, cache_folder(), max_bad=study.data.max_bad, fill=study.data.fill)
            finally:
                self.world.barrier()
            data = prepare(builder, formats, cache_folder(), max_bad=study.data.max_bad, fill=study.data.fill)
            self.key, self.data, self.backbone = key, data, backbone.to(self.device)
        return self.data, self.backbone

    def slot(self, study: Study, folder: TrialFolder) -> Slot:
        """A slot for a trial: its adapters, head and task on the shared backbone."""
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
        """Train one job like `run_pack`, but raise an error of the job."""
        problems: list[Exception | None] = []
        self.run_pack([job], lambda pairs: [report(pairs[0][1])], over=lambda _, problem: problems.append(problem))
        if problems[0] is not None:
            raise problems[0]

    def run_pack(
        self,
        jobs: Sequence[Job],
        report: Callable[[Sequence[tuple[Job, Report]]], Sequence[Answer]],
        refill: Callable[[], Sequence[Job]] = tuple,
        over: Callable[[Job, Exception | None], None] = lambda job, problem: None,
    ) -> None:
        """Train jobs with one `pack_key` from their last checkpoints to their ends, or until `report` ends them.

        Callbacks run on every rank, and all ranks must get the same answers. A job whose loss is not finite is marked
        as failed. A job of kind `final` that reaches its end is evaluated on test.

        Args:
            report: called after each epoch with all jobs' reports, once checkpoints and report lines are on disk;
                returns for each whether it stops, or the error that it failed with.
            refill: called after every epoch of the pack; returns jobs that join it.
            over: called when a job has left and its folder is marked, with the error if the job itself caused one.
        """
        served: dict[int, Job] = {}

        def make_slots(jobs: Sequence[Job]) -> list[Slot]:
            slots = []
            for job in jobs:
                self.world.barrier()  # rank 0 holds the folder's lock from here on: all ranks read the same checkpoint
                slot, problem = None, None
                try:
                    slot = self.slot(job.study, TrialFolder(job.folder))
                except UserError as error:
                    problem = error
                if self._on_any_rank(problem is not None):
                    over(job, problem or UserError("another rank could not set it up; its log says why"))
                elif slot is not None:
                    served[id(slot)] = job
                    slots.append(slot)
            return slots

        def ended(slot: Slot, ending: Ending) -> None:
            job = served.pop(id(slot))
            if ending.how == "finished":
                self._finish(job, slot)
            if ending.how == "diverged" and self.world.first:
                slot.folder.mark_done("failed", str(ending.problem))
            self.world.barrier()
            over(job, ending.problem if ending.how == "failed" else None)

        first = make_slots(jobs)
        if not first:
            return
        study = served[id(first[0])].study
        data, backbone = self.ready(study)
        plan = EvaluationPlan(make_scenarios(study, backbone.modalities), study.scenarios.seed)
        fit(
            first,
            data,
            plan,
            lambda pairs: report([(served[id(slot)], record) for slot, record in pairs]),
            self.device,
            self.world,
            refill=lambda: make_slots(refill()),
            ended=ended,
        )

    def slots_for(
        self,
        job: Job,
        most: int,
        agree: Callable[[Any], Any] = lambda value: value,
        reached: Callable[[int], None] = lambda n: None,
    ) -> tuple[int, str | None]:
        """Number of slots for packs of a job's kind, and why there are no more; called on every rank.

        `resources.slots: auto` runs `training.capacity.measure` (which documents `agree` and `reached`) with throw-away
        slots of the job's study; the job itself is not touched.

        Args:
            most: upper limit: the number of jobs of this kind that there may be.
        """
        nowhere, study = TrialFolder(f"{job.folder}.probe"), job.study
        if reason := single_slot_reason(self.slot(study, nowhere).method):
            return 1, reason
        if study.resources.slots != "auto":
            return study.resources.slots, None
        if most == 1:
            return 1, None

        def steps(slots: int) -> Iterator[None]:
            some = [self.slot(study.with_values({"train.seed": seed}), nowhere) for seed in range(slots)]
            yield from probe_steps(some, self.ready(study)[0], self.device, self.world)

        return measure(steps, min(most, MOST_SLOTS), self.device, self.world.size, agree, reached)

    def _on_any_rank(self, value: bool) -> bool:
        return bool(self.world.all_reduce_sum_(torch.tensor([float(value)], device=self.device)).item())

    def _finish(self, job: Job, slot: Slot) -> None:
        """Evaluate a final run, and mark a job that reached its end as finished."""
        study, folder = job.study, slot.folder
        data = self.ready(study)[0]
        if job.kind == "final":
            record, predictions = self.evaluate(study, folder, slot, "test")
            if self.world.first:
                write_evaluation(folder.path, record, predictions)
                write_stand_ins(folder.path, slot.method, data.splits["test"], study.train.rows_at_once, self.device)
                if slot.task.dense:
                    write_examples(folder.path, slot.method, data.splits["test"], self.device, study.inference)
        if self.world.first:
            folder.mark_done("finished")

    def evaluate(self, study: Study, folder: TrialFolder, slot: Slot, split: str) -> tuple[dict[str, Any], Predictions]:
        """Evaluate a trial's best epoch on a split; returns (evaluation record, predictions)."""
        data, backbone = self.ready(study)
        objective = study.sweep.objectives[0]
        best = deciding_report(folder.reports(), objective)
        if best is None:
            raise UserError("this trial has no epoch to evaluate", file=folder.path)
        weights, _, _ = load_checkpoint(folder.checkpoint(best.epoch))
        load_weights(slot.method, weights, folder.checkpoint(best.epoch))
        train, task = study.train, slot.task.restored(weights)

        def of(name: str) -> Predictions:
            size, precision = train.rows_at_once, train.precision
            part = data.splits[name]
            return predict(slot.method, task, part, size, self.device, self.world, precision, study.inference)

        if study.scenarios.thresholds == "tuned" and "scenarios.thresholds" in task.reads:
            val = of("val")
            task = task.tuned(val.statistics_PN[0], val.target_N)
        predictions = of(split)
        scenarios = make_scenarios(study, backbone.modalities)
        targets, seed = data.splits["train"].targets, study.scenarios.seed
        return evaluation_record(predictions, task, scenarios, seed, split, best.epoch, targets), predictions


def evaluate_run(path: Path, split: str, device: str) -> dict[str, Any]:
    """Evaluate the best epoch of a trial's folder on a split; returns the evaluation record.

    Raises:
        UserError: the folder holds no run, or its checkpoint is damaged or of another architecture.
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
    """Tags that make a result reproducible (DESIGN §7.1): digests of data, splits, study and availability tables."""
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
