"""The study file, typed: the only place that knows its format (DESIGN §5). Reading YAML itself is `study_source.py`.

Every field's meaning stands beside it. Nothing below this file sees a raw mapping: the floors get these objects.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mmsweep.errors import UserError
from mmsweep.study_source import UNKNOWN_KEY, Source, first_problem, misfit

Share = Field(ge=0.0, le=1.0)
Decay = Annotated[float, Field(ge=0, lt=1)]
ScenarioSpec = str | dict[str, Any]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class ImageOptions(_Section):
    size: int | None = Field(None, ge=8, description="pixels a side; null: what the encoder was made for")


class TextOptions(_Section):
    length: int | None = Field(None, ge=4, description="tokens, [CLS] and [SEP] included; null: the encoder's default")
    field: str | None = Field(None, description="which text of a dataset that has several")


class AudioOptions(_Section):
    frames: int | None = Field(None, ge=8, description="spectrogram frames; null: what the encoder was made for")


class VideoOptions(_Section):
    frames: int = Field(3, ge=1, description="frames a clip")


class Augmentation(_Section):
    crop: tuple[float, float] | None = Field(None, description="smallest and largest area of a random resized crop")
    flip: bool = Field(False, description="mirror images at random")
    random_frames: bool = Field(False, description="random instead of uniform video frames")


class ManifestColumn(_Section):
    kind: Literal["image", "text", "audio", "video"]
    column: str


class ManifestTarget(_Section):
    task: Literal["single_label", "multi_label", "regression"]
    column: str
    separator: str = "|"
    classes: list[str] | None = None


class ManifestSplit(_Section):
    column: str | None = None
    train: float | None = None
    val: float | None = None
    test: float | None = None
    seed: int | None = None


class ManifestGroup(_Section):
    column: str


class Data(_Section):
    dataset: str
    root: str | None = Field(None, description="where the raw data lies")
    task: str | None = Field(None, description="for datasets with several tasks")
    image: ImageOptions = ImageOptions()
    text: TextOptions = TextOptions()
    audio: AudioOptions = AudioOptions()
    video: VideoOptions = VideoOptions()
    fill: Literal["zeros", "ones", "black", "mean", "nan"] = Field(
        "zeros", description="what stands for an absent input (B19)"
    )
    on_bad: Literal["refuse", "skip"] = "refuse"
    split_seed: int = Field(0, ge=0)
    augmentation: Augmentation = Augmentation()
    # the user's own data (dataset: manifest)
    path: str | None = None
    modalities: dict[str, ManifestColumn] | None = None
    target: ManifestTarget | None = None
    split: ManifestSplit | None = None
    group: ManifestGroup | None = None

    @model_validator(mode="after")
    def _manifest_is_whole(self) -> Data:
        own = {k: getattr(self, k) for k in ("path", "modalities", "target")}
        if self.dataset == "manifest" and (gaps := [k for k, v in own.items() if v is None]):
            raise misfit(f"dataset manifest needs {', '.join(gaps)}", "path, modalities and target")
        if self.dataset != "manifest" and (extra := [k for k, v in own.items() if v is not None]):
            raise misfit(f"{', '.join(extra)}: only for dataset manifest", "dataset: manifest, or no such key")
        return self


class EncoderSpec(_Section):
    source: Literal["transformers", "timm", "mmsweep"] = "transformers"
    name: str = Field(description="a hub name, a folder, `package:NAME/path`, a timm name, or (mmsweep) one that ships")
    layers: int | None = Field(None, ge=1, description="keep only the first layers")
    pool: Literal["auto", "cls", "mean", "pooler"] = Field(
        "auto", description="which token stands for the input (B10-B12)"
    )
    trainable: bool = Field(False, description="train all its weights instead of freezing them")
    train_layernorm: bool = Field(False, description="train its LayerNorms beside the adapters (B15)")


class Lora(_Section):
    rank: int = Field(1, ge=1)
    alpha: float = Field(1.0, gt=0)
    dropout: float = Field(0.1, ge=0, lt=1)


class Model(_Section):
    encoders: dict[str, EncoderSpec] = Field(min_length=1)
    lora: Lora | None = Field(Lora(), description="adapters on q, k, v, o of attention; null: none")


class MaskingSpec(_Section):
    probability: float = Field(0.667, ge=0, le=1, description="how often a sample (or batch) loses something (B2)")
    granularity: Literal["sample", "batch"] = "sample"
    distribution: Literal["uniform", "one"] = "uniform"
    with_training_gaps: bool = Field(False, description="B3: mask also where scenarios.train leaves gaps of its own")


class Proxy(_Section):
    """CMPT's proxy tokens; every field is an open question of the paper (research/methods.md §B)."""

    init: Literal["normal", "cls"] = Field("normal", description="B6: normal(0, 0.02), or the class embedding")
    trainable: bool = Field(True, description="B6")
    place: Literal["last", "first"] = Field("last", description="B7: last keeps CLS at index 0")


class MethodSpec(_Section):
    name: str
    align_weight: float = Field(0.2, ge=0, description="λ of equation 7")
    masking: MaskingSpec = MaskingSpec()
    detach_target: bool = Field(False, description="B4: stop gradients into the alignment target")
    proxy: Proxy = Proxy()
    aggregated_tokens: int = Field(8, ge=1)


class Optimizer(_Section):
    name: Literal["adamw"] = "adamw"
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.02, ge=0)
    eps: float = Field(1e-8, gt=0)
    betas: tuple[Decay, Decay] = (0.9, 0.999)


class Schedule(_Section):
    name: Literal["polynomial", "cosine", "constant"] = "polynomial"
    power: float = Field(0.9, gt=0)
    warmup_epochs: float = Field(0, ge=0)
    warmup_steps: int | None = Field(None, ge=0, description="instead of warmup_epochs")
    warmup: Literal["linear", "constant"] = Field(
        "linear", description="B20: ramp from the ratio to 1, or hold the ratio"
    )
    warmup_ratio: float = Field(0.1, gt=0, le=1)


class Train(_Section):
    epochs: int = Field(10, ge=1)
    batch_size: int = Field(8, ge=1, description="global, over all ranks (B22)")
    eval_batch_size: int | None = Field(None, ge=1, description="null: four times batch_size")
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    precision: Literal["fp32", "bf16"] = Field("fp32", description="bf16 is used where the device has it")
    clip_norm: float | None = Field(None, gt=0)
    class_weights: Literal["none", "balanced"] = "none"
    seed: int = Field(0, ge=0)

    @property
    def rows_at_once(self) -> int:
        """Rows of a batch in evaluation, where no gradients take room."""
        return self.eval_batch_size or 4 * self.batch_size

    @model_validator(mode="after")
    def _warmup_ends(self) -> Train:
        if self.schedule.warmup_epochs >= self.epochs and self.schedule.warmup_epochs > 0:
            raise misfit(
                f"schedule.warmup_epochs {self.schedule.warmup_epochs:g} leaves no epoch of {self.epochs} after it",
                "fewer warm-up epochs than epochs",
            )
        return self


class Scenarios(_Section):
    seed: int = Field(0, ge=0)
    train: ScenarioSpec = Field("complete", description="natural missingness while training, as in Lee et al.")
    evaluate: list[ScenarioSpec] = Field(["complete"], min_length=1)
    thresholds: Literal["half", "tuned"] = Field(
        "half", description="multi-label: .5, or per label on validation (B17)"
    )


class Dimension(_Section):
    """One line of the search space: one of uniform, log_uniform, int, log_int, choice; `when` makes it conditional."""

    uniform: tuple[float, float] | None = None
    log_uniform: tuple[float, float] | None = None
    int_: tuple[int, int] | None = Field(None, alias="int")
    log_int: tuple[int, int] | None = None
    choice: list[Any] | None = Field(None, min_length=1)
    step: float | None = Field(None, gt=0)
    when: dict[str, Any] = Field(
        default_factory=dict, description="key: value or list of values under which it is searched"
    )

    @model_validator(mode="after")
    def _one_kind(self) -> Dimension:
        kinds = [k for k in ("uniform", "log_uniform", "int_", "log_int", "choice") if getattr(self, k) is not None]
        if len(kinds) != 1:
            raise misfit("not a dimension", "exactly one of uniform, log_uniform, int, log_int, choice")
        if self.choice is None and not self.low < self.high:
            raise misfit("an empty range", "a lower bound below the upper bound")
        if kinds[0].startswith("log") and self.low <= 0:
            raise misfit("a logarithmic range that reaches 0", "a lower bound above 0")
        return self

    @property
    def kind(self) -> Literal["uniform", "log_uniform", "int", "log_int", "choice"]:
        for name in ("uniform", "log_uniform", "log_int", "choice"):
            if getattr(self, name) is not None:
                return name  # type: ignore[return-value]
        return "int"

    @property
    def low(self) -> float:
        return (self.uniform or self.log_uniform or self.int_ or self.log_int or (0.0, 0.0))[0]

    @property
    def high(self) -> float:
        return (self.uniform or self.log_uniform or self.int_ or self.log_int or (0.0, 0.0))[1]

    @property
    def choices(self) -> list[Any]:
        return list(self.choice or [])

    def edges(self) -> list[Any]:
        """Values that must be valid for the whole range to be: the bounds, or every choice."""
        return self.choices if self.choice is not None else [self.low, self.high]


class Objective(_Section):
    metric: str = "val/mean_missing/f1_macro"
    mode: Literal["max", "min"] = "max"
    scope: Literal["best", "last"] = "best"

    @field_validator("metric")
    @classmethod
    def _validation_only(cls, metric: str) -> str:
        if not metric.startswith("val/"):
            raise misfit("selection is on validation only", "a metric that starts with val/")
        return metric


class Sampler(_Section):
    name: Literal["tpe", "random", "grid", "gp", "nsgaii"] = "tpe"
    seed: int = Field(0, ge=0)


class Scheduler(_Section):
    name: Literal["asha", "median", "none"] = "asha"
    grace_epochs: int = Field(1, ge=1)
    reduction_factor: int = Field(3, ge=2)


class Budget(_Section):
    hours: float | None = Field(None, gt=0)


class Final(_Section):
    seeds: int = Field(3, ge=1)
    per: str | None = Field(
        None, description="a searched key: the best configuration of each of its values is re-trained"
    )


class Sweep(_Section):
    trials: int = Field(20, ge=1)
    objective: Objective | list[Objective] = Objective()
    sampler: Sampler = Sampler()
    seeds: int = Field(1, ge=1)
    scheduler: Scheduler = Scheduler(name="none")
    start_from: list[Literal["current"] | dict[str, Any]] = ["current"]
    budget: Budget = Budget()
    final: Final | None = Final()

    @property
    def objectives(self) -> list[Objective]:
        return self.objective if isinstance(self.objective, list) else [self.objective]


class Resources(_Section):
    hosts: int | Literal["auto"] = "auto"
    workers: int = Field(1, ge=1)
    cpus: float = Field(1, gt=0)
    gpus: float = Field(0, ge=0)
    slots: int | Literal["auto"] = "auto"


class Tracking(_Section):
    uri: str | None = None
    experiment: str | None = None


class Study(_Section):
    """A study file, validated. `Study.load(path)` reads one; `with_values` gives a trial's configuration."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    data: Data
    model: Model
    method: MethodSpec
    train: Train = Train()
    scenarios: Scenarios = Scenarios()
    search: dict[str, Dimension] = Field(default_factory=dict)
    sweep: Sweep = Sweep()
    resources: Resources = Resources()
    tracking: Tracking = Tracking()

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> Study:
        """Read and check a study file.

        Args:
            path: a YAML file. Relative paths inside it are taken from its folder and made absolute.
            overrides: `key=value`, the value in YAML, applied before checking.

        Raises:
            UserError: naming file, line, key, what was found and what was expected.
        """
        source = Source.read(Path(path), overrides)
        study = cls._checked(source.values, source)
        for key, dimension in study.search.items():
            study._check_dimension(key, dimension, source)
        study._check_sweep(source)
        return study

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Study:
        """A study from plain values, as `resolved` gives them."""
        return cls._checked(dict(values), Source(values=dict(values)))

    @classmethod
    def _checked(cls, values: dict[str, Any], source: Source) -> Study:
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise first_problem(error, source, cls) from None

    def _check_dimension(self, key: str, dimension: Dimension, source: Source) -> None:
        place = source.place(f"search.{key}")
        if key.split(".")[0] not in ("data", "model", "method", "train", "scenarios") or key == "scenarios.evaluate":
            raise UserError("this key cannot be searched", **place, expected="a key of data, model, method or train")
        for value in dimension.edges():
            if dimension.kind in ("int", "log_int"):
                value = int(value)
            try:
                self.with_values({key: value})
            except UserError as error:
                if error.problem == UNKNOWN_KEY:
                    raise error.placed(**place) from None
                raise UserError(
                    f"the search space holds an impossible value ({error.problem})", **place, found=value
                ) from None
        for other in dimension.when:
            try:
                self.value(other)
            except KeyError:
                raise UserError(
                    "`when` names an unknown key", **place, found=other, expected="a key of the study"
                ) from None

    def _check_sweep(self, source: Source) -> None:
        sweep, schedule = self.sweep, self.train.schedule
        warmup = schedule.warmup_epochs if schedule.warmup_steps is None else 0
        if sweep.scheduler.name == "asha" and sweep.scheduler.grace_epochs <= warmup:
            raise UserError(
                "ASHA would judge trials inside the warm-up",
                **source.place("sweep.scheduler.grace_epochs"),
                found=sweep.scheduler.grace_epochs,
                expected=f"more than train.schedule.warmup_epochs ({warmup:g})",
            )
        if len(sweep.objectives) > 1 and sweep.scheduler.name != "none":
            raise UserError(
                "no scheduler can judge several objectives",
                **source.place("sweep.scheduler"),
                found=sweep.scheduler.name,
                expected="none",
            )
        if sweep.sampler.name == "grid" and (wide := [k for k, d in self.search.items() if d.kind != "choice"]):
            raise UserError(
                "a grid needs choices", **source.place(f"search.{wide[0]}"), found=self.search[wide[0]].kind,
                expected="{choice: [...]}",
            )  # fmt: skip
        if sweep.final and sweep.final.per and sweep.final.per not in self.search:
            raise UserError(
                "`final.per` is not searched",
                **source.place("sweep.final.per"),
                found=sweep.final.per,
                expected=f"one of {list(self.search)}",
            )
        if sweep.seeds > 1:
            raise UserError(
                "repeated seeds within a trial are not supported yet",
                **source.place("sweep.seeds"), found=sweep.seeds, expected="1",
                hint="Search train.seed with the grid sampler, or use sweep.final.seeds.",
            )  # fmt: skip

    def resolved(self) -> dict[str, Any]:
        """All values, defaults included, as plain JSON-able data; `parse` gives the study back."""
        return self.model_dump(mode="json", by_alias=True)

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.resolved(), sort_keys=False, allow_unicode=True)

    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.resolved(), sort_keys=True).encode()).hexdigest()[:16]

    def value(self, key: str) -> Any:
        """The value of a dotted key. Raises KeyError where there is none."""
        found: Any = self.resolved()
        for part in key.split("."):
            if not isinstance(found, dict) or part not in found:
                raise KeyError(key)
            found = found[part]
        return found

    def with_values(self, values: Mapping[str, Any]) -> Study:
        """This study with some dotted keys set; checked again."""
        source = Source(values=self.resolved())
        for key, value in values.items():
            source.set(key, value)
        return self._checked(source.values, source)
