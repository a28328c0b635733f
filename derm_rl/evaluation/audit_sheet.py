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
    """The images to look at: number, prompt, index, image_seed, image; and (n, S, S, 3) uint8.

    The column ``image`` is a hash of the pixels, so that nobody's verdict is taken for one about
    other images.
    """
    folder = config.require(STAGE)
    samples = read_csv(folder / "samples.csv", dtype={"image_seed": "string"})
    chosen = sample(samples, n=n, seed=config.seed)
    images = np.load(folder / "images_rl.npy", mmap_mode="r")[chosen]
    part = samples[samples["model"] == "rl"].reset_index(drop=True)
    table = part.loc[chosen, ["prompt", "index", "image_seed"]].reset_index(drop=True)
    table.insert(0, "number", range(1, len(chosen) + 1))
    return table.assign(image=[hash_of(image)[:16] for image in images]), images
