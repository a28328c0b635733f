"""Where things are, independent of the directory a notebook or command is started from."""

from __future__ import annotations

import os
from pathlib import Path


def _root() -> Path:
    checkout = Path(__file__).resolve().parents[1]
    return checkout if (checkout / "params").is_dir() else Path.cwd()


ROOT = _root()
PARAMS = ROOT / "params"
NOTEBOOKS = ROOT / "notebooks"
FIGURES = ROOT / "figures"
MODELS = ROOT / "models"
RUNS = Path(os.environ.get("DERM_RL_RUNS", ROOT / "runs")).resolve()


def model_folder(name: str | Path) -> Path | None:
    """Folder of a model, absolute or relative to the repository; None if it must be a hub id."""
    return next((f for f in (Path(name), ROOT / name) if f.is_dir()), None)
