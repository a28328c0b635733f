"""How many pairs to review, which ones, and what a review then bounds.

Pure functions of numbers and tables. A *stratum* is a source with a question type.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

STRATA = ("source", "question_type")


class Estimate(NamedTuple):
    """A value, the bounds of its confidence interval, and how many items it rests on.

    NaN where it is undefined: no items, or (kappa) all readers always in one category.
    """

    value: float
    low: float
    high: float
    n: int


UNDEFINED = Estimate(math.nan, math.nan, math.nan, 0)

# ------------------------------------------------------------------------------- how many


def sample_size(
    upper: float, confidence: float = 0.95, errors: int = 0, population: int | None = None
) -> int:
    """Fewest pairs to review so that ``errors`` found among them bound the error rate by ``upper``.

    Exact: the chance of so few errors, if the rate were ``upper``, is at most 1 - ``confidence``
    (one-sided Clopper-Pearson; hypergeometric if the pairs are drawn from a finite
    ``population``). With 0 errors and a large population it is the "rule of three": 3 / upper.

    Raises:
        ValueError: an argument is out of range, or so many errors alone exceed the bound.
    """
    _check_share("upper", upper)
    _check_share("confidence", confidence)
    if errors < 0 or (population is not None and population < 1):
        raise ValueError(f"errors must be >= 0 and population >= 1: {errors}, {population}")
    if population is None:
        chance = lambda n: stats.binom.cdf(errors, n, upper)  # noqa: E731
        high = 1
        while chance(high) > 1 - confidence:
            high *= 2
    else:
        bad = math.ceil(round(upper * population, 9))  # fewest errors that reach the rate
        if bad <= errors:
            raise ValueError(
                f"{errors} errors among {population} pairs are a rate of {errors / population:.3g} "
                f"already: no review bounds it below {upper}; choose a larger bound"
            )
        chance = lambda n: stats.hypergeom.cdf(errors, population, bad, n)  # noqa: E731
        high = population
    low = 0  # chance(low) is 1, chance(high) is small enough, and between it only falls
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if chance(middle) <= 1 - confidence else (middle, high)
    return high


def upper_bound(
    errors: int, n: int, confidence: float = 0.95, population: int | None = None
) -> float:
    """One-sided upper bound of the error rate after ``errors`` in ``n`` pairs; 1 for none.

    With a ``population`` it is the largest rate that population can have, as a share of it.
    """
    _check_counts(errors, n)
    if population is not None and population < n:
        raise ValueError(f"{n} pairs cannot be drawn from a population of {population}")
    if n == 0 or errors == n:
        return 1.0
    if population is None:
        return float(stats.beta.ppf(confidence, errors + 1, n - errors))
    low, high = errors, population - (n - errors)  # errors that the population may hold
    while low < high:
        middle = (low + high + 1) // 2
        likely = stats.hypergeom.cdf(errors, population, middle, n) > 1 - confidence
        low, high = (middle, high) if likely else (low, middle - 1)
    return low / population


def plan(
    pairs: pd.DataFrame,
    upper: float = 0.01,
    confidence: float = 0.95,
    errors: int = 0,
    per_stratum: bool = False,
    minimum: int = 1,
    by: Sequence[str] = STRATA,
) -> pd.DataFrame:
    """How many pairs to review of each stratum.

    Args:
        pairs: a table of pairs with the columns ``by``; a missing value is a stratum of its own.
        upper, confidence, errors: as in :func:`sample_size`, of all pairs together, dealt in
            proportion to the strata (each at least ``minimum``); or, with ``per_stratum``, of every
            stratum by itself (a small one is then reviewed whole).

    Returns:
        a row a stratum, sorted: the columns ``by``, ``population``, ``n``.
    """
    if missing := [c for c in by if c not in pairs]:
        raise ValueError(f"table of pairs: column {missing[0]!r} is missing; found {list(pairs)}")
    counts = pairs.groupby(list(by), dropna=False).size().rename("population").reset_index()
    if counts.empty:
        return counts.assign(n=pd.Series(dtype=int))
    sizes = counts["population"].to_numpy()
    if per_stratum:
        n = [_size_or_all(upper, confidence, errors, int(size)) for size in sizes]
    else:
        total = _size_or_all(upper, confidence, errors, int(sizes.sum()))
        n = np.maximum(_proportional(sizes, total), np.minimum(minimum, sizes))
    return counts.assign(n=np.asarray(n, int))


def _size_or_all(upper: float, confidence: float, errors: int, population: int) -> int:
    if math.ceil(round(upper * population, 9)) <= errors:
        return population  # too few pairs for a bound by sampling
    return sample_size(upper, confidence, errors, population)


def _proportional(sizes: np.ndarray, total: int) -> np.ndarray:
    """``total`` dealt in proportion to ``sizes``, by largest remainders."""
    exact = sizes * total / sizes.sum()
    n = np.floor(exact).astype(int)
    rest = np.argsort(-(exact - n), kind="stable")[: total - n.sum()]
    n[rest] += 1
    return n


def sample(
    pairs: pd.DataFrame, planned: pd.DataFrame, seed: int, by: Sequence[str] = STRATA
) -> list[str]:
    """Ids of the pairs to review: of each stratum those of the smallest keyed hash.

    The same for any order of the rows; a larger plan contains a smaller one, so that a review can
    be continued. Returned in the order of the hash: every beginning of the list is itself about a
    proportional sample.
    """
    n_of = {_stratum(row, by): int(row["n"]) for row in planned.to_dict("records")}
    rank = pd.Series([keyed(seed, p) for p in pairs["pair_id"]], index=pairs.index, dtype=object)
    chosen = []
    for _, group in pairs.groupby(list(by), dropna=False):
        wanted = n_of.get(_stratum(group.iloc[0].to_dict(), by), 0)
        order = rank[group.index].sort_values(kind="stable").index[:wanted]
        chosen += [(rank[i], pairs.at[i, "pair_id"]) for i in order]
    return [str(pair) for _, pair in sorted(chosen)]


def _stratum(row: dict[str, Any], by: Sequence[str]) -> tuple:
    return tuple(None if pd.isna(row[c]) else row[c] for c in by)


def keyed(seed: int | str, name: str) -> str:
    """A pseudorandom rank (hex) of ``name``, the same everywhere and independent of the others."""
    return hashlib.sha256(f"{seed}\0{name}".encode("utf-8", "surrogatepass")).hexdigest()


# ---------------------------------------------------------------------------- what was reached


def wilson(errors: int, n: int, confidence: float = 0.95) -> Estimate:
    """Rate of ``errors`` in ``n`` with its two-sided Wilson interval."""
    _check_counts(errors, n)
    if n == 0:
        return UNDEFINED
    low, high = stats.binomtest(errors, n).proportion_ci(confidence, method="wilson")
    return Estimate(errors / n, float(low), float(high), n)


def stratified(strata: pd.DataFrame, confidence: float = 0.95) -> Estimate:
    """Error rate of all pairs from a stratified review, each stratum weighted by its population.

    The interval is Wilson's at the effective sample size (Σw)² / Σw² (Kish 1965), rounded to the
    careful side; strata that nobody reviewed are left out, and their pairs do not count.

    Args:
        strata: a row a stratum: ``population``, ``n`` (reviewed), ``errors``.
    """
    seen = strata[strata["n"] > 0]
    if seen.empty:
        return UNDEFINED
    population, n, errors = (seen[c].to_numpy(float) for c in ("population", "n", "errors"))
    if (errors > n).any() or (n > population).any():
        raise ValueError("a stratum needs errors <= n <= population")
    value = float((population * errors / n).sum() / population.sum())
    effective = int(population.sum() ** 2 / (population**2 / n).sum())
    worst = wilson(min(effective, math.ceil(round(value * effective, 9))), effective, confidence)
    best = wilson(math.floor(round(value * effective, 9)), effective, confidence)
    return Estimate(value, best.low, worst.high, int(n.sum()))


def _check_share(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name} must lie between 0 and 1, got {value}")


def _check_counts(errors: int, n: int) -> None:
    if not 0 <= errors <= n:
        raise ValueError(f"errors must lie between 0 and n, got {errors} of {n}")
