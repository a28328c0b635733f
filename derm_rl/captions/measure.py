"""What can be measured in one image of a skin lesion: the ABCD rule, skin tone, artifacts.

- **A**, asymmetry: the lesion is folded at its two principal axes; an axis counts if shape or
  colour differ (Stolz et al. 1994). The continuous score is the share of its area that a fold
  leaves uncovered, mean of both axes.
- **B**, border: spread of the outline about the ellipse of the same second moments.
- **C**, colours: which of the six dermoscopic colours cover a part of the lesion.
- **D**, diameter: largest extent of the lesion, in image sides (no scale is known).
- Skin tone: individual typology angle, ITA = arctan((L* - 50) / b*), of the skin around the lesion,
  in the classes of Chardon et al. (1991).
- Artifacts: :mod:`derm_rl.captions.artifacts`; where the lesion is:
  :mod:`derm_rl.captions.segment`.

These are measurements of pictures, by rules; they are no diagnosis.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from derm_rl.captions import artifacts
from derm_rl.captions.schema import ARTIFACTS, COLOURS, Measurements
from derm_rl.captions.segment import SIDE, Lesion, View, grown, segment, shrunk
from derm_rl.data import shape

if TYPE_CHECKING:
    import pandas as pd

BLOCK = 64  # images that one process measures at a time
ANGLES = 128  # rays from the centre to the outline
HIGHEST = 8  # order of the Fourier descriptors
CLEAR = 20.0  # lesion to skin, in standard deviations of skin: an edge is exact from there on
EDGE_OPACITY = 0.35  # of the lesion over skin
AXIS_SHAPE = 0.12  # share of the shape that a fold leaves uncovered, from which an axis counts
AXIS_COLOUR = 9.0  # ΔE*ab between mirrored halves, on average, from which an axis counts
IRREGULAR = 0.06  # spread of the outline in mean radii, from which a border is irregular
COLOUR_SHARE = 0.06  # of the lesion, from which a colour counts
MESH = 5  # pixels: holes of the pigment network; its dark lines are no colour of their own
EDGE = 2  # pixels at the outline, where the lesion's colour is mixed with the skin's
# a* and b* of skin in neutral light, and how far skin itself strays: beyond, it is the light.
SKIN_CHROMA, SKIN_SPREAD = (15.0, 15.0), 7.0
# The six colours as CIELAB, of typical pigment in dermoscopy.
REFERENCES = {
    "light brown": (49.0, 15.0, 27.0),
    "dark brown": (25.0, 13.0, 16.0),
    "black": (7.0, 4.0, 2.0),
    "red": (46.0, 47.0, 24.0),
    "white": (86.0, 3.0, 3.0),
    "blue-gray": (52.0, 3.0, -19.0),
}
# Lower bounds of ITA in degrees (Chardon et al. 1991; the last two after Del Bino et al. 2013).
TONES = (
    (55.0, "very light"), (41.0, "light"), (28.0, "intermediate"), (10.0, "tan"),
    (-30.0, "brown"), (-90.0, "dark"),
)  # fmt: skip
_ANGLE = np.arange(ANGLES) * 2 * np.pi / ANGLES
_ORDER = np.arange(1, HIGHEST + 1)
_TERMS = np.outer(_ANGLE, _ORDER)
_SERIES = np.concatenate([np.ones((ANGLES, 1)), np.cos(_TERMS), np.sin(_TERMS)], 1)
_SMOOTH = np.r_[0, np.tile(np.where(_ORDER == 1, 1e-6, 0.5 * _ORDER**1.2), 2)]  # ridge, by order


def measure(image: np.ndarray) -> Measurements:
    """Measure one image.

    Args:
        image: (H, W, 3) uint8 in sRGB, or (H, W) in gray; of any size and shape, at least 16 px.

    Raises:
        ValueError: the array is not such an image.
    """
    view = _view(image)
    scores, lesion = find(view)
    skin = _skin(view, lesion)
    ita = typology_angle(*skin)
    found = {
        "segmented": lesion is not None,
        "ita": ita,
        "skin_tone": skin_tone(ita),
        "artifacts": _present(scores),
        "scores": {name: round(float(scores[name]), 4) for name in ARTIFACTS},
    }
    if lesion is None:
        nothing = dict.fromkeys(
            ("box", "diameter", "area", "asymmetry", "asymmetric_axes", "border",
             "irregular_border")
        )  # fmt: skip
        return Measurements(**nothing, colours=(), **found)
    centre, matrix = moments(lesion.mask)
    radius = evened(outline(lesion, centre, matrix))
    spread = shape.spread(radius)
    return Measurements(
        box=_box(lesion.mask),
        diameter=round(_diameter(lesion.mask), 4),
        area=round(float(lesion.mask.mean()), 4),
        asymmetry=round(shape.fold_mismatch(radius), 4),
        asymmetric_axes=asymmetric_axes(lesion, centre, matrix, radius),
        border=round(spread, 4),
        irregular_border=bool(spread > IRREGULAR),
        colours=colours(lesion),
        **found,
    )


def measure_all(
    images: pd.DataFrame | Sequence[str],
    size: int = SIDE,
    workers: int | None = None,
    progress: bool = False,
    crop: str | None = "center",
) -> Iterator[Measurements]:
    """Measure the images of a table or at addresses, in parallel; yields in their order.

    Streams: only a few blocks of images are in memory at a time.

    Args:
        images: table with a column ``path``, or its addresses.
        size: side in pixels at which images are drawn or decoded.
        workers: processes; None for one per core.
        crop: as for :func:`derm_rl.data.table.load_image`. None squeezes shapes.

    Raises:
        TableError: an image is absent or damaged, and is named.
    """
    from joblib import Parallel, delayed
    from tqdm import tqdm

    paths = list(images["path"] if hasattr(images, "columns") else images)
    blocks = [paths[i : i + BLOCK] for i in range(0, len(paths), BLOCK)]
    parallel = Parallel(n_jobs=workers or -1, return_as="generator")
    bar = tqdm(total=len(paths), desc="measure", unit="image", mininterval=1, disable=not progress)
    with bar:
        for found in parallel(delayed(_measure_block)(block, size, crop) for block in blocks):
            bar.update(len(found))
            yield from found


def _measure_block(paths: Sequence[str], size: int, crop: str | None) -> list[Measurements]:
    from derm_rl.data.table import load_image

    return [measure(load_image(path, size, crop)) for path in paths]


def _view(image: np.ndarray) -> View:
    """The image at the working area, whatever its shape."""
    from PIL import Image

    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or min(image.shape[:2]) < 16:
        raise ValueError(
            f"expected an image (H, W, 3) or (H, W) of type uint8 with 16 pixels or more a side, "
            f"got {image.shape} of type {image.dtype}"
        )
    if image.ndim == 3 and image.shape[2] not in (1, 3):
        raise ValueError(f"expected 1 or 3 channels, got {image.shape[2]}")
    if image.ndim == 2 or image.shape[2] == 1:
        image = np.repeat(image.reshape(*image.shape[:2], 1), 3, 2)
    height, width = image.shape[:2]
    scale = SIDE / np.sqrt(height * width)
    size = max(16, round(width * scale)), max(16, round(height * scale))
    if size != (width, height):
        resized = Image.fromarray(np.ascontiguousarray(image)).resize(
            size, Image.Resampling.LANCZOS
        )
        image = np.asarray(resized)
    return View(image.astype(np.float32) / 255)


def artifacts_in(image: np.ndarray) -> dict[str, bool]:
    """Which of ``ARTIFACTS`` an image shows; takes and raises what :func:`measure` does."""
    return _present(find(_view(image))[0])


def _present(scores: dict[str, float]) -> dict[str, bool]:
    return {name: bool(scores[name] > 0) for name in ARTIFACTS}


def find(view: View) -> tuple[dict[str, float], Lesion | None]:
    """Scores of the artifacts, and the lesion."""
    light = artifacts.lightness(view)
    dark, bright = artifacts.lines(light)
    contrast = (
        dark if np.median(light[::2, ::2]) > artifacts.DARK_SKIN else np.maximum(dark, bright)
    )
    scores = {}
    scores["ruler"], strip = artifacts.ruler(light, view.lab)
    scores["gel_bubble"], rims, bubble = artifacts.bubbles(light, strip)
    colour = artifacts.ink_colour(view.lab)
    stroke = grown(colour & view.field, 2)
    thin = grown(contrast > artifacts.LINE_CONTRAST + 2)
    lesion = segment(view, rims | stroke | thin, bubble, strip)
    near = None
    if lesion is not None:
        near = grown(lesion.mask, artifacts.NEAR_LESION)
    scores["ink"] = artifacts.ink(colour & view.field)
    # A bubble's outline is dark, and wider the fewer pixels an image has.
    free = view.field & ~(grown(bubble, 2) | strip | grown(stroke))
    if near is not None:
        free &= ~near
    scores["hair"], _ = artifacts.hair(contrast, free)
    scores["dark_corner"] = artifacts.dark_corners(view.aperture)
    return scores, lesion


# ------------------------------------------------------------------------------------ outline


def moments(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centre (y, x), and the matrix whose ellipse (of unit vectors) has the mask's moments."""
    points = np.argwhere(mask).astype(float)
    centre = points.mean(0)
    covariance = np.cov((points - centre).T) + np.eye(2) / 12  # a pixel is a square, no point
    values, vectors = np.linalg.eigh(covariance)
    return centre, vectors * (2 * np.sqrt(values))


def outline(lesion: Lesion, centre: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Fourier coefficients (HIGHEST + 1,), complex, of the outline's radius by direction.

    In coordinates in which the lesion's ellipse is the unit circle, from the centre of the outline,
    to where opacity falls below EDGE_OPACITY for the last time: between pixels, not on them. Fitted
    to the directions in which no artifact hides the edge; smooth where it does.
    """
    hidden = grown(~lesion.valid).astype(np.float32)
    unit = np.stack([np.cos(_ANGLE), np.sin(_ANGLE)])
    steps = np.arange(0.2, 2.0, 0.04)
    for _ in range(2):  # again from the centre that the first outline has
        y, x = centre[:, None, None] + (matrix @ unit)[:, :, None] * steps
        values = ndimage.map_coordinates(lesion.opacity, [y, x], order=1)
        inside = values > EDGE_OPACITY
        last = np.where(inside.any(1), inside.shape[1] - 1 - inside[:, ::-1].argmax(1), 0)
        here = np.take_along_axis(values, last[:, None], 1)[:, 0]
        after = np.minimum(last + 1, len(steps) - 1)
        there = np.take_along_axis(values, after[:, None], 1)[:, 0]
        part = np.clip((here - EDGE_OPACITY) / np.maximum(here - there, 1e-6), 0, 1)
        radius = steps[last] + part * (steps[1] - steps[0])
        edge = centre[:, None] + matrix @ unit * radius
        seen = 1 - ndimage.map_coordinates(hidden, edge, order=1, mode="nearest")
        clear = ndimage.map_coordinates(lesion.contrast, edge, order=1, mode="nearest") / CLEAR
        weight = np.clip(seen, 0.005, 1) * np.clip(clear, 0.1, 1) ** 2  # inverse variance
        found = _fit(radius, weight)
        centre = centre + matrix @ np.array([found[1].real, found[1].imag])
    return found


def _fit(radius: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Weighted least squares of a Fourier series, robust to single rays that miss the edge."""
    for _ in range(3):
        weighted = _SERIES * weight[:, None]
        found = np.linalg.solve(_SERIES.T @ weighted + np.diag(_SMOOTH), weighted.T @ radius)
        residual = np.abs(radius - _SERIES @ found)
        weight = weight * (residual < 6 * np.median(residual) + 4e-3) + 1e-3
    return found[: HIGHEST + 1] + 1j * np.r_[0, found[HIGHEST + 1 :]]


def evened(series: np.ndarray) -> np.ndarray:
    """Radius (ANGLES,) in mean radii, from the third order of an outline's Fourier series on.

    The first order shifts the centre, and the second is the ellipse, which is symmetric.
    """
    orders = np.arange(3, HIGHEST + 1)
    waves = series[3:] @ np.exp(-1j * np.outer(orders, _ANGLE))
    return 1 + waves.real / series[0].real


def asymmetric_axes(
    lesion: Lesion, centre: np.ndarray, matrix: np.ndarray, radius: np.ndarray
) -> int:
    """Number of principal axes (0, 1, 2) at which the halves differ in shape or in colour.

    Shape is that of the outline (``radius``), which runs on where an artifact hides the mask.
    """
    directions = matrix / np.linalg.norm(matrix, axis=0)
    points = np.argwhere(lesion.mask)[::2].astype(float) - centre
    stack = np.concatenate([lesion.mask[..., None], lesion.lab], -1).astype(np.float32)
    stack[..., 1:] = ndimage.gaussian_filter(
        lesion.lab, (2, 2, 0), truncate=2
    )  # colours, not structures
    here = _sample(stack, points + centre)
    count = 0
    for axis, uncovered in zip(directions.T, shape.fold_mismatches(radius), strict=True):
        folded = 2 * np.outer(points @ axis, axis) - points
        there = _sample(stack, folded + centre)
        covered = there[:, 0] > 0.5
        off = np.linalg.norm(here[covered, 1:] - there[covered, 1:], axis=1)
        colour = float(off.mean()) if covered.any() else 0.0
        count += bool(uncovered > AXIS_SHAPE or colour > AXIS_COLOUR)
    return count


def _sample(stack: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Values (N, C) at the pixels nearest to points (N, 2); zero outside."""
    at = np.rint(points).astype(int)
    inside = ((at >= 0) & (at < stack.shape[:2])).all(1)
    out = np.zeros((len(points), stack.shape[2]), stack.dtype)
    out[inside] = stack[at[inside, 0], at[inside, 1]]
    return out


def _box(mask: np.ndarray) -> tuple[float, float, float, float]:
    """x0, y0, x1, y1 in image sides."""
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    height, width = mask.shape
    ends = (xs[0] / width, ys[0] / height, (xs[-1] + 1) / width, (ys[-1] + 1) / height)
    return tuple(round(float(e), 4) for e in ends)


def _diameter(mask: np.ndarray) -> float:
    """Largest extent over all directions, in units of the longer image side."""
    rim = np.argwhere(mask & ~shrunk(mask)).astype(float)
    angle = np.arange(0, np.pi, np.pi / 36)
    across = rim @ np.stack([np.cos(angle), np.sin(angle)])
    return float((np.ptp(across, axis=0) + 1).max() / max(mask.shape))


# ------------------------------------------------------------------------------------- colour


def colours(lesion: Lesion) -> tuple[str, ...]:
    """Those of the six dermoscopic colours that cover a part of the lesion, in their order.

    Dark lines and dots are closed first: network and globules are structures of a colour. Pink or
    yellow light, told by the skin around the lesion, is taken off.
    """
    inner = shrunk(lesion.mask, EDGE)
    inner = inner if inner.sum() > 30 else lesion.mask
    lightness = ndimage.grey_closing(lesion.lab[..., 0], (MESH, MESH))
    chroma = ndimage.gaussian_filter(lesion.lab[..., 1:], (1, 1, 0))
    skin = np.median(lesion.skin[..., 1:][inner], 0) - SKIN_CHROMA
    chroma -= np.sign(skin) * np.maximum(np.abs(skin) - SKIN_SPREAD, 0)
    pixels = np.concatenate([lightness[..., None], chroma], -1)[inner]
    references = np.array([REFERENCES[name] for name in COLOURS])
    nearest = np.linalg.norm(pixels[:, None] - references, axis=-1).argmin(1)
    shares = np.bincount(nearest, minlength=len(COLOURS)) / len(pixels)
    found = tuple(c for c, s in zip(COLOURS, shares, strict=True) if s >= COLOUR_SHARE)
    return found or (COLOURS[int(shares.argmax())],)


def _skin(view: View, lesion: Lesion | None) -> tuple[float, float]:
    """Median L* and b* of the skin around the lesion, free of artifacts where it can be."""
    free = view.field if lesion is None else lesion.valid & ~grown(
        lesion.mask, 3
    )  # fmt: skip
    free = free if free.sum() >= 30 else np.ones(view.shape, bool)
    return float(np.median(view.lab[..., 0][free])), float(np.median(view.lab[..., 2][free]))


def typology_angle(lightness: float, yellowness: float) -> float:
    """Individual typology angle in degrees of a skin colour's L* and b* (Chardon et al. 1991)."""
    # Bluish skin (b* < 0) is an effect of light: the angle stays that of no yellow at all.
    return round(float(np.rad2deg(np.arctan2(lightness - 50, max(yellowness, 1e-6)))), 2)


def skin_tone(ita: float) -> str:
    """The class of an individual typology angle."""
    return next(name for least, name in TONES if ita > least or least == -90)
