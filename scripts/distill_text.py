"""The text half of distill_encoders.py: a reduced WordPiece vocabulary and a small BERT taught by MiniLM.

The student's class token is read by what is built on it, so it is the class token that is taught: through a linear map
(left behind afterwards) it must give the teacher's sentence embedding (mean of the tokens), and two texts must be as
similar for the student as for the teacher.
"""

from __future__ import annotations

import copy
import json
import re
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerBase

LENGTH = 48
FILES = (5, 6, 8, 13, 14, 15, 17, 18, 19, 20, 4, 9, 23, 27)
"""WordNet's lexicographer files of things one can draw: animals, artefacts, body, food, groups, places, objects,
people, phenomena, plants; then actions, cognition (subjects, symbols), quantities, substances."""


def wordnet_texts(folder: Path | None, most: int, generator: np.random.Generator) -> list[str]:
    """Nouns of things one can draw, as "noun" or "noun, synonym. gloss", drawn from WordNet's data.noun."""
    if folder is None:
        return []
    texts = []
    for line in (folder / "data.noun").read_text(encoding="utf-8", errors="replace").splitlines():
        head, _, gloss = line.partition(" | ")
        parts = head.split()
        if line.startswith(" ") or int(parts[1]) not in FILES:
            continue
        words = [parts[4 + 2 * i].replace("_", " ").lower() for i in range(int(parts[3], 16))]
        plain = re.sub(r"\([^)]*\)|\"[^\"]*\"", "", gloss.split(";")[0]).strip()
        texts.append(words[0])
        texts.append(f"{', '.join(words[:2])}. {plain}"[:120])
    order = generator.permutation(len(texts))[:most]
    return [texts[i] for i in sorted(order)]


def cut_tokenizer(teacher: Path, out: Path, weighted: list[tuple[list[str], int]], size: int) -> list[int]:
    """Writes a tokenizer that knows the `size` most useful of the teacher's pieces; returns their old numbers.

    All single characters that the teacher knows in Latin, Greek and Cyrillic script, digits and punctuation stay, so
    that a word outside the vocabulary is spelled out instead of becoming [UNK].
    """
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    state = json.loads((teacher / "tokenizer.json").read_text())
    vocabulary: dict[str, int] = state["model"]["vocab"]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    single = [p for p in vocabulary if len(p.removeprefix("##")) == 1 and ord(p[-1]) < 0x500 and p not in special]
    counts: Counter[str] = Counter()
    for texts, weight in weighted:
        for text in texts:
            for piece in tokenizer.tokenize(text):
                counts[piece] += weight
    frequent = [p for p, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    chosen = list(dict.fromkeys(special + sorted(single, key=vocabulary.__getitem__) + frequent))[:size]
    chosen += [p for p in vocabulary if p not in set(chosen) and not p.startswith("[")][: size - len(chosen)]
    number = {piece: i for i, piece in enumerate(chosen)}
    state["model"]["vocab"] = number
    for token in state["added_tokens"]:
        token["id"] = number[token["content"]]
    for name, entry in state["post_processor"]["special_tokens"].items():
        entry["ids"] = [number[name]]
    state["truncation"] = state["padding"] = None
    out.mkdir(parents=True, exist_ok=True)
    (out / "tokenizer.json").write_text(json.dumps(state, ensure_ascii=False) + "\n")
    names = {f"{t.strip('[]').lower()}_token": t for t in special}
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 64, **names}
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n")
    (out / "vocab.txt").write_text("\n".join(chosen) + "\n")
    return [vocabulary[piece] for piece in chosen]


@torch.no_grad()
def teacher_embeddings(teacher: Path, texts: list[str]) -> Tensor:
    """MiniLM's sentence embeddings (mean of the tokens), unit length, float32 [N,384]."""
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    model = AutoModel.from_pretrained(teacher, dtype=torch.float32).eval()
    result = torch.zeros(len(texts), model.config.hidden_size)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for start in range(0, len(texts), 128):
        rows = order[start : start + 128]
        batch = tokenizer(
            [texts[i] for i in rows], padding=True, truncation=True, max_length=LENGTH, return_tensors="pt"
        )
        with torch.autocast("cpu", torch.bfloat16):
            hidden_BND = model(**batch).last_hidden_state
        mask_BN1 = batch["attention_mask"][..., None]
        result[rows] = F.normalize((hidden_BND.float() * mask_BN1).sum(1) / mask_BN1.sum(1), dim=1)
    return result


def new_student(teacher: Path, pieces: list[int], width: int, layers: int, inner: int) -> BertModel:
    """A small BERT whose word embeddings are the teacher's in their first `width` principal directions."""
    config = BertConfig(
        vocab_size=len(pieces), hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // 64,
        intermediate_size=inner, max_position_embeddings=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    student = BertModel(config, add_pooling_layer=False)
    model = AutoModel.from_pretrained(teacher, dtype=torch.float32)
    words_VD = model.embeddings.word_embeddings.weight.detach()[pieces]
    centred_VD = words_VD - words_VD.mean(0)
    _, _, directions = torch.linalg.svd(centred_VD, full_matrices=False)
    reduced_VD = centred_VD @ directions[:width].T
    student.embeddings.word_embeddings.weight.data.copy_(reduced_VD / reduced_VD.std() * 0.05)
    return student


def train_text(
    student: BertModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    target_ND: Tensor,
    weight_N: np.ndarray,
    *,
    steps: int,
    batch: int = 128,
    lr: float = 1.5e-3,
    seed: int = 0,
) -> None:
    """Cosine to the teacher through a linear map, and equal similarities within the batch; cosine schedule."""
    generator = np.random.default_rng(seed)
    encoded = tokenizer(texts, truncation=True, max_length=LENGTH)["input_ids"]
    lengths = np.array([len(ids) for ids in encoded])
    head = nn.Linear(student.config.hidden_size, target_ND.shape[1])
    parameters = [*student.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.05)
    share_N = weight_N / weight_N.sum()
    student.train()
    began, average = time.time(), 0.0
    for step in range(steps):
        rows = generator.choice(len(texts), batch * 8, p=share_N)  # eight batches' worth, sorted: little padding
        rows = rows[np.argsort(lengths[rows], kind="stable")].reshape(8, batch)[generator.integers(8)]
        ids_BN = torch.zeros(batch, int(lengths[rows].max()), dtype=torch.int64)
        for i, row in enumerate(rows):
            ids_BN[i, : lengths[row]] = torch.tensor(encoded[row])
        goal_BD = target_ND[rows]
        with torch.autocast("cpu", torch.bfloat16):
            class_BD = student(input_ids=ids_BN, attention_mask=(ids_BN > 0).long()).last_hidden_state[:, 0].float()
        guess_BD = F.normalize(head(class_BD), dim=1)
        direct = 1 - (guess_BD * goal_BD).sum(1).mean()
        alike_BB = F.normalize(class_BD - class_BD.mean(0), dim=1)
        wanted_BB = F.normalize(goal_BD - goal_BD.mean(0), dim=1)
        relation = (alike_BB @ alike_BB.T - wanted_BB @ wanted_BB.T).square().mean()
        loss = direct + 5 * relation
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        average += (float(direct.detach()) - average) * (0.02 if step else 1)
        if (step + 1) % 200 == 0:
            print(f"text step {step + 1}/{steps} 1-cos {average:.4f} relation {float(relation):.4f} "
                  f"{time.time() - began:.0f} s", flush=True)  # fmt: skip
    student.eval()


def save(student: BertModel, out: Path) -> None:
    """Weights as fp16 safetensors; the config says float32, which is what they are loaded as."""
    half = copy.deepcopy(student).half()
    half.save_pretrained(out)
    config = json.loads((out / "config.json").read_text())
    config["dtype"] = "float32"
    (out / "model.safetensors").chmod(0o644)
    (out / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
