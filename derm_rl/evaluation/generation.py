"""Images for given prompts from fixed seeds: the same noise whatever the model or the batch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from tqdm import tqdm

from derm_rl import prompts, training
from derm_rl.io import read_json, reserve, set_aside, write_json
from derm_rl.pipeline import as_uint8, fingerprint, image_size


def generate(
    pipeline: StableDiffusionPipeline,
    findings: Sequence[prompts.Finding],
    images_per_prompt: int,
    seed: int,
    inference_steps: int = 50,
    guidance_scale: float = 1.0,
    eta: float = 1.0,
    batch_size: int = 32,
    size: int | None = None,
    mixed_precision: str = "no",
    progress: bool = False,
    out: str | Path | None = None,
) -> np.ndarray:
    """Images (P·n, S, S, 3) uint8 of P findings, n of each, in the order of the findings.

    Every image has its own generator, seeded from (seed, prompt, index) by :func:`image_seed`, for
    its first latent and all noise of sampling. So two pipelines, or one before and after RL, start
    from the same noise, and neither batch size nor the other prompts change an image.

    Args:
        guidance_scale: classifier-free guidance; 1 (or less) is none, as in diffusers.
        eta: 1 for the stochastic sampler DDPO trains with, 0 for deterministic DDIM.
        size: side in pixels; default: what the pipeline was made for.
        mixed_precision: of the UNet ("no", "bf16" or "fp16"); all else is in float32.
        out: ``.npy`` file to fill batch by batch, for more images than memory holds; the result is
            then a memory map. Interrupted, the same call continues where it stopped.

    Raises:
        FloatingPointError: the pipeline produced values that are not finite.
    """
    texts = [prompts.render(finding) for finding in findings for _ in range(images_per_prompt)]
    indices = [i for _ in findings for i in range(images_per_prompt)]
    size = size or image_size(pipeline)
    shape = (len(texts), size, size, 3)
    settings = dict(
        num_inference_steps=inference_steps, guidance_scale=guidance_scale, eta=eta,
        height=size, width=size, output_type="pt",
    )  # fmt: skip
    images, start = np.empty(shape, np.uint8), 0
    if out is not None:
        belongs_to = training.identity(
            "derm_rl.evaluation.generation", pipeline=fingerprint(pipeline), texts=texts,
            indices=indices, seed=seed, mixed_precision=mixed_precision, **settings,
        )  # fmt: skip
        images, start = _open(Path(out), shape, belongs_to)
    pipeline.set_progress_bar_config(disable=True)
    bar = tqdm(total=len(texts), initial=start, unit="image", mininterval=1, disable=not progress,
               desc=f"images at guidance {guidance_scale:g}")  # fmt: skip
    for i in range(start, len(texts), batch_size):
        batch = slice(i, min(i + batch_size, len(texts)))
        seeds = [image_seed(seed, *p) for p in zip(texts[batch], indices[batch], strict=True)]
        generators = [torch.Generator().manual_seed(s) for s in seeds]
        with training.autocast_unet(pipeline, mixed_precision):
            x = pipeline(prompt=texts[batch], generator=generators, **settings).images.float()
        if not torch.isfinite(x).all():
            raise FloatingPointError(
                f"the pipeline produced values that are not finite for {texts[i]!r} at guidance "
                f"{guidance_scale:g}, {inference_steps} steps"
            )
        images[batch] = as_uint8(x)
        if out is not None:
            images.flush()
            write_json(_progress(Path(out)), {"belongs_to": belongs_to, "done": batch.stop})
        bar.update(batch.stop - i)
    bar.close()
    if out is not None and _partial(Path(out)).exists():
        os.replace(_partial(Path(out)), out)
        images = np.load(out, mmap_mode="r")
    return images


def image_seed(seed: int, text: str, index: int) -> int:
    """Seed of the ``index``-th image of a prompt: ``torch.Generator().manual_seed`` takes it."""
    return training.generator("image", seed, text, index).initial_seed()


def _partial(out: Path) -> Path:
    return out.with_suffix(".partial.npy")


def _progress(out: Path) -> Path:
    return out.with_suffix(".progress.json")


def _open(out: Path, shape: tuple[int, ...], belongs_to: str) -> tuple[np.ndarray, int]:
    """Memory map to fill and the number of images already in it.

    What was begun for something else, or is torn, is set aside; what is finished stays until the
    new file is whole and takes its name.
    """
    partial, progress = _partial(out), _progress(out)
    owner, done = _state(progress)
    mine = done if owner == belongs_to else 0
    if mine and (images := _mapped(partial, "r+", shape)) is not None:
        return images, mine  # also if it is whole, and a kill came before it got its name
    if mine == shape[0] and (images := _mapped(out, "r", shape)) is not None:
        return images, mine
    if not mine and (done or not owner) and partial.is_file():
        for path in filter(Path.is_file, (partial, progress)):
            set_aside(path, "foreign", "images for another pipeline, prompts, settings or code")
    # Before the file, or its noise would pass for images of the owner before.
    write_json(progress, {"belongs_to": belongs_to, "done": 0})
    images = np.lib.format.open_memmap(partial, "w+", np.uint8, shape)
    reserve(partial)
    return images, 0


def _state(progress: Path) -> tuple[str, int]:
    """What a file of images belongs to, and how many of them are made."""
    try:
        state = read_json(progress)
        return str(state["belongs_to"]), int(state["done"])
    except FileNotFoundError:
        return "", 0
    except (ValueError, KeyError, TypeError) as error:
        set_aside(progress, "torn", f"does not say how many images are made ({error})")
        return "", 0


def _mapped(path: Path, mode: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """The images of a file; None if there is none, or it is torn, and was set aside."""
    try:
        images = np.load(path, mmap_mode=mode)
    except FileNotFoundError:
        return None
    except (ValueError, EOFError) as error:
        set_aside(path, "torn", f"not a whole file of images ({error})")
        return None
    if images.shape != shape or images.dtype != np.uint8:
        set_aside(path, "foreign", f"not images of shape {shape}")
        return None
    return images
