"""Do generated images show what their prompts asked for? The Artifact Prevalence Rate and kin.

The functions are pure: judged probabilities and wanted labels, both (N, L) with one row per image,
in; numbers with 95 % bootstrap intervals out. Images are resampled within their prompt, since the
prompts are fixed by design and only the noise is random. Stage 05 itself is in
:mod:`derm_rl.evaluation.alignment_stage`.

The paper's APR (arXiv 2503.15784) is the share of images whose predicted artifacts *all* equal the
prompt's. It ignores the diagnosis, so every table here also has the APR with the diagnosis.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from derm_rl import prompts
from derm_rl.classifier.model import LabelClassifier
from derm_rl.evaluation import bootstrap
from derm_rl.evaluation.bootstrap import Interval

MEASURES = ("apr", "apr_diagnosis", "diagnosis", "labels")


def artifact_columns(label_names: Sequence[str]) -> np.ndarray:
    """Flags (L,) of the labels that are artifacts; the others are diagnoses."""
    return np.array([name in prompts.ARTIFACTS for name in label_names], bool)


def decide(probabilities: np.ndarray, label_names: Sequence[str]) -> np.ndarray:
    """Judged findings (N, L) bool: each label at 0.5, but of several diagnoses the likeliest."""
    probabilities = np.asarray(probabilities)
    decided = probabilities > 0.5
    diagnoses = np.flatnonzero(~artifact_columns(label_names))
    if len(diagnoses) > 1:
        best = probabilities[:, diagnoses].argmax(1)
        decided[:, diagnoses] = best[:, None] == np.arange(len(diagnoses))
    return decided


def matches(
    probabilities: np.ndarray, wanted: np.ndarray, label_names: Sequence[str]
) -> pd.DataFrame:
    """What each image has right, one row per image, columns ``MEASURES`` in [0, 1]:

    ``apr`` (all artifacts), ``diagnosis``, ``apr_diagnosis`` (both) and ``labels`` (the share of
    labels, which is the paper's reward). Their means are the rates of the same name.
    """
    same = decide(probabilities, label_names) == (np.asarray(wanted) > 0.5)
    artifacts = artifact_columns(label_names)
    frame = pd.DataFrame({"apr": same[:, artifacts].all(1)})
    frame["diagnosis"] = same[:, ~artifacts].all(1)
    frame["apr_diagnosis"] = same.all(1)
    frame["labels"] = same.mean(1)
    return frame.astype(float)[list(MEASURES)]


def rate(correct: np.ndarray, prompt_ids: Sequence[str], n: int = 1000, seed: int = 0) -> Interval:
    """Mean of a column of :func:`matches`, images resampled within their prompt."""
    return bootstrap.interval(correct, strata=prompt_ids, n=n, seed=seed)


def apr(
    probabilities: np.ndarray,
    wanted: np.ndarray,
    prompt_ids: Sequence[str],
    label_names: Sequence[str],
    n: int = 1000,
    seed: int = 0,
) -> Interval:
    """Artifact Prevalence Rate: share of images with exactly the artifacts of their prompt."""
    return rate(matches(probabilities, wanted, label_names)["apr"], prompt_ids, n, seed)


def gain(
    before: np.ndarray,
    after: np.ndarray,
    prompt_ids: Sequence[str],
    paired: bool = True,
    n: int = 1000,
    seed: int = 0,
) -> Interval:
    """Mean of ``after`` minus mean of ``before``: the same column of :func:`matches` twice.

    Args:
        before, after: (N,) each, row i of both from the same prompt and the same noise.
        paired: resample the differences of such pairs. Unpaired treats the two sets as unrelated
            samples of each prompt: wider, unless the noise decides nothing.
    """
    before, after = np.asarray(before, float), np.asarray(after, float)
    if before.shape != after.shape or len(before) != len(prompt_ids):
        raise ValueError(
            f"{len(before)} images before, {len(after)} after and {len(prompt_ids)} prompts: "
            "a gain compares the same prompts and seeds"
        )
    if paired:
        return bootstrap.interval(after - before, strata=prompt_ids, n=n, seed=seed)
    return bootstrap.difference(before, after, n, 0.95, seed, prompt_ids, prompt_ids)


def attribute_table(
    probabilities: np.ndarray,
    wanted: np.ndarray,
    prompt_ids: Sequence[str],
    label_names: Sequence[str],
    n: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """For each label: ``recall`` (wanted and judged present, of those wanted) and ``false_add``
    (judged present though not wanted, of those not wanted).

    Columns: attribute, then for both the rate, ``_low``, ``_high`` and ``_n`` (denominator).
    """
    decided, wanted = decide(probabilities, label_names), np.asarray(wanted) > 0.5
    prompt_ids = np.asarray(prompt_ids)
    rows = []
    for j, name in enumerate(label_names):
        row = {"attribute": name}
        for measure, of in (("recall", wanted[:, j]), ("false_add", ~wanted[:, j])):
            found = rate(decided[of, j], prompt_ids[of], n, seed)
            row |= bootstrap.columns(measure, found) | {f"{measure}_n": found.n}
        rows.append(row)
    return pd.DataFrame(rows)


def prompt_table(
    probabilities: np.ndarray,
    wanted: np.ndarray,
    prompt_ids: Sequence[str],
    label_names: Sequence[str],
    n: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """The rates of each prompt, in order of first appearance.

    Columns: prompt, n, then each of ``MEASURES`` with ``_low`` and ``_high``.
    """
    correct = matches(probabilities, wanted, label_names)
    prompt_ids = np.asarray(prompt_ids)
    rows = []
    for prompt in dict.fromkeys(prompt_ids.tolist()):
        part = correct[prompt_ids == prompt]
        row = {"prompt": prompt, "n": len(part)}
        for measure in MEASURES:
            row |= bootstrap.columns(measure, bootstrap.interval(part[measure], n=n, seed=seed))
        rows.append(row)
    return pd.DataFrame(rows)


def autoencoder_table(
    judge: LabelClassifier, originals: np.ndarray, reconstructions: np.ndarray, labels: np.ndarray
) -> pd.DataFrame:
    """Whether the judge sees exactly the true artifacts: columns original, reconstruction (0, 1).

    Args:
        originals, reconstructions: (N, S, S, 3) uint8, the same images before and after.
        labels: (N, L), true ones.
    """
    images = {"original": originals, "reconstruction": reconstructions}
    names = judge.label_names
    return pd.DataFrame(
        {kind: matches(judge.predict(x), labels, names)["apr"] for kind, x in images.items()}
    )


def best_guidance(table: pd.DataFrame) -> float:
    """Guidance scale of the highest ``apr`` in a table of scales; of equals, the smallest."""
    table = table.sort_values("guidance_scale")
    return float(table["guidance_scale"].iloc[table["apr"].argmax()])


def least_change(table: pd.DataFrame) -> float:
    """Adapter scale: the smallest whose ``apr`` is within one standard error of the highest.

    The one-standard-error rule (Breiman et al. 1984): of models that cannot be told apart, the one
    that has moved least from where it started.
    """
    best = table.iloc[table["apr"].argmax()]
    error = np.sqrt(best["apr"] * (1 - best["apr"]) / best["n"])
    return float(table.loc[table["apr"] >= best["apr"] - error, "adapter_scale"].min())


def wanted_labels(
    findings: Sequence[prompts.Finding], images_per_prompt: int, label_names: Sequence[str]
) -> np.ndarray:
    """Labels (P·n, L) float32 of the images that :func:`generate` returns."""
    rows = [prompts.labels(finding, label_names) for finding in findings]
    return np.repeat(np.array(rows, np.float32), images_per_prompt, axis=0)


def prompt_ids(findings: Sequence[prompts.Finding], images_per_prompt: int) -> list[str]:
    """Prompt (P·n,) of each image that :func:`generate` returns."""
    return [text for text in map(prompts.render, findings) for _ in range(images_per_prompt)]
