"""How many pairs to review, what is then known, and kappa against its definitions."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import cohen_kappa_score

from derm_rl.captions import agreement


def table_of_pairs(sizes: dict[tuple[str, str], int]) -> pd.DataFrame:
    rows = [
        {"pair_id": f"{source}-{kind}-{i}", "source": source, "question_type": kind}
        for (source, kind), n in sizes.items()
        for i in range(n)
    ]
    return pd.DataFrame(rows, columns=["pair_id", "source", "question_type"])


@pytest.mark.parametrize(("upper", "errors"), [(0.01, 0), (0.05, 2), (0.2, 7), (0.5, 0)])
def test_the_sample_size_is_the_smallest_that_bounds_the_rate(upper, errors):
    n = agreement.sample_size(upper, 0.95, errors)
    assert agreement.upper_bound(errors, n) <= upper + 1e-12
    assert agreement.upper_bound(errors, n - 1) > upper


def test_rule_of_three():
    assert agreement.sample_size(0.01) == 299  # ln 0.05 / ln 0.99
    assert agreement.sample_size(0.05, 0.99) == 90


@pytest.mark.parametrize(("population", "errors"), [(300, 0), (300, 3), (5000, 1), (20, 0)])
def test_a_finite_population_needs_fewer_and_the_bound_holds_exactly(population, errors):
    upper = 0.2 if population == 20 else 0.05
    n = agreement.sample_size(upper, 0.95, errors, population)
    assert n <= min(population, agreement.sample_size(upper, 0.95, errors))
    for bad in range(math.ceil(upper * population), population + 1, 7):
        assert stats.hypergeom.cdf(errors, population, bad, n) <= 0.05 + 1e-12
    assert agreement.upper_bound(errors, n, 0.95, population) < upper
    assert agreement.upper_bound(errors, population, 0.95, population) == errors / population


def test_more_errors_than_the_bound_allows_is_an_error():
    with pytest.raises(ValueError, match="choose a larger bound"):
        agreement.sample_size(0.01, 0.95, errors=5, population=300)
    for bad in ({"upper": 0}, {"upper": 1.0}, {"upper": 0.1, "confidence": 1}):
        with pytest.raises(ValueError, match="between 0 and 1"):
            agreement.sample_size(**bad)
    with pytest.raises(ValueError, match="between 0 and n"):
        agreement.upper_bound(5, 3)
    assert agreement.upper_bound(0, 0) == 1.0


def test_a_bound_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    found = rng.binomial(200, 0.03, 2000)
    covered = np.mean([agreement.upper_bound(int(k), 200) >= 0.03 for k in found])
    assert covered >= 0.94


def test_a_plan_deals_in_proportion_and_reaches_every_stratum():
    pairs = table_of_pairs({("a", "x"): 900, ("a", "y"): 95, ("b", "x"): 3, (None, "x"): 2})
    planned = agreement.plan(pairs, upper=0.05)
    assert planned["population"].tolist() == [900, 95, 3, 2]
    needed = agreement.sample_size(0.05, population=1000)
    assert needed <= planned["n"].sum() <= needed + 2
    assert (planned["n"] >= 1).all() and (planned["n"] <= planned["population"]).all()
    each = agreement.plan(pairs, upper=0.05, per_stratum=True)
    assert each["n"].tolist()[2:] == [3, 2]  # too small to sample: reviewed whole
    assert each["n"].tolist()[0] == agreement.sample_size(0.05, population=900)


def test_an_empty_table_and_a_missing_column():
    assert agreement.plan(table_of_pairs({})).empty
    with pytest.raises(ValueError, match="'source' is missing"):
        agreement.plan(pd.DataFrame({"pair_id": ["1"], "question_type": ["x"]}))


def test_a_sample_does_not_depend_on_the_order_of_rows_and_grows():
    pairs = table_of_pairs({("a", "x"): 200, ("a", "y"): 50, (None, "y"): 10})
    planned = agreement.plan(pairs, upper=0.1)
    chosen = agreement.sample(pairs, planned, seed=3)
    again = agreement.sample(pairs.sample(frac=1, random_state=1), planned, seed=3)
    assert chosen == again and len(set(chosen)) == len(chosen) == planned["n"].sum()
    got = pairs[pairs["pair_id"].isin(chosen)].groupby(["source", "question_type"], dropna=False)
    assert got.size().tolist() == planned["n"].tolist()
    more = agreement.sample(pairs, agreement.plan(pairs, upper=0.05), seed=3)
    assert set(chosen) < set(more)
    assert agreement.sample(pairs, planned, seed=4) != chosen


def test_wilson():
    found = agreement.wilson(3, 100)
    assert found.value == 0.03 and found.n == 100
    z = stats.norm.ppf(0.975)
    centre = (0.03 + z**2 / 200) / (1 + z**2 / 100)
    half = z / (1 + z**2 / 100) * math.sqrt(0.03 * 0.97 / 100 + z**2 / 40000)
    assert (found.low, found.high) == pytest.approx((centre - half, centre + half))
    assert agreement.wilson(0, 50).low == pytest.approx(0, abs=1e-12)
    assert math.isnan(agreement.wilson(0, 0).value)


def test_a_stratified_rate_weights_by_population():
    strata = pd.DataFrame({"population": [9000, 1000], "n": [100, 100], "errors": [0, 50]})
    found = agreement.stratified(strata)
    assert found.value == pytest.approx(0.05) and found.low < 0.05 < found.high
    assert found.high - found.low > agreement.wilson(10, 200).high - agreement.wilson(10, 200).low
    even = pd.DataFrame({"population": [500, 500], "n": [50, 50], "errors": [1, 3]})
    assert agreement.stratified(even) == pytest.approx(agreement.wilson(4, 100))
    assert math.isnan(agreement.stratified(strata.assign(n=0, errors=0)).value)
    with pytest.raises(ValueError, match="errors <= n"):
        agreement.stratified(strata.assign(errors=101))


@pytest.mark.parametrize("weights", [None, "linear", "quadratic"])
def test_cohens_kappa_is_that_of_scikit_learn_without_missing_items(weights):
    rng = np.random.default_rng(1)
    first = rng.integers(1, 6, 120)
    second = np.clip(first + rng.integers(-1, 2, 120), 1, 5)
    found = agreement.cohen_kappa(first, second, weights, (1, 2, 3, 4, 5), resamples=100)
    assert found.value == pytest.approx(
        cohen_kappa_score(first, second, labels=[1, 2, 3, 4, 5], weights=weights)
    )
    assert found.low < found.value < found.high and found.n == 120
    holes = [None, np.nan, pd.NA]
    with_holes = agreement.cohen_kappa(
        [*first, 1, 2, pd.NA], [*second, *holes], weights, (1, 2, 3, 4, 5), resamples=100
    )
    assert with_holes == found


def test_kappa_by_hand():
    # 20 yes-yes, 15 no-no, 5 + 10 apart: observed 0.7, expected 0.5 (Cohen's example form).
    first = ["y"] * 25 + ["n"] * 25
    second = ["y"] * 20 + ["n"] * 5 + ["y"] * 10 + ["n"] * 15
    assert agreement.cohen_kappa(first, second, resamples=0).value == pytest.approx(0.4)


def test_kappa_of_one_category_or_nothing_is_undefined():
    for pair in (([], []), (["a"], [None]), (["a"] * 5, ["a"] * 5)):
        assert math.isnan(agreement.cohen_kappa(*pair).value)
    assert math.isnan(agreement.fleiss_kappa(np.array([["a", "a"], ["a", "a"]])).value)
    assert math.isnan(agreement.fleiss_kappa(pd.DataFrame()).value)
    with pytest.raises(ValueError, match="unknown category '9'"):
        agreement.cohen_kappa([1, 9], [1, 2], categories=[1, 2])


def test_fleiss_kappa_of_the_published_example():
    # Fleiss (1971) as tabulated widely: 10 items, 14 readers, 5 categories, kappa 0.210.
    counts = [
        [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
    ]  # fmt: skip
    ratings = np.array([np.repeat(np.arange(5), row) for row in counts])
    found = agreement.fleiss_kappa(ratings, resamples=200)
    assert found.value == pytest.approx(0.210, abs=5e-4) and found.low < 0.21 < found.high
    extra = pd.DataFrame(ratings).astype(object)
    extra.loc[10] = [0] + [None] * 13  # one rating alone says nothing about agreement
    assert agreement.fleiss_kappa(extra, resamples=0).value == pytest.approx(found.value)


def test_agreement_of_two_and_of_three_readers():
    rng = np.random.default_rng(2)
    rows = []
    for i in range(60):
        truth = rng.choice(["accept", "edit", "reject"])
        for reader in ("a", "b", "c")[: 2 if i % 3 else 3]:
            other = rng.choice(["accept", "edit", "reject"])
            verdict = truth if rng.random() < 0.8 else other
            grade = int(
                np.clip({"accept": 5, "edit": 3, "reject": 1}[truth] + rng.integers(2), 1, 5)
            )
            rating = grade if rng.random() < 0.9 else pd.NA
            rows.append({"pair_id": str(i), "reader": reader, "verdict": verdict, "safety": rating})
    frame = pd.DataFrame(rows).astype({"safety": "Int64"})
    three = agreement.agreement(frame, ["safety"]).set_index("what")
    assert three["readers"].tolist() == [3, 3] and three.loc["verdict", "n"] == 60
    assert three.loc["verdict", "measure"] == "Fleiss' kappa"
    assert 0.4 < three.loc["verdict", "kappa"] < 1 and 0.7 < three.loc["safety", "kappa"] < 1
    two = agreement.agreement(frame[frame["reader"] != "c"], ["safety"]).set_index("what")
    assert two["measure"].tolist() == ["Cohen's kappa", "weighted kappa"]
    assert (two["low"] < two["kappa"]).all() and (two["kappa"] < two["high"]).all()
    alone = agreement.agreement(frame[frame["reader"] == "a"], ["safety"])
    assert alone["kappa"].isna().all() and (alone["n"] == 0).all()
