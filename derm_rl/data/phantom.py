"""Phantom dermoscopy with exact ground truth: addresses of images, their pixels, their table.

The phantom is a **test instrument, never evidence about patients**. It exists because its truth is
known exactly, so that every claim made about generated images (alignment, hallucinated findings,
bias) can be checked. What is in a scene is :mod:`derm_rl.data.phantom_scene`, how it is drawn
:mod:`derm_rl.data.phantom_render`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict

import numpy as np
import pandas as pd

from derm_rl.data import phantom_decoys, phantom_render
from derm_rl.data.phantom_scene import (
    ARTIFACTS,
    FINDINGS,
    PAPER_PREVALENCE,
    SITES,
    Scene,
    draw_findings,
    drawn_shape,
    lesion_index,
    scene,
)


def path_of(
    seed: int, index: int, diagnosis: str, artifacts: Iterable[str], decoys: Iterable[str] = ()
) -> str:
    """Address of a phantom image in a table: it holds all that :func:`scene` needs."""
    shown = [f"{seed}/{index}/{diagnosis}/{'+'.join(artifacts) or 'none'}", "+".join(decoys)]
    return "phantom::" + "/".join(part for part in shown if part)


def scene_at(path: str) -> Scene:
    """Inverse of :func:`path_of`."""
    try:
        seed, index, diagnosis, artifacts, *decoys = path.removeprefix("phantom::").split("/")
        names = [] if artifacts == "none" else artifacts.split("+")
        if unknown := set(names) - set(ARTIFACTS):
            raise ValueError(f"unknown artifacts {sorted(unknown)}")
        shown = decoys[0].split("+") if decoys else []
        if unknown := set(shown) - {*phantom_decoys.FAMILIES, *phantom_decoys.HELD_OUT}:
            raise ValueError(f"unknown decoys {sorted(unknown)}")
        if decoys[1:]:
            raise ValueError(f"{decoys[1:]} after the decoys")
        return scene(int(seed), int(index), diagnosis, names, shown)
    except ValueError as error:
        raise ValueError(
            f"{path!r} is no phantom address: expected 'phantom::<seed>/<index>/<MEL|NV>/"
            f"<artifact+artifact|none>[/<decoy+decoy>]' ({error})"
        ) from error


def render_path(path: str, size: int) -> np.ndarray:
    """Image (size, size, 3) uint8 at a phantom address."""
    return phantom_render.render(scene_at(path), size)[0]


def render_paths(
    paths: Sequence[str], size: int, workers: int | None = None, progress: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, size, size, 3) uint8 and lesion masks (N, size, size) bool, in parallel."""
    from joblib import Parallel, delayed
    from tqdm import tqdm

    chunks = [paths[i : i + 64] for i in range(0, len(paths), 64)]
    parallel = Parallel(n_jobs=workers or os.cpu_count(), return_as="generator")
    done = parallel(delayed(_render_chunk)(chunk, size) for chunk in chunks)
    images = np.empty((len(paths), size, size, 3), np.uint8)
    masks = np.empty((len(paths), size, size), bool)
    at = 0
    for image, mask in tqdm(
        done, total=len(chunks), desc="phantom", unit="×64", mininterval=1, disable=not progress
    ):
        images[at : at + len(image)], masks[at : at + len(image)] = image, mask
        at += len(image)
    return images, masks


def with_decoys(paths: Sequence[str], share: float, seed: int) -> list[str]:
    """The same addresses, of which a random ``share`` show decoys too, under their artifacts."""
    chosen = phantom_decoys.choose(len(paths), share, np.random.default_rng([seed, 1]))
    return [
        f"{p}/{'+'.join(shown)}" if shown else p for p, shown in zip(paths, chosen, strict=True)
    ]


def _render_chunk(paths: Sequence[str], size: int) -> tuple[np.ndarray, np.ndarray]:
    pairs = [phantom_render.render(scene_at(path), size) for path in paths]
    return np.stack([p[0] for p in pairs]), np.stack([p[1] for p in pairs])


def table(
    n: int, seed: int, prevalence: Mapping[str, float] = PAPER_PREVALENCE, start: int = 0
) -> pd.DataFrame:
    """Table of ``n`` phantom images with the columns every data set has.

    Age, sex and site are drawn at random, independent of everything seen in the image.
    """
    rows = []
    for index in range(start, start + n):
        diagnosis, artifacts = draw_findings(seed, index, prevalence)
        about = np.random.default_rng([seed, FINDINGS, 2, lesion_index(index)])
        rows.append(
            {
                "image_id": f"phantom_{seed}_{index:06d}",
                "path": path_of(seed, index, diagnosis, artifacts),
                "source": "phantom",
                "lesion_id": f"lesion_{seed}_{lesion_index(index):06d}",
                "patient_id": f"patient_{seed}_{lesion_index(index):06d}",
                "diagnosis": diagnosis,
                **{a: a in artifacts for a in ARTIFACTS},
                "age": float(5 * about.integers(4, 18)),
                "sex": str(about.choice(["female", "male"])),
                "site": str(about.choice(SITES)),
                "skin_type": scene(seed, index, diagnosis, artifacts).skin_type,
                "licence": "Apache-2.0",
                "attribution": "derm_rl phantom",
            }
        )
    return pd.DataFrame(rows)


def truth(paths: Sequence[str]) -> pd.DataFrame:
    """All drawn parameters, one row per address: numbers as numbers, lists counted beside them."""
    rows = []
    for path in paths:
        drawn = scene_at(path)
        row = asdict(drawn)
        row["drawn_asymmetry"], row["drawn_border"] = drawn_shape(drawn)
        for name in ("colours", "hairs", "bubbles", "ink", "globules", "streaks"):
            row[f"n_{name}"] = len(row[name])
        rows.append({"path": path, **row})
    return pd.DataFrame(rows)
