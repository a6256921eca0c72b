"""The picture half of distill_encoders.py: a small ViT taught by a ViT-S/14 and by the names of other sets' drawings.

Three lessons, all of them left behind as linear maps afterwards:
patches   the student's 6 x 6 patch tokens give the teacher's features at the same places (moved along with the picture)
class     the student's class token gives the teacher's class token and mean patch, and what EfficientNet-Lite0 sees
names     the class token gives MiniLM's embedding of the drawing's name, and tells it from the batch's other names.
          Only drawings from outside Open Clip Art have this lesson: a class token that had learnt the training rows'
          titles by heart would look better on training rows than it is on any other.
The student starts as a slice of the teacher's first layers (every second channel, every second head).
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import Dinov2Model, ViTConfig, ViTModel

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STORED, TEACHER_LAYERS = 112, 9  # at 112 px the middle layers are the best (research/data.md §5)


def to_input(pixels_BCHW: Tensor) -> Tensor:
    """uint8 or float 0..255 [B,3,H,W] -> normalised float32."""
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    return (pixels_BCHW.float() / 255 - mean) / std


@torch.no_grad()
def teacher_features(folder: Path, pixels_NCHW: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """The teacher's class token and mean patch [N,768], and its patches on a grid [N,384,cells,cells], as fp16."""
    teacher = Dinov2Model.from_pretrained(folder, dtype=torch.float32).eval()
    del teacher.encoder.layer[TEACHER_LAYERS:]
    teacher.layernorm = nn.Identity()
    whole, maps, began = [], [], time.time()
    for chunk in pixels_NCHW.split(16):
        with torch.autocast("cpu", torch.bfloat16):
            hidden_BND = teacher(to_input(chunk)).last_hidden_state.float()
        patches_BND = hidden_BND[:, 1:]
        side = math.isqrt(patches_BND.shape[1])
        map_BDHW = patches_BND.transpose(1, 2).unflatten(2, (side, side))
        maps.append(F.interpolate(map_BDHW, size=cells, mode="bilinear", antialias=True).half())
        whole.append(torch.cat([hidden_BND[:, 0], patches_BND.mean(1)], 1).half())
        if len(whole) % 200 == 0:
            print(f"teacher {16 * len(whole)}/{len(pixels_NCHW)} pictures {time.time() - began:.0f} s", flush=True)
    return torch.cat(whole), torch.cat(maps)


def new_student(folder: Path, size: int, patch: int, width: int, layers: int, inner: int) -> ViTModel:
    """A small ViT that starts as a slice of the teacher (weight selection, Xu et al. 2024)."""
    config = ViTConfig(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // 64, intermediate_size=inner,
        image_size=size, patch_size=patch, layer_norm_eps=1e-6,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    student = ViTModel(config, add_pooling_layer=False)
    teacher = Dinov2Model.from_pretrained(folder, dtype=torch.float32)
    old, new = teacher.state_dict(), student.state_dict()
    residual = torch.arange(0, 384, 384 // width)[:width]
    heads = torch.cat([torch.arange(64) + 64 * h for h in range(0, 6, 6 // (width // 64))])[:width]
    hidden = torch.arange(0, 1536, 1536 // inner)[:inner]
    patches = F.interpolate(old["embeddings.patch_embeddings.projection.weight"], size=patch, mode="bicubic")
    side, cells = 37, size // patch
    position = old["embeddings.position_embeddings"][0]
    grid = position[1:].T.reshape(1, 384, side, side)
    grid = F.interpolate(grid, size=cells, mode="bicubic", antialias=True)[0].flatten(1).T
    new["embeddings.patch_embeddings.projection.weight"] = patches[residual] * (14 / patch) ** 2
    new["embeddings.patch_embeddings.projection.bias"] = old["embeddings.patch_embeddings.projection.bias"][residual]
    new["embeddings.position_embeddings"] = torch.cat([position[:1], grid])[None, :, residual]
    new["embeddings.cls_token"] = old["embeddings.cls_token"][..., residual]
    for i in range(layers):
        place = {"q_proj": (heads, residual), "k_proj": (heads, residual), "v_proj": (heads, residual)}
        rows = {f"attention.{k}": v for k, v in place.items()} | {"attention.o_proj": (residual, heads)}
        rows |= {"mlp.fc1": (hidden, residual), "mlp.fc2": (residual, hidden)}
        for name, (outputs, inputs) in rows.items():
            weight, bias = old[f"encoder.layer.{i}.{name}.weight"], old[f"encoder.layer.{i}.{name}.bias"]
            scale = {"attention.o_proj": "layer_scale1", "mlp.fc2": "layer_scale2"}.get(name)
            if scale:  # ViTModel has no layer scale: folded in
                factor = old[f"encoder.layer.{i}.{scale}.lambda1"]
                weight, bias = weight * factor[:, None], bias * factor
            new[f"layers.{i}.{name}.weight"] = weight[outputs][:, inputs] * (384 / width) ** 0.5
            new[f"layers.{i}.{name}.bias"] = bias[outputs]
        for ours, theirs in (("layernorm_before", "norm1"), ("layernorm_after", "norm2")):
            for kind in ("weight", "bias"):
                new[f"layers.{i}.{ours}.{kind}"] = old[f"encoder.layer.{i}.{theirs}.{kind}"][residual]
    student.load_state_dict(new)
    return student


@dataclass
class Lessons:
    """Everything about the training pictures; row i of each belongs to picture i.

    Args:
        pixels_NCHW: uint8, 112 px.
        whole_NF: each teacher's view of the whole picture, standardised per column: the ViT's class token and mean
            patch; EfficientNet's principal components.
        map_NDHW: the teacher's patches, standardised per channel, fp16.
        name_N: row of `names_KD`, or -1 where the picture has no name to learn.
        names_KD: MiniLM's embeddings of the names, unit length.
        share_N: how often a picture is drawn; sums to 1.
    """

    pixels_NCHW: Tensor
    whole_NF: list[Tensor]
    map_NDHW: Tensor
    name_N: Tensor
    names_KD: Tensor
    share_N: np.ndarray


def moved(pixels_BCHW: Tensor, map_BDHW: Tensor, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pictures flipped, scaled, turned a little and shifted; recoloured; the teacher's map moved along."""
    count = len(pixels_BCHW)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand((count, *shape), generator=generator) * (high - low) + low

    scale, angle = uniform(0.7, 1.1), uniform(-0.2, 0.2)
    flip = 1 - 2 * (uniform(0, 1) < 0.5).float()
    room = (1 - scale).abs() + 0.05
    rows = [
        torch.stack([flip * scale * angle.cos(), -scale * angle.sin(), uniform(-1, 1) * room], 1),
        torch.stack([flip * scale * angle.sin(), scale * angle.cos(), uniform(-1, 1) * room], 1),
    ]
    theta = torch.stack(rows, 1)
    grid = F.affine_grid(theta, [count, 3, size, size], align_corners=False)
    ink = F.grid_sample(255 - pixels_BCHW.float(), grid, align_corners=False)  # outside the picture is paper
    cells = map_BDHW.shape[-1]
    coarse = F.affine_grid(theta, [count, 1, cells, cells], align_corners=False)
    moved_map = F.grid_sample(map_BDHW.float(), coarse, padding_mode="border", align_corners=False)
    grey = ink.mean(1, keepdim=True).expand_as(ink)
    mixed = torch.where(uniform(0, 1, 1, 1, 1) < 0.2, grey, ink * uniform(0.8, 1.1, 3, 1, 1))
    return 255 - mixed.clamp(0, 255), moved_map


def train_image(
    student: ViTModel,
    lessons: Lessons,
    keep: Callable[[ViTModel], None],
    *,
    steps: int,
    batch: int = 64,
    lr: float = 1e-3,
    seed: int = 0,
) -> None:
    """AdamW, one cycle of the learning rate; `keep` gets the weights' running average, now and then and at the end."""
    torch.manual_seed(seed)
    width, size = student.config.hidden_size, student.config.image_size
    to_whole = nn.ModuleList([nn.Linear(width, whole_NF.shape[1]) for whole_NF in lessons.whole_NF])
    to_map = nn.Linear(width, lessons.map_NDHW.shape[1])
    to_name = nn.Sequential(nn.Linear(width, 384), nn.GELU(), nn.Linear(384, lessons.names_KD.shape[1]))
    sharpness = nn.Parameter(torch.tensor(math.log(10.0)))
    trained = nn.ModuleList([student, to_whole, to_map, to_name])
    parameters = [*trained.parameters(), sharpness]
    optimizer = torch.optim.AdamW(parameters, lr, weight_decay=0.05, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.08)
    generator, draw = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    averaged = AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(0.99))
    student.train()
    began, average = time.time(), np.zeros(3)
    for step in range(steps):
        rows = torch.from_numpy(draw.choice(len(lessons.share_N), batch, p=lessons.share_N))
        pixels_BCHW, map_BDHW = moved(lessons.pixels_NCHW[rows], lessons.map_NDHW[rows], size, generator)
        seen = torch.randperm(map_BDHW[0, 0].numel(), generator=generator)
        if step < 0.6 * steps:  # half the patches at half the cost
            seen = seen[: len(seen) // 2]
        goal_BND = map_BDHW.flatten(2).transpose(1, 2)[:, seen]
        with torch.autocast("cpu", torch.bfloat16):
            hidden_BND = encoded(student, to_input(pixels_BCHW), seen)
            map_BND = to_map(hidden_BND[:, 1:]).float()
            whole_BF = [head(hidden_BND[:, 0]).float() for head in to_whole]
            named = lessons.name_N[rows] >= 0
            name_BD = F.normalize(to_name(hidden_BND[named, 0]).float(), dim=1)
        losses = [
            F.smooth_l1_loss(map_BND, goal_BND),
            torch.stack([F.smooth_l1_loss(a, b[rows]) for a, b in zip(whole_BF, lessons.whole_NF, strict=True)]).sum(),
            name_loss(name_BD, lessons.names_KD[lessons.name_N[rows][named]], sharpness.exp().clamp(max=50)),
        ]
        loss = losses[0] + 2 * losses[1] + 0.3 * losses[2]
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        averaged.update_parameters(student)
        average += (np.array([float(part.detach()) for part in losses]) - average) * (0.02 if step else 1)
        if (step + 1) % 100 == 0:
            print(f"image step {step + 1}/{steps} patches, class, names {average.round(4)} "
                  f"{time.time() - began:.0f} s, {time.process_time():.0f} s of CPU", flush=True)  # fmt: skip
        if (step + 1) % 300 == 0 or step + 1 == steps:
            keep(averaged.module)


def encoded(student: ViTModel, x_BCHW: Tensor, seen: Tensor) -> Tensor:
    """The student's last hidden state with the class token and the patches `seen` only."""
    tokens_BND = student.embeddings(x_BCHW)
    tokens_BND = torch.cat([tokens_BND[:, :1], tokens_BND[:, 1:][:, seen]], 1)
    for layer in student.layers:
        tokens_BND = layer(tokens_BND)
    return student.layernorm(tokens_BND)


def name_loss(guess_BD: Tensor, name_BD: Tensor, sharpness: Tensor) -> Tensor:
    """Cross-entropy against the batch's names; a name as good as the same (cosine above .9) counts as right too."""
    same_BB = (name_BD @ name_BD.T > 0.9).float()
    wanted_BB = same_BB / same_BB.sum(1, keepdim=True)
    return F.cross_entropy(guess_BD @ name_BD.T * sharpness, wanted_BB)


def standardised(values: Tensor) -> Tensor:
    """Mean 0 and deviation 1 per column (dimension 1), kept in the input's type."""
    over = [0, *range(2, values.ndim)]
    sample = values[:: max(1, len(values) // 4000)].float()
    mean, deviation = sample.mean(over, keepdim=True), sample.std(over, keepdim=True)
    return torch.cat([((part.float() - mean) / (deviation + 1e-6)).to(values.dtype) for part in values.split(2000)])


def half_whitened(features_ND: Tensor, components: int) -> Tensor:
    """The first principal components [N,components], each divided by the root of its deviation; mean square 1.

    Mean and directions are those of every fourth picture: enough of them, and the decomposition takes a quarter.
    """
    centred_ND = features_ND.float() - features_ND[::4].float().mean(0)
    _, _, directions = torch.linalg.svd(centred_ND[::4], full_matrices=False)
    if len(directions) < components:
        raise ValueError(f"{len(features_ND)} pictures are too few for {components} components")
    values_NF = centred_ND @ directions[:components].T
    values_NF = values_NF / values_NF.std(0).sqrt()
    return values_NF / values_NF.square().mean().sqrt()


def save(student: ViTModel, out: Path) -> None:
    """Weights as fp16 safetensors; the config says float32, which is what they are loaded as."""
    copy.deepcopy(student).half().save_pretrained(out)
    config = json.loads((out / "config.json").read_text())
    config["dtype"] = "float32"
    (out / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    size = student.config.image_size
    (out / "model.safetensors").chmod(0o644)
    settings = {
        "image_processor_type": "ViTImageProcessor", "do_resize": True, "do_rescale": True, "do_normalize": True,
        "size": {"height": size, "width": size}, "image_mean": list(MEAN), "image_std": list(STD),
    }  # fmt: skip
    (out / "preprocessor_config.json").write_text(json.dumps(settings, indent=1) + "\n")
