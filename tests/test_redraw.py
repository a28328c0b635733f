"""Redrawn images: a share of the rows, the same ones every time, by the model's hand."""

import numpy as np
import pytest

from derm_rl import pipeline
from derm_rl.redraw import redraw
from derm_rl.settings import Redraw


@pytest.fixture
def pipe(tiny_pipeline_folder):
    return pipeline.load(tiny_pipeline_folder)


def settings(**changes):
    values = dict(share=0.25, strength=0.7, inference_steps=4, guidance_scale=1.0, batch_size=2)
    return Redraw(**(values | changes))


def redrawn(pipe, images, seed=0, **changes):
    captions = ["a dermoscopic image"] * len(images)
    return redraw(pipe, images, captions, settings(**changes), seed, progress=False)


def test_a_share_is_redrawn_the_same_way_for_the_same_seed(pipe, tiny_images):
    before = tiny_images.copy()
    found = redrawn(pipe, tiny_images)
    changed = (found != tiny_images).any((1, 2, 3))
    assert changed.sum() == len(tiny_images) // 4
    assert found.dtype == np.uint8 and np.array_equal(tiny_images, before)
    assert np.array_equal(found, redrawn(pipe, tiny_images))
    other = (redrawn(pipe, tiny_images, seed=1) != tiny_images).any((1, 2, 3))
    assert not np.array_equal(other, changed)


def test_less_noise_keeps_more(pipe, tiny_images):
    def distance(strength):
        found = redrawn(pipe, tiny_images, share=1.0, strength=strength)
        return np.abs(found.astype(int) - tiny_images).mean()

    assert distance(0.25) < distance(1.0)
