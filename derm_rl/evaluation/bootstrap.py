"""Bootstrap confidence intervals, vectorized over resamples.

A resample is a vector of multiplicities: how often each observation was drawn. A statistic is
therefore a function of values and weights, computed for many resamples at once, and a cluster
bootstrap (whole lesions) or a stratified one (within prompts) only changes how weights are drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

# (values (N,) or (N, K), weights (B, N)) -> (B,) or (B, ...): the statistic of each resample.
Statistic = Callable[[np.ndarray, np.ndarray], np.ndarray]
_CHUNK = 4_000_000  # weights held at once


class Interval(NamedTuple):
    """A statistic of the data, the bounds of its confidence interval and how many values it has.

    The bounds are NaN where the statistic is undefined in most resamples (no positives, say).
    """

    value: float
    low: float
    high: float
    n: int


def mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted mean over the N observations: (B,) of values (N,), or (B, K) of (N, K)."""
    total = weights.sum(1)
    return (weights @ values) / (total[:, None] if values.ndim == 2 else total)


def ratio(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Σ numerator / Σ denominator of values (N, 2); NaN where the denominator is zero."""
    with np.errstate(invalid="ignore", divide="ignore"):
        numerator, denominator = (weights @ values).T
        return numerator / denominator


def auc(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of values (N, 2) = (label 0 or 1, score); ties count half.

    The probability that a positive's score exceeds a negative's (Mann-Whitney), with weights.
    """
    order = np.argsort(values[:, 1], kind="stable")
    label, score = values[order, 0], values[order, 1]
    positive = weights[:, order] * label
    negative = weights[:, order] * (1 - label)
    first = np.flatnonzero(np.r_[True, np.diff(score) > 0])  # start of each run of equal scores
    positive = np.add.reduceat(positive, first, axis=1)
    negative = np.add.reduceat(negative, first, axis=1)
    below = negative.cumsum(1) - negative / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return (positive * below).sum(1) / (positive.sum(1) * negative.sum(1))


def resamples(
    size: int,
    n: int,
    seed: int,
    groups: Sequence | None = None,
    strata: Sequence | None = None,
) -> Iterator[np.ndarray]:
    """Multiplicities of ``n`` resamples of ``size`` observations, in chunks (≤ n, size) float64.

    Args:
        size: number of observations.
        n: number of resamples.
        seed: of the random numbers; the same arguments give the same resamples.
        groups: (size,) labels; observations of one group (images of one lesion) are drawn or left
            out together. Default: each observation by itself.
        strata: (size,) labels; each resample has as many groups of every stratum as the data
            (images of one prompt). A group lies in one stratum. Default: one stratum.
    """
    unit = np.unique(_codes(groups, size), return_inverse=True)[1]
    stratum = _codes(strata, size) if strata is not None else np.zeros(size, int)
    units = unit.max() + 1 if size else 0
    stratum_of = np.empty(units, int)
    stratum_of[unit] = stratum
    if not np.array_equal(stratum_of[unit], stratum):
        raise ValueError("a group of observations lies in more than one stratum")
    members = [np.flatnonzero(stratum_of == s) for s in np.unique(stratum_of)]
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK // max(1, size))
    for start in range(0, n, step):
        rows = min(step, n - start)
        drawn = np.empty((rows, units))
        for m in members:
            drawn[:, m] = rng.multinomial(len(m), np.full(len(m), 1 / len(m)), rows)
        yield drawn[:, unit]


def _codes(labels: Sequence | None, size: int) -> np.ndarray:
    if labels is None:
        return np.arange(size)
    if len(labels) != size:
        raise ValueError(f"{len(labels)} group or stratum labels for {size} observations")
    return np.unique(np.asarray(labels).astype(str), return_inverse=True)[1]


def distribution(
    values: np.ndarray,
    statistic: Statistic = mean,
    groups: Sequence | None = None,
    n: int = 1000,
    seed: int = 0,
    strata: Sequence | None = None,
) -> np.ndarray:
    """The statistic on ``n`` resamples of ``values`` (N, ...), shape (n, ...)."""
    values = np.asarray(values, np.float64)
    parts = [statistic(values, w) for w in resamples(len(values), n, seed, groups, strata)]
    return np.concatenate(parts)


def interval(
    values: np.ndarray,
    statistic: Statistic = mean,
    groups: Sequence | None = None,
    n: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    strata: Sequence | None = None,
) -> Interval:
    """Statistic of ``values`` (N, ...) with its percentile bootstrap interval.

    Args:
        values: observations along the first axis.
        statistic: function of values and weights; :func:`mean`, :func:`ratio`, :func:`auc`, or
            one of the caller's with the same arguments.
        groups, strata: as in :func:`resamples`. Bounds are NaN if there are fewer than two groups.
        n: number of resamples; 0 for the value alone.
        level: coverage of the interval.
    """
    values = np.asarray(values, np.float64)
    if not len(values):
        return Interval(np.nan, np.nan, np.nan, 0)
    value = float(statistic(values, np.ones((1, len(values))))[0])
    alone = len(values) < 2 or (groups is not None and len(set(groups)) < 2)
    drawn = (
        np.empty(0) if alone or n == 0 else distribution(values, statistic, groups, n, seed, strata)
    )
    return Interval(value, *bounds(drawn, level), len(values))


def difference(
    before: np.ndarray,
    after: np.ndarray,
    n: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    strata_before: Sequence | None = None,
    strata_after: Sequence | None = None,
) -> Interval:
    """Mean of ``after`` minus mean of ``before``, two independent samples; ``n`` of ``after``.

    For the same prompts and seeds on both sides, ``interval(after - before)`` is the paired one.
    """
    before, after = np.asarray(before, np.float64), np.asarray(after, np.float64)
    drawn = distribution(after, mean, None, n, seed + 1, strata_after)
    drawn = drawn - distribution(before, mean, None, n, seed, strata_before)
    return Interval(float(after.mean() - before.mean()), *bounds(drawn, level), len(after))


def bounds(drawn: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Percentile bounds of bootstrap draws (n,); NaN if half of them or more are undefined."""
    defined = drawn[np.isfinite(drawn)]
    if not len(defined) or len(defined) <= len(drawn) / 2:
        return np.nan, np.nan
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def columns(measure: str, found: Interval) -> dict[str, float]:
    """An interval as cells of a table: ``measure``, ``measure_low``, ``measure_high``."""
    return {measure: found.value, f"{measure}_low": found.low, f"{measure}_high": found.high}
