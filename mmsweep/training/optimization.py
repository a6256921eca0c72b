"""The papers' learning-rate schedules, and the optimiser of a pack."""

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
    """Factor of the learning rate at a step (counted from 0) out of `steps`.

    Warm-up (B20: paper and code differ): `linear` rises from `warmup_ratio` to 1, as in the code that the papers build
    on; `constant` stays at the ratio, as in their text. Then polynomial or cosine decay to 0, or a constant rate.
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
    """AdamW (Loshchilov & Hutter 2019) for S slots at once, each with its own learning rate, decay and step count.

    All trained tensors are views of one buffer [S, n], and gradients are gathered into another, so a step takes a dozen
    operations for any number of tensors and slots. Every operation is elementwise and rounds once, so slots do not
    influence each other. Biases, norms and tensors that the method excludes are not decayed, as in the reference code
    (methods.md §5.2).

    Args:
        tensors: the trained tensors.
        specs: options of each slot; betas and eps are taken from the first.
        undecayed: name prefixes of tensors without weight decay (`Method.undecayed`).
    """

    def __init__(self, tensors: Sequence[Trained], specs: Sequence[Optimizer], undecayed: tuple[str, ...] = ()) -> None:
        def plain(tensor: Trained) -> bool:
            """Whether a tensor has no weight decay."""
            return tensor.slot_view(tensor.parameter, 0).dim() < 2 or tensor.name.startswith(undecayed)

        self.tensors = sorted(tensors, key=plain)  # decayed first: checkpoints number their states in this order
        self.specs, S = list(specs), len(specs)
        self.steps = [[0] * len(self.tensors) for _ in specs]
        self.moved_ST: list[list[bool]] | None = None
        first = self.tensors[0].parameter
        self._segments: list[slice] = []
        end = 0
        self._decayed = 0
        for tensor in self.tensors:
            # Aligned to cache lines: if a tensor's offset depended on its slot, products would round differently.
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
        """Reset a slot's state to that of a new optimiser."""
        self.steps[slot] = [0] * len(self.tensors)
        self.mean_SN[slot], self.square_SN[slot] = 0.0, 0.0

    def move(self, trains: Sequence[Callable[[str], bool] | None]) -> None:
        """Set which tensors, by name, the next steps update in each slot; None: all. Others keep value and state."""
        if all(chooses is None for chooses in trains):
            self.moved_ST = None
            return
        chosen = [[chooses is None or chooses(t.name) for t in self.tensors] for chooses in trains]
        self.moved_ST = None if all(all(moved_T) for moved_T in chosen) else chosen

    @cached_property
    def gradients(self) -> list[dict[str, Tensor]]:
        """Each slot's gathered gradients by name, as views."""
        pairs = list(zip(self.tensors, self._segments, strict=True))
        slots = range(len(self.specs))
        return [{t.name: self._own(self.gradient_SN, t, segment, slot) for t, segment in pairs} for slot in slots]

    def take(self, slot: int, other: PackedAdamW, source: int) -> None:
        """Copy the state of slot `source` of another optimiser with the same tensors into `slot`."""
        self.steps[slot] = list(other.steps[source])
        self.mean_SN[slot], self.square_SN[slot] = other.mean_SN[source], other.square_SN[source]

    def gather(self) -> Tensor:
        """Move all gradients from the parameters into one buffer [S, n]; zeros for unused and for frozen tensors."""
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
        """Clip each slot's gradient norm like torch.nn.utils.clip_grad_norm_; None: no clipping."""
        for gradient_N, largest in zip(self.gradient_SN, norms, strict=True):  # one norm per slot
            if largest is not None:
                gradient_N.mul_((largest / (gradient_N.norm() + 1e-6)).clamp(max=1.0))

    def step(self, lr_S: Sequence[float]) -> None:
        """Update every slot with its gathered gradient."""
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
        # No fused multiply-add (lerp, addcmul), which rounds differently at the end of a vector.
        self.mean_SN += (self.gradient_SN - self.mean_SN).mul_(new)
        self.square_SN.mul_(old)
        self.square_SN += (self.gradient_SN * square).mul_(self.gradient_SN)
        bound_SN = self.square_SN.sqrt().div_(root).add_(eps)
        self.values_SN -= (self.mean_SN * size).div_(bound_SN)

    def _numbers(self, steps_ST: Sequence[Sequence[int]], lr_S: Sequence[float]) -> list[list[list[float]]]:
        """Factors of the values and of the first and second moment, [3][S][T], after a number of steps."""
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
        """A slot's state for checkpoints, numbered and named like that of torch.optim.AdamW."""
        state: dict[str, Tensor] = {}
        for i, (tensor, segment) in enumerate(zip(self.tensors, self._segments, strict=True)):
            state[f"{i}.step"] = torch.tensor(float(self.steps[slot][i]))
            state[f"{i}.exp_avg"] = self._own(self.mean_SN, tensor, segment, slot)
            state[f"{i}.exp_avg_sq"] = self._own(self.square_SN, tensor, segment, slot)
        return state

    def load(self, slot: int, state: Mapping[str, Tensor]) -> None:
        """Restore a slot's state."""
        self.steps[slot] = [int(state[f"{i}.step"].item()) for i in range(len(self.tensors))]
        for i, (tensor, segment) in enumerate(zip(self.tensors, self._segments, strict=True)):
            self._own(self.mean_SN, tensor, segment, slot).copy_(state[f"{i}.exp_avg"])
            self._own(self.square_SN, tensor, segment, slot).copy_(state[f"{i}.exp_avg_sq"])

    def _own(self, values_SN: Tensor, tensor: Trained, segment: slice, slot: int) -> Tensor:
        return tensor.slot_view(values_SN[:, segment].view(tensor.parameter.shape), slot)


ALIGNMENT = 16
"""A tensor's offset is a multiple of this many numbers: 64 bytes of fp32."""
