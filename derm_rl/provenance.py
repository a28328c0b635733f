"""Who made what: the stamp of a finished stage and the record of a number."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from derm_rl.io import write_json
from derm_rl.paths import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from derm_rl.config import Config

METRIC_FIELDS = ("value", "low", "high", "n", "seeds", "preset", "commit", "csv")
_PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "scikit-learn", "numpy")


@lru_cache(maxsize=1)
def commit() -> str | None:
    """Commit of the checkout, with ``+changes`` if sources differ from it; None outside git."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "--", "derm_rl", "notebooks", "params", "models")
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+changes" if changed else "")


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True, timeout=30
    )
    return done.stdout.strip()


def stamp(config: Config, stage: str, **facts: Any) -> Path:
    """Write ``stage.json``: the stage is complete, by whom and from what. Always written last."""
    return write_json(
        config.stage_dir(stage) / "stage.json",
        {
            "stage": stage,
            "preset": config.name,
            "overrides": list(config.overrides),
            "seed": config.seed,
            "commit": commit(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": platform.machine(),
            "versions": {name: version(name) for name in _PACKAGES},
            "facts": facts,
        },
    )


def metric(
    config: Config,
    value: float,
    low: float | None = None,
    high: float | None = None,
    n: int | None = None,
    csv: str | None = None,
) -> dict[str, Any]:
    """One number as ``metrics.json`` holds it: bounds of its 95 % interval, and where it is from.

    ``csv`` names the table behind it, relative to the preset's folder of figures.
    """
    return {
        "value": _plain(value),
        "low": _plain(low),
        "high": _plain(high),
        "n": None if n is None else int(n),
        "seeds": [config.seed],
        "preset": config.name,
        "commit": commit(),
        "csv": csv,
    }


def _plain(value: float | None) -> float | None:
    return None if value is None or value != value else round(float(value), 6)


def record_metrics(config: Config, stage: str, metrics: Mapping[str, Mapping[str, Any]]) -> Path:
    """Write the metrics of a stage; ``derm-rl reproduce`` merges those of all stages."""
    for name, entry in metrics.items():
        if tuple(entry) != METRIC_FIELDS:
            raise ValueError(f"metric {name}: expected fields {METRIC_FIELDS}, got {tuple(entry)}")
    return write_json(config.stage_dir(stage) / "metrics.json", dict(metrics))
