"""Decoys: seen in the picture, without a label, without what defines an artifact."""

import numpy as np
import pytest

from derm_rl.captions import measure
from derm_rl.data import phantom, phantom_decoys, phantom_render, phantom_scene

EVERY = (*phantom_decoys.FAMILIES, *phantom_decoys.HELD_OUT)
IMAGES = 12
# Of the artifact that a family resembles, what the rules that look for its definition must not see.
RESEMBLES = {
    "line": "ruler", "frame": "ruler", "fringe": "ruler", "dashes": "ruler", "lattice": "ruler",
    "smear": "ink", "blotch": "ink", "confetti": "ink", "crumple": "gel_bubble",
    "arc": "gel_bubble",
}  # fmt: skip


def pictures(family, size=64, artifacts=()):
    scenes = [
        phantom.scene(11, 4 * i, "MEL" if i % 2 else "NV", artifacts, (family,) if family else ())
        for i in range(IMAGES)
    ]
    return np.stack([phantom_render.render(s, size)[0] for s in scenes])


@pytest.mark.parametrize("family", EVERY)
def test_a_decoy_is_seen_and_is_the_same_at_every_size(family):
    clean, small, large = pictures(None), pictures(family), pictures(family, 256)
    changed = (np.abs(small.astype(int) - clean).max(-1) > 8).mean((1, 2))
    least = 0 if family == "faded" else 0.003  # next to nothing is left of some faded ones
    assert (changed > least).mean() > 0.8, changed
    assert np.array_equal(small, pictures(family))
    shrunk = large.reshape(IMAGES, 64, 4, 64, 4, 3).mean((2, 4))
    assert np.corrcoef(small.ravel(), shrunk.ravel())[0, 1] > 0.95


@pytest.mark.parametrize("family, artifact", RESEMBLES.items())
def test_a_decoy_lacks_what_defines_the_artifact_that_it_resembles(family, artifact):
    taken = [measure.measure(image).artifacts[artifact] for image in pictures(family, 96)]
    assert np.mean(taken) <= 1 / IMAGES, taken


def test_decoys_change_nothing_else_and_lie_under_the_artifacts():
    plain = phantom.scene(3, 8, "MEL", ("ink", "dark_corner"))
    decoyed = phantom.scene(3, 8, "MEL", ("ink", "dark_corner"), ("frame", "smear"))
    assert vars(decoyed) | {"decoys": ()} == vars(plain)
    ink = pictures(None, artifacts=("ink",)), pictures("smear", artifacts=("ink",))
    clean = pictures(None), pictures("smear")
    stroke = np.abs(ink[0].astype(int) - clean[0]).max(-1) > 60
    # Ink covers what is under it: the decoy is fainter there than without ink.
    over = np.abs(ink[0].astype(int) - ink[1]).max(-1)[stroke].mean()
    assert over < 0.5 * np.abs(clean[0].astype(int) - clean[1]).max(-1)[stroke].mean()


def test_an_address_holds_the_decoys():
    path = phantom.path_of(1, 2, "NV", ("hair",), ("line", "faded"))
    scene = phantom.scene_at(path)
    assert scene.artifacts == ("hair",) and scene.decoys == ("line", "faded")
    assert phantom.path_of(1, 2, "NV", ()) == "phantom::1/2/NV/none"  # as without decoys
    for bad in (path + "/more", "phantom::1/2/NV/none/hat"):
        with pytest.raises(ValueError, match="is no phantom address"):
            phantom.scene_at(bad)


def test_a_random_share_of_the_images_shows_one_or_two_families_for_training():
    chosen = phantom_decoys.choose(2000, 0.3, np.random.default_rng(0))
    counts = np.bincount([len(c) for c in chosen], minlength=3) / 2000
    assert len(counts) == 3 and counts[1:] == pytest.approx([0.15, 0.15], abs=0.03)
    assert {f for c in chosen for f in c} == set(phantom_decoys.FAMILIES)
    assert phantom_decoys.choose(5, 0.0, np.random.default_rng(0)) == [()] * 5
    paths = [phantom.path_of(1, 4 * i, "NV", ("hair",)) for i in range(50)]
    shown = phantom.with_decoys(paths, 1.0, 3)
    assert shown == phantom.with_decoys(paths, 1.0, 3) != phantom.with_decoys(paths, 1.0, 4)
    for path, with_decoys in zip(paths, shown, strict=True):
        scene = phantom.scene_at(with_decoys)
        assert scene.decoys and vars(scene) | {"decoys": ()} == vars(phantom.scene_at(path))
    assert phantom.with_decoys(paths, 0.0, 3) == paths


@pytest.mark.parametrize("family", phantom_decoys.HELD_OUT)
def test_a_held_out_decoy_can_be_drawn_on_any_image(family):
    image = np.random.default_rng(0).integers(120, 200, (48, 48, 3), np.uint8)
    drawn = phantom_decoys.draw_held_out(image, family, np.random.default_rng(1))
    assert drawn.shape == image.shape and drawn.dtype == np.uint8
    changed = (drawn != image).any(-1)
    assert 0.01 < changed.mean() < 0.6
    assert np.array_equal(
        drawn, phantom_decoys.draw_held_out(image, family, np.random.default_rng(1))
    )


def test_families_that_measure_are_not_trained_on():
    assert not set(phantom_decoys.FAMILIES) & set(phantom_decoys.HELD_OUT)
    assert not set(EVERY) & set(phantom_scene.ARTIFACTS)
