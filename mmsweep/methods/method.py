"""The interface of a method, which handles missing modalities on a backbone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmsweep.availability import Masking
from mmsweep.components import Registry
from mmsweep.data.dataset import Batch
from mmsweep.errors import UserError
from mmsweep.methods.options import METHODS, MaskingMethodOptions, MethodOptions
from mmsweep.models.backbone import Backbone
from mmsweep.models.lora import Noise
from mmsweep.models.packing import Packed


@dataclass(frozen=True)
class Term:
    """A loss before averaging, so that ranks and slots can average over exactly the rows that count.

    Args:
        values_B: value of each sample, ordered by slot.
        counted_B: bool, the rows to average over; the mean of no rows is 0.
    """

    values_B: Tensor
    counted_B: Tensor


@dataclass(frozen=True)
class Output:
    """Args:
    prediction: [B, C].
    losses: the method's own loss terms by name, unweighted; the engine adds the task's loss.
    counted_B: bool, the rows over which the task's loss is averaged; None: all rows.
    """

    prediction: Tensor
    losses: dict[str, Term] = field(default_factory=dict)
    counted_B: Tensor | None = None


@dataclass(frozen=True)
class Phase:
    """A range of a trial's epochs that trains some of its parameters, with its own optimiser state and schedule.

    Args:
        name: name by which the method's `forward` recognises the phase.
        epochs: number of epochs.
        trains: whether a parameter is trained, by name; None: all are.
    """

    name: str
    epochs: int
    trains: Callable[[str], bool] | None = None


@dataclass(frozen=True)
class Update:
    """One slot's gradients on their way to the optimiser.

    Args:
        gradients: gradients by parameter name, summed over all ranks, without slot axis and padding; to be changed in
            place. They are zero for parameters that this update does not train.
        epoch: the slot's epoch, counted from 0.
        generator: the slot's generator on the gradients' device, equal on all ranks.
    """

    gradients: Mapping[str, Tensor]
    epoch: int
    generator: torch.Generator


@dataclass(frozen=True)
class StandIn:
    """Real tokens of a modality and the tokens with which a method replaces them when the modality is missing.

    Args:
        real_BND, guess_BND: N tokens of width D per sample; N is 1 if a single token is replaced.
        mask_BN: False for padding; None: no padding.
    """

    real_BND: Tensor
    guess_BND: Tensor
    mask_BN: Tensor | None = None


class Method(Packed, ABC):
    """One method on one backbone, for one trial when created and for S trials after `models.packing.merge`.

    A batch is S * B rows ordered by slot, and every tensor of a method has a leading slot axis (packing.py).

    Attributes:
        Options: the class of its options. If it derives from MaskingMethodOptions, the method masks modalities at
            random in training; if it has an option `absent`, the method can be fed placeholders.
        accepts: the class of backbones that it supports.
        masks_gaps: whether it masks even if scenarios.train already leaves gaps (B3).
        undecayed: name prefixes of parameters without weight decay; biases and norms are never decayed.
        options: its options in the study.
        masking: random masking at every training step, or None; belongs to each trial of a pack, like `weights`.
        weights: name of one of its loss terms -> weight.
        extra_tokens: largest number of tokens that it adds for each modality to the sequences that blocks read.
        noise: source of dropout masks; set by the engine.
        phases_S: the phase of each slot, set by the engine for every epoch of training; empty in evaluation.
        updates: number of updates that `steps` makes per batch.
        always_feeds: whether it reads the placeholder of an absent modality without an option `absent`.
        targets: the kinds of target that it supports (`Task.target_kind`); None: all.
        memory: parameters that change in training without being trained; checkpoints hold them for resuming.
    """

    registry: ClassVar[Registry] = METHODS
    Options: ClassVar[type[MethodOptions]] = MethodOptions
    accepts: ClassVar[type[Any]] = Backbone
    masks_gaps: ClassVar[bool] = True
    always_feeds: ClassVar[bool] = False
    undecayed: ClassVar[tuple[str, ...]] = ()
    targets: ClassVar[frozenset[str] | None] = None
    memory: ClassVar[frozenset[str]] = frozenset()
    options: MethodOptions
    extra_tokens: int = 0
    updates: int = 1

    def __init__(self, backbone: Backbone, options: Any, noise: Noise, generator: torch.Generator) -> None:
        super().__init__()
        if not isinstance(backbone, self.accepts):
            raise UserError(
                f"method {options.name} does not work on this backbone",
                key="method.name",
                found=type(backbone).__name__,
                expected=self.accepts.__name__,
            )
        self.backbone = backbone
        self.options = options
        self.noise = noise
        self.masking: Masking | None = None
        if isinstance(options, MaskingMethodOptions):
            masking = options.masking
            self.masking = Masking(masking.probability, masking.granularity, masking.distribution)
        self.weights: dict[str, float] = {}
        self.phases_S: Sequence[Phase] = ()

    @classmethod
    def masks(cls, gaps: bool, with_training_gaps: bool | None) -> bool:
        """Whether masking acts.

        Args:
            gaps: whether scenarios.train leaves gaps.
            with_training_gaps: `method.masking.with_training_gaps`.
        """
        beside_gaps = cls.masks_gaps if with_training_gaps is None else with_training_gaps
        return issubclass(cls.Options, MaskingMethodOptions) and (beside_gaps or not gaps)

    @abstractmethod
    def forward(self, batch: Batch, used_BM: Tensor) -> Output:
        """Predict from the modalities in use, and return the method's loss terms.

        Args:
            batch: inputs; `present_BM` says which modalities may be read.
            used_BM: modalities that the fusion may use, a subset of the present ones with no empty row. In training it
                is on the host, where rows can be selected without waiting for the device; `transfer.sent` copies it.
        """

    def steps(self, batch: Batch, used_BM: Tensor) -> Iterator[Output]:
        """The outputs of a training batch, `updates` in number; each is followed by its own backward pass and update.

        `step_trains` says which parameters an update changes. Arguments as in `forward`.
        """
        yield self(batch, used_BM)

    def step_trains(self, update: int) -> Callable[[str], bool] | None:
        """Which parameters, by name, an update of a batch (counted from 0) trains; None: all that the phase trains.

        The others keep their values and optimiser state, as if there had been no update.
        """
        return None

    def phases(self, epochs: int) -> list[Phase]:
        """The phases of a trial in order; their epochs add up to `epochs`.

        A trial's epoch determines its phase. Validation uses `predict_patterns` in every phase. Raises UserError if
        there are too few epochs.
        """
        return [Phase("whole", epochs)]

    def after_backward(self, updates: Sequence[Update], total: Callable[[Tensor], Tensor]) -> None:
        """Change gradients before they are clipped; called on every rank for each update, even on a rank without rows.

        It is called once the ranks' gradients are summed, so statistics of the gradients (a spread, a projection) are
        those of the whole batch, and a trial does not depend on the number of workers.

        Args:
            updates: the update of each slot.
            total: sums a tensor over the ranks, in place.
        """

    def predict_patterns(self, batch: Batch, patterns_PM: Tensor) -> Tensor:
        """Predictions under every pattern: [P, B, C], undefined for rows without any modality of a pattern.

        This default runs the network once per pattern.
        """
        return torch.stack([self(batch, batch.present_BM & pattern_M).prediction for pattern_M in patterns_PM])

    def stand_ins(self, batch: Batch) -> dict[str, StandIn]:
        """For every modality, its real tokens and their replacement when it alone is missing; empty if there are none.

        Args:
            batch: rows that have all modalities.
        """
        return {}

    def trainable(self) -> list[str]:
        """Names of the trained parameters, which checkpoints hold."""
        return [name for name, parameter in self.named_parameters() if parameter.requires_grad]
