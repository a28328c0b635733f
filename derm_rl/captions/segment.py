"""Where the lesion is: field of view, skin, and the opacity of the lesion over it.

All works on a :class:`View`, the image at a fixed working area, so that lengths in pixels mean the
same for every image. The idea is background subtraction: the skin, with its uneven light, is a
smooth surface of colour fitted to what looks like skin; the lesion is what differs from it. The
threshold is Otsu's (1979), as is usual in dermoscopy (Celebi et al. 2009, a survey); it is then
refined to where pigment covers half the skin, so that pale and dark parts end at the same place.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from scipy import ndimage
from skimage.color import rgb2lab
from skimage.filters import threshold_otsu
from skimage.measure import label
from skimage.morphology import convex_hull_image

SIDE = 96  # the working area is SIDE² pixels, whatever the image's own size
FIELD_DARKNESS = 0.42  # of the median lightness: what is darker and touches a corner is aperture
BROAD = 5  # pixels: no tick or line of a ruler is, the corner of an aperture is
FIELD_MARGIN = 3  # pixels at the edge of the field of view, which is blurred
RING = 0.8  # skin is first looked for outside an ellipse of this size, in half image sides
MIN_SKIN = 50  # pixels, to fit it to
SKIN_SPREAD = 3.0  # standard deviations of the skin's texture that still count as skin
SKIN_NOISE = 0.5  # ΔE*ab, of rounding and compression: texture is never taken for less
THRESHOLD = (3.0, 7.0)  # standard deviations: bounds for Otsu's threshold
FAINT = 0.12  # of the strongest difference: on skin of little texture, the blur of an edge
SATURATION = 15.0  # standard deviations above which a pixel is as much lesion as can be
MIN_SEPARATION = 4.0  # standard deviations, median of lesion to skin, and ...
CENTRAL = 0.6  # half image sides: a pixel farther out speaks less for being of the lesion
MIN_CONTRAST = 6.0  # ... ΔE*ab: below, nothing is called a lesion
MIN_AREA, MAX_AREA = 0.003, 0.9  # of the field of view
SMOOTHING = 1.0  # pixels
CLOSING = 4  # pixels
PLATEAU = 6.0  # pixels over which the lesion's own colour difference is averaged


@dataclass
class View:
    """An image at the working area: ``rgb`` (H, W, 3) float32 in [0, 1]."""

    rgb: np.ndarray

    @cached_property
    def lab(self) -> np.ndarray:
        """CIELAB under D65 (H, W, 3) float32."""
        return rgb2lab(self.rgb).astype(np.float32)

    @property
    def shape(self) -> tuple[int, int]:
        return self.rgb.shape[:2]

    @cached_property
    def field(self) -> np.ndarray:
        """Field of view (H, W) bool: all but the dark aperture that touches the corners."""
        return ~grown(self.aperture, FIELD_MARGIN)

    @cached_property
    def aperture(self) -> np.ndarray:
        """What is nearly black, broad and connected to a corner of the image (H, W) bool."""
        lightness = ndimage.uniform_filter(self.lab[..., 0], 3)
        dark = lightness < FIELD_DARKNESS * np.median(lightness[::2, ::2])
        broad = ndimage.binary_opening(dark, np.ones((BROAD, BROAD)))
        labels, _ = ndimage.label(broad)
        corners = labels[[0, 0, -1, -1], [0, -1, 0, -1]]
        found = np.isin(labels, corners[corners > 0])
        # Back to its tips along the edges, which are narrow.
        return ndimage.binary_dilation(found, iterations=BROAD, mask=dark) if found.any() else found


@dataclass(frozen=True)
class Lesion:
    """A lesion and the skin around it."""

    mask: np.ndarray  # (H, W) bool
    opacity: np.ndarray  # (H, W) float32: 0 skin, about 1 lesion, 0.5 on the outline
    skin: np.ndarray  # (H, W, 3) float32: CIELAB of the skin, also where the lesion hides it
    valid: np.ndarray  # (H, W) bool: field of view without artifacts
    lab: np.ndarray  # (H, W, 3) float32: CIELAB with artifacts painted over
    contrast: np.ndarray  # (H, W) float32: lesion to skin nearby, in standard deviations of skin


def grown(mask: np.ndarray, pixels: int = 1) -> np.ndarray:
    """Dilation of a mask (H, W) by an octagon: steps in four directions, every second in eight.

    Slices, as scipy's dilation takes ten times as long on images as small as these.
    """
    for step in range(pixels):
        wide = mask.copy()
        wide[:, 1:] |= mask[:, :-1]
        wide[:, :-1] |= mask[:, 1:]
        rows = wide if step % 2 else mask
        out = wide.copy()
        out[1:] |= rows[:-1]
        out[:-1] |= rows[1:]
        mask = out
    return mask


def shrunk(mask: np.ndarray, pixels: int = 1) -> np.ndarray:
    """Erosion of a mask (H, W) by an octagon; what lies beyond the image is outside the mask."""
    return ~grown(np.pad(~mask, 1, constant_values=True), pixels)[1:-1, 1:-1]


def paint_over(lab: np.ndarray, valid: np.ndarray, sigma: float = 1.5) -> np.ndarray:
    """Replace what is not valid by the nearest valid pixel, smoothed."""
    if valid.all() or not valid.any():
        return lab
    nearest = ndimage.distance_transform_edt(~valid, return_distances=False, return_indices=True)
    filled = lab[nearest[0], nearest[1]]
    return np.where(valid[..., None], lab, ndimage.gaussian_filter(filled, (sigma, sigma, 0)))


def skin_difference(lab: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Colour (H, W, 3) of the skin, a quadratic in position, and every pixel's distance from it.

    Fitted to what lies near the image's edge, then to what resembles it, wherever that is. The
    distance is Mahalanobis', in standard deviations of the skin's own texture: skin varies much in
    lightness and little in hue, so that a slight change of hue tells more.
    """
    position, basis = _basis(*valid.shape)
    skin = valid & (position > RING)
    if skin.sum() < MIN_SKIN:
        skin = valid
    # Every third pixel, as one row each; only the last distance is needed everywhere.
    every = np.s_[::3, ::3]
    colours, terms = lab[every].reshape(-1, 3), basis[every].reshape(-1, basis.shape[-1])
    usable, ring = valid[every].ravel(), skin[every].ravel()
    # Median first: a lesion or an ink stroke that reaches the edge must not pull the fit.
    off = np.linalg.norm(colours - np.median(colours[ring], 0), axis=1)
    near = ring & (off <= np.quantile(off[ring], 0.8))
    for count in (4, 6, 6):
        t, c = terms[near, :count], colours[near]
        weights = np.linalg.lstsq(t.T @ t, t.T @ c, rcond=None)[0]
        residual = colours - terms[:, :count] @ weights
        covariance = np.cov(residual[near].T) + SKIN_NOISE**2 * np.eye(3)
        whiten = np.linalg.inv(np.linalg.cholesky(covariance)).T.astype(np.float32)
        near_now = usable & (((residual @ whiten) ** 2).sum(1) < SKIN_SPREAD**2)
        if near_now.sum() < MIN_SKIN:
            break
        near = near_now
    surface = (basis[..., : len(weights)] @ weights).astype(np.float32)
    return surface, np.sqrt((((lab - surface) @ whiten) ** 2).sum(-1))


@lru_cache(maxsize=8)
def _basis(h: int, w: int) -> tuple[np.ndarray, np.ndarray]:
    """Distance from the centre in half sides, and the terms of a quadratic (H, W, 6)."""
    y, x = np.meshgrid(
        np.linspace(-1, 1, h, dtype=np.float32), np.linspace(-1, 1, w, dtype=np.float32),
        indexing="ij",
    )  # fmt: skip
    terms = [np.ones_like(x), x, y, x * x + y * y, x * y, x * x - y * y]
    return np.hypot(x, y), np.stack(terms, -1)


def _candidate(difference: np.ndarray, valid: np.ndarray) -> np.ndarray | None:
    """The most central of the large regions that differ from skin, without holes."""
    clipped = np.minimum(difference, SATURATION)
    threshold = np.clip(threshold_otsu(clipped[valid], nbins=64), *THRESHOLD)
    threshold = max(threshold, FAINT * float(difference[valid].max()))
    mask = grown(shrunk((difference > threshold) & valid))
    mask = _closed(mask)  # between a brown and a white part lies a line of the skin's colour
    labels = label(mask, connectivity=1)
    if not labels.max():
        return None
    central = np.exp(-(_basis(*valid.shape)[0] ** 2) / CENTRAL**2)
    weight = np.bincount(labels.ravel(), central.ravel())
    return ndimage.binary_fill_holes(labels == weight[1:].argmax() + 1)


def _closed(mask: np.ndarray) -> np.ndarray:
    """Closing by an octagon of CLOSING pixels; beyond the image's edge nothing is known."""
    padded = np.pad(mask, CLOSING)
    return shrunk(grown(padded, CLOSING), CLOSING)[CLOSING:-CLOSING, CLOSING:-CLOSING] | mask


def segment(
    view: View, artifacts: np.ndarray, hidden: np.ndarray, outside: np.ndarray
) -> Lesion | None:
    """Find the lesion; None if nothing differs enough from the skin.

    Args:
        artifacts: (H, W) bool, thin things (hair, ink, rims of bubbles), which are painted over.
        hidden: (H, W) bool, whole bubbles: too large to tell what lies below.
        outside: (H, W) bool, where no lesion can be seen: the strip of a ruler.
    """
    field = view.field & ~outside
    valid = field & ~artifacts & ~hidden
    if valid.sum() < 0.1 * valid.size:
        return None
    lab = paint_over(view.lab, valid)
    lab = ndimage.gaussian_filter(lab, (SMOOTHING, SMOOTHING, 0))
    surface, difference = skin_difference(lab, valid)
    first = _candidate(difference, field & ~hidden)
    if first is None:
        return None
    core = shrunk(first, 2)
    core = core if core.sum() > 10 else first
    if np.median(difference[core]) < MIN_SEPARATION:
        return None
    if np.median(np.linalg.norm(lab[core] - surface[core], axis=-1)) < MIN_CONTRAST:
        return None
    own = core * difference
    weight = ndimage.gaussian_filter(core.astype(np.float32), PLATEAU, truncate=2)
    plateau = ndimage.gaussian_filter(own, PLATEAU, truncate=2) / (weight + 1e-6)
    opacity = np.minimum(difference / np.maximum(plateau, 1e-3), 1.0)
    opacity = np.where(core, np.maximum(opacity, 0.75), opacity)
    opacity[~(grown(first, 5) & field & ~hidden)] = 0
    labels = label(opacity > 0.5, connectivity=1)
    if not labels.max():
        return None
    best = np.bincount(labels[core])[1:].argmax() + 1 if labels[core].any() else 1
    mask = ndimage.binary_fill_holes(_closed(labels == best) & field)
    if (grown(mask) & hidden).any():  # a bubble on the edge bites nothing off
        mask |= convex_hull_image(mask) & hidden & field
    if not MIN_AREA <= mask.sum() / field.sum() <= MAX_AREA:
        return None
    opacity = np.where(mask, np.maximum(opacity, 0.5), np.minimum(opacity, 0.5))
    return Lesion(mask, opacity.astype(np.float32), surface, valid, lab, plateau)
