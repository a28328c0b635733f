"""Stages 09 and 10 of the smoke preset in a process of its own, for tests that kill it.

python tests/run_captions.py IMAGES
"""

import sys

from derm_rl import config
from derm_rl.captions import pairs, release, store

if __name__ == "__main__":
    store.PART = 16  # so that there are parts to be interrupted between
    chosen = config.load("smoke", (f"captions.images={sys.argv[1]}", "captions.image_size=48",
                                   "captions.measured_size=48"))  # fmt: skip
    pairs.make(chosen, progress=False)
    release.make(chosen)
