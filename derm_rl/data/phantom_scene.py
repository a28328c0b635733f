"""What a phantom image shows: every parameter of one scene, drawn at random or given.

A scene is a pure function of ``(seed, index, diagnosis, artifacts)``; positions and lengths are in
units of the image side, so that one scene renders at any size. Several images may show the same
lesion (one in four repeats its neighbour's), as in HAM10000.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from derm_rl.data import shape

# Share of images with each finding in the training split published with RL4Med (12,004 images;
# arXiv 2503.15784 and its split files). MEL and dark corner are the shares measured in those files.
PAPER_PREVALENCE = {
    "MEL": 0.238,
    "hair": 4514 / 12004,
    "gel_bubble": 1300 / 12004,
    "ruler": 1608 / 12004,
    "ink": 201 / 12004,
    "dark_corner": 0.178,
}
ARTIFACTS = ("hair", "gel_bubble", "ruler", "ink", "dark_corner")

# Individual typology angle (degrees) by Fitzpatrick type I to VI, after Chardon et al. 1991 as used
# by Kinyanjui et al. 2020: ITA = arctan((L* - 50) / b*).
ITA_BY_TYPE = {1: (55, 68), 2: (41, 55), 3: (28, 41), 4: (10, 28), 5: (-30, 10), 6: (-58, -30)}
SKIN_TYPE_SHARE = (0.2, 0.25, 0.2, 0.15, 0.1, 0.1)

# The six colours of the dermoscopic ABCD rule (Stolz 1994), as sRGB in [0, 1].
COLOURS = {
    "light brown": (0.62, 0.42, 0.27),
    "dark brown": (0.34, 0.19, 0.12),
    "black": (0.10, 0.07, 0.07),
    "red": (0.75, 0.26, 0.27),
    "white": (0.93, 0.87, 0.86),
    "blue-gray": (0.40, 0.46, 0.60),
}
SITES = ("back", "lower extremity", "trunk", "upper extremity", "abdomen", "face", "scalp", "foot")

LESION, VIEW, FINDINGS, DECOYS = 1, 2, 3, 4  # independent random streams of one seed


@dataclass(frozen=True)
class Scene:
    """Everything that is drawn; the exact truth of one image (lengths in image sides)."""

    seed: int
    index: int
    lesion_index: int
    diagnosis: str
    artifacts: tuple[str, ...]
    skin_type: int
    skin_lab: tuple[float, float, float]
    centre: tuple[float, float]
    radius: float
    aspect: float
    angle: float
    border: float  # standard deviation of the radius that all harmonics together give it
    asymmetry: float  # weight of odd harmonics and of off-centre pigment, 0 to 1
    harmonics: tuple[tuple[float, float], ...]  # (amplitude, phase) of cos(k·θ + phase), k = 1…
    softness: float
    colours: tuple[str, ...]
    patches: tuple[tuple[float, float, float], ...]  # (x, y, r) in lesion radii: further colours
    network: float
    network_atypical: float
    globules: tuple[tuple[float, float, float], ...]  # (x, y, r) in lesion radii
    blue_white_veil: bool
    streaks: tuple[tuple[float, float], ...]  # (angle, length) at the border
    hairs: tuple[tuple[float, ...], ...]  # x0 y0 x1 y1 x2 y2 width darkness
    bubbles: tuple[tuple[float, float, float], ...]  # x y r
    ruler: tuple[float, ...]  # edge, inset, spacing, tick, width, tilt; empty if absent
    ink: tuple[tuple[float, ...], ...]  # x0 y0 x1 y1 x2 y2 width hue alpha
    dark_corner: float  # radius of the bright field; 0 if absent
    vignette: float
    texture_seed: int
    decoys: tuple[str, ...] = ()  # families of :mod:`phantom_decoys`: what is no artifact


def lesion_index(index: int) -> int:
    """Lesion shown by image ``index``: of every four images the second repeats the first's."""
    return index - 1 if index % 4 == 1 else index


def draw_findings(
    seed: int, index: int, prevalence: Mapping[str, float] = PAPER_PREVALENCE
) -> tuple[str, tuple[str, ...]]:
    """Diagnosis and artifacts of image ``index``, independent Bernoulli draws at ``prevalence``."""
    by_lesion = np.random.default_rng([seed, FINDINGS, 0, lesion_index(index)])
    diagnosis = "MEL" if by_lesion.random() < prevalence.get("MEL", 0) else "NV"
    uniform = np.random.default_rng([seed, FINDINGS, 1, index]).random(len(ARTIFACTS))
    drawn = zip(ARTIFACTS, uniform, strict=True)
    present = tuple(a for a, u in drawn if u < prevalence.get(a, 0))
    return diagnosis, present


def scene(
    seed: int, index: int, diagnosis: str, artifacts: Iterable[str], decoys: Iterable[str] = ()
) -> Scene:
    """Draw all parameters of one image. Same arguments, same scene, on every machine.

    Decoys change nothing else: the same image without them is the same scene.
    """
    artifacts = tuple(a for a in ARTIFACTS if a in set(artifacts))
    if diagnosis not in ("MEL", "NV"):
        raise ValueError(f"phantom diagnosis must be 'MEL' or 'NV', got {diagnosis!r}")
    lesion_rng = np.random.default_rng([seed, LESION, lesion_index(index)])
    view_rng = np.random.default_rng([seed, VIEW, index])
    lesion = _lesion(lesion_rng, diagnosis)
    view = _view(view_rng, artifacts, skin_lightness=lesion["skin_lab"][0])
    view["angle"] += lesion["angle"]  # another photograph of the same lesion is turned and moved
    return Scene(
        seed=seed,
        index=index,
        lesion_index=lesion_index(index),
        diagnosis=diagnosis,
        artifacts=artifacts,
        decoys=tuple(decoys),
        **(lesion | view),
    )


def ghost(drawn: Scene) -> Scene:
    """Another view with every artifact: where a faded one would be."""
    return scene(drawn.seed, drawn.index + 500_000_000, drawn.diagnosis, ARTIFACTS)


def decoy_rng(drawn: Scene) -> np.random.Generator:
    """Random numbers of a scene's decoys, which nothing else draws from."""
    return np.random.default_rng([drawn.seed, DECOYS, drawn.index])


def border_radius(scene: Scene, theta: np.ndarray) -> np.ndarray:
    """Distance of the drawn border from the lesion's centre at angles ``theta``, in its radii."""
    radius = np.ones_like(theta)
    for k, (amplitude, phase) in enumerate(scene.harmonics, start=1):
        radius += amplitude * np.cos(k * theta + phase)
    return radius


def drawn_shape(scene: Scene) -> tuple[float, float]:
    """Asymmetry and border irregularity of the border as drawn: what a picture can show of them.

    As :mod:`derm_rl.data.shape` defines them. ``scene.asymmetry`` and ``scene.border`` steer how
    the border is drawn; of the first, an outline tells little.
    """
    theta = np.arange(shape.DIRECTIONS) * 2 * np.pi / shape.DIRECTIONS
    points = border_radius(scene, theta) * np.stack([np.cos(theta), scene.aspect * np.sin(theta)])
    radius = shape.radius_of(points)
    return shape.fold_mismatch(radius), shape.spread(radius)


def _lesion(rng: np.random.Generator, diagnosis: str) -> dict[str, Any]:
    """Skin and lesion. The two diagnoses overlap in every single parameter."""
    mel = diagnosis == "MEL"
    skin_type = 1 + int(rng.choice(6, p=SKIN_TYPE_SHARE))
    b_star = rng.uniform(11, 19)
    ita = np.deg2rad(rng.uniform(*ITA_BY_TYPE[skin_type]))
    skin_lab = (float(50 + b_star * np.tan(ita)), float(rng.normal(15, 4)), float(b_star))

    border = float(np.clip(rng.gamma(13, 0.010) if mel else rng.gamma(5, 0.006), 0.01, 0.2))
    asymmetry = float(rng.beta(7, 2) if mel else rng.beta(2, 8))
    radius = float(np.clip(rng.normal(0.285 if mel else 0.25, 0.035), 0.17, 0.36))
    orders = np.arange(1, 9)
    amplitude = rng.normal(size=8) / orders**0.6
    amplitude *= np.where(orders % 2 == 1, asymmetry, 1 - 0.7 * asymmetry)
    amplitude *= border * np.sqrt(2) / np.sqrt((amplitude**2).sum())

    colours = _lesion_colours(rng, mel)
    n_patches = len(colours) - 1
    theta = rng.uniform(0, 2 * np.pi) + rng.normal(0, 2.2 - 1.4 * asymmetry, n_patches)
    distance = rng.uniform(0.15, 0.4, n_patches) + 0.35 * asymmetry
    size = rng.uniform(0.38, 0.52, n_patches)
    patches = zip(distance * np.cos(theta), distance * np.sin(theta), size, strict=True)

    globules = ()
    if rng.random() < (0.5 if mel else 0.45):
        n, spread = int(rng.integers(10, 26)), 0.85
        rho, phi = spread * np.sqrt(rng.random(n)), rng.uniform(0, 2 * np.pi, n)
        dot = rng.uniform(0.035, 0.085 if mel else 0.055, n)
        globules = _rows(rho * np.cos(phi), rho * np.sin(phi), dot)
    streaks = ()
    if rng.random() < (0.65 if mel else 0.03):
        n = int(rng.integers(7, 16))
        streaks = _rows(rng.uniform(0, 2 * np.pi, n), rng.uniform(0.1, 0.28, n))
    return {
        "skin_type": skin_type,
        "skin_lab": skin_lab,
        "radius": radius,
        "aspect": float(rng.uniform(0.75, 1.0)),
        "angle": float(rng.uniform(0, 2 * np.pi)),
        "border": border,
        "asymmetry": asymmetry,
        "harmonics": _rows(amplitude, rng.uniform(0, 2 * np.pi, 8)),
        "softness": float(rng.uniform(0.010, 0.022) if mel else rng.uniform(0.014, 0.034)),
        "colours": colours,
        "patches": tuple(tuple(map(float, p)) for p in patches),
        "network": float(rng.uniform(0.35, 0.7)) if rng.random() < (0.5 if mel else 0.6) else 0.0,
        "network_atypical": float(rng.uniform(0.5, 1.0) if mel else rng.uniform(0.0, 0.35)),
        "globules": globules,
        "blue_white_veil": bool(rng.random() < (0.6 if mel else 0.01)),
        "streaks": streaks,
        "texture_seed": int(rng.integers(2**31)),
    }


def _lesion_colours(rng: np.random.Generator, mel: bool) -> tuple[str, ...]:
    """One base colour, then further ones: melanoma 2 to 5 in all, nevus 1 to 3."""
    count = int(rng.choice([2, 3, 4, 5], p=[0.04, 0.26, 0.42, 0.28])) if mel else 0
    count = count or int(rng.choice([1, 2, 3], p=[0.5, 0.44, 0.06]))
    base = str(rng.choice(["light brown", "dark brown"], p=[0.45, 0.55] if mel else [0.6, 0.4]))
    weight = {"light brown": 3, "dark brown": 3, "black": 2, "red": 1.2, "white": 1}
    weight |= {"blue-gray": 1.2}
    if not mel:
        weight |= {"black": 0.7, "red": 0.8, "white": 0.2, "blue-gray": 0.1}
    names = [c for c in weight if c != base]
    p = np.array([weight[c] for c in names], dtype=float)
    return (base, *map(str, rng.choice(names, size=count - 1, replace=False, p=p / p.sum())))


def _view(rng: np.random.Generator, artifacts: Sequence[str], skin_lightness: float) -> dict:
    """Camera and artifacts: what differs between two photographs of one lesion."""
    view: dict[str, Any] = {
        "centre": tuple(np.clip(rng.normal(0.5, 0.04, 2), 0.4, 0.6).tolist()),
        "angle": float(rng.uniform(0, 2 * np.pi)),
        "vignette": float(rng.uniform(0.0, 0.22)),
    }
    # Each artifact has its own stream, so that adding one leaves the others where they were.
    streams = dict(zip(ARTIFACTS, rng.spawn(len(ARTIFACTS)), strict=True))
    has = set(artifacts).__contains__
    view["hairs"] = _hairs(streams["hair"], skin_lightness) if has("hair") else ()
    view["bubbles"] = _bubbles(streams["gel_bubble"]) if has("gel_bubble") else ()
    view["ruler"] = _ruler(streams["ruler"]) if has("ruler") else ()
    view["ink"] = _ink(streams["ink"]) if has("ink") else ()
    radius = float(streams["dark_corner"].uniform(0.53, 0.62))
    view["dark_corner"] = radius if has("dark_corner") else 0.0
    return view


def _rows(*columns: np.ndarray) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(map(float, row)) for row in zip(*columns, strict=True))


def _hairs(rng: np.random.Generator, skin_lightness: float) -> tuple:
    """Quadratic Bézier hairs. Dark hair, except on very dark skin, where it would not be seen."""
    n = int(rng.integers(4, 13))
    start, direction = rng.uniform(-0.05, 1.05, (n, 2)), rng.uniform(0, 2 * np.pi, n)
    if rng.random() < 0.5:  # often hairs share a direction of growth
        direction = rng.uniform(0, 2 * np.pi) + rng.normal(0, 0.35, n)
    length, bend = rng.uniform(0.4, 1.1, n), rng.normal(0, 0.16, n)
    step = np.stack([np.cos(direction), np.sin(direction)], -1)
    normal = np.stack([-step[:, 1], step[:, 0]], -1)
    start = 0.5 + (start - 0.5) - step * length[:, None] / 2
    end = start + step * length[:, None]
    middle = (start + end) / 2 + normal * (bend * length)[:, None]
    width = rng.uniform(0.018, 0.028, n)
    darkness = np.clip(rng.normal(0.85, 0.08, n), 0.65, 1.0)
    darkness = -darkness if skin_lightness < 38 else darkness  # negative: gray hair
    return _rows(*start.T, *middle.T, *end.T, width, darkness)


def _bubbles(rng: np.random.Generator) -> tuple:
    n = int(rng.integers(2, 5))
    return _rows(rng.uniform(0.1, 0.9, n), rng.uniform(0.1, 0.9, n), rng.uniform(0.08, 0.14, n))


def _ruler(rng: np.random.Generator) -> tuple[float, ...]:
    edge, inset = int(rng.integers(4)), rng.uniform(0.0, 0.06)
    spacing, tick, width = rng.uniform(0.075, 0.1), rng.uniform(0.08, 0.12), 0.026
    return (float(edge), float(inset), float(spacing), float(tick), width, rng.normal(0, 0.03))


def _ink(rng: np.random.Generator) -> tuple:
    """One to three strokes of a surgical marker round the lesion, violet to blue."""
    n = int(rng.integers(1, 4))
    hue = rng.uniform(0.62, 0.76)
    rows = []
    for _ in range(n):
        middle, sweep = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 1.1)
        rho = rng.uniform(0.36, 0.47)
        angles = middle + sweep * np.array([-0.5, 0.0, 0.5])
        radii = np.array([rho, rho * (2 - np.cos(sweep / 2)), rho]) + rng.normal(0, 0.02, 3)
        points = 0.5 + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], -1)
        rows.append((*points.ravel(), rng.uniform(0.035, 0.07), hue, rng.uniform(0.75, 0.92)))
    return tuple(tuple(map(float, row)) for row in rows)
