"""Which images readers look at. Apart from the review tool, so that stage 05 does not need it."""

from __future__ import annotations

import numpy as np
import pandas as pd

from derm_rl.config import Config
from derm_rl.evaluation.panel import hits, seen
from derm_rl.io import read_csv
from derm_rl.training import hash_of

STAGE = "05_alignment"


def sample(samples: pd.DataFrame, model: str = "rl", n: int = 64, seed: int = 0) -> list[int]:
    """Rows, among those of ``model``, of ``n`` random hits of the judge: for a person to look at.

    By the judge alone, as the question is how often it was fooled; of prompts that ask for
    something, as else there is nothing to look for; in random order, so that no prompt's images lie
    together.
    """
    part = samples[samples["model"] == model].reset_index(drop=True)
    right = np.flatnonzero(hits(part)["judge"])
    right = right[seen(part)[1].any(1)[right]]
    return np.random.default_rng(seed).permutation(right)[:n].tolist()


def sheet(config: Config, n: int = 64) -> tuple[pd.DataFrame, np.ndarray]:
    """The images to look at: number, prompt, index, image_seed, image; and (n, S, S, 3) uint8."""
    samples, images = drawn(config, "rl")
    chosen = sample(samples, n=n, seed=config.seed)
    return numbered(samples.loc[chosen, ["prompt", "index", "image_seed"]], images[chosen])


def drawn(config: Config, model: str) -> tuple[pd.DataFrame, np.ndarray]:
    """Rows of stage 05's samples table of one model, and its images (N, S, S, 3) uint8."""
    folder = config.require(STAGE)
    samples = read_csv(folder / "samples.csv", dtype={"image_seed": "string"})
    images = np.load(folder / f"images_{model}.npy", mmap_mode="r")
    return samples[samples["model"] == model].reset_index(drop=True), images


def numbered(table: pd.DataFrame, images: np.ndarray) -> tuple[pd.DataFrame, np.ndarray]:
    """A sheet's table: with ``number``, in this order from 1, and ``image``; and the images.

    The column ``image`` is a hash of the pixels, so that nobody's verdict is taken for one about
    other images.
    """
    table = table.reset_index(drop=True)
    table.insert(0, "number", range(1, len(table) + 1))
    return table.assign(image=[hash_of(image)[:16] for image in images]), images
