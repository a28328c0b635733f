"""ISIC 2019, as downloaded from the challenge page, with the artifact annotations of RL4Med.

Expected in the data root: ``ISIC_2019_Training_GroundTruth.csv`` (one column a diagnosis),
``ISIC_2019_Training_Metadata.csv``, the images in ``ISIC_2019_Training_Input/`` (or its zip), and
``isic2019_artifacts.csv``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from derm_rl.data.dermoscopy import Exclusions, OnError, find_images, join, read_columns, table_file
from derm_rl.data.table import TableError, validate
from derm_rl.prompts import DIAGNOSES

LICENCE = "CC BY-NC 4.0"
ATTRIBUTION = (
    "ISIC 2019: HAM10000 (Tschandl et al. 2018), BCN20000 (Combalia et al. 2019), "
    "MSK (Codella et al. 2018)"
)


def read(
    root: str | Path, diagnoses: Sequence[str] = ("MEL", "NV"), on_error: OnError = "raise"
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Table of the annotated images of ``diagnoses``, and the exclusions (image_id, reason).

    Raises:
        TableError: a file or column is missing, or a row names no or several diagnoses; or, unless
            ``on_error`` is "exclude", an image without annotation or without file.
    """
    root = Path(root)
    truth_file = table_file(root, "ISIC_2019_Training_GroundTruth.csv")
    truth = read_columns(truth_file, ["image", *DIAGNOSES], "image")
    about_file = table_file(root, "ISIC_2019_Training_Metadata.csv")
    columns = ["image", "age_approx", "anatom_site_general", "lesion_id", "sex"]
    about = read_columns(about_file, columns, "image").set_index("image")

    codes = [c for c in (*DIAGNOSES, "UNK") if c in truth]
    try:
        one_hot = truth[codes].astype(float) > 0.5
    except ValueError as error:
        raise TableError(f"{truth_file}: diagnosis columns must hold 0 or 1 ({error})") from error
    if (bad := one_hot.sum(axis=1) != 1).any():
        few = ", ".join(truth["image"][bad][:5])
        raise TableError(f"{truth_file}: expected one diagnosis a row, not so for {few}")
    exclusions = Exclusions(on_error)
    described = truth["image"].isin(about.index)
    exclusions.add(truth["image"][~described].tolist(), f"no row in {about_file.name}")
    rows = about.reindex(truth["image"][described]).reset_index()
    frame = pd.DataFrame(
        {
            "image_id": rows["image"],
            "source": "isic2019",
            "lesion_id": rows["lesion_id"],
            "diagnosis": one_hot[described].idxmax(axis=1).reset_index(drop=True),
            "age": rows["age_approx"],
            "sex": rows["sex"],
            "site": rows["anatom_site_general"],
            "licence": LICENCE,
            "attribution": ATTRIBUTION,
        }
    )
    images = find_images(root, ["ISIC_2019_Training_Input*", "ISIC_*.jpg"])
    joined = join(frame, root, images, diagnoses, exclusions)
    return validate(joined, truth_file), exclusions.table()
