"""Quality: each measure against a reference written from its definition, and where it must move."""

import numpy as np
import pytest
from scipy import linalg

from derm_rl.evaluation import quality

RNG = np.random.default_rng(0)
REAL, NEAR = RNG.normal(size=(60, 5)), RNG.normal(0.2, 1.1, size=(50, 5))


def test_frechet_distance_is_the_formula():
    mean = ((REAL.mean(0) - NEAR.mean(0)) ** 2).sum()
    a, b = np.cov(REAL.T), np.cov(NEAR.T)
    expected = mean + np.trace(a + b - 2 * np.real(linalg.sqrtm(a @ b)))
    assert quality.frechet_distance(REAL, NEAR) == pytest.approx(expected, rel=1e-6)
    assert quality.frechet_distance(REAL, REAL) == pytest.approx(0, abs=1e-6)


def test_kernel_distance_is_the_unbiased_estimate():
    def kernel(x, y):
        return (x @ y / len(x) + 1) ** 3

    n = 50  # one subset of all images is no random choice
    a, b = REAL[:n], NEAR[:n]
    same = sum(kernel(s[i], s[j]) for s in (a, b) for i in range(n) for j in range(n) if i != j)
    crossed = sum(kernel(x, y) for x in a for y in b)
    expected = same / (n * (n - 1)) - 2 * crossed / n**2
    mean, std = quality.kernel_distance(a, b, subsets=3, subset_size=n)
    assert mean == pytest.approx(expected, rel=1e-6) and std == pytest.approx(0, abs=1e-9)
    random = quality.kernel_distance(REAL, NEAR, subset_size=20, seed=1)
    assert random == quality.kernel_distance(REAL, NEAR, subset_size=20, seed=1)
    assert random != quality.kernel_distance(REAL, NEAR, subset_size=20, seed=2)


def test_mmd_is_the_mean_of_the_kernel():
    def mean_kernel(a, b):
        return np.mean([np.exp(-((x - y) ** 2).sum() / (2 * 1.5**2)) for x in a for y in b])

    expected = mean_kernel(REAL, REAL) + mean_kernel(NEAR, NEAR) - 2 * mean_kernel(REAL, NEAR)
    assert quality.mmd(REAL, NEAR, 1.5) == pytest.approx(expected, rel=1e-6)
    distances = [np.linalg.norm(x - y) for i, x in enumerate(REAL) for y in REAL[:i]]
    by_default = quality.mmd(REAL, NEAR, float(np.median(distances)))
    assert quality.mmd(REAL, NEAR) == pytest.approx(by_default, rel=1e-9)


@pytest.mark.parametrize("k", [1, 5])
def test_neighbours_by_loops(k):
    def radius(x, among):
        return sorted(np.linalg.norm(x - y) for y in among)[k]

    def inside(x, centre, among):
        return np.linalg.norm(x - centre) < radius(centre, among)

    hits = np.array([[inside(g, r, REAL) for g in NEAR] for r in REAL])
    found = quality.neighbours(REAL, NEAR, k)
    assert found.precision.tolist() == hits.any(0).tolist()
    assert found.density == pytest.approx(hits.sum(0) / k)
    assert found.coverage.tolist() == hits.any(1).tolist()
    assert found.recall.tolist() == [any(inside(r, g, NEAR) for g in NEAR) for r in REAL]


def test_each_measure_moves_with_what_it_is_for():
    real = RNG.normal(size=(300, 4))
    collapsed = 0.05 * RNG.normal(size=(300, 4))  # plausible, all alike
    strayed = np.concatenate([RNG.normal(size=(150, 4)), RNG.normal(8, 1, size=(150, 4))])
    good, narrow, half = (
        {k: float(np.mean(v)) for k, v in quality.neighbours(real, g)._asdict().items()}
        for g in (RNG.normal(size=(300, 4)), collapsed, strayed)
    )
    assert min(good.values()) > 0.85
    assert narrow["precision"] == 1 and narrow["coverage"] < 0.3 and narrow["recall"] < 0.1
    assert half["precision"] == pytest.approx(0.5, abs=0.05) and half["recall"] > 0.7


def test_spread_is_the_mean_distance_within_a_prompt():
    x = np.array([[0.0, 0], [3, 4], [1, 1], [1, 1], [1, 4]])
    assert quality.spread(x, ["b", "b", "a", "a", "a"]).tolist() == [2.0, 5.0]
    assert quality.spread(x, ["b", "b", "a", "a", "a"], squared=True).tolist() == [6.0, 25.0]
    with pytest.raises(ValueError, match="'b' has one image"):
        quality.spread(x, ["a", "a", "a", "a", "b"])


def test_standardized_by_the_reference():
    flat = REAL * [1, 10, 0, 1, 1] + [0, 5, 7, 0, 0]
    z = quality.standardized(flat, flat)
    assert z.mean(0) == pytest.approx(np.zeros(5), abs=1e-9)
    assert z.std(0) == pytest.approx([1, 1, 0, 1, 1])


def test_too_few_images_are_an_error():
    with pytest.raises(ValueError, match="5 generated images have no 5-th neighbour"):
        quality.neighbours(REAL, NEAR[:5])
