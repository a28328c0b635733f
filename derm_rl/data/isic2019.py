"""ISIC 2019, as downloaded from the challenge page, with the artifact annotations of RL4Med.

Expected in the data root: ``ISIC_2019_Training_GroundTruth.csv`` (one column a diagnosis),
``ISIC_2019_Training_Metadata.csv``, the images in ``ISIC_2019_Training_Input/`` (or its zip), and
``isic2019_artifacts.csv`` (see :func:`derm_rl.data.dermoscopy.annotate`).

The challenge brought HAM10000, BCN20000 and MSK together and does not say which image is whose;
so each row carries the strictest licence of the three and all attributions, unless the metadata,
as those of the ISIC archive, name its own. Ids lose the ``_downsampled`` that some names end in.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from derm_rl.data import columns
from derm_rl.data.dermoscopy import (
    Exclusions,
    OnError,
    annotate,
    find_images,
    of_diagnoses,
    table_file,
    unique,
)
from derm_rl.data.open_access import layout
from derm_rl.data.table import TableError, few, validate
from derm_rl.prompts import DIAGNOSES

LICENCE = "CC BY-NC 4.0"
ATTRIBUTION = (
    "ISIC 2019: HAM10000 (P. Tschandl et al., Scientific Data 5, 180161, 2018), "
    "BCN20000 (M. Combalia et al., arXiv 1908.02288, 2019), "
    "MSK (N. Codella et al., arXiv 1710.05006, 2017)"
)
TRUTH = columns.known("isic2019", "truth")
ABOUT = columns.known("isic2019")


def read(
    root: str | Path, diagnoses: Sequence[str] = ("MEL", "NV"), on_error: OnError = "raise"
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Table of the annotated images of ``diagnoses``, and the exclusions (image_id, reason).

    Images are found, not decoded: that is done once, when they are loaded.

    Args:
        on_error: what an image with no or two diagnoses, without metadata, without or with
            contradicting annotation, with several rows or without file does: "raise" an error, or
            be left out ("exclude").

    Raises:
        TableError: a file or a column is missing, a value is not of its column's type; or any of
            the above. It names the file, the column and the images, and says what to do.
    """
    root, exclusions = Path(root), Exclusions(on_error)
    truth_file = table_file(root, "ISIC_2019_Training_GroundTruth.csv")
    about_file = table_file(root, "ISIC_2019_Training_Metadata.csv")
    truth = columns.read(truth_file, TRUTH, exclusions.notes)
    truth = columns.with_ids(truth, TRUTH.get(truth, "image_id"), truth_file)
    truth = unique(truth, truth_file, exclusions)
    one_hot = _one_hot(truth, truth_file)
    single = one_hot.sum(axis=1) == 1
    truth = exclusions.keep(truth, single, f"not exactly one diagnosis in {truth_file.name}")
    frame = truth[["image_id"]].assign(diagnosis=one_hot[single].idxmax(axis=1).astype("string"))
    frame = of_diagnoses(frame, diagnoses, truth_file)

    about = columns.read(about_file, ABOUT, exclusions.notes)
    about = columns.with_ids(about, ABOUT.get(about, "image_id"), about_file)
    about = about[about["image_id"].isin(frame["image_id"])]
    described = frame["image_id"].isin(about["image_id"])
    frame = exclusions.keep(frame, described, f"no row in {about_file.name}")
    about = unique(about, about_file, exclusions)
    told = pd.DataFrame(
        {
            "image_id": about["image_id"],
            "lesion_id": about["lesion_id"],
            **layout.about(about, ABOUT, licence=LICENCE, attribution=ATTRIBUTION),
        }
    )
    told = layout.with_values(told, about_file, exclusions)
    frame = frame.merge(told, on="image_id", how="inner").assign(source="isic2019")
    images = find_images(root, "ISIC_2019_Training_Input*")
    return validate(annotate(frame, root, images, exclusions), about_file), exclusions.table()


def _one_hot(truth: pd.DataFrame, file: Path) -> pd.DataFrame:
    codes = [c for c in (*DIAGNOSES, "UNK") if TRUTH.there(truth, c.lower())]
    numbers = pd.DataFrame({c: columns.numbers(TRUTH.get(truth, c.lower())) for c in codes})
    if (bad := ~numbers.isin([0, 1]).all(axis=1)).any():
        raise TableError(
            f"{file}: columns {', '.join(codes)} must hold 0 or 1; not so for "
            f"{few(truth['image_id'][bad])}"
        )
    return numbers == 1
