"""All figures of a preset from its finished stages, without training anything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from derm_rl import paths
from derm_rl.config import MissingArtifact
from derm_rl.figures.alignment import apr_heatmap, attributes, audit, before_after, panel
from derm_rl.figures.canvas import Picture
from derm_rl.figures.captions import (
    answer_lengths,
    check_outcomes,
    example_cards,
    finding_coverage,
    grounded_or_blind,
    openings,
    pair_counts,
)
from derm_rl.figures.classifiers import autoencoder, classifier_roc, decoys
from derm_rl.figures.data import data_counts, data_sheet, phantom_truth, shared_lesions
from derm_rl.figures.quality import fallen_out, front, quality, results_table
from derm_rl.figures.training import ddpo_curves, ddpo_steps, finetune_loss, finetune_samples

if TYPE_CHECKING:
    from derm_rl.config import Config

BY_STAGE: dict[str, tuple[Callable[[Config], Picture | None], ...]] = {
    "01_data": (data_sheet, phantom_truth, data_counts, shared_lesions),
    "02_reward_classifier": (classifier_roc, decoys, autoencoder),
    "03_finetune_stable_diffusion": (finetune_loss, finetune_samples),
    "04_ddpo": (ddpo_curves, ddpo_steps),
    "05_alignment": (before_after, panel, apr_heatmap, attributes, audit),
    "06_quality": (quality, results_table, front, fallen_out),
    "09_image_text_pairs": (
        pair_counts, openings, answer_lengths, check_outcomes, finding_coverage, grounded_or_blind,
    ),
    "10_review_and_release": (example_cards,),
}  # fmt: skip


def redraw(config: Config) -> list[Path]:
    """Draw the figures of all finished stages; names the stages that are not, and why.

    Raises:
        MissingArtifact: no stage is finished.
    """
    drawn: list[Path] = []
    missing: list[str] = []
    for stage, functions in BY_STAGE.items():
        try:
            config.require(stage)
            pictures = [function(config) for function in functions]
        except MissingArtifact as error:
            print(f"{stage} skipped: {error}")
            missing.append(stage)
            continue
        drawn += [p.path for p in pictures if p is not None and p.path is not None]
    if len(missing) == len(BY_STAGE):
        raise MissingArtifact(
            f"preset {config.name} has no finished stage under {paths.RUNS}, so no figure was "
            f"drawn. Run {config.command()}"
        )
    return drawn
