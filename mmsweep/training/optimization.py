"""Learning-rate schedules as the papers state them, and the optimiser of a pack."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

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
        self.steps = [[0] * len(self.tensors) for _ in specs]
        self.moved_ST: list[list[bool]] | None = None
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
        lengths_T = torch.tensor([-(-(s.stop - s.start) // ALIGNMENT) * ALIGNMENT for s in self._segments])
        self._tensor_N = sent(torch.arange(len(self.tensors)).repeat_interleave(lengths_T), first.device)
        for tensor, segment in zip(self.tensors, self._segments, strict=True):
            view = self.values_SN[:, segment].view(tensor.parameter.shape)
            view.copy_(tensor.parameter.detach())
            tensor.parameter.data = view

    def restart(self, slot: int) -> None:
        """Forget a slot's state, as at the beginning of training."""
        self.steps[slot] = [0] * len(self.tensors)
        self.mean_SN[slot], self.square_SN[slot] = 0.0, 0.0

    def move(self, trains: Sequence[Callable[[str], bool] | None]) -> None:
        """Say which tensors, by name, the next steps move in each slot; None: all. The others keep value and state."""
        if all(own is None for own in trains):
            self.moved_ST = None
            return
        chosen = [[own is None or own(t.name) for t in self.tensors] for own in trains]
        self.moved_ST = None if all(all(moved_T) for moved_T in chosen) else chosen

    @cached_property
    def gradients(self) -> list[dict[str, Tensor]]:
        """Each slot's gathered gradients by name: views, as `Trained.own` cuts them out."""
        pairs = list(zip(self.tensors, self._segments, strict=True))
        slots = range(len(self.specs))
        return [{t.name: self._own(self.gradient_SN, t, segment, slot) for t, segment in pairs} for slot in slots]

    def take(self, slot: int, other: PackedAdamW, theirs: int) -> None:
        """Another optimiser's state of one of its slots, of the same tensors."""
        self.steps[slot] = list(other.steps[theirs])
        self.mean_SN[slot], self.square_SN[slot] = other.mean_SN[theirs], other.square_SN[theirs]

    def gather(self) -> Tensor:
        """All gradients [S, n], taken off the parameters; zeros where a batch did not need a tensor, or it stays."""
        S, parts = len(self.specs), []
        for tensor, segment in zip(self.tensors, self._segments, strict=True):
            size = segment.stop - segment.start
            grad, tensor.parameter.grad = tensor.parameter.grad, None
            parts.append(self.mean_SN.new_zeros(S, size) if grad is None else grad.reshape(S, size))
            if gap := -size % ALIGNMENT:
                parts.append(self.mean_SN.new_zeros(S, gap))
        torch.cat(parts, 1, out=self.gradient_SN)
        for gradient_N, moved_T in zip(self.gradient_SN, self.moved_ST or (), strict=False):
            for segment, moved in zip(self._segments, moved_T, strict=True):
                if not moved:
                    gradient_N[segment] = 0.0
        return self.gradient_SN

    def clip(self, norms: Sequence[float | None]) -> None:
        """Bring each slot's gradient to its largest norm, as torch.nn.utils.clip_grad_norm_ does; None: as it is."""
        for gradient_N, largest in zip(self.gradient_SN, norms, strict=True):  # a norm by itself: no sum over slots
            if largest is not None:
                gradient_N.mul_((largest / (gradient_N.norm() + 1e-6)).clamp(max=1.0))

    def step(self, lr_S: Sequence[float]) -> None:
        """Move every slot by its gathered gradient."""
        moved_ST = self.moved_ST or [[True] * len(self.tensors)] * len(self.specs)
        for steps_T, moved_T in zip(self.steps, moved_ST, strict=True):
            steps_T[:] = map(operator.add, steps_T, moved_T)
        (b1, b2), eps = self.specs[0].betas, self.specs[0].eps
        new: Tensor | float = 1 - b1
        old: Tensor | float = b2
        square: Tensor | float = 1 - b2
        if self.moved_ST is None and all(len(set(steps_T)) == 1 for steps_T in self.steps):
            keep, size, root = self._sent(self._numbers([steps_T[:1] for steps_T in self.steps], lr_S))
        else:
            by_tensor = self._numbers(self.steps, lr_S) + [
                [[rate if moved else still for moved in moved_T] for moved_T in moved_ST]
                for rate, still in ((1 - b1, 0.0), (b2, 1.0), (1 - b2, 0.0), (1.0, 0.0))
            ]
            keep, size, root, new, old, square, moves = self._sent(by_tensor)[..., self._tensor_N]
            keep, size = torch.where(moves > 0, keep, 1.0), size * moves
        self.values_SN[:, : self._decayed] *= keep[:, : self._decayed]
        # No fused multiply-add (lerp, addcmul): a vector's end would round otherwise than its middle.
        self.mean_SN += (self.gradient_SN - self.mean_SN).mul_(new)
        self.square_SN.mul_(old)
        self.square_SN += (self.gradient_SN * square).mul_(self.gradient_SN)
        bound_SN = self.square_SN.sqrt().div_(root).add_(eps)
        self.values_SN -= (self.mean_SN * size).div_(bound_SN)

    def _numbers(self, steps_ST: Sequence[Sequence[int]], lr_S: Sequence[float]) -> list[list[list[float]]]:
        """What the values, the first and the second moment are multiplied by, [3][S][T], after so many steps."""
        b1, b2 = self.specs[0].betas
        slots = list(zip(steps_ST, lr_S, self.specs, strict=True))
        return [
            [[1 - lr * spec.weight_decay for _ in steps_T] for steps_T, lr, spec in slots],
            [[lr / (1 - b1 ** max(n, 1)) for n in steps_T] for steps_T, lr, _ in slots],
            [[math.sqrt(1 - b2 ** max(n, 1)) for n in steps_T] for steps_T, _, _ in slots],
        ]

    def _sent(self, numbers: list[list[list[float]]]) -> Tensor:
        return sent(torch.tensor(numbers, dtype=self.values_SN.dtype), self.values_SN.device)

    def state(self, slot: int) -> dict[str, Tensor]:
        """A slot's state, as torch.optim.AdamW numbers and names it: what checkpoints hold."""
        found: dict[str, Tensor] = {}
        for i, (tensor, segment) in enumerate(zip(self.tensors, self._segments, strict=True)):
            found[f"{i}.step"] = torch.tensor(float(self.steps[slot][i]))
            found[f"{i}.exp_avg"] = self._own(self.mean_SN, tensor, segment, slot)
            found[f"{i}.exp_avg_sq"] = self._own(self.square_SN, tensor, segment, slot)
        return found

    def load(self, slot: int, state: Mapping[str, Tensor]) -> None:
        """Go on from a slot's state."""
        self.steps[slot] = [int(state[f"{i}.step"].item()) for i in range(len(self.tensors))]
        for i, (tensor, segment) in enumerate(zip(self.tensors, self._segments, strict=True)):
            self._own(self.mean_SN, tensor, segment, slot).copy_(state[f"{i}.exp_avg"])
            self._own(self.square_SN, tensor, segment, slot).copy_(state[f"{i}.exp_avg_sq"])

    def _own(self, values_SN: Tensor, tensor: Trained, segment: slice, slot: int) -> Tensor:
        return tensor.own(values_SN[:, segment].view(tensor.parameter.shape), slot)


ALIGNMENT = 16
"""Numbers that a tensor's place is a multiple of: 64 bytes of fp32."""
