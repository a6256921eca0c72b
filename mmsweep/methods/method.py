"""The contract of a method: what is done about missing modalities on a backbone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmsweep.availability import Masking
from mmsweep.data.dataset import Batch
from mmsweep.errors import UserError
from mmsweep.models.backbone import Backbone
from mmsweep.models.lora import Noise
from mmsweep.models.packing import Packed
from mmsweep.study_method import MethodSpec


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
    """

    prediction: Tensor
    losses: dict[str, Term] = field(default_factory=dict)


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
        accepts: the kind of backbone it works on.
        can_mask: whether it removes modalities at random while training (`method.masking`).
        feeds_placeholders: whether it knows `method.absent: placeholder`. A method that brings its own tokens for an
            absent modality has no use for it.
        masks_gaps: whether it goes on doing so where scenarios.train leaves gaps of its own (B3).
        reads: the options of the section `method` that have an effect on it, beside those of every method.
        masking: removal drawn anew at every step, or None. A trial's own, as `weights`: the engine asks each trial's.
        weights: name of an own loss -> its weight.
        noise: where dropout masks come from; the engine sets it.
    """

    accepts: ClassVar[type[Any]] = Backbone
    can_mask: ClassVar[bool] = True
    masks_gaps: ClassVar[bool] = True
    feeds_placeholders: ClassVar[bool] = False
    reads: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, backbone: Backbone, spec: MethodSpec, noise: Noise, generator: torch.Generator) -> None:
        super().__init__()
        if not isinstance(backbone, self.accepts):
            raise UserError(
                f"method {spec.name} does not work on this backbone",
                key="method.name",
                found=type(backbone).__name__,
                expected=self.accepts.__name__,
            )
        self.backbone = backbone
        self.spec = spec
        self.noise = noise
        masking = spec.masking
        self.masking: Masking | None = None
        if self.can_mask:
            self.masking = Masking(masking.probability, masking.granularity, masking.distribution)
        self.weights: dict[str, float] = {}

    @classmethod
    def masks(cls, gaps: bool, with_training_gaps: bool | None) -> bool:
        """Whether masking acts.

        Args:
            gaps: whether scenarios.train leaves gaps of its own.
            with_training_gaps: `method.masking.with_training_gaps`.
        """
        beside_gaps = cls.masks_gaps if with_training_gaps is None else with_training_gaps
        return cls.can_mask and (beside_gaps or not gaps)

    @abstractmethod
    def forward(self, batch: Batch, used_BM: Tensor) -> Output:
        """Predict from the modalities in use and say what else is to be minimised.

        Args:
            batch: `present_BM` says what may be read.
            used_BM: what the fusion may use; never more than is present, never an empty row. While training it lies on
                the host, so that whoever chooses rows by it need not wait for the device; `transfer.sent` brings it.
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


METHODS: dict[str, type[Method]] = {}


def register(name: str) -> Callable[[type[Method]], type[Method]]:
    """Class decorator: the method's name in studies."""

    def enter(cls: type[Method]) -> type[Method]:
        METHODS[name] = cls
        return cls

    return enter
