"""Brushes that phantom images are painted with: grids, noise, blending, anti-aliased strokes.

Lengths are in image sides, so that one scene looks the same at any size.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import zoom

_LINES = 4  # thin lines are drawn this many times larger and averaged down: smooth at any angle


@lru_cache(maxsize=4)
def grid(n: int) -> tuple[np.ndarray, np.ndarray]:
    axis = ((np.arange(n) + 0.5) / n).astype(np.float32)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    return y, x


def shrink(image: np.ndarray, factor: int) -> np.ndarray:
    if factor == 1:
        return image
    h, w = image.shape[0] // factor, image.shape[1] // factor
    return image.reshape(h, factor, w, factor, *image.shape[2:]).mean((1, 3))


def noise(rng: np.random.Generator, n: int, cells: int) -> np.ndarray:
    """Smooth noise (n, n) of about unit variance with ``cells`` features across."""
    return zoom(rng.normal(size=(cells, cells)).astype(np.float32), n / cells, order=1)[:n, :n]


def blend(image: np.ndarray, colour: object, alpha: np.ndarray) -> np.ndarray:
    alpha = alpha[..., None]
    return image * (1 - alpha) + np.asarray(colour, np.float32) * alpha


def sigmoid(value: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(value, -30, 30)))


def strokes(n: int, draw: object) -> np.ndarray:
    """Alpha (n, n) of lines that ``draw(ImageDraw, side)`` puts on an enlarged canvas."""
    side = n * (_LINES if n <= 256 else 2)
    canvas = Image.new("L", (side, side))
    draw(ImageDraw.Draw(canvas), side)
    return np.asarray(canvas.reduce(side // n), np.float32) / 255


def bezier(points: np.ndarray, steps: int = 24) -> np.ndarray:
    """Points (steps, 2) on the quadratic Bézier curve with three control points (3, 2)."""
    t = np.linspace(0, 1, steps)[:, None]
    return (1 - t) ** 2 * points[0] + 2 * t * (1 - t) * points[1] + t**2 * points[2]
