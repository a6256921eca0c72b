"""The study file, typed: the only place that knows its format (DESIGN §5). Reading YAML itself is `study_source.py`.

Every field's meaning stands beside it. Nothing below this file sees a raw mapping: the floors get these objects.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from mmsweep.errors import UserError
from mmsweep.study_mult import MulTSpec
from mmsweep.study_search import Dimension, Sweep
from mmsweep.study_source import Section as _Section
from mmsweep.study_source import Source, first_problem, misfit

Share = Field(ge=0.0, le=1.0)
ScenarioSpec = str | dict[str, Any]


class ImageOptions(_Section):
    size: int | None = Field(None, ge=8, description="pixels a side; null: what the encoder was made for")
    fit: Literal["crop", "pad"] = Field("crop", description="not square: show the middle, or all of it on white")


class TextOptions(_Section):
    length: int | None = Field(None, ge=4, description="tokens, [CLS] and [SEP] included; null: the encoder's default")
    field: str | None = Field(None, description="which text of a dataset that has several")


class AudioOptions(_Section):
    frames: int | None = Field(None, ge=8, description="spectrogram frames; null: what the encoder was made for")
    language: str | None = Field(None, description="of a dataset spoken in several; null: the dataset's own")


class VideoOptions(_Section):
    frames: int = Field(3, ge=1, description="frames a clip")


class Augmentation(_Section):
    crop: tuple[float, float] | None = Field(None, description="smallest and largest area of a random resized crop")
    flip: bool = Field(False, description="mirror images at random")
    random_frames: bool = Field(False, description="random instead of uniform video frames")


class ManifestColumn(_Section):
    kind: Literal["image", "text", "audio", "video", "sequence"]
    column: str
    length: int | None = Field(None, ge=1, description="sequence: most steps (longer ones are cut)")
    width: int | None = Field(None, ge=1, description="sequence: features a step")

    @model_validator(mode="after")
    def _sequences_have_a_size(self) -> ManifestColumn:
        sizes = self.length, self.width
        if self.kind == "sequence" and None in sizes:
            raise misfit("a sequence needs its size", "length (most steps) and width (features a step)")
        if self.kind != "sequence" and sizes != (None, None):
            raise misfit(f"{self.kind} has no length and width", "neither, or kind: sequence")
        return self


class ManifestTarget(_Section):
    task: Literal["single_label", "multi_label", "regression"]
    column: str
    separator: str = "|"
    classes: list[str] | None = None
    signed: bool = Field(False, description="regression: the sign means something (sentiment): Has0 and Non0 metrics")

    @model_validator(mode="after")
    def _only_numbers_have_a_sign(self) -> ManifestTarget:
        if self.signed and self.task != "regression":
            raise misfit(f"{self.task} has no sign", "signed: false, or task: regression")
        return self


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


class BackboneSpec(_Section):
    name: str = Field("dual_encoder", description="dual_encoder: one encoder a modality (model.encoders); vilt; mult")
    mult: MulTSpec = MulTSpec()
    weights: str | None = Field(
        None, description="a whole network's checkpoint: a hub name, a folder or `package:NAME/path`"
    )
    pretrained: bool = Field(
        True, description="false: initial values drawn from train.seed; of `weights` only the configuration is read"
    )
    trainable: bool = Field(False, description="B25: train all its weights instead of freezing them")

    @model_validator(mode="after")
    def _fits_together(self) -> BackboneSpec:
        if self.name in ("dual_encoder", "mult") and (
            self.weights is not None or self.trainable or not self.pretrained
        ):
            raise misfit(
                "weights, pretrained and trainable are for whole networks", "these under model.encoders.<modality>"
            )
        if not self.pretrained and not self.trainable:
            raise misfit("a frozen network with initial values", "trainable: true")
        return self


class Model(_Section):
    backbone: BackboneSpec = BackboneSpec()
    encoders: dict[str, EncoderSpec] = Field(default_factory=dict, description="one a modality, for dual_encoder")
    lora: Lora | None = Field(Lora(), description="adapters on q, k, v, o of attention; null: none")

    @field_validator("encoders")
    @classmethod
    def _where_they_belong(cls, encoders: dict[str, EncoderSpec], info: ValidationInfo) -> dict[str, EncoderSpec]:
        backbone = info.data.get("backbone")
        if backbone is not None and (backbone.name == "dual_encoder") != bool(encoders):
            problem = f"backbone {backbone.name} has no place for encoders"
            if not encoders:
                problem = "backbone dual_encoder needs an encoder for each modality"
            raise misfit(problem, "encoders with model.backbone.name: dual_encoder, none with another")
        return encoders


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


class ProjectorSpec(_Section):
    """How `mmp` predicts tokens; every field is an open question of its paper (research/methods.md §B)."""

    heads: int = Field(8, ge=1, description="B30: of its cross-attentions")
    width: int | None = Field(
        None, ge=1, description="D, common to all modalities; null: the widest modality's, rounded up to whole heads"
    )
    residual_norm: bool = Field(False, description="B30: add the queries and a LayerNorm to each cross-attention")

    @model_validator(mode="after")
    def _whole_heads(self) -> ProjectorSpec:
        if self.width is not None and self.width % self.heads:
            raise misfit(f"width {self.width} does not divide into {self.heads} heads", "a multiple of heads")
        return self


class MethodSpec(_Section):
    name: str
    align_weight: float | None = Field(
        None, ge=0, description="λ of the alignment loss; null: as in the method's paper, 0.2 for cmpt and 1 (B31) else"
    )
    masking: MaskingSpec = MaskingSpec()
    detach_target: bool = Field(False, description="B4, B32: stop gradients into the alignment target")
    proxy: Proxy = Proxy()
    aggregated_tokens: int = Field(8, ge=1, description="K of mmp: learned tokens that summarise a modality")
    projector: ProjectorSpec = ProjectorSpec()

    @property
    def alignment(self) -> float:
        """`align_weight` in force."""
        if self.align_weight is not None:
            return self.align_weight
        return 0.2 if self.name == "cmpt" else 1.0


class Optimizer(_Section):
    name: Literal["adamw"] = "adamw"
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.02, ge=0)
    eps: float = Field(1e-8, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)


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
    regression_loss: Literal["l1", "mse", "smooth_l1"] = "l1"
    seed: int = Field(0, ge=0)
    init_from: str | None = Field(
        None, description="start from trained weights: a run's folder (its best epoch) or a .safetensors file"
    )

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
        """The value of a dotted key, as it is in force. Raises KeyError where there is none."""
        if key == "method.align_weight":
            return self.method.alignment
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
