"""Bootstrap intervals against closed forms, scikit-learn and direct resampling."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from derm_rl.evaluation import bootstrap


def test_mean_interval_agrees_with_the_normal_approximation():
    x = np.random.default_rng(0).normal(3, 2, 400)
    found = bootstrap.interval(x, n=4000, seed=1)
    assert found.value == pytest.approx(x.mean()) and found.n == 400
    half = 1.96 * x.std() / 20
    assert found.high - x.mean() == pytest.approx(half, rel=0.1)
    assert x.mean() - found.low == pytest.approx(half, rel=0.1)


def test_same_seed_same_interval_and_other_seed_another():
    x = np.random.default_rng(0).normal(size=50)
    assert bootstrap.interval(x, seed=3) == bootstrap.interval(x, seed=3)
    assert bootstrap.interval(x, seed=3) != bootstrap.interval(x, seed=4)


def test_chunks_draw_every_resample_once(monkeypatch):
    monkeypatch.setattr(bootstrap, "_CHUNK", 70)
    parts = list(bootstrap.resamples(10, 25, seed=0))
    assert [len(p) for p in parts] == [7, 7, 7, 4]
    assert np.concatenate(parts).sum(1) == pytest.approx(10)


def test_groups_are_drawn_together_and_widen_the_interval():
    weights = next(bootstrap.resamples(6, 100, 0, groups=["a", "a", "b", "b", "b", "c"]))
    assert (weights[:, 0] == weights[:, 1]).all() and (weights[:, 2] == weights[:, 4]).all()
    assert (weights[:, [0, 2, 5]].sum(1) == 3).all()
    x = np.repeat(np.random.default_rng(0).normal(size=40), 5)  # five equal images per lesion
    apart, together = bootstrap.interval(x), bootstrap.interval(x, groups=np.arange(200) // 5)
    ratio = (together.high - together.low) / (apart.high - apart.low)
    assert ratio == pytest.approx(np.sqrt(5), rel=0.2)


def test_strata_keep_their_size_and_remove_the_variance_between_them():
    strata = np.repeat(["a", "b"], [30, 70])
    weights = next(bootstrap.resamples(100, 50, 0, strata=strata))
    assert (weights[:, :30].sum(1) == 30).all() and (weights[:, 30:].sum(1) == 70).all()
    constant = np.where(strata == "a", 0.0, 1.0)
    found = bootstrap.interval(constant, strata=strata)
    assert (found.low, found.high) == pytest.approx((0.7, 0.7))


def test_a_group_in_two_strata_is_refused():
    with pytest.raises(ValueError, match="more than one stratum"):
        list(bootstrap.resamples(3, 5, 0, groups=[1, 1, 2], strata=["a", "b", "b"]))
    with pytest.raises(ValueError, match="2 group or stratum labels for 3"):
        list(bootstrap.resamples(3, 5, 0, groups=[1, 1]))


@pytest.mark.parametrize("ties", [False, True])
def test_auc_equals_scikit_learn_also_with_weights_and_ties(ties):
    rng = np.random.default_rng(5)
    y = (rng.random(200) < 0.2).astype(float)
    score = rng.normal(size=200) + y
    score = score.round() if ties else score
    weights = rng.multinomial(200, np.full(200, 1 / 200), 7).astype(float)
    found = bootstrap.auc(np.stack([y, score], 1), weights)
    expected = [roc_auc_score(y, score, sample_weight=w) for w in weights]
    assert found == pytest.approx(expected)


def test_undefined_statistics_give_nan_bounds_not_errors():
    y, score = np.zeros(20), np.arange(20.0)
    found = bootstrap.interval(np.stack([y, score], 1), bootstrap.auc)
    assert np.isnan([found.value, found.low, found.high]).all()
    assert np.isnan(bootstrap.interval([1.0]).low)
    assert np.isnan(bootstrap.interval([1.0, 2.0], groups=["a", "a"]).low)
    empty = bootstrap.interval([])
    assert np.isnan(empty.value) and empty.n == 0


def test_ratio_of_sums():
    values = np.array([[1.0, 2.0], [3.0, 2.0]])
    assert bootstrap.interval(values, bootstrap.ratio).value == 1.0


def test_difference_of_independent_samples():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, 300), rng.normal(1, 1, 300)
    found = bootstrap.difference(a, b, n=3000)
    assert found.value == pytest.approx(b.mean() - a.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * np.sqrt(2 / 300), rel=0.1)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    samples = rng.random((200, 100)) < 0.4
    found = [bootstrap.interval(s, n=300, seed=i) for i, s in enumerate(samples)]
    covered = np.mean([x.low <= 0.4 <= x.high for x in found])
    assert 0.89 <= covered <= 0.99
