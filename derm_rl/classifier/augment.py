"""Augmentation as plain tensor operations on a batch, reproducible from one generator.

Beside the flips of the paper (arXiv 2503.15784), training images go through changes of exposure
and colour, blur and noise: the classifier must stay valid on images that an autoencoder decoded
and that a diffusion model left slightly noisy, or it would reward those defects.
"""

from __future__ import annotations

import torch
from torch import Tensor

BRIGHTNESS, CONTRAST, SATURATION, CHANNEL_GAIN = 0.15, 0.15, 0.2, 0.05  # ± around 1
NOISE = 0.05  # largest standard deviation, of values in [0, 1]
PATCH = 4  # px


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Randomly changed copy of square ``images`` (B, 3, S, S) in [0, 1]; each image on its own.

    Random numbers come from ``generator`` alone (a CPU generator), whatever the device.
    """
    return noise(blur(photometric(dihedral(images, generator), generator), generator), generator)


def _uniform(images: Tensor, generator: torch.Generator, low: float, high: float) -> Tensor:
    """One number per image, (B, 1, 1, 1)."""
    u = torch.rand(len(images), 1, 1, 1, generator=generator).to(images.device)
    return low + (high - low) * u


def dihedral(images: Tensor, generator: torch.Generator) -> Tensor:
    """One of the eight rotations and reflections of the square, each equally likely."""
    if images.shape[-1] != images.shape[-2]:
        raise ValueError(f"images must be square, got shape {tuple(images.shape)}")
    kind = torch.randint(8, (len(images),), generator=generator).to(images.device)
    out = torch.empty_like(images)
    for k in range(8):
        turned = torch.rot90(images[kind == k], k % 4, (-2, -1))
        out[kind == k] = turned.flip(-1) if k >= 4 else turned
    return out


def photometric(images: Tensor, generator: torch.Generator) -> Tensor:
    """Contrast about the image's mean, saturation about its grey, brightness, channel gains."""

    def around_one(spread: float) -> Tensor:
        return _uniform(images, generator, 1 - spread, 1 + spread)

    mean = images.mean((1, 2, 3), keepdim=True)
    x = mean + (images - mean) * around_one(CONTRAST)
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * around_one(SATURATION)
    gain = 1 + CHANNEL_GAIN * (2 * torch.rand(len(x), 3, 1, 1, generator=generator) - 1)
    return (x * around_one(BRIGHTNESS) * gain.to(x.device)).clamp(0, 1)


def blur(images: Tensor, generator: torch.Generator) -> Tensor:
    """Gaussian blur of half of the images: passes of the kernel [a, 2 - 2a, a] / 2, a in [0, 1/2].

    A pass adds a variance of ``a`` px² (standard deviation up to 0.7 px). Images from 128 px on
    get more passes, so that the blur keeps pace with the width of what is drawn in them.
    """
    a = _uniform(images, generator, 0.0, 0.5)
    a = a * (_uniform(images, generator, 0.0, 1.0) < 0.5)
    x = images
    for _ in range(max(1, images.shape[-1] // 64)):
        for dim in (-2, -1):
            padded = torch.cat([x.narrow(dim, 0, 1), x, x.narrow(dim, x.shape[dim] - 1, 1)], dim)
            sides = padded.narrow(dim, 0, x.shape[dim]) + padded.narrow(dim, 2, x.shape[dim])
            x = x + a * (sides / 2 - x)
    return x


def noise(images: Tensor, generator: torch.Generator) -> Tensor:
    """Gaussian noise on half of the images: of pixels, of blocks, and repeated in tiles.

    Each kind has a standard deviation of its own up to ``NOISE``. Blocks and tiles of 4 px are what
    generated images have more of than photographs: their latents are patches.
    """
    _, _, height, width = images.shape
    down, across = -(-height // PATCH), -(-width // PATCH)
    chosen = _uniform(images, generator, 0.0, 1.0) < 0.5
    x = images
    for shape, repeat in (
        ((height, width), None),
        ((down, across), None),
        ((PATCH, PATCH), (1, 1, down, across)),
    ):
        sigma = _uniform(images, generator, 0.0, NOISE) * chosen
        white = torch.randn(len(images), 3, *shape, generator=generator).to(images.device)
        if repeat:
            white = white.repeat(repeat)
        elif shape != (height, width):
            white = white.repeat_interleave(PATCH, -2).repeat_interleave(PATCH, -1)
        x = x + sigma * white[..., :height, :width]
    return x.clamp(0, 1)
