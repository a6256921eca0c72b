"""Learning-rate schedules as the papers state them, and the optimiser of a pack."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mmsweep.models.packing import Trained
from mmsweep.study.sections import Optimizer, Schedule
from mmsweep.transfer import sent


def lr_factor(schedule: Schedule, step: int, steps: int, steps_per_epoch: int) -> float:
    """What the learning rate is multiplied by at a step (counted from 0) of `steps` in all.

    Warm-up: `linear` climbs from `warmup_ratio` to 1 (as the code that the papers build on), `constant` holds the ratio
    (as their text says): research/methods.md B20. Afterwards polynomial decay to 0, cosine to 0, or constant.
    """
    warmup = (
        schedule.warmup_steps if schedule.warmup_steps is not None else round(schedule.warmup_epochs * steps_per_epoch)
    )
    if step < warmup:
        if schedule.warmup == "constant":
            return schedule.warmup_ratio
        return schedule.warmup_ratio + (1.0 - schedule.warmup_ratio) * step / warmup
    progress = min((step - warmup) / max(steps - warmup, 1), 1.0)
    if schedule.name == "constant":
        return 1.0
    if schedule.name == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    return (1.0 - progress) ** schedule.power


class PackedAdamW:
    """AdamW (Loshchilov & Hutter 2019) of S slots in one go, each with its own learning rate, decay and step count.

    All trained tensors lie in one buffer [S, n], of which the parameters are views from here on, as all gradients do
    once they are gathered: a step costs a dozen operations however many tensors and slots there are. Every operation is
    elementwise and rounds once, so a slot's arithmetic knows no neighbours. Biases, norms and what the method excludes
    are not decayed, as in the reference code (methods.md §5.2).

    Args:
        tensors: what is trained.
        specs: each slot's; betas and eps are those of the first.
        undecayed: what the names of tensors without weight decay start with (`Method.undecayed`).
    """

    def __init__(self, tensors: Sequence[Trained], specs: Sequence[Optimizer], undecayed: tuple[str, ...] = ()) -> None:
        def plain(tensor: Trained) -> bool:
            """Whether weight decay leaves it alone."""
            return tensor.own(tensor.parameter, 0).dim() < 2 or tensor.name.startswith(undecayed)

        self.tensors = sorted(tensors, key=plain)  # decayed first: checkpoints number their states in this order
        self.specs, S = list(specs), len(specs)
        self.steps = [0] * S
        first = self.tensors[0].parameter
        self._segments: list[slice] = []
        end = 0
        self._decayed = 0
        for tensor in self.tensors:
            # Whole cache lines: where a tensor begins must not depend on its slot, or products would round differently.
            size = tensor.parameter.numel() // S
            self._segments.append(slice(end, end + size))
            end += -(-size // ALIGNMENT) * ALIGNMENT
            if not plain(tensor):
                self._decayed = end
        self.values_SN, self.gradient_SN, self.mean_SN, self.square_SN = (
            torch.zeros(S, end, dtype=first.dtype, device=first.device) for _ in range(4)
        )
        for tensor, segment in zip(self.tensors, self._segments, strict=True):
            view = self.values_SN[:, segment].view(tensor.parameter.shape)
            view.copy_(tensor.parameter.detach())
            tensor.parameter.data = view

    def take(self, slot: int, other: PackedAdamW, theirs: int) -> None:
        """Another optimiser's state of one of its slots, of the same tensors."""
        self.steps[slot] = other.steps[theirs]
        self.mean_SN[slot], self.square_SN[slot] = other.mean_SN[theirs], other.square_SN[theirs]

    def gather(self) -> Tensor:
        """All gradients [S, n], taken off the parameters; zeros where a batch did not need a tensor."""
        S, parts = len(self.specs), []
        for tensor, segment in zip(self.tensors, self._segments, strict=True):
            size = segment.stop - segment.start
            grad, tensor.parameter.grad = tensor.parameter.grad, None
            parts.append(self.mean_SN.new_zeros(S, size) if grad is None else grad.reshape(S, size))
            if gap := -size % ALIGNMENT:
                parts.append(self.mean_SN.new_zeros(S, gap))
        return torch.cat(parts, 1, out=self.gradient_SN)

    def clip(self, norms: Sequence[float | None]) -> None:
        """Bring each slot's gradient to its largest norm, as torch.nn.utils.clip_grad_norm_ does; None: as it is."""
        for gradient_N, largest in zip(self.gradient_SN, norms, strict=True):  # a norm by itself: no sum over slots
            if largest is not None:
                gradient_N.mul_((largest / (gradient_N.norm() + 1e-6)).clamp(max=1.0))

    def step(self, lr_S: Sequence[float]) -> None:
        """Move every slot by its gathered gradient."""
        (b1, b2), eps = self.specs[0].betas, self.specs[0].eps
        self.steps = [n + 1 for n in self.steps]
        numbers = [
            [1 - lr * spec.weight_decay for lr, spec in zip(lr_S, self.specs, strict=True)],
            [lr / (1 - b1**n) for lr, n in zip(lr_S, self.steps, strict=True)],
            [math.sqrt(1 - b2**n) for n in self.steps],
        ]
        on_host = torch.tensor(numbers, dtype=self.values_SN.dtype)
        keep_S1, size_S1, root_S1 = sent(on_host, self.values_SN.device).unsqueeze(-1)
        self.values_SN[:, : self._decayed] *= keep_S1
        # No fused multiply-add (lerp, addcmul): a vector's end would round otherwise than its middle.
        self.mean_SN += (self.gradient_SN - self.mean_SN).mul_(1 - b1)
        self.square_SN.mul_(b2)
        self.square_SN += (self.gradient_SN * (1 - b2)).mul_(self.gradient_SN)
        bound_SN = self.square_SN.sqrt().div_(root_S1).add_(eps)
        self.values_SN -= (self.mean_SN * size_S1).div_(bound_SN)

    def state(self, slot: int) -> dict[str, Tensor]:
        """A slot's state, as torch.optim.AdamW numbers and names it: what checkpoints hold."""
        found: dict[str, Tensor] = {}
        for i, (tensor, segment) in enumerate(zip(self.tensors, self._segments, strict=True)):
            found[f"{i}.step"] = torch.tensor(float(self.steps[slot]))
            found[f"{i}.exp_avg"] = self._own(self.mean_SN, tensor, segment, slot)
            found[f"{i}.exp_avg_sq"] = self._own(self.square_SN, tensor, segment, slot)
        return found

    def load(self, slot: int, state: Mapping[str, Tensor]) -> None:
        """Go on from a slot's state."""
        self.steps[slot] = int(state["0.step"].item())
        for i, (tensor, segment) in enumerate(zip(self.tensors, self._segments, strict=True)):
            self._own(self.mean_SN, tensor, segment, slot).copy_(state[f"{i}.exp_avg"])
            self._own(self.square_SN, tensor, segment, slot).copy_(state[f"{i}.exp_avg_sq"])

    def _own(self, values_SN: Tensor, tensor: Trained, segment: slice, slot: int) -> Tensor:
        return tensor.own(values_SN[:, segment].view(tensor.parameter.shape), slot)


ALIGNMENT = 16
"""Numbers that a tensor's place is a multiple of: 64 bytes of fp32."""
