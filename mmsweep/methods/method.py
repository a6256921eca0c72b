"""The contract of a method: what is done about missing modalities on a backbone."""

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
        values_B: per sample, ordered by slot.
        counted_B: bool; the mean is over these rows, and 0 where there are none.
    """

    values_B: Tensor
    counted_B: Tensor


@dataclass(frozen=True)
class Output:
    """Args:
    prediction: [B, C].
    losses: the method's own terms by name, unweighted; the task's loss is the engine's to add.
    counted_B: bool, the rows that the task's loss is averaged over; None: all of them.
    """

    prediction: Tensor
    losses: dict[str, Term] = field(default_factory=dict)
    counted_B: Tensor | None = None


@dataclass(frozen=True)
class Phase:
    """A stretch of a trial's epochs that trains some of its parameters, with an optimiser and a schedule of its own.

    Args:
        name: what the method's `forward` does meanwhile.
        epochs: how many.
        trains: whether the parameter of a name is trained; None: every one is.
    """

    name: str
    epochs: int
    trains: Callable[[str], bool] | None = None


@dataclass(frozen=True)
class Update:
    """One slot's gradients on their way to the optimiser.

    Args:
        gradients: by parameter name, of the whole batch over all ranks, without slot axis and padding; to be changed in
            place. A parameter that this update leaves as it is has zeros.
        epoch: of the slot, counted from 0.
        generator: the slot's own, on the gradients' device; equal on all ranks.
    """

    gradients: Mapping[str, Tensor]
    epoch: int
    generator: torch.Generator


@dataclass(frozen=True)
class StandIn:
    """What a method puts in the place of a missing modality, beside what it stands for.

    Args:
        real_BND, guess_BND: N tokens of width D a sample; N is 1 where a single token is replaced.
        mask_BN: False for padding; None: every token counts.
    """

    real_BND: Tensor
    guess_BND: Tensor
    mask_BN: Tensor | None = None


class Method(Packed, ABC):
    """One method on one backbone: of one trial as it is made, of S trials once `models.packing.merge` packs them.

    A batch is S * B rows ordered by slot, and every tensor that a method brings has a leading slot axis (packing.py).

    Attributes:
        Options: the class of its options. If it derives from MaskingMethodOptions, the method hides modalities at
            random while training; if it has an option `absent`, the method can be fed placeholders.
        accepts: the kind of backbone it works on.
        masks_gaps: whether it goes on masking where scenarios.train leaves gaps of its own (B3).
        undecayed: what the names of its parameters without weight decay start with; biases and norms need no mention.
        options: what the study says of it.
        masking: removal drawn anew at every step, or None. A trial's own, as `weights`: the engine asks each trial's.
        weights: name of an own loss -> its weight.
        extra_tokens: how many tokens it adds for each modality to the sequences that blocks read, at most.
        noise: where dropout masks come from; the engine sets it.
        phases_S: the phase of each slot, set by the engine for every epoch of training; empty in evaluation.
        updates: how many updates `steps` asks for with each batch.
        always_feeds: whether an absent modality's placeholder is read without an option `absent` that asks for it.
        tasks: the tasks that it is made for; None: all of them.
        memory: parameters that are not trained but change while training: checkpoints hold them for resuming.
    """

    registry: ClassVar[Registry] = METHODS
    Options: ClassVar[type[MethodOptions]] = MethodOptions
    accepts: ClassVar[type[Any]] = Backbone
    masks_gaps: ClassVar[bool] = True
    always_feeds: ClassVar[bool] = False
    undecayed: ClassVar[tuple[str, ...]] = ()
    tasks: ClassVar[frozenset[str] | None] = None
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
            gaps: whether scenarios.train leaves gaps of its own.
            with_training_gaps: `method.masking.with_training_gaps`.
        """
        beside_gaps = cls.masks_gaps if with_training_gaps is None else with_training_gaps
        return issubclass(cls.Options, MaskingMethodOptions) and (beside_gaps or not gaps)

    @abstractmethod
    def forward(self, batch: Batch, used_BM: Tensor) -> Output:
        """Predict from the modalities in use and say what else is to be minimised.

        Args:
            batch: `present_BM` says what may be read.
            used_BM: what the fusion may use; never more than is present, never an empty row. While training it lies on
                the host, so that whoever chooses rows by it need not wait for the device; `transfer.sent` brings it.
        """

    def steps(self, batch: Batch, used_BM: Tensor) -> Iterator[Output]:
        """What a batch of training asks for: each output is followed by a backward pass and an update of its own.

        As many as `updates` says. Parameters that an output does not depend on stay as they are in its update, if
        `step_trains` says so. Arguments as `forward`.
        """
        yield self(batch, used_BM)

    def step_trains(self, update: int) -> Callable[[str], bool] | None:
        """Which parameters, by name, move in an update of a batch (counted from 0); None: all that the phase trains.

        The others keep their values and their optimiser's state, as if the update had not been.
        """
        return None

    def phases(self, epochs: int) -> list[Phase]:
        """The phases of a trial of so many epochs, in their order; their epochs add up to those.

        Where a trial stands follows from its epoch alone. Validation is through `predict_patterns` in every phase.
        Raises UserError where there are too few epochs.
        """
        return [Phase("whole", epochs)]

    def after_backward(self, updates: Sequence[Update], total: Callable[[Tensor], Tensor]) -> None:
        """Change gradients before they are clipped; called on every rank for each update, also on one without rows.

        It comes after the ranks' gradients were summed, and not right after `backward`, so that what it computes from
        them (a spread, a projection) is of the whole batch, and a trial does not depend on the number of workers.

        Args:
            updates: of each slot.
            total: sums a tensor over the ranks, in place.
        """

    def predict_patterns(self, batch: Batch, patterns_PM: Tensor) -> Tensor:
        """Predictions under every pattern: [P, B, C]. Rows without any modality of a pattern hold no meaning.

        This default runs the network once a pattern.
        """
        return torch.stack([self(batch, batch.present_BM & pattern_M).prediction for pattern_M in patterns_PM])

    def stand_ins(self, batch: Batch) -> dict[str, StandIn]:
        """Every modality with what replaces it when it alone is missing; empty for methods that replace nothing.

        Args:
            batch: rows that have everything.
        """
        return {}

    def trainable(self) -> list[str]:
        """Names of the parameters that are trained, and so checkpointed."""
        return [name for name, parameter in self.named_parameters() if parameter.requires_grad]
