"""Class balance and calibration: what turns raw outputs into probabilities at a balanced prior."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

MAX_WEIGHT = 20.0  # a rarer label would make single images dominate the gradient of a batch
MAX_EACH = 4.0  # and so would a combination of label and confounder that hardly ever occurs
TEMPERATURES = np.geomspace(0.5, 5.0, 200)


def positive_weight(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights of positive images in the loss, and the bias that completes the balance.

    With a share π of positives and the weight w on them, cross-entropy is least where
    z = log LR + log(w π / (1 - π)), with LR the likelihood ratio of the image. At w = (1 - π) / π
    that is log LR itself, the logit at equal priors; where w had to be bounded by
    ``MAX_WEIGHT``, adding log((1 - π) / π) - log w to z gives it exactly.

    Args:
        labels: (N, L) of 0 and 1, each label both present and absent somewhere.

    Returns:
        w (L,) and the bias (L,), float32.
    """
    share = np.asarray(labels, np.float64).mean(0)
    ratio = (1 - share) / share
    weight = ratio.clip(1 / MAX_WEIGHT, MAX_WEIGHT)
    return weight.astype(np.float32), (np.log(ratio) - np.log(weight)).astype(np.float32)


def independent(labels: np.ndarray, group: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Weights (N, L) under which no label depends on ``group``: P(y) P(g) / P(y, g).

    Reweighing of Kamiran & Calders 2012 (doi:10.1007/s10115-011-0463-8), label by label. Where most
    images with a ruler have dark corners too, the corner would pay as a sign of the ruler; so
    weighted it does not. Prevalences stay as they are, unless a cell is empty or bounded.

    Args:
        labels: (N, L) of 0 and 1. group: (N,) bool.
        known: (N,) bool, images from which the probabilities are taken; others only get weights.

    Returns:
        float32, at most ``MAX_EACH``; 1 in a cell without known images.
    """
    out = np.ones(labels.shape, np.float32)
    for g in (False, True):
        for y in (0, 1):
            inside = (labels == y) & (group == g)[:, None]
            share = inside[known].mean(0)
            expected = (labels[known] == y).mean(0) * (group[known] == g).mean()
            ratio = np.divide(expected, share, out=np.ones_like(expected), where=share > 0)
            out = np.where(inside, ratio.clip(max=MAX_EACH), out)
    return out.astype(np.float32)


def loss(logits: Tensor, labels: Tensor, weight: Tensor, each: Tensor | None = None) -> Tensor:
    """Class-balanced binary cross-entropy, mean over images and labels.

    Args:
        logits, labels: (N, L). weight: (L,) of positives. each: (N, L) of every one.
    """
    return nn.functional.binary_cross_entropy_with_logits(
        logits, labels, weight=each, pos_weight=weight
    )


def fit_temperature(
    logits: np.ndarray, labels: np.ndarray, each: np.ndarray | None = None
) -> np.ndarray:
    """Temperature per label (L,) with the least balanced negative log-likelihood.

    Temperature scaling (arXiv 1706.04599) by search over ``TEMPERATURES``: the optimum of one
    scalar, bounded because a validation set without errors would drive it to zero. Positives and
    negatives weigh half each. A label that validation images all show, or none, keeps 1.

    Args:
        logits: (N, L), bias already added. labels: (N, L) of 0 and 1. each: (N, L) weights.
    """
    z = torch.from_numpy(np.asarray(logits, np.float64))
    y = torch.from_numpy(np.asarray(labels, np.float64))
    weights = torch.ones_like(y) if each is None else torch.from_numpy(each).double()
    out = np.ones(z.shape[1], np.float32)
    for j in range(z.shape[1]):
        positive = y[:, j] == 1
        if positive.all() or not positive.any():
            continue
        scaled = z[:, j, None] / torch.from_numpy(TEMPERATURES)
        nll = -nn.functional.logsigmoid(torch.where(positive[:, None], scaled, -scaled))
        parts = [weights[k, j] @ nll[k] / weights[k, j].sum() for k in (positive, ~positive)]
        out[j] = TEMPERATURES[int(sum(parts).argmin())]
    return out
