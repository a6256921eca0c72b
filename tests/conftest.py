"""What every test may use: tiny encoders with random weights, saved as transformers saves them."""

from __future__ import annotations

import os

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

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
    (root / "bert" / "vocab.txt").write_text("\n".join(VOCABULARY))
    transformers.BertTokenizer(str(root / "bert" / "vocab.txt")).save_pretrained(root / "bert")
    return {path.name: str(path) for path in root.iterdir()}


@pytest.fixture()
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
