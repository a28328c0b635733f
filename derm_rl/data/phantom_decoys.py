"""What a phantom image may show that is *no* artifact: decoys, which carry no label.

A classifier that only ever saw true artifacts and clean skin may take any dark line at the edge for
a ruler and any blue smear for ink, and a generator rewarded for pleasing it will find that out.
Decoys teach what an artifact is not: each family lacks what defines the artifact it resembles, be
that evenly spaced ticks, a closed bright ring, a long thin smooth curve or a crisp stroke of ink.

:data:`FAMILIES` are for training. :data:`HELD_OUT` are of other shapes and only ever measure.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Sequence

import numpy as np
from PIL import ImageDraw
from scipy.ndimage import gaussian_filter

from derm_rl.data.phantom_brush import bezier, blend, grid, noise, shrink, sigmoid, strokes

VISIBLE = 0.12  # at most: opacity of a "faded" artifact, or the share of it that is not erased
BLURRED = 0.35  # opacity of a blurred one: wide enough that no edge, ring or tick is left
INK_HUES = (0.55, 0.85)  # a saturated stroke of these hues would be ink

Painter = Callable[[np.ndarray], np.ndarray]
Draw = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def draw(
    image: np.ndarray,
    families: Sequence[str],
    rng: np.random.Generator,
    painters: Sequence[Painter],
) -> np.ndarray:
    """``image`` (H, W, 3) float32 in [0, 1] with one decoy of each family on it.

    Args:
        painters: each paints one true artifact over an image; what "faded" fades.
    """
    for name in families:
        if name == "faded":
            image = faded(image, rng, painters[int(rng.integers(len(painters)))])
        else:
            image = (DRAWN | HELD_OUT)[name](image, rng)
    return image


def choose(n: int, share: float, rng: np.random.Generator) -> list[tuple[str, ...]]:
    """For each of ``n`` images its families for training: of a random ``share`` one or two."""
    shown = rng.random(n) < share
    return [
        tuple(rng.choice(FAMILIES, int(rng.integers(1, 3)), replace=False).tolist()) if s else ()
        for s in shown
    ]


def draw_held_out(image: np.ndarray, family: str, rng: np.random.Generator) -> np.ndarray:
    """Any image (S, S, 3) uint8, phantom or real, with one decoy of a family in ``HELD_OUT``.

    It lies over all that the image shows. (In a phantom's own address decoys lie under artifacts.)
    """
    factor = 2 if len(image) <= 128 else 1  # as phantoms are drawn
    large = image.repeat(factor, 0).repeat(factor, 1).astype(np.float32) / 255
    drawn = shrink(HELD_OUT[family](large, rng), factor)
    return (drawn * 255 + 0.5).clip(0, 255).astype(np.uint8)


# ------------------------------------------------------------------------ shared by families


def _turned(points: np.ndarray, edge: int) -> np.ndarray:
    """Points (..., 2) given for the upper edge of the image, at edge 0 to 3."""
    for _ in range(edge):
        points = np.stack([1 - points[..., 1], points[..., 0]], -1)
    return points


def _segments(image: np.ndarray, ends: np.ndarray, width, colour, alpha: float) -> np.ndarray:
    """Straight segments between points ``ends`` (N, 2, 2); widths one or (N,), in image sides."""
    widths = np.broadcast_to(width, len(ends))

    def pen(canvas: ImageDraw.ImageDraw, side: int) -> None:
        for (a, b), w in zip(ends * side, widths * side, strict=True):
            canvas.line([*a, *b], fill=255, width=max(1, round(w)))

    return blend(image, colour, alpha * strokes(len(image), pen))


def _shape(n: int, points: np.ndarray) -> np.ndarray:
    """Alpha (n, n) of a filled polygon of points (N, 2)."""
    return strokes(n, lambda canvas, side: canvas.polygon([tuple(p * side) for p in points], 255))


def _colour(rng: np.random.Generator, saturation: tuple[float, float]) -> tuple[float, ...]:
    """A colour of any hue but ink's."""
    low, high = INK_HUES
    hue = (high + rng.uniform(0, 1 - (high - low))) % 1.0
    return colorsys.hsv_to_rgb(hue, rng.uniform(*saturation), rng.uniform(0.3, 0.9))


def _dark(rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(0.02, 0.1) + rng.uniform(0, 0.05, 3)


# ---------------------------------------------------------------------- families for training


def line(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Along an edge: a dark line or two, a pale strip, ticks that keep no distance. No ruler."""
    edge, depth, tilt = int(rng.integers(4)), rng.uniform(0.02, 0.12), rng.normal(0, 0.03)
    if rng.random() < 0.5:
        inner = depth + rng.uniform(0.05, 0.12)
        strip = np.array([[-0.1, -0.1], [1.1, -0.1], [1.1, inner + tilt], [-0.1, inner]])
        pale = rng.uniform(0.75, 0.92) + rng.uniform(-0.03, 0.03, 3)
        image = blend(image, pale, rng.uniform(0.3, 0.6) * _shape(len(image), _turned(strip, edge)))
    rows = [[[-0.1, depth], [1.1, depth + tilt]]]
    if rng.random() < 0.4:
        rows.append([[-0.1, depth + 0.07], [1.1, depth + tilt + 0.07]])
    if rng.random() < 0.5:
        for x in rng.uniform(0, 1, int(rng.integers(2, 7))):
            rows.append([[x, depth], [x + rng.normal(0, 0.02), depth + rng.uniform(0.02, 0.12)]])
    ends = _turned(np.array(rows), edge)
    return _segments(image, ends, rng.uniform(0.012, 0.03), _dark(rng), rng.uniform(0.6, 1.0))


def frame(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A border on two to four edges, dark or coloured, with a soft inner side."""
    y, x = grid(len(image))
    sides = rng.permutation([x, 1 - x, y, 1 - y])[: int(rng.integers(2, 5))]
    width, soft = rng.uniform(0.03, 0.12), rng.uniform(0.004, 0.03)
    inside = np.min(sides, 0) + 0.02 * noise(rng, len(image), 12)
    colour = _dark(rng) if rng.random() < 0.5 else _colour(rng, (0.2, 0.7))
    return blend(image, colour, rng.uniform(0.4, 0.95) * sigmoid((width - inside) / soft))


def smear(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Broad uneven strokes of any colour; of ink's hues only faint ones, paler than ink."""
    for _ in range(int(rng.integers(1, 4))):
        curve = bezier(rng.uniform(0, 1, (3, 2)))
        width = rng.uniform(0.06, 0.16)

        def pen(canvas: ImageDraw.ImageDraw, side: int, curve=curve, width=width) -> None:
            r = width * side / 2
            for cx, cy in curve * side:
                canvas.ellipse([cx - r, cy - r, cx + r, cy + r], fill=255)

        alpha = gaussian_filter(strokes(len(image), pen), 0.02 * len(image))
        alpha = alpha * np.clip(0.6 + 0.5 * noise(rng, len(image), 14), 0, 1)
        if rng.random() < 0.4:  # the blue and violet of ink, without its strength
            colour, strength = colorsys.hsv_to_rgb(rng.uniform(*INK_HUES), 0.5, 0.55), 0.3
        else:
            colour, strength = _colour(rng, (0.3, 0.9)), rng.uniform(0.4, 0.9)
        image = blend(image, colour, strength * alpha)
    return image


def blotch(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Round soft spots, darker or lighter than the skin, without a rim."""
    y, x = grid(len(image))
    for _ in range(int(rng.integers(2, 7))):
        cx, cy, r = *rng.uniform(0.05, 0.95, 2), rng.uniform(0.04, 0.12)
        distance = np.hypot(x - cx, y - cy) / r + 0.15 * noise(rng, len(image), 8)
        alpha = rng.uniform(0.3, 0.9) * sigmoid((1 - distance) / rng.uniform(0.1, 0.4))
        shade = rng.uniform(0.85, 1.0, 3) if rng.random() < 0.5 else rng.uniform(0.1, 0.5, 3)
        shade[2] = min(shade[2], shade[:2].max())  # never bluer than grey
        image = blend(image, shade, alpha)
    return image


def crumple(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """White shapes like crumpled paper: a jagged outline, broken creases. No bubble."""
    for _ in range(int(rng.integers(1, 5))):
        centre, r, n = rng.uniform(0.08, 0.92, 2), rng.uniform(0.06, 0.13), int(rng.integers(6, 11))
        angle = np.sort(rng.uniform(0, 2 * np.pi, n))
        around = np.stack([np.cos(angle), np.sin(angle)], -1)
        points = centre + r * rng.uniform(0.35, 1.2, (n, 1)) * around
        image = blend(image, (0.97, 0.96, 0.95), rng.uniform(0.3, 0.8) * _shape(len(image), points))
        creases = centre + r * rng.normal(0, 0.6, (int(rng.integers(4, 9)), 2, 2))
        bright = rng.random() < 0.5
        colour = np.full(3, rng.uniform(0.9, 1.0) if bright else rng.uniform(0.2, 0.5))
        image = _segments(image, creases, 0.012, colour, 0.7)
    return image


def scratch(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Short broken lines that turn sharply, as cracks do. No hair is that short or that bent."""
    rows = []
    for _ in range(int(rng.integers(4, 12))):
        point, angle = rng.uniform(0, 1, 2), rng.uniform(0, 2 * np.pi)
        for _ in range(int(rng.integers(1, 4))):
            angle += rng.choice([-1, 1]) * rng.uniform(0.8, 1.6)
            end = point + rng.uniform(0.03, 0.09) * np.array([np.cos(angle), np.sin(angle)])
            rows.append([point, end])
            point = end
    return _segments(image, np.array(rows), rng.uniform(0.012, 0.024), _dark(rng), 0.85)


def stubble(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Short straight strokes, scattered or in a tuft. No hair is so short."""
    n = int(rng.integers(4, 14))
    middle, spread = rng.uniform(0.1, 0.9, 2), rng.uniform(0.08, 0.4)
    start = (middle + spread * rng.uniform(-1, 1, (n, 2))).clip(0, 1)
    angle = rng.uniform(0, 2 * np.pi) + rng.normal(0, rng.uniform(0.1, 2), n)
    length = rng.uniform(0.02, 0.12, n)
    ends = start + length[:, None] * np.stack([np.cos(angle), np.sin(angle)], -1)
    rows = np.stack([start, ends], 1)
    return _segments(image, rows, rng.uniform(0.012, 0.026), _dark(rng), rng.uniform(0.6, 1))


def glint(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Bright streaks, straight or waved, and bright spots, as gel and scales reflect. No ring."""
    for _ in range(int(rng.integers(1, 6))):
        start, angle = rng.uniform(0.05, 0.95, 2), rng.uniform(0, 2 * np.pi)
        along, across = rng.uniform(0.01, 0.25), rng.uniform(-0.04, 0.04)
        t = np.linspace(0, 1, 9)
        wave = np.stack([along * t, across * np.sin(2 * np.pi * t)], -1)
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        points = start + wave @ turn
        rows = np.stack([points[:-1], points[1:]], 1)
        colour = np.full(3, rng.uniform(0.93, 1.0))
        image = _segments(image, rows, rng.uniform(0.014, 0.03), colour, rng.uniform(0.5, 0.9))
    return image


def lattice(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Chequer and grid noise, as the patches of an autoencoder leave behind."""
    y, x = grid(len(image))
    cells, strength = int(rng.integers(6, 17)), rng.uniform(0.03, 0.12)
    if rng.random() < 0.5:
        wave = np.sign(np.sin(np.pi * cells * x) * np.sin(np.pi * cells * y))
    else:
        seam = np.minimum((x * cells) % 1, (y * cells) % 1)
        wave = -2 * sigmoid((0.12 - seam) / 0.03)
    tiles = rng.normal(0, 0.5, (cells + 1, cells + 1, 3))
    tiles = tiles[(y * cells).astype(int), (x * cells).astype(int)]
    return (image * (1 + strength * (wave[..., None] + tiles))).clip(0, 1)


def faded(image: np.ndarray, rng: np.random.Generator, painter: Painter) -> np.ndarray:
    """A true artifact, blurred away, nearly transparent, or erased but for :data:`VISIBLE`."""
    how, difference = int(rng.integers(3)), painter(image) - image
    if how == 0:
        blur = rng.uniform(0.04, 0.07) * len(image)
        return (image + BLURRED * gaussian_filter(difference, (blur, blur, 0))).clip(0, 1)
    if how == 1:
        return image + rng.uniform(VISIBLE / 4, VISIBLE) * difference
    # Erased, but for one end of it.
    change = np.abs(difference).sum(2) > 0.05
    order = grid(len(image))[int(rng.integers(2))]
    end = np.quantile(order[change], rng.uniform(VISIBLE / 4, VISIBLE)) if change.any() else 0
    return np.where((order < end)[..., None], image + difference, image)


# ------------------------------------------------------------------------- families held out


def dashes(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rows of dots at uneven distances."""
    rows = []
    for _ in range(int(rng.integers(1, 4))):
        start, angle = rng.uniform(0.1, 0.9, 2), rng.uniform(0, np.pi)
        step = np.array([np.cos(angle), np.sin(angle)])
        for t in np.cumsum(rng.uniform(0.05, 0.2, int(rng.integers(4, 8)))) - 0.4:
            rows.append([start + t * step, start + (t + 0.02) * step])
    return _segments(image, np.array(rows), 0.024, _dark(rng), 0.85)


def arc(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Bright arcs of less than a third of a circle, as reflections are: rims that do not close."""
    rows = []
    for _ in range(int(rng.integers(2, 6))):
        centre, r = rng.uniform(0.1, 0.9, 2), rng.uniform(0.06, 0.14)
        angle = rng.uniform(0, 2 * np.pi) + np.linspace(0, rng.uniform(0.8, 1.9), 8)
        points = centre + r * np.stack([np.cos(angle), np.sin(angle)], -1)
        rows += list(np.stack([points[:-1], points[1:]], 1))
    return _segments(image, np.array(rows), 0.02, np.array([1.0, 0.99, 0.98]), 0.85)


def confetti(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Small flakes of any colour but ink's, as lint and make-up leave."""
    for _ in range(int(rng.integers(6, 20))):
        centre, size = rng.uniform(0, 1, 2), rng.uniform(0.01, 0.03)
        points = centre + size * rng.normal(0, 1, (4, 2))
        image = blend(image, _colour(rng, (0.4, 1.0)), 0.8 * _shape(len(image), points))
    return image


def fringe(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A fringe along an edge: strokes that stand at uneven distances and lean all ways."""
    edge, x = int(rng.integers(4)), np.cumsum(rng.exponential(0.09, 12)) - 0.05
    depth = rng.uniform(0.03, 0.14, 12)
    ends = np.stack(
        [np.stack([x, 0 * x], -1), np.stack([x + rng.normal(0, 0.05, 12), depth], -1)], 1
    )
    return _segments(image, _turned(ends, edge), rng.uniform(0.012, 0.02), _dark(rng), 0.85)


DRAWN: dict[str, Draw] = {
    f.__name__: f for f in (line, frame, smear, blotch, crumple, scratch, stubble, glint, lattice)
}
FAMILIES = (*DRAWN, "faded")
HELD_OUT: dict[str, Draw] = {f.__name__: f for f in (dashes, arc, confetti, fringe)}
