"""How fast the phantom is drawn: images per second and core, beside a fixed piece of arithmetic.

    python benchmarks/phantom.py

Writes ``benchmarks/results/phantom_cpu.json``. Machines differ and are shared, so the time of one
image is also given as a multiple of a 256 × 256 float32 matrix product timed in the same run.
"""

from __future__ import annotations

import argparse
import os
import platform
import timeit
from datetime import UTC, datetime
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy: one core is what is measured

import numpy as np  # noqa: E402

from derm_rl import provenance  # noqa: E402
from derm_rl.data import phantom  # noqa: E402
from derm_rl.io import write_json  # noqa: E402

RESULTS = Path(__file__).parent / "results"


def seconds_per_image(size: int, images: int, repeats: int) -> float:
    """Best of ``repeats`` passes over the same images, at the prevalences of the paper."""
    paths = phantom.table(images, seed=7)["path"].tolist()
    phantom.render_path(paths[0], size)  # fills the caches
    passes = timeit.repeat(lambda: [phantom.render_path(p, size) for p in paths], number=1,
                           repeat=repeats)  # fmt: skip
    return min(passes) / images


def seconds_per_product(repeats: int) -> float:
    """Best of ``repeats`` times of one 256 × 256 float32 matrix product."""
    a = np.random.default_rng(0).random((256, 256), np.float32)
    return min(timeit.repeat(lambda: a @ a, number=50, repeat=repeats)) / 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=200, help="images in one pass")
    parser.add_argument("--repeats", type=int, default=5, help="passes, of which the best counts")
    arguments = parser.parse_args()
    product = seconds_per_product(arguments.repeats)
    rows = {}
    for size in (48, 64, 256):
        seconds = seconds_per_image(size, arguments.images, arguments.repeats)
        rows[str(size)] = {
            "images_per_second_per_core": round(1 / seconds, 1),
            "in_matrix_products": round(seconds / product, 1),
        }
        print(f"{size:4d} px: {rows[str(size)]}")
    facts = {
        "date": datetime.now(UTC).date().isoformat(),
        "device": f"one core, {platform.machine()}",
        "commit": provenance.commit(),
    }
    write_json(RESULTS / "phantom_cpu.json", facts | {"by_size": rows})


if __name__ == "__main__":
    main()
