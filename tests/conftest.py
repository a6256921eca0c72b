"""What every test may use: tiny encoders with random weights, saved as transformers saves them."""

from __future__ import annotations

import os

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # read when mlflow is imported, by whichever test is first

import pytest
import torch
import transformers
from transformers.models.whisper.modeling_whisper import WhisperEncoder

WIDTH = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
VOCABULARY = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *"abcdefghijklmnopqrstuvwxyz",
    *("##" + c for c in "abcdefghijklmnopqrstuvwxyz"),
]


def tiny_networks() -> dict[str, torch.nn.Module]:
    t = transformers
    whisper = dict(
        d_model=16,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=24,
        num_mel_bins=8,
        max_source_positions=10,
    )
    return {
        "clip": t.CLIPVisionModel(t.CLIPVisionConfig(image_size=16, patch_size=8, **WIDTH)),
        "vit": t.ViTModel(t.ViTConfig(image_size=16, patch_size=8, **WIDTH), add_pooling_layer=False),
        "dinov2": t.Dinov2Model(t.Dinov2Config(image_size=16, patch_size=8, **WIDTH)),
        "ast": t.ASTModel(t.ASTConfig(max_length=36, num_mel_bins=26, **WIDTH)),
        "bert": t.BertModel(t.BertConfig(vocab_size=len(VOCABULARY), max_position_embeddings=16, **WIDTH)),
        "whisper": WhisperEncoder(t.WhisperConfig(**whisper)),
        "vilt": t.ViltModel(
            t.ViltConfig(image_size=16, patch_size=8, vocab_size=len(VOCABULARY), max_position_embeddings=16, **WIDTH)
        ),
    }


@pytest.fixture(scope="session")
def encoder_folders(tmp_path_factory) -> dict[str, str]:
    """Family -> folder of a tiny encoder of that family, with random weights."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("encoders")
    for name, network in tiny_networks().items():
        for parameter in network.parameters():  # fresh transformers start near zero, where tests would see nothing
            torch.nn.init.normal_(parameter, std=0.2)
        network.eval().save_pretrained(root / name)
    for reader in ("bert", "vilt"):
        (root / reader / "vocab.txt").write_text("\n".join(VOCABULARY))
        transformers.BertTokenizer(str(root / reader / "vocab.txt")).save_pretrained(root / reader)
    return {path.name: str(path) for path in root.iterdir()}


@pytest.fixture()
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Prepared data of tests stays out of the user's cache."""
    os.environ["MMSWEEP_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def tiny_table(tmp_path_factory):
    """48 pictures of 16 pixels with a word each, and all kinds of targets, as a user would write them down."""
    import csv

    import numpy as np
    from PIL import Image

    root = tmp_path_factory.mktemp("table")
    random = np.random.default_rng(0)
    colours = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}
    rows = []
    for i in range(48):
        colour = list(colours)[i % 3]
        pixels = np.clip(np.array(colours[colour]) + random.normal(0, 30, (16, 16, 3)), 0, 255).astype("uint8")
        Image.fromarray(pixels).save(root / f"{i}.png")
        word = "abc"[i % 3] * random.integers(2, 5)
        part = "train" if i < 30 else "val" if i < 39 else "test"
        rows.append({"picture": f"{i}.png", "words": word, "kind": colour, "part": part, "score": i % 3 + 0.1,
                     "tags": f"{colour}|warm" if colour == "red" else colour})  # fmt: skip
    for name, gaps in (("whole.csv", ()), ("gaps.csv", (0, 31, 33, 40, 44))):
        with open(root / name, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            for i, row in enumerate(rows):
                gone = {"picture": ""} if i in gaps else {"words": ""} if i - 1 in gaps else {}
                writer.writerow(row | gone)
    return root


@pytest.fixture(scope="session")
def tiny_values(tiny_table, encoder_folders):
    """A whole study on the tiny table, as plain values."""
    return {
        "name": "tiny",
        "data": {
            "dataset": "manifest",
            "path": str(tiny_table / "whole.csv"),
            "modalities": {
                "image": {"kind": "image", "column": "picture"},
                "text": {"kind": "text", "column": "words"},
            },
            "target": {"task": "single_label", "column": "kind"},
            "split": {"column": "part"},
            "text": {"length": 8},
        },
        "model": {
            "encoders": {
                "image": {"source": "transformers", "name": encoder_folders["vit"]},
                "text": {"source": "transformers", "name": encoder_folders["bert"]},
            },
            "lora": {"rank": 2, "alpha": 2, "dropout": 0.1},
        },
        "method": {"name": "cmpt"},
        "train": {"epochs": 2, "batch_size": 8, "optimizer": {"lr": 1e-2}},
        "scenarios": {
            "evaluate": ["complete", {"missing": "text"}, {"missing": "image"}, {"rate": 0.5, "type": "both"}]
        },
        "search": {"method.align_weight": {"log_uniform": [0.01, 1.0]}},
    }


@pytest.fixture()
def tiny_study(tiny_values):
    from mmsweep.study import Study

    return Study.parse(tiny_values)


@pytest.fixture()
def tiny_gaps_study(tiny_study, tiny_table):
    return tiny_study.with_values({"data.path": str(tiny_table / "gaps.csv")})


@pytest.fixture()
def tiny_tasks(tiny_study):
    multi = {"data.target": {"task": "multi_label", "column": "tags"}, "scenarios.thresholds": "tuned"}
    number = {
        "data.target": {"task": "regression", "column": "score"},
        "sweep.objective": {"metric": "val/mean_missing/mae"},
    }
    return {"multi_label": tiny_study.with_values(multi), "regression": tiny_study.with_values(number)}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those that start Ray go last: it leaves signal handlers and threads of its own in this process."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)
