"""A and B of the ABCD rule as geometry: how asymmetric and how irregular an outline is.

An outline is its radius (N,) in N equally spaced directions, N even, the first of them a principal
axis, in coordinates in which the ellipse of the same second moments is the unit circle. A linear
map keeps shares of an area, so a fold there leaves the same share uncovered as in the picture.
"""

from __future__ import annotations

import numpy as np

DIRECTIONS = 360


def fold_mismatches(radius: np.ndarray) -> np.ndarray:
    """Shares (2,) of the area that a fold at the first and at the second principal axis uncovers.

    0 is symmetric. The A of the ABCD rule (Stolz et al. 1994), for shape alone.
    """
    area, n = radius**2, len(radius)
    at = np.arange(n)
    mirrored = np.stack([area[-at % n], area[(n // 2 - at) % n]])
    return np.abs(area - mirrored).sum(1) / (2 * area.sum())


def fold_mismatch(radius: np.ndarray) -> float:
    """Mean of both :func:`fold_mismatches`; a melanoma of the phantom has about 0.09."""
    return float(fold_mismatches(radius).mean())


def spread(radius: np.ndarray) -> float:
    """Standard deviation of the radius about the ellipse, in mean radii: how uneven a border is."""
    return float(radius.std() / radius.mean())


def radius_of(points: np.ndarray, directions: int = DIRECTIONS) -> np.ndarray:
    """Radius (directions,) of a closed outline, points (2, N) in order, seen from its centre.

    Area moments of a polygon by its edges (Green's theorem). The outline must be star-shaped: each
    direction from the centre meets it once.
    """
    x, y = points
    nx, ny = np.roll(points, -1, axis=1)
    cross = x * ny - nx * y
    centre = [((a + b) * cross).sum() / (3 * cross.sum()) for a, b in ((x, nx), (y, ny))]
    x, y = points - np.array(centre)[:, None]
    nx, ny = np.roll([x, y], -1, axis=1)
    cross = x * ny - nx * y
    cross = 2 * cross / cross.sum()
    xx = ((x * x + x * nx + nx * nx) * cross).sum() / 12
    yy = ((y * y + y * ny + ny * ny) * cross).sum() / 12
    xy = ((x * ny + 2 * x * y + 2 * nx * ny + nx * y) * cross).sum() / 24
    values, vectors = np.linalg.eigh(np.array([[xx, xy], [xy, yy]]))
    u, v = (vectors / (2 * np.sqrt(values))).T @ np.stack([x, y])
    at = np.arange(directions) * 2 * np.pi / directions
    return np.interp(at, np.arctan2(v, u), np.hypot(u, v), period=2 * np.pi)
