"""HAM10000 (Tschandl et al. 2018), as a download of the original or as one folder or zip of images.

Expected in the data root: ``HAM10000_metadata`` (``.csv``, ``.tab`` or no ending, as on the
Dataverse); the images in ``HAM10000_images_part_1/`` and ``_part_2/``, in zip archives of these
names, or in any ``HAM10000_images*`` folder or zip; and the artifact annotations
``isic2019_artifacts.csv`` (see :func:`derm_rl.data.dermoscopy.annotate`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from derm_rl.data.dermoscopy import (
    Exclusions,
    OnError,
    annotate,
    find_images,
    of_diagnoses,
    read_columns,
    table_file,
    unique,
)
from derm_rl.data.table import validate

LICENCE = "CC BY-NC 4.0"
ATTRIBUTION = (
    "P. Tschandl, C. Rosendahl, H. Kittler: The HAM10000 dataset, Scientific Data 5, 180161 "
    "(2018), doi:10.1038/sdata.2018.161"
)
COLUMNS = ("lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization")
# HAM10000's codes in those of ISIC 2019. Its akiec holds Bowen's disease too.
DIAGNOSES = {
    "mel": "MEL",
    "nv": "NV",
    "bcc": "BCC",
    "akiec": "AK",
    "bkl": "BKL",
    "df": "DF",
    "vasc": "VASC",
}


def read(
    root: str | Path, diagnoses: Sequence[str] = ("MEL", "NV"), on_error: OnError = "raise"
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Table of the annotated images of ``diagnoses``, and the exclusions (image_id, reason).

    Images are found, not decoded: that is done once, when they are loaded.

    Args:
        on_error: what an image with an unknown diagnosis, without or with contradicting annotation,
            with several rows or without file does: "raise" an error, or be left out ("exclude").

    Raises:
        TableError: a file or a column is missing, a value is not of its column's type; or any of
            the above. It names the file, the column and the images, and says what to do.
    """
    root, exclusions = Path(root), Exclusions(on_error)
    file = table_file(root, "HAM10000_metadata.csv", "HAM10000_metadata", "HAM10000_metadata.tab")
    raw = unique(read_columns(file, COLUMNS, "image_id"), file, exclusions)
    code = raw["dx"].str.strip().str.lower()
    raw = exclusions.keep(raw, code.isin(DIAGNOSES), f"unknown diagnosis in 'dx' of {file.name}")
    frame = pd.DataFrame(
        {
            "image_id": raw["image_id"],
            "source": "ham10000",
            "lesion_id": raw["lesion_id"],
            "diagnosis": code[raw.index].map(DIAGNOSES).astype("string"),
            "age": raw["age"],
            "sex": raw["sex"],
            "site": raw["localization"],
            "licence": LICENCE,
            "attribution": ATTRIBUTION,
        }
    )
    frame = of_diagnoses(frame, diagnoses, file)
    frame = annotate(frame, root, find_images(root, "HAM10000_images*"), exclusions)
    return validate(frame, file), exclusions.table()
