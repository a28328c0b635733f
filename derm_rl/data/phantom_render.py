"""Drawing of a phantom scene: skin, lesion, structures, then the artifacts on top.

Each layer is a pure function of the image so far (H, W, 3 float32 in [0, 1]) and the scene.
Lengths in the scene are in image sides, so 64 px and 256 px show the same picture.
"""

from __future__ import annotations

import colorsys
from functools import partial

import numpy as np
from PIL import ImageDraw
from skimage.color import lab2rgb

from derm_rl.data import phantom_decoys
from derm_rl.data.phantom_brush import bezier, blend, grid, noise, shrink, sigmoid, strokes
from derm_rl.data.phantom_scene import COLOURS, Scene, border_radius, decoy_rng, ghost


def render(scene: Scene, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Image (size, size, 3) uint8 and lesion mask (size, size) bool of one scene."""
    factor = 2 if size <= 128 else 1  # small images are drawn twice as large and averaged down
    n = size * factor
    rng = np.random.default_rng([scene.texture_seed, scene.index])
    y, x = grid(n)
    rho, theta = _lesion_polar(scene, x, y)
    inside = rho < 1.0

    image = _skin(scene, n, rng)
    image = _lesion(image, scene, rho, theta, n, rng)
    if scene.decoys:  # under the artifacts: no decoy hides a true one
        painters = [partial(f, scene=ghost(scene), n=n) for f in (_ruler, _ink, _hairs)]
        painters.append(partial(_bubbles, scene=ghost(scene), x=x, y=y))
        image = phantom_decoys.draw(image, scene.decoys, decoy_rng(scene), painters)
    image = _ruler(image, scene, n)
    image = _ink(image, scene, n)
    image = _hairs(image, scene, n)
    image = _bubbles(image, scene, x, y)
    image = _optics(image, scene, x, y, rng)

    image, inside = shrink(image, factor), shrink(inside.astype(np.float32), factor) >= 0.5
    return (image * 255 + 0.5).clip(0, 255).astype(np.uint8), inside


# --------------------------------------------------------------------------- skin and lesion


def _skin(scene: Scene, n: int, rng: np.random.Generator) -> np.ndarray:
    colour = lab2rgb(np.array(scene.skin_lab, np.float64)).astype(np.float32)
    shade = 1 + 0.025 * noise(rng, n, 5) + 0.03 * noise(rng, n, 40)
    redness = 0.02 * noise(rng, n, 7)
    image = np.clip(colour, 0.05, 0.97) * shade[..., None]
    image[..., 0] += redness
    image[..., 1:] -= 0.4 * redness[..., None]
    return image


def _lesion_polar(scene: Scene, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance from the lesion's centre (1 on the border) and angle, in the lesion's own frame."""
    dx, dy = x - scene.centre[0], y - scene.centre[1]
    c, s = np.cos(scene.angle), np.sin(scene.angle)
    u, v = (c * dx + s * dy), (-s * dx + c * dy) / scene.aspect
    theta = np.arctan2(v, u)
    return np.hypot(u, v) / (scene.radius * border_radius(scene, theta)), theta


def _lesion(
    image: np.ndarray,
    scene: Scene,
    rho: np.ndarray,
    theta: np.ndarray,
    n: int,
    rng: np.random.Generator,
) -> np.ndarray:
    u, v = rho * np.cos(theta), rho * np.sin(theta)  # in lesion radii
    soft = scene.softness / scene.radius
    skin = image.mean((0, 1))
    rough, fine = noise(rng, n, 9), noise(rng, n, 24)
    colour = _tint(COLOURS[scene.colours[0]], skin) * (1 + 0.07 * rough + 0.08 * fine)[..., None]
    for name, (px, py, r) in zip(scene.colours[1:], scene.patches, strict=True):
        distance = np.hypot(u - px, v - py) / r + 0.22 * rough + 0.1 * fine
        colour = blend(colour, _tint(COLOURS[name], skin), 0.93 * sigmoid((1 - distance) / 0.13))
    colour = _structures(colour, scene, u, v, rho, rough)
    alpha = 0.95 * sigmoid((1 - rho + 0.03 * fine) / soft)
    for angle, length in scene.streaks:
        off = np.abs(np.angle(np.exp(1j * (theta - angle)))) * rho
        reach = sigmoid((1 + length - rho) / 0.03) * (rho > 0.8)
        alpha = np.maximum(alpha, 0.9 * reach * sigmoid((0.055 - off) / 0.015))
    return image * (1 - alpha[..., None]) + colour * alpha[..., None]


def _tint(colour: tuple[float, ...], skin: np.ndarray) -> np.ndarray:
    """Pigment seen through the skin: darker skin darkens it a little."""
    return np.asarray(colour, np.float32) * (0.82 + 0.25 * float(skin.mean()))


def _structures(
    colour: np.ndarray,
    scene: Scene,
    u: np.ndarray,
    v: np.ndarray,
    rho: np.ndarray,
    rough: np.ndarray,
) -> np.ndarray:
    """Pigment network, globules and blue-white veil."""
    if scene.network:
        waves = np.zeros_like(u)
        bend = 2.5 * scene.network_atypical * rough
        for k in range(3):
            a = k * np.pi / 3
            waves += np.cos(2 * np.pi * 4.2 * (u * np.cos(a) + v * np.sin(a)) + bend)
        lines = sigmoid(-(waves + 0.4) * 2.5)
        colour = colour * (1 - 0.55 * scene.network * lines)[..., None]
    for gx, gy, r in scene.globules:
        dot = sigmoid((r - np.hypot(u - gx, v - gy)) / 0.015)
        colour = colour * (1 - 0.6 * dot)[..., None]
    if scene.blue_white_veil:
        a = scene.patches[0] if scene.patches else (0.0, 0.0, 0.4)
        veil = 0.75 * sigmoid((0.55 - np.hypot(u + a[0] * 0.6, v + a[1] * 0.6)) / 0.08)
        colour = blend(colour, (0.52, 0.57, 0.70), veil)
    return colour


# ------------------------------------------------------------------------------- artifacts


def _hairs(image: np.ndarray, scene: Scene, n: int) -> np.ndarray:
    if not scene.hairs:
        return image

    def draw(canvas: ImageDraw.ImageDraw, side: int) -> None:
        for *points, width, darkness in scene.hairs:
            curve = [tuple(p) for p in bezier(np.reshape(points, (3, 2)), 16) * side]
            for part, thickness in ((slice(0, 7), 1.0), (slice(6, 12), 0.8), (slice(11, 16), 0.6)):
                thickness = max(1, round(width * thickness * side))  # a hair thins to its tip
                fill = int(255 * abs(darkness))
                canvas.line(curve[part], fill=fill, width=thickness, joint="curve")

    gray_hair = scene.hairs[0][-1] < 0
    return blend(image, (0.78, 0.76, 0.74) if gray_hair else (0.07, 0.05, 0.04), strokes(n, draw))


def _ruler(image: np.ndarray, scene: Scene, n: int) -> np.ndarray:
    """Black graduation on a pale strip along one edge, every fifth tick longer."""
    if not scene.ruler:
        return image
    edge, inset, spacing, tick, width, tilt = scene.ruler

    def to_image(along: float, across: float) -> tuple[float, float]:
        across = inset + across + tilt * (along - 0.5)
        return [(along, across), (1 - across, along), (along, 1 - across), (across, along)][
            int(edge)
        ]

    def draw(canvas: ImageDraw.ImageDraw, side: int) -> None:
        at = [tuple(side * c for c in to_image(p, 0.0)) for p in (-0.1, 1.1)]
        canvas.line(at, fill=235, width=round(width * side))
        for k in range(-1, int(1.1 / spacing) + 1):
            length = tick * (1.7 if k % 5 == 0 else 1.0)
            ends = [tuple(side * c for c in to_image(k * spacing, d)) for d in (0.0, length)]
            canvas.line(ends, fill=235, width=round(width * side))

    def strip(canvas: ImageDraw.ImageDraw, side: int) -> None:
        corners = [(-0.1, -0.2), (1.1, -0.2), (1.1, 1.9 * tick), (-0.1, 1.9 * tick)]
        canvas.polygon([tuple(side * c for c in to_image(*p)) for p in corners], fill=120)

    image = blend(image, (0.88, 0.87, 0.85), strokes(n, strip))
    return blend(image, (0.04, 0.04, 0.05), strokes(n, draw))


def _ink(image: np.ndarray, scene: Scene, n: int) -> np.ndarray:
    for *points, width, hue, alpha in scene.ink:

        def draw(canvas: ImageDraw.ImageDraw, side: int, points=points, width=width) -> None:
            curve = bezier(np.reshape(points, (3, 2))) * side
            r = width * side / 2
            for cx, cy in curve:  # round dabs: a felt tip has no square ends
                canvas.ellipse([cx - r, cy - r, cx + r, cy + r], fill=255)

        colour = colorsys.hsv_to_rgb(hue, 0.75, 0.55)
        image = blend(image, colour, alpha * strokes(n, draw))
    return image


def _bubbles(image: np.ndarray, scene: Scene, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Bright ring with a dark outline, a lighter inside and one highlight."""
    for cx, cy, r in scene.bubbles:
        distance = np.hypot(x - cx, y - cy)
        image = blend(image, (1, 1, 1), 0.16 * sigmoid((r - distance) / 0.006))
        dark_rim = np.exp(-(((distance - r - 0.028) / 0.016) ** 2))
        rim = np.exp(-(((distance - r) / 0.019) ** 2))
        spot = np.exp(-(((x - cx + 0.4 * r) ** 2 + (y - cy + 0.4 * r) ** 2) / (0.22 * r) ** 2))
        image = image * (1 - 0.35 * dark_rim)[..., None]
        image = blend(image, (1.0, 0.99, 0.98), np.clip(0.85 * rim + 0.9 * spot, 0, 0.95))
    return image


def _optics(
    image: np.ndarray, scene: Scene, x: np.ndarray, y: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Vignetting, the dark corner of a round field of view, sensor noise."""
    r = np.hypot(x - 0.5, y - 0.5)
    image = image * (1 - scene.vignette * (r / 0.707) ** 2)[..., None]
    if scene.dark_corner:
        image = image * (1 - 0.95 * sigmoid((r - scene.dark_corner) / 0.012))[..., None]
    return image + rng.normal(0, 0.012, image.shape).astype(np.float32)
