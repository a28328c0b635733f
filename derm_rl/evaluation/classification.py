"""Stage 02: train the reward classifier and the judge on disjoint lesions, measure them on others.

Tables, each with a column ``model`` (reward or judge):

- ``history.csv``: one row per epoch.
- ``attributes.csv``: AUC, balanced accuracy and F1 of each label, with 95 % intervals from
  resampled lesions.
- ``roc.csv``: points of the ROC curves. ``reliability.csv``: stated against observed frequency,
  in bins of equal mass.
- ``predictions.csv``: the probabilities behind all of these, one row per test image.
- ``corners.csv``: what the classifiers call in images with and without dark corners, which in real
  images come with rulers: whether they pass for one.
- ``decoys.csv``: the probabilities of test images without an artifact of the vocabulary, on each of
  which a decoy of a family that no classifier trains on was drawn
  (:mod:`derm_rl.data.phantom_decoys`); whether any artifact is ``called``, and was ``before``.

The judge also grades the autoencoder of the base pipeline: what a latent diffusion model cannot
decode, no fine-tuning teaches it to draw. ``autoencoder.csv`` has one row per test image.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from derm_rl import data, pipeline, prompts, provenance
from derm_rl.captions.sampling import wilson
from derm_rl.classifier.model import LabelClassifier
from derm_rl.classifier.training import train
from derm_rl.data import phantom, phantom_decoys, splits
from derm_rl.evaluation import alignment, bootstrap
from derm_rl.io import read_csv, write_csv
from derm_rl.redraw import redraw

if TYPE_CHECKING:
    from derm_rl.config import Config

STAGE = "02_reward_classifier"
DECOYED = 400  # test images, at most, on which a decoy is drawn
RECONSTRUCTED = 1000  # test images, at most, that go through the autoencoder
CORNER = "dark_corner"  # in HAM10000, of those with it 17 % show a ruler, of the others 2 %
VALIDATION = 0.15  # share of a classifier's lesions that stops its training and calibrates it


def run(config: Config, progress: bool = True) -> Path:
    """Train, measure and record both classifiers; returns the folder of stage 02.

    Writes ``reward/``, ``judge/`` (see :func:`derm_rl.classifier.load`), the tables above and the
    metrics ``classifier.{reward,judge}.auc.{label}``, ``.auc.min``, ``decoys.false.{reward,judge}``
    (share of decoys that are called an artifact) and ``autoencoder.exact_match_kept``.
    """
    folder = config.stage_dir(STAGE)
    folder.mkdir(parents=True, exist_ok=True)
    test = data.load(config, "test")
    labels, names = test.labels, test.label_names
    decoyed, decoys = held_out_decoys(test, config.seed)
    tables: dict[str, list[pd.DataFrame]] = {}
    metrics = {}
    for name in ("reward", "judge"):
        model = _train_one(config, name, folder / name, progress)
        probabilities = model.predict(test.images)
        attributes = attribute_table(
            probabilities, labels, splits.groups(test.frame).tolist(), names,
            config.classifier.bootstrap, config.seed,
        )  # fmt: skip
        parts = {
            "history": read_csv(folder / name / "history.csv"),
            "attributes": attributes,
            "roc": roc_table(probabilities, labels, names),
            "reliability": reliability_table(probabilities, labels, names),
            "predictions": _predictions(test, probabilities),
            "corners": corner_table(probabilities > 0.5, labels, names, corner_of(test.frame)),
            "decoys": _called(model, decoyed, decoys, probabilities),
        }
        for table, part in parts.items():
            part.insert(0, "model", name)
            tables.setdefault(table, []).append(part)
        metrics |= _metrics(config, name, attributes) | _fooled(config, name, parts["decoys"])
    for table, parts in tables.items():
        write_csv(folder / f"{table}.csv", pd.concat(parts, ignore_index=True))
    # The judge, trained last, is the one that grades.
    metrics |= _autoencoder(config, model, test, folder)
    provenance.record_metrics(config, STAGE, metrics)
    provenance.stamp(config, STAGE, test_images=len(test.frame))
    return folder


def _autoencoder(
    config: Config, judge: LabelClassifier, test: data.Dataset, folder: Path
) -> dict[str, dict]:
    """Grade test images before and after the base pipeline's autoencoder."""
    rows = np.arange(len(test.images))[:: -(-len(test.images) // RECONSTRUCTED)]
    originals, labels = np.asarray(test.images[rows]), test.labels[rows]
    pipe = pipeline.load(config.pipeline.base)
    table = alignment.autoencoder_table(
        judge, originals, pipeline.reconstruct(pipe, originals), labels
    )
    table.insert(0, "image_id", test.frame["image_id"].to_numpy()[rows])
    write_csv(folder / "autoencoder.csv", table)
    pairs = table[["reconstruction", "original"]].to_numpy(float)
    kept = bootstrap.interval(pairs, bootstrap.ratio, n=config.classifier.bootstrap, seed=0)
    metric = provenance.metric(config, *kept, csv="autoencoder.csv")
    return {"autoencoder.exact_match_kept": metric}


def _train_one(config: Config, name: str, folder: Path, progress: bool) -> LabelClassifier:
    """One classifier on its own split, with its own seed, of which some lesions validate."""
    part = data.load(config, name)
    seed = config.seed + {"reward": 0, "judge": 1}[name]
    images, settings = part.images, config.classifier.redrawn
    if config.classifier.decoys:
        images = _with_decoys(part, config.classifier.decoys, seed)
    if settings:
        captions = [prompts.render(finding) for finding in part.findings]
        images = redraw(
            pipeline.load(config.pipeline.base), images, captions, settings, seed, progress
        )
    fractions = {"train": 1 - VALIDATION, "validation": VALIDATION}
    assigned = splits.assign(part.frame, fractions, seed, ("diagnosis", *part.artifacts))
    return train(
        images,
        part.labels,
        splits.groups(part.frame).tolist(),
        part.label_names,
        (assigned == "validation").to_numpy(bool),
        getattr(config.classifier, name),
        config.classifier,
        seed,
        folder,
        progress=progress,
        confounder=_confounder(config, part),
    )


def _confounder(config: Config, part: data.Dataset) -> np.ndarray | None:
    """Dark corners, where they are no label and phantoms' are drawn independently of all labels."""
    drawn = config.data.source == "phantom"
    return None if drawn or CORNER in part.artifacts else corner_of(part.frame)


def corner_of(frame: pd.DataFrame) -> np.ndarray:
    """(N,) bool, which images have dark corners; those of which it is not known have none."""
    return frame[CORNER].fillna(False).to_numpy(bool)


def corner_table(
    called: np.ndarray, labels: np.ndarray, label_names: Sequence[str], corner: np.ndarray
) -> pd.DataFrame:
    """Share of images that are called to show an artifact, by whether they do, and dark corners.

    Args:
        called, labels: (N, L). corner: (N,) bool.

    Returns:
        attribute, shown, dark_corner, called, low, high (Wilson, of images), n: recall where
        ``shown``, else false calls.
    """
    rows = []
    for j, name in enumerate(label_names):
        for shown in (True, False):
            for dark in (False, True):
                of = ((labels[:, j] == 1) == shown) & (corner == dark)
                if name in prompts.ARTIFACTS and of.any():
                    found = wilson(int(called[of, j].sum()), int(of.sum()))
                    rows.append((name, shown, dark, *found))
    columns = ["attribute", "shown", CORNER, "called", "low", "high", "n"]
    return pd.DataFrame(rows, columns=columns)


def _with_decoys(part: data.Dataset, share: float, seed: int) -> np.ndarray:
    """Copy of a phantom split's images of which a random ``share`` is drawn anew, with decoys."""
    before = part.frame["path"].tolist()
    after = phantom.with_decoys(before, share, seed)
    rows = [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
    images = np.array(part.images)
    images[rows] = phantom.render_paths([after[i] for i in rows], images.shape[1])[0]
    return images


def held_out_decoys(test: data.Dataset, seed: int) -> tuple[np.ndarray, pd.DataFrame]:
    """Images (N, S, S, 3) uint8 of ``test`` without a named artifact, each with one decoy.

    The families of ``HELD_OUT`` take turns. The table has columns image_id and family, and as its
    index the rows of ``test``.
    """
    named = test.frame[list(test.artifacts)].any(axis=1).to_numpy(bool)
    rows = np.flatnonzero(~named)
    rows = rows[:: max(1, -(-len(rows) // DECOYED))]
    families = [list(phantom_decoys.HELD_OUT)[i % len(phantom_decoys.HELD_OUT)]
                for i in range(len(rows))]  # fmt: skip
    images = [
        phantom_decoys.draw_held_out(test.images[row], family, np.random.default_rng([seed, row]))
        for row, family in zip(rows, families, strict=True)
    ]
    table = test.frame[["image_id"]].iloc[rows].assign(family=families).set_axis(rows)
    return np.array(images, np.uint8).reshape(-1, *test.images.shape[1:]), table


def _called(
    model: LabelClassifier, images: np.ndarray, table: pd.DataFrame, clean: np.ndarray
) -> pd.DataFrame:
    """``table`` with the probability of each artifact, and whether any is called, and was before.

    Args:
        clean: probabilities (M, L) of all test images, without decoys.
    """
    artifacts = [name for name in model.label_names if name in prompts.ARTIFACTS]
    columns = [model.label_names.index(name) for name in artifacts]
    p = model.predict(images)[:, columns] if len(images) else np.empty((0, len(columns)))
    out = table.assign(**{f"p_{name}": p[:, j] for j, name in enumerate(artifacts)})
    before = (clean[table.index][:, columns] > 0.5).any(1)
    return out.assign(before=before, called=(p > 0.5).any(1)).reset_index(drop=True)


def _fooled(config: Config, name: str, decoys: pd.DataFrame) -> dict[str, dict]:
    found = wilson(int(decoys["called"].sum()), len(decoys))
    return {f"decoys.false.{name}": provenance.metric(config, *found, csv="decoys.csv")}


def attribute_table(
    probabilities: np.ndarray,
    labels: np.ndarray,
    lesion_ids: Sequence[str],
    label_names: Sequence[str],
    resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """AUC, balanced accuracy and F1 (at 0.5) of each label, with intervals over lesions.

    Columns: attribute, positives, n, and for each measure its value, ``_low`` and ``_high``.
    """
    rows = []
    for j, name in enumerate(label_names):
        y, p = labels[:, j].astype(float), probabilities[:, j].astype(float)
        row = {"attribute": name, "positives": int(y.sum()), "n": len(y)}
        table = np.stack([y * (p > 0.5), y * (p <= 0.5), (1 - y) * (p <= 0.5), (1 - y) * (p > 0.5)])
        for measure, values, statistic in (
            ("auc", np.stack([y, p], 1), bootstrap.auc),
            ("balanced_accuracy", table.T, balanced_accuracy),
            ("f1", table.T, f1),
        ):
            found = bootstrap.interval(values, statistic, lesion_ids, n=resamples, seed=seed)
            row |= bootstrap.columns(measure, found)
        rows.append(row)
    return pd.DataFrame(rows)


def balanced_accuracy(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean of sensitivity and specificity; values (N, 4) flag TP, FN, TN, FP."""
    tp, fn, tn, fp = (weights @ values).T
    with np.errstate(invalid="ignore", divide="ignore"):
        return (tp / (tp + fn) + tn / (tn + fp)) / 2


def f1(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """F1 = 2 TP / (2 TP + FN + FP); values (N, 4) flag TP, FN, TN, FP."""
    tp, fn, _, fp = (weights @ values).T
    with np.errstate(invalid="ignore", divide="ignore"):
        return 2 * tp / (2 * tp + fn + fp)


def roc_table(
    probabilities: np.ndarray, labels: np.ndarray, label_names: Sequence[str]
) -> pd.DataFrame:
    """Corners of each ROC curve: attribute, threshold, false_positive_rate, true_positive_rate."""
    from sklearn.metrics import roc_curve

    parts = []
    for j, name in enumerate(label_names):
        if 0 < labels[:, j].sum() < len(labels):
            fpr, tpr, threshold = roc_curve(labels[:, j], probabilities[:, j])
            columns = {"threshold": threshold.clip(max=1.0), "false_positive_rate": fpr}
            parts.append(pd.DataFrame({"attribute": name, **columns, "true_positive_rate": tpr}))
    return pd.concat(parts, ignore_index=True)


def reliability_table(
    probabilities: np.ndarray, labels: np.ndarray, label_names: Sequence[str], bins: int = 10
) -> pd.DataFrame:
    """Stated probability against observed frequency, at the balanced prior of the classifiers.

    Positives and negatives are weighted to half each, as the probabilities presume, and each bin
    has about the same share of that weight: most probabilities are near 0 or 1, and bins of equal
    width between would hold one image or none. Equal probabilities are in one bin.

    Returns:
        attribute, bin, stated, observed (of the images in the bin), its 95 % interval ``low, high``
        (Wilson, of images: those of one lesion are not told apart), positives, n, and ``ece``, the
        expected calibration error of the attribute: the weighted mean of abs(stated - observed).
    """
    from scipy.stats import binomtest

    parts = []
    for j, name in enumerate(label_names):
        y, p = labels[:, j].astype(float), probabilities[:, j].astype(float)
        if not 0 < y.sum() < len(y):
            continue
        frame = pd.DataFrame({"p": p, "positives": y.astype(int), "n": 1})
        frame["weight"] = np.where(y == 1, 0.5 / y.sum(), 0.5 / (1 - y).sum())
        mass = frame.groupby("p")["weight"].sum()
        middle = ((mass.cumsum() - mass / 2) * bins).astype(int).clip(upper=bins - 1)
        frame["bin"] = frame["p"].map(middle)
        frame["stated"], frame["observed"] = p * frame["weight"], y * frame["weight"]
        part = frame.groupby("bin", as_index=False).sum()
        part["ece"] = (part["stated"] - part["observed"]).abs().sum()
        part["stated"] /= part["weight"]
        part["observed"] /= part["weight"]
        counted = zip(part["positives"].tolist(), part["n"].tolist(), strict=True)
        bounds = [binomtest(k, n).proportion_ci(method="wilson") for k, n in counted]
        odds = (1 - y).sum() / y.sum()  # by which the weights raise those of a share
        for column, x in zip(("low", "high"), np.transpose(bounds), strict=True):
            part[column] = odds * x / (odds * x + 1 - x)
        part.insert(0, "attribute", name)
        columns = ["bin", "stated", "observed", "low", "high", "positives", "n", "ece"]
        parts.append(part[["attribute", *columns]])
    return pd.concat(parts, ignore_index=True)


def _predictions(test: data.Dataset, probabilities: np.ndarray) -> pd.DataFrame:
    out = test.frame[["image_id"]].assign(lesion_id=splits.groups(test.frame))
    labels = test.labels
    for j, name in enumerate(test.label_names):
        out[name], out[f"p_{name}"] = labels[:, j].astype(int), probabilities[:, j]
    return out


def _metrics(config: Config, name: str, attributes: pd.DataFrame) -> dict[str, dict]:
    """``classifier.<name>.auc.<label>`` and the least of them, ``classifier.<name>.auc.min``."""
    rows = {row.attribute: row for row in attributes.itertuples()}
    # A label that no test image shows has no AUC.
    rows["min"] = min(rows.values(), key=lambda row: np.nan_to_num(row.auc, nan=np.inf))
    return {
        f"classifier.{name}.auc.{label}": provenance.metric(
            config,
            row.auc,
            low=row.auc_low,
            high=row.auc_high,
            n=row.n,
            csv="classifier_predictions.csv",
        )
        for label, row in rows.items()
    }
