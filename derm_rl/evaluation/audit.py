"""Eyes, the last instrument of the panel: was the judge fooled in what it calls exactly right?

Readers look at random hits of the judge, enlarged, each in an order of their own, and say whether
all that was asked for can be seen. They do not learn what the rules think.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from derm_rl import provenance
from derm_rl.captions.sampling import wilson
from derm_rl.captions.verdicts import verdicts
from derm_rl.config import Config
from derm_rl.evaluation.panel import hits, seen
from derm_rl.io import read_csv
from derm_rl.training import hash_of

if TYPE_CHECKING:
    from derm_rl.captions.review_widget import Reviewer

STAGE = "05_alignment"
FOLDER = "audit"  # of the verdicts, beside the figures
QUESTION = "Can all that was asked for be seen in this image? Accept: yes. Reject: no."
ENLARGED = 8


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


def review(config: Config, reader: str) -> Reviewer:
    """Open the sheet in the review tool; show the result as the last line of a cell.

    Verdicts are kept beside the figures, in a file for each ``reader``. It resumes where it was.
    """
    from derm_rl.captions.review_widget import review

    table, images = sheet(config)
    image = table["image"]
    pairs = pd.DataFrame({"pair_id": image, "image_id": image, "conversation": image})
    pairs = pairs.assign(turn=0, language="en", source=config.data.source, question=QUESTION)
    large = images.repeat(ENLARGED, 1).repeat(ENLARGED, 2)
    return review(
        pairs.assign(answer=table["prompt"]), dict(zip(image, large, strict=True)),
        config.figures_dir / FOLDER, reader, overlap=1.0,
    )  # fmt: skip


def readings(config: Config) -> pd.DataFrame:
    """Of the published sheet, whether all can be seen: a row an image, a column a reader.

    Missing where a reader has not looked, or looked at other images.
    """
    images = read_csv(config.figures_dir / "audit.csv")["image"]
    given = verdicts(config.figures_dir / FOLDER)
    given = given.assign(visible=given["verdict"].eq("accept").astype("boolean"))
    by_reader = given.pivot(index="pair_id", columns="reader", values="visible")
    return by_reader.reindex(images).dropna(axis=1, how="all")


def metrics(config: Config) -> dict[str, Any]:
    """``panel.audit.visible``: in which share of the sheet every reader sees all, by Wilson.

    Nothing until there is a reader who has looked at every image.
    """
    if not (config.figures_dir / "audit.csv").is_file():
        return {}
    found = readings(config).dropna(axis=1)
    if found.empty:
        return {}
    visible = found.all(axis=1)
    low_high = wilson(int(visible.sum()), len(visible))
    return {"panel.audit.visible": provenance.metric(config, *low_high, csv="audit.csv")}
