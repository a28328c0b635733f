"""The geometry of outlines, against closed forms and against masks of the phantom."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from derm_rl.data import phantom, phantom_render, phantom_scene, shape

THETA = np.arange(720) * 2 * np.pi / 720


def outline(amplitude, order, phase=0.0):
    radius = 1 + amplitude * np.cos(order * THETA + phase)
    return radius * np.stack([np.cos(THETA), np.sin(THETA)])


def moved(points, turn, stretch, shift):
    c, s = np.cos(turn), np.sin(turn)
    return np.array([[c, -s], [s, c]]) @ (points * [[stretch], [1.0]]) + np.array(shift)[:, None]


@settings(deadline=None)
@given(st.floats(-3, 3), st.floats(1.2, 3.0), st.tuples(st.floats(-9, 9), st.floats(-9, 9)))
def test_an_ellipse_anywhere_is_a_circle_of_radius_one(turn, stretch, shift):
    radius = shape.radius_of(moved(outline(0, 1), turn, stretch, shift))
    assert np.abs(radius - 1).max() < 2e-3
    assert shape.fold_mismatch(radius) < 1e-3 and shape.spread(radius) < 1e-3


@pytest.mark.parametrize("amplitude", [0.02, 0.1, 0.2])
def test_three_lobes_fold_onto_each_other_at_one_axis_only(amplitude):
    radius = 1 + amplitude * np.cos(3 * THETA)
    # |r(θ)² - r(π - θ)²| = 4a |cos 3θ|, of mean 8a/π; the other axis leaves nothing uncovered.
    expected = 2 * amplitude / np.pi / (1 + amplitude**2 / 2)
    assert shape.fold_mismatches(radius) == pytest.approx([0, 2 * expected], rel=1e-3, abs=1e-9)
    assert shape.fold_mismatch(radius) == pytest.approx(expected, rel=1e-3)
    assert shape.spread(radius) == pytest.approx(amplitude / np.sqrt(2), rel=1e-6)


def test_even_lobes_in_line_with_the_axes_are_symmetric_and_irregular():
    radius = shape.radius_of(moved(outline(0.1, 4), 0.7, 1.5, (3, 4)))
    assert shape.fold_mismatch(radius) < 5e-3 and shape.spread(radius) > 0.06


@settings(deadline=None)
@given(st.floats(-3, 3), st.tuples(st.floats(-9, 9), st.floats(-9, 9)))
def test_turning_and_moving_a_lesion_changes_nothing(turn, shift):
    points = outline(0.15, 3, 1.0) * [[1.4], [1.0]]
    there, back = (shape.radius_of(p) for p in (points, moved(points, turn, 1.0, shift)))
    assert shape.fold_mismatch(there) == pytest.approx(shape.fold_mismatch(back), abs=1e-3)
    assert shape.spread(there) == pytest.approx(shape.spread(back), abs=1e-3)


def folded_mask(mask):
    """The share of a mask that folds leave uncovered, by counting pixels."""
    points = np.argwhere(mask).astype(float)
    centre = points.mean(0)
    _, axes = np.linalg.eigh(np.cov((points - centre).T))
    shares = []
    for axis in axes.T:
        folded = 2 * np.outer((points - centre) @ axis, axis) - (points - centre) + centre
        at = np.rint(folded).astype(int).clip(0, len(mask) - 1)
        shares.append(1 - mask[tuple(at.T)].mean())
    return np.mean(shares)


def test_the_drawn_asymmetry_is_that_of_the_drawn_mask():
    frame = phantom.table(40, 5, {"MEL": 0.5})
    scenes = [phantom.scene_at(path) for path in frame["path"]]
    drawn = [phantom_scene.drawn_shape(s)[0] for s in scenes]
    counted = [folded_mask(phantom_render.render(s, 160)[1]) for s in scenes]
    off = np.abs(np.array(drawn) - counted)
    assert np.median(off) < 0.01 and off.max() < 0.04
