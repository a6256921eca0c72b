"""The sections of a study file that belong to no component: training, scenarios, resources, tracking."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from mmsweep.components import FUSIBLE, Section, misfit
from mmsweep.models.options import CompileMode

Decay = Annotated[float, Field(ge=0, lt=1)]
ScenarioSpec = str | dict[str, Any]


class Optimizer(Section):
    name: Literal["adamw"] = Field("adamw", description="The optimizer.")
    lr: Annotated[float, FUSIBLE] = Field(1e-3, gt=0, description="Learning rate after the warm-up.")
    weight_decay: Annotated[float, FUSIBLE] = Field(
        0.02, ge=0, description="Decoupled weight decay; biases, norms, proxy tokens and aggregated tokens have none."
    )
    eps: float = Field(1e-8, gt=0, description="Added to the denominator of AdamW's step (B26).")
    betas: tuple[Decay, Decay] = Field(
        (0.9, 0.999), description="Decay rates of the running means of the gradients and of their squares."
    )


class Schedule(Section):
    name: Literal["polynomial", "cosine", "constant"] = Field(
        "polynomial",
        description="How the learning rate goes on after the warm-up: polynomial and cosine fall to 0, constant stays.",
    )
    power: float = Field(0.9, gt=0, description="Exponent of the polynomial.")
    warmup_epochs: float = Field(0, ge=0, description="Length of the warm-up in epochs; 0 means none.")
    warmup_steps: int | None = Field(
        None, ge=0, description="Length of the warm-up in steps, instead of warmup_epochs."
    )
    warmup: Literal["linear", "constant"] = Field(
        "linear",
        description="Whether the warm-up climbs from warmup_ratio to the full rate (linear) or holds "
        "warmup_ratio (constant; B20).",
    )
    warmup_ratio: float = Field(
        0.1, gt=0, le=1, description="Share of the learning rate at which the warm-up starts, or which it holds."
    )


class Train(Section):
    epochs: int = Field(
        10, ge=1, le=100_000, description="Passes over the training rows; each ends with a score on validation."
    )
    batch_size: int = Field(
        8, ge=1, le=1_000_000, description="Rows of a training step over all workers together (B22)."
    )
    eval_batch_size: int | None = Field(
        None, ge=1, le=1_000_000, description="Rows of a batch in evaluation; null means four times batch_size."
    )
    optimizer: Optimizer = Field(Optimizer(), description="The optimizer, its learning rate and weight decay.")
    schedule: Annotated[Schedule, FUSIBLE] = Field(Schedule(), description="The learning rate over the run.")
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="Precision of the arithmetic; bf16 applies where the device has it."
    )
    compile: CompileMode = Field(
        "off",
        description="Mode of torch.compile for the encoders' blocks while training: steps are faster, and a "
        "host's start takes a"
        "minute or so longer. reduce-overhead adds CUDA graphs; on a CPU it means default.",
    )
    clip_norm: Annotated[float | None, FUSIBLE] = Field(
        None, gt=0, description="Largest norm of a step's gradient; null means no limit."
    )
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="balanced weights the loss so that every class counts alike; none weights all rows alike."
    )
    hard_pixels: bool = Field(
        False, description="For segmentation: the loss counts hard pixels only (OHEM cross entropy)."
    )
    regression_loss: Literal["l1", "mse", "smooth_l1"] = Field(
        "l1", description="The loss that a regression minimizes."
    )
    standardize_target: bool = Field(
        True,
        description="Regression learns the target scaled to mean 0 and SD 1 on the training rows; metrics keep the "
        "target's own unit. Set false to learn the target as it is, as papers on CMU-MOSI do.",
    )
    seed: Annotated[int, FUSIBLE] = Field(
        0, ge=0, description="Seed of initial values, the order of rows, masking and dropout."
    )
    init_from: str | None = Field(
        None,
        description="Trained weights to start from: a run's folder (its best epoch) or a .safetensors file. A "
        "regression keeps the target scale that they were trained with.",
    )

    @property
    def rows_at_once(self) -> int:
        """Rows of a batch in evaluation, where no gradients take room."""
        return self.eval_batch_size or 4 * self.batch_size

    @field_validator("compile", mode="before")
    @classmethod
    def _off_is_a_word(cls, value: Any) -> Any:
        return "off" if value is False else value  # YAML reads a bare off as false

    @model_validator(mode="after")
    def _warmup_ends(self) -> Train:
        if self.schedule.warmup_epochs >= self.epochs and self.schedule.warmup_epochs > 0:
            raise misfit(
                f"the warm-up leaves none of {self.epochs} epochs after it",
                f"less than {self.epochs}; train.schedule.warmup_epochs=0 for none",
                "schedule.warmup_epochs",
                self.schedule.warmup_epochs,
            )
        return self


class Inference(Section):
    """How segmentation predicts at test; validation sees whole pictures once. The default is one pass over them."""

    window: int | None = Field(
        None,
        ge=8,
        description="Side in pixels of the windows that slide over the picture; null means the whole picture at once.",
    )
    stride: int | None = Field(None, ge=1, description="Step between windows; null means two thirds of the window.")
    scales: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (1.0,),
        min_length=1,
        description="Sizes at which the picture is seen, relative to its own; the probabilities are averaged.",
    )
    flip: bool = Field(False, description="Whether each scale is also seen mirrored.")

    @model_validator(mode="after")
    def _windows_leave_no_gaps(self) -> Inference:
        if self.stride is not None and (self.window is None or self.stride > self.window):
            raise misfit("windows would leave gaps", f"1 to inference.window ({self.window})", "stride", self.stride)
        return self

    @property
    def views(self) -> int:
        """How often the picture is seen, windows not counted."""
        return len(self.scales) * (2 if self.flip else 1)


class Scenarios(Section):
    seed: int = Field(
        0, ge=0, description="Seed of the availability tables, which say which rows lose which modalities."
    )
    train: ScenarioSpec = Field(
        "complete", description="Scenario of the training rows: what they lose for the whole run, as in Lee et al."
    )
    evaluate: list[ScenarioSpec] = Field(
        ["complete"],
        min_length=1,
        description="Scenarios that are scored on validation, and by the final runs on test.",
    )
    thresholds: Literal["half", "tuned"] = Field(
        "half",
        description="For multi_label: from which probability a label counts as predicted. half is 0.5; tuned "
        "chooses each "
        "label's threshold on validation (B17).",
    )


class Bootstrap(Section):
    """How the report finds intervals and p-values."""

    over: list[Literal["rows", "groups", "seeds"]] = Field(
        ["rows"],
        min_length=1,
        description="What each resample draws anew. rows: the test rows. groups: whole groups of test rows, where the "
        "data has groups (`data.group`) whose rows resemble each other; with rows too, rows are then drawn within each "
        "group. seeds: the final runs of each method, so that intervals cover how training varies as well.",
    )


MOST_HOSTS = 10_000
MOST_SLOTS = 64
"""Of a host: Tune follows each of its trials by a process of its own."""


class Resources(Section):
    hosts: int | Literal["auto"] = Field(
        "auto",
        description="Worker groups that train at once, each with its own copy of the backbone; auto starts as "
        "many as fit.",
    )
    workers: int = Field(1, ge=1, le=10_000, description="Processes that train a trial together, data-parallel.")
    cpus: float = Field(1, gt=0, le=10_000, description="CPU cores of each worker.")
    gpus: float = Field(0, ge=0, le=1000, description="GPUs of each worker; a fraction shares one.")
    slots: int | Literal["auto"] = Field(
        "auto",
        description=f"Trials that a host trains in one pass, at most {MOST_SLOTS}. auto doubles the number as "
        "long as a short "
        "measurement finds that at least a tenth faster and memory allows it. It is 1 where the backbone is trained.",
    )

    @field_validator("slots", "hosts", mode="before")
    @classmethod
    def _some(cls, number: Any, info: ValidationInfo) -> Any:
        most = MOST_SLOTS if info.field_name == "slots" else MOST_HOSTS
        whole = isinstance(number, int) and not isinstance(number, bool)
        if number != "auto" and not (whole and 1 <= number <= most):
            raise misfit(f"no such number of {info.field_name}", f"auto, or 1 to {most:,}")
        return number


class Tracking(Section):
    uri: str | None = Field(
        None,
        description="Address of MLflow's store; null means $MLFLOW_TRACKING_URI, else ./mlflow.db. Write a password "
        "as `${VARIABLE}`: the sweep's files then hold the variable's name. A password written out is masked in them.",
    )
    experiment: str | None = Field(None, description="Name of MLflow's experiment; null means the study's name.")
