"""What the instruments call an artifact that is none: classifiers and rules on decoys.

    python benchmarks/decoys.py

Phantom images without any artifact, on each of which one decoy was drawn; and, beside them, images
with one true artifact, since an instrument that never sees anything passes the first test. Writes
``benchmarks/results/decoys_phantom.csv`` (share of images, Wilson's 95 % interval) and a sheet of
the decoys, ``decoys_phantom.png``. The families under ``held_out`` are never trained on.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from derm_rl import classifier, paths, pipeline, provenance
from derm_rl.data import phantom, phantom_decoys
from derm_rl.evaluation import panel
from derm_rl.figures.canvas import PHANTOM, Picture
from derm_rl.io import write_csv

RESULTS = Path(__file__).parent / "results"
ARTIFACTS = ("hair", "gel_bubble", "ruler", "ink")
SEED = 1506  # lesions that no model was trained on
Instrument = Callable[[np.ndarray], np.ndarray]  # (N, S, S, 3) uint8 -> (N, artifacts) bool


def pictures(size: int, n: int, artifacts: tuple = (), decoys: tuple = ()) -> np.ndarray:
    """``n`` images (n, size, size, 3) uint8 of different lesions, melanoma and nevus in turn."""
    shown = [("MEL", "NV")[i % 2] for i in range(n)]
    addresses = [phantom.path_of(SEED, 4 * i, d, artifacts, decoys) for i, d in enumerate(shown)]
    return phantom.render_paths(addresses, size)[0]


def instruments(folders: list[Path]) -> dict[str, Instrument]:
    """The classifiers of ``folders`` by name, and the rules."""

    def learned(folder: Path) -> Instrument:
        model = classifier.load(folder)
        columns = [model.label_names.index(a) for a in ARTIFACTS]
        return lambda images: model.predict(images)[:, columns] > 0.5

    return {f.name: learned(f) for f in folders} | {
        "rules": lambda images: panel.rules(images, ARTIFACTS)
    }


def rows(tools: dict[str, Instrument], size: int, n: int) -> Iterator[dict]:
    """For each kind of image and instrument: the share in which it sees each artifact, or any."""
    kinds = [("clean", "none", (), ())]
    kinds += [("decoy", f, (), (f,)) for f in phantom_decoys.FAMILIES]
    kinds += [("held_out", f, (), (f,)) for f in phantom_decoys.HELD_OUT]
    kinds += [("artifact", a, (a,), ()) for a in ARTIFACTS]
    for kind, name, artifacts, decoys in kinds:
        images = pictures(size, n, artifacts, decoys)
        for tool, see in tools.items():
            seen = see(images)
            for artifact, found in (*zip(ARTIFACTS, seen.T, strict=True), ("any", seen.any(1))):
                wilson = binomtest(int(found.sum()), n).proportion_ci(method="wilson")
                yield {
                    "kind": kind, "shown": name, "instrument": tool, "called": artifact,
                    "share": found.mean(), "low": wilson.low, "high": wilson.high, "n": n,
                }  # fmt: skip


def sheet(file: Path, size: int = 64, columns: int = 10) -> None:
    """A row of images for each family, as listed in the module."""
    families = (*phantom_decoys.FAMILIES, *phantom_decoys.HELD_OUT)
    fig = Picture(figsize=(columns + 1.4, len(families)), layout="constrained")
    for family, ax in zip(families, fig.subplots(len(families), squeeze=False)[:, 0], strict=True):
        ax.imshow(np.concatenate(pictures(size, columns, (), (family,)), 1))
        ax.set(xticks=[], yticks=[])
        said = f"{family}\n(held out)" if family in phantom_decoys.HELD_OUT else family
        ax.set_ylabel(said, rotation=0, ha="right", va="center")
    fig.suptitle(PHANTOM, fontsize=9)
    fig.savefig(file, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=400, help="images of each family")
    parser.add_argument(
        "--classifiers", type=Path, nargs="*", help="folders; default: those in models/",
        default=sorted((paths.MODELS / "phantom-classifiers").glob("*net")),
    )  # fmt: skip
    arguments = parser.parse_args()
    size = pipeline.image_size(pipeline.load(paths.MODELS / "phantom-sd"))
    table = pd.DataFrame(rows(instruments(arguments.classifiers), size, arguments.images))
    table["commit"] = provenance.commit()
    write_csv(RESULTS / "decoys_phantom.csv", table)
    sheet(RESULTS / "decoys_phantom.png")
    called = table[table["called"] == "any"].pivot(
        index=["kind", "shown"], columns="instrument", values="share"
    )
    print(f"share of {size} px images in which any artifact is seen\n{called.round(2)}")


if __name__ == "__main__":
    main()
