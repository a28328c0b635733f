"""How far readers agree: kappa of two, of several, of nominal verdicts and ordinal ratings.

Pure functions of ratings. A *reader* is a person who reviews. Missing ratings are missing (NaN,
None or pandas NA) and never count. How many pairs to review, and what a review bounds, is
:mod:`derm_rl.captions.sampling`; its functions are known here as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from derm_rl.captions.sampling import (
    STRATA,
    UNDEFINED,
    Estimate,
    keyed,
    plan,
    sample,
    sample_size,
    stratified,
    upper_bound,
    wilson,
)

__all__ = [
    "STRATA", "UNDEFINED", "Estimate", "agreement", "cohen_kappa", "fleiss_kappa", "keyed",
    "light_kappa", "plan", "sample", "sample_size", "stratified", "upper_bound", "wilson",
]  # fmt: skip


def cohen_kappa(
    first: Sequence,
    second: Sequence,
    weights: str | None = None,
    categories: Sequence | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """Cohen's kappa (1960) of two readers with a 95 % bootstrap interval over the items.

    Args:
        first, second: a value an item; items that miss either are left out.
        weights: None for nominal categories; "linear" or "quadratic" (Cohen 1968) for ordinal ones.
        categories: all of them in their order; default: those that occur, sorted. Ordinal ratings
            need it: a grade nobody gave still lies between two others.
    """
    table = pd.DataFrame({"a": list(first), "b": list(second)}, dtype=object).dropna()
    codes, known = _codes(table, categories)
    return _bootstrap(
        lambda index: _kappa(codes[index], known, weights), len(codes), resamples, seed
    )


def _kappa(codes: np.ndarray, known: int, weights: str | None) -> float:
    """Kappa of category numbers (items, 2), both there; NaN where all are the same."""
    from sklearn.metrics import cohen_kappa_score

    # One category alone: agreement by chance is 1 and kappa 0 / 0.
    if len(np.unique(codes)) < 2:
        return math.nan
    return float(cohen_kappa_score(*codes.T, labels=range(known), weights=weights))


def fleiss_kappa(
    ratings: pd.DataFrame | np.ndarray,
    categories: Sequence | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """Fleiss' kappa (1971) of nominal ratings (items, readers) with a 95 % bootstrap interval.

    Items may have been rated by different numbers of readers: an item's agreement is the share of
    its pairs of readers who agree, those with fewer than two ratings are left out.
    """
    codes, known = _codes(pd.DataFrame(ratings), categories)
    counts = (codes[:, :, None] == np.arange(known)).sum(1).astype(float)
    counts = counts[counts.sum(1) >= 2]

    def kappa(index: np.ndarray) -> float:
        drawn = counts[index]
        n = drawn.sum(1)
        observed = (((drawn**2).sum(1) - n) / (n * (n - 1))).mean()
        expected = ((drawn.sum(0) / n.sum()) ** 2).sum()
        return math.nan if expected > 1 - 1e-12 else float((observed - expected) / (1 - expected))

    return _bootstrap(kappa, len(counts), resamples, seed)


def light_kappa(
    ratings: pd.DataFrame,
    weights: str | None = "quadratic",
    categories: Sequence | None = None,
    resamples: int = 200,
    seed: int = 0,
) -> Estimate:
    """Mean of the (weighted) kappas of all pairs of readers (Light 1971); ratings (items, readers).

    The interval is a bootstrap over the items; pairs of readers without a common kappa are left
    out of the mean. ``n`` counts the items that two readers or more have rated.
    """
    codes, known = _codes(pd.DataFrame(ratings), categories)
    codes = codes[(codes >= 0).sum(1) >= 2]

    def kappa(index: np.ndarray) -> float:
        pairs = [codes[index][:, two] for two in combinations(range(codes.shape[1]), 2)]
        found = np.array([_kappa(pair[(pair >= 0).all(1)], known, weights) for pair in pairs])
        defined = found[~np.isnan(found)]
        return float(defined.mean()) if len(defined) else math.nan

    return _bootstrap(kappa, len(codes), resamples, seed)


def agreement(
    verdicts: pd.DataFrame, ratings: Iterable[str], scale: Sequence[int] = (1, 2, 3, 4, 5)
) -> pd.DataFrame:
    """How far readers agree on verdicts and on each ordinal rating.

    Verdicts: Cohen's kappa for two readers, Fleiss' for more. Ratings: quadratically weighted
    kappa, for more than two readers the mean over their pairs.

    Args:
        verdicts: a row a pair and reader: ``pair_id``, ``reader``, ``verdict`` and ``ratings``.

    Returns:
        a row a quantity: ``what, measure, readers, n, kappa, low, high``.
    """
    rows = []
    for what in ("verdict", *ratings):
        known = verdicts.dropna(subset=[what])
        table = known.pivot(index="pair_id", columns="reader", values=what)
        table = table[table.notna().sum(axis=1) >= 2].dropna(axis=1, how="all")
        readers = table.shape[1]
        if what == "verdict" and readers > 2:
            measure, found = "Fleiss' kappa", fleiss_kappa(table)
        elif what == "verdict":
            pair = [table[r] for r in table] if readers == 2 else [[], []]
            measure, found = "Cohen's kappa", cohen_kappa(*pair)
        else:
            measure = "weighted kappa" if readers <= 2 else "mean weighted kappa"
            found = light_kappa(table, categories=scale)
        rows.append(
            {"what": what, "measure": measure, "readers": readers, "n": found.n}
            | {"kappa": found.value, "low": found.low, "high": found.high}
        )
    return pd.DataFrame(rows)


def _codes(table: pd.DataFrame, categories: Sequence | None) -> tuple[np.ndarray, int]:
    """Number of each cell's category (items, readers), -1 if missing; and how many there are."""
    cells = table.astype(object).to_numpy(object)
    values = {v for v in cells.ravel() if not pd.isna(v)}
    known = list(categories) if categories is not None else sorted(values)
    position = {value: i for i, value in enumerate(known)}
    if unknown := values - set(position):
        raise ValueError(f"unknown category {sorted(map(str, unknown))[0]!r}; known: {known}")
    codes = [[-1 if pd.isna(v) else position[v] for v in row] for row in cells]
    return np.array(codes, int).reshape(cells.shape), len(known)


def _bootstrap(
    statistic: Callable[[np.ndarray], float], n: int, resamples: int, seed: int
) -> Estimate:
    """``statistic`` of item numbers with its 95 % percentile interval over drawn items."""
    if n == 0:
        return UNDEFINED
    value = statistic(np.arange(n))
    if resamples == 0 or n < 2 or math.isnan(value):
        return Estimate(value, math.nan, math.nan, n)
    rng = np.random.default_rng(seed)
    drawn = np.array([statistic(rng.integers(n, size=n)) for _ in range(resamples)])
    defined = drawn[np.isfinite(drawn)]
    if len(defined) <= resamples / 2:
        return Estimate(value, math.nan, math.nan, n)
    low, high = np.quantile(defined, [0.025, 0.975])
    return Estimate(value, float(low), float(high), n)
