"""`train.compile`: the encoders' blocks compiled by torch.compile, for a step of training.

A block is what is compiled, not the network: all blocks of an encoder but the last are of one shape, so one compilation
serves all of them. Dropout masks of adapters are drawn before a block is entered, in the order in which it would draw
them: the compiler could not keep each slot's own generator, and with CUDA graphs no generator of ours at all.

Shapes are static. Each width of a pack, and the last batch of an epoch where it is smaller, is compiled by itself, at
most MOST_SHAPES of them in a process; what comes after runs as it is. So does evaluation, whose batches are as wide as
they come.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import sys
from functools import cache
from typing import Any, get_args

import torch
from torch import Tensor, nn

from mmsweep.errors import UserError
from mmsweep.models.lora import PackedLoRALinear
from mmsweep.models.options import CompileMode

KEY = "train.compile"
MOST_SHAPES = 128
"""Kinds of calls that are compiled: encoder, rows, tokens, slots, whether something before it is trained. A pack's
width has about four an encoder (its last block is one of its own, and so is an epoch's last batch), and `slots: auto`
tries up to seven widths before the first epoch."""


class BlockCompiler:
    """Runs blocks, compiled while training. One a mode and process: torch keeps what is compiled for all networks."""

    def __init__(self, mode: CompileMode) -> None:
        self.mode = mode
        self.kinds: set[Any] = set()
        self._run: Any = None

    def __deepcopy__(self, memo: dict[int, Any]) -> BlockCompiler:
        return self

    def __call__(
        self, block: nn.Module, linears: tuple[str, ...], *inputs: Any, read: tuple[Tensor, ...] | None = None
    ) -> Any:
        """block(*inputs).

        Args:
            linears: the names within the block of what may be adapted, in the order in which it calls them.
            read: tensors that are shaped as what each of those reads; None: as the first input.

        Raises:
            UserError: nothing can be compiled here, or this block cannot.
        """
        if not torch.is_grad_enabled() or torch.is_inference_mode_enabled():
            return block(*inputs)
        x: Tensor = inputs[0]
        found = zip(map(block.get_submodule, linears), read or (x,) * len(linears), strict=True)
        adapters = [(linear, theirs) for linear, theirs in found if isinstance(linear, PackedLoRALinear)]
        kind = (
            *(type(block), x.shape, x.dtype, x.device, x.requires_grad, torch.is_autocast_enabled(x.device.type)),
            tuple((a.slots, a.masks, theirs.shape) for a, theirs in adapters),
        )
        if kind not in self.kinds and len(self.kinds) >= MOST_SHAPES:
            return block(*inputs)
        if self._run is None:
            self._run = self._compiled(x.device)
        self.kinds.add(kind)
        for adapter, theirs in adapters:
            adapter.draw_ahead(theirs)
        try:
            return self._run(block, *inputs)
        except RuntimeError as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):  # no public name tells them
                raise
            raise UserError(
                f"the network cannot be compiled ({str(error).strip().splitlines()[0]})",
                key=KEY, found=self.mode, expected="off",
            ) from error  # fmt: skip
        finally:
            for adapter, _ in adapters:
                adapter.forget()

    def _compiled(self, device: torch.device) -> Any:
        check_compiler(self.mode, device)
        # Torch's own bound is lower and per function; ours counts the same things and is reached first. An older torch
        # without this name runs what exceeds its bound as it is.
        with contextlib.suppress(AttributeError):
            limits: Any = torch.compiler.config
            limits.recompile_limit = max(limits.recompile_limit, 2 * MOST_SHAPES)
        graphs = self.mode == "reduce-overhead" and device.type == "cuda"
        return torch.compile(_call, dynamic=False, mode="reduce-overhead" if graphs else None)


def block_compiler(mode: CompileMode) -> BlockCompiler | None:
    """The process's compiler of a mode; None: off."""
    return None if mode == "off" else _compiler(mode)


def begin_step(mode: CompileMode) -> None:
    """Tell CUDA graphs that what the last step computed may be overwritten."""
    if mode == "reduce-overhead":
        torch.compiler.cudagraph_mark_step_begin()


def check_compiler(mode: CompileMode, device: torch.device) -> None:
    """Raises UserError where this machine lacks what torch.compile generates code with."""
    assert mode in get_args(CompileMode)
    if device.type == "cuda":
        missing = None if importlib.util.find_spec("triton") else "triton"
        wanted = [os.environ.get("CC") or "gcc", *(() if os.environ.get("CC") else ("clang",))]
    else:
        missing, wanted = None, [os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")]
    if missing is None and not any(shutil.which(name) for name in wanted):
        missing = f"a compiler ({' or '.join(wanted)})"
    if missing:
        raise UserError(f"torch.compile needs {missing}, which this machine lacks", key=KEY, found=mode, expected="off")


@cache
def _compiler(mode: CompileMode) -> BlockCompiler:
    return BlockCompiler(mode)


def _call(block: nn.Module, *inputs: Any) -> Any:
    return block(*inputs)
