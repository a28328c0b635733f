"""Multi-label image classifiers: the reward that DDPO climbs and the judge that grades the result.

``model`` holds the classifier and its folder format, ``augment`` what training images go through,
``training`` the loop and ``calibration`` the temperatures. Their measurement is in
:mod:`derm_rl.evaluation.classification`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from derm_rl.classifier.model import LabelClassifier, build, load
from derm_rl.classifier.training import train

if TYPE_CHECKING:
    from derm_rl.config import Config

__all__ = ["LabelClassifier", "build", "load", "run", "train"]


def run(config: Config, progress: bool = True) -> Path:
    """Stage 02: train and measure the reward classifier and the judge; returns the stage folder."""
    from derm_rl.evaluation.classification import run as run_stage

    return run_stage(config, progress)
