"""Stage 06: how close are the images to real ones, and are they still as varied after RL?

Four sets of images are compared, as many of each prompt in each: stage 1's and RL's of stage 05,
from the same noise; ``reference``, what they should look like; and ``held_out``, more of the same,
which shows what real images get. The latter two are fresh phantoms, or images of the two halves of
the real test split (by lesion); there, a prompt counts with as many images as both halves have.

Files: ``quality.csv`` (every measure of every set, in each feature space, of all images and by
diagnosis), ``prompts.csv`` (within a prompt), ``images.csv`` (which images lie among the reference,
and which of the reference are covered), ``front.csv`` (precision and coverage at each guidance and
adapter scale that stage 05 tried, beside its APR there), ``reference.npy``, ``held_out.npy``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from derm_rl import classifier, data, prompts, provenance
from derm_rl.evaluation import bootstrap, features, quality
from derm_rl.evaluation.alignment_stage import MODELS, front_file
from derm_rl.evaluation.bootstrap import Interval
from derm_rl.evaluation.quality import Neighbours
from derm_rl.io import atomic_path, read_csv, write_csv

if TYPE_CHECKING:
    from derm_rl.config import Config

STAGE = "06_quality"
K = 5  # neighbours of precision, recall, density and coverage
MOST = 64  # images of a prompt in each set: distances between all of 4,000 images fit in memory
ALIKE = 8  # images of a prompt whose perceptual distances are measured: 28 pairs
BLOCK = 128  # images between two moves of the progress bar
OTHERS = ("reference", "held_out")
POINT = ("model", "guidance_scale", "adapter_scale", "eta")
OF_REFERENCE = ("recall", "coverage")  # these say something of each real image, the others not


def run(config: Config, progress: bool = True) -> Path:
    """Measure the images of stage 05; returns the folder of stage 06.

    Raises:
        ValueError: there are too few real images to compare with.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    judge = classifier.load(config.require("02_reward_classifier") / "judge", device)
    source, folder = config.require("05_alignment"), config.stage_dir(STAGE)
    samples = read_csv(source / "samples.csv", dtype={"image_seed": "string"})
    made = samples["prompt"][samples["model"] == "rl"].to_numpy()
    sets, texts, lesions = _others(config, made)
    if len(texts) <= K:
        raise ValueError(
            f"{len(texts)} real test images show what a prompt asks for, in both halves of the "
            f"split: stage 06 needs more than {K}; give it more test images (data.split.test)"
        )
    # Of each prompt the first images, the same of both models.
    rows = np.concatenate([np.flatnonzero(made == t)[:n] for t, n in Counter(texts).items()])
    for model in MODELS:
        sets[model] = np.load(source / f"images_{model}.npy", mmap_mode="r")[rows]
    for name in OTHERS:
        with atomic_path(folder / f"{name}.npy") as temporary, open(temporary, "wb") as file:
            np.save(file, sets[name])
    spaces = {
        "judge": judge.features,
        "imagenet": lambda images: features.imagenet(images, device=device),
    }
    if features.published_file("inception").is_file():
        spaces["inception"] = lambda images: features.published("inception", images, device=device)
    points = read_csv(source / "front.csv")
    few, of_reference = _few(made, texts, config.alignment.front_images_per_prompt)
    if len(few) <= K:
        raise ValueError(
            f"a point of the front has {len(few)} images: stage 06 needs more than {K}; raise "
            "alignment.front_images_per_prompt"
        )
    files = points[list(POINT)].itertuples(index=False, name=None)
    fronts = {point: np.load(source / front_file(*point), mmap_mode="r")[few] for point in files}
    n, seed, parts = config.alignment.bootstrap, config.seed, []
    for space, embed in spaces.items():
        found = {}
        for name, images in (sets | fronts).items():
            what = (
                name
                if isinstance(name, str)
                else "{} at guidance {:g}, adapter {:g}, η {:g}".format(*name)
            )
            bar = tqdm(
                range(0, len(images), BLOCK), desc=f"{space} features of {what}", unit="block",
                mininterval=1, disable=None if progress else True,
            )  # fmt: skip
            found[name] = np.concatenate([embed(images[i : i + BLOCK]) for i in bar])
        # The judge's channels differ in scale by a hundred; ImageNet's are left as FID has them.
        if space == "judge":
            found = {k: quality.standardized(x, found["reference"]) for k, x in found.items()}
        at = {point: found.pop(point) for point in fronts}
        at["held_out", np.nan, np.nan, np.nan] = found["held_out"][of_reference]
        groups = None if lesions is None else lesions[of_reference]
        parts.append(measured(space, found, texts, n, seed, lesions, rows))
        parts[-1]["front"] = _front(space, found["reference"][of_reference], at, n, seed, groups)
    pairs = {"perceptual": features.perceptual}
    if features.published_file("lpips").is_file():
        pairs["lpips"] = partial(features.published, "lpips")
    for space, embed in pairs.items():
        parts.append(_pairs(space, partial(embed, device=device), sets, texts, n, seed))
    tables = {
        name: pd.concat([part[name] for part in parts if name in part], ignore_index=True)
        for name in ("quality", "prompts", "images", "front")
    }
    tables["front"] = tables["front"].merge(points, how="left", on=list(POINT))
    for name, table in tables.items():
        write_csv(folder / f"{name}.csv", table)
    metrics = headline(tables["quality"])
    provenance.record_metrics(
        config,
        STAGE,
        {k: provenance.metric(config, *found, csv="quality.csv") for k, found in metrics.items()},
    )
    provenance.stamp(config, STAGE, images_in_each_set=len(texts))
    _summarize(tables["quality"])
    return folder


def _others(
    config: Config, made: np.ndarray
) -> tuple[dict[str, np.ndarray], list[str], np.ndarray | None]:
    """Images of ``OTHERS`` by name, the prompt of each (the same in both), lesions of the first."""
    most = Counter({text: min(n, MOST) for text, n in Counter(made.tolist()).items()})
    if config.data.source == "phantom":
        from derm_rl.data import phantom

        texts = sorted(most.elements())
        findings = [prompts.parse(text) for text in texts]
        sets = {}
        for k, name in enumerate(OTHERS, start=1):  # other lesions than stage 05's
            seed = config.alignment.seed + config.data.phantom_seed + k
            paths = [
                phantom.path_of(seed, i, f.diagnosis, f.artifacts) for i, f in enumerate(findings)
            ]
            sets[name] = phantom.render_paths(paths, config.image_size)[0]
        return sets, texts, None
    test = data.load(config, "test")
    told = np.array([prompts.render(finding) for finding in test.findings])
    order = np.random.default_rng(config.seed).permutation(np.unique(test.lesion_ids))
    first = np.isin(test.lesion_ids, order[: len(order) // 2])
    halves = [Counter(told[half].tolist()) for half in (first, ~first)]
    shared = halves[0] & halves[1] & most
    texts = sorted(shared.elements())
    rows = [
        np.concatenate([np.flatnonzero(half & (told == t))[: shared[t]] for t in sorted(shared)])
        if shared
        else np.empty(0, int)
        for half in (first, ~first)
    ]
    sets = {name: np.asarray(test.images[r]) for name, r in zip(OTHERS, rows, strict=True)}
    return sets, texts, test.lesion_ids[rows[0]]


def _few(made: np.ndarray, texts: Sequence[str], n: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a point of the front, and rows of the reference: as many of each prompt in both.

    Args:
        made: prompts of stage 05's images, all of one prompt in a row.
        texts: prompt of each image of the reference.
        n: images of each prompt at a point of the front.
    """
    few, of_reference = [], []
    for k, text in enumerate(dict.fromkeys(made.tolist())):
        at = np.flatnonzero(np.asarray(texts) == text)[:n]
        few.append(k * n + np.arange(len(at)))
        of_reference.append(at)
    return np.concatenate(few), np.concatenate(of_reference)


def _front(
    space: str,
    reference: np.ndarray,
    at: dict[tuple, np.ndarray],
    n: int,
    seed: int,
    lesions: np.ndarray | None,
) -> pd.DataFrame:
    """Precision and coverage of features ``at`` each point, with the bounds of few images."""
    rows = []
    for point, generated in at.items():
        near = quality.neighbours(reference, generated, K)
        row = dict(zip(POINT, point, strict=True)) | {"features": space}
        for measure, groups in (("precision", None), ("coverage", lesions)):
            value = getattr(near, measure)
            found = bootstrap.interval(value, groups=groups, n=n, seed=seed)
            row |= bootstrap.columns(measure, found)
        rows.append(row)
    return pd.DataFrame(rows)


# -------------------------------------------------------------------------------- the measures


def measured(
    space: str,
    found: dict[str, np.ndarray],
    told: Sequence[str],
    n: int,
    seed: int,
    lesions: np.ndarray | None = None,
    rows: np.ndarray | None = None,
) -> dict[str, pd.DataFrame]:
    """Tables ``quality``, ``prompts`` and ``images`` of features (N, D) by set, in one space.

    Intervals are by resampling the images that a measure averages over, with the other set of
    images as it is: precision and density over generated ones, recall and coverage over real ones
    (by lesion). The gain of RL is paired, by noise or by the real image. So they do not hold what
    another draw of noise, or another run of RL, would change: for that, compare seeds. Distances of
    distributions have no interval, as resampling biases them.

    Args:
        told: prompt (N,) of each image, the same in all sets.
        lesions: (N,) of the reference; default: each image is of another.
        rows: (N,) where each generated image stands in stage 05's files; default: 0, 1, …
    """
    texts = np.asarray(told)
    rows = np.arange(len(texts)) if rows is None else rows
    generated = (*MODELS, "held_out")
    table, within, images = [], [], []
    for group in ("all", *sorted({prompts.parse(t).diagnosis for t in told})):
        inside = np.array([group in ("all", prompts.parse(t).diagnosis) for t in told])
        if np.count_nonzero(inside) <= K:
            continue
        near = _near({name: x[inside] for name, x in found.items()})
        for name, values in near.items():
            where = {"features": space, "group": group, "model": name}
            for measure, value in values._asdict().items():
                groups = (
                    lesions[inside] if lesions is not None and measure in OF_REFERENCE else None
                )
                interval = bootstrap.interval(value, groups=groups, n=n, seed=seed)
                table.append(where | {"measure": measure} | interval._asdict())
        for name in generated:
            where = {"features": space, "group": group, "model": name}
            both = found["reference"][inside], found[name][inside]
            for measure, value in _distances(*both, whole=group == "all"):
                table.append(where | {"measure": measure, "value": value, "n": inside.sum()})
        if group == "all":
            for name in MODELS:
                for measure, at in (("precision", rows), ("coverage", np.arange(len(texts)))):
                    of = {"features": space, "model": name, "measure": measure}
                    shown = {"image": at, "prompt": texts}
                    value = getattr(near[name], measure).astype(int)
                    images.append(pd.DataFrame(of | shown | {"inside": value}))
    for text, count in Counter(told).items():
        if count > K:
            near = _near({name: x[texts == text] for name, x in found.items()})
            where = {"features": space, "prompt": text}
            for name, values in near.items():
                for measure, value in values._asdict().items():
                    within.append(
                        where | {"model": name, "measure": measure, "value": value.mean()}
                    )
    several = np.array([Counter(told)[t] > 1 for t in told])
    spreads = {name: quality.spread(found[name][several], texts[several]) for name in generated}
    spread, by_prompt = _spreads(space, spreads, sorted(set(texts[several].tolist())), n, seed)
    return {
        "quality": pd.concat([pd.DataFrame(table), spread], ignore_index=True),
        "prompts": pd.concat([pd.DataFrame(within), by_prompt], ignore_index=True),
        "images": pd.concat(images, ignore_index=True),
    }


def _near(found: dict[str, np.ndarray]) -> dict[str, Neighbours]:
    """Neighbours of each set but the reference, image by image; ``gain`` is RL minus stage 1."""
    near = {
        name: quality.neighbours(found["reference"], x, K)
        for name, x in found.items()
        if name != "reference"
    }
    pairs = zip(near["stage1"], near["rl"], strict=True)
    return near | {"gain": Neighbours(*(after * 1.0 - before for before, after in pairs))}


def _distances(real: np.ndarray, generated: np.ndarray, whole: bool) -> Iterator[tuple[str, float]]:
    yield "kid", quality.kernel_distance(real, generated, subsets=20)[0]
    yield "mmd", quality.mmd(real, generated)
    # A covariance of more features than images is singular, and its Fréchet distance a matter of
    # how many images there are. Of all images it is what everybody reports, so: beside its ceiling.
    if whole or len(real) > real.shape[1]:
        yield "fid", quality.frechet_distance(real, generated)


def _spreads(
    space: str, spreads: dict[str, np.ndarray], texts: Sequence[str], n: int, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of measure ``spread``, and ``spread_ratio`` (RL over stage 1), prompts resampled."""
    if not texts:  # no prompt has two images
        return pd.DataFrame(), pd.DataFrame()
    rows = [
        {"model": name, "measure": "spread"} | bootstrap.interval(values, n=n, seed=seed)._asdict()
        for name, values in spreads.items()
    ]
    both = np.stack([spreads["rl"], spreads["stage1"]], 1)
    ratio = bootstrap.interval(both, bootstrap.ratio, n=n, seed=seed)
    rows.append({"model": "gain", "measure": "spread_ratio"} | ratio._asdict())
    by_prompt = [
        pd.DataFrame({"prompt": texts, "model": name, "measure": "spread", "value": values})
        for name, values in spreads.items()
    ]
    by_prompt.append(
        by_prompt[0].assign(
            model="gain", measure="spread_ratio", value=spreads["rl"] / spreads["stage1"]
        )
    )
    table = pd.DataFrame(rows).assign(features=space, group="all")
    return table, pd.concat(by_prompt).assign(features=space)


def _pairs(
    space: str,
    embed: Callable[[np.ndarray], np.ndarray],
    sets: dict[str, np.ndarray],
    told: Sequence[str],
    n: int,
    seed: int,
) -> dict[str, pd.DataFrame]:
    """Mean distance between the first images of each prompt that has several, by ``embed``."""
    texts = np.asarray(told)
    groups = {t: np.flatnonzero(texts == t)[:ALIKE] for t in sorted(set(told))}
    groups = {t: rows for t, rows in groups.items() if len(rows) > 1}
    spreads = {}
    for name in (*MODELS, "held_out"):
        found = []
        for text, rows in groups.items():  # one at a time: a vector has 345,000 numbers
            vectors = embed(sets[name][rows])
            found.append(quality.spread(vectors, [text] * len(rows), squared=True)[0])
        spreads[name] = np.array(found)
    table, by_prompt = _spreads(space, spreads, list(groups), n, seed)
    return {"quality": table, "prompts": by_prompt}


# --------------------------------------------------------------------------------- the results


def headline(table: pd.DataFrame) -> dict[str, Interval]:
    """``quality.<features>.<measure>.{stage1,rl,gain,held_out}`` and ``quality.spread.ratio``."""
    out = {}
    for row in table[table["group"] == "all"].itertuples():
        name = f"quality.{row.features}.{row.measure}.{row.model}"
        if row.measure == "spread_ratio":
            name = f"quality.spread.ratio.{row.features}".removesuffix(".judge")
        out[name] = Interval(row.value, row.low, row.high, row.n)
    return out


def _summarize(table: pd.DataFrame) -> None:
    shown = table[table["group"] == "all"].pivot(
        index=["features", "measure"], columns="model", values="value"
    )
    print(shown.reindex(columns=[*MODELS, "gain", "held_out"]).round(3).to_string(na_rep=""))
