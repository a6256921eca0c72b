"""Loads published CMNeXt checkpoints (github.com/jamycheung/DELIVER) and MiT encoders, by a table of tensor names.

Only .safetensors files are read, because the published .pth files are pickles, which can run code when opened. To
convert a file that you trust:

    python -c "import torch, safetensors.torch as s; d = torch.load('IN.pth', map_location='cpu', weights_only=True);
    d = d.get('model_state_dict', d.get('state_dict', d));
    s.save_file({k: v.contiguous() for k, v in d.items()}, 'OUT.safetensors')"
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mmsweep.errors import UserError

HUB_ONLY = ("hub.",)
"""Prefixes of the modules in a checkpoint of MiT's encoder."""

# mmsweep's module -> the published one; {s} is the stage from 0, {n} from 1, {i} a block, {e} an extra modality.
# "…[0]" and "…[1]" are the halves of a tensor along its first axis; published keys and values are one linear.
HUB = {
    "hub.{s}.embedding.proj": "patch_embed{n}.proj",
    "hub.{s}.embedding.layer_norm": "patch_embed{n}.norm",
    "hub.{s}.blocks.{i}.layernorm_before": "block{n}.{i}.norm1",
    "hub.{s}.blocks.{i}.layernorm_after": "block{n}.{i}.norm2",
    "hub.{s}.blocks.{i}.attention.q_proj": "block{n}.{i}.attn.q",
    "hub.{s}.blocks.{i}.attention.k_proj": "block{n}.{i}.attn.kv[0]",
    "hub.{s}.blocks.{i}.attention.v_proj": "block{n}.{i}.attn.kv[1]",
    "hub.{s}.blocks.{i}.attention.o_proj": "block{n}.{i}.attn.proj",
    "hub.{s}.blocks.{i}.attention.sequence_reduction.sequence_reduction": "block{n}.{i}.attn.sr",
    "hub.{s}.blocks.{i}.attention.sequence_reduction.layer_norm": "block{n}.{i}.attn.norm",
    "hub.{s}.blocks.{i}.mlp.fc1": "block{n}.{i}.mlp.fc1",
    "hub.{s}.blocks.{i}.mlp.dwconv.dwconv": "block{n}.{i}.mlp.dwconv.dwconv",
    "hub.{s}.blocks.{i}.mlp.fc2": "block{n}.{i}.mlp.fc2",
    "hub.{s}.norm": "norm{n}",
}
EXTRAS = {
    "extras.{s}.embedding.projection": "extra_downsample_layers.{s}.proj.module",
    "extras.{s}.embedding.norms.{e}": "extra_downsample_layers.{s}.norm.ln_{e}",
    "extras.{s}.scores.{e}.depthwise": "extra_score_predictor.{s}.score_nets.{e}.0",
    "extras.{s}.scores.{e}.pointwise": "extra_score_predictor.{s}.score_nets.{e}.1",
    "extras.{s}.blocks.{i}.norm1": "extra_block{n}.{i}.norm1",
    "extras.{s}.blocks.{i}.norm2": "extra_block{n}.{i}.norm2",
    "extras.{s}.blocks.{i}.attention.depthwise": "extra_block{n}.{i}.attn.conv0",
    "extras.{s}.blocks.{i}.attention.mix": "extra_block{n}.{i}.attn.conv4",
    "extras.{s}.blocks.{i}.scale1": "extra_block{n}.{i}.layer_scale_1",
    "extras.{s}.blocks.{i}.scale2": "extra_block{n}.{i}.layer_scale_2",
    "extras.{s}.blocks.{i}.channel_mix": "extra_block{n}.{i}.c_nets.0",
    "extras.{s}.blocks.{i}.expand": "extra_block{n}.{i}.mlp.fc1",
    "extras.{s}.blocks.{i}.depthwise": "extra_block{n}.{i}.mlp.dwconv.dwconv",
    "extras.{s}.blocks.{i}.contract": "extra_block{n}.{i}.mlp.fc2",
    "extras.{s}.norm": "extra_norm{n}",
    "extras.{s}.rectification.channels.0": "FRMs.{s}.channel_weights.mlp.0",
    "extras.{s}.rectification.channels.2": "FRMs.{s}.channel_weights.mlp.2",
    "extras.{s}.rectification.places.0": "FRMs.{s}.spatial_weights.mlp.0",
    "extras.{s}.rectification.places.2": "FRMs.{s}.spatial_weights.mlp.2",
    "extras.{s}.fusion.split.0": "FFMs.{s}.cross.channel_proj1",
    "extras.{s}.fusion.split.1": "FFMs.{s}.cross.channel_proj2",
    "extras.{s}.fusion.key_value.0": "FFMs.{s}.cross.cross_attn.kv1",
    "extras.{s}.fusion.key_value.1": "FFMs.{s}.cross.cross_attn.kv2",
    "extras.{s}.fusion.join.0": "FFMs.{s}.cross.end_proj1",
    "extras.{s}.fusion.join.1": "FFMs.{s}.cross.end_proj2",
    "extras.{s}.fusion.norms.0": "FFMs.{s}.cross.norm1",
    "extras.{s}.fusion.norms.1": "FFMs.{s}.cross.norm2",
    "extras.{s}.fusion.residual": "FFMs.{s}.channel_emb.residual",
    "extras.{s}.fusion.mix.0": "FFMs.{s}.channel_emb.channel_embed.0",
    "extras.{s}.fusion.mix.1": "FFMs.{s}.channel_emb.channel_embed.1",
    "extras.{s}.fusion.mix.3": "FFMs.{s}.channel_emb.channel_embed.3",
    "extras.{s}.fusion.mix.4": "FFMs.{s}.channel_emb.channel_embed.4",
    "extras.{s}.fusion.norm": "FFMs.{s}.channel_emb.norm",
}
HEAD = {
    "head.projections.{s}": "linear_c{n}.proj",
    "head.fuse": "linear_fuse.conv",
    "head.norm": "linear_fuse.bn",
    "head.classify": "linear_pred",
}


def published_names(network: Any) -> dict[str, str]:
    """The published name of each tensor of a CMNeXt (parameters and running statistics)."""
    tables = [(HUB, "backbone."), (EXTRAS, "backbone."), (HEAD, "decode_head.")]
    modules: dict[str, str] = {}
    extras, depths = len(network.modalities) - 1, network.size.depths
    for table, prefix in tables:
        for module, published in table.items():
            for s in range(4):
                for i in range(depths[s]):
                    for e in range(max(extras, 1)):
                        numbers = {"s": s, "n": s + 1, "i": i, "e": e}
                        modules[module.format(**numbers)] = prefix + published.format(**numbers)
    names: dict[str, str] = {}
    for name in network.state_dict():
        if name.startswith("bands."):
            continue  # ours: published networks read three channels
        module, _, leaf = name.rpartition(".")
        if name in modules:  # a parameter outside a module (layer scales)
            names[name] = modules[name]
        else:
            published, bracket, half = modules[module].partition("[")
            names[name] = f"{published}.{leaf}" + (f"[{half}" if bracket else "")
    return names


def load_published(network: Any, path: Path, key: str) -> tuple[str, ...]:
    """Load a published checkpoint into a network; a file of MiT's encoder (without `backbone.`) into the hub only.

    Args:
        network: a CMNeXt.
        path: a .safetensors file.
        key: the study's key, for messages.

    Returns:
        Prefixes of the modules that the file holds.

    Raises:
        UserError: the file is missing, a pickle, or from another architecture (the error names the first tensor that is
            missing, unknown or of another shape).
    """
    if path.suffix != ".safetensors":
        raise UserError(
            "only .safetensors files are read, since others can run code when opened", key=key, file=path,
            expected="a .safetensors file", hint=f"The top of {__file__} says how to convert one that you trust.",
        )  # fmt: skip
    try:
        with safe_open(path, framework="pt") as file:
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"the weights cannot be read ({error})", key=key, file=path) from None
    hub_only = not any(name.startswith("backbone.") for name in tensors)
    state = network.state_dict()
    names = published_names(network)
    if hub_only:
        names = {target: n.removeprefix("backbone.") for target, n in names.items() if target.startswith("hub.")}
    expected = f"CMNeXt's tensors of this size, for {', '.join(network.modalities)}"
    # A deeper network, or one with more modalities, has all tensors of a smaller one. MiT's classifier is ignored.
    known = {published.partition("[")[0] for published in names.values()}
    if extra := sorted(n for n in tensors.keys() - known if not (hub_only and n.startswith("head."))):
        problem = f"a checkpoint of another architecture: {len(extra)} tensors too many"
        raise UserError(problem, key=key, file=path, found=extra[0], expected=expected)
    for target, published in names.items():
        name, bracket, half = published.partition("[")
        if name not in tensors:
            if name.endswith("num_batches_tracked"):
                continue
            raise UserError("a checkpoint of another architecture: it lacks a tensor", key=key, file=path, found=name,
                            expected=expected)  # fmt: skip
        value = tensors[name]
        if bracket:
            value = value.chunk(2)[int(half[0])]
        if value.shape != state[target].shape:
            raise UserError(f"a checkpoint of another architecture: {name}", key=key, file=path,
                            found=tuple(value.shape), expected=str(tuple(state[target].shape)))  # fmt: skip
        with torch.no_grad():
            state[target].copy_(value)
    return HUB_ONLY if hub_only else ("hub.", "extras.", "head.")
