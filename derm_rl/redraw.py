"""Images redrawn by a diffusion model: what a classifier must know before it judges generated ones.

Noised part of the way and denoised again with their caption (SDEdit, arXiv 2108.01073), images keep
what they show and where, but by the model's hand. A classifier that knows only the originals takes
the rough rim of a generated bubble for hairs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from tqdm import tqdm

from derm_rl.pipeline import as_uint8
from derm_rl.settings import Redraw
from derm_rl.training import autocast_unet, generator


def redraw(
    pipe: StableDiffusionPipeline,
    images: np.ndarray,
    captions: Sequence[str],
    settings: Redraw,
    seed: int,
    progress: bool = True,
) -> np.ndarray:
    """Copy of ``images`` (N, S, S, 3) uint8 in which a random share of the rows is redrawn.

    Args:
        captions: (N,) prompt of each image.
        settings: section ``classifier.redrawn`` of a preset.
        seed: which rows, and the noise; same seed, same copy.
    """
    painter = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    painter.set_progress_bar_config(disable=True)
    out, random = np.array(images), generator("redraw", seed)
    share = round(settings.share * len(images))
    rows = torch.randperm(len(images), generator=random)[:share].sort().values
    for batch in tqdm(
        rows.split(settings.batch_size), desc="redrawn", mininterval=1, disable=not progress
    ):
        x = torch.from_numpy(out[batch.numpy()]).permute(0, 3, 1, 2).float() / 255
        with autocast_unet(pipe, "bf16"):
            drawn = painter(
                [captions[i] for i in batch],
                image=x,
                strength=settings.strength,
                num_inference_steps=settings.inference_steps,
                guidance_scale=settings.guidance_scale,
                eta=1.0,
                generator=random,
                output_type="pt",
            ).images
        out[batch.numpy()] = as_uint8(drawn)
    return out
