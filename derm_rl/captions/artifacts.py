"""What is in the image and not of the skin: hair, gel bubbles, ruler, ink, dark corners.

Each detector looks for the physical thing: hair is long and thin; an air bubble in the gel is a
round spot with a bright rim, where light is reflected; a ruler is a row of evenly spaced ticks;
marker ink is far more saturated than the blue that melanin in depth gives (Tyndall effect); dark
corners are the aperture of the instrument. Each gives a score, positive where found, and a map.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy import fft, ndimage
from skimage.measure import label

from derm_rl.captions.segment import View

# Pixels are those of the working area (segment.SIDE² of them); lightness is L* of CIELAB.
LINE_ANGLES = 12
LINE_SIGMA = 1.1  # pixels across: a hair is about two pixels wide
LINE_LENGTH = 4.5  # pixels along: longer than a mesh of the pigment network, which so averages out
LINE_CONTRAST = 6.0  # lightness between a line and its surroundings
HAIR_EXTENT = 12  # pixels: streaks, ticks and vessels are shorter
HAIR_TOTAL = 0.25  # image sides of hair in all
HAIR_BEND = 0.3  # spread across over spread along: an arc of more than a third of a circle …
TANGLE = 36  # pixels: … but hairs that cross are one line, larger than all but the largest rims
AT_EDGE = 0.1  # of the image: what stays that near to its edges is a frame, a fringe, a ruler
ALONG_EDGE = 0.25  # of the image: also farther in, of what runs parallel to the edge …
PARALLEL = 0.1  # … to within this slope
DARK_SKIN = 45.0  # lightness below which light hair, too, stands out
NEAR_LESION = 5  # pixels around a lesion that may be streaks

BUBBLE_RADII = np.arange(6.0, 13.6, 1.0)  # pixels
RIM_WIDTH = 0.8  # pixels
RIM_CURVATURE = 4.0  # lightness per pixel² at which a rim counts half
BUBBLE_ROUNDNESS = 0.27  # mean over the circle of how much of a rim runs along it
FURTHER = 0.9  # of that suffices beside a bubble that is certain

RULER_REACH = 0.16  # of the image, from each edge
RULER_BAND = 4  # pixels of the ticks' length that are averaged
TICK_PITCH = (4.0, 10.5)  # pixels
TICK_LIGHTNESS = 20.0  # a single black hair counts no more than that
TICK_CONTRAST = 7.0  # standard deviation of lightness along the ticks for full weight
RULER_PART = 0.75  # of the edge along which ticks must be even: of the rest much may be hidden
RULER_REGULARITY = 0.66  # share of the variance along that part that is one pitch
ON_STRIP = 0.59  # suffices on a strip that ends as clearly as this:
CLEAR_JUMP = 8.0  # ΔE*ab
STRIP_JUMP = 4.0  # ΔE*ab from a ruler's strip to skin

INK_HUE = (-115.0, -25.0)  # degrees in CIELAB: blue to violet
INK_CHROMA = 27.0  # blue-gray of a lesion stays below about 25
INK_AREA = 0.002  # of the image

CORNER = 0.07  # of the image's side
CORNERS = 2.5  # of four must be dark; a shadow darkens one or two


def _kernels(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.arange(shape[0]) - shape[0] // 2, np.arange(shape[1]) - shape[1] // 2
    y, x = np.meshgrid(y.astype(float), x.astype(float), indexing="ij")
    return y, x


def _spectra(kernels: np.ndarray) -> np.ndarray:
    """Spectra of centred kernels (..., h, w)."""
    return fft.rfft2(fft.ifftshift(np.asarray(kernels, np.float32), axes=(-2, -1)))


def _padded(image: np.ndarray, pad: int) -> np.ndarray:
    """Padded by ``pad`` on top and left, and by that or more on the other sides."""
    widths = [(pad, fft.next_fast_len(n + 2 * pad, real=True) - n - pad) for n in image.shape]
    return np.pad(image, widths, mode="edge")


def lightness(view: View) -> np.ndarray:
    """L* (H, W) with the aperture painted in the field's median, so that it has no edge."""
    lightness = view.lab[..., 0]
    if not view.field.any():
        return lightness
    return np.where(view.field, lightness, np.median(lightness[view.field]))


# ------------------------------------------------------------------------------------- hair


@lru_cache(maxsize=8)
def _line_bank(shape: tuple[int, int]) -> np.ndarray:
    y, x = _kernels(shape)
    bank = []
    for angle in np.arange(LINE_ANGLES) * np.pi / LINE_ANGLES:
        along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        across = across / LINE_SIGMA
        length = np.exp(-((along / LINE_LENGTH) ** 2) / 2)
        kernel = (1 - across**2) * np.exp(-(across**2) / 2) * length
        wide = np.exp(-(across**2) / 8) * length
        kernel -= wide * kernel.sum() / wide.sum()  # no answer to a uniform image
        bank.append(kernel / kernel[np.abs(across * LINE_SIGMA) < 1].sum())
    return _spectra(np.array(bank))


def lines(lightness: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Contrast (H, W) of the strongest dark and bright line through each pixel, in lightness."""
    pad, (h, w) = 16, lightness.shape
    big = _padded(lightness.astype(np.float32), pad)
    answers = fft.irfft2(_line_bank(big.shape) * fft.rfft2(big), big.shape)
    answers = answers[:, pad : pad + h, pad : pad + w]
    return -answers.min(0), answers.max(0)


def hair(contrast: np.ndarray, free: np.ndarray) -> tuple[float, np.ndarray]:
    """Score and map (H, W) of hair: thin lines that are long.

    Args:
        contrast: (H, W), as of :func:`lines`.
        free: (H, W) bool, where a line is no streak, tick, stroke or rim.
    """
    labels = label((contrast > LINE_CONTRAST) & free, connectivity=2)
    total, found = 0.0, np.zeros(labels.max() + 1, bool)
    for i, box in enumerate(ndimage.find_objects(labels), start=1):
        extent = np.hypot(*(side.stop - side.start for side in box))
        if extent >= HAIR_EXTENT:
            points = np.argwhere(labels[box] == i) + [side.start for side in box]
            found[i] = _is_hair(points, extent, labels.shape)
            total += extent * found[i]
    total /= np.sqrt(contrast.size)
    return float(np.log((total + 0.01) / HAIR_TOTAL)), found[labels]


def _is_hair(points: np.ndarray, extent: float, shape: tuple[int, int]) -> bool:
    """Whether a long thin line of points (N, 2) bends as little as a hair and leaves the edges."""
    values, vectors = np.linalg.eigh(np.cov(points.T))
    if extent <= TANGLE and values[0] > HAIR_BEND**2 * values[1]:
        return False
    place = (points + 0.5) / shape
    if (np.minimum(place, 1 - place).min(1) < AT_EDGE).mean() > 0.9:
        return False
    for depth, across in zip(place.T, np.abs(vectors[:, 1]), strict=True):
        farthest = min(depth.max(), 1 - depth.min())  # of its points, from the nearer of two edges
        if farthest < ALONG_EDGE and across < PARALLEL:
            return False
    return True


# ------------------------------------------------------------------------------ gel bubbles


@lru_cache(maxsize=8)
def _ring_bank(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    y, x = _kernels(shape)
    r, angle = np.hypot(x, y), np.arctan2(y, x)
    rings = np.exp(-(((r - BUBBLE_RADII[:, None, None]) / RIM_WIDTH) ** 2) / 2)
    rings /= rings.sum((1, 2), keepdims=True)
    return _spectra(rings * np.cos(2 * angle)), _spectra(rings * np.sin(2 * angle))


def rings(lightness: np.ndarray) -> np.ndarray:
    """How much (-1 to 1) of a circle around each pixel is a bright rim, by radius (R, H, W).

    Every bright ridge votes with its direction, from the Hessian matrix, for the circles that it
    is a part of. Strength saturates, so that a whole faint rim counts more than a bright arc.
    """
    pad, (h, w) = 16, lightness.shape
    big = ndimage.gaussian_filter(_padded(lightness.astype(np.float32), pad), 0.8)
    gy, gx = np.gradient(big)
    xy, xx = np.gradient(gx)
    yy = np.gradient(gy, axis=0)
    mean, difference = (xx + yy) / 2, (xx - yy) / 2
    spread = np.hypot(difference, xy) + 1e-6
    curvature = np.maximum(spread - mean, 0) * (mean < 0)  # minus the lower eigenvalue
    # A ridge's normal is the eigenvector of the lower eigenvalue; doubled, its angle is that of
    # -(difference, xy), and opposite directions are the same.
    weight = -curvature / (curvature + RIM_CURVATURE) / spread
    cosine, sine = _ring_bank(big.shape)
    votes = fft.rfft2(weight * difference) * cosine + fft.rfft2(weight * xy) * sine
    return fft.irfft2(votes, big.shape)[:, pad : pad + h, pad : pad + w]


def bubbles(lightness: np.ndarray, strip: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Score, map (H, W) of rims and highlights, and of whole bubbles.

    Args:
        strip: (H, W) bool, of a ruler: between its ticks lie bright patches.
    """
    round_ = np.where(strip, 0, rings(lightness))
    score = float(round_.max()) - BUBBLE_ROUNDNESS
    rim, whole = np.zeros(lightness.shape, bool), np.zeros(lightness.shape, bool)
    if score <= 0:
        return score, rim, whole
    best = round_.max(0)
    peaks = (best == ndimage.maximum_filter(best, 5)) & (best > FURTHER * BUBBLE_ROUNDNESS)
    y, x = np.ogrid[: rim.shape[0], : rim.shape[1]]
    for cy, cx in np.argwhere(peaks):
        radius = BUBBLE_RADII[round_[:, cy, cx].argmax()]
        distance = np.hypot(y - cy, x - cx)
        inside = distance < radius
        highlight = inside & (lightness > np.median(lightness[inside]) + 10)
        rim |= (np.abs(distance - radius) < 2.8) | highlight
        whole |= distance < radius + 4
    return score, rim, whole


# ------------------------------------------------------------------------------------ ruler


def comb(strip: np.ndarray) -> np.ndarray:
    """Regularity (0 to 1) of the ticks along each row of a strip (D, W) of lightness.

    The share of the variance along the row that is one frequency and its first overtone, along
    the most regular ``RULER_PART`` of it.
    """
    strip = strip - ndimage.uniform_filter1d(strip, 9, axis=1)
    strip = strip.clip(-TICK_LIGHTNESS, TICK_LIGHTNESS)
    profile = ndimage.uniform_filter1d(strip, RULER_BAND, axis=0)
    n = 4 * profile.shape[1]  # finer frequencies than the strip's length alone would give
    length = round(RULER_PART * profile.shape[1])
    parts = np.lib.stride_tricks.sliding_window_view(profile, length, axis=1)[:, ::8]
    parts = parts - parts.mean(-1, keepdims=True)
    power = np.abs(fft.rfft(parts, n, axis=-1)) ** 2
    at = np.arange(power.shape[-1])
    band = np.flatnonzero((at > n / TICK_PITCH[1]) & (at < n / TICK_PITCH[0]))
    if not band.size:
        return np.zeros(len(strip))
    peak = band[power[..., band].argmax(-1)][..., None]
    width = round(4 / RULER_PART)  # of a peak, at that resolution
    near = (np.abs(at - peak) <= width) | (np.abs(at - 2 * peak) <= width)
    share = (power * near).sum(-1) / (power.sum(-1) + 1e-6)
    return (share * np.minimum(parts.std(-1) / TICK_CONTRAST, 1)).max(1)


def ruler(lightness: np.ndarray, lab: np.ndarray) -> tuple[float, np.ndarray]:
    """Score and map (H, W) of the strips along the edges that have regular ticks."""
    mask = np.zeros(lightness.shape, bool)
    # Views of each array with the edge in question on top.
    turns = (
        lambda a: a, lambda a: a[::-1], lambda a: a.swapaxes(0, 1),
        lambda a: a.swapaxes(0, 1)[::-1],
    )  # fmt: skip
    best = -1.0
    for turn in turns:
        above = turn(lightness)
        regularity = comb(above[: max(RULER_BAND + 1, int(RULER_REACH * len(above)))])
        rows = np.median(turn(lab), axis=1)
        clear = _jumps(rows, int(regularity.argmax())).max(initial=0) > CLEAR_JUMP
        limit = ON_STRIP if clear else RULER_REGULARITY
        best = max(best, float(regularity.max()) - limit)
        if (regularity > limit).any():
            deepest = int(np.flatnonzero(regularity > limit)[-1])
            jumps = _jumps(rows, deepest)
            below = int(jumps.argmax()) + 5 if jumps.max(initial=0) > STRIP_JUMP else 5
            turn(mask)[: deepest + below] = True
    return best, mask


def _jumps(rows: np.ndarray, deepest: int) -> np.ndarray:
    """How much the colour of rows (H, 3) in CIELAB changes within three rows, below ``deepest``."""
    below = rows[deepest : deepest + 15]
    return np.linalg.norm(below[3:] - below[:-3], axis=-1)


# ----------------------------------------------------------------------- ink, dark corners


def ink_colour(lab: np.ndarray) -> np.ndarray:
    """Where (H, W) the image has a colour that skin has not: saturated violet or blue."""
    a, b = lab[..., 1], lab[..., 2]
    hue = np.rad2deg(np.arctan2(b, a))
    return (np.hypot(a, b) > INK_CHROMA) & (INK_HUE[0] < hue) & (hue < INK_HUE[1])


def ink(colour: np.ndarray) -> float:
    """Score: area of ink's colour, against the least that is a stroke.

    Wherever it lies: what is found of the lesion may reach as far as a stroke around it.
    """
    # Most images have none; those that have may hold single pixels of noise.
    area = ndimage.binary_opening(colour, np.ones((2, 2))).mean() if colour.any() else 0.0
    return float(np.log((area + 1e-4) / INK_AREA))


def dark_corners(aperture: np.ndarray) -> float:
    """Score: how many of the four corners the aperture darkens, against the least."""
    n = max(1, round(CORNER * min(aperture.shape)))
    ends = (slice(None, n), slice(-n, None))
    return float(sum(aperture[y, x].mean() for y in ends for x in ends) - CORNERS)
