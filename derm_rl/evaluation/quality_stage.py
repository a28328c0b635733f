"""Stage 06: how close are the images to real ones, and are they still as varied after RL?

The images are those that stage 05 made and judged. Two sets of others stand beside them, both of
what the models should draw: fresh phantoms, as many of each prompt as were generated, or the two
halves of the real test images (by lesion). Against the first, ``reference``, everything is
measured; the second, ``held_out``, shows how well any set could do: the ceiling.

Files: ``quality.csv`` (every measure of every set, in each feature space, of all images and by
diagnosis), ``prompts.csv`` (by prompt), ``images.csv`` (which images lie among the reference, and
which of the reference are covered), ``reference.npy``, ``held_out.npy``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from derm_rl import classifier, data, prompts, provenance
from derm_rl.evaluation import bootstrap, features, quality
from derm_rl.evaluation.alignment_stage import MODELS
from derm_rl.evaluation.bootstrap import Interval
from derm_rl.evaluation.quality import Neighbours
from derm_rl.io import atomic_path, read_csv, write_csv

if TYPE_CHECKING:
    from derm_rl.config import Config

STAGE = "06_quality"
K = 5  # neighbours of precision, recall, density and coverage
ALIKE = 8  # images of a prompt whose perceptual distances are measured: 28 pairs
BLOCK = 128  # images between two moves of the progress bar
OF_REFERENCE = ("recall", "coverage")  # these say something of each real image, the others not


class Images(NamedTuple):
    """A set of images (N, S, S, 3) uint8, and the prompt (N,) that describes each."""

    pixels: np.ndarray
    prompts: list[str]


def run(config: Config, progress: bool = True) -> Path:
    """Measure the images of stage 05; returns the folder of stage 06."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    judge = classifier.load(config.require("02_reward_classifier") / "judge", device)
    source, folder = config.require("05_alignment"), config.stage_dir(STAGE)
    samples = read_csv(source / "samples.csv", dtype={"image_seed": "string"})
    texts = samples["prompt"][samples["model"] == "rl"].tolist()
    sets = {m: Images(np.load(source / f"images_{m}.npy", mmap_mode="r"), texts) for m in MODELS}
    for name, images in zip(("reference", "held_out"), _others(config, texts), strict=True):
        sets[name] = images
        with atomic_path(folder / f"{name}.npy") as temporary, open(temporary, "wb") as file:
            np.save(file, images.pixels)
    told = {name: images.prompts for name, images in sets.items()}
    spaces = {
        "judge": judge.features,
        "imagenet": lambda images: features.imagenet(images, device=device),
    }
    parts = []
    for space, embed in spaces.items():
        found = {}
        for name, images in sets.items():
            blocks = range(0, len(images.pixels), BLOCK)
            bar = tqdm(
                blocks, desc=f"{space} features of {name}", unit="block", mininterval=1,
                disable=None if progress else True,
            )  # fmt: skip
            found[name] = np.concatenate([embed(images.pixels[i : i + BLOCK]) for i in bar])
        # The judge's channels differ in scale by a hundred; ImageNet's are left as FID has them.
        if space == "judge":
            found = {k: quality.standardized(x, found["reference"]) for k, x in found.items()}
        parts.append(measured(space, found, told, config.alignment.bootstrap, config.seed))
    parts.append(_perceptual(sets, device, config.alignment.bootstrap, config.seed))
    tables = {
        name: pd.concat([part[name] for part in parts if name in part], ignore_index=True)
        for name in ("quality", "prompts", "images")
    }
    for name, table in tables.items():
        write_csv(folder / f"{name}.csv", table)
    metrics = headline(tables["quality"])
    provenance.record_metrics(
        config,
        STAGE,
        {n: provenance.metric(config, *found, csv="quality.csv") for n, found in metrics.items()},
    )
    provenance.stamp(config, STAGE, images=sum(map(len, told.values())))
    _summarize(tables["quality"])
    return folder


def _others(config: Config, texts: Sequence[str]) -> Iterator[Images]:
    """The reference and the held-out images."""
    if config.data.source == "phantom":
        from derm_rl.data import phantom

        findings = [prompts.parse(text) for text in texts]
        for k in (1, 2):  # other lesions than stage 05's, and than each other's
            seed = config.alignment.seed + config.data.phantom_seed + k
            paths = [
                phantom.path_of(seed, i, f.diagnosis, f.artifacts) for i, f in enumerate(findings)
            ]
            yield Images(phantom.render_paths(paths, config.image_size)[0], list(texts))
        return
    test = data.load(config, "test")
    lesions = test.lesion_ids
    order = np.random.default_rng(config.seed).permutation(np.unique(lesions))
    first = np.isin(lesions, order[: len(order) // 2])
    for rows in (np.flatnonzero(first), np.flatnonzero(~first)):
        yield Images(
            np.asarray(test.images[rows]), [prompts.render(test.findings[i]) for i in rows]
        )


# -------------------------------------------------------------------------------- the measures


def measured(
    space: str, found: dict[str, np.ndarray], told: dict[str, list[str]], n: int, seed: int
) -> dict[str, pd.DataFrame]:
    """Tables ``quality``, ``prompts`` and ``images`` of features (N, D) by set, in one space.

    What is measured image by image has an interval by resampling images within their prompt; the
    gain of RL is paired by noise, or by the reference's image. Distances of distributions have no
    interval, as resampling biases them.
    """
    texts = {name: np.asarray(t) for name, t in told.items()} | {"gain": np.asarray(told["rl"])}
    rows, by_prompt, images = [], [], []
    diagnoses = sorted({prompts.parse(t).diagnosis for t in told["reference"]})
    for group in ("all", *diagnoses):
        inside = {k: _of_diagnosis(t, group) for k, t in texts.items()}
        if min(map(np.count_nonzero, inside.values())) <= K:
            continue  # too few real images of this diagnosis to have neighbours
        real = found["reference"][inside["reference"]]
        shown = {m: found[m][inside[m]] for m in (*MODELS, "held_out")}
        near = {name: quality.neighbours(real, x, K) for name, x in shown.items()}
        pairs = zip(near["stage1"], near["rl"], strict=True)
        near["gain"] = Neighbours(*(after * 1.0 - before for before, after in pairs))
        for name, values in near.items():
            where = {"features": space, "group": group, "model": name}
            for measure, value in values._asdict().items():
                of = "reference" if measure in OF_REFERENCE else name
                strata = texts[of][inside[of]]
                interval = bootstrap.interval(value, strata=strata, n=n, seed=seed)
                rows.append(where | {"measure": measure} | interval._asdict())
                if group == "all":
                    by_prompt.append(_by_prompt(space, name, measure, value, strata))
            for measure, value in _distances(real, shown[name]) if name in shown else ():
                rows.append(where | {"measure": measure, "value": value, "n": len(shown[name])})
        if group == "all":
            for name in MODELS:
                told_of = {"precision": name, "coverage": "reference"}
                for measure, of in told_of.items():
                    values = getattr(near[name], measure)
                    frame = pd.DataFrame({"prompt": texts[of], "inside": values.astype(int)})
                    frame.insert(0, "measure", measure)
                    frame.insert(0, "model", name)
                    frame.insert(0, "features", space)
                    images.append(frame.reset_index(names="image"))
    spreads = {m: quality.spread(found[m], told[m]) for m in MODELS}
    if all(told["reference"].count(text) > 1 for text in set(told["reference"])):
        spreads["held_out"] = quality.spread(found["held_out"], told["held_out"])
    table, prompt_rows = _spreads(space, spreads, sorted(set(told["rl"])), n, seed)
    return {
        "quality": pd.concat([pd.DataFrame(rows), table], ignore_index=True),
        "prompts": pd.concat([*by_prompt, prompt_rows], ignore_index=True),
        "images": pd.concat(images, ignore_index=True),
    }


def _of_diagnosis(texts: np.ndarray, group: str) -> np.ndarray:
    return np.array([group in ("all", prompts.parse(text).diagnosis) for text in texts])


def _distances(real: np.ndarray, generated: np.ndarray) -> Iterator[tuple[str, float]]:
    yield "kid", quality.kernel_distance(real, generated, subsets=20)[0]
    yield "mmd", quality.mmd(real, generated)
    # A covariance of more features than images is singular, and its Fréchet distance a matter of
    # how many images there are. It is still what everybody reports, so: beside its ceiling.
    yield "fid", quality.frechet_distance(real, generated)


def _by_prompt(
    space: str, model: str, measure: str, values: np.ndarray, texts: np.ndarray
) -> pd.DataFrame:
    mean = pd.Series(values, dtype=float).groupby(texts, sort=True).mean()
    frame = mean.rename("value").rename_axis("prompt").reset_index()
    return frame.assign(features=space, model=model, measure=measure)


def _spreads(
    space: str, spreads: dict[str, np.ndarray], texts: Sequence[str], n: int, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of measure ``spread``, and ``spread_ratio`` (RL over stage 1), prompts resampled."""
    rows = [
        {"model": name, "measure": "spread"} | bootstrap.interval(values, n=n, seed=seed)._asdict()
        for name, values in spreads.items()
    ]
    both = np.stack([spreads["rl"], spreads["stage1"]], 1)
    ratio = bootstrap.interval(both, bootstrap.ratio, n=n, seed=seed)
    rows.append({"model": "gain", "measure": "spread_ratio"} | ratio._asdict())
    by_prompt = [
        pd.DataFrame({"prompt": texts, "value": values, "model": name, "measure": "spread"})
        for name, values in spreads.items()
        if len(values) == len(texts)
    ]
    table = pd.DataFrame(rows).assign(features=space, group="all")
    return table, pd.concat(by_prompt).assign(features=space)


def _perceptual(sets: dict[str, Images], device: str, n: int, seed: int) -> dict[str, pd.DataFrame]:
    """Mean perceptual distance (unweighted LPIPS) between the first images of each prompt."""
    spreads = {}
    for name, (pixels, told) in sets.items():
        if name == "reference":
            continue
        texts = np.asarray(told)
        groups = {text: np.flatnonzero(texts == text)[:ALIKE] for text in sorted(set(told))}
        if min(map(len, groups.values())) < 2:
            continue  # real images: a prompt that a single one shows
        found = [
            # One prompt at a time: a vector of a whole image has 345,000 numbers.
            quality.spread(features.perceptual(pixels[rows], device=device) , [text] * len(rows),
                           squared=True)[0]
            for text, rows in groups.items()
        ]  # fmt: skip
        spreads[name] = np.array(found)
    table, by_prompt = _spreads("lpips", spreads, sorted(set(sets["rl"].prompts)), n, seed)
    return {"quality": table, "prompts": by_prompt}


# --------------------------------------------------------------------------------- the results


def headline(table: pd.DataFrame) -> dict[str, Interval]:
    """``quality.<features>.<measure>.{stage1,rl,gain,held_out}`` and ``quality.spread.ratio``."""
    out = {}
    for row in table[table["group"] == "all"].itertuples():
        name = f"quality.{row.features}.{row.measure}.{row.model}"
        if row.measure == "spread_ratio":
            name = f"quality.spread.ratio{'' if row.features == 'judge' else '.' + row.features}"
        out[name] = Interval(row.value, row.low, row.high, row.n)
    return out


def _summarize(table: pd.DataFrame) -> None:
    shown = table[table["group"] == "all"].pivot(
        index=["features", "measure"], columns="model", values="value"
    )
    print(shown.reindex(columns=[*MODELS, "gain", "held_out"]).round(3).to_string(na_rep=""))
