"""`train.compile`: runs the encoders' blocks through torch.compile in training steps.

Single blocks are compiled, not the network: all blocks of an encoder but the last have the same shapes, so one
compilation serves all of them. The adapters' dropout masks are drawn before a block runs, in the order in which it
would draw them, because a compiled block cannot draw from each slot's generator.

Shapes are static. Each width of a pack, and a smaller last batch of an epoch, is compiled separately; after MOST_SHAPES
of them in a process, further shapes run uncompiled. Evaluation always runs uncompiled, since its batch sizes vary.
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
"""Largest number of compiled shapes. A pack's width has about four per encoder, since the last block and the last batch
of an epoch have their own, and `slots: auto` tries up to seven widths before the first epoch."""


class BlockCompiler:
    """Runs blocks, compiled in training. One per mode and process, since torch shares compiled code among networks."""

    def __init__(self, mode: CompileMode) -> None:
        self.mode = mode
        self.kinds: set[Any] = set()
        self._run: Any = None

    def __deepcopy__(self, memo: dict[int, Any]) -> BlockCompiler:
        return self

    def __call__(
        self, block: nn.Module, linears: tuple[str, ...], *inputs: Any, read: tuple[Tensor, ...] | None = None
    ) -> Any:
        """The output of block(*inputs).

        Args:
            linears: names within the block of the linears that may be adapted, in the order of their calls.
            read: for each of these a tensor of its input's shape; None: all have the shape of the first input.

        Raises:
            UserError: this machine cannot compile, or this block cannot be compiled.
        """
        if not torch.is_grad_enabled() or torch.is_inference_mode_enabled():
            return block(*inputs)
        x: Tensor = inputs[0]
        modules = zip(map(block.get_submodule, linears), read or (x,) * len(linears), strict=True)
        adapters = [(module, like) for module, like in modules if isinstance(module, PackedLoRALinear)]
        kind = (
            *(type(block), x.shape, x.dtype, x.device, x.requires_grad, torch.is_autocast_enabled(x.device.type)),
            tuple((a.slots, a.masks, like.shape) for a, like in adapters),
        )
        if kind not in self.kinds and len(self.kinds) >= MOST_SHAPES:
            return block(*inputs)
        if self._run is None:
            self._run = self._compiled(x.device)
        self.kinds.add(kind)
        for adapter, like in adapters:
            adapter.draw_ahead(like)
        try:
            return self._run(block, *inputs)
        except RuntimeError as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):  # they have no public name
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
        # Torch's own limit must not be reached before MOST_SHAPES. An older torch without this name runs the shapes
        # beyond its limit uncompiled.
        with contextlib.suppress(AttributeError):
            limits: Any = torch.compiler.config
            limits.recompile_limit = max(limits.recompile_limit, 2 * MOST_SHAPES)
        graphs = self.mode == "reduce-overhead" and device.type == "cuda"
        return torch.compile(_call, dynamic=False, mode="reduce-overhead" if graphs else None)


def block_compiler(mode: CompileMode) -> BlockCompiler | None:
    """The process's compiler for a mode; None for off."""
    return None if mode == "off" else _compiler(mode)


def begin_step(mode: CompileMode) -> None:
    """Allow CUDA graphs to overwrite the results of the last step."""
    if mode == "reduce-overhead":
        torch.compiler.cudagraph_mark_step_begin()


def check_compiler(mode: CompileMode, device: torch.device) -> None:
    """Raise UserError if this machine lacks the compiler that torch.compile needs."""
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
