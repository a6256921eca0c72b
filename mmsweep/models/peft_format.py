"""A slot's LoRA adapters as a folder that peft reads and writes: adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmsweep.errors import UserError
from mmsweep.models.lora import PackedLoRALinear
from mmsweep.record.files import apply_umask

PREFIX = "base_model.model."
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
UNREAD = ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "lora_bias", "fan_in_fan_out", "modules_to_save")
"""Fields of peft's configuration that change an adapter's computation or add other weights."""


def export_adapter(network: nn.Module, slot: int, folder: Path) -> None:
    """Write a slot's adapters; `PeftModel.from_pretrained(network without adapters, folder)` opens them.

    Args:
        network: the network whose submodules are adapted, such as an encoder's `network`.
    """
    from peft import LoraConfig  # seconds to import

    layers = _layers(network)
    first = next(iter(layers.values()))
    config = LoraConfig(
        r=first.down.ranks[slot],
        lora_dropout=first.dropouts[slot],
        target_modules=sorted(layers),
        bias="none",
        inference_mode=True,
    )
    config.lora_alpha = first.alphas[slot]  # type: ignore[assignment]  # peft declares int but accepts any number
    config.save_pretrained(str(folder))
    weights = {}
    for name, layer in layers.items():
        for factor, letter in ((layer.down, "A"), (layer.up, "B")):
            value = factor.slot_view(factor.weight.detach(), slot)
            weights[f"{PREFIX}{name}.lora_{letter}.weight"] = value.cpu().clone().contiguous()
    save_file(weights, folder / WEIGHTS)
    apply_umask(folder / WEIGHTS)


def import_adapter(network: nn.Module, slot: int, folder: Path) -> None:
    """Load a peft adapter into a slot, with its rank, alpha and dropout.

    Raises:
        UserError: the folder holds no LoRA adapter, or one for other linears, other shapes or a higher rank.
    """
    layers, config, weights = _layers(network), *_read(folder)
    for key in UNREAD:
        if config.get(key):
            problem = "the adapter uses an option that mmsweep does not support"
            raise UserError(problem, file=folder / CONFIG, key=key, found=config[key])
    expected = {f"{PREFIX}{name}.lora_{letter}.weight" for name in layers for letter in "AB"}
    if different := sorted(expected ^ weights.keys()):
        problem = "the adapter lacks a tensor" if different[0] in expected else "the adapter holds an unknown tensor"
        raise UserError(problem, file=folder / WEIGHTS, found=different[0])
    for name, layer in layers.items():
        try:
            layer.set_slot(slot, int(config["r"]), float(config["lora_alpha"]), float(config["lora_dropout"]))
        except ValueError as error:
            raise UserError(str(error), file=folder / CONFIG, key="r", found=config["r"]) from None
        for factor, letter in ((layer.down, "A"), (layer.up, "B")):
            view, value = (
                factor.slot_view(factor.weight.detach(), slot),
                weights[f"{PREFIX}{name}.lora_{letter}.weight"],
            )
            if view.shape != value.shape:
                raise UserError(
                    "the adapter's tensor has another shape", file=folder / WEIGHTS, key=name,
                    found=tuple(value.shape), expected=str(tuple(view.shape)),
                )  # fmt: skip
            view.copy_(value)


def _layers(network: nn.Module) -> dict[str, PackedLoRALinear]:
    layers = {name: module for name, module in network.named_modules() if isinstance(module, PackedLoRALinear)}
    if not layers:
        raise UserError("this network has no adapters", key="model.lora", found=None)
    return layers


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        return dict(config), load_file(folder / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(
            f"the adapter cannot be read ({error})", file=folder, expected=f"a folder with {CONFIG} and {WEIGHTS}"
        ) from error
