"""How close generated images are to real ones, and how varied: distances of sets of features.

All functions take features (N, D), one row an image, from any network; which one is part of a
number's name, for a number in one feature space says nothing about another.

- :func:`frechet_distance`: FID (Heusel et al. 2017, arXiv 1706.08500), by torchmetrics.
- :func:`kernel_distance`: KID (Bińkowski et al. 2018, arXiv 1801.01401), by torchmetrics.
- :func:`mmd`: maximum mean discrepancy with a Gaussian kernel, as CMMD (Jayasumana et al. 2024,
  arXiv 2401.09603) has it in CLIP's space: no assumption of normality, less bias at small N.
- :func:`neighbours`: precision and recall (Kynkäänniemi et al. 2019, arXiv 1904.06991), density and
  coverage (Naeem et al. 2020, arXiv 2002.09797).
- :func:`spread`: mean distance between images of one prompt. What collapses under RL.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.spatial.distance import pdist
from sklearn.metrics.pairwise import euclidean_distances
from torch import nn


class Neighbours(NamedTuple):
    """Who lies near whom, image by image; the mean of each is the measure of that name."""

    precision: np.ndarray  # (generated,) bool: it lies in the ball of some real image
    density: np.ndarray  # (generated,) float: of how many, over k
    recall: np.ndarray  # (real,) bool: it lies in the ball of some generated image
    coverage: np.ndarray  # (real,) bool: some generated image lies in its ball


def standardized(features: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """``features`` (N, D) in standard deviations of ``reference`` (M, D), channel by channel.

    A channel that hardly varies over the reference counts less, not more: no deviation is taken as
    smaller than a tenth of the median one. One that is alive in a single image would rule else.
    """
    mean, std = reference.mean(0), reference.std(0)
    least = np.median(std[std > 0]) / 10 if (std > 0).any() else 1.0
    return (features - mean) / np.maximum(std, least)


def neighbours(real: np.ndarray, generated: np.ndarray, k: int = 5) -> Neighbours:
    """Precision, recall, density and coverage, image by image.

    An image's ball reaches to its ``k``-th neighbour of its own set, itself not counted.

    Args:
        real, generated: features (R, D) and (G, D).

    Raises:
        ValueError: a set has no more than ``k`` images.
    """
    for name, features in (("real", real), ("generated", generated)):
        if len(features) <= k:
            raise ValueError(f"{len(features)} {name} images have no {k}-th neighbour: add images")
    between = euclidean_distances(real, generated)
    within_real = between < _radii(real, k)[:, None]
    within_generated = between < _radii(generated, k)[None]
    return Neighbours(
        within_real.any(0), within_real.sum(0) / k, within_generated.any(1), within_real.any(1)
    )


def _radii(features: np.ndarray, k: int) -> np.ndarray:
    """Distance (N,) from each image to its ``k``-th neighbour in the same set."""
    return np.partition(euclidean_distances(features), k, axis=1)[:, k]  # the 0-th is itself


class _Features(nn.Module):
    """Hands features on as they are: torchmetrics expects a network here, ours has already run."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def _measured(metric: nn.Module, real: np.ndarray, generated: np.ndarray):
    for features, is_real in ((real, True), (generated, False)):
        metric.update(torch.from_numpy(np.asarray(features, np.float64)), real=is_real)
    return metric.compute()


def frechet_distance(real: np.ndarray, generated: np.ndarray) -> float:
    """Fréchet distance of the normal distributions fitted to two sets of features (N, D)."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(_Features(real.shape[1])).set_dtype(torch.float64)
    return float(_measured(metric, real, generated))


def kernel_distance(
    real: np.ndarray,
    generated: np.ndarray,
    subsets: int = 100,
    subset_size: int = 500,
    seed: int = 0,
) -> tuple[float, float]:
    """Unbiased MMD² with KID's cubic kernel: mean and standard deviation over random subsets."""
    from torchmetrics.image.kid import KernelInceptionDistance

    size = min(subset_size, len(real), len(generated))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it keeps all features in memory
        metric = KernelInceptionDistance(
            _Features(real.shape[1]), subsets=subsets, subset_size=size
        ).set_dtype(torch.float64)
    with torch.random.fork_rng():  # it draws from the global generator
        torch.manual_seed(seed)
        mean, std = _measured(metric, real, generated)
    return float(mean), float(std)


def mmd(real: np.ndarray, generated: np.ndarray, bandwidth: float | None = None) -> float:
    """Squared maximum mean discrepancy with a Gaussian kernel, the biased estimate of CMMD.

    Args:
        bandwidth: standard deviation of the kernel; default: the median distance between real
            images, as CMMD's 10 is made for CLIP's features alone.
    """
    bandwidth = bandwidth or float(np.median(pdist(real)))

    def similarity(a: np.ndarray, b: np.ndarray) -> float:
        squared = euclidean_distances(a, b, squared=True)
        return float(np.exp(-squared / (2 * bandwidth**2)).mean())

    crossed = similarity(real, generated)
    return similarity(real, real) + similarity(generated, generated) - 2 * crossed


def spread(features: np.ndarray, prompts: Sequence[str], squared: bool = False) -> np.ndarray:
    """Mean (squared) distance (P,) between the images of each prompt, prompts in sorted order.

    Raises:
        ValueError: a prompt has a single image.
    """
    texts, index = np.unique(np.asarray(prompts), return_inverse=True)
    if (alone := np.bincount(index) < 2).any():
        raise ValueError(
            f"prompt {str(texts[alone][0])!r} has one image: a spread needs two or more"
        )
    metric = "sqeuclidean" if squared else "euclidean"
    return np.array([pdist(features[index == i], metric).mean() for i in range(len(texts))])
