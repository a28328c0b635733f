"""derm_rl: aligned synthetic dermoscopy and image–text pairs, reproducibly."""

from __future__ import annotations

import logging
from importlib import import_module
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """``PatchAutoencoder`` and its base class, loaded when they are asked for.

    Diffusers looks up the class that a saved pipeline names, and the base that knows how to load
    it, in a module that is imported already. Importing ``derm_rl.pipeline`` takes seconds, and
    ``import derm_rl`` must not; and its name stands here as relative text, which is no import to
    :mod:`derm_rl.dependencies`, so that what makes no pipeline does not depend on its source.
    """
    if name in ("PatchAutoencoder", "ModelMixin"):
        return getattr(import_module(".pipeline", __name__), name)
    raise AttributeError(f"module 'derm_rl' has no attribute {name!r}")


def _needless(record: logging.LogRecord) -> bool:
    """False for what libraries say of a decision that was taken on purpose."""
    said = record.getMessage()
    return not (
        # Nothing may need torchvision: it has no build for the pinned torch on a CPU.
        "requires torchvision (not installed)" in said
        # The autoencoder is a class of our own, and takes the place of AutoencoderKL.
        or ("Expected types for vae" in said and "PatchAutoencoder" in said)
    )


for _library in ("transformers.utils.import_utils", "diffusers.pipelines.pipeline_utils"):
    logging.getLogger(_library).addFilter(_needless)
