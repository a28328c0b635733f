"""How well what is measured in a picture agrees with the truth.

    python benchmarks/measurements.py --seed 12 --images 2000
    python benchmarks/measurements.py --data-root ../shared/data/ham10000

Without ``--data-root``: phantoms, whose truth is exact; writes
``benchmarks/results/measurements_phantom.csv``. Ink is rare, so it is scored on as many images
again in which it is in 30 %, and beside that at its own prevalence. With it: HAM10000, whose
artifacts were annotated by people, on images cut to their centred square and on whole ones squeezed
into it; writes ``measurements_ham10000.csv``. Values with bootstrapped 95 % intervals.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy: one core is what is measured

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
from scipy.stats import spearmanr  # noqa: E402

from derm_rl.captions.measure import measure, measure_all  # noqa: E402
from derm_rl.captions.schema import ARTIFACTS, Measurements  # noqa: E402
from derm_rl.data import ham10000, phantom  # noqa: E402
from derm_rl.data.phantom_scene import drawn_shape  # noqa: E402
from derm_rl.data.table import load_image  # noqa: E402
from derm_rl.io import write_csv  # noqa: E402

RESULTS = Path(__file__).parent / "results"
SIZE = 96
RAISED = {"ink": 0.3}
BARS = {
    "hair F1": 0.9, "gel_bubble F1": 0.9, "ruler F1": 0.9, "ink F1, in 30 %": 0.9,
    "colour count within one": 0.9, "asymmetry Spearman": 0.8, "border Spearman": 0.8,
    "milliseconds": 12.0,
}  # fmt: skip
RESAMPLES = 1000
Score = Callable[[np.ndarray, np.ndarray], float]


def precision(true: np.ndarray, found: np.ndarray) -> float:
    return float((true & found).sum() / found.sum()) if found.any() else np.nan


def recall(true: np.ndarray, found: np.ndarray) -> float:
    return float((true & found).sum() / true.sum()) if true.any() else np.nan


def f1(true: np.ndarray, found: np.ndarray) -> float:
    total = true.sum() + found.sum()
    return float(2 * (true & found).sum() / total) if total else np.nan


def within_one(true: np.ndarray, found: np.ndarray) -> float:
    return float((np.abs(true - found) <= 1).mean())


def spearman(true: np.ndarray, found: np.ndarray) -> float:
    return float(spearmanr(true, found).statistic)


def row(what: str, true: Sequence, found: Sequence, score: Score) -> dict:
    """A score with its bootstrapped interval; resamples on which it is undefined are left out."""
    true, found = np.asarray(true), np.asarray(found)
    rng = np.random.default_rng(0)
    draws = rng.integers(len(true), size=(RESAMPLES, len(true)))
    values = np.array([score(true[d], found[d]) for d in draws])
    values = values[np.isfinite(values)]
    low, high = np.quantile(values, [0.025, 0.975]) if len(values) else (np.nan, np.nan)
    out = {"what": what, "n": len(true), "value": score(true, found), "low": low, "high": high}
    return out | {"bar": BARS.get(what)}


def artifact_rows(
    frame: pd.DataFrame, found: Sequence[Measurements], names: Sequence[str], suffix: str = ""
) -> Iterator[dict]:
    """Precision, recall and F1 of each artifact that is annotated."""
    for name in names:
        known = frame[name].notna().to_numpy()
        true = frame[name][known].astype(bool).to_numpy()
        seen = np.array([m.artifacts[name] for m in found])[known]
        for label, score in (("precision", precision), ("recall", recall), ("F1", f1)):
            yield row(f"{name} {label}{suffix}", true, seen, score)


def lesion_rows(paths: Sequence[str], found: Sequence[Measurements]) -> Iterator[dict]:
    """Colours, asymmetry and border. A lesion that was not found has no colour and ranks last."""
    scenes = [phantom.scene_at(path) for path in paths]
    segmented = [m.segmented for m in found]
    yield row("segmented", [True] * len(found), segmented, recall)
    counts = [len(s.colours) for s in scenes], [len(m.colours) for m in found]
    yield row("colour count within one", *counts, within_one)
    drawn = np.array([drawn_shape(s) for s in scenes]).T
    for name, true in zip(("asymmetry", "border"), drawn, strict=True):
        values = [getattr(m, name) or 0.0 for m in found]
        yield row(f"{name} Spearman", true, values, spearman)
        steering = [getattr(s, name) for s in scenes]
        yield row(f"{name} Spearman, with what steers the drawing", steering, values, spearman)


def milliseconds(paths: Sequence[str]) -> dict:
    """Processor time of one image on one core: the best of five passes, and their range."""
    images = [load_image(path, SIZE) for path in paths]
    measure(images[0])  # fills the caches
    passes = []
    for _ in range(5):
        start = time.process_time()
        for image in images:
            measure(image)
        passes.append((time.process_time() - start) / len(images) * 1000)
    value = {"value": min(passes), "low": min(passes), "high": max(passes)}
    return {"what": "milliseconds", "n": len(images)} | value | {"bar": BARS["milliseconds"]}


def on_phantoms(seed: int, images: int) -> Iterator[dict]:
    for prevalence, suffix, names in (({}, "", ARTIFACTS), (RAISED, ", in 30 %", ("ink",))):
        frame = phantom.table(images, seed, phantom.PAPER_PREVALENCE | prevalence)
        paths = frame["path"].tolist()
        found = list(measure_all(paths, SIZE, progress=True))
        yield from artifact_rows(frame, found, names, suffix)
        if not prevalence:
            yield from lesion_rows(paths, found)
    yield milliseconds(paths[:200])


def on_ham10000(root: Path, images: int) -> Iterator[dict]:
    frame, _ = ham10000.read(root, on_error="exclude")
    frame = frame.sample(min(images, len(frame)), random_state=0)
    paths = frame["path"].tolist()
    for suffix, crop in ((", centre", "center"), (", whole field", None)):
        found = list(measure_all(paths, SIZE, crop=crop, progress=True))
        yield row("segmented" + suffix, [True] * len(found), [m.segmented for m in found], recall)
        yield from artifact_rows(frame, found, ARTIFACTS, suffix)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=12, help="of the phantoms")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--data-root", type=Path, help="folder of HAM10000")
    arguments = parser.parse_args()
    if arguments.data_root:
        name, rows = "ham10000", on_ham10000(arguments.data_root, arguments.images)
    else:
        name, rows = "phantom", on_phantoms(arguments.seed, arguments.images)
    table = pd.DataFrame(rows)
    write_csv(RESULTS / f"measurements_{name}.csv", table)
    print(table.to_string(index=False, float_format=lambda v: f"{v:.3f}"))


if __name__ == "__main__":
    main()
