"""The phantom's truth: what was drawn can be measured in the picture."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from derm_rl.data import phantom, phantom_brush, phantom_render, phantom_scene, table

CROWDED = dict.fromkeys(phantom_scene.PAPER_PREVALENCE, 0.5)


def measured_colours(image, mask, skin_mean):
    """Colours of the dermoscopic six that cover at least 3 % of the lesion, by nearest colour."""
    names = list(phantom_scene.COLOURS)
    tints = np.array([phantom_render._tint(phantom_scene.COLOURS[n], skin_mean) for n in names])
    pixels = image[mask] / 255
    nearest = np.linalg.norm(pixels[:, None] - tints, axis=-1).argmin(1)
    return {n for i, n in enumerate(names) if (nearest == i).mean() > 0.03}


def test_an_image_depends_on_seed_and_index_alone():
    paths = phantom.table(12, 3)["path"].tolist()
    together, masks = phantom.render_paths(paths, 48, workers=2)
    for i in (11, 0, 5):
        np.testing.assert_array_equal(phantom.render_path(paths[i], 48), together[i])
    assert masks.shape == (12, 48, 48) and masks.dtype == bool
    other = phantom.render_path(paths[0].replace("::3/", "::4/"), 48)
    assert not np.array_equal(other, together[0])


def test_addresses_hold_everything_and_bad_ones_are_explained():
    path = phantom.path_of(1, 2, "MEL", ("hair", "ink"))
    scene = phantom.scene_at(path)
    assert (scene.seed, scene.index, scene.diagnosis) == (1, 2, "MEL")
    assert scene.artifacts == ("hair", "ink") and scene.hairs and scene.ink
    assert not scene.ruler and not scene.bubbles
    for bad in ("phantom::1/2", "phantom::1/2/XXX/none", "phantom::1/2/NV/hat"):
        with pytest.raises(ValueError, match="expected 'phantom::"):
            phantom.scene_at(bad)


def test_the_table_fits_every_data_set_and_the_prevalences_are_the_papers():
    frame = phantom.table(3000, 0)
    table.validate(frame, "phantom")
    for name, share in phantom_scene.PAPER_PREVALENCE.items():
        found = (frame["diagnosis"] == "MEL") if name == "MEL" else frame[name]
        # A lesion's diagnosis counts twice where it has two images, so the test is on images of
        # different lesions.
        found = found[frame["lesion_id"].drop_duplicates().index]
        p = stats.binomtest(int(found.sum()), len(found), share).pvalue
        assert p > 1e-4, (name, found.mean(), share)
    assert set(frame["skin_type"]) == {1, 2, 3, 4, 5, 6}
    per_lesion = frame.groupby("lesion_id")["diagnosis"].nunique()
    assert per_lesion.max() == 1 and frame["lesion_id"].nunique() < len(frame)


def test_two_images_of_a_lesion_show_the_same_lesion_from_another_side():
    first, second = phantom.scene(0, 0, "MEL", ()), phantom.scene(0, 1, "MEL", ("hair",))
    assert first.lesion_index == second.lesion_index == 0
    assert first.colours == second.colours and first.harmonics == second.harmonics
    assert first.angle != second.angle and first.centre != second.centre


@pytest.mark.parametrize("index", range(0, 40, 4))
def test_the_mask_has_the_area_that_was_drawn(index):
    scene = phantom.scene(9, index, "MEL" if index % 8 else "NV", ())
    theta = np.linspace(0, 2 * np.pi, 4000, endpoint=False)
    outline = 1 + sum(a * np.cos(k * theta + p) for k, (a, p) in enumerate(scene.harmonics, 1))
    drawn = 0.5 * ((scene.radius * outline) ** 2).mean() * 2 * np.pi * scene.aspect
    _, mask = phantom_render.render(scene, 256)
    assert mask.mean() == pytest.approx(drawn, rel=0.03)


def test_hairs_are_where_they_were_drawn_and_nowhere_else():
    for index in range(0, 40, 4):
        with_hair = phantom.scene(2, index, "NV", ("hair", "ruler"))
        without = phantom.scene(2, index, "NV", ("ruler",))
        assert with_hair.ruler == without.ruler  # one artifact does not move another
        image = phantom_render.render(with_hair, 128)[0].astype(int)
        clean = phantom_render.render(without, 128)[0].astype(int)
        changed = np.abs(image - clean).max(-1) > 8
        assert 0.01 < changed.mean() < 0.4
        curves = [phantom_brush.bezier(np.reshape(h[:6], (3, 2)), 200) for h in with_hair.hairs]
        every = np.concatenate(curves)
        points = every[((every > 0.02) & (every < 0.98)).all(1)]
        x, y = (points * 128).astype(int).T
        assert changed[y, x].mean() > 0.8
        distance = np.linalg.norm(
            np.argwhere(changed)[:, None, ::-1] / 128 - every[None, ::5], axis=-1
        ).min(1)
        assert np.quantile(distance, 0.99) < 0.05


def test_the_colours_drawn_can_be_counted():
    off = []
    for index in range(0, 240, 4):
        diagnosis = "MEL" if index % 8 else "NV"
        scene = phantom.scene(4, index, diagnosis, ())
        if scene.network or scene.globules or scene.blue_white_veil or scene.skin_type > 4:
            continue  # structures are drawn in colours of their own
        image, mask = phantom_render.render(scene, 256)
        skin_mean = image[~mask] / 255
        off.append(len(measured_colours(image, mask, skin_mean)) - len(scene.colours))
    assert len(off) >= 8
    assert np.mean(np.abs(off) <= 1) >= 0.9, off


def test_one_scene_is_one_picture_at_every_size():
    for path in phantom.table(8, 1, CROWDED)["path"]:
        small = phantom.render_path(path, 64).astype(float)
        large = phantom.render_path(path, 256).astype(float)
        shrunk = large.reshape(64, 4, 64, 4, 3).mean((1, 3))
        assert np.corrcoef(small.ravel(), shrunk.ravel())[0, 1] > 0.95


def test_the_truth_lists_what_was_drawn():
    paths = phantom.table(6, 0, CROWDED)["path"].tolist()
    truth = phantom.truth(paths)
    assert isinstance(truth, pd.DataFrame) and len(truth) == 6
    assert (truth["n_colours"] == truth["colours"].map(len)).all()
    assert truth["asymmetry"].between(0, 1).all()
    shapes = [phantom_scene.drawn_shape(phantom.scene_at(path)) for path in paths]
    assert truth[["drawn_asymmetry", "drawn_border"]].to_numpy().tolist() == [*map(list, shapes)]


def test_skin_lightness_falls_with_the_fitzpatrick_type():
    scenes = [phantom.scene(0, i, "NV", ()) for i in range(0, 400, 4)]
    lightness = [np.mean([s.skin_lab[0] for s in scenes if s.skin_type == t]) for t in range(1, 7)]
    assert all(a > b for a, b in zip(lightness, lightness[1:], strict=False))
