"""Collective operations over the ranks that train one trial together; no-ops for a single rank."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class World:
    """This process's place among the ranks of a trial."""

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> World:
        """The ranks of torch.distributed's default group, or a single rank if it is not initialised."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    @property
    def first(self) -> bool:
        return self.rank == 0

    def rows(self, n: int) -> slice:
        """This rank's contiguous share of n rows; the shares of all ranks are disjoint and cover every row once."""
        return slice(self.rank * n // self.size, (self.rank + 1) * n // self.size)

    def all_reduce_sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor, op=dist.ReduceOp.SUM)
        return tensor

    def all_gather_rows(self, rows: torch.Tensor, total: int, dim: int = 0) -> torch.Tensor:
        """Concatenate the shares that `rows(total)` gave to each rank, in rank order, along `dim`."""
        if self.size == 1:
            return rows
        moved = rows.movedim(dim, 0)
        whole = moved.new_zeros((total, *moved.shape[1:]))
        whole[self.rows(total)] = moved  # shares differ in size: summing zero-filled tensors needs no padding
        return self.all_reduce_sum_(whole).movedim(0, dim)

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()
