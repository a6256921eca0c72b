#!/usr/bin/env python3
"""Make the two small encoders that the package ships: `clipart_image` (a ViT) and `clipart_text` (a BERT).

    python scripts/extra_pictures.py --iconify DIR --tuxpaint DIR --out extra.npz      # pictures beside Open Clip Art
    python scripts/distill_encoders.py --pack openclipart_mm.zip --teachers DIR --pictures extra.npz \
        --wordnet /usr/share/wordnet --out mmsweep/assets/encoders [--only image|text]

TEACHERS holds `vit_s14` and `minilm_l6`, lifted from packages (docs/results/encoders.md says which). The students see
Open Clip Art's training rows only: `build_openclipart.py` decides, so validation, test and whatever resembles them are
out, with or without labels. Seeded; on one machine the same command gives the same weights.

Probe a result with `--probe`: logistic regression on the frozen class token, beside the baselines on the same rows.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from build_openclipart import assign_splits, outlines, read_pack
from distill_image import STORED, Lessons, half_whitened, standardised, teacher_features, to_input, train_image
from distill_image import new_student as new_image_student
from distill_image import save as save_image
from distill_text import cut_tokenizer, teacher_embeddings, train_text, wordnet_texts
from distill_text import new_student as new_text_student
from distill_text import save as save_text
from efficientnet import pooled_features
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer

IMAGE = {"size": 96, "patch": 16, "width": 192, "layers": 4, "inner": 384}
TEXT = {"width": 192, "layers": 2, "inner": 576}
VOCABULARY = 7000
WORDNET_TEXTS = 30_000
COMPONENTS = 256  # of EfficientNet's features
OWN_SHARE = 0.5  # of the drawn pictures, how many are Open Clip Art's
ALIKE = 0.80  # outlines' cosine from which another set's drawing resembles a held-out one (some sets share drawings)


def unlike(pixels_NCHW: Tensor, held_out_NHWC: np.ndarray) -> np.ndarray:
    """Which pictures resemble no held-out one, bool [N]."""
    held_out_KF, nearest = outlines(held_out_NHWC), []
    for part in pixels_NCHW.split(1000):
        small = F.interpolate(part.float(), size=held_out_NHWC.shape[1], mode="bicubic", antialias=True).clamp(0, 255)
        nearest.append((outlines(small.permute(0, 2, 3, 1).numpy()) @ held_out_KF.T).max(1))
    return np.concatenate(nearest) < ALIKE


def resized(pixels_NHWC: np.ndarray) -> Tensor:
    """uint8 [N,3,112,112], the size that the teacher looks at."""
    pixels_NCHW = torch.from_numpy(pixels_NHWC).permute(0, 3, 1, 2)
    if pixels_NCHW.shape[-1] == STORED:
        return pixels_NCHW.contiguous()
    parts = [F.interpolate(p.float(), size=STORED, mode="bicubic", antialias=True) for p in pixels_NCHW.split(500)]
    return torch.cat([part.clamp(0, 255).round().byte() for part in parts])


def efficientnet_lesson(pixels_NCHW: Tensor) -> list[Tensor]:
    """EfficientNet's principal components [N,COMPONENTS] of all pictures; nothing if it is not installed.

    Half whitened: between the features' own scale, where few directions are all of the loss, and whitened ones, where
    the smallest direction counts as much as the largest.
    """
    features_ND = pooled_features(pixels_NCHW.permute(0, 2, 3, 1).numpy())
    if features_ND is None:
        print("EfficientNet is not installed: its lesson is left out (scripts/efficientnet.py)", flush=True)
        return []
    return [half_whitened(torch.from_numpy(features_ND), COMPONENTS)]


def make_image(arguments: argparse.Namespace, own_NHWC: np.ndarray, kept: np.ndarray, held_out: np.ndarray) -> None:
    """Writes clipart_image. `kept`, `held_out` (bool [N]): which of the pack's pictures teach, which must not."""
    own = resized(own_NHWC[kept])
    pictures, names = [own], []
    if arguments.pictures:
        with np.load(arguments.pictures, allow_pickle=False) as extra:
            others, names = resized(extra["pixels"]), extra["names"].tolist()
        allowed = unlike(others, own_NHWC[held_out])
        print(f"other sets' drawings left out because they resemble a held-out one: {int((~allowed).sum())}")
        pictures.append(others[torch.from_numpy(allowed)])
        names = [name for name, fine in zip(names, allowed, strict=True) if fine]
    pixels_NCHW = torch.cat(pictures)
    print(f"pictures: {len(own)} of Open Clip Art, {len(names)} others with names", flush=True)
    distinct = sorted(set(names))
    number = {name: i for i, name in enumerate(distinct)}
    names_KD = teacher_embeddings(arguments.teachers / "minilm_l6", distinct) if distinct else torch.zeros(1, 384)
    cells = IMAGE["size"] // IMAGE["patch"]
    whole_NF, map_NDHW = teacher_features(arguments.teachers / "vit_s14", pixels_NCHW, cells)
    own_share = OWN_SHARE if names else 1.0
    shares = [np.full(len(own), own_share / len(own)), np.full(len(names), (1 - own_share) / max(1, len(names)))]
    lessons = Lessons(
        pixels_NCHW=pixels_NCHW,
        whole_NF=[standardised(whole_NF).float(), *efficientnet_lesson(pixels_NCHW)],
        map_NDHW=standardised(map_NDHW),
        name_N=torch.tensor([-1] * len(own) + [number[name] for name in names]),
        names_KD=names_KD,
        share_N=np.concatenate(shares),
    )
    student = new_image_student(arguments.teachers / "vit_s14", **IMAGE)
    if arguments.start:
        student.load_state_dict(AutoModel.from_pretrained(arguments.start, add_pooling_layer=False).state_dict())
    print(f"clipart_image: {sum(p.numel() for p in student.parameters()):,} parameters", flush=True)
    out = arguments.out / "clipart_image"
    train_image(student, lessons, lambda s: save_image(s, out), steps=arguments.image_steps, seed=arguments.seed)


def make_text(arguments: argparse.Namespace, rows: list[dict[str, Any]], kept: np.ndarray) -> None:
    """Writes clipart_text with its tokenizer."""
    own = sorted({row["text"] for row, keep in zip(rows, kept, strict=True) if keep and row["text"]})
    names: list[str] = []
    if arguments.pictures:
        with np.load(arguments.pictures, allow_pickle=False) as extra:
            names = sorted(set(extra["names"].tolist()))
    glosses = wordnet_texts(arguments.wordnet, WORDNET_TEXTS, np.random.default_rng(arguments.seed))
    print(f"texts: {len(own)} of Open Clip Art, {len(names)} names, {len(glosses)} of WordNet", flush=True)
    out = arguments.out / "clipart_text"
    teacher = arguments.teachers / "minilm_l6"
    pieces = cut_tokenizer(teacher, out, [(own, 20), (names, 3), (glosses, 1)], VOCABULARY)
    texts = own + names + glosses
    weight_N = np.array([4.0] * len(own) + [1.0] * len(names) + [0.7] * len(glosses))
    student = new_text_student(teacher, pieces, **TEXT)
    print(f"clipart_text: {sum(p.numel() for p in student.parameters()):,} parameters", flush=True)
    target_ND = teacher_embeddings(teacher, texts)
    tokenizer = AutoTokenizer.from_pretrained(out)
    train_text(student, tokenizer, texts, target_ND, weight_N, steps=arguments.text_steps, seed=arguments.seed)
    save_text(student, out)


@torch.no_grad()
def class_tokens(out: Path, rows: list[dict[str, Any]], own_NHWC: np.ndarray) -> dict[str, np.ndarray]:
    """The frozen class tokens of the pack's labelled rows, as openclipart_baselines.py --features reads them."""
    place = [i for i, row in enumerate(rows) if row["single"] or row["multi"]]
    found: dict[str, np.ndarray] = {"ids": np.array([rows[i]["id"] for i in place])}
    image = AutoModel.from_pretrained(out / "clipart_image", add_pooling_layer=False).eval()
    pixels_NCHW = torch.from_numpy(own_NHWC[place]).permute(0, 3, 1, 2)
    parts = [image(to_input(part)).last_hidden_state[:, 0] for part in pixels_NCHW.split(64)]
    found["image"] = torch.cat(parts).numpy()
    tokenizer = AutoTokenizer.from_pretrained(out / "clipart_text")
    text = AutoModel.from_pretrained(out / "clipart_text", add_pooling_layer=False).eval()
    texts = [rows[i]["text"] for i in place]
    batches = [
        tokenizer(texts[i : i + 64], padding=True, truncation=True, max_length=24, return_tensors="pt")
        for i in range(0, len(texts), 64)
    ]
    found["text"] = torch.cat([text(**batch).last_hidden_state[:, 0] for batch in batches]).numpy()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pack", type=Path, required=True, help="openclipart_mm.zip")
    parser.add_argument("--teachers", type=Path, required=True, help="folder with vit_s14 and minilm_l6")
    parser.add_argument("--out", type=Path, required=True, help="folder that gets clipart_image and clipart_text")
    parser.add_argument("--pictures", type=Path, help="npz of extra_pictures.py")
    parser.add_argument("--wordnet", type=Path, help="folder with WordNet's data.noun")
    parser.add_argument("--start", type=Path, help="a clipart_image to go on from, instead of a slice of the teacher")
    parser.add_argument("--only", choices=("image", "text"))
    parser.add_argument("--image-steps", type=int, default=6000)
    parser.add_argument("--text-steps", type=int, default=2500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--probe", type=Path, metavar="DIR", help="train nothing; write the class tokens there, as npz")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    rows, own_NHWC = read_pack(arguments.pack)
    if arguments.probe:
        arguments.probe.mkdir(parents=True, exist_ok=True)
        found = class_tokens(arguments.out, rows, own_NHWC)
        for name in ("image", "text"):
            np.savez(arguments.probe / f"clipart_{name}.npz", ids=found["ids"], features=found[name])
        return
    splits, _ = assign_splits(rows, own_NHWC)
    kept = np.array([split == "train" for split in splits])
    held_out = np.array([split in ("val", "test") for split in splits])
    began = time.time()
    if arguments.only != "text":
        make_image(arguments, own_NHWC, kept, held_out)
    if arguments.only != "image":
        make_text(arguments, rows, kept)
    print(f"done in {time.time() - began:.0f} s of wall time, {time.process_time():.0f} s of CPU time")


if __name__ == "__main__":
    main()
