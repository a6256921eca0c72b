"""Two-stage training: a method starts from the weights that another run trained (`train.init_from`), by name.

In the papers, the second stage trains MMP from a modality-dropout model. Every tensor of the checkpoint must exist in
this study's network, and every trained tensor of the backbone must be in the checkpoint; only the method's own tensors
(such as a projector that the first stage lacked) may keep their initial values.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from mmsweep.errors import UserError
from mmsweep.methods.method import Method
from mmsweep.models.packing import trained
from mmsweep.record.checkpoint import WEIGHTS, check_files
from mmsweep.record.trial import TrialFolder, deciding_report
from mmsweep.study import Study
from mmsweep.training.checkpoint import check_learned, running_statistics

KEY = "train.init_from"


def weights_file(source: str) -> Path:
    """The weights file of `train.init_from`: that file itself, or the best checkpoint of a run's folder.

    Raises:
        UserError: nothing is there, the run has no epoch, or its best checkpoint is damaged.
    """
    if "${" in source:
        raise UserError(
            "an environment variable is not set", key=KEY, found=source, hint="It says where the first stage lies."
        )
    path = Path(source)
    if path.is_file():
        return path
    folder = TrialFolder(path)
    if not (path / "study.yaml").exists() or not folder.exists():
        raise UserError(
            "no trained weights lie here",
            key=KEY,
            found=source,
            expected="a run's folder (study.yaml, trial.json, checkpoints) or a .safetensors file",
        )
    objective = Study.load(path / "study.yaml").sweep.objectives[0]
    best = deciding_report(folder.reports(), objective)
    if best is None:
        raise UserError("this run has no epoch to start from", key=KEY, found=source)
    checkpoint = folder.checkpoint(best.epoch)
    try:
        check_files(checkpoint, WEIGHTS)
    except UserError as problem:
        raise problem.placed(key=KEY, expected="a run whose best checkpoint is intact") from problem
    return checkpoint / WEIGHTS


def check_first_stage(study: Study) -> None:
    """Refuse, before anything starts, a first stage that is missing or known to have another architecture.

    Raises:
        UserError: names both stages' values of the key that differs.
    """
    source = study.train.init_from
    if source is None:
        return
    weights_file(source)
    if Path(source).is_file():
        with _reading(Path(source)), safe_open(source, framework="pt"):
            return  # bare tensors: the architecture is checked when they are loaded
    first = Study.load(Path(source) / "study.yaml")
    pairs = {
        **{
            f"model.backbone.{key}": tuple(getattr(s.model.backbone, key, None) for s in (first, study))
            for key in study.model.backbone.shaping
        },
        "model.encoders": (sorted(first.model.encoders), sorted(study.model.encoders)),
        "model.lora.rank": (first.model.lora and first.model.lora.rank, study.model.lora and study.model.lora.rank),
        # The same adapters with another scale compute something else.
        "model.lora.alpha": tuple(s.model.lora and s.model.lora.alpha_in_force for s in (first, study)),
    }
    for key, (theirs, ours) in pairs.items():
        if key in study.search and study.search[key].count > 1 and KEY not in study.search:
            raise UserError(
                f"the weights of {KEY} fit one {key} alone", key=f"search.{key}", found="searched", expected=str(theirs)
            )
        if theirs != ours:
            raise UserError(
                f"weights of another architecture: {key} is {theirs!r} there",
                file=Path(source) / "study.yaml",
                key=KEY,
                found=source,
                expected=f"a run with {key}: {ours!r}",
            )


def digest(source: str) -> str:
    """A short hash of the weights that a study starts from."""
    return hashlib.sha256(weights_file(source).read_bytes()).hexdigest()[:16]


def task_state(source: str) -> dict[str, Tensor]:
    """The task's tensors in the checkpoint of `train.init_from`, such as the scale of its targets.

    Raises:
        UserError: no such weights.
    """
    return {name: value for name, value in _read(source).items() if name.startswith("task.")}


def _read(source: str) -> dict[str, Tensor]:
    file = weights_file(source)
    with _reading(file):
        return load_file(file)


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Raises UserError where a file holds no tensors."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise UserError(f"the weights cannot be read ({error})", key=KEY, file=file) from error


def start_from(method: Method, source: str) -> None:
    """Copy the weights of `train.init_from` into a method by name; `task_state` reads the task's tensors.

    Running statistics of batch norms are copied too. A tensor that this study freezes is replaced, not written to:
    other trials share the host's frozen backbone.

    Raises:
        UserError: no such weights, or weights of another architecture; names the first tensor that does not fit.
    """
    file = weights_file(source)
    weights = {name: value for name, value in _read(source).items() if not name.startswith("task.")}
    weights = check_learned(method, weights, file)
    tensors = {t.name: t for t in trained(method, frozen=True)}
    values = {name: t.slot_view(t.parameter.detach(), 0) for name, t in tensors.items()}
    statistics = running_statistics(method)
    _check(method, dict(method.named_buffers()) | values, weights, file)
    for name, value in weights.items():
        if name in statistics:
            statistics[name].copy_(value)
        elif name in tensors and (tensors[name].parameter.requires_grad or tensors[name].owner is not None):
            values[name].copy_(value)
        else:  # shared with other trials, so it is replaced
            parent, _, last = name.rpartition(".")
            shared = values[name] if name in values else method.get_buffer(name)
            module, value = method.get_submodule(parent), value.to(shared.device, shared.dtype)
            if name in values:
                module.register_parameter(last, nn.Parameter(value, False))
            else:
                module.register_buffer(last, value)


def _check(method: Method, places: Mapping[str, Tensor], weights: dict[str, Tensor], file: Path) -> None:
    def misfit(problem: str, name: str, **what: object) -> UserError:
        hint = f"Looked at tensor {name}. Stages must share model.backbone, model.encoders and model.lora."
        return UserError(f"weights of another architecture: {problem}", file=file, key=KEY, hint=hint, **what)  # type: ignore[arg-type]

    for name in sorted(weights):
        if name not in places:
            raise misfit("a tensor that has no place in this study", name, found=name)
        if places[name].shape != weights[name].shape:
            shape = tuple(places[name].shape)
            raise misfit("a tensor of another shape", name, found=tuple(weights[name].shape), expected=str(shape))
    extra = {name for name in method.trainable() if not name.startswith("backbone.")}
    started = bool(extra & weights.keys())
    for name in (*method.trainable(), *running_statistics(method)):
        if name not in weights and (started or name not in extra):
            raise misfit("it lacks a tensor that this study trains", name, found=sorted(weights)[:3], expected=name)
